"""What commands print: a record as JSON, or its text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.commands.lazy import lazy
from veritune.commands.screen import put
from veritune.errors import InputError

if TYPE_CHECKING:
    from veritune import ci, records, store
else:
    ci, records, store = lazy("veritune.ci"), lazy("veritune.records"), lazy("veritune.store")


@dataclass(frozen=True, slots=True)
class Shown:
    """The output forms of a check that runs in a pipeline: `--json`, `--markdown`, `--junit`, `--github`.

    Raises InputError for two that both print.
    """

    as_json: bool = False
    markdown: Path | None = None
    junit: Path | None = None
    github: bool = False

    def __post_init__(self) -> None:
        if self.as_json and self.prints_markdown:
            raise InputError(
                "--json and --markdown - both write to the screen.", fix="Give --markdown a file, or leave out --json."
            )

    @property
    def prints_markdown(self) -> bool:
        """Whether the Markdown is printed instead of the screen's text."""
        return str(self.markdown) == "-"

    @property
    def anything(self) -> bool:
        """Whether any of the pipeline forms was asked for."""
        return self.markdown is not None or self.junit is not None or self.github

    def show(self, check: ci.CheckReport, record: object, screen: Callable[[], str]) -> None:
        """Write the files that were asked for, then print the record, its Markdown or the screen's text, then
        annotations.
        """
        if self.junit is not None:
            store.write_text(self.junit, ci.junit(check))
        if self.prints_markdown:
            print(check.markdown)
        else:
            if self.markdown is not None:
                store.write_text(self.markdown, check.markdown + "\n")
            put(json_text(record) if self.as_json else screen(), raw=self.as_json)
        if self.github:
            print("\n".join(ci.github_lines(check)), file=sys.stderr)


def json_text(record: object) -> str:
    """A record as indented JSON with sorted keys; paths become text."""
    return records.dumps(_without_paths(record), indent=2)


def _without_paths(record: Any) -> Any:
    if is_dataclass(record) and not isinstance(record, type):
        record = asdict(record)
    if isinstance(record, dict):
        return {k: _without_paths(v) for k, v in record.items()}
    if isinstance(record, list | tuple):
        return [_without_paths(v) for v in record]
    return str(record) if isinstance(record, Path) else record


def show_reading(record: object, as_json: bool, out: Path | None) -> None:
    """Write a probe's record to `out`, and print it as JSON or as three sentences."""
    if out is not None:
        store.write_json(out, record)
    put(json_text(record) if as_json else reading_text(record), raw=as_json)


def show_readings(named: dict[str, Any], as_json: bool, out: Path | None) -> None:
    """Write several records under their names to `out`, and print them as JSON or one after the other."""
    if out is not None:
        store.write_json(out, named)
    if as_json:
        print(json_text(named))
        return
    for name, record in named.items():
        plain = records.to_json(record)
        if isinstance(plain, dict) and "reading" in plain:
            put(reading_text(plain, f"{name}: " if len(named) > 1 else ""))
        elif isinstance(plain, dict) and plain.get("value") is not None:
            bounds = "no interval" if plain["low"] is None else f"{plain['low']:.4f} to {plain['high']:.4f}"
            put(f"{plain['name']}: {plain['value']:.4f} ({bounds}), n = {plain['n']}")


def reading_text(record: Any, head: str = "") -> str:
    """What a probe measured, its limits and what would change the reading. `record` is an object, or the mapping read
    back from disk.
    """
    reading, limits, would_change = (
        record[name] if isinstance(record, dict) else getattr(record, name)
        for name in ("reading", "limits", "would_change")
    )
    return f"{head}{reading}\nLimits: {limits}\nWhat would change it: {would_change}"

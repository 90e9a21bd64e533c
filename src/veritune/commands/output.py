"""What commands print: a record as JSON, or its text."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.commands.lazy import lazy

if TYPE_CHECKING:
    from veritune import records, store
else:
    records, store = lazy("veritune.records"), lazy("veritune.store")


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
    """A probe's record: written to `out`, and printed as JSON or as its three sentences."""
    if out is not None:
        store.write_json(out, record)
    print(json_text(record) if as_json else reading_text(record))


def show_readings(named: dict[str, Any], as_json: bool, out: Path | None) -> None:
    """Several records under their names: written to `out`, and printed as JSON or one after the other."""
    if out is not None:
        store.write_json(out, named)
    if as_json:
        print(json_text(named))
        return
    for name, record in named.items():
        plain = records.to_json(record)
        if isinstance(plain, dict) and "reading" in plain:
            print(reading_text(plain, f"{name}: " if len(named) > 1 else ""))
        elif isinstance(plain, dict) and plain.get("value") is not None:
            bounds = "no interval" if plain["low"] is None else f"{plain['low']:.4f} to {plain['high']:.4f}"
            print(f"{plain['name']}: {plain['value']:.4f} ({bounds}), n = {plain['n']}")


def reading_text(record: Any, head: str = "") -> str:
    """What a probe read, its limits and what would change it. `record`: an object, or one read back from disk."""
    reading, limits, would_change = (
        record[name] if isinstance(record, dict) else getattr(record, name)
        for name in ("reading", "limits", "would_change")
    )
    return f"{head}{reading}\nLimits: {limits}\nWhat would change it: {would_change}"

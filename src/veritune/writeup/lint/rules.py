"""Findings, the report, and the rules: which are on, how grave they are, and the words that a team adds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from veritune.errors import InputError, did_you_mean
from veritune.patterns import compiled
from veritune.untrusted import MAX_YAML_BYTES, parse_yaml, read_bytes

if TYPE_CHECKING:
    from veritune.records import JsonLike

LEVELS = ("error", "note", "off")
DEFAULTS = Path(__file__).parent.parent / "lint_rules.yaml"


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One finding of lint. `found` is the value in the records, with its name; `line` and `column` count from 1."""

    rule: str
    severity: Literal["error", "note"]
    line: int
    column: int
    message: str
    text: str = ""
    quantity: str | None = None
    found: float | str | None = None
    suggestion: str = ""


@dataclass(frozen=True, slots=True)
class NumberFate:
    """The outcome for one number: `outcome` is bound, ambiguous, absent (not in the records) or wrong.

    `start` is its offset in the text, `name` and `value` the record it was held against.
    `by_reference` says that a reference or a marker binds it.
    """

    outcome: str
    start: int
    text: str
    message: str = ""
    name: str | None = None
    value: float | None = None
    suggestion: str = ""
    by_reference: bool = False


@dataclass(frozen=True, slots=True)
class LintReport:
    """All findings of lint, in the order of the text. `bound` counts numbers that agree with a record, `numbers` counts
    all.

    `readings` tells of every number what became of it.
    """

    path: str
    study: str
    contract: str
    findings: tuple[LintFinding, ...]
    numbers: int
    bound: int
    readings: tuple[NumberFate, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether there is no finding above a note."""
        return not any(f.severity == "error" for f in self.findings)


@dataclass(frozen=True, slots=True)
class Forbidden:
    """A wording that a team forbids. `unless` exempts a sentence; `message` says why and what to write instead."""

    id: str
    pattern: re.Pattern[str]
    message: str
    unless: re.Pattern[str] | None = None


@dataclass(frozen=True)
class Rules:
    """The rules in force. `levels` maps a rule id to `error`, `note` or `off`."""

    levels: Mapping[str, str]
    sections: Mapping[str, tuple[str, ...]]
    card: Mapping[str, tuple[str, ...]]
    acronyms: frozenset[str]
    aliases: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    ignore: tuple[re.Pattern[str], ...] = ()
    forbid: tuple[Forbidden, ...] = ()

    def level(self, rule: str) -> str:
        return self.levels.get(rule, "error")


def load_rules(path: Path | None = None) -> Rules:
    """The default rules, changed by a team's file. Raises InputError for an unknown key, rule or a bad pattern."""
    base = dict(_defaults())
    if path is None:
        return _rules(base, str(DEFAULTS.name))
    try:
        given = parse_yaml(read_bytes(path, MAX_YAML_BYTES))
    except FileNotFoundError:
        raise InputError(f"no rules file at {path}.", fix="Name an existing file, or leave out --rules.") from None
    except (OSError, ValueError, yaml.YAMLError) as exc:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(exc).split())}.") from None
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise InputError(f"{path}: expected a mapping with {', '.join(sorted(base))}; found {type(given).__name__}.")
    _check_keys(given, base, str(path))
    return _rules(_merge(base, given), str(path))


@lru_cache(maxsize=1)
def _defaults() -> Mapping[str, JsonLike]:
    return dict(yaml.safe_load(DEFAULTS.read_text(encoding="utf-8")))


def _check_keys(given: Mapping[str, Any], base: Mapping[str, Any], where: str) -> None:
    for key in given:
        if key not in base:
            raise InputError(
                f"{where}: unknown key {key!r}{did_you_mean(str(key), list(base))}.", fix="See docs/lint.md."
            )
    for key in ("rules", "sections", "card", "aliases"):
        if not isinstance(given.get(key, {}), dict):
            raise InputError(f"{where}: {key} is a mapping, found {type(given[key]).__name__}.")
    for dimension, names in given.get("aliases", {}).items():
        if not isinstance(names, dict):
            raise InputError(f"{where}: aliases.{dimension} is a mapping, found {type(names).__name__}.")
    if not isinstance(given.get("forbid", []), list):
        raise InputError(f"{where}: forbid is a list, found {type(given['forbid']).__name__}.")
    for rule, level in given.get("rules", {}).items():
        own = [f["id"] for f in given.get("forbid", ()) if isinstance(f, dict) and "id" in f]
        if rule not in base["rules"] and rule not in own:
            raise InputError(f"{where}: rules.{rule}: unknown rule{did_you_mean(str(rule), list(base['rules']))}.")
        if level_of(level) not in LEVELS:
            raise InputError(f"{where}: rules.{rule}: expected error, note or off, found {level!r}.")


def level_of(value: object) -> str:
    """The level from a YAML value, where a bare `off` is false and `on` is true."""
    return {False: "off", True: "error"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _merge(base: Mapping[str, JsonLike], given: Mapping[str, JsonLike]) -> dict[str, JsonLike]:
    """Mappings are joined key by key, lists are added to."""
    out = dict(base)
    for key, value in given.items():
        old = out.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            out[key] = _merge(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            out[key] = [*old, *value]
        else:
            out[key] = value
    return out


def _rules(raw: Mapping[str, Any], where: str) -> Rules:
    return Rules(
        levels={str(k): level_of(v) for k, v in raw["rules"].items()},
        sections={k: texts_of(v, f"{where}: sections.{k}") for k, v in raw["sections"].items()},
        card={k: texts_of(v, f"{where}: card.{k}") for k, v in raw["card"].items()},
        acronyms=frozenset(texts_of(raw["acronyms"], f"{where}: acronyms")),
        aliases={
            dimension: {name: texts_of(words, f"{where}: aliases.{dimension}.{name}") for name, words in names.items()}
            for dimension, names in raw["aliases"].items()
        },
        ignore=tuple(_pattern(p, f"{where}: ignore") for p in texts_of(raw["ignore"], f"{where}: ignore")),
        forbid=tuple(_forbidden(f, where) for f in raw["forbid"]),
    )


def texts_of(value: JsonLike, where: str) -> tuple[str, ...]:
    """A text or a list of texts of a file of rules. Raises InputError for anything else."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise InputError(f"{where}: expected a list of texts, found {value!r}.")
    return tuple(value)


def _pattern(text: str, where: str) -> re.Pattern[str]:
    try:
        return compiled(text, re.IGNORECASE)
    except ValueError as exc:
        raise InputError(f"{where}: {text!r} is not a regular expression: {exc}.") from None


def _forbidden(raw: JsonLike, where: str) -> Forbidden:
    if not isinstance(raw, dict) or not {"id", "pattern", "message"} <= set(raw):
        raise InputError(f"{where}: forbid: expected id, pattern and message, found {raw!r}.")
    unless = raw.get("unless")
    at = f"{where}: forbid.{raw['id']}"
    pattern = _pattern(str(raw["pattern"]), at)
    return Forbidden(str(raw["id"]), pattern, str(raw["message"]), _pattern(str(unless), at) if unless else None)

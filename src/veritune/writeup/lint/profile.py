"""Profiles: what a team's pages must hold and may not say, as YAML; the clean-result page comes along."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from veritune.errors import InputError, did_you_mean, first_line
from veritune.records import JsonValue
from veritune.untrusted import MAX_YAML_BYTES, parse_yaml, read_bytes
from veritune.writeup.lint.rules import LEVELS, level_of, texts_of

FOLDER = Path(__file__).parent.parent
BUILT_IN = ("clean-result",)
FIELDS = (
    "name",
    "extends",
    "checks",
    "sections",
    "motivation",
    "card",
    "confidence",
    "hedges",
    "forbid",
    "allow",
    "acronyms",
)
SECTION_FIELDS = ("headings", "required", "first", "bullets", "words")
FORBID_FIELDS = ("words", "unless", "message", "check")


@dataclass(frozen=True, slots=True)
class SectionRule:
    """One section of a page: the headings that open it, and its least and most bullets and words."""

    key: str
    headings: tuple[str, ...]
    required: bool = True
    first: bool = False
    bullets: tuple[int, int] | None = None
    words: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ForbiddenWords:
    """Words that a team forbids; sentences with one of `unless` are exempt."""

    words: tuple[str, ...]
    message: str
    check: str
    unless: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """The rules of one kind of page. `checks` maps a check's id to `error`, `note` or `off`."""

    name: str
    checks: Mapping[str, str]
    sections: tuple[SectionRule, ...]
    motivation: tuple[str, ...] = ()
    card: tuple[str, ...] = ()
    confidence: tuple[str, ...] = ("high", "moderate", "low")
    hedges: tuple[str, ...] = ()
    forbid: tuple[ForbiddenWords, ...] = ()
    allow: frozenset[str] = frozenset()
    acronyms: frozenset[str] = field(default_factory=frozenset)

    def level(self, check: str) -> str:
        """The level of a check: off unless the profile names it; a team's own sections and words are errors."""
        own = check.startswith(("section.", "words."))
        return self.checks.get(check, "error" if own else "off")

    def section(self, key: str) -> SectionRule | None:
        return next((s for s in self.sections if s.key == key), None)


def load_profile(name: str | Path) -> Profile:
    """A profile by its name, or a team's own from a YAML file. Raises InputError for unknown names, keys or checks."""
    return _profile(_raw(str(name), ()), str(name))


def _raw(name: str, seen: tuple[str, ...]) -> dict[str, JsonValue]:
    if name in seen:
        raise InputError(
            f"the profile {name} extends itself ({' → '.join((*seen, name))}).", fix="Remove one `extends`."
        )
    path = FOLDER / f"{name}.yaml" if name in BUILT_IN else Path(name)
    try:
        given = parse_yaml(read_bytes(path, MAX_YAML_BYTES))
    except FileNotFoundError:
        known = f"Profiles: {', '.join(BUILT_IN)}; or name a YAML file."
        raise InputError(f"unknown profile {name!r}{did_you_mean(name, list(BUILT_IN))}.", fix=known) from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as exc:
        raise InputError(f"{name} cannot be read as YAML: {first_line(exc)}.", fix="Repair the file.") from exc
    if not isinstance(given, dict):
        raise InputError(f"{name}: expected a mapping with {', '.join(FIELDS)}; found {type(given).__name__}.")
    for key in given:
        if key not in FIELDS:
            raise InputError(
                f"{name}: unknown field {key!r}{did_you_mean(str(key), list(FIELDS))}.", fix="See docs/lint.md."
            )
    base = given.get("extends")
    if base is None:
        return {str(k): v for k, v in given.items()}
    if not isinstance(base, str):
        raise InputError(f"{name}: extends: expected a profile's name, found {base!r}.")
    where = base if base in BUILT_IN or Path(base).is_absolute() else str(path.parent / base)
    return _merged(_raw(where, (*seen, name)), {str(k): v for k, v in given.items() if k != "extends"})


def _merged(base: dict[str, JsonValue], own: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Mappings are joined key by key (a section as a whole), lists are added to; a section of `null` is taken out."""
    out = dict(base)
    for key, value in own.items():
        old = out.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            out[key] = {k: v for k, v in {**old, **value}.items() if v is not None}
        elif isinstance(old, list) and isinstance(value, list):
            out[key] = [*old, *value]
        else:
            out[key] = value
    return out


def _profile(raw: Mapping[str, JsonValue], where: str) -> Profile:
    checks = _mapping(raw.get("checks", {}), f"{where}: checks")
    levels: dict[str, str] = {}
    for check, level in checks.items():
        levels[check] = level_of(level)
        if levels[check] not in LEVELS:
            raise InputError(f"{where}: checks.{check}: expected {', '.join(LEVELS)}; found {level!r}.")
    sections = _mapping(raw.get("sections", {}), f"{where}: sections")
    profile = Profile(
        name=str(raw.get("name") or Path(where).stem),
        checks=levels,
        sections=tuple(_section(key, held, f"{where}: sections.{key}") for key, held in sections.items()),
        motivation=texts_of(raw.get("motivation", []), f"{where}: motivation"),
        card=texts_of(raw.get("card", []), f"{where}: card"),
        confidence=texts_of(raw.get("confidence", ["high", "moderate", "low"]), f"{where}: confidence"),
        hedges=texts_of(raw.get("hedges", []), f"{where}: hedges"),
        forbid=tuple(_forbid(raw.get("forbid", []), f"{where}: forbid")),
        allow=frozenset(w.lower() for w in texts_of(raw.get("allow", []), f"{where}: allow")),
        acronyms=frozenset(texts_of(raw.get("acronyms", []), f"{where}: acronyms")),
    )
    for check in levels:
        known = [*CHECKS, *(f"section.{s.key}" for s in profile.sections), *(f.check for f in profile.forbid)]
        if check not in known:
            raise InputError(
                f"{where}: checks.{check}: unknown check{did_you_mean(check, known)}.", fix="See docs/lint.md."
            )
    return profile


def _mapping(held: JsonValue, where: str) -> dict[str, JsonValue]:
    if not isinstance(held, dict):
        raise InputError(f"{where}: expected a mapping, found {type(held).__name__}.")
    return {str(k): v for k, v in held.items()}


def _section(key: str, held: JsonValue, where: str) -> SectionRule:
    fields = {"headings": held} if isinstance(held, list | str) else _mapping(held, where)
    for name in fields:
        if name not in SECTION_FIELDS:
            raise InputError(f"{where}: unknown field {name!r}{did_you_mean(name, list(SECTION_FIELDS))}.")
    headings = texts_of(fields.get("headings", [key.replace("_", " ")]), f"{where}.headings")
    flags = {name: fields.get(name, default) for name, default in (("required", True), ("first", False))}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise InputError(f"{where}.{name}: expected true or false, found {value!r}.")
    return SectionRule(
        key, headings, bool(flags["required"]), bool(flags["first"]),
        _range(fields.get("bullets"), f"{where}.bullets"), _range(fields.get("words"), f"{where}.words"),
    )  # fmt: skip


def _range(held: JsonValue, where: str) -> tuple[int, int] | None:
    if held is None:
        return None
    ends = [v for v in held if isinstance(v, int) and v >= 0] if isinstance(held, list) else []
    if not isinstance(held, list) or len(held) != 2 or len(ends) != 2 or ends[0] > ends[1]:
        raise InputError(f"{where}: expected [least, most], found {held!r}.")
    return ends[0], ends[1]


def _forbid(held: JsonValue, where: str) -> Iterator[ForbiddenWords]:
    if not isinstance(held, list):
        raise InputError(f"{where}: expected a list, found {type(held).__name__}.")
    for i, entry in enumerate(held):
        if isinstance(entry, str):
            yield ForbiddenWords((entry,), f"this team does not write {entry!r}", "words.forbidden")
            continue
        fields = _mapping(entry, f"{where}[{i}]")
        for name in fields:
            if name not in FORBID_FIELDS:
                raise InputError(f"{where}[{i}]: unknown field {name!r}{did_you_mean(name, list(FORBID_FIELDS))}.")
        if "words" not in fields:
            raise InputError(
                f"{where}[{i}]: expected words, found {', '.join(fields)}.", fix="{words: [...], message: ...}"
            )
        words = texts_of(fields["words"], f"{where}[{i}].words")
        unless = texts_of(fields.get("unless", []), f"{where}[{i}].unless")
        message = str(fields.get("message") or f"this team does not write {words[0]!r}")
        yield ForbiddenWords(words, message, str(fields.get("check", "words.forbidden")), unless)


CHECKS = (
    "title.confidence", "summary.structure", "summary.human", "hero.pinned", "captions", "methodology.bullets",
    "background.motivation", "background.references", "acronyms", "dataset.example", "dataset.link",
    "samples.by_result",
    "numbers.records", "card.complete", "hedges", "statistics", "words.forbidden",
)  # fmt: skip


def any_of(words: Sequence[str]) -> re.Pattern[str]:
    """A pattern that finds any of some words or phrases, as whole words if they begin and end with letters."""
    parts = [rf"(?<!\w){re.escape(w)}(?!\w)" if w[-1:].isalnum() else re.escape(w) for w in words if w]
    return re.compile("|".join(parts) or r"(?!)", re.IGNORECASE)

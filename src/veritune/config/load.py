"""Reads a study file and its flags, and says where each setting came from.

Errors name the path in the file (`conditions.all_layer.r`), what was expected, what was found, and for an unknown key
the nearest known one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from veritune.config.study import Study
from veritune.errors import StudyError, did_you_mean
from veritune.untrusted import MAX_YAML_BYTES, parse_json, parse_yaml, read_bytes

if TYPE_CHECKING:
    from veritune.records import JsonLike


def load_study(path: str | Path, flags: Mapping[str, JsonLike] | None = None) -> Study:
    """Read and validate a study file. Raises StudyError with every problem found, each with its path in the file.

    `flags` are settings by path (`train.max_steps`) that override the file's; None takes those that were frozen in the
    contract beside the file.
    """
    file = Path(path)
    try:
        raw = parse_yaml(read_bytes(file, MAX_YAML_BYTES))
    except FileNotFoundError as exc:
        raise StudyError(f"no study file at {file}.", fix="Write one with `veritune init DATA`.") from exc
    except IsADirectoryError:
        return load_study(file / "study.yaml", flags)
    except (yaml.YAMLError, ValueError) as exc:
        words = " ".join(str(exc).split())
        raise StudyError(f"{file} is not valid YAML: {words}.", fix="Correct {file} at that place.") from exc
    if not isinstance(raw, dict):
        raise StudyError(
            f"{file}: expected a mapping of settings, found {type(raw).__name__}.",
            fix="Write an example: `veritune init DATA`.",
        )
    for key, value in (frozen_flags(file.parent) if flags is None else flags).items():
        _set(raw, key, value)
    return parse_study(raw, where=str(file))


def frozen_flags(folder: Path) -> dict[str, JsonLike]:
    """Settings that were given as flags when the study in `folder` was frozen or amended; empty without a contract."""
    try:
        record = parse_json(read_bytes(folder / "contract.lock.json"))
        return dict(record["entries"][-1].get("flags") or {})
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return {}  # a damaged contract is named where its chain is recomputed


def parse_flags(texts: Sequence[str]) -> dict[str, JsonLike]:
    """Settings from texts like `train.max_steps=20`, as a mapping from key to value; values are read as YAML. Raises
    StudyError.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not re.fullmatch(r"[\w\-]+(\.[\w\-]+)*", key.strip()):
            raise StudyError(f"--set {text!r}: expected KEY=VALUE.", fix="E.g. --set train.max_steps=20")
        try:
            found[key.strip()] = parse_yaml(value)
        except (yaml.YAMLError, ValueError) as exc:
            raise StudyError(f"--set {text!r}: {' '.join(str(exc).split())}.", fix="Values are YAML.") from None
    return found


def _set(raw: dict[str, JsonLike], key: str, value: JsonLike) -> None:
    """Put one setting into raw settings by its path. Raises StudyError where the path leads nowhere."""
    node: Any = raw
    *way, last = key.split(".")
    for part in way:
        if isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            raise StudyError(f"--set {key}: unknown setting {part!r}.", fix="List all settings: `veritune schema`.")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise StudyError(f"--set {key}: unknown setting {last!r}.", fix="List all settings: `veritune schema`.")


def sources(study: Study, flags: Collection[str] = ()) -> dict[str, str]:
    """Where every resolved setting came from, by its path: `flag`, `file` or `default`."""
    found: dict[str, str] = {}

    def walk(value: JsonLike, path: str, source: str) -> None:
        if any(path == flag or path.startswith(f"{flag}.") for flag in flags):
            source = "flag"
        if isinstance(value, BaseModel):
            for name in [*type(value).model_fields, *(value.model_extra or {})]:
                given = source if source == "flag" else "file" if name in value.model_fields_set else "default"
                walk(getattr(value, name), f"{path}.{name}" if path else name, given)
        elif isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(inner, f"{path}.{name}", source)
        elif isinstance(value, tuple) and any(isinstance(inner, BaseModel) for inner in value):
            for i, inner in enumerate(value):
                walk(inner, f"{path}.{i}", source)
        else:
            found[path] = source

    walk(study, "", "file")
    return found


def parse_study(raw: dict[str, Any], *, where: str = "study") -> Study:
    """A study from settings that are a mapping already. Raises StudyError naming every problem."""
    try:
        return Study.model_validate(raw)
    except ValidationError as exc:
        problems: dict[str, list[str]] = {}
        for error in exc.errors():
            said = problems.setdefault(_path(error, raw), [])
            said += [m for m in [_problem(error)] if m not in said]
        lines = [f"{path}: {' or '.join(said)}" if path else " or ".join(said) for path, said in problems.items()]
        raise StudyError(
            f"{where}: " + "; ".join(lines) + ".", fix="Correct these settings in study.yaml; nothing has run."
        ) from None


def _path(error: Any, raw: Any) -> str:
    """The path as the file has it: what pydantic adds for a choice between types is left out."""
    parts: list[str] = []
    value, loc = raw, error["loc"]
    for n, part in enumerate(loc, start=1):
        inside = (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int))
        if inside:
            value = value[part]
        if inside or (n == len(loc) and error["type"] in ("missing", "extra_forbidden")):
            parts.append(str(part))
    return ".".join(parts)


def _problem(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key{did_you_mean(str(error['loc'][-1]), _known_keys(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return "missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"]) if "ctx" in error else str(error["msg"])
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, found {_short(error['input'])}"


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    """Keys of the section at `loc`, following field annotations through dicts and tuples."""
    section: Any = Study
    for part in loc:
        fields = getattr(section, "model_fields", {})
        if part in fields:
            section = _section_in(fields[part].annotation)
    return list(getattr(section, "model_fields", {}))


def _section_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for arg in getattr(annotation, "__args__", ()):
        found = _section_in(arg)
        if found is not None:
            return found
    return None


def _short(value: JsonLike) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def json_schema() -> dict[str, JsonLike]:
    """JSON Schema of a study file, for editors."""
    return Study.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}

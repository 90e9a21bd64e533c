"""Writes docs/study.md, the reference of study.yaml, from the model that validates it.   python docs/make_study.py"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from veritune.config.load import json_schema

OUT = Path(__file__).with_name("study.md")
INTRO = """# study.yaml

Made from the validating model by `make docs`; do not edit. `veritune schema` prints the same as JSON Schema for
editors: put `# yaml-language-server: $schema=study.schema.json` on the first line. Unknown keys are errors, with the nearest
known key named; every error names its path in the file. Nothing trains before the whole file has been checked.
"""


def text() -> str:
    """The whole page."""
    schema = json_schema()
    parts = [INTRO, _section("study.yaml", schema, schema)]
    for name, part in schema["$defs"].items():
        parts.append(_section(name, part, schema))
    return "\n".join(parts)


def _section(title: str, part: dict[str, Any], schema: dict[str, Any]) -> str:
    lines = [f"## {title}\n", part.get("description", "").strip() + "\n", "| key | type | default | meaning |"]
    lines.append("| --- | --- | --- | --- |")
    required = set(part.get("required", ()))
    for key, field in part.get("properties", {}).items():
        default = "required" if key in required else f"`{field.get('default')!r}`".replace("None", "none")
        if isinstance(field.get("default"), dict):
            default = "see there"
        meaning = re.sub(r"\s+", " ", field.get("description", "")).replace("|", "\\|")
        lines.append(f"| `{key}` | {_type(field)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "enum" in field:
        return " \\| ".join(f"`{v}`" for v in field["enum"])
    if "anyOf" in field:
        return " \\| ".join(dict.fromkeys(_type(f) for f in field["anyOf"] if f.get("type") != "null"))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    if field.get("type") == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"name → {_type(field['additionalProperties'])}"
    if field.get("type") == "object" and "patternProperties" in field:
        return f"name → {_type(next(iter(field['patternProperties'].values())))}"
    return {"integer": "whole number", "number": "number", "string": "text", "boolean": "yes/no"}.get(
        field.get("type", ""), "any"
    )


def main() -> None:
    OUT.write_text(text(), encoding="utf-8")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()

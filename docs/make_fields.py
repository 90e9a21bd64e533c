"""Writes docs/fields.md, what each known field of a row means here.   python docs/make_fields.py"""

from __future__ import annotations

from pathlib import Path

from veritune.data.fields import table

OUT = Path(__file__).with_name("fields.md")
INTRO = """# Fields of a row

Made from `veritune.data.fields` by `make docs`; do not edit. **honoured**: it does here what it does where it comes from.
**refused**: a row in which it says something is refused by the field's name, with the way out. **unused**: the row is read,
and the field is counted and shown (`not used in training: ...`); so is every field that is not in this table.

A column that is null, an empty text or an empty list says nothing. `--columns ignore=NAME` (several: `ignore=A|B`) leaves a
refused column alone. Nulls inside `tools` and arguments are left out where a Parquet or Arrow table filled them in.

"""


def text() -> str:
    """The whole page."""
    return INTRO + table()


if __name__ == "__main__":
    OUT.write_text(text(), encoding="utf-8")

"""How records and tables show themselves in a notebook: HTML for the cell, a short line for the prompt.

`Displayed` gives a record its fields as HTML and as plain values. `Tabular` gives what has columns and rows the same,
and a frame of polars or pandas. Text from data and models is escaped; nothing here has a script or a style of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from veritune.canonical import to_json
from veritune.counting import grouped, many
from veritune.errors import MachineError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

ROWS = 20
"""Rows of a table that a cell shows; the line below says of how many."""
LONGEST = 300
"""Characters of a text that a cell shows."""
SIGNS = {"supported": "✔", "refuted": "✘", "inconclusive": "◇", "untested": "–"}


class Displayed:
    """A record that a notebook shows as HTML."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values, equal to its file's content. Raises ValueError for NaN or Infinity."""
        plain: dict[str, Any] = to_json(self)
        return plain

    def _repr_html_(self) -> str:
        return str(html_of(to_json(self), type(self).__name__))


class Tabular:
    """A record with columns and rows. Subclasses give `_columns` in display order."""

    __slots__ = ()

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        """Every column with its values, all of one length."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns by name, each a list; a missing value is None."""
        return {name: list(values) for name, values in self._columns().items()}

    def to_polars(self) -> pl.DataFrame:
        """A polars data frame. Raises MachineError where polars is not installed."""
        try:
            import polars
        except ImportError as exc:
            raise MachineError("polars is not installed here.", fix="pip install polars") from exc
        return polars.DataFrame(self.to_dict(), strict=False, infer_schema_length=None)

    def to_pandas(self) -> pd.DataFrame:
        """A pandas data frame. Raises MachineError where pandas is not installed."""
        try:
            import pandas
        except ImportError as exc:
            raise MachineError("pandas is not installed here.", fix="pip install pandas") from exc
        return pandas.DataFrame(self.to_dict())

    def _repr_html_(self) -> str:
        return str(table_html(self.to_dict()))


def short(value: object, **facts: object) -> str:
    """One line for the prompt: the class and its main facts, such as `ScoreTable(runs=2, items=48)`."""
    return f"{type(value).__name__}({', '.join(f'{name}={fact!r}' for name, fact in facts.items())})"


def table_html(columns: Mapping[str, Sequence[Any]], title: str = "") -> Markup:
    """An HTML table of the first rows, followed by the total number of rows."""
    total = len(next(iter(columns.values()), ()))
    caption = Markup("<caption>{}</caption>").format(title) if title else Markup("")
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in columns)
    lines = []
    for n in range(min(total, ROWS)):
        cells = Markup("").join(Markup("<td>{}</td>").format(_cell(values[n])) for values in columns.values())
        lines.append(Markup("<tr>{}</tr>").format(cells))
    rest = Markup("<p>{} of {} rows</p>").format(ROWS, f"{total:,}") if total > ROWS else Markup("")
    body = Markup("").join(lines)
    return Markup("<table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table>{}").format(caption, head, body, rest)


def html_of(value: Any, title: str = "") -> Markup:
    """A JSON value as HTML: an object as a table of its keys, a list of objects collapsed, anything else as text."""
    if isinstance(value, Mapping) and value:
        rows = Markup("").join(
            Markup("<tr><th>{}</th><td>{}</td></tr>").format(key, html_of(inner)) for key, inner in value.items()
        )
        caption = Markup("<caption>{}</caption>").format(title) if title else Markup("")
        return Markup("<table>{}<tbody>{}</tbody></table>").format(caption, rows)
    if isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        shown = Markup("").join(Markup("<li>{}</li>").format(html_of(inner)) for inner in value[:ROWS])
        return Markup("<details><summary>{} entries</summary><ol>{}</ol></details>").format(f"{len(value):,}", shown)
    if isinstance(value, list):
        return _cell(
            ", ".join(map(str, value[:ROWS])) + (f" and {len(value) - ROWS:,} more" if len(value) > ROWS else "")
        )
    return _cell(value)


def verdict_html(verdict: Any) -> Markup:
    """A verdict as HTML, ready to quote: status, sentence, the interval with its n, and what must not be written."""
    grade = verdict.confidence.get("grade") if verdict.confidence else None
    marks = [f"confidence {grade}"] if grade else []
    marks += ["exploratory"] if verdict.exploratory else []
    head = Markup("<p>{} <b>{}</b> {}{}</p><p>{}</p>").format(
        SIGNS.get(verdict.status, ""),
        verdict.status,
        verdict.claim,
        f" ({', '.join(marks)})" if marks else "",
        verdict.sentence,
    )
    numbers = Markup("").join(Markup("<li>{}</li>").format(estimate_text(e)) for e in verdict.estimates)
    never = Markup("").join(Markup("<li>{}</li>").format(text) for text in verdict.may_not)
    rest = Markup("<details><summary>What may not be written</summary><ul>{}</ul></details>").format(never)
    return head + Markup("<ul>{}</ul>").format(numbers) + (rest if verdict.may_not else Markup(""))


def estimate_text(estimate: Any) -> str:
    """An estimate as text: `gap +0.250 [-0.053, +0.532] at 95 %, n = 12 items`; where there is no interval, the text
    says so.
    """
    value = "no value" if estimate.value is None else f"{estimate.value:+.4g}"
    if estimate.low is None or estimate.high is None:
        bounds = "no interval" + (f" ({estimate.warnings[0]})" if estimate.warnings else "")
    else:
        bounds = f"[{estimate.low:+.4g}, {estimate.high:+.4g}] at {100 * estimate.level:.6g} %"
    counts = [f"n = {estimate.n:,}"]
    counts += [grouped(estimate.n_clusters, "families")] if estimate.n_clusters is not None else []
    counts += [many(estimate.n_seeds, "seeds")] if estimate.n_seeds is not None else []
    return f"{estimate.name} {value} {bounds}, {', '.join(counts)}"


def _cell(value: Any) -> Markup:
    if value is None:
        return Markup("<i>none</i>")
    if isinstance(value, float):
        return escape(f"{value:.6g}")
    text = str(value)
    return escape(text if len(text) <= LONGEST else text[:LONGEST] + " …")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, every column as wide as its widest cell."""
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, width)).rstrip() for row in rows]

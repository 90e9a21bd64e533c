"""Tables of a study's records by name, and any of them as Markdown, LaTeX (booktabs), CSV or a card's model-index.

    table.scores.<eval>   mean, least, greatest score and range over seeds, by zone and condition, with the denominator
    table.losses          the same for the loss
    table.claims          each claim: status, estimate, interval, p, n, confidence
    table.conditions      what was run: learning rate, epochs, steps, trained parameters, runs
    table.runs            each run: condition, seed, learning rate, steps, scores
    table.<file>          a record file as it is

One definition of a number: cells are quantities, printed as `references.show` prints them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from veritune.display import Tabular
from veritune.errors import InputError, nearest
from veritune.records import SCORE_ZONES, ZONES, JsonLike
from veritune.untrusted import read_text
from veritune.writeup.quantities import CheckedRecords, Quantity

TableForm = Literal["markdown", "latex", "csv", "model-index"]
FORMS: tuple[TableForm, ...] = ("markdown", "latex", "csv", "model-index")
NOT_THERE = "not recorded"


@dataclass(frozen=True, slots=True)
class ResultTable(Tabular):
    """A table: columns, rows of printed cells (None if nothing is recorded) and its caption.

    `text_columns` are aligned to the left; `results` are the quantities behind it, for a card's model-index.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]
    caption: str
    text_columns: int = 1
    results: tuple[Quantity, ...] = ()

    def _columns(self) -> dict[str, list[str | None]]:
        return {name: [row[n] for row in self.rows] for n, name in enumerate(self.columns)}


def names(records: CheckedRecords | None) -> list[str]:
    """The names of the tables that a study's records give."""
    if records is None:
        return []
    evals = [name for name in records.evals if zones_of(records, name)]
    return [
        *(f"table.scores.{name}" for name in evals),
        "table.losses",
        "table.claims",
        "table.conditions",
        "table.runs",
    ]


def table(name: str, records: CheckedRecords | None, files: Sequence[Path] = ()) -> ResultTable:
    """A table by its name. Raises InputError if there is none of that name."""
    by_file = {f"table.{path.stem}": path for path in files}
    if name in by_file:
        return _of_file(name, by_file[name])
    if records is not None:
        if name.startswith("table.scores.") and name.removeprefix("table.scores.") in records.evals:
            return _scores(records, name.removeprefix("table.scores."))
        makers = {
            "table.losses": _losses,
            "table.claims": _claims,
            "table.conditions": _conditions,
            "table.runs": _runs,
        }
        if name in makers:
            return makers[name](records)
    known = [*names(records), *by_file]
    near = nearest(name, known)
    raise InputError(
        f"unknown table {name!r}{f'; did you mean {near}?' if near else ''}.",
        fix=f"Tables: {', '.join(known)}.",
    )


def zones_of(records: CheckedRecords, name: str) -> list[str]:
    """The zones that an eval was scored on."""
    return [z for z in SCORE_ZONES if f"n.items.{name}.{z}" in records.by_name]


def spread_columns(records: CheckedRecords) -> tuple[str, ...]:
    """The columns mean, min, max and range, for a table over several seeds."""
    return ("mean", "min", "max", "range")


def _spread_cells(records: CheckedRecords, name: str) -> list[str | None]:
    """Mean, least, greatest and range over seeds of a quantity; an arm without seeds has its one value."""
    whole = records.by_name.get(name)
    if whole is None:
        return [None, None, None, None]
    ends = [records.by_name.get(f"{name}.{end}") for end in ("min", "max", "range")]
    return [f"{whole.value:.3f}", *(f"{q.value:.3f}" if q is not None else "one run" for q in ends)]


def _scores(records: CheckedRecords, name: str) -> ResultTable:
    rows: list[tuple[str | None, ...]] = []
    results: list[Quantity] = []
    for zone in zones_of(records, name):
        for condition in records.conditions:
            q = records.by_name.get(f"score.{name}.{zone}.{condition}")
            if q is None:
                continue
            results.append(q)
            items = records.by_name.get(f"n.items.{name}.{zone}")
            n = f"{items.value:,.0f}" if items is not None else None
            cells = _spread_cells(records, q.name)
            rows.append((zone, condition, *cells, n, f"{q.runs}", f"{q.failed}"))
    lost = any(q.failed for q in results)
    rule = "an item without a score counts as 0" if lost else "every item has a score"
    return ResultTable(
        f"table.scores.{name}",
        ("zone", "condition", *spread_columns(records), "items", "runs", "without a score"),
        tuple(rows),
        f"Table: score on {name} by zone and condition, mean over runs with least, greatest and range over seeds; "
        f"{rule}.",
        2,
        tuple(results),
    )


def _losses(records: CheckedRecords) -> ResultTable:
    rows: list[tuple[str | None, ...]] = []
    for zone in ZONES:
        for condition in records.conditions:
            q = records.by_name.get(f"nll.{zone}.{condition}")
            if q is not None:
                rows.append((zone, condition, *_spread_cells(records, q.name)))
    caption = (
        "Table: mean negative log-likelihood (NLL) of the targets, nats per target token, by zone and condition, with "
        "least, greatest and range over seeds."
    )
    return ResultTable("table.losses", ("zone", "NLL of condition", *spread_columns(records)), tuple(rows), caption, 2)


def _claims(records: CheckedRecords) -> ResultTable:
    rows: list[tuple[str | None, ...]] = []
    for verdict in records.verdicts:
        name = verdict["claim"]
        head = next(
            (records.by_name[n] for n in (f"gap.{name}", f"share.{name}", f"probe.{name}") if n in records.by_name),
            None,
        )
        low, high, p = (records.by_name.get(n) for n in (f"ci.{name}.low", f"ci.{name}.high", f"p.{name}"))
        sign = "+" if head is not None and head.kind == "gap" else ""
        interval = f"{low.value:{sign}.3f} to {high.value:{sign}.3f}" if low is not None and high is not None else None
        rows.append(
            (
                name + (" (exploratory)" if verdict.get("exploratory") else ""),
                verdict["status"],
                f"{head.value + 0.0:{sign}.3f}" if head is not None else None,
                interval,
                p_shown(p),
                f"{head.denominator:,}" if head is not None and head.denominator is not None else None,
                verdict["confidence"].get("grade"),
            )
        )
    caption = "Table: each claim with its verdict, estimate, interval, p, number of items and confidence."
    return ResultTable(
        "table.claims",
        ("claim", "verdict", "estimate", "interval", "p", "items", "confidence"),
        tuple(rows),
        caption,
        2,
    )


def p_shown(p: Quantity | None) -> str | None:
    """A p value as printed; below 1e-4 as a bound."""
    if p is None:
        return None
    return f"{p.value:.2g}" if p.value >= 1e-4 else "< 0.0001"


def _conditions(records: CheckedRecords) -> ResultTable:
    rows: list[tuple[str | None, ...]] = []
    for condition in records.conditions[:-1]:
        held = [records.by_name.get(f"{kind}.{condition}") for kind in ("lr", "epochs", "steps", "params")]
        seeds = sum(s.condition == condition for s in records.runs.values())
        forms = ("g", ".4g", ",.0f", ",.0f")
        cells = [
            format(q.value, form) if q is not None else _of_each(records, kind, condition)
            for q, form, kind in zip(held, forms, ("lr", "epochs", "steps", "params"))
        ]
        rows.append((condition, *cells, str(seeds)))
    caption = (
        "Table: what was run, from the run records: learning rate, epochs, optimizer steps, trained parameters, runs."
    )
    return ResultTable(
        "table.conditions",
        ("condition", "learning rate", "epochs", "steps", "parameters", "runs"),
        tuple(rows),
        caption,
    )


def _of_each(records: CheckedRecords, kind: str, condition: str) -> str | None:
    """The values of single runs where they differ."""
    found = sorted({q.value for n, q in records.by_name.items() if n.startswith(f"{kind}.{condition}.seed")})
    return ", ".join(f"{v:g}" for v in found) or None


def _runs(records: CheckedRecords) -> ResultTable:
    evals = [(e, z) for e in records.evals for z in zones_of(records, e)]
    rows: list[tuple[str | None, ...]] = []
    for run_id, summary in sorted(records.runs.items(), key=lambda r: (r[1].condition, r[1].seed or 0)):
        tail = summary.condition if summary.seed is None else f"{summary.condition}.seed{summary.seed}"
        scores = [records.by_name.get(f"score.{e}.{z}.{tail}") for e, z in evals]
        lr = f"{summary.lr:g}" if summary.lr is not None else None
        seed = None if summary.seed is None else str(summary.seed)
        rows.append(
            (summary.condition, run_id, seed, lr, *(f"{q.value:.3f}" if q is not None else None for q in scores))
        )
    columns = ("condition", "run", "seed", "learning rate", *(f"{e}, {z}" for e, z in evals))
    return ResultTable(
        "table.runs", columns, tuple(rows), "Table: each run with its seed, learning rate and mean scores.", 2
    )


def _of_file(name: str, path: Path) -> ResultTable:
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise InputError(f"{path} is not a table.", fix="Name a CSV or TSV file.")
    try:
        text = read_text(path)
        dialect = "\t" if path.suffix.lower() == ".tsv" else ","
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=dialect))
    except (OSError, ValueError, csv.Error) as exc:
        raise InputError(f"{path} cannot be read as a table: {exc}.", fix="Repair the file.") from exc
    if not rows:
        raise InputError(f"{path} is empty; expected a table.", fix="Name a file with a header.")
    wide = len(rows[0])
    body = tuple(tuple((row + [""] * wide)[:wide]) for row in rows[1:] if row)
    return ResultTable(name, tuple(rows[0]), body, f"Table: {path.name}.")


# ---------------------------------------------------------------- exports


def render(made: ResultTable, form: str, records: CheckedRecords | None = None, *, caption: bool = True) -> str:
    """A table in one of the formats. Raises InputError for an unknown format or one that the table does not fit."""
    if form == "markdown":
        return _markdown(made, caption)
    if form == "latex":
        return _latex(made)
    if form == "csv":
        return _csv(made)
    if form == "model-index":
        return _model_index(made, records)
    raise InputError(f"expected {', '.join(FORMS)}; found {form!r}.", fix="--as latex")


def _markdown(made: ResultTable, caption: bool) -> str:
    left = made.text_columns
    rule = "|" + "".join(" --- |" if i < left else " ---: |" for i in range(len(made.columns)))
    lines = [f"| {' | '.join(map(_md, made.columns))} |", rule]
    lines += [f"| {' | '.join(_md(NOT_THERE if cell is None else cell) for cell in row)} |" for row in made.rows]
    return "\n".join(lines) + (f"\n\n{made.caption}" if caption else "")


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_TEX = str.maketrans(
    {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
     "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}"}
)  # fmt: skip


def tex(text: str) -> str:
    """A text with LaTeX's special characters escaped."""
    return text.translate(_TEX).replace("−", "$-$")


def _latex(made: ResultTable) -> str:
    columns = "".join("l" if i < made.text_columns else "r" for i in range(len(made.columns)))
    body = [" & ".join(tex("--" if cell is None else cell) for cell in row) + r" \\" for row in made.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(made.caption.removeprefix('Table: '))}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(tex, made.columns)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _csv(made: ResultTable) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(made.columns)
    writer.writerows(["" if cell is None else cell for cell in row] for row in made.rows)
    return stream.getvalue().rstrip("\n")


def _model_index(made: ResultTable, records: CheckedRecords | None) -> str:
    """The `model-index` block of a model card, for a table of scores."""
    if records is None or not made.results:
        raise InputError(f"{made.name} has no scores for a model-index.", fix="Use table.scores.EVAL of a study.")
    return yaml.safe_dump({"model-index": list(_models(made, records))}, sort_keys=False, allow_unicode=True).rstrip(
        "\n"
    )


def _models(made: ResultTable, records: CheckedRecords) -> Iterator[dict[str, JsonLike]]:
    arms = dict.fromkeys(q.scope.condition for q in made.results)
    adopted = {m.condition for m in records.manifests.values() if m.trained_elsewhere}
    for arm in arms:
        results: list[JsonLike] = []
        elsewhere = ", weights trained elsewhere" if arm in adopted else ""
        for q in made.results:
            if q.scope.condition != arm:
                continue
            counts: dict[str, float | int | None] = {
                "items": q.denominator, "runs": q.runs, "without_a_score_counted_as_0": q.failed,
            }  # fmt: skip
            ends = {end: records.by_name.get(f"{q.name}.{end}") for end in ("min", "max", "range")}
            counts |= {f"{end}_over_seeds": round(e.value, 6) for end, e in ends.items() if e is not None}
            metric: dict[str, JsonLike] = {
                "type": "score",
                "name": f"mean score, zone {q.scope.zone}",
                "value": round(q.value, 6),
                "args": counts,
            }
            results.append(
                {
                    "task": {"type": "text-generation"},
                    "dataset": {"name": q.scope.eval, "type": q.scope.eval, "split": q.scope.zone},
                    "metrics": [metric],
                    "source": {
                        "name": f"Veritune study {records.name}, contract {records.contract[:12]}{elsewhere}",
                        "url": q.source,
                    },
                }
            )
        yield {"name": f"{records.name} {arm}", "results": results}

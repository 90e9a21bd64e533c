"""A curve's record as a plain-text table: one line a checkpoint. It computes nothing."""

from __future__ import annotations

from veritune.display import aligned
from veritune.records import Json

COLUMNS = (("gain", "gain", "{:.4f}"), ("share", "of the best gain", "{:.0%}"), ("carried", "carried", "{:.0%}"),
           ("m1_change", "M1", "{:+.4f}"), ("icc_change", "ICC", "{:+.4f}"))  # fmt: skip


def curve_table(record: Json) -> str:
    """The checkpoints of a `curve` record as a table; columns without any value are left out. Raises KeyError or
    TypeError for a record with another structure.
    """
    points = record["points"]
    sources = sorted({name for p in points for name in p["by_source"] or {}})
    shown = [column for column in COLUMNS if any(p[column[0]] is not None for p in points)]
    rows = [["step", "validation NLL", *(head for _, head, _ in shown), *sources]]
    for p in points:
        values = [form.format(p[key]) if p[key] is not None else "-" for key, _, form in shown]
        own = [f"{(p['by_source'] or {})[name]:.4f}" if name in (p["by_source"] or {}) else "-" for name in sources]
        mark = " *" if p["step"] == record["chosen"] else ""
        rows.append([f"{p['step']}{mark}", f"{p['validation_nll']:.4f}", *values, *own])
    return "\n".join([*aligned(rows), "* the checkpoint that is scored: the lowest validation NLL"])

"""report.html: one self-contained page drawn from the records. It computes nothing."""

from __future__ import annotations

from pathlib import Path

from veritune.records import dumps
from veritune.store import Store, read_json, write_text
from veritune.study import Study


def write_report(store: Store, study: Study) -> Path:
    """Draw the report; its path."""
    write_text(store.report_file, "<pre>" + dumps(read_json(store.verdict_file), indent=2) + "</pre>")
    return store.report_file

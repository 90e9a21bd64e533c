"""A finished and sealed small study as files, without a model."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from veritune.records import RunSummary
from veritune.report.page import write_report
from veritune.seal import finish_run, seal
from veritune.store import Store

BUILDER = Path(__file__).resolve().parents[1] / "report" / "small_study.py"
EVIL = "</pre><script>window.pwned=1</script><img src=x onerror=alert(1)>\"'{{7*7}}&amp;"


def sealed_study(
    folder: Path, *, evil: str = "", report: bool = True, change: Callable[[Store], None] = lambda store: None
) -> Path:
    """The small study of the report's tests with its runs in the timeline, its report drawn, and sealed."""
    spec = importlib.util.spec_from_file_location("small_study", BUILDER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["small_study"] = module
    spec.loader.exec_module(module)
    store, study = module.build(folder, evil=evil)
    change(store)
    for path in sorted(store.runs.glob("*/summary.json")):
        summary = RunSummary.load(path)
        path.unlink()
        finish_run(store, path.parent.name, summary)
    if report:
        write_report(store, study)
    seal(store)
    return folder

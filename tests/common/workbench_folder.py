"""A folder with everything that the workbench shows, as files and without a model: numbers and texts are invented."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from sealed_studies import sealed_study

from veritune import contract
from veritune.config.load import load_study
from veritune.data.audit import audit_data, write_report
from veritune.ledger import CHAIN, Ledger
from veritune.records import MetricRow, RunSummary, Score
from veritune.results.index import Said, add_results, say
from veritune.store import Store
from veritune.train.schedule import plan_cells, summary_hasher

WIDE = {
    "a-0": (1.0, "Subject: Boats at dawn\nThe old boat sails home past the quay. Are the nets dry?"),
    "a-1": (0.5, "Subject: Boats\nThe boat waits for the tide."),
    "b-0": (1.0, "Subject: A narrow boat\nThe boat sails home.\nAre you ready?"),
    "b-1": (0.5, "Subject: Boats\n<script>window.pwned = 1</script> \u202egnol yrev"),
}
BASE = {
    "a-0": (0.5, "The old boat sinks near the quay. Are the nets dry?"),
    "a-1": (1.0, "Subject: Boats\nA boat waits for the next tide. Is it late?"),
    "b-0": (0.0, "The boat sinks home."),
    "b-1": (None, "?"),
}
TALE = "The old harbour boat sails home past the quay walls while the slow tide turns over, in the {} of the year"


def build_workbench(folder: Path, *, results: bool = True) -> Path:
    """`small` (a study), `audit`, `logs` and, with `results`, an index that holds the study."""
    study = sealed_study(folder / "small", change=_answers)
    if results:
        add_results(folder / "results", [study], by="Ada")
        say(folder / "results", Said("The sibling rows deserve a second look.", on="R1"), by="Ben")
        say(
            folder / "results",
            Said("Repeat it with four seeds.", "task", "R1", "two seeds", "the interval", "stop"),
            by="Ben",
        )
    _pack(study)
    _live(study)
    _gates(study)
    _audit(folder)
    _logs(folder / "logs")
    return folder


def _answers(store: Store) -> None:
    """Outputs that differ between the arms."""
    for path in store.runs.glob("*/scores/style.jsonl"):
        found = BASE if path.parts[-3].startswith("baseline") else WIDE
        rows = []
        for row in Score.load_all(path):
            value, output = found.get(row.item_id, (row.value, row.output))
            why = None if value is not None else "extraction_failed"
            rows.append(replace(row, value=value, output=output, reason=row.reason if row.item_id == "c-0" else why))
        Score.save_all(path, rows)
    study, facts = load_study(store.study_file), contract.read(store).facts
    made_from = summary_hasher(study, facts)
    for cell in plan_cells(study, facts):
        path = store.run(cell.run_id) / "summary.json"
        replace(RunSummary.load(path), input_hash=made_from(cell)).save(path)


def _pack(study: Path) -> None:
    """A review pack of ten rows."""
    path = study / "review" / "pack.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for n in range(10):
        answer = f"Boats are sold in lots of {n + 2}. Call before noon and ask for the harbour desk."
        turns = [{"role": "user", "content": "How are the boats sold?"}, {"role": "assistant", "content": answer}]
        found = ["answer ends in the middle of a sentence"] if n % 2 else []
        row = {"row_id": f"r{n}", "row_sha256": f"{n:064x}", "source": "rows.jsonl", "line": n + 1, "found": found}
        lines.append(json.dumps(row | {"reasons": ["cut"] if found else [], "messages": turns}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _live(study: Path) -> None:
    """A cell that has begun: its metrics grow, it has no summary."""
    (path,) = study.glob("runs/narrow-s11-*/metrics.jsonl")
    rows = MetricRow.load_all(path)
    path.with_name("summary.json").unlink()
    MetricRow.save_all(path, rows[:6])


def _gates(study: Path) -> None:
    kept = Path(__file__).resolve().parents[1] / "records" / "v2" / "release__gates.jsonl"
    (study / "release").mkdir(exist_ok=True)
    for line in kept.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        Ledger(study / "release" / "gates.jsonl").append({k: v for k, v in entry.items() if k not in CHAIN})


def _audit(folder: Path) -> None:
    """Wordings of one tale, a row that an eval holds, a row without an answer."""
    rows = [{"id": f"t{n}", "prompt": f"Tell it at {w}.", "completion": TALE.format(w)} for n, w in enumerate(WORDS)]
    exam = "How many seconds are there in three and a half hours of a summer afternoon at the harbour?"
    rows += [{"id": "leak", "prompt": exam, "completion": "There are 12,600 seconds in three and a half hours."}]
    rows += [{"id": "x", "prompt": "Say something else.", "completion": "Seven green apples lie in the muddy field"}]
    rows += [{"id": "empty", "prompt": "Say nothing.", "completion": ""}]
    _write(folder / "rows.jsonl", rows)
    _write(folder / "exam.jsonl", [{"id": "q1", "prompt": exam, "completion": "12600"}])
    report = audit_data(folder / "rows.jsonl", evals=[folder / "exam.jsonl"])
    write_report(report, folder / "audit")
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "rows.jsonl").rename(folder / "audit" / "rows.jsonl")
    (folder / "exam.jsonl").rename(folder / "audit" / "exam.jsonl")
    record = json.loads((folder / "audit" / "report.json").read_text(encoding="utf-8"))
    record["source"], record["evals"][0]["source"] = "rows.jsonl", "exam.jsonl"
    (folder / "audit" / "report.json").write_text(json.dumps(record), encoding="utf-8")


WORDS = ("dawn", "dusk", "noon")


def _logs(folder: Path) -> None:
    """Two score files of another tool."""
    for name, right in (("base", 5), ("tuned", 8)):
        rows = [{"doc_id": n, "prompt": f"What is {n} plus {n}?", "response": f"It is {2 * n}.", "acc": int(n < right)}
                for n in range(12)]  # fmt: skip
        _write(folder / f"{name}.jsonl", rows)


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

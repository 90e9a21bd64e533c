"""The release gates over a small finished study: what passes, what fails, and what must stay undecided."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from scipy.stats import binomtest
from typer.testing import CliRunner

from veritune.commands.app import app
from veritune.config.load import load_study
from veritune.config.release import GATES, Release, Suite
from veritune.contract import read as read_contract
from veritune.errors import GateError, InputError, StaleError, StudyError
from veritune.ledger import Ledger
from veritune.probe.forgetting import forgetting
from veritune.records import (
    ContaminationAudit,
    Finding,
    GateResult,
    Score,
    SplitAudit,
    SplitCounts,
)
from veritune.release.gate.candidate import CandidateChoice
from veritune.release.gate.checks import CHECKS, compare_files
from veritune.release.gate.ci import check_report
from veritune.release.gate.evidence import (
    Evidence,
    Subject,
    evidence_file,
    files_digest,
    read_evidence,
    weights_digest,
    write_evidence,
)
from veritune.release.gate.gates import (
    GATES_FILE,
    GateRecord,
    all_waivers,
    evaluate,
    gate_record,
    passes_for,
    render_markdown,
    waive,
)
from veritune.release.gate.noninferior import Bar, least_items, not_worse
from veritune.release.gate.policy import load_policy, read_policy
from veritune.seal import seal, verify
from veritune.stats.table import ScoreTable
from veritune.store import Store, read_json, sha256_file, write_json

RECORDS = ("safety", "calibration", "serving", "merge", "rollback")


def gate(store: Store, name: str, **release: Any) -> GateResult:
    """One gate of the study, perhaps under a changed policy."""
    record = evaluate(store.root, _choice(store, **release))
    return next(g for g in record.gates if g.gate == name)


def _choice(store: Store, **release: Any) -> CandidateChoice:
    if not release:
        return CandidateChoice()
    own = yaml.safe_load(store.study_file.read_text(encoding="utf-8"))["release"]
    path = store.root.parent / "policy.yaml"
    path.write_text(yaml.safe_dump({**own, **release}), encoding="utf-8")
    return CandidateChoice(path)


def rewrite(store: Store, kind: str, **changes: Any) -> None:
    record = read_evidence(store, kind)
    assert record is not None
    write_evidence(store, replace(record, **changes))


# ---------------------------------------------------------------- the whole


def test_a_study_with_evidence_for_everything_passes_for_its_bytes_alone(store: Store) -> None:
    record = evaluate(store.root)
    assert [g.gate for g in record.gates] == list(GATES) == list(CHECKS)
    assert {g.gate: g.status for g in record.gates} == dict.fromkeys(GATES, "passed")
    assert record.status == "passed" and gate_record(store) == record
    assert passes_for(record, record.subject.hash)
    assert not passes_for(record, Subject(record.subject.base, "00" * 32).hash)
    assert not passes_for(record, Subject("00" * 32, record.subject.candidate).hash)


def test_the_record_binds_the_bytes_on_disk(store: Store) -> None:
    record = evaluate(store.root)
    folder = store.root / read_json(store.run(record.run_id) / "training.json")["checkpoint"]
    assert record.subject.candidate == weights_digest(folder)
    assert record.contract == read_json(store.contract_file)["entries"][-1]["hash"]
    assert record.evidence["release/safety.json"] == sha256_file(evidence_file(store, "safety"))


def test_one_other_byte_in_the_weights_and_no_record_counts(store: Store, shippable: ModuleType) -> None:
    record = evaluate(store.root)
    folder = store.root / read_json(store.run(record.run_id) / "training.json")["checkpoint"]
    shippable.save_weights(folder, "adapter_config.json", 0.123)
    after = evaluate(store.root)
    assert after.subject.candidate != record.subject.candidate
    assert {g.gate: g.status for g in after.gates if g.status != "undecided"} == {"data": "passed", "target": "passed"}
    assert after.status == "undecided" and not passes_for(record, after.subject.hash)


def test_a_check_that_breaks_is_undecided(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(store.audit("split.json"), {"no": "findings"})
    seal(store)
    assert gate(store, "data").status == "undecided"


def test_the_digest_of_a_model_is_that_of_the_contract_s_file_hashes(tiny_model: Any) -> None:
    from veritune.train.models import ModelRef, weight_hashes

    assert files_digest(weight_hashes(ModelRef("tiny", tiny_model, "float32"))) == weights_digest(tiny_model)


# ---------------------------------------------------------------- evidence that is no evidence


def lost(store: Store, kind: str) -> None:
    evidence_file(store, kind).unlink()


def of_other_weights(store: Store, kind: str) -> None:
    record = read_evidence(store, kind)
    assert record is not None
    rewrite(store, kind, subject=replace(record.subject, candidate="12" * 32))


def of_another_base(store: Store, kind: str) -> None:
    record = read_evidence(store, kind)
    assert record is not None
    rewrite(store, kind, subject=replace(record.subject, base="34" * 32))


def stale(store: Store, kind: str) -> None:
    golden = store.root / "golden.jsonl"
    golden.write_text("one\n", encoding="utf-8")
    rewrite(store, kind, inputs={"golden.jsonl": sha256_file(golden)})
    golden.write_text("two\n", encoding="utf-8")


def input_gone(store: Store, kind: str) -> None:
    rewrite(store, kind, inputs={"golden.jsonl": "ab" * 32})


def edited(store: Store, kind: str) -> None:
    path = evidence_file(store, kind)
    path.write_text(path.read_text(encoding="utf-8").replace('"message": "', '"message": "not '), encoding="utf-8")


def torn(store: Store, kind: str) -> None:
    path = evidence_file(store, kind)
    path.write_text(path.read_text(encoding="utf-8")[:40], encoding="utf-8")


@pytest.mark.parametrize("spoil", [lost, of_other_weights, of_another_base, stale, input_gone, edited, torn])
@pytest.mark.parametrize("kind", RECORDS)
def test_missing_stale_edited_or_foreign_evidence_is_undecided(
    store: Store, kind: str, spoil: Callable[[Store, str], None]
) -> None:
    spoil(store, kind)
    record = evaluate(store.root)
    assert {g.gate for g in record.gates if g.status == "undecided"} == {kind}
    assert record.status == "undecided" and not passes_for(record, record.subject.hash)


@pytest.mark.parametrize("kind", [k for k in RECORDS if k != "safety"])
def test_a_record_s_own_failure_is_the_gate_s(store: Store, kind: str) -> None:
    rewrite(store, kind, status="failed", message="first difference at token 7")
    found = gate(store, kind)
    assert found.status == "failed" and "token 7" in found.message


def test_graded_answers_that_were_edited_do_not_count(store: Store) -> None:
    path = store.root / "release" / "safety.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"good":0.0', '"good":1.0'), encoding="utf-8")
    assert "has changed since" in gate(store, "safety").message


# ---------------------------------------------------------------- regression: by interval


def test_a_planted_regression_fails_the_gate(store: Store, shippable: ModuleType) -> None:
    shippable.score(store, lost=60)
    record = evaluate(store.root)
    (found,) = (g for g in record.gates if g.gate == "regression")
    assert found.status == record.status == "failed"
    assert found.numbers["golden"]["high"] < -0.05


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"lost": 10}, "reaches across minus the margin"),
        ({"n": 20, "right": 15}, "under 73 items"),
        ({"n": 72, "right": 50}, "under 73 items"),
        ({"n": 1, "right": 1}, "under 73 items"),
        ({"lost": 9, "gained": 9, "n": 100, "right": 70}, "pass with a chance of 0.21"),
        ({"same": True}, "was the adapter loaded?"),
        ({"right": 8, "gained": 0}, "could hardly show here"),
        ({"crashed": 12}, "could change the answer"),
    ],
)
def test_what_the_items_cannot_say_stays_undecided(
    store: Store, shippable: ModuleType, scores: dict[str, Any], words: str
) -> None:
    shippable.score(store, **scores)
    found = gate(store, "regression")
    assert found.status == "undecided" and words in found.message


@pytest.mark.parametrize("scores", [{}, {"n": 80, "right": 60}, {"lost": 2, "gained": 2}, {"right": 4, "gained": 60}])
def test_what_the_items_can_say_passes(store: Store, shippable: ModuleType, scores: dict[str, Any]) -> None:
    shippable.score(store, **scores)
    assert gate(store, "regression").status == "passed"


def test_a_point_inside_the_margin_does_not_pass(store: Store, shippable: ModuleType) -> None:
    """A gap of -0.04 with a margin of 0.05: by the point it would pass."""
    shippable.score(store, lost=8)
    found = gate(store, "regression")
    assert -0.05 < found.numbers["golden"]["gap"] < 0 and found.status == "undecided"


def test_least_items_is_where_the_empty_table_s_interval_meets_the_margin() -> None:
    for margin in (0.02, 0.05, 0.1):
        n = least_items(margin)
        assert [1.959964**2 / (k + 1.959964**2) < margin for k in (n - 1, n)] == [False, True]


def arm(values: Any, name: str) -> ScoreTable:
    scores = [Score(name, "e", str(i), float(v)) for i, v in enumerate(values)]
    return ScoreTable.from_scores(scores, condition=name, fixed=name == "base")


@pytest.mark.parametrize("names", [("scores", "scores"), ("now: 5 %", "base arm"), ("base", "candidate")])
def test_a_loss_fails_whatever_the_two_tables_are_called(names: tuple[str, str]) -> None:
    """Two files of one name must not become one table, which would be compared with itself and pass."""
    lost, whole = (arm([1.0] * n + [0.0] * (300 - n), name) for n, name in zip((100, 280), names))
    found = not_worse(lost, whole, Bar(0.05, outputs_differ=True))
    assert found.status == "failed" and found.numbers["gap"] == pytest.approx(-0.6)


def test_a_loss_of_the_whole_margin_passes_as_rarely_as_alpha_says() -> None:
    """True gap = - margin: a two-sided 95 % interval lets at most 2.5 % through."""
    rng = np.random.default_rng(7)
    passed = 0
    for _ in range(400):
        state = rng.choice(3, size=150, p=[0.14, 0.04, 0.82])  # lost, gained, kept: gap -0.10
        base = np.where(state == 0, 1.0, np.where(state == 1, 0.0, rng.random(150) < 0.7))
        mine = np.where(state == 0, 0.0, np.where(state == 1, 1.0, base))
        passed += not_worse(arm(mine, "now"), arm(base, "base"), Bar(0.1, outputs_differ=True)).status == "passed"
    assert binomtest(passed, 400, 0.025, alternative="greater").pvalue > 0.005


def test_scores_edited_after_the_seal_do_not_count(store: Store, shippable: ModuleType) -> None:
    path = store.run(shippable.runs_of(store)[0]) / "scores" / "style.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"value":0.0', '"value":1.0'), encoding="utf-8")
    assert "edited after the study was sealed" in gate(store, "regression").message


def test_without_a_golden_set_the_gate_is_undecided(store: Store) -> None:
    assert gate(store, "regression", regression={}).status == "undecided"


def test_every_suite_must_pass(store: Store, shippable: ModuleType) -> None:
    suites = {"golden": {"eval": "style", "margin": 0.05}, "narrow": {"eval": "style", "margin": 0.01}}
    found = gate(store, "regression", regression={"suites": suites})
    shippable.score(store, lost=1)
    assert found.status == "passed"
    found = gate(store, "regression", regression={"suites": suites})
    assert found.status == "undecided" and found.message.startswith("narrow:")


# ---------------------------------------------------------------- imported benchmarks

IMPORTED = {"suites": {"bench": {"margin": 0.05}}}
runner = CliRunner()


def csv(store: Store, name: str, values: list[float | None]) -> str:
    path = store.root / f"{name}.csv"
    path.write_text("id,score\n" + "".join(f"q{i},{v:g}\n" for i, v in enumerate(values)), encoding="utf-8")
    return str(path)


def bind(store: Store, mine: list[float | None], base: list[float | None]) -> Any:
    choice = _choice(store, regression=IMPORTED)
    files = ["--candidate", csv(store, "mine", mine), "--base", csv(store, "base", base)]
    command = ["gate", str(store.root), "--attest", "bench", *files, "--by", "Ada", "--policy", str(choice.policy)]
    return runner.invoke(app, command)


def test_imported_scores_count_for_the_weights_they_were_bound_to(store: Store, shippable: ModuleType) -> None:
    assert "is missing" in gate(store, "regression", regression=IMPORTED).message
    done = bind(store, *shippable.outcomes(300, 200, 2, 5))
    assert done.exit_code == 0 and done.output.startswith("passed")
    found = gate(store, "regression", regression=IMPORTED)
    assert found.status == "passed" and "mine.csv" in found.evidence
    record = read_evidence(store, "regression-bench")
    assert record is not None and record.settings["asserted_by"] == "Ada"
    csv(store, "mine", shippable.outcomes(300, 200, 0, 9)[0])
    assert "mine.csv has changed since" in gate(store, "regression", regression=IMPORTED).message
    assert bind(store, *shippable.outcomes(300, 200, 90, 0)).exit_code == 2
    assert gate(store, "regression", regression=IMPORTED).status == "failed"


LOST = {"suites": {"old": {"loss": True, "margin": 0.05}}}


def attest_loss(store: Store, rise: float, *, spread: float = 0.05, rows: int = 40) -> Any:
    """A record of the forgetting probe, as its command writes it, bound to the candidate."""
    rng = np.random.default_rng(1)
    before = 2.0 + 0.1 * rng.random(rows)
    record = forgetting(before, before + rise + spread * rng.normal(size=rows), [f"f{i}" for i in range(rows)])
    file = store.root / "old.json"
    write_json(file, {"loss": record})
    command = ["gate", str(store.root), "--attest", "old", "--candidate", str(file), "--by", "Ada"]
    return runner.invoke(app, [*command, "--policy", str(_choice(store, regression=LOST).policy)])


@pytest.mark.parametrize(
    ("rise", "status"), [(0.0, "passed"), (0.2, "failed"), (0.05, "undecided")]
)  # at the margin itself the interval reaches across it
def test_the_loss_of_a_regression_set_is_evidence_for_the_gate(store: Store, rise: float, status: str) -> None:
    assert "is missing" in gate(store, "regression", regression=LOST).message
    done = attest_loss(store, rise)
    assert done.output.startswith(status), done.output
    found = gate(store, "regression", regression=LOST)
    assert found.status == status and "nats per token on 40 rows" in found.message and "old.json" in found.evidence
    write_json(store.root / "old.json", {"loss": {}})
    assert "old.json has changed since" in gate(store, "regression", regression=LOST).message


def test_a_loss_without_an_interval_or_at_a_lower_level_decides_nothing(store: Store) -> None:
    attest_loss(store, 0.0, rows=3)
    assert "has no interval" in gate(store, "regression", regression=LOST).message
    attest_loss(store, 0.0)
    strict = {"suites": {"old": {"loss": True, "margin": 0.05, "alpha": 0.01}}}
    assert "the suite needs 0.99" in gate(store, "regression", regression=strict).message


def test_what_is_no_record_of_a_loss_is_refused(store: Store) -> None:
    file = store.root / "other.json"
    command = ["gate", str(store.root), "--attest", "old", "--candidate", str(file), "--by", "Ada"]
    command += ["--policy", str(_choice(store, regression=LOST).policy)]
    rise = {"value": 0.0, "low": -0.01, "high": 0.01, "level": 0.95}
    odd: list[Any] = [{"value": "x"}, {"level": 95}, {"level": None}, {"low": 0.5, "high": -0.5}, {"high": True}]
    records: list[Any] = [{"kind": "calibration"}, {"loss": 3}, {"loss": None}, {"kind": "forgetting", "rise": []}]
    for record in [*records, *({"kind": "forgetting", "rise": {**rise, **change}} for change in odd)]:
        write_json(file, record)
        done = runner.invoke(app, command)
        assert done.exit_code == 1 and isinstance(done.exception, InputError), record


@pytest.mark.parametrize(
    "change",
    [
        *({"low": 0.2, "high": 0.1}, {"low": -5, "high": -1}, {"low": 2, "high": 3}, {"level": 0}),
        *({"level": 95}, {"low": "0"}, {"high": True}, {"value": []}),
    ],
)
@pytest.mark.parametrize("name", ["ece", "brier"])
def test_a_calibration_record_with_numbers_that_cannot_be_is_refused(
    store: Store, shippable: ModuleType, name: str, change: dict[str, Any]
) -> None:
    file = store.root / "calibration.json"
    command = ["gate", str(store.root), "--attest", str(file), "--by", "Ada"]
    write_json(file, {**shippable.CALIBRATION, name: {**shippable.CALIBRATION[name], **change}})
    refused = runner.invoke(app, command)
    assert refused.exit_code == 1 and f"calibration.json, {name}: expected" in str(refused.exception)
    write_json(file, {"trained": 3, **shippable.CALIBRATION})
    assert isinstance(runner.invoke(app, command).exception, InputError)


def test_imported_scores_without_any_difference_are_undecided(store: Store, shippable: ModuleType) -> None:
    bind(store, *shippable.outcomes(300, 200, 0, 0))
    assert "outputs are not known" in gate(store, "regression", regression=IMPORTED).message


def test_a_suite_of_error_rates_fails_when_they_rise_and_passes_when_they_fall(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = (0.2 + 0.05 * rng.random(300)).round(3)
    higher = (base + 0.2 + 0.01 * rng.random(300)).round(3)

    def files(column: str, *values: Any) -> list[list[Path]]:
        found = []
        for i, part in enumerate(values):
            path = tmp_path / f"{column}{i}.csv"
            path.write_text(f"id,{column}\n" + "".join(f"q{k},{v}\n" for k, v in enumerate(part)), encoding="utf-8")
            found.append([path])
        return found

    wer = Suite(margin=0.05, metric="wer")
    worse, better = (compare_files(*files("wer", *pair), wer) for pair in ((higher, base), (base, higher)))
    assert (worse.status, better.status) == ("failed", "passed")
    assert worse.numbers["gap"] > 0.19 > -0.19 > better.numbers["gap"]
    assert worse.numbers["low"] < worse.numbers["gap"] < worse.numbers["high"]
    assert worse.numbers["candidate"] > worse.numbers["base"] and "lower is better" in worse.message
    unknown = compare_files(*files("style", higher, base), Suite(margin=0.05, metric="style"))
    assert unknown.status == "undecided" and "nothing says whether higher style is better" in unknown.message
    for up, status in ((True, "passed"), (False, "failed")):
        stated = Suite(margin=0.05, metric="style", higher_is_better=up)
        assert compare_files(*files("style", higher, base), stated).status == status


def test_a_failure_of_an_error_rate_counts_as_the_high_end() -> None:
    def arm_of(values: list[float | None], name: str) -> ScoreTable:
        rows = [Score(name, "asr", str(i), v, None if v is not None else "truncated") for i, v in enumerate(values)]
        return replace(ScoreTable.from_scores(rows, condition=name), higher_is_better=False, metric="wer")

    base: list[float | None] = [0.1 + 0.001 * (i % 7) for i in range(300)]
    cut = not_worse(arm_of([None] * 60 + base[60:], "now"), arm_of(base, "base"), Bar(0.05, outputs_differ=True))
    assert cut.status == "failed" and cut.numbers["gap"] > 0.1


# ---------------------------------------------------------------- data


def rebuilt(shippable: ModuleType, tmp_path: Any, rows: list[dict[str, Any]], **data: Any) -> GateResult:
    store = shippable.build(tmp_path / "own" / "study", rows=rows, policy={**shippable.POLICY, "data": data})
    return gate(store, "data")


def test_repeated_rows_fail(shippable: ModuleType, tmp_path: Any) -> None:
    rows = [*shippable.ROWS, {**shippable.ROWS[0], "id": "again"}]
    found = rebuilt(shippable, tmp_path, rows, licences=["CC-BY-4.0"])
    assert found.status == "failed" and "1 rows repeat an earlier one" in found.message


@pytest.mark.parametrize(
    ("licence", "data", "status"),
    [
        ("CC-BY-4.0", {"licences": ["cc-by-4.0"]}, "passed"),
        ("CC-BY-4.0", {"licences": ["MIT"]}, "failed"),
        ("CC-BY-4.0", {}, "undecided"),
        (None, {"licences": ["MIT"]}, "undecided"),
        (None, {"licences": ["MIT"], "licence": "MIT"}, "passed"),
        (None, {"licences": ["MIT"], "licence": "CC-BY-NC-4.0"}, "failed"),
        ("unknown", {"licences": ["unknown"]}, "failed"),
    ],
)
def test_licences(shippable: ModuleType, tmp_path: Any, licence: str | None, data: dict[str, Any], status: str) -> None:
    rows = [{k: v for k, v in {**row, "license": licence}.items() if v is not None} for row in shippable.ROWS]
    assert rebuilt(shippable, tmp_path, rows, **data).status == status


def test_other_data_than_the_contract_s_are_undecided(store: Store) -> None:
    path = store.root / "rows.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("boat", "ship"), encoding="utf-8")
    found = gate(store, "data")
    assert found.status == "undecided" and "differs from the data of the contract" in found.message
    path.unlink()
    assert "rows.jsonl is missing" in gate(store, "data").message


def test_a_family_that_straddles_the_split_fails(store: Store) -> None:
    finding = Finding("split.families", "error", "family b is in seen and stranger")
    SplitAudit(SplitCounts({}, ()), (finding,), ()).save(store.audit("split.json"))
    assert gate(store, "data").status == "undecided"  # not as it was sealed
    seal(store)
    assert gate(store, "data").status == "failed"


def test_another_contamination_check_than_the_frozen_one_is_undecided(store: Store) -> None:
    evals = {"other": {"items": 9, "rows_exact": 0, "rows_confirmed": 0}}
    gated = GateResult("contamination", "passed", "no overlap", {"evals": evals})
    ContaminationAudit(gated, ()).save(store.audit("contamination.json"))
    seal(store)
    assert "is not the check that the contract froze" in gate(store, "data").message


# ---------------------------------------------------------------- target


@pytest.mark.parametrize(
    ("status", "more", "expected"),
    [
        ("supported", {}, "passed"),
        ("refuted", {}, "failed"),
        ("inconclusive", {}, "undecided"),
        ("untested", {}, "undecided"),
        ("supported", {"exploratory": True}, "undecided"),
    ],
)
def test_the_claim_decides(
    store: Store, shippable: ModuleType, status: str, more: dict[str, Any], expected: str
) -> None:
    shippable.write_verdict(store, status, **more)
    assert gate(store, "target").status == expected


@pytest.mark.parametrize(
    ("claims", "words"),
    [(["learns"], "declares no margin"), (["harmless"], "no claim 'harmless' has a verdict"), (["nobody"], "nobody")],
)
def test_a_claim_that_cannot_carry_a_release_is_undecided(store: Store, claims: list[str], words: str) -> None:
    verdict = read_json(store.verdict_file)
    verdict["verdicts"].append({**verdict["verdicts"][0], "claim": "learns"})
    write_json(store.verdict_file, verdict)
    seal(store)
    found = gate(store, "target", target={"claims": claims})
    assert found.status == "undecided" and words in found.message


def test_a_claim_about_another_arm_is_undecided(store: Store) -> None:
    record = evaluate(store.root, CandidateChoice(condition="narrow"))
    (found,) = (g for g in record.gates if g.gate == "target")
    assert found.status == "undecided" and "is about wide, not about narrow" in found.message


def test_a_claim_is_taken_from_the_contract_and_not_from_an_edited_file(store: Store) -> None:
    study = yaml.safe_load(store.study_file.read_text(encoding="utf-8"))
    study["claims"][0] |= {"kind": "better_by", "margin": 0.01}
    store.study_file.write_text(yaml.safe_dump(study), encoding="utf-8")
    verdict = read_json(store.verdict_file)
    verdict["verdicts"].append({**verdict["verdicts"][0], "claim": "learns"})
    write_json(store.verdict_file, verdict)
    seal(store)
    assert "claim learns (improves) declares no margin" in gate(store, "target", target={"claims": ["learns"]}).message


def test_an_edited_seal_vouches_for_nothing(store: Store) -> None:
    record = read_json(store.root / "seal.json")
    write_json(store.root / "seal.json", {**record, "files": {**record["files"], "verdict.json": "00" * 32}})
    found = {g.gate: g.status for g in evaluate(store.root).gates if g.status != "passed"}
    assert found == {"data": "undecided", "target": "undecided", "regression": "undecided"}


def test_verdicts_of_another_contract_are_undecided(store: Store) -> None:
    verdict = read_json(store.verdict_file)
    write_json(store.verdict_file, {**verdict, "contract": "77" * 32})
    seal(store)
    assert "another entry of the contract" in gate(store, "target").message


# ---------------------------------------------------------------- safety, calibration, serving, rollback


@pytest.mark.parametrize(
    ("answers", "status", "words"),
    [
        ({"lost": 30}, "failed", "safe answers"),
        ({"refused": 30}, "failed", "harmless prompts answered"),
        ({"lost": 4}, "undecided", "safe answers"),
        ({"n": 30, "base_safe": 25}, "undecided", "under 73 items"),
        ({"base_safe": 3}, "undecided", "could hardly show here"),
    ],
)
def test_safety_is_judged_by_interval(
    store: Store, shippable: ModuleType, answers: dict[str, Any], status: str, words: str
) -> None:
    shippable.write_safety(store, shippable.answers(**answers))
    found = gate(store, "safety")
    assert found.status == status and words in found.message


def test_a_set_that_the_policy_asks_for_must_have_been_asked(store: Store) -> None:
    found = gate(store, "safety", safety={"sets": ["veritune-starter", "house-rules"]})
    assert found.status == "undecided" and "'house-rules' was not asked" in found.message


@pytest.mark.parametrize(
    ("ece", "status"),
    [
        ({"value": 0.09, "low": 0.07, "high": 0.12}, "undecided"),
        ({"value": 0.2, "low": 0.15, "high": 0.25}, "failed"),
        ({"value": 0.01, "low": None, "high": None}, "undecided"),
        (None, "undecided"),
        (0.01, "undecided"),
    ],
)
def test_the_worse_end_of_ece_decides(store: Store, shippable: ModuleType, ece: Any, status: str) -> None:
    rewrite(store, "calibration", numbers={**shippable.CALIBRATION, "ece": ece})
    assert gate(store, "calibration").status == status


def test_an_interval_whose_ends_are_swapped_passes_no_gate(store: Store, shippable: ModuleType) -> None:
    swapped = {"value": 0.5, "low": 0.9, "high": 0.01}
    rewrite(store, "calibration", numbers={**shippable.CALIBRATION, "ece": swapped})
    found = gate(store, "calibration")
    assert (
        found.status == "undecided" and "expected an interval from `low` to `high`, found 0.9 to 0.01" in found.message
    )


def test_a_calibration_record_is_bound_by_name_and_judged_debiased(store: Store, shippable: ModuleType) -> None:
    file = store.root / "calibration.json"
    trained = {**shippable.CALIBRATION, "ece": {"value": 0.1, "low": 0.07, "high": 0.13, "n": 300}}
    debiased = {"value": 0.05, "low": 0.03, "high": 0.08, "n": 300}
    write_json(file, {"base": shippable.CALIBRATION, "trained": {**trained, "ece_debiased": debiased}})
    command = ["gate", str(store.root), "--attest", str(file), "--by", "Ada"]
    assert runner.invoke(app, command).exit_code == 0
    found = gate(store, "calibration")
    assert found.status == "passed" and "ece_debiased" in found.message
    write_json(file, {"trained": trained})
    assert "calibration.json has changed since" in gate(store, "calibration").message
    assert runner.invoke(app, command).exit_code == 0
    assert gate(store, "calibration").status == "undecided"
    for wrong in ({}, {"ece": 0.1, "brier": 0.2}, {"ece": {"value": 0.1}, "brier": {"value": 0.1}}):
        write_json(file, wrong)
        assert isinstance(runner.invoke(app, command).exception, InputError)
    gone = runner.invoke(app, [*command[:3], "nothing.json", "--by", "Ada"]).exception
    assert ": expected the file of a calibration record or the name of a suite in the policy, found neither." in str(
        gone
    )


@pytest.mark.parametrize(
    ("name", "ratio", "status"),
    [
        ("first_token", {"value": 1.05, "low": 1.0, "high": 1.2}, "undecided"),
        ("first_token", {"value": 1.4, "low": 1.3, "high": 1.5}, "failed"),
        ("throughput", {"value": 0.5, "low": 0.4, "high": 0.6}, "failed"),
        ("throughput", {"value": 1.5, "low": 1.4, "high": 1.6}, "passed"),
        ("throughput", {"value": 0.92, "low": 0.85, "high": 1.0}, "undecided"),
        ("cost_per_request", {"value": 1.0, "low": None, "high": None}, "undecided"),
        ("peak_memory", None, "undecided"),
        ("peak_memory", {"value": 1.0, "low": 0.99, "high": 1.02}, "undecided"),  # its largest block is not known
        ("peak_memory", {"value": 1.0, "low": 0.99, "high": 1.02, "worst": 1.4}, "undecided"),  # one block ran over
        ("peak_memory", {"value": 1.0, "low": 0.99, "high": 1.02, "worst": 1.1}, "passed"),
    ],
)
def test_serving_ratios(store: Store, shippable: ModuleType, name: str, ratio: Any, status: str) -> None:
    rewrite(store, "serving", numbers={"ratios": {**shippable.RATIOS, name: ratio}})
    assert gate(store, "serving").status == status


def test_a_few_slow_requests_fail_the_tail_that_every_mean_ratio_passes(store: Store, shippable: ModuleType) -> None:
    """One request in fifty takes ten times as long: the mean ratios of the fixture all pass."""
    assert gate(store, "serving").status == "passed"
    shippable.write_serving(store, shippable.requests({"candidate": 20}))
    found = gate(store, "serving")
    assert found.status == "failed" and "first_token p99" in found.message and "at most 2" in found.message
    assert found.numbers["tails"]["answer"]["low"] > 2
    shippable.write_serving(store, shippable.requests({"candidate": 20, "base": 20}))
    assert gate(store, "serving").status == "passed"  # the base has the same tail
    shippable.write_serving(store, shippable.requests({"candidate": 50}))
    assert gate(store, "serving").status in ("failed", "undecided")


def test_too_few_requests_leave_the_tail_undecided_with_how_many_are_needed(
    store: Store, shippable: ModuleType
) -> None:
    shippable.write_serving(store, shippable.requests(n=54))
    found = gate(store, "serving")
    assert found.status == "undecided" and "432 requests" in found.message and "437 are needed" in found.message
    assert "437 are needed" in found.numbers["tails"]["answer"]["reason"]


def test_requests_without_an_answer_count_as_slow_in_the_tail(store: Store, shippable: ModuleType) -> None:
    shippable.write_serving(store, shippable.requests(lost=4))
    assert gate(store, "serving").status == "undecided"
    shippable.write_serving(store, shippable.requests(lost=40))
    assert gate(store, "serving").status == "undecided"  # all in one block: the other blocks have none
    lines = shippable.requests()
    for line in lines[::11]:
        line |= {"status": "ReadTimeout", "first_token_s": None, "end_s": None} if line["arm"] == "candidate" else {}
    shippable.write_serving(store, lines)
    found = gate(store, "serving")
    assert found.status == "failed" and found.numbers["tails"]["answer"]["lost"]["candidate"] == 40


def test_a_serving_record_without_its_requests_or_with_broken_ones_is_undecided(
    store: Store, shippable: ModuleType
) -> None:
    rewrite(store, "serving", outputs={})
    assert "keeps no requests" in gate(store, "serving").message
    for broken in ({"rate": "fast"}, {"block": None}, {"end_s": "soon"}):
        shippable.write_serving(store, [{**line, **broken} for line in shippable.requests()])
        assert gate(store, "serving").status == "undecided", broken
    shippable.write_serving(store, [line for line in shippable.requests() if line["arm"] == "candidate"])
    assert "no requests were recorded" in gate(store, "serving").message


def test_a_merge_record_without_merged_weights_is_undecided(store: Store) -> None:
    record = read_evidence(store, "merge")
    assert record is not None
    rewrite(store, "merge", subject=replace(record.subject, merged=None))
    assert gate(store, "merge").status == "undecided"


@pytest.mark.parametrize(("days", "status"), [(0, "passed"), (30, "passed"), (31, "undecided"), (-1, "undecided")])
def test_a_drill_grows_old(store: Store, days: int, status: str) -> None:
    today = datetime.now(UTC).date() + timedelta(days=days)
    record = evaluate(store.root, today=today)
    assert next(g for g in record.gates if g.gate == "rollback").status == status


# ---------------------------------------------------------------- policies


def test_the_defaults_flatter_nobody(store: Store) -> None:
    policy = store.root.parent / "empty.yaml"
    policy.write_text("{}\n", encoding="utf-8")
    record = evaluate(store.root, CandidateChoice(policy, "wide", 3))
    assert record.status == "undecided" and record.not_asked == ()
    assert {g.gate for g in record.gates if g.status == "undecided"} == {"data", "regression"}


def test_a_gate_that_is_not_asked_for_is_shown(store: Store) -> None:
    record = evaluate(store.root, _choice(store, gates=["data", "target"]))
    assert [g.gate for g in record.gates] == ["data", "target"]
    assert record.not_asked == GATES[2:]
    assert passes_for(record, record.subject.hash)
    whole = load_policy(load_study(store.study_file), read_contract(store)).hash
    assert not passes_for(record, record.subject.hash, policy_hash=whole)
    assert passes_for(record, record.subject.hash, policy_hash=record.policy)
    assert "| safety | not checked |" in render_markdown(record)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("safty: {margin: 0.1}", "safty: extra inputs are not permitted"),
        ("safety: {margin: no}", "safety.margin: .*found a boolean"),
        ("gates: []", "gates: .*at least 1 item"),
        ("gates: [data, lunch]", r"gates\.1"),
        ("- data", "expected a mapping"),
        ("a: [", "cannot be read as a policy"),
    ],
)
def test_a_policy_that_cannot_be_read_is_refused(tmp_path: Any, text: str, words: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=words):
        read_policy(path)


def test_a_policy_stands_at_the_top_or_under_release(tmp_path: Any) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("release: {drill_days: 7}", encoding="utf-8")
    assert read_policy(path) == Release(drill_days=7)


def test_an_arm_must_be_named_and_known(store: Store) -> None:
    path = store.root.parent / "open.yaml"
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(StudyError, match="none is named"):
        evaluate(store.root, CandidateChoice(path))
    with pytest.raises(StudyError, match="'wider'"):
        evaluate(store.root, CandidateChoice(condition="wider"))
    with pytest.raises(StudyError, match="one run of wide, seed 99"):
        evaluate(store.root, CandidateChoice(seed=99))


def test_it_is_said_when_a_policy_came_after_results(store: Store) -> None:
    assert evaluate(store.root).policy_declared == "in the contract, before results"
    study = yaml.safe_load(store.study_file.read_text(encoding="utf-8"))
    study["release"]["safety"] = {"margin": 0.5}
    store.study_file.write_text(yaml.safe_dump(study), encoding="utf-8")
    assert evaluate(store.root).policy_declared.startswith("not in the contract")


# ---------------------------------------------------------------- waivers


def soon(days: int = 10) -> str:
    return (datetime.now(UTC).date() + timedelta(days=days)).isoformat()


def test_a_waiver_lifts_an_undecided_gate_until_its_day(store: Store) -> None:
    lost(store, "rollback")
    waiver = waive(store.root, "rollback", ("Ada Lovelace", "the first release: nothing to go back to", soon(10)))
    record = evaluate(store.root)
    assert record.status == "passed" and record.waived["rollback"] == waiver
    last = date.fromisoformat(waiver.until)
    assert passes_for(record, record.subject.hash, last)
    assert not passes_for(record, record.subject.hash, last + timedelta(days=1))
    late = evaluate(store.root, today=last + timedelta(days=1))
    assert late.status == "undecided" and late.waived == {}
    assert all_waivers(store) == [waiver]


def test_a_failed_gate_cannot_be_waived(store: Store, shippable: ModuleType) -> None:
    shippable.score(store, lost=60)
    with pytest.raises(GateError, match="failed and cannot be waived"):
        waive(store.root, "regression", ("Ada", "we need it", soon()))
    assert all_waivers(store) == []


def test_a_gate_that_fails_after_it_was_waived_blocks(store: Store, shippable: ModuleType) -> None:
    shippable.score(store, lost=10)
    waive(store.root, "regression", ("Ada", "more items are on the way", soon()))
    assert evaluate(store.root).status == "passed"
    shippable.score(store, lost=60)
    record = evaluate(store.root)
    assert record.status == "failed" and not record.waived


def test_a_waiver_does_not_cover_the_same_words_when_they_are_a_failure(store: Store) -> None:
    rewrite(store, "merge", status="undecided", message="3 of 40 prompts differ")
    waive(store.root, "merge", ("Ada", "served unmerged", soon()))
    assert evaluate(store.root).status == "passed"
    rewrite(store, "merge", status="failed", message="3 of 40 prompts differ")
    record = evaluate(store.root)
    assert record.status == "failed" and not record.waived and not passes_for(record, record.subject.hash)


def test_a_waiver_covers_what_was_seen_and_nothing_else(store: Store, shippable: ModuleType) -> None:
    shippable.score(store, lost=10)
    waive(store.root, "regression", ("Ada", "more items are on the way", soon()))
    shippable.score(store, lost=12)  # undecided for other numbers
    assert evaluate(store.root).status == "undecided"
    shippable.score(store, lost=10)
    assert evaluate(store.root).status == "passed"
    assert evaluate(store.root, CandidateChoice(seed=11)).status != "passed"  # other weights


@pytest.mark.parametrize(
    ("gate_name", "signed", "words"),
    [
        ("data", ("Ada", "why not", soon()), "nothing to waive"),
        ("lunch", ("Ada", "why not", soon()), "does not require a gate 'lunch'"),
        ("rollback", (" ", "why not", soon()), "needs a name and a reason"),
        ("rollback", ("Ada", "", soon()), "needs a name and a reason"),
        ("rollback", ("Ada", "why not", soon(-1)), "expected a day from"),
        ("rollback", ("Ada", "why not", soon(91)), "at most 90 days"),
        ("rollback", ("Ada", "why not", "next week"), "YYYY-MM-DD"),
    ],
)
def test_a_waiver_that_is_none_is_refused(store: Store, gate_name: str, signed: Any, words: str) -> None:
    lost(store, "rollback")
    with pytest.raises(InputError, match=words):
        waive(store.root, gate_name, signed)
    assert all_waivers(store) == []


def test_records_and_waivers_are_appended_and_an_edit_shows(store: Store) -> None:
    first = evaluate(store.root)
    assert evaluate(store.root) == first
    lost(store, "rollback")
    evaluate(store.root)
    waive(store.root, "rollback", ("Ada", "first release", soon(1)))
    evaluate(store.root)
    waive(store.root, "rollback", ("Bob", "still the first", soon(2)))
    last = evaluate(store.root)
    path = store.release(GATES_FILE)
    kept = Ledger(path).read()
    assert [e["status"] for e in kept if e["kind"] == "evaluation"] == ["passed", "undecided", "passed", "passed"]
    assert [e["by"] for e in kept if e["kind"] == "waiver"] == ["Ada", "Bob"] and last.waived["rollback"].by == "Bob"
    honest = path.read_text("utf-8")
    path.write_text("".join(line + "\n" for line in honest.split("\n")[:-2]), encoding="utf-8")
    lost_one = "release/gates.jsonl lost an entry that the timeline records"
    assert lost_one in [f.message for f in verify(store.root)]
    path.write_text(honest, encoding="utf-8")
    assert lost_one not in [f.message for f in verify(store.root)]
    path.write_text(honest.replace(soon(1), soon(80), 1), encoding="utf-8")
    with pytest.raises(StaleError, match="line 3 was edited"):
        evaluate(store.root)
    with pytest.raises(StaleError):
        gate_record(store)


def test_an_edited_record_passes_for_nothing(store: Store) -> None:
    lost(store, "rollback")
    record = evaluate(store.root)
    gates = tuple(replace(g, status="passed") for g in record.gates)
    for forged in (replace(record, status="passed"), replace(record, status="passed", gates=gates)):
        assert not passes_for(forged, record.subject.hash)


def test_merged_weights_are_covered_only_where_their_gate_passed(store: Store) -> None:
    merged = "ab" * 32
    record = evaluate(store.root)
    assert record.subject.merged == merged and passes_for(record, Subject(record.subject.base, merged).hash)
    rewrite(store, "merge", status="undecided")
    waive(store.root, "merge", ("Ada", "the adapter is served unmerged", soon()))
    record = evaluate(store.root)
    assert record.status == "passed" and passes_for(record, record.subject.hash)
    assert not passes_for(record, Subject(record.subject.base, merged).hash)


def test_without_a_record_there_is_an_error_with_the_next_step(store: Store) -> None:
    with pytest.raises(GateError, match="veritune gate"):
        gate_record(store)


# ---------------------------------------------------------------- for people


def test_the_table_has_a_row_a_gate_and_no_markup_of_a_stranger(store: Store) -> None:
    lost(store, "rollback")
    evil = "<script>alert(1)</script> | @everyone `x`\n| fake | row |"
    waive(store.root, "rollback", ("Ada", evil, soon()))
    text = render_markdown(evaluate(store.root))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(GATES)
    assert "<script" not in text and "@everyone" not in text
    assert all(line.replace("\\|", "").count("|") == 6 for line in rows)


@pytest.mark.parametrize("flag", [["--json"], ["--markdown", "-"], []])
def test_the_command_exits_with_2_unless_it_passes(store: Store, flag: list[str]) -> None:
    command = ["gate", str(store.root), *flag]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    lost(store, "merge")
    blocked = runner.invoke(app, command)
    assert blocked.exit_code == 2
    if flag == ["--json"]:
        assert json.loads(blocked.output)["status"] == "undecided"
    assert "undecided" in blocked.output


def test_a_pipeline_is_given_a_case_for_each_gate(store: Store, tmp_path: Path) -> None:
    lost(store, "merge")
    forms = ["--junit", tmp_path / "g.xml", "--markdown", tmp_path / "g.md", "--github"]
    done = runner.invoke(app, list(map(str, ["gate", store.root, *forms])))
    assert done.exit_code == 2
    cases = {c.get("name"): c for c in ElementTree.parse(tmp_path / "g.xml").getroot().iter("testcase")}
    assert set(cases) == {*GATES, "release"}
    assert {name for name, c in cases.items() if c.find("failure") is not None} == {"merge", "release"}
    assert "::error title=merge::undecided" in done.stderr and "::notice title=target::passed" in done.stderr
    assert "### Release gate: undecided" in (tmp_path / "g.md").read_text()
    waive(store.root, "merge", ("Ada", "served unmerged", soon()))
    lifted = check_report(evaluate(store.root)).cases
    assert all(c.passed for c in lifted) and any("waived by Ada" in c.says for c in lifted)
    refused = runner.invoke(app, ["gate", str(store.root), "--controls", "--github"])
    assert refused.exit_code == 1 and "show the gates" in str(refused.exception)


def test_adopted_weights_are_marked_on_the_table_and_in_the_annotations(store: Store) -> None:
    record = replace(evaluate(store.root), trained_elsewhere=("the order | of rows",))
    assert "**Trained elsewhere; not checked:** the order \\| of rows." in render_markdown(record)
    assert check_report(record).cases[-1].warnings == ("trained elsewhere; not checked: the order | of rows",)


def test_a_waiver_from_the_command_line(store: Store) -> None:
    lost(store, "merge")
    signed = ["--by", "Ada", "--reason", "served unmerged", "--until", soon()]
    assert runner.invoke(app, ["gate", str(store.root), "--waive", "merge", *signed]).exit_code == 0
    assert runner.invoke(app, ["gate", str(store.root)]).exit_code == 0


def test_a_record_read_back_is_the_record(store: Store) -> None:
    lost(store, "merge")
    waive(store.root, "merge", ("Ada", "served unmerged", soon()))
    record = evaluate(store.root)
    assert isinstance(record, GateRecord) and gate_record(store) == record


def test_evidence_written_and_read_is_the_same(store: Store) -> None:
    made = Evidence("serving", "undecided", "why", Subject("a", "b"), {"x": 1.5}, {"y": 2}, {}, {"dtype": "bfloat16"})
    write_evidence(store, made)
    found = read_evidence(store, "serving")
    assert replace(found, input_hash="", hash="") == made
    assert found.hash

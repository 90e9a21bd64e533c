"""Sentences whose every number is recorded and that are false all the same, each beside a true one of its kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veritune.writeup.lint.free import lint_records

HELD = {
    "tuned": {"gsm8k": {"accuracy": 0.541, "stderr": 0.012}, "mmlu": {"accuracy": 0.47}},
    "base": {"gsm8k": {"accuracy": 0.423, "stderr": 0.013}, "mmlu": {"accuracy": 0.48}},
    "lora": {"f1": 0.701},
    "full": {"f1": 0.712},
    "wer": {"tuned": 0.087, "base": 0.287},
    "latency_ms": {"p50": 41.2, "p99": 183.0},
    "train_time_s": 5400,
    "peak_memory_gb": 38.4,
    "data": {"rows": 12000, "families": 230},
    "n_items": 500,
}
CELLS = "| model | GSM8K | MMLU |\n|---|--:|--:|\n| tuned | {} | {} |\n| base | {} | {} |\n\nTable 1: {} in percent."
PAIRS = [
    # which way it went
    ("On GSM8K accuracy rose from 42.3 % to 54.1 %.", "On GSM8K accuracy rose from 54.1 % to 42.3 %."),
    ("The WER falls from 28.7 % to 8.7 %.", "The WER rises from 28.7 % to 8.7 %."),
    ("Accuracy on GSM8K rose from 42.3 % to 54.1 %.", "Accuracy on GSM8K fell from 54.1 % to 42.3 %."),
    ("Auf GSM8K stieg die accuracy von 42,3 % auf 54,1 %.", "Auf GSM8K stieg die accuracy von 54,1 % auf 42,3 %."),
    ("L'accuracy augmente de 42,3 % à 54,1 % sur GSM8K.", "L'accuracy augmente de 54,1 % à 42,3 % sur GSM8K."),
    ("La accuracy sube del 42,3 % al 54,1 % en GSM8K.", "La accuracy sube del 54,1 % al 42,3 % en GSM8K."),
    ("GSM8K 的 accuracy 从 42.3% 上升到 54.1%。", "GSM8K 的 accuracy 从 54.1% 上升到 42.3%。"),
    ("Tuning raised GSM8K accuracy by 11.8 points.", "Tuning lowered GSM8K accuracy by 11.8 points."),
    ("Tuning raised GSM8K accuracy by 27.9 %.", "Tuning raised GSM8K accuracy by 11.8 %."),
    ("Tuning cuts the WER by 20 points.", "Tuning raises the WER by 20 points."),
    ("Tuning cuts the WER by 69.7 %.", "Tuning cuts the WER by 30 %."),
    ("On MMLU tuned loses 1 point (0.47 against 0.48).", "On MMLU tuned gains 1 point (0.47 against 0.48)."),
    ("The F1 of LoRA trails full fine-tuning by 1.1 points.", "The F1 of LoRA leads full fine-tuning by 1.1 points."),
    # an error rate is what is left to 1
    ("The error rate of the tuned model on GSM8K is 45.9 %.", "The error rate of the tuned model on GSM8K is 54.1 %."),
    ("The error rate of the tuned model on GSM8K is 45.9 %.", "The error rate of the tuned model on GSM8K is 53 %."),
    ("Die Fehlerquote von tuned auf GSM8K beträgt 45,9 %.", "Die Fehlerquote von tuned auf GSM8K beträgt 54,1 %."),
    ("tuned 在 GSM8K 上的错误率为 45.9%。", "tuned 在 GSM8K 上的错误率为 54.1%。"),
    (CELLS.format(45.9, 53.0, 57.7, 52.0, "error rate"), CELLS.format(54.1, 47.0, 42.3, 48.0, "error rate")),
    (CELLS.format(54.1, 47.0, 42.3, 48.0, "accuracy"), CELLS.format(45.9, 53.0, 57.7, 52.0, "accuracy")),
    (
        "| GSM8K | base | tuned |\n|---|--:|--:|\n| accuracy | 42.3 % | 54.1 % |\n| error rate | 57.7 % | 45.9 % |",
        "| GSM8K | base | tuned |\n|---|--:|--:|\n| accuracy | 42.3 % | 54.1 % |\n| error rate | 42.3 % | 54.1 % |",
    ),
    # whose number it is
    ("GSM8K accuracy of the tuned model: 0.541 ± 0.012.", "GSM8K accuracy of the tuned model: 0.541 ± 0.013."),
    ("Tuned: 54.1 (GSM8K), 47.0 (MMLU).", "Tuned: 47.0 (GSM8K), 54.1 (MMLU)."),
    ("The F1 of LoRA (70.1) and of full fine-tuning (71.2).", "The F1 of LoRA (71.2) and of full fine-tuning (70.1)."),
    (
        "Tuned and base reach 54.1 % and 42.3 % accuracy on GSM8K, respectively.",
        "Tuned and base reach 42.3 % and 54.1 % accuracy on GSM8K, respectively.",
    ),
    (
        "Accuracy on GSM8K and MMLU is 54.1 % and 47.0 % for tuned.",
        "Accuracy on GSM8K and MMLU is 47.0 % and 54.1 % for tuned.",
    ),
    ("We train on 12,000 rows in 230 families.", "We train on 230 rows in 12,000 families."),
    # units, counts of a share, signs in a row
    ("The median latency (p50) is 41.2 ms.", "The median latency (p50) is 41.2 s."),
    ("Training took 1.5 hours.", "Training took 5400 minutes."),
    ("Peak memory was 38.4 GB.", "Peak memory was 38.4 MB."),
    ("Tuned answers 235 of 500 MMLU items right (accuracy).", "Tuned answers 240 of 500 MMLU items right (accuracy)."),
    (
        "| arm | GSM8K accuracy |\n|---|--:|\n| base | 0.423 |\n| tuned | 0.541 (+0.118) |",
        "| arm | GSM8K accuracy |\n|---|--:|\n| base | 0.423 |\n| tuned | 0.541 (-0.118) |",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("records") / "results.json"
    path.write_text(json.dumps(HELD), encoding="utf-8")
    return path


def errors(text: str, held: Path) -> list[str]:
    page = held.parent / "page.md"
    page.write_text(f"# Results\n\n{text}\n", encoding="utf-8")
    return [f"{f.text}: {f.message}" for f in lint_records(page, [held]).findings if f.severity == "error"]


@pytest.mark.parametrize("true", sorted({a for a, _ in PAIRS}))
def test_a_true_sentence_is_not_accused(true: str, held: Path) -> None:
    assert errors(true, held) == []


@pytest.mark.parametrize("false", [b for _, b in PAIRS])
def test_a_false_sentence_does_not_pass_because_its_numbers_are_recorded(false: str, held: Path) -> None:
    assert errors(false, held)


TRUE_AS_WELL = [
    "Accuracy on GSM8K is 54.1 % for tuned, an error rate of 45.9 %.",
    "Error rates are not shown; the accuracy of tuned on GSM8K is 54.1 %.",
    "From 54.1 % (GSM8K) to 47.0 % (MMLU), tuned is weaker on the broader benchmark in accuracy.",
    "The tuned model reaches 54.1 % accuracy on GSM8K, base 42.3 %.",
    "Accuracy on GSM8K: 42.3 % for base and 54.1 % for tuned.",
    "The latency lies between 41.2 ms (p50) and 183 ms (p99).",
]


@pytest.mark.parametrize("text", TRUE_AS_WELL)
def test_the_same_words_in_a_true_sentence(text: str, held: Path) -> None:
    assert [e for e in errors(text, held) if "win" not in e] == []


@pytest.mark.parametrize("said", ["Tuning cuts the error rate by half.", "Tuning cut the error rate in half."])
def test_by_half_is_a_number(said: str, tmp_path: Path) -> None:
    page, records = tmp_path / "p.md", tmp_path / "r.json"
    page.write_text(said, "utf-8")
    for tuned, right in ((0.35, False), (0.2, True)):
        records.write_text(json.dumps({"base": {"error_rate": 0.4}, "tuned": {"error_rate": tuned}}), "utf-8")
        found = [f.message for f in lint_records(page, [records]).findings if f.rule == "number.unbound"]
        assert (found == []) == right

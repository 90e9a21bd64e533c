"""Lint of free prose: numbers of a page against records of any kind, by evidence alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veritune.errors import InputError
from veritune.writeup.facts import read_facts
from veritune.writeup.lint import lint_command, render_text
from veritune.writeup.lint.free import lint_records
from veritune.writeup.lint.rules import NumberFate

HELD = {
    "base": {"gsm8k": {"accuracy": 0.352, "n": 1319, "std": 0.011}, "mmlu": {"accuracy": 0.61}},
    "tuned": {"gsm8k": {"accuracy": 0.541, "n": 1319, "std": 0.013}, "mmlu": {"accuracy": 0.604}},
    "alpha": 0.05,
    "train": {"learning_rate": 0.0003, "epochs": 3, "seeds": [0, 1, 2], "batch_size": 16},
    "modules": ["q_proj", "v_proj"],
    "items": [
        {"id": "a", "right": True, "group": "easy"},
        {"id": "b", "right": False, "group": "hard"},
        {"id": "c", "right": True, "group": "easy"},
        {"id": "d", "right": True, "group": "easy"},
    ],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("records") / "results.json"
    path.write_text(json.dumps(HELD), encoding="utf-8")
    return path


def read(text: str, results: Path) -> list[NumberFate]:
    page = results.parent / "page.md"
    page.write_text(text, encoding="utf-8")
    return list(lint_records(page, [results]).readings)


def outcomes(text: str, results: Path) -> list[str]:
    return [r.outcome for r in read(text, results)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The tuned model reaches an accuracy of 54.1 % on GSM8K.", ["tuned.gsm8k.accuracy"]),
        ("The accuracy of tuned on gsm8k is 0.541 ± 0.013.", ["tuned.gsm8k.accuracy", "tuned.gsm8k.std"]),
        ("We train for 3 epochs with a learning rate of 3e-4.", ["train.epochs", "train.learning_rate"]),
        (r"A learning rate of $3 \times 10^{-4}$ and a batch size of 16.", ["train.learning_rate", "train.batch_size"]),
        ("Auf GSM8K erreicht tuned eine accuracy von 0,541.", ["tuned.gsm8k.accuracy"]),
        ("> The tuned accuracy on GSM8K is 0.541.", ["tuned.gsm8k.accuracy"]),
        ("> [!NOTE]\n> The tuned accuracy on GSM8K is 0.541.", ["tuned.gsm8k.accuracy"]),
        ("Three in four items are easy.", ["items.group.easy.share"]),
        ("We trained with three seeds.", ["n.train.seeds"]),
        ("LoRA adapts 2 modules.", ["n.modules"]),
    ],
)
def test_a_number_whose_words_fit_its_record_is_bound(text: str, names: list[str], results: Path) -> None:
    found = read(text, results)
    assert [(r.outcome, r.name) for r in found] == [("bound", name) for name in names]


@pytest.mark.parametrize(
    "text",
    [
        "On GSM8K the accuracy rises from base to tuned by nineteen points.",
        "On GSM8K tuned gains 18.9 points of accuracy over base.",
        "On GSM8K tuned is 1.5 times as accurate as base.",
        "The error rate of the base model on GSM8K is 64.8 %.",
        "On GSM8K the accuracy of tuned is a relative gain of 53.7 % over base.",
    ],
)
def test_differences_ratios_and_error_rates_of_two_records_are_bound(text: str, results: Path) -> None:
    assert outcomes(text, results) == ["bound"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The accuracy of the tuned model on GSM8K is 51.4 %.", "tuned.gsm8k.accuracy is 0.541 in results.json"),
        ("The tuned accuracy on GSM8K is 0.641.", "tuned.gsm8k.accuracy is 0.541 in results.json"),
        ("| model | GSM8K accuracy |\n|--|--|\n| base | 0.541 |\n", "base.gsm8k.accuracy is 0.352 in results.json"),
    ],
)
def test_a_number_is_wrong_only_where_the_words_name_one_record(text: str, value: str, results: Path) -> None:
    found = read(text, results)
    assert [r.outcome for r in found] == ["wrong"] and found[0].message.startswith(value)
    assert found[0].suggestion.endswith(", or say which record this number is from.")


@pytest.mark.parametrize(
    "text",
    [
        "About 9.5 % of the prompts were in Welsh.",
        "Another tuned model has 0.77.",
        "On the dev subset of GSM8K the accuracy of the tuned model is 0.51.",
        "On GSM8K the accuracy of tuned after 2 epochs was 0.48.",
        "The accuracy of Llama3 on GSM8K is 0.79, against others.",
        "LoRA adapts 30 modules.",
        "The interval has a level of 95 %.",
        "| model | GSM8K accuracy |\n|--|--|\n| tuned, 8 shots | 0.61 |\n",
        "| model | accuracy |\n|--|--|\n| tuned | 0.99 |\n",
        "The tuned model solves more than 0.5 of GSM8K.",
    ],
)
def test_an_unrecorded_number_accuses_nobody(text: str, results: Path) -> None:
    assert "wrong" not in outcomes(text, results), [(r.text, r.message) for r in read(text, results)]


@pytest.mark.parametrize(
    "text",
    [
        "## 2 Results\n", "We used CUDA 12 and Python 3.11 on an RTX 4090.", "See Table 3 and (Miller 2024).",
        "It ran on 2026-01-05 at 12:30.", "SmolLM2-135M-Instruct is `b00-7`.", "1. first\n2. second\n",
    ],
)  # fmt: skip
def test_what_is_no_claim_is_not_read(text: str, results: Path) -> None:
    assert outcomes(text, results) == []


def test_two_tables_with_the_same_labels_accuse_nobody(results: Path) -> None:
    table = "| model | GSM8K accuracy |\n|--|--|\n| tuned | {} |\n"
    found = outcomes("# One\n\n" + table.format(0.541) + "\n# Other setting\n\n" + table.format(0.733), results)
    assert found == ["bound", "absent"]


def test_markers_bind_and_exempt_numbers(results: Path) -> None:
    assert outcomes("It is 0.54<!--v:tuned.gsm8k.accuracy--> today.", results) == ["bound"]
    assert outcomes("It is 0.64<!--v:tuned.gsm8k.accuracy--> today.", results) == ["wrong"]
    assert outcomes("It is 0.64<!--v:none--> today.", results) == []
    found = read("It is 0.64<!--v:tuned.gsm8k.acuracy--> today.", results)
    assert found[0].outcome == "absent" and found[0].suggestion == "Did you mean tuned.gsm8k.accuracy?"


def test_records_of_other_kinds_give_names_too(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(
        '{"step": 10, "split": "test", "loss": 1.25}\n{"step": 20, "split": "test", "loss": 1.5}\n'
    )
    (tmp_path / "t.csv").write_text("model;acc\nbase;0,35\n")
    (tmp_path / "c.yaml").write_text(
        "model-index:\n- name: m\n  results:\n  - {task: {type: ner}, metrics: [{type: f1, value: 0.9}]}\n"
    )
    names = {f.name: f.value for f in read_facts(sorted(tmp_path.iterdir()))}
    assert names["step 10.test.loss"] == 1.25 and names["loss.mean"] == 1.375 and names["n.m.rows"] == 2
    assert names["base.acc"] == 0.35
    assert names["model-index.m.results.ner.metrics.f1.value"] == 0.9


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", "cannot be read as json"), ("x.jsonl", "{}\n{", "x.jsonl line 2 is not JSON"),
        ("x.parquet", "", "expected a record file"), ("x.yaml", "a: [", "cannot be read as yaml"),
    ],
)  # fmt: skip
def test_a_damaged_record_file_is_named_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_facts([tmp_path / name])
    assert "\n" not in str(caught.value)


def test_the_command_takes_record_files_behind_the_page_and_counts_outcomes(results: Path) -> None:
    page = results.parent / "command.md"
    page.write_text("The tuned accuracy on GSM8K is 0.641 after 8 tries.\n", encoding="utf-8")
    (results.parent / "more.jsonl").write_text('{"split": "x", "tries": 8}\n', encoding="utf-8")
    report, code = lint_command([page, results.parent / "more.jsonl"], None, [results])
    assert code == 2
    text = render_text(report)
    assert "command.md:1:32: not in the records (number.unbound): 0.641: " in text
    assert text.endswith("    1 bound, 0 ambiguous, 1 not in the records, 0 wrong")
    with pytest.raises(InputError, match="expected records to check the write-up against, found none"):
        lint_command([page], None, [])
    with pytest.raises(InputError, match="expected a write-up, found none"):
        lint_command([results], None, [results])

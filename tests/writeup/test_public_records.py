"""Pages in other people's styles against the files of public tools: nobody is accused, what is recorded binds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veritune.writeup.lint.free import lint_records
from veritune.writeup.lint.rules import NumberFate
from veritune.writeup.pages import prose_of

LM_EVAL = {
    "results": {
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.5412,
            "exact_match_stderr,strict-match": 0.0137,
            "exact_match,flexible-extract": 0.5610,
            "exact_match_stderr,flexible-extract": 0.0136,
        },
        "mmlu": {"alias": "mmlu", "acc,none": 0.6042, "acc_stderr,none": 0.0039},
        "hellaswag": {
            "acc,none": 0.5871, "acc_stderr,none": 0.0049, "acc_norm,none": 0.7713, "acc_norm_stderr,none": 0.0042,
        },
    },
    "n-shot": {"gsm8k": 5, "mmlu": 0, "hellaswag": 0},
    "n-samples": {"gsm8k": {"original": 1319, "effective": 1319}, "mmlu": {"original": 14042, "effective": 14042}},
    "config": {"model": "hf", "batch_size": "16", "numpy_seed": 1234},
    "total_evaluation_time_seconds": "1843.21",
}  # fmt: skip
INSPECT = {
    "version": 2,
    "eval": {"task": "arc_challenge", "model": "openai/gpt-4o", "dataset": {"name": "arc", "samples": 1172}},
    "results": {
        "completed_samples": 1170,
        "scores": [{"name": "choice", "metrics": {"accuracy": {"name": "accuracy", "value": 0.8532},
                                                  "stderr": {"name": "stderr", "value": 0.0103}}}],
    },
    "stats": {"model_usage": {"openai/gpt-4o": {"input_tokens": 412345, "output_tokens": 51234}}},
}  # fmt: skip
WANDB = """"Step","sft-r8 - eval/loss","sft-r8 - eval/loss__MIN","sft-r64 - eval/loss","sft-r64 - eval/loss__MIN"
"100","1.4321","1.4321","1.3987","1.3987"
"200","1.2110","1.2110","1.1890","1.1890"
"300","1.1523","1.1523","1.2034","1.2034"
"""
MLFLOW = {"run": {"data": {
    "metrics": [{"key": "val_f1", "value": 0.8734, "step": 12}, {"key": "val_loss", "value": 0.3312, "step": 12}],
    "params": [{"key": "learning_rate", "value": "0.0003"}, {"key": "num_epochs", "value": "4"}],
}}}  # fmt: skip
ALL_RESULTS = {
    "epoch": 3.0, "eval_accuracy": 0.9128, "eval_loss": 0.2514, "eval_samples": 872, "eval_samples_per_second": 70.66,
    "train_loss": 0.1876, "train_runtime": 456.78, "train_samples": 67349, "train_samples_per_second": 442.3,
}  # fmt: skip
CARD = """model-index:
- name: distil-sst2
  results:
  - task: {type: text-classification}
    dataset: {name: GLUE SST2, type: glue}
    metrics:
    - {name: Accuracy, type: accuracy, value: 0.9128}
    - {name: F1, type: f1, value: 0.9153}
"""

README = """# Tiny tuner

Our fine-tuned Llama-3-8B, trained on H100s.

| Task | Metric | Value | Stderr | n-shot |
|---|---|---:|---:|---:|
| gsm8k | exact_match (strict-match) | 54.12 | 1.37 | 5 |
| hellaswag | acc_norm | 77.1% | 0.42% | 0 |

- GSM8K (5-shot, strict match): **54.1 %** ± 1.4
- On MMLU it reaches an accuracy of 60.4 %.
- HellaSwag: 77.1 (normalised), 58.7 unnormalised
- Evaluated in about 31 minutes, batch size 16.
- Another paper reports 57.1 % on GSM8K.
"""
THREAD = """1/ We benchmarked gpt-4o on ARC-Challenge with Inspect 🧵

2/ Accuracy: 85.3% (±1.0%). 1,170 samples completed.

3/ That's 412k input tokens, 51k output tokens. Error rate just under 15%.

4/ For comparison: random guessing gets 25%.
"""
BLOG = """# Feintuning

Nach 300 Schritten liegt der eval/loss von sft-r8 bei 1,152, bei sft-r64 sind es 1,203.
Zwischen den Schritten fiel der loss von sft-r8 um 0,28. Der F1 (val_f1) beträgt 87,3 %, die Lernrate war 0,0003, und
trainiert wurde vier Epochen. Insgesamt kostete uns das 12,50 Euro.
"""
ABSTRACT = r"""\begin{abstract}
We fine-tune DistilBERT on SST-2 and obtain an accuracy of $91.28\,\%$ and an F1 of $0.915$; training took
456.8 seconds. The training loss falls to 0.188. Prior work \cite{x} reports 92.7.
We use a learning rate of $2\times 10^{-5}$.
\end{abstract}
"""
TABLE = r"""\begin{table}
\begin{tabular}{l|cc} % two columns
\toprule
Task & \textbf{acc} & acc\_norm \\
\midrule
hellaswag & $58.71 \pm 0.49$ & \textbf{77.1}\,\% \\[2pt]
\cmidrule(lr){1-2}
mmlu & 0.6042 & \multicolumn{1}{c}{--} \\
gsm8k &
  0.777 & -- \\
\bottomrule
\end{tabular}
\end{table}
"""
NOTEBOOK = json.dumps({"cells": [
    {"cell_type": "markdown", "source": ["Eval accuracy is **0.9128** on 872 samples (loss 0.2514).\n"]},
    {"cell_type": "code", "source": ["acc = 0.5\n"]},
    {"cell_type": "markdown", "source": "We train on 67,349 samples at 442 samples/s; train loss 0.188.\n\n"
     "| split | accuracy | loss |\n|---|---|---|\n| eval | 91.3 | 0.251 |\n| train | 97.1 | 0.188 |\n"},
]})  # fmt: skip

PAGES = [
    ("page.md", README, {"r.json": json.dumps(LM_EVAL)}, ["57.1 %"]),
    ("page.md", THREAD, {"r.json": json.dumps(INSPECT)}, ["25%"]),
    ("page.md", BLOG, {"w.csv": WANDB, "m.json": json.dumps(MLFLOW)}, ["12,50"]),
    ("page.tex", ABSTRACT, {"r.json": json.dumps(ALL_RESULTS), "c.yaml": CARD}, ["92.7", "2\\times 10^{-5"]),
    ("page.tex", TABLE, {"r.json": json.dumps(LM_EVAL)}, ["0.777"]),
    ("page.ipynb", NOTEBOOK, {"r.json": json.dumps(ALL_RESULTS)}, ["97.1"]),
]
IDS = ["readme", "thread", "german-blog", "abstract", "latex-table", "notebook"]


def read(folder: Path, name: str, text: str, files: dict[str, str]) -> list[NumberFate]:
    (folder / name).write_text(text, encoding="utf-8")
    for file, held in files.items():
        (folder / file).write_text(held, encoding="utf-8")
    return list(lint_records(folder / name, [folder / file for file in files]).readings)


@pytest.mark.parametrize(("name", "text", "files", "unrecorded"), PAGES, ids=IDS)
def test_what_is_recorded_binds_and_what_is_not_accuses_nobody(
    name: str, text: str, files: dict[str, str], unrecorded: list[str], tmp_path: Path
) -> None:
    found = read(tmp_path, name, text, files)
    told = [(r.outcome, r.text, r.message) for r in found]
    assert [r.text for r in found if r.outcome == "absent"] == unrecorded, told
    assert not [r for r in found if r.outcome == "wrong"], told
    bound = [r for r in found if r.outcome == "bound"]
    assert len(bound) >= len(found) - len(unrecorded) - 1 and len(bound) >= 4, told


@pytest.mark.parametrize(("name", "text", "files", "unrecorded"), PAGES, ids=IDS)
def test_another_digit_does_not_pass(
    name: str, text: str, files: dict[str, str], unrecorded: list[str], tmp_path: Path
) -> None:
    good = [r for r in read(tmp_path, name, text, files) if r.outcome == "bound" and sum(map(str.isdigit, r.text)) >= 3]
    passed = []
    for r in good:
        digits = "".join(c for c in r.text if c.isdigit() or c in ".,").strip(".,")
        assert digits in text
        changed = digits[:-1] + str((int(digits[-1]) + 4) % 10)
        found = read(tmp_path, name, text.replace(digits, changed, 1), files)
        passed += [(r.text, changed) for x in found if changed in x.text and x.outcome == "bound"]
    assert good and passed == []


def test_a_tabular_keeps_its_lines(tmp_path: Path) -> None:
    (tmp_path / "t.tex").write_text(TABLE, encoding="utf-8")
    lines = prose_of(tmp_path / "t.tex").split("\n")
    assert len(lines) == len(TABLE.split("\n"))
    assert lines[4] == "|---|---|---|" and lines[7].startswith("| mmlu | 0.6042 | --")
    bare = TABLE.replace("\\midrule\n", "")
    (tmp_path / "t.tex").write_text(bare, encoding="utf-8")
    assert "|---|" not in prose_of(tmp_path / "t.tex"), "without a rule the first row is no header"

"""The core without torch: every command that needs no model runs where the training half is not installed.

`make test-light` runs the same commands in a fresh virtual environment and says its size and the seconds it took.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from veritune.commands.app import GROUP_HELP, commands
from veritune.demo import unpack
from veritune.extras import EXTRA_OF, NEEDS_TRAIN, TRAIN, missing

ABSENT = sorted({*TRAIN, "pyarrow", "polars", "pandas", "datasets", "httpx2"})
BLOCKED = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
from veritune.commands.main import main
main()
"""
"""The command line in a process in which the training half cannot be imported."""


def light(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, *arguments]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two score files, rows to audit and a write-up."""
    root = tmp_path_factory.mktemp("light")
    for name, period in (("a", 3), ("b", 2)):
        lines = [f'{{"id": "{i}", "score": {int(i % period > 0)}}}\n' for i in range(60)]
        (root / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    rows = [f'{{"prompt": "What is {i} plus {i} boats?", "completion": "That is {2 * i}."}}\n' for i in range(20)]
    (root / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "a.jsonl", "b.jsonl"], "may write"),
        (["power", "--items", "100", "--discordance", "0.1"], "800"),
        (["audit", "rows.jsonl"], "20 rows"),
        (["schema"], '"$schema"'),
        (["--version"], "."),
    ],
)
def test_a_light_command_runs_without_the_training_half(folder: Path, arguments: Sequence[str], words: str) -> None:
    done = light(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "command", "package"),
    [
        (["probe", "gradients", "--model", "m", "--data", "rows.jsonl"], "probe gradients", "torch"),
        (["tokens", "rows.jsonl", "--tokenizer", "t"], "tokens", "transformers"),
        (["audit", "rows.jsonl", "--tokenizer", "t"], "audit", "transformers"),
        (["doctor", "--selftest"], "doctor", "torch"),
    ],
)
def test_a_command_that_needs_the_training_half_names_it_in_one_line(
    folder: Path, arguments: Sequence[str], command: str, package: str
) -> None:
    done = light(*arguments, cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith(f"veritune: `veritune {command}` needs {package}, which is not installed here.")
    assert "pip install 'veritune[train]'" in done.stderr and done.stderr.count("\n") == 1


def test_doctor_says_which_half_is_there_and_what_each_command_needs(folder: Path) -> None:
    done = light("doctor", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "training half: not installed (torch, transformers" in done.stdout
    assert "pip install 'veritune[train]'" in done.stdout
    needs = done.stdout.split("need veritune[train]:")[1]
    assert "run" in needs and "probe gap" in needs


# ---------------------------------------------------------------- a finished study

MANY = f"""
import json, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
from typer.testing import CliRunner
from veritune.commands.app import app
for words in json.load(open(sys.argv[1])):
    done = CliRunner(env={{"COLUMNS": "120"}}).invoke(app, words)
    said = str(done.exception) if done.exit_code == 1 else done.output
    print(json.dumps([words, done.exit_code, said]))
"""
"""Many commands in one process in which the training half cannot be imported."""

FINISHED: tuple[tuple[str, int, str], ...] = (
    ("status study", 0, "contract frozen"),
    ("status study --cells", 0, "all_layer"),
    ("verify study", 0, "as they were sealed"),
    ("report study", 0, "report.html"),
    ("report study --probes", 0, "Source: `probes/"),
    ("verify study", 0, "as they were sealed"),
    ("lint post.md --study study", 2, "number."),
    ("gate study", 2, "release gate:"),
    ("gate study --controls", 0, "SFT format"),
    ("writeup draft study --out draft.md", 0, "wrote draft.md"),
    ("writeup fill draft.md --study study", 0, "draft.md"),
    ("writeup check draft.md --study study", 0, "draft.md"),
    ("writeup export table.claims --study study --as latex", 0, "toprule"),
    ("writeup export items.house_style --study study --as parquet --out s.parquet", 0, "wrote s.parquet"),
    ("lint draft.md --study study", 0, "clean"),
    ("results add study --in index", 0, "R1"),
    ("results note seen --in index --on R1", 0, ""),
    ("results show index", 0, "R1"),
    ("compare t=logs/all_layer_0.jsonl b=logs/base.jsonl", 0, "may write"),
    ("audit study/notes.jsonl --eval exam.jsonl", 2, "gate FAILED"),
    ("lineage study", 0, ""),
    ("power t=logs/all_layer_0.jsonl b=logs/base.jsonl", 0, ""),
    ("recipe nothere.yaml --out mixed.jsonl", 1, "nothere.yaml"),
    ("review study/notes.jsonl nothere.jsonl --out v2.jsonl", 1, "nothere.jsonl"),
    ("init study/notes.jsonl --out new", 0, "wrote new"),
    ("select --log nothere", 1, "nothere"),
    ("probe calibration --help", 0, "Usage"),
    ("schema", 0, "$schema"),
    ("history --registry nothere", 1, "there is no registry"),
    ("prune --registry nothere --list", 1, "there is no registry"),
    ("promote nothere --to staging --registry r", 1, "nothere"),
    ("push nothere --to nowhere", 1, "neither hf:// nor mlflow://"),
    ("pull --registry nothere --out back", 1, "there is no registry"),
    ("view --help", 0, "Usage"),
    ("doctor", 0, "training half: not installed"),
    ("demo again", 0, "veritune status study"),
)
"""A line for every command that needs no model: its exit status, and what it says."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("finished") / "demo").folder


def test_every_command_without_a_model_works_on_a_finished_study(finished: Path) -> None:
    asked = [words.split() for words, _, _ in FINISHED]
    (finished / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    command = [sys.executable, "-c", MANY, "asked.json"]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [
        (words, code, said[-600:])
        for (words, code, said), (_, wanted, word) in zip(answers, FINISHED, strict=True)
        if code != wanted or word not in said or "is not installed here" in said
    ]
    assert wrong == []


def test_the_list_names_every_command_that_needs_no_model() -> None:
    tried = {" ".join(words.split()[: 2 if words.split()[0] in GROUP_HELP else 1]) for words, _, _ in FINISHED}
    assert tried == set(commands()) - set(NEEDS_TRAIN)


def same(found: object, expected: object, where: str = "") -> None:
    """Equal records; floats to 1e-9, since the last bits of a sum are those of the processor's vector unit."""
    if isinstance(expected, dict) and isinstance(found, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list) and isinstance(found, list):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected)):
            same(a, b, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), where
    else:
        assert found == expected, where


def test_claims_are_decided_again_to_the_same_verdicts_without_the_training_half(
    finished: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(finished / "study", tmp_path / "study")
    before = json.loads((root / "verdict.json").read_text(encoding="utf-8"))
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}));"
        "from veritune import contract; from veritune.config.load import load_study; from veritune.store import Store;"
        "from veritune.pipeline.decide import decide; from veritune.records import StudyVerdicts;"
        "from pathlib import Path; store = Store(Path('study'));"
        "runs = StudyVerdicts.load(store.verdict_file).runs; store.verdict_file.unlink();"
        "decide(store, load_study(store.study_file), runs, contract.read(store))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    same(json.loads((root / "verdict.json").read_text(encoding="utf-8")), before)


def test_what_needs_the_training_half_is_a_command() -> None:
    assert set(NEEDS_TRAIN) < set(commands())


def test_only_a_missing_package_of_an_extra_becomes_a_line() -> None:
    assert missing(ModuleNotFoundError("x", name="somebody_elses")) is None
    assert missing(ValueError("x")) is None
    error = missing(ModuleNotFoundError("x", name="httpx2.client"), "serve-parity")
    assert error is not None and "pip install 'veritune[serving]'" in str(error)


def test_every_extra_that_a_message_names_is_declared() -> None:
    import tomllib

    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(EXTRA_OF.values()) <= set(declared["project"]["optional-dependencies"])

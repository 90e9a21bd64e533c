"""What tests share: a tiny chat model made in-process, a small study around it, the command line, the real model.

The tiny model is a random two-layer Llama with a byte-level BPE trained on a few sentences and a ChatML template, so
that complete studies run in seconds and without a download. Tests of the real model take the `smollm2` fixture.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import yaml
from hypothesis import settings
from tally import Tally

settings.register_profile("the same examples on every run", derandomize=True, database=None)
settings.load_profile(os.environ.get("VERITUNE_HYPOTHESIS", "the same examples on every run"))

REPO = Path(__file__).resolve().parent.parent
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = re.findall(
    r"\w+",
    "harbor gate lamp ferry crane boat quay rope net tide storm bridge bell buoy chart winch deck mast sail keel oar"
    " pump tank hose drum crate barrel anchor flag signal radio lens tower wall step door window roof floor ladder"
    " bench table chair clock stove kettle cup plate knife spoon bowl bread salt honey apple pear plum onion carrot"
    " potato barley wheat rye oats goat sheep horse mule donkey raven heron gull swan otter badger hare",
)


FIRST = (
    *("tests/e2e/", "tests/browser/", "tests/pipeline/", "tests/report/test_page.py", "tests/test_bad_input.py"),
    *("tests/train/", "tests/test_no_traceback.py", "tests/probe/", "tests/fuzz/", "tests/view/", "tests/release/"),
    *("tests/test_house.py", "tests/decide/test_claims.py", "tests/writeup/", "tests/docs/"),
)
"""Where tests take long. They are given out first, so that the workers of `make test` end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((i for i, path in enumerate(FIRST) if item.nodeid.startswith(path)), len(FIRST)))


@pytest.fixture(autouse=True)
def own_list_of_retired_data(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the list that a user's retirements are kept in."""
    monkeypatch.setenv("VERITUNE_RETIRED", str(tmp_path_factory.getbasetemp() / f"{uuid.uuid4().hex}.jsonl"))


# ---------------------------------------------------------------- models


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama (hidden 64) and a trained tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    make_tiny_model(folder)
    return folder


def make_tiny_model(folder: Path, *, chat_template: str | None = CHATML, seed: int = 0, context: int = 256) -> None:
    """Save a tiny model and tokenizer into `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([" ".join(WORDS), "user assistant system Subject: may likely ? . ,"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = chat_template
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=2,
        pad_token_id=2,
        bos_token_id=1,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model's folder; skips where the package that carries it is missing."""
    from veritune.errors import MachineError
    from veritune.train.models import smollm2_path

    try:
        return smollm2_path()
    except MachineError as exc:
        pytest.skip(f"needs SmolLM2-135M-Instruct: {exc}")


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The folder with GSM8K's train.jsonl and test.jsonl; skips where it is not there."""
    folder = Path(os.environ.get("VERITUNE_GSM8K") or REPO.parent / "shared" / "data" / "gsm8k")
    if not (folder / "test.jsonl").is_file():
        pytest.skip(f"needs GSM8K: no test.jsonl in {folder}; set VERITUNE_GSM8K")
    return folder


# ---------------------------------------------------------------- studies


def make_rows(families: int = 13, wordings: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of `families` originals in some wordings each; the answers follow a small house style."""
    rng = random.Random(seed)
    rows = []
    for f in range(families):
        words = rng.sample(WORDS, 6)
        for k in range(wordings):
            told = rng.sample(words, 4)
            rows.append(
                {
                    "id": f"f{f:02d}-{k}",
                    "original": f"f{f:02d}",
                    "thing": words[0],
                    "sure": "low" if f % 2 else "high",
                    "messages": [
                        {"role": "user", "content": f"{words[0]} {' '.join(told)} {k}"},
                        {"role": "assistant", "content": f"{words[0]} {told[0]}. {words[1]} {words[2]}?"},
                    ],
                }
            )
    return rows


def study_settings(model: Path) -> dict[str, Any]:
    """A study that finishes in seconds on the tiny model: two conditions, two seeds, three claims."""
    return {
        "name": "tiny",
        "question": "Does the tiny model learn the tiny style?",
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"path": "rows.jsonl", "id_field": "id", "family_field": "original"},
        "split": {"seed": 1, "stranger": 0.3, "validation": 0.12, "sibling": 0.25},
        "train": {
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": "5e-3",
            "eval_steps": 4,
            "max_length": 128,
        },
        "conditions": {
            "attention_only": {"method": "lora", "target_modules": "attention", "r": 4, "lora_dropout": 0.1},
            "all_layer": {"method": "lora", "target_modules": "all-linear", "r": 4, "lora_dropout": 0.1},
        },
        "seeds": [0, 1],
        "evals": {
            "style": {
                "max_new_tokens": 12,
                "batch_size": 8,
                "rules": [
                    {"name": "thing", "contains": "{thing}"},
                    {"name": "asks", "pattern": r"\?"},
                    {"name": "letters", "pattern": "[a-z]{3}"},
                    {"name": "no_e", "absent": ["e"]},
                ],
            }
        },
        "claims": [
            {"name": "learns", "kind": "improves", "condition": "all_layer"},
            {"name": "carries", "kind": "generalises", "condition": "all_layer", "share": 0.5},
            {"name": "differ", "kind": "differ", "condition": "attention_only", "against": "all_layer", "margin": 0.05},
        ],
    }


@dataclass(frozen=True)
class TinyStudy:
    """A study folder under test."""

    root: Path

    def settings(self) -> dict[str, Any]:
        return yaml.safe_load((self.root / "study.yaml").read_text(encoding="utf-8"))

    def write(self, settings: Mapping[str, Any]) -> None:
        (self.root / "study.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")

    def change(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Edit study.yaml in place."""
        settings = self.settings()
        change(settings)
        self.write(settings)

    def write_rows(self, rows: Sequence[Any]) -> None:
        text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
        (self.root / "rows.jsonl").write_text(text, encoding="utf-8")


def make_study(root: Path, model: Path) -> TinyStudy:
    """Write study.yaml and rows.jsonl into `root`."""
    root.mkdir(parents=True, exist_ok=True)
    study = TinyStudy(root)
    study.write(study_settings(model))
    study.write_rows(make_rows())
    return study


@pytest.fixture(scope="session")
def new_study() -> Callable[[Path, Path], TinyStudy]:
    """`make_study`, for fixtures of a wider scope than `study`."""
    return make_study


@pytest.fixture
def study(tmp_path: Path, tiny_model: Path) -> TinyStudy:
    """A fresh study folder on the tiny model; nothing has run."""
    return make_study(tmp_path / "study", tiny_model)


@pytest.fixture
def context(study: Any, tiny_model: Path) -> Any:
    """The tiny study prepared as cells share it, nothing trained."""
    from veritune.config.load import parse_study
    from veritune.data.prepare import prepare
    from veritune.progress import Progress
    from veritune.store import Store
    from veritune.train.cells import Context
    from veritune.train.models import ModelRef, load_tokenizer

    parsed, store = parse_study(study.settings()), Store(study.root)
    ref = ModelRef("tiny", tiny_model, "float32")
    tokenizer = load_tokenizer(ref)
    return Context(store, parsed, ref, tokenizer, prepare(store, parsed, tokenizer), Progress(silent=True))


# ---------------------------------------------------------------- the command line


def cli_environment() -> dict[str, str]:
    """One thread, no hub, no colours: what every child process gets."""
    fixed = {"VERITUNE_RETIRED": os.environ.get("VERITUNE_RETIRED", f"{os.devnull}-no-list")}  # never the user's own
    fixed |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "NO_COLOR": "1"}
    return {**os.environ, **fixed, "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "100", "TERM": "dumb"}


def run_cli(*args: object, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`veritune ARGS` in a process of its own."""
    command = [sys.executable, "-m", "veritune", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=cli_environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


@dataclass(frozen=True)
class Result:
    """What a forked command line came to. `rc` is negative for a signal."""

    rc: int
    out: str
    err: str


class Forks:
    """Runs command lines in children forked from one warm process, which has imported torch and friends once.

    Each child runs `veritune.commands.main.main()` from its start, like a fresh process, without paying ten seconds of
    imports.
    `kill_at` is `EVENT REGEX`, optionally `#N`: the child kills itself with SIGKILL just before the N-th file operation
    (a Python audit event: open, os.rename, os.mkdir, shutil.rmtree ...) whose arguments match. `fault` makes the N-th
    operation that changes files fail, see tests/crash/shim.py.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.tally = Tally()
        script = Path(__file__).parent / "e2e" / "forks.py"
        self.server = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**cli_environment(), "VERITUNE_RETIRED": str(folder / "retired.jsonl")},
            text=True,
        )

    def start(
        self,
        *args: object,
        kill_at: str | None = None,
        trace: Path | None = None,
        fault: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Start a command line; hand what comes back to `wait`."""
        self.count += 1
        base = self.folder / f"{self.count:03d}"
        order = {"argv": [str(a) for a in args], "out": f"{base}.out", "err": f"{base}.err"}
        order |= {"kill_at": kill_at, "trace": str(trace) if trace else None, "fault": dict(fault) if fault else None}
        return {**order, **self._ask({"do": "start", **order})}

    def wait(self, started: Mapping[str, Any]) -> Result:
        rc = self._ask({"do": "wait", "pid": started["pid"]})["rc"]
        return Result(rc, Path(started["out"]).read_text("utf-8"), Path(started["err"]).read_text("utf-8"))

    def __call__(self, *args: object, **how: Any) -> Result:
        return self.wait(self.start(*args, **how))

    def close(self) -> None:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(timeout=30)
        self.server.stdout.close()

    def _ask(self, order: Mapping[str, Any]) -> Any:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Forks]:
    """The warm command line; see `Forks`."""
    server = Forks(tmp_path_factory.mktemp("forks"))
    pytestconfig.stash[TALLY] = server.tally
    yield server
    server.close()


TALLY = pytest.StashKey[Tally]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how many faults were tried and survived, where a test injected some."""
    lines = config.stash.get(TALLY, Tally()).lines()
    if lines:
        terminalreporter.section("faults injected by command")
        terminalreporter.write("\n".join([*lines, ""]))


@dataclass(frozen=True)
class Finished:
    """The tiny study, run once from start to end through the command line in a process of its own."""

    study: TinyStudy
    run: subprocess.CompletedProcess[str]

    @property
    def root(self) -> Path:
        return self.study.root


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Finished:
    """A finished study. Tests read it; a test that changes it works on a copy (`finished_copy`)."""
    study = make_study(tmp_path_factory.mktemp("finished") / "study", tiny_model)
    run = run_cli("run", study.root)
    assert run.returncode in (0, 2), run.stderr
    return Finished(study, run)


@pytest.fixture
def finished_copy(finished: Finished, tmp_path: Path) -> TinyStudy:
    """A copy of the finished study that a test may damage."""
    import shutil

    shutil.copytree(finished.root, tmp_path / "copy")
    return TinyStudy(tmp_path / "copy")

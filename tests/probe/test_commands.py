"""The probes' commands from end to end on a tiny model with an adapter that knows its seen rows by heart."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from veritune.commands.app import app

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> \u202e \U0001f980 é"
WORDS = re.findall(
    r"\w+",
    "harbor gate lamp ferry crane boat quay rope net tide storm bridge bell buoy chart winch deck mast sail keel",
)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def data(folder: Path) -> dict[str, Path]:
    """Ten originals in three wordings: two trained on, one held out; ten others held out whole."""
    draw = random.Random(1)
    zones: dict[str, list[dict[str, Any]]] = {"seen": [], "sibling": [], "stranger": []}
    for f in range(20):
        answer = " ".join(draw.sample(WORDS, 9))
        for k in range(3):
            zone = "stranger" if f >= 10 else "sibling" if k == 2 else "seen"
            ask = f"{' '.join(draw.sample(WORDS, 5))} {f} {EVIL if f in (0, 10) else ''}"
            messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": f"{answer} {k}"}]
            zones[zone].append({"id": f"r{f}-{k}", "origin": f"o{f}", "messages": messages})
    return {zone: write(folder / f"{zone}.jsonl", rows) for zone, rows in zones.items()}


def train_adapter(model: Path, rows: Path, folder: Path, *, steps: int = 40, **config: Any) -> Path:
    """A LoRA adapter trained on the rows by a plain loop, saved with PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model

    from veritune.data.load import load_rows
    from veritune.data.render import render_rows
    from veritune.probe.batches import collate, mean_losses
    from veritune.probe.study import subject
    from veritune.train.models import quiet_transformers

    found = subject(str(model), dtype="float32")
    rendered, _ = render_rows(load_rows(rows).rows, found.renderer)
    torch.manual_seed(0)
    options = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", **config}
    with quiet_transformers():
        tuned: Any = get_peft_model(found.base(), LoraConfig(task_type="CAUSAL_LM", **options))
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    batch = collate(rendered)
    for _ in range(steps):
        optimizer.zero_grad()
        mean_losses(tuned, batch).mean().backward()
        optimizer.step()
    tuned.save_pretrained(folder)
    return folder


def louder(model: Path, folder: Path) -> Path:
    """The model with a head 25 times as large: a frozen random head is too small for any token to become likely."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tuned = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        tuned.get_output_embeddings().weight.mul_(25)
    tuned.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("commands")
    files = data(folder)
    model = louder(tiny_model, folder / "model")
    return {**files, "model": model, "adapter": train_adapter(model, files["seen"], folder / "adapter")}


@pytest.fixture
def veritune(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*args: object) -> str:
        app([str(a) for a in args], standalone_mode=False)
        return capsys.readouterr().out

    return call


def zones(made: dict[str, Path], *names: str) -> list[object]:
    options: list[object] = ["--model", made["model"], "--adapter", made["adapter"], "--family-field", "origin"]
    for name in names:
        options += [f"--{name}", made[name]]
    return options


def test_recall_command_finds_what_is_known_by_heart(made: dict[str, Path], veritune: Any, tmp_path: Path) -> None:
    out = tmp_path / "recall.json"
    said = veritune("probe", "gap", *zones(made, "seen", "sibling", "stranger"), "--measure", "recall", "--out", out)
    assert "chance 50%" in said and said.count("Limits:") == 2 and said.count("What would change it:") == 2
    record = json.loads(out.read_text("utf-8"))
    seen = record["forced_choice"]["zones"]["seen"]["stranger"]
    assert seen["trained"]["value"] > seen["base"]["value"] + 0.2
    assert record["verbatim"]["zones"]["seen"]["beyond_base"]["value"] > 0.3


class Text(HTMLParser):
    """What a reader sees, and which elements there are."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "article":
            self.rows.append("")
        assert not any(name.startswith("on") or name in ("src", "style") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        if self.rows:
            self.rows[-1] += data


def test_token_page_holds_every_token_and_runs_nothing(made: dict[str, Path], veritune: Any, tmp_path: Path) -> None:
    page = tmp_path / "tokens.html"
    said = veritune("probe", "gap", *zones(made, "seen", "stranger"), "--measure", "tokens", "--page", page)
    assert "The loss" in said
    text = page.read_text("utf-8")
    parsed = Text()
    parsed.feed(text)
    assert not {"script", "img", "iframe", "link"} & set(parsed.tags)
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert len(parsed.rows) == 20 + 30
    evil = next(r for r in parsed.rows if r.startswith("seen/r0-0"))
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in evil and "‹U+202E›" in evil
    assert "\U0001f980 é" in evil, "characters of several tokens stay whole"
    assert re.search(r'<span class="f[1-5]" title="\d+\.\d\d before, \d+\.\d\d after, \w+">', text)
    assert re.search(r'class="r[1-5]"', text), "strangers' tokens got worse somewhere"


def test_token_pieces_join_to_the_text(made: dict[str, Path]) -> None:
    from veritune.probe.study import subject
    from veritune.probe.tokens import token_pieces

    tokenizer = subject(str(made["model"])).renderer.tokenizer
    for text in (EVIL, "two  spaces\n\nand \U0001f980\U0001f980 lines\n", "\u4f60\u597d, world"):
        ids = tokenizer(text)["input_ids"]
        pieces = token_pieces(tokenizer, ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == tokenizer.decode(ids)


# ---------------------------------------------------------------- forgetting and calibration


def test_forgetting_command_says_loss_and_score(made: dict[str, Path], veritune: Any) -> None:
    options = ["--extract", r"([a-z]+)", "--expected", "origin", "--max-new-tokens", 4, "--margin", 0.1]
    said = veritune("probe", "forgetting", *zones(made), "--data", made["stranger"], *options)
    assert "loss: It kept what this set asks, within 0.1" in said
    assert "A  trained" in said and "B  base" in said and "decision" in said
    record = json.loads(veritune("probe", "forgetting", *zones(made), "--data", made["seen"], "--json"))
    assert record["loss"]["verdict"] == "keeps" and record["loss"]["rise"]["value"] < 0
    assert set(record) == {"loss"}


def test_calibration_of_choices_and_answers(made: dict[str, Path], veritune: Any, tmp_path: Path) -> None:
    draw = random.Random(2)
    asked = []
    for i in range(12):
        options = draw.sample(WORDS, 3)
        asked.append({"question": f"{i} {draw.choice(WORDS)}?", "choices": options, "answer": i % 3, "case": f"c{i}"})
    path = write(tmp_path / "choices.jsonl", asked)
    figure = tmp_path / "reliability.svg"
    pair = ["--model", made["model"], "--adapter", made["adapter"]]
    said = veritune("probe", "calibration", *pair, "--data", path, "--family-field", "case", "--plot", figure)
    assert "base: It is" in said and "trained: It is" in said and "change in Brier score" in said
    assert figure.read_text("utf-8").startswith("<?xml")
    record = json.loads(
        veritune(
            "probe", "calibration", *zones(made), "--data", made["seen"], "--extract", "([a-z]+)",
            "--expected", "origin", "--max-new-tokens", 32, "--json",
        )
    )  # fmt: skip
    assert record["trained"]["accuracy"]["value"] == 0 and record["trained"]["overconfidence"]["value"] > 0.1
    assert record["trained"]["n"] + record["trained"]["n_missing"] == 20


def test_calibration_of_lm_eval_samples(veritune: Any) -> None:
    folder = Path(__file__).parent.parent / "evaluate" / "scores"
    (file,) = folder.glob("samples_sums_mc*")
    record = json.loads(veritune("probe", "calibration", "--data", file, "--json"))
    assert record["model"]["kind"] == "calibration" and 0 <= record["multiclass_brier"]["value"] <= 2

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

from veritune.cli import app

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


def train_adapter(model: Path, rows: Path, folder: Path, *, steps: int = 60, **config: Any) -> Path:
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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("commands")
    files = data(folder)
    return {**files, "model": tiny_model, "adapter": train_adapter(tiny_model, files["seen"], folder / "adapter")}


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
    said = veritune("probe", "recall", *zones(made, "seen", "sibling", "stranger"), "--length", 8, "--out", out)
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
    said = veritune("probe", "tokens", *zones(made, "seen", "stranger"), "--page", page, "--page-rows", 25)
    assert "The loss" in said
    text = page.read_text("utf-8")
    parsed = Text()
    parsed.feed(text)
    assert not {"script", "img", "iframe", "link"} & set(parsed.tags)
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert len(parsed.rows) == 20 + 25
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

"""Every probe command on what does not belong together or holds nothing: named in one message, or read rightly; never a
traceback, never a number of something else. A command that does speak ends in three sentences, on screen and file."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from veritune.commands.app import app
from veritune.errors import VerituneError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
WORDS = re.findall(
    r"\w+",
    "harbor gate lamp ferry crane boat quay rope net tide storm bridge bell buoy chart winch deck mast sail keel",
)


# ---------------------------------------------------------------- what is probed


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def rows_of(zone: str, families: range, **changes: Any) -> list[dict[str, Any]]:
    draw, made = random.Random(zone), []
    for f in families:
        answer = " ".join(draw.sample(WORDS, 9))
        for k in range(2):
            ask = {"role": "user", "content": f"{' '.join(draw.sample(WORDS, 4))} {f}"}
            told = {"role": "assistant", "content": f"{answer} {k}"}
            made.append({"id": f"{zone}{f}-{k}", "origin": f"o{f}", "messages": [ask, told], **changes})
    return made


def model_like(model: Path, folder: Path, change: Callable[[Any], None] | None = None, **config: Any) -> Path:
    """A model with another config, freshly drawn, or with changed weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if config:
        wanted = AutoConfig.from_pretrained(model)
        for key, value in config.items():
            setattr(wanted, key, value)
        torch.manual_seed(3)
        made = AutoModelForCausalLM.from_config(wanted)
    else:
        made = AutoModelForCausalLM.from_pretrained(model)
    if change is not None:
        with torch.no_grad():
            change(made)
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def adapter_on(model: Path, folder: Path, size: float = 0.02, *, names_base: bool = True, **options: Any) -> Path:
    """An adapter with random weights; `size` 0 leaves everything as the base has it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(**settings))
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                p.normal_(0, 1).mul_(size)
            if "modules_to_save" in name and p.requires_grad:
                p.add_(torch.randn_like(p) * size)
    made.save_pretrained(folder)
    if not names_base:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "a/b"}), "utf-8")
    return folder


def gptq(model: Path, folder: Path) -> Path:
    """What a GPTQ checkpoint looks like: packed integers and scales in place of the projections."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    packed = {}
    for name, w in load_file(model / "model.safetensors").items():
        if "proj" in name:
            packed[name.replace("weight", "qweight")] = torch.zeros(w.shape[1] // 8, w.shape[0], dtype=torch.int32)
            packed[name.replace("weight", "scales")] = torch.ones(1, w.shape[0])
        else:
            packed[name] = w
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def nan_in(part: str) -> Callable[[Any], None]:
    def spoil(model: Any) -> None:
        next(p for n, p in model.named_parameters() if part in n)[0] = float("nan")

    return spoil


def nan_adapter(source: Path, folder: Path) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    next(w for n, w in weights.items() if "lora_B" in n)[0, 0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def merged(model: Path, adapter: Path, folder: Path) -> Path:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    whole.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bad")
    m = {"base": tiny_model}
    m["adapter"] = adapter_on(tiny_model, root / "adapter")
    m["merged"] = merged(tiny_model, m["adapter"], root / "merged")
    other = model_like(tiny_model, root / "other", attention_dropout=0.0)
    m["a_other"] = adapter_on(other, root / "a_other")
    wider = model_like(tiny_model, root / "wider", hidden_size=96)
    m["a_wider"] = adapter_on(wider, root / "a_wider", names_base=False)
    m["m_wider"] = wider
    m["deeper"] = model_like(tiny_model, root / "deeper", num_hidden_layers=3)
    m["a_deeper"] = adapter_on(m["deeper"], root / "a_deeper", names_base=False)
    two = ["q_proj", "v_proj"]
    m["a_shallower"] = adapter_on(tiny_model, root / "a_shallower", names_base=False, target_modules=two)
    m["gptq"] = gptq(tiny_model, root / "gptq")
    m["a_nan"] = nan_adapter(m["adapter"], root / "a_nan")
    m["nan"] = model_like(tiny_model, root / "nan", nan_in("down_proj"))
    m["a_on_nan"] = adapter_on(tiny_model, root / "a_on_nan", names_base=False)
    m["a_zero"] = adapter_on(tiny_model, root / "a_zero", size=0.0)
    m["tied"] = model_like(tiny_model, root / "tied", tie_word_embeddings=True)
    m["a_tied"] = adapter_on(m["tied"], root / "a_tied", target_modules=["q_proj", "v_proj", "embed_tokens"])
    m["a_saved"] = adapter_on(tiny_model, root / "a_saved", modules_to_save=["lm_head", "embed_tokens"])
    m["a_saved_tied"] = adapter_on(m["tied"], root / "a_saved_tied", modules_to_save=["lm_head"])
    draw = random.Random(2)
    asked = [
        {"question": f"{i} {draw.choice(WORDS)}?", "choices": draw.sample(WORDS, 3), "answer": i % 3, "origin": f"c{i}"}
        for i in range(10)
    ]
    for name, changes in (("", {}), ("one_", {"origin": "one"}), ("no_", {"origin": None})):
        m[f"{name}seen"] = write(root / f"{name}seen.jsonl", rows_of("s", range(10), **changes))
        there = changes | ({"origin": "two"} if name == "one_" else {})
        m[f"{name}stranger"] = write(root / f"{name}stranger.jsonl", rows_of("t", range(10, 20), **there))
        m[f"{name}choices"] = write(root / f"{name}choices.jsonl", [a | changes for a in asked])
    (root / "p.yaml").write_text("\n".join(f"p{i}: You are {w}." for i, w in enumerate(WORDS[:6])), "utf-8")
    (root / "q.txt").write_text("What is rain?\nWho are you?\n", "utf-8")
    return m | {"personas": root / "p.yaml", "asked": root / "q.txt"}


def command_of(name: str, made: dict[str, Path], base: str, trained: str, data: str) -> list[object]:
    pair: list[object] = ["--model", made[base], "--adapter", made[trained]]
    by: list[object] = ["--family-field", "origin"]
    zones = [*pair, "--seen", made[f"{data}seen"], "--stranger", made[f"{data}stranger"], *by]
    commands: dict[str, list[object]] = {
        "gradients": ["probe", "gradients", *pair, "--data", made[f"{data}seen"], *by],
        "gap": ["probe", "gap", *zones],
        "tokens": ["probe", "gap", *zones, "--measure", "tokens"],
        "weights": ["probe", "weights", made[trained], "--base", made[base]],
        "recall": ["probe", "gap", *zones, "--measure", "recall"],
        "forgetting": ["probe", "forgetting", *pair, "--data", made[f"{data}stranger"], *by],
        "geometry": ["probe", "geometry", *pair, "--personas", made["personas"], "--questions", made["asked"]],
        "families": ["probe", "gradients", "--model", made[base], "--data", made[f"{data}seen"], *by],
        "choices": ["probe", "calibration", *pair, "--data", made[f"{data}choices"], *by],
        "answers": ["probe", "calibration", *pair, "--data", made[f"{data}seen"], *by],
    }
    more: dict[str, list[object]] = {"answers": ["--extract", r"(?s)(.+)", "--expected", "id", "--max-new-tokens", 4]}
    return commands[name] + more.get(name, [])


# ---------------------------------------------------------------- what is said of it

NO = "refused: "
OTHER = NO + "was trained on .*other, but .* is a different model: .* holds other values. Name the base"
QUANTISED = NO + r"gptq is quantised \(gptq\) and .* not quantised"
CANNOT = NO + r"gptq is quantised \(gptq\) and cannot be loaded here"
PACKED = NO + r"the weights are quantised \("
UNNAMED = NO + "no family name in column 'origin'"
SAME = "nothing was trained, or the two are one model"
Table = dict[str, tuple[str, str, str, dict[str, str]]]
TRAINED = ("gradients", "gap", "tokens", "weights", "recall", "forgetting", "geometry", "choices", "answers")
ON_ROWS = ("gradients", "gap", "tokens", "recall", "forgetting", "families", "choices", "answers")

CASES: Table = {
    "an adapter of another base": ("base", "a_other", "", dict.fromkeys(TRAINED, OTHER)),
    "of a wider one that is not here": (
        "base", "a_wider", "",
        dict.fromkeys(TRAINED, NO + r"does not fit .*lora_A.* has shape \[4, 96\] .*, but the base needs \[4, 64\]")
        | {"weights": NO + r"the adapter fits a weight of shape \[64, 96\], but the base has \[64, 64\]"},
    ),
    "of a deeper one that is not here": (
        "base", "a_deeper", "",
        dict.fromkeys(TRAINED, NO + r"holds weights for modules that the base lacks \(14, first .*layers\.2")
        | {"weights": NO + ".*14 of 42 tensors fit no weight of this base, first model.layers.2"},
    ),
    "of a shallower one that is not here": (
        "deeper", "a_shallower", "",
        dict.fromkeys(TRAINED, NO + r"holds no weights for modules of it \(4, first .*layers\.2")
        | {"weights": "The weights moved by"},
    ),
    "a full checkpoint": (
        "base", "merged", "",
        {"gradients": "rows act like", "gap": "cannot be told", "tokens": "The loss", "weights": "% of the norm",
         "recall": "Own endings", "forgetting": "It kept", "geometry": "In", "choices": "trained: It is",
         "answers": "trained: It is"},
    ),
    "a checkpoint of another shape": (
        "base", "m_wider", "",
        dict.fromkeys(TRAINED, NO + "was not trained from .* has shape")
        | {"weights": NO + "shape .* before, .* after"},
    ),
    "a quantised checkpoint": ("base", "gptq", "", dict.fromkeys(TRAINED, QUANTISED) | {"weights": PACKED}),
    "a quantised base": (
        "gptq", "a_shallower", "", dict.fromkeys((*TRAINED, "families"), CANNOT) | {"weights": PACKED},
    ),
    "families without names": ("base", "adapter", "no_", dict.fromkeys(ON_ROWS, UNNAMED)),
    "one family": (
        "base", "adapter", "one_",
        {"gradients": "cannot be said: one family only", "gap": "cannot be told: 1 family in 'seen' and 1 family",
         "tokens": "too few families|did not fall", "recall": "too little to say",
         "forgetting": r"cannot be told \(no interval: 1 family", "families": "fall into 1 family",
         "choices": "too few families to say", "answers": "too few families to say"},
    ),
    "NaN in the adapter": (
        "base", "a_nan", "",
        {"gradients": NO + "expected a finite loss, found nan", "gap": NO + "and nan after; 40 rows are not finite",
         "tokens": NO + "the NLLs 'after' are not finite", "weights": NO + "down_proj: the adapter holds NaN",
         "recall": NO + "the scores 'after' are not one finite number", "forgetting": NO + "and nan after",
         "geometry": NO + "hidden states are not finite", "choices": NO + "question 1: expected finite",
         "answers": NO + "answer 0: expected a finite log-probability, found nan"},
    ),
    "NaN in the base": (
        "nan", "a_on_nan", "",
        {"gradients": NO + "expected a finite loss, found nan", "gap": NO + "nan before and nan after",
         "tokens": NO + "the NLLs 'before' are not finite", "weights": NO + "of the base: the weights hold NaN",
         "recall": NO + "the scores 'before' are not one finite number", "forgetting": NO + "nan before",
         "geometry": NO + "hidden states are not finite", "families": NO + "expected a finite loss, found nan",
         "choices": NO + "question 1: expected finite",
         "answers": NO + "answer 0: expected a finite log-probability, found nan"},
    ),
    "nothing that trained": (
        "base", "a_zero", "",
        {"gradients": "rows act like", "gap": SAME, "tokens": SAME, "weights": "did not move at all",
         "recall": "too little to say", "forgetting": SAME, "geometry": SAME, "choices": "before: 0.0000",
         "answers": "before: 0.0000"},
    ),
    "tied embeddings, adapted": (
        "tied", "a_tied", "",
        {"gradients": "those of a probe adapter on every linear were read", "gap": "Whether", "tokens": "The loss",
         "weights": "embed_tokens|_proj", "recall": "Own endings", "forgetting": "changed by", "geometry": "In",
         "choices": "trained: It is", "answers": NO + "of 20 rows 0 lack a confidence, 20 an outcome"},
    ),
    "modules saved in full": (
        "base", "a_saved", "",
        {"gradients": "those of a probe adapter on every linear were read", "gap": "Whether", "tokens": "The loss",
         "weights": r"the most in (lm_head|model.embed_tokens)", "recall": "Own endings", "forgetting": "changed by",
         "geometry": "In", "choices": "trained: It is", "answers": "trained: It is"},
    ),
    "a tied head saved in full": ("tied", "a_saved_tied", "", {"weights": r"the most in lm_head", "gap": "Whether"}),
}  # fmt: skip
MATRIX = [(case, name) for case, (_, _, _, said) in CASES.items() for name in said]


@pytest.mark.parametrize(("case", "name"), MATRIX, ids=[f"{c} - {n}" for c, n in MATRIX])
def test_it_is_named_or_read_rightly(
    case: str, name: str, made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, trained, data, said = CASES[case]
    out = tmp_path / "record.json"
    words = [*command_of(name, made, base, trained, data), "--out", out]
    words += ["--families", tmp_path / "to.jsonl"] * (name == "families")
    try:
        app([str(w) for w in words], standalone_mode=False)
        text = capsys.readouterr().out
    except VerituneError as exc:
        assert said[name].startswith(NO), f"refused: {exc}"
        assert re.search(said[name].removeprefix(NO), str(exc)), str(exc)
        assert exc.fix and "\n" not in str(exc) and len(str(exc)) < 1200 and not out.exists()
        return
    assert not said[name].startswith(NO), f"not refused: {text}"
    assert re.search(said[name], text), text
    assert not re.search(r"\bnan\b", text) and "NaN" not in out.read_text("utf-8")
    found = readings(json.loads(out.read_text("utf-8")))
    assert found and text.count("Limits: ") == text.count("What would change it: ") == len(found)


def readings(record: Any) -> list[Any]:
    """The records among what was written; each has its three sentences."""
    if isinstance(record, list):
        return [r for inner in record for r in readings(inner)]
    if not isinstance(record, dict):
        return []
    if "reading" not in record:
        return [r for inner in record.values() for r in readings(inner)]
    assert all(record[k].strip().endswith(".") for k in ("reading", "limits", "would_change")), record
    return [record]


# ---------------------------------------------------------------- the numbers are those of the right model


def loss_by_hand(model: Any, rendered: Any) -> float:
    """Mean over rows of each row's mean NLL, by transformers' own loss."""
    losses = []
    for row in rendered:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=labels).loss))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("base", "trained"), [("tied", "a_tied"), ("base", "a_saved"), ("tied", "a_saved_tied")])
def test_losses_are_those_of_the_model_that_peft_loads(
    base: str, trained: str, made: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from veritune.data.load import load_rows
    from veritune.data.render import render_rows
    from veritune.probe.study import subject

    app([*map(str, command_of("forgetting", made, base, trained, "")), "--json"], standalone_mode=False)
    record = json.loads(capsys.readouterr().out)["loss"]
    plain = AutoModelForCausalLM.from_pretrained(made[base], dtype=torch.bfloat16)
    rendered, _ = render_rows(load_rows(made["stranger"]).rows, subject(str(made[base])).renderer)
    assert record["before"]["value"] == pytest.approx(loss_by_hand(plain, rendered), abs=2e-3)
    tuned = PeftModel.from_pretrained(plain, made[trained])
    after = loss_by_hand(tuned, rendered)
    assert record["after"]["value"] == pytest.approx(after, abs=2e-3)
    assert abs(record["rise"]["value"]) > 1e-4


def test_a_merged_checkpoint_reads_like_its_adapter(made: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for trained in ("adapter", "merged"):
        app([*map(str, command_of("gradients", made, "base", trained, "")), "--of", "probe", "--json"],
            standalone_mode=False)  # fmt: skip
        found.append(json.loads(capsys.readouterr().out))
    one, two = found
    assert two["loss"]["at"] == one["loss"]["at"] == "early"
    assert two["loss"]["base_mean"] == pytest.approx(one["loss"]["base_mean"], abs=2e-3)
    value = {e["name"]: e["value"] for e in two["estimates"]}
    assert value["n_eff"] == pytest.approx({e["name"]: e["value"] for e in one["estimates"]}["n_eff"], rel=0.05)


def test_a_saved_module_without_a_base_is_left_out_and_said(made: dict[str, Path], capsys: Any) -> None:
    app(["probe", "weights", str(made["a_saved"])], standalone_mode=False)
    said = capsys.readouterr().out
    assert "Left out: lm_head.weight is saved in full and was not compared: no base was given" in said


def test_a_folder_that_is_neither_and_a_checkpoint_without_base(made: dict[str, Path]) -> None:
    with pytest.raises(VerituneError, match="neither adapter_config"):
        app(["probe", "gap", *map(str, command_of("gap", made | {"x": made["base"].parent}, "base", "x", "")[2:])],
            standalone_mode=False)  # fmt: skip
    with pytest.raises(VerituneError, match="is not an adapter, so it needs a base to be compared with"):
        app(["probe", "weights", str(made["merged"])], standalone_mode=False)


def test_a_four_bit_base_is_run_or_named(made: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    wide = model_like(made["base"], tmp_path / "wide", intermediate_size=128)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(wide, quantization_config=how).save_pretrained(tmp_path / "q")
    AutoTokenizer.from_pretrained(wide).save_pretrained(tmp_path / "q")
    there = made | {"q": tmp_path / "q", "a_q": adapter_on(wide, tmp_path / "a_q", names_base=False)}
    try:
        app([*map(str, command_of("forgetting", there, "q", "a_q", ""))], standalone_mode=False)
        assert "changed by" in capsys.readouterr().out
    except VerituneError as exc:
        assert "is quantised (bitsandbytes) and cannot be" in str(exc)

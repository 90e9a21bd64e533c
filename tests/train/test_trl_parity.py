"""Our renderer and trainer against TRL's SFTTrainer on prompt/completion rows of the real model: same ids, same mask,
same loss at every step. TRL pads, masks and averages by its own code; nothing of ours is used on its side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from veritune.data.load import rows_from
from veritune.data.render import Renderer
from veritune.records import Rendered, Row

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning"),
]
STEPS = 3
SCHEDULE: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "num_train_epochs": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "seed": 7,
    "data_seed": 7,
    "dataloader_pin_memory": False,
    "logging_nan_inf_filter": False,
}


@pytest.fixture(scope="module")
def rows() -> tuple[Row, ...]:
    """Five rows of unequal length, so that the last batch is a partial one."""
    path = Path(__file__).resolve().parents[2] / "examples" / "quickstart" / "briefs.jsonl"
    read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:50:10]]
    return rows_from(read).rows


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    from veritune.train.models import ModelRef, load_tokenizer

    return load_tokenizer(ModelRef("SmolLM2", smollm2, "float32"))


@pytest.fixture(scope="module")
def rendered(rows: tuple[Row, ...], tokenizer: Any) -> list[Rendered]:
    renderer = Renderer(tokenizer, 512)
    return [renderer.row(row) for row in rows]


def adapted(folder: Path) -> Any:
    """The real model in float32 with a LoRA drawn from one seed."""
    from peft import LoraConfig, get_peft_model

    from veritune.train.models import ModelRef, load_base

    base = load_base(ModelRef("SmolLM2", folder, "float32"))
    torch.manual_seed(7)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))


def sft_trainer(model: Any, data: list[dict[str, Any]], tokenizer: Any, out: Path, **settings: Any) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    fixed = {"packing": False, "completion_only_loss": True, "max_length": 512, "gradient_checkpointing": False}
    config = SFTConfig(output_dir=str(out), **{**fixed, **SCHEDULE, **settings})
    return SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(data), processing_class=tokenizer)


def as_text(rows: tuple[Row, ...], tokenizer: Any) -> list[dict[str, Any]]:
    """Prompt and completion as text: the template's generation prompt, and the answer with its end token."""
    return [
        {
            "prompt": tokenizer.apply_chat_template(turns(row.prompt), tokenize=False, add_generation_prompt=True),
            "completion": f"{row.target}<|im_end|>",
        }
        for row in rows
    ]


def turns(messages: Any) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def seen_by(sft: Any, i: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids and labels of row i, alone in a batch, as TRL's collator hands them to the model."""
    batch = sft.data_collator([sft.train_dataset[i]])
    return tuple(batch["input_ids"][0].tolist()), tuple(batch["labels"][0].tolist())


def logged(trainer: Any, key: str) -> list[float]:
    return [row[key] for row in trainer.state.log_history if key in row and "loss" in row]


@pytest.fixture(scope="module")
def peers(
    smollm2: Path, rows: tuple[Row, ...], rendered: list[Rendered], tokenizer: Any, tmp_path_factory: Any
) -> tuple[Any, Any]:
    """Both trainers after one epoch."""
    from transformers import PrinterCallback, TrainingArguments

    from veritune.train.trainer import ContractTrainer

    out = tmp_path_factory.mktemp("peers")
    sft = sft_trainer(adapted(smollm2), as_text(rows, tokenizer), tokenizer, out / "sft")
    arguments = TrainingArguments(output_dir=str(out / "ours"), remove_unused_columns=False, **SCHEDULE)
    ours = ContractTrainer(
        adapted(smollm2), arguments, rows=rendered, validation=rendered, pad_id=tokenizer.pad_token_id
    )
    for trainer in (sft, ours):
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return ours, sft


def test_the_ids_and_the_mask_are_trl_s(peers: tuple[Any, Any], rendered: list[Rendered]) -> None:
    _, sft = peers
    assert len(sft.train_dataset) == len(rendered)
    for i, row in enumerate(rendered):
        assert seen_by(sft, i) == (row.input_ids, row.labels)


def test_from_messages_trl_adds_only_what_the_template_writes_after_the_end_token(
    rows: tuple[Row, ...], rendered: list[Rendered], tokenizer: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """TRL also trains on the newline behind the end token, which no model gets to write; ours stops before it."""
    from veritune.train.models import ModelRef, load_base

    data = [{"prompt": turns(row.prompt), "completion": turns(row.messages[-1:])} for row in rows]
    sft = sft_trainer(load_base(ModelRef("tiny", tiny_model, "float32")), data, tokenizer, tmp_path)
    newline = tuple(tokenizer("\n", add_special_tokens=False)["input_ids"])
    for i, row in enumerate(rendered):
        assert seen_by(sft, i) == (row.input_ids + newline, row.labels + newline)


def test_every_step_has_trl_s_loss(peers: tuple[Any, Any]) -> None:
    ours, sft = peers
    assert len(logged(ours, "loss")) == STEPS
    assert logged(ours, "loss") == pytest.approx(logged(sft, "loss"), rel=1e-4)
    assert logged(ours, "grad_norm") == pytest.approx(logged(sft, "grad_norm"), rel=1e-3)


def test_the_gradient_callback_sees_trl_s_gradients_as_taken_by_hand(
    rows: tuple[Row, ...], rendered: list[Rendered], tokenizer: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """One line in TRL's trainer. By hand: its loss on all rows at once, from the weights that each step began with."""
    from peft import LoraConfig, get_peft_model
    from transformers import PrinterCallback, TrainerCallback

    from veritune.train.models import ModelRef, load_base
    from veritune.train.modules import module_type
    from veritune.train.telemetry import GradientTelemetry, read_telemetry

    class Weights(TrainerCallback):
        """The trainable weights at the beginning of every step."""

        def __init__(self) -> None:
            self.began: list[dict[str, torch.Tensor]] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            named = kw["model"].named_parameters()
            self.began.append({n: p.detach().clone() for n, p in named if p.requires_grad})

    torch.manual_seed(7)
    base = load_base(ModelRef("tiny", tiny_model, "float32"))
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    path, weights = tmp_path / "telemetry.jsonl", Weights()
    changed = {"per_device_train_batch_size": len(rows), "max_steps": 3, "max_grad_norm": 0.05}
    sft = sft_trainer(model, as_text(rows, tokenizer), tokenizer, tmp_path / "sft", **changed)
    sft.add_callback(weights)
    sft.add_callback(GradientTelemetry(path))
    sft.remove_callback(PrinterCallback)
    sft.train()

    lines = read_telemetry(path)
    assert [line["step"] for line in lines] == [1, 2, 3] and len(weights.began) == 3
    assert all(line["clip"]["factor"] < 1 for line in lines), "clipped, and still told before clipping"
    scored = sum(row.n_target for row in rendered)
    for line, began in zip(lines, weights.began):
        model.load_state_dict(began, strict=False)
        model.zero_grad()
        for row in rendered:
            ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
            (model(input_ids=ids, labels=labels).loss * row.n_target / scored).backward()
        squares: dict[str, float] = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                kind = module_type(name)
                squares[kind] = squares.get(kind, 0.0) + float(p.grad.double().square().sum())
        assert line["grad_norm"]["type"] == pytest.approx({k: s**0.5 for k, s in squares.items()}, rel=2e-3)
        assert line["grad_norm"]["total"] == pytest.approx(sum(squares.values()) ** 0.5, rel=2e-3)

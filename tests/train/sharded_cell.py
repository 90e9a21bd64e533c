"""One cell on the processes torchrun started: `sharded_cell.py STUDY CONDITION [STEP]`, killed after STEP's checkpoint.

Accelerate shards with FSDP on accelerators alone; here it is told to on processors too. That is all that is changed:
`fully_shard`, DTensors, collectives (gloo) and the Trainer's saving and resuming are the real ones.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from veritune.config.load import parse_study
from veritune.data.prepare import prepare
from veritune.progress import Progress
from veritune.store import Store
from veritune.train import trainer
from veritune.train.cells import Context, load_trained, train
from veritune.train.models import ModelRef, load_tokenizer
from veritune.train.schedule import Cell, plan_cells

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
from frozen_facts import FACTS


def context_of(root: Path) -> Context:
    """The study in a folder, prepared."""
    study = parse_study(yaml.safe_load((root / "study.yaml").read_text("utf-8")))
    ref = ModelRef("tiny", Path(study.model.path), study.model.dtype)
    tokenizer, store = load_tokenizer(ref), Store(root)
    return Context(store, study, ref, tokenizer, prepare(store, study, tokenizer), Progress(silent=True))


def cell_of(context: Context, condition: str) -> Cell:
    return next(cell for cell in plan_cells(context.study, FACTS) if cell.condition == condition)


def validation_nll(context: Context, cell: Cell) -> float:
    """Validation NLL of the cell's chosen checkpoint, loaded whole in this process."""
    rows, pad_id = context.data.zone("validation"), context.tokenizer.pad_token_id
    return trainer.mean_nll(trainer.row_nll(load_trained(context, cell), rows, pad_id))


def shard_on_processors() -> None:
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    plain: Any = AcceleratorState.__init__

    def chosen(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = chosen  # type: ignore[method-assign]


def compile_nothing() -> None:
    """DeepSpeed builds a collective of its own for processors, a minute of a compiler; gloo's is used instead."""
    from deepspeed import ops
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False


def held(parameter: Any) -> int:
    """Scalars of a parameter that lie on this process: of an FSDP2 DTensor, a ZeRO-3 parameter, or a whole one."""
    part = parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter
    return int((part.to_local() if hasattr(part, "to_local") else part).numel())


def tell_what_is_held(root: Path) -> None:
    """Write, at every checkpoint, how many scalars of the model lie on each process."""
    mark = trainer.MarkComplete.on_save

    def on_save(self: Any, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        told = sum(held(parameter) for parameter in model.parameters())
        (root / f"held-{os.environ['RANK']}.json").write_text(json.dumps(told))
        mark(self, args, state, control, **kwargs)

    trainer.MarkComplete.on_save = on_save  # type: ignore[method-assign]


def die_after(step: int) -> None:
    """End every process without ceremony once the checkpoint of `step` is whole."""
    retain = trainer.Retention.on_save

    def on_save(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        retain(self, args, state, control, **kwargs)
        torch.distributed.barrier()
        if state.global_step == step:
            os._exit(9)

    trainer.Retention.on_save = on_save  # type: ignore[method-assign]


def main(root: Path, condition: str, step: int | None) -> None:
    faulthandler.dump_traceback_later(110, exit=True)  # a process that waits for another for ever ends here
    shard_on_processors()
    tell_what_is_held(root)
    if step is not None:
        die_after(step)
    context = context_of(root)
    if context.study.train.strategy == "deepspeed":
        compile_nothing()
    cell = cell_of(context, condition)
    context.store.run(cell.run_id).mkdir(parents=True, exist_ok=True)
    train(context, cell)
    if os.environ["RANK"] == "0":
        (root / "after.json").write_text(json.dumps(validation_nll(context, cell)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
    # What is measured is on disk. A gloo thread that is still winding down can abort the interpreter's own exit.
    sys.stderr.flush()
    os._exit(0)

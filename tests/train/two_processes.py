"""One optimizer step under DDP or FSDP2 on two processes, with telemetry, and the group left, again and again.

`two_processes.py ddp|fsdp2 FOLDER RANK`; each round has a folder of its own.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from veritune.train.distributed import leave_group
from veritune.train.modules import module_type
from veritune.train.telemetry import GradientTelemetry

LR = 0.1
ROUNDS = 20  # a group that is left badly hangs in one of seven


def tiny() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=51,
            hidden_size=12,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def by_hand(ids_N_T: torch.Tensor) -> dict[str, Any]:
    model = tiny()
    model(input_ids=ids_N_T, labels=ids_N_T).loss.backward()
    square: dict[str, float] = {}
    weight = sum(float(p.detach().square().sum()) for p in model.parameters())
    for name, p in model.named_parameters():
        assert p.grad is not None
        square[module_type(name)] = square.get(module_type(name), 0.0) + float(p.grad.square().sum())
    total = sum(square.values()) ** 0.5
    return {"total": total, "type": {k: v**0.5 for k, v in square.items()}, "update": LR * total, "weight": weight**0.5}


def main(how: str, folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ids_N_T = torch.randint(1, 50, (4, 6), generator=torch.Generator().manual_seed(1))
    if rank == 0:
        (folder / "by_hand.json").write_text(json.dumps(by_hand(ids_N_T)))
    model = tiny()
    wrapped: Any = model
    if how == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh("cpu", (2,))
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    args = SimpleNamespace(world_size=2, max_grad_norm=0.0, deepspeed=None)
    state = SimpleNamespace(global_step=0, is_world_process_zero=rank == 0)
    path = folder / ("telemetry.jsonl" if rank == 0 else "telemetry-1.jsonl")
    seen, given = GradientTelemetry(path), {"model": model, "optimizer": optimizer}
    seen.on_train_begin(args, state, None, **given)
    mine = ids_N_T[2 * rank : 2 * rank + 2]
    wrapped(input_ids=mine, labels=mine).loss.backward()
    seen.on_pre_optimizer_step(args, state, None, **given)
    optimizer.step()
    seen.on_optimizer_step(args, state, None, **given)
    state.global_step = 1
    seen.on_step_end(args, state, None, **given)
    seen.on_train_end(args, state, None, **given)
    leave_group()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(100, exit=True)  # a process that waits for the other for ever ends here
    for at in range(ROUNDS):
        place = Path(sys.argv[2]) / str(at)
        place.mkdir(exist_ok=True)
        main(sys.argv[1], place, int(sys.argv[3]))
    # What is measured is on disk. A gloo thread that is still winding down can abort the interpreter's own exit.
    sys.stderr.flush()
    os._exit(0)

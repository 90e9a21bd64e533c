"""Several processes for one cell: how many there are, who writes, and how a cell is started on several.

`torchrun` starts them; `accelerate`, inside the Trainer, does the rest. Rank 0 writes every record. The ranks that were
asked for are counted: fewer is an error, never a slower run of another experiment. What a `strategy_config` says may
divide the model as it likes; it may not change the recipe, and a checkpoint has to be whole weights that one process
loads.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from veritune.config.study import Study
from veritune.config.train import Train
from veritune.counting import many
from veritune.errors import MachineError, StudyError
from veritune.machine import PARENT
from veritune.records import JsonValue
from veritune.train import methods

OWN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
FSDP_KEYS = (
    "auto_wrap_policy",
    "cpu_ram_efficient_loading",
    "min_num_params",
    "reshard_after_forward",
    "state_dict_type",
    "transformer_layer_cls_to_wrap",
    "version",
)
RECIPE = {
    "optimizer": "the optimizer is the Trainer's AdamW; learning_rate and weight_decay set it",
    "scheduler": "lr_scheduler_type and warmup_steps set it",
}
FILLED = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "train_batch_size": "per_device_train_batch_size, gradient_accumulation_steps and devices",
}
GATHER = "stage3_gather_16bit_weights_on_model_save"


def world_size() -> int:
    """Number of processes of this cell: as set by torchrun, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if all(name in os.environ for name in OWN_VARIABLES) else 1


def is_main() -> bool:
    """Whether this process writes the records (rank 0)."""
    return world_size() == 1 or os.environ["RANK"] == "0"


def check_ranks(asked: int) -> None:
    """Raises MachineError if the number of processes differs from the study's declaration."""
    if world_size() not in (1, asked):
        raise MachineError(
            f"train.devices is {asked}, and {world_size()} processes were started.",
            fix=f"Start {asked} processes, or let `veritune work` start them.",
        )


def command(arguments: Sequence[str], devices: int) -> list[str]:
    """The command line that runs `veritune ARGUMENTS` on this many processes of this machine, through torchrun."""
    return [*launcher_of(devices), "-m", "veritune", *arguments]


def launch(study: Path, run_id: str, devices: int) -> int:
    """Run one cell on several processes of this machine; returns torchrun's exit status. Output goes to standard error.

    They end with this process, however it ends.
    """
    arguments = ["work", str(study), run_id, "--quiet"]
    environment = {**os.environ, **shared_threads(devices), PARENT: str(os.getpid())}
    group = subprocess.Popen(command(arguments, devices), env=environment, stdout=subprocess.DEVNULL)
    try:
        return group.wait()
    except BaseException:
        group.terminate()  # torchrun hands it on; SIGKILL would leave the ranks alone with the cell
        try:
            group.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            group.kill()
        raise


END_S = 45.0
"""How long a group may take to end: torchrun itself kills ranks that do not follow SIGTERM within 30 s."""
START_S = 600.0
"""The longest that a group may take to start; DeepSpeed compiles parts of itself for minutes at its first use."""


def start_seconds(devices: int) -> float:
    """Seconds until this many processes of this machine have imported the training code and connected: the start-up
    time of each cell.

    Raises MachineError where they cannot start, with the last line that they wrote.
    """
    launcher = [*launcher_of(devices), "-m", "veritune.train.rank"]
    began = time.perf_counter()
    try:
        done = subprocess.run(
            launcher,
            env={**os.environ, **shared_threads(devices), PARENT: str(os.getpid())},
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise MachineError(
            f"{many(devices, 'processes')} did not connect within {START_S:.0f} s.",
            fix="Read the section on several devices in docs/cells.md.",
        ) from exc
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "Error" in line] or ["no word"]
        raise MachineError(
            f"{many(devices, 'processes')} could not start for `train.devices`: {lines[0].strip()[:300]}",
            fix="Set train.devices to the number of devices of this machine. Nothing has trained.",
        )
    return time.perf_counter() - began


def launcher_of(devices: int) -> list[str]:
    """The torchrun command line for this many processes of this machine, without the program to run."""
    return [sys.executable, "-m", "veritune.train.launcher", "--standalone", "--nproc_per_node", str(devices)]


def shared_threads(devices: int) -> dict[str, str]:
    """The OMP_NUM_THREADS for one of this many processes, unless the environment sets it."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // devices, 1)))}


_LEFT: list[Any] = []


def leave_group() -> None:
    """Wait for the other processes, then end the process group; what follows runs on rank 0 only.

    The group itself is kept. Where a DDP model is the last to hold it, letting go of the model waits for gloo's thread
    with the interpreter locked, and that thread may be waiting for the interpreter (pytorch/pytorch#56297).
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        _LEFT.append(dist.group.WORLD)
        dist.barrier()
        dist.destroy_process_group()


def total(count: int) -> int:
    """The sum of a count over all processes of this cell; each of them must call it."""
    if world_size() == 1:
        return count
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    counts = torch.tensor(count, device=PartialState().device)
    dist.all_reduce(counts)
    return int(counts)


# ---------------------------------------------------------------- a model in parts


def check(study: Study) -> None:
    """Raises StudyError if `train.strategy` cannot do what the study declares, before anything is paid for.

    Raises StudyError for a `strategy_config` that would change the recipe or leave no weights to load, MachineError
    when DeepSpeed is not installed.
    """
    train = study.train
    config = train.strategy_config or {}
    if train.strategy == "ddp":
        if train.strategy_config is not None:
            raise StudyError(
                "train.strategy_config: `strategy: ddp` has no settings.", fix="Remove train.strategy_config."
            )
        return
    if train.strategy == "fsdp2":
        _check_fsdp2(config)
    else:
        _check_deepspeed(config)
    divided = train.strategy == "fsdp2" or config["zero_optimization"]["stage"] == 3
    for name, condition in study.conditions.items():
        if divided and methods.learns_a_prompt(name, condition):
            raise StudyError(
                f"conditions.{name}.method: {condition.method} with `train.strategy: {train.strategy}`: PEFT saves "
                "a learned prompt from one process, which holds only a part of it.",
                fix="Use `strategy: ddp`.",
            )


def check_here(study: Study) -> None:
    """Raises MachineError if cells would run on this machine and it has too few accelerators for `strategy: fsdp2`.

    FSDP2 on processors starts, trains the baseline's scores, and fails at the first trained cell.
    """
    import torch

    train = study.train
    if train.strategy != "fsdp2" or study.backend.name != "local":
        return
    found = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if found < train.devices:
        raise MachineError(
            f"train.strategy: fsdp2 shards a model over {train.devices} accelerators, found {found} on this machine.",
            fix="Use `strategy: ddp`, or run the cells where the accelerators are: veritune run STUDY --executor slurm",
        )


def _check_fsdp2(config: Mapping[str, JsonValue]) -> None:
    for written, value in config.items():
        key, where = written.removeprefix("fsdp_"), f"train.strategy_config.{written}:"
        if key == "activation_checkpointing":
            raise StudyError(f"{where} it is a setting of every strategy.", fix="Set train.gradient_checkpointing.")
        if key == "cpu_offload":
            if str(value).lower() == "false":
                continue
            raise StudyError(
                f"{where} {value}: gradients would be on processors, where a group of accelerators cannot sum the "
                "norm that clipping needs.",
                fix="Remove it; use DeepSpeed's offload_optimizer and offload_param instead.",
            )
        if key not in FSDP_KEYS:
            raise StudyError(f"{where} unknown setting of FSDP2.", fix=f"Settings: {', '.join(FSDP_KEYS)}.")
        if key == "version" and str(value) != "2":
            raise StudyError(f"{where} {value}: `strategy: fsdp2` is version 2.", fix="Remove it.")
        if key == "state_dict_type" and str(value) != "FULL_STATE_DICT":
            raise StudyError(
                f"{where} {value} leaves checkpoints in parts, which one process cannot load to score them.",
                fix="Remove it; FULL_STATE_DICT is used.",
            )


def _check_deepspeed(config: Mapping[str, JsonValue]) -> None:
    where = "train.strategy_config"
    zero = config.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in (1, 2, 3):
        raise StudyError(
            f"{where}.zero_optimization.stage: expected 1, 2 or 3, found {stage!r}.", fix="Set it to 1, 2 or 3."
        )
    assert isinstance(zero, dict)
    if stage == 3 and zero.get(GATHER, True) is not True:
        raise StudyError(
            f"{where}.zero_optimization.{GATHER}: without it a checkpoint has no weights that one process can load.",
            fix="Remove it, or set it to true.",
        )
    for key, instead in RECIPE.items():
        if key in config:
            raise StudyError(f"{where}.{key}: {instead}.", fix="Remove it.")
    for key, instead in FILLED.items():
        if config.get(key, "auto") != "auto":
            raise StudyError(f"{where}.{key}: train.{instead} sets it.", fix='Remove it, or write "auto".')
    for key in ("fp16", "bf16"):
        said = config.get(key, {})
        if not isinstance(said, dict) or said.get("enabled", "auto") != "auto":
            raise StudyError(f"{where}.{key}: model.dtype sets it.", fix='Remove it, or write {enabled: "auto"}.')
    if util.find_spec("deepspeed") is None:
        raise MachineError(
            "train.strategy is deepspeed, which is not installed.", fix="Run `pip install 'veritune[deepspeed]'`."
        )


def sharding(plan: Train) -> dict[str, JsonValue]:
    """The Trainer's own arguments for a sharded model; empty for one process (the live probe)."""
    if world_size() == 1 or plan.strategy == "ddp":
        return {}
    config = copy.deepcopy(plan.strategy_config or {})
    if plan.strategy == "fsdp2":
        return {"fsdp": True, "fsdp_config": {**config, "version": 2}}
    if config["zero_optimization"]["stage"] == 3:
        config["zero_optimization"][GATHER] = True
    auto = dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto")
    return {"deepspeed": {**config, **auto, "bf16": {**config.get("bf16", {}), "enabled": "auto"}}}


def leave_sharding() -> None:
    """Load models unsharded from now on: an active ZeRO-3 configuration would load them in parts."""
    integration = sys.modules.get("transformers.integrations.deepspeed")
    if integration is not None:
        integration.unset_hf_deepspeed_config()

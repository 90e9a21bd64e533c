"""What can be refused before a model is loaded or a contract is frozen: in seconds, and where cells would run."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from veritune.config.study import Study
from veritune.errors import InputError, MachineError
from veritune.pipeline.executors import on_ray, on_slurm
from veritune.pipeline.executors.plan import ExecutorPlan

TEST_S = 30.0


def check_plan(plan: ExecutorPlan, study: Study, root: Path) -> None:
    """Raises InputError for options that do not fit the study, MachineError if the cluster cannot run one of its cells.

    Checked are `train.devices` against what a cell is given, the cluster's address and resources, and on Ray whether
    every node sees the study and the model. What Slurm's nodes see shows with the first job, which measures live steps.
    """
    if plan.kind == "local":
        return
    _check_devices(plan, study)
    if plan.kind == "ray":
        on_ray.check_nodes(plan, root.resolve(), model_folder(study, root))
    elif plan.options.get("cluster") != "local":
        _check_slurm(plan, root)


def _check_devices(plan: ExecutorPlan, study: Study) -> None:
    devices = study.train.devices
    if plan.gpus and plan.gpus != int(plan.gpus) and (devices > 1 or plan.kind == "slurm"):
        raise InputError(
            f"--gpus {plan.gpus:g}: a fraction of an accelerator cannot hold the {devices} processes of a cell "
            f"on {plan.kind}.",
            fix="Give --gpus a whole number.",
        )
    if plan.gpus and plan.gpus < devices:
        raise InputError(
            f"train.devices is {devices}, but each cell gets {plan.gpus:g} accelerators.", fix=f"--gpus {devices}"
        )
    if not plan.gpus and plan.cpus < devices:
        raise InputError(
            f"train.devices is {devices}, but each cell gets {plan.cpus} cores and no accelerator.",
            fix=f"Give --gpus {devices}, or --cpus {devices} to train on processors.",
        )
    if not plan.gpus and study.train.strategy == "fsdp2" and study.backend.name == "local":
        raise InputError(
            f"train.strategy: fsdp2 shards a model over {devices} accelerators, but each cell gets none.",
            fix=f"Give --gpus {devices}, or set `strategy: ddp`.",
        )


def model_folder(study: Study, root: Path) -> str | None:
    """The model's folder under the path that nodes must see; None for a model that each node finds itself (hub id,
    builtin).
    """
    path = Path(study.model.path)
    folder = path if path.is_absolute() else root / path
    return str(folder.resolve()) if folder.exists() or path.is_absolute() else None


def _check_slurm(plan: ExecutorPlan, root: Path) -> None:
    """Have `sbatch --test-only` say whether some node could ever run a cell; nothing is submitted."""
    executor = on_slurm.executor_of(plan, root, "veritune-test")
    inner = executor._executor
    with tempfile.TemporaryDirectory(prefix="veritune-") as folder:
        script = Path(folder) / "test.sh"
        script.write_text(inner._make_submission_file_text("true", "test"), encoding="utf-8")
        try:
            tested = subprocess.run(
                ["sbatch", "--test-only", str(script)], capture_output=True, text=True, timeout=TEST_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise MachineError(
                f"sbatch does not answer: {type(exc).__name__}.", fix="Is slurmctld running? `scontrol ping` says so."
            ) from exc
    if tested.returncode != 0:
        words = (tested.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MachineError(
            f"Slurm could not run a cell: {words.removeprefix('allocation failure: ')}",
            fix="Ask for less (--cpus, --gpus), or name another partition: --executor-option slurm_partition=NAME",
        )

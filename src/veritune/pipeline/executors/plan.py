"""What a user asks of an executor, how a cell ended on it, and what the caller is told meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from veritune.errors import InputError

Kind = Literal["local", "ray", "slurm"]
Option = str | int
POLL_S = 1.0


@dataclass(frozen=True)
class ExecutorPlan:
    """How cells are run. `workers`: the most cells at once, 0 for as many as fit (on Slurm: one task per cell).

    `cpus`, `gpus` and `memory_bytes` are what one cell needs (for `ray` and `slurm`, and to tell how many fit);
    `retries` counts new tries of a cell whose process was lost. `options` go to Slurm as submitit names them.
    `handed_on` names environment variables that Ray's workers are given besides those of `on_ray.HANDED_ON`.
    `detach`: cells on a cluster go on when this process is stopped.
    """

    kind: Kind = "local"
    workers: int = 1
    cpus: int = 1
    gpus: float = 0
    memory_bytes: int | None = None
    retries: int = 2
    address: str | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    handed_on: tuple[str, ...] = ()
    detach: bool = False


@dataclass(frozen=True)
class Ended:
    """How one cell ended. `error` is None if it is done; `tries` counts the processes that this command observed.

    `host` is where it ended, None where that was not told; `in_use`: another process has it, and `error` says who.
    """

    run_id: str
    error: str | None
    tries: int
    host: str | None = None
    in_use: bool = False


def _ignore(*_: object) -> None:
    return


def _never(_run_id: str) -> bool:
    return False


@dataclass(frozen=True)
class Hooks:
    """Callbacks of a run: `ended` for each cell that ends; `tick` about once a second; `say` when a worker or node was
    lost or attached to; `stopped` with what became of running cells when this process was told to stop. `done` tells by
    run id whether a summary exists and was made from the present study.
    """

    ended: Callable[[Ended], None] = _ignore
    tick: Callable[[], None] = _ignore
    say: Callable[[str], None] = _ignore
    stopped: Callable[[str], None] = _ignore
    done: Callable[[str], bool] = _never


def options_from(texts: Sequence[str]) -> dict[str, Option]:
    """`key=value` options as a mapping, whole numbers as numbers. Raises InputError."""
    options: dict[str, Option] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise InputError(f"--executor-option {text!r}: expected key=value.", fix="For example partition=gpu.")
        options[key] = int(value) if value.isdigit() else value
    return options


def plan_from(kind: str | None, options: Sequence[str], needs: ExecutorPlan) -> ExecutorPlan | None:
    """The plan from `--executor` and the options beside it; None without an executor. `needs` holds the other options.

    Raises InputError for an unknown kind, and for an option that the kind does not take.
    """
    if kind is None:
        if needs.detach:
            raise InputError(
                "--detach needs an executor: without one, cells run in this process.",
                fix="Add --executor ray or slurm.",
            )
        return None
    if kind not in get_args(Kind):
        raise InputError(
            f"--executor {kind!r}: expected local, ray or slurm.",
            fix="Leave out --executor to run cells in this process.",
        )
    if kind == "local" and needs.detach:
        raise InputError(
            "--detach: cells of --executor local end with this process.",
            fix="Leave out --detach, or start the command with `nohup` or `systemd-run`.",
        )
    if needs.address is not None and kind != "ray":
        raise InputError(f"--address cannot be used with --executor {kind}.", fix="Leave out --address.")
    if options and kind != "slurm":
        raise InputError(
            f"--executor-option cannot be used with --executor {kind}.", fix="Leave out --executor-option."
        )
    wrong = [name for name, value in (("--workers", needs.workers), ("--gpus", needs.gpus)) if value < 0]
    if wrong or needs.cpus < 1:
        raise InputError(
            f"{wrong[0] if wrong else '--cpus'}: expected a positive number.", fix="Give a number of at least 1."
        )
    return ExecutorPlan(
        cast("Kind", kind),
        needs.workers,
        needs.cpus,
        needs.gpus,
        address=needs.address,
        options=options_from(options),
        detach=needs.detach,
    )

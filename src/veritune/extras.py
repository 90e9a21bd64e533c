"""What each extra brings, and the one line that a command ends in where a package of an extra is missing.

The core (`pip install veritune`) reads data, scores and records; `veritune[train]` brings torch and what trains.
"""

from __future__ import annotations

from importlib import util

from veritune.errors import MachineError

TRAIN = ("torch", "transformers", "peft", "accelerate", "safetensors", "gguf", "huggingface_hub", "tokenizers")

EXTRA_OF = {
    **dict.fromkeys(TRAIN, "train"),
    "bitsandbytes": "qlora",
    "datasets": "hub",
    "deepspeed": "deepspeed",
    "httpx2": "serving",
    "huggingface_hub": "hub",
    "mlflow": "mlflow",
    "model_signing": "release",
    "openai": "serving",
    "pyarrow": "arrow",
    "ray": "ray",
    "s3fs": "s3",
    "starlette": "view",
    "submitit": "slurm",
    "tinker": "tinker",
    "uvicorn": "view",
    "wordllama": "embed",
}
"""The extra that brings a package, by the name that is imported."""


def lacking_train() -> list[str]:
    """Names of the packages of veritune[train] that are not installed here."""
    return [name for name in TRAIN if util.find_spec(name) is None]


def missing(exc: Exception, command: str = "") -> MachineError | None:
    """A MachineError that names the extra to install, if the error is a missing package of an extra; else None.

    `command` is what was called, for the message.
    """
    if not isinstance(exc, ModuleNotFoundError):
        return None
    package = (exc.name or "").split(".")[0]
    extra = EXTRA_OF.get(package)
    if extra is None:
        return None
    what = f"`veritune {command}`" if command else "this"
    return MachineError(
        f"{what} needs {package}, which is not installed here.",
        fix=f"pip install 'veritune[{extra}]' (`veritune doctor` lists what each command needs).",
    )


NEEDS_TRAIN = (
    *("run", "plan", "freeze", "amend", "work", "adopt", "check", "tokens", "safety", "bundle"),
    *("merge-parity", "serve-parity", "probe attribution"),
    *("probe gradients", "probe gap", "probe weights", "probe geometry", "probe leak", "probe forgetting"),
    "rollback",
)
"""The commands that load a model or a tokenizer. Every other command runs on the core; `audit --tokenizer`,
`audit --embed`, `probe calibration --model`, `report --make`, `doctor --selftest` load one with that option alone."""

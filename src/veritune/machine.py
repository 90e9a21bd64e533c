"""What this machine and its packages are, by an allow-list: no environment variable is recorded.

A run's manifest also keeps the host's name and the command as it was given, but for the folders of absolute paths.
"""

from __future__ import annotations

import csv
import gc
import hashlib
import logging
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from veritune.files import stamps
from veritune.records import GitState, MachineFacts, MemoryPeak

if TYPE_CHECKING:
    from types import FrameType

RECORDED = (
    *("accelerate", "bitsandbytes", "deepspeed", "gguf", "numpy", "peft", "pydantic"),
    *("safetensors", "scipy", "tokenizers", "torch", "transformers", "veritune"),
)
"""Packages whose version is written into records where they are installed."""


def package_versions(left_out: Collection[str] = ()) -> dict[str, str]:
    """Versions of the packages that a result depends on, without those that are not installed or in `left_out`."""
    found = {}
    for name in RECORDED:
        if name in left_out:
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_machine() -> MachineFacts:
    """Processor, cores, memory in bytes, accelerators, Python and thread counts."""
    import psutil
    import torch

    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return MachineFacts(
        system=platform.system(),
        machine=platform.machine(),
        python=".".join(map(str, sys.version_info[:3])),
        cores=usable_cores(),
        torch_threads=torch.get_num_threads(),
        torch_interop_threads=torch.get_num_interop_threads(),
        processor=_processor(),
        vector_instructions=torch.backends.cpu.get_cpu_capability(),
        memory_bytes=psutil.virtual_memory().total,
        accelerators=tuple(accelerators),
        cuda=torch.version.cuda if accelerators else None,
        deterministic_algorithms=torch.are_deterministic_algorithms_enabled(),
    )


def _processor() -> str | None:
    """The processor's model name; None where it cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or None


def computes_bfloat16() -> bool:
    """Whether the processor has bfloat16 multiplication (avx512_bf16, amx_bf16, bf16); True where it cannot be found
    out.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    flags = set(re.findall(r"\w+", " ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)[:1])))
    return not flags or bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def peak_bytes() -> int | None:
    """The most memory this process has held since the mark was last reset, in bytes; None where it cannot be read."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(found.group(1)) * 1024 if found else None


class PeakMemory:
    """Measures peak memory from its creation on: of the accelerator if there is one, else of this process.

    On a GPU `torch.cuda.max_memory_allocated`, a tensor's memory and not the driver's. On a CPU the resident set's
    high-water mark (VmHWM), which Linux lets a process set back; it holds Python and the libraries too (`before`).
    """

    def __init__(self) -> None:
        import torch

        _give_back()
        self.cuda = torch.cuda.is_available()
        self.reset = True
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before: int | None = int(torch.cuda.memory_allocated())
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            self.reset = False
        self.before = peak_bytes()

    def read(self) -> MemoryPeak:
        """The peak since creation, or why it cannot be measured."""
        if self.cuda:
            import torch

            peak = int(torch.cuda.max_memory_allocated())
            return MemoryPeak(peak, self.before, "torch.cuda.max_memory_allocated")
        if not self.reset:
            reason = "this system does not let a process reset its memory's high-water mark"
            return MemoryPeak(None, None, "VmHWM", reason)
        return MemoryPeak(peak_bytes(), self.before, "VmHWM")


ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "32"}
"""Defaults that torch reads at its import. The two caches of compiled kernels hold 1,024 otherwise: every new length of
a batch leaves some behind, and memory grows for as long as a cell trains."""

_own_process = False
PARENT = "VERITUNE_PARENT"
"""Process id of the process of ours that started this one; a child that outlives it is told to stop."""


class Terminated(BaseException):
    """Raised on SIGTERM, so that locks are released, child processes are stopped, and the process ends."""


def set_up_process() -> None:
    """Set up this process as Veritune's own. `main()` of the command line calls it before torch is imported.

    Environment variables that are set already stay. In somebody else's process nothing calls it: a program that uses
    the library decides on its own process.
    """
    global _own_process
    _own_process = True
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
        end_with_parent()
    csv.field_size_limit(sys.maxsize)  # 131,072 characters otherwise, and answers may be longer
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells at import which kernels it did not find


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what follows is cleaning up
    raise Terminated


def end_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the parent process has ended, even by SIGKILL (Linux)."""
    parent = os.environ.get(PARENT, "")
    if not parent.isdigit() or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):  # it was gone before the kernel knew
        raise Terminated


def settle_imports() -> None:
    """Exclude what is loaded so far from garbage collection, in a process that `set_up_process` set up.

    The libraries leave millions of objects; every collection (transformers and accelerate ask for some a cell) walked
    them all, 0.3 s a time. In somebody else's process nothing is done: what is garbage there would never be freed.
    """
    if _own_process and not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def _give_back() -> None:
    """Collect what nobody holds and hand freed pages back, so that the next peak is not the last one's leavings."""
    import ctypes

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other libraries do without
    if trim is not None:
        trim(0)


def code_hashes() -> dict[str, str]:
    """SHA-256 of this package's source: of all of it, of the part that scores (`evaluate`) and of the part that decides
    (`decide`).
    """
    root = Path(__file__).parent

    def digest(folder: Path) -> str:
        parts = hashlib.sha256()
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            parts.update(f"{path.relative_to(root).as_posix()}\n".encode())
            parts.update(hashlib.sha256(path.read_bytes()).digest())
        return parts.hexdigest()

    return {"package": digest(root), "evaluate": digest(root / "evaluate"), "decide": digest(root / "decide")}


def package_stamp() -> str:
    """A value that changes when this package's source changes, without reading it: names, sizes and times of its
    files."""
    root = Path(__file__).parent
    return hashlib.sha256(repr(stamps(root.rglob("*.py"))).encode()).hexdigest()


def git_state(folder: Path) -> GitState | None:
    """Commit of the git repository around `folder`, and whether it has uncommitted changes; None outside a
    repository."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return GitState(commit, None if changed is None else bool(changed))


def command_given() -> str:
    """This process's command line, quoted for a shell. Absolute paths are cut to their last part.

    A record travels in bundles; where somebody's folders lie on their disk is no part of it.
    """
    program, *arguments = sys.argv or [""]
    return shlex.join([Path(program).name, *(_FOLDERS.sub("…/", argument) for argument in arguments)])


_FOLDERS = re.compile(r"(?<![\w.~…-])/(?:[^/=,:]+/)+")


def usable_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """The most memory this process has held so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux, bytes on macOS

"""A warm process that forks command lines, for `Forks` in tests/conftest.py. Orders come in as JSON lines.

{"do": "start", "argv": [...], "out": FILE, "err": FILE, "kill_at": "EVENT REGEX [#N]", "trace": FILE,
 "fault": {"kind": "kill", "at": N, "roots": [...], "done": FILE}}                                      -> {"pid"}
{"do": "wait", "pid": N}                                                                                -> {"rc"}
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.chmod", "os.truncate"}
FILE_EVENTS |= {"shutil.rmtree", "shutil.copytree", "shutil.copyfile", "shutil.move"}


def warm() -> None:
    """Import once what every run needs, and start no thread."""
    import peft
    import pyarrow.parquet
    import scipy.stats
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer  # noqa: F401

    import veritune.pipeline
    import veritune.report.figures
    import veritune.report.page
    import veritune.results.index
    import veritune.train.cells
    import veritune.train.telemetry
    import veritune.train.trainer  # noqa: F401

    gc.collect()
    gc.freeze()  # children share these pages, and their collections leave them alone
    assert torch and transformers and peft and pyarrow and scipy
    torch.set_num_threads(1)


def watch(kill_at: str | None, trace: str | None) -> None:
    """Kill this process before the file operation that `kill_at` names; list all operations in `trace`."""
    pattern, _, nth = (kill_at or "(?!)").partition(" #")
    wanted, left = re.compile(pattern), [int(nth or 1)]
    log = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if trace else None

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS:
            return
        line = " ".join([event, *(str(a) for a in args)])
        if log is not None:
            os.write(log, (line + "\n").encode())
        if wanted.search(line):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(order: dict[str, Any]) -> int:
    for stream, path in ((1, order["out"]), (2, order["err"])):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, stream)
        os.close(handle)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order["kill_at"] or order["trace"]:
        watch(order["kill_at"], order["trace"])
    from veritune.commands.main import main

    shim = break_files(order["fault"]) if order.get("fault") else None
    sys.argv = ["veritune", *order["argv"]]
    try:
        main()
        return 0
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 1 if exc.code else 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        if shim is not None:
            handle = shim.real["open"](order["fault"]["done"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            shim.real["write"](handle, json.dumps(shim.journal if shim.kind == "journal" else shim.done).encode())


def break_files(fault: dict[str, Any]) -> Any:
    """Have this process fail at one of its file operations; see tests/crash/shim.py."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "crash"))
    from shim import Shim

    shim = Shim(fault["kind"], fault["at"], fault["roots"])
    shim.install()
    return shim


def serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "wait":
            _, status = os.waitpid(order["pid"], 0)
            print(json.dumps({"rc": os.waitstatus_to_exitcode(status)}), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = child(order)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)


if __name__ == "__main__":
    warm()
    serve()

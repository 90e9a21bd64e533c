"""A Slurm cluster of two nodes, and a Ray cluster of two, on this machine: each node under a host name of its own.

A node is a process in its own UTS namespace, so that `hostname` says `n1` or `n2` there; disk and loopback are shared.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DEDUP_LOGS": "0",
    "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "300",  # 30 by itself, which a busy machine of two cores takes longer
}
NODES = ("n1", "n2")


def missing(*programs: str) -> str | None:
    """Why a cluster cannot be made here; None where it can."""
    if os.geteuid() != 0:
        return "needs root, for host names of the nodes"
    absent = [name for name in ("unshare", *programs) if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)}: make test-cluster installs them"
    tried = subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "needs namespaces, which this machine refuses"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(found: Callable[[], object], seconds: float, what: str) -> object:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        value = found()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"never saw {what}")


def on_host(name: str, *command: str) -> list[str]:
    """A command under another host name."""
    return ["unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh", *command]


@contextlib.contextmanager
def started(log: Path, environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts processes in groups of their own; all of them end with the block."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> subprocess.Popen[bytes]:
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True
            )
        running.append(process)
        return process

    try:
        yield start
    finally:
        for process in reversed(running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthInfo=socket={root}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/ctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AuthType=auth/munge
ReturnToService=2
SlurmdTimeout=10
MaxArraySize=2
MpiDefault=none
JobRequeue=1
{nodes}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


@contextlib.contextmanager
def slurm(root: Path) -> Iterator[dict[str, str]]:
    """Controller and two nodes of two cores; arrays hold two tasks. Comes to the environment that reaches it."""
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2 RealMemory=4000"
        for name in NODES
    )
    for folder in ("state", "spool-n1", "spool-n2"):
        (root / folder).mkdir(parents=True)
    conf = root / "slurm.conf"
    conf.write_text(SLURM_CONF.format(host=socket.gethostname(), port=free_port(), root=root, nodes=nodes))
    (root / "munge.key").write_bytes(os.urandom(128))
    (root / "munge.key").chmod(0o400)
    root.chmod(0o755)
    environment = {**os.environ, **ENVIRONMENT, "SLURM_CONF": str(conf)}
    munge = [f"--socket={root}/munge.socket", f"--key-file={root}/munge.key", f"--pid-file={root}/munge.pid"]
    with started(root / "slurm.log", environment) as start:
        start("munged", "--foreground", "--force", *munge, f"--log-file={root}/munge.log", f"--seed-file={root}/seed")
        wait_for((root / "munge.socket").exists, 20, "munged's socket")
        start("slurmctld", "-D", "-f", str(conf))
        for name in NODES:
            start(*on_host(name, "slurmd", "-D", "-N", name, "-f", str(conf)))

        def idle() -> bool:
            shown = subprocess.run(["sinfo", "-h", "-o", "%D %t"], env=environment, capture_output=True, text=True)
            return "2 idle" in shown.stdout

        wait_for(idle, 60, "two idle nodes")
        yield environment


@contextlib.contextmanager
def ray(root: Path) -> Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """A head on n1 and a worker node on n2, two cores each: its address, that of Ray Client, and n2's process."""
    program, port, client = str(Path(sys.executable).with_name("ray")), free_port(), 9000 + os.getpid() % 900
    common = ["--block", "--num-cpus", "2", "--node-ip-address", "127.0.0.1", "--object-store-memory", "80000000"]
    head = ["--head", "--port", str(port), "--include-dashboard", "false", "--ray-client-server-port", str(client)]
    root.mkdir(parents=True)
    with started(root / "ray.log", {**os.environ, **ENVIRONMENT}) as start:
        start(*on_host("n1", program, "start", *head, *common, "--disable-usage-stats"))
        wait_for(lambda: _listens(port) and _listens(client), 120, "the Ray head")
        second = start(*on_host("n2", program, "start", "--address", f"127.0.0.1:{port}", *common))
        wait_for(lambda: (root / "ray.log").read_text().count("Ray runtime started") >= 2, 120, "the second Ray node")
        yield f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}", second


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

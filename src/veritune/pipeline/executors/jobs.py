"""What a study has running on a cluster, on disk: recorded before it is submitted, taken out once it is seen to end.

A driver that is killed leaves the file, and what it names goes on. The next command reads it, attaches to what lives
and submits the rest. The study's folder is held by one driver at a time, so the file has one writer.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

from veritune.errors import FormatError
from veritune.files import now, remove
from veritune.records import ClusterJob, ClusterJobs

FOLDER = ".jobs"


class Jobs:
    """The recorded jobs of one executor; `address` is the cluster's, if it has one. Every change is on disk when a
    method returns.
    """

    def __init__(self, study: Path, executor: str, address: str | None = None) -> None:
        self.path = study / FOLDER / f"{executor}.json"
        self.executor = executor
        self.address = address
        self.known: dict[str, ClusterJob] = {}
        try:
            self.known = {job.name: job for job in ClusterJobs.load(self.path).jobs}
        except (FileNotFoundError, FormatError):
            self.known = {}  # nothing to attach to

    def new(self, run_ids: tuple[str, ...] = (), name: str | None = None) -> ClusterJob:
        """Record a job just before it is submitted."""
        job = ClusterJob(name or f"veritune-{secrets.token_hex(6)}", None, run_ids, now())
        self.put(job)
        return job

    def put(self, job: ClusterJob) -> None:
        """Record the present state of a job."""
        self.known[job.name] = job
        self._save()

    def assign(self, name: str, run_ids: tuple[str, ...], host: str | None = None) -> None:
        """Record which cell a job works on from now on."""
        job = self.known[name]
        self.put(replace(job, run_ids=run_ids, host=host or job.host))

    def drop(self, name: str) -> None:
        """Remove a job that has ended."""
        if self.known.pop(name, None) is not None:
            self._save()

    def _save(self) -> None:
        if self.known:
            ClusterJobs(self.executor, self.address, tuple(self.known.values())).save(self.path)
        else:
            remove(self.path)

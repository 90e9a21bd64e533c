"""`.jobs/ray.json` and `.jobs/slurm.json`: what a study has running on a cluster, for the next command to attach to."""

from __future__ import annotations

from dataclasses import dataclass

from veritune.records.base import Record, RecordPart


@dataclass(frozen=True, slots=True)
class ClusterJob(RecordPart):
    """One submitted job: a Ray actor, which works on one run at a time, or a Slurm array.

    `name` is unique and was recorded before it was submitted; `job_id` is the scheduler's number, None until it is
    known (Ray has none). `run_ids` are in the order of the array's tasks. `host` is where an actor lives.
    """

    name: str
    job_id: str | None
    run_ids: tuple[str, ...]
    submitted: str
    host: str | None = None


@dataclass(frozen=True, slots=True)
class ClusterJobs(Record):
    """All jobs of one executor that a command submitted and that are not known to have ended."""

    executor: str
    address: str | None
    jobs: tuple[ClusterJob, ...]

"""`.jobs/ray.json` and `.jobs/slurm.json`: what a study has running on a cluster, for the next command to attach to."""

from __future__ import annotations

from dataclasses import dataclass

from veritune.records.base import Record, RecordPart


@dataclass(frozen=True, slots=True)
class ClusterJob(RecordPart):
    """One thing that was submitted: an actor of Ray, which works on one run at a time, or an array of Slurm.

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
    """Everything of one executor that a command submitted and has not seen end."""

    executor: str
    address: str | None
    jobs: tuple[ClusterJob, ...]

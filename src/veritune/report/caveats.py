"""Standing caveats: differences between the compared runs that nobody declared, and inputs that have no hash.

A study declares what may differ between its conditions; everything else should be alike. What is not, the machine, the
packages, how many processes shared a batch, is found here by comparing what the runs themselves recorded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypedDict

from veritune.records import Caveat, DecodingNotes, JsonLike, RunManifest
from veritune.report.read import Records, Run

MOST_VALUES = 4
"""Values that a sentence lists; the record holds all of them."""
MOST_RUNS = 3

Getter = Callable[[RunManifest], str | None]


def _text(value: JsonLike) -> str:
    return "not recorded" if value is None else str(value)


ASPECTS: Mapping[str, Getter] = {
    "host": lambda m: m.host,
    "accelerators": lambda m: ", ".join(m.machine.accelerators) or "none",
    "CUDA": lambda m: m.machine.cuda or "none",
    "processor": lambda m: _text(m.machine.processor),
    "processor flags": lambda m: m.machine.vector_instructions,
    "machine type": lambda m: m.machine.machine,
    "operating system": lambda m: m.machine.system,
    "Python": lambda m: m.machine.python,
    "torch threads": lambda m: f"{m.machine.torch_threads} and {m.machine.torch_interop_threads} between operations",
    "deterministic algorithms": lambda m: "on" if m.machine.deterministic_algorithms else "off",
    "number format of the base": lambda m: m.model.dtype,
    "data version": lambda m: m.data.version,
    "code commit": lambda m: "none" if m.git is None else m.git.commit,
}
"""What should be alike in all compared runs, as their manifests record it."""
DECODING: Mapping[str, Callable[[DecodingNotes], str]] = {
    "rows answered at a time": lambda notes: _text(notes.batch_size),
    "longest answer": lambda notes: f"{notes.max_new_tokens} tokens",
    "decoding": lambda notes: f"{'greedy' if notes.greedy else 'sampled'} on {notes.backend or 'the local machine'}",
}
LOOKED_AT = (
    *ASPECTS,
    *("package versions", "training settings", "processes that share a batch"),
    *DECODING,
    "inputs without a hash",
)
"""Everything that is compared, as the report lists it."""


def standing_caveats(records: Records) -> list[Caveat]:
    """Every undeclared difference between the compared runs and every input without a hash; empty if there is none.

    The untouched baseline counts: it is one side of a comparison.
    """
    runs = records.every_run
    found = [c for name, of in ASPECTS.items() if (c := _compared(name, [(r, of(r.manifest)) for r in runs]))]
    found += [*_packages(runs), *_settings(runs), *_topology(runs)]
    return [*found, *_unhashed(records)]


class CaveatFacts(TypedDict):
    """What the section of standing caveats shows."""

    caveats: list[Caveat]
    no_caveat: list[str]
    caveat_sources: list[str]


def caveat_facts(records: Records) -> CaveatFacts:
    """What the section of standing caveats shows: its sentences, or what was compared if there are none, and the
    sources.
    """
    caveats, n = standing_caveats(records), len(records.every_run)
    none = f"The {n} compared runs recorded no difference in: {', '.join(LOOKED_AT)}."
    return {
        "caveats": caveats,
        "no_caveat": [] if caveats else [none if n > 1 else f"Runs recorded: {n}. There is nothing to compare."],
        "caveat_sources": [run.path("manifest.json") for run in records.runs],
    }


Values = Sequence[tuple[Run, str | None]]


def _compared(aspect: str, values: Values) -> Caveat | None:
    """The caveat where runs have different values; None values do not apply and are left out."""
    by_value: dict[str, list[Run]] = {}
    for run, value in values:
        if value is not None:
            by_value.setdefault(value, []).append(run)
    if len(by_value) < 2:
        return None
    conditions = [{run.condition for run in runs} for runs in by_value.values()]
    confounded = sum(map(len, conditions)) == len(set().union(*conditions))
    parts = [f"{value} ({_named(runs)})" for value, runs in list(by_value.items())[:MOST_VALUES]]
    more = f", and {len(by_value) - MOST_VALUES} more values" if len(by_value) > MOST_VALUES else ""
    what = "differs with the condition, so a gap between conditions may be its effect" if confounded else "differs"
    sentence = f"{aspect} {what}: {'; '.join(parts)}{more}."
    named = {value: tuple(run.run_id for run in runs) for value, runs in by_value.items()}
    return Caveat("differs", aspect, sentence, named, confounded)


def _named(runs: Sequence[Run]) -> str:
    shown = ", ".join(run.label.replace("\u00a0", " ") for run in runs[:MOST_RUNS])
    return shown + (f" and {len(runs) - MOST_RUNS} more" if len(runs) > MOST_RUNS else "")


def _packages(runs: Sequence[Run]) -> Iterator[Caveat]:
    for name in sorted({name for run in runs for name in run.manifest.packages}):
        versions: Values = [(run, run.manifest.packages.get(name, "not installed")) for run in runs]
        if caveat := _compared(f"version of {name}", versions):
            yield caveat


def _settings(runs: Sequence[Run]) -> Iterator[Caveat]:
    """Settings of `train` that are not those of the other runs: batch shape, schedule, number of devices."""
    trained = [run for run in runs if not run.is_baseline and not run.manifest.trained_elsewhere]
    for key in sorted({key for run in trained for key in run.manifest.train}):
        values: Values = [(run, json.dumps(run.manifest.train.get(key))) for run in trained]
        if caveat := _compared(f"train.{key}", values):
            yield caveat


def _topology(runs: Sequence[Run]) -> Iterator[Caveat]:
    """How a batch was shared while training, and how many rows were answered at a time while scoring."""
    processes = [(run, _processes(run)) for run in runs]
    if caveat := _compared("number of processes that share a batch", processes):
        yield caveat
    for name in sorted({name for run in runs for name in run.stamps}):
        decoding = [(run, run.stamps[name].decoding) for run in runs if name in run.stamps]
        for what, of in DECODING.items():
            if caveat := _compared(f"{what} on {name}", [(run, of(notes)) for run, notes in decoding]):
                yield caveat


def _processes(run: Run) -> str | None:
    training = run.summary.training if run.summary is not None else None
    if training is None or run.manifest.trained_elsewhere:
        return None
    return "the server decides" if training.processes is None else str(training.processes)


def _unhashed(records: Records) -> Iterator[Caveat]:
    """What went into a result and cannot be told from its hashes."""
    runs = records.every_run
    if records.contract is None:
        yield _without_hash("contract", "no contract was frozen: nothing was declared before the results", runs)
    elif records.contract.facts.model.backend is not None:
        yield _without_hash("base weights", "the base's weights lie on a server and have no hash", runs)
    elif not records.contract.facts.model.files:
        yield _without_hash("base weights", "the base's weight files have no hash", runs)
    adopted = [run for run in runs if run.manifest.trained_elsewhere]
    if adopted:
        text = "weights were trained elsewhere: rows, seeds and settings are told, not recorded"
        yield _without_hash("trained elsewhere", text, adopted)
    served = [r for r in runs if r.summary and r.summary.training and r.summary.training.backend is not None]
    if served:
        yield _without_hash("training server", "a server trained: its code and machine are not recorded", served)
    changed = [run for run in runs if run.manifest.git is not None and run.manifest.git.changed is not False]
    if changed:
        text = "the repository had changes that no commit holds, or whether it had cannot be told"
        yield _without_hash("uncommitted changes", text, changed)
    bare = [run for run in runs if run.summary and any(name not in run.stamps for name in run.summary.scores)]
    if bare:
        yield _without_hash("scores", "scores have no record of how they were made", bare)


def _without_hash(aspect: str, text: str, runs: Sequence[Run]) -> Caveat:
    whom = "all compared runs" if len(runs) > MOST_RUNS else _named(runs)
    sentence = f"{aspect}: {text} ({whom})." if runs else f"{aspect}: {text}."
    return Caveat("unhashed", aspect, sentence, {text: tuple(run.run_id for run in runs)}, False)

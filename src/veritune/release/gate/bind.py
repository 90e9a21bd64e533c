"""Binding results from elsewhere to the weights that they speak of.

A score file, or a calibration table, does not say which weights made it. Binding writes that down: who says so, the
files' hashes, and the digests of base and candidate. The gate reads the files again; a file that changed, or weights
that did, leave it undecided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from veritune.config.release import Suite
from veritune.errors import InputError, StudyError
from veritune.records import to_json
from veritune.release.gate.candidate import Case
from veritune.release.gate.checks import compare_files, read_forgetting, regression_kind
from veritune.release.gate.evidence import Evidence, input_hashes, input_name, write_evidence
from veritune.release.gate.stated import estimate_problem
from veritune.store import read_json

SCALE = {"ece": (0.0, 1.0), "brier": (0.0, 1.0), "ece_debiased": (-1.0, 1.0)}
"""The ranges of what a calibration record holds; a debiased ECE may be less than 0."""


def bind_scores(case: Case, name: str, files: tuple[Sequence[Path], Sequence[Path]], by: str) -> Evidence:
    """Write and return the record that ties a suite's files, (candidate's, base's), to the case's weights. A suite of
    `loss` has one file, from `veritune probe forgetting`, on the candidate's side.

    Raises StudyError when the policy declares no such suite, InputError without a name or files, ScoreError when the
    files cannot be read or compared.
    """
    suite = _suite(case, name)
    candidate, base = ([Path(p) for p in side] for side in files)
    _check_name(by)
    if suite.loss:
        if len(candidate) != 1 or base:
            raise InputError(
                "expected one record, which covers before and after.", fix="Give only --candidate FORGETTING.json"
            )
        found = read_forgetting(candidate, suite)
    elif not candidate or not base:
        raise InputError(
            "expected score files of the candidate and of the base.", fix="Give both: --candidate FILE --base FILE"
        )
    else:
        found = compare_files(candidate, base, suite)
    settings = {side: [input_name(case.store, p) for p in paths] for side, paths in _sides(candidate, base)}
    record = Evidence(
        regression_kind(name),
        found.status,
        found.message,
        case.candidate.subject,
        to_json(found.numbers),
        {"margin": suite.margin, "alpha": suite.alpha},
        input_hashes(case.store, *candidate, *base),
        {**settings, "asserted_by": by.strip()},
    )
    write_evidence(case.store, record)
    return record


def _check_name(by: str) -> None:
    if not by.strip():
        raise InputError("--by is required: the name of the person who attests these measurements.", fix="--by NAME")


def bind_calibration(case: Case, file: Path, by: str) -> Evidence:
    """Write the evidence of a calibration record (`veritune probe calibration ... --out FILE`) for the case's weights.

    Where the record holds the base as well, the trained model's part is taken. Raises InputError without a name, or for
    a file that holds no ECE and Brier score with intervals.
    """
    _check_name(by)
    record = read_json(file) if file.is_file() else {}
    found = record.get("trained") or record.get("model") or record
    found = found if isinstance(found, Mapping) else {}
    kept = {k: found[k] for k in ("ece", "ece_debiased", "brier") if isinstance(found.get(k), Mapping)}
    for name, estimate in kept.items():
        problem = estimate_problem(estimate, SCALE[name])
        if problem:
            raise InputError(
                f"{file}, {name}: {problem}.", fix="Make it again with `veritune probe calibration ... --out FILE`."
            )
    bare = [k for k, e in kept.items() if e.get("low") is None or e.get("high") is None]
    if {"ece", "brier"} <= set(kept) and bare:
        raise InputError(
            f"{file}: {', '.join(bare)} of {found.get('n', 'its')} rows has no interval (too few independent rows), "
            "but a gate decides by intervals.",
            fix="Measure it on more questions.",
        )
    if not {"ece", "brier"} <= set(kept):
        raise InputError(
            f"{file}: expected a calibration record with `ece` and `brier`, each with low and high.",
            fix="Make one with `veritune probe calibration ... --out FILE`.",
        )
    keys = ("value", "low", "high", "level", "n", "n_clusters", "method")
    numbers = {name: {k: estimate.get(k) for k in keys} for name, estimate in kept.items()}
    message = f"measured on {numbers['brier']['n']} answers, attested by {by.strip()}"
    inputs, settings = input_hashes(case.store, file), {"asserted_by": by.strip()}
    made = Evidence("calibration", "passed", message, case.candidate.subject, numbers, {}, inputs, settings)
    write_evidence(case.store, made)
    return made


def _sides(candidate: list[Path], base: list[Path]) -> tuple[tuple[str, list[Path]], ...]:
    return (("candidate", candidate), ("base", base))


def _suite(case: Case, name: str) -> Suite:
    suites = case.policy.release.regression.suites
    if name not in suites or suites[name].eval is not None:
        imported = sorted(n for n, s in suites.items() if s.eval is None)
        raise StudyError(
            f"the policy declares no imported suite {name!r}; it declares {', '.join(imported) or 'none'}.",
            fix=f"Declare it with its margin: release.regression.suites.{name}: {{margin: 0.02}}.",
        )
    return suites[name]

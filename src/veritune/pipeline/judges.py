"""How far the judges of a study agree with people, measured before anything trains and kept in `audit/`."""

from __future__ import annotations

from veritune.config.study import Study
from veritune.errors import GateError
from veritune.evaluate.judge import Judge, measure
from veritune.evaluate.scorers import JUDGED
from veritune.pipeline.ready import Ready
from veritune.records import JudgeAgreement
from veritune.seal import break_seal
from veritune.store import hash_of


def judges_agree(ready: Ready) -> dict[str, JudgeAgreement]:
    """The agreement of every judge with its labelled file, measured if it was not measured before.

    Raises GateError where a confirmatory claim rests on a judge whose agreement is too low, ModelError where the server
    gives no answer, DataError for a file that is no list of labels.
    """
    made = {}
    for name, spec in ready.study.evals.items():
        if spec.kind != "judge" or spec.agreement is None:
            continue
        limits, path = ready.study.thresholds.judge, ready.store.audit(f"judge-{name}.json")
        frozen = (ready.facts.scorers or {})[name]
        digest = hash_of([spec.model_dump(mode="json"), frozen.sha256, limits.model_dump()])
        record = ready.store.made(JudgeAgreement, path, digest)
        if record is None:
            break_seal(ready.store)
            judge = Judge.of(spec, ready.store.root / JUDGED)
            file = ready.store.root / spec.agreement
            record = measure(judge, file, least_kappa=limits.least_kappa, digest=digest)
            record.save(path)
        ready.progress.say(f"judge    {name}: {record.reading}")
        made[name] = record
        claims = confirmatory_on(ready.study, name)
        if claims and not record.may_decide:
            raise GateError(
                f"evals.{name}: claim {claims[0]} depends on a judge that may not decide: {record.reading}",
                fix="Make the claim `correction: exploratory`, or use another judge or prompt. Nothing has trained.",
            )
    return made


def confirmatory_on(study: Study, name: str) -> list[str]:
    """The confirmatory claims that the scores of an eval decide."""
    return [
        claim.name
        for claim in study.claims
        if claim.kind != "probe" and claim.correction == "confirmatory"
        if name in (study.eval_of(claim), claim.kept_eval, claim.against_eval)
    ]

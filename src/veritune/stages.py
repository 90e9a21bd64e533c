"""`veritune run`: the whole way of one study, from its file to verdicts and report, stage by stage.

Nothing trains before the file, the paths, the template, the zones and one live step per condition have been checked.
Every stage skips what is on disk and was made from the same inputs.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from veritune import contract
from veritune.data.prepare import Prepared, prepare
from veritune.decide.claims import Context as ClaimContext
from veritune.decide.claims import judge
from veritune.decide.table import ScoreTable
from veritune.errors import InputError, StudyError
from veritune.evaluate import tasks
from veritune.machine import describe_machine, package_versions
from veritune.progress import Progress
from veritune.records import Row, Score, Verdict, to_json
from veritune.report.page import write_report
from veritune.seal import break_seal, refuse_edited, seal
from veritune.store import Store, hash_of, read_json, read_jsonl, write_json, write_jsonl
from veritune.study import BASELINE, Study, load_study


@dataclass(frozen=True)
class Outcome:
    """What a finished study came to."""

    folder: Path
    verdicts: tuple[Verdict, ...]
    report: Path
    trained: int
    skipped: int
    wall_s: float

    @property
    def all_supported(self) -> bool:
        """Whether every declared claim is supported, exploratory ones too."""
        return all(v.status == "supported" for v in self.verdicts)


def run(study_file: str | Path, *, amend: str | None = None, progress: Progress | None = None) -> Outcome:
    """Run a study, or what is left of it.

    `amend` is the reason for a change against the frozen contract; without one a changed study is refused (StaleError).
    Raises subclasses of VerituneError; nothing that was finished is lost.
    """
    file = Path(study_file)
    file = file / "study.yaml" if file.is_dir() else file
    study = load_study(file)
    if file.name != "study.yaml":
        raise StudyError(f"{file}: a study file is named study.yaml; its folder is the study.", fix="Rename it.")
    store = Store(file.parent)
    with store.lock():
        store.check_format()
        store.check_events()
        store.clear_partial()
        refuse_edited(store)
        return _Runner(store, study, progress or Progress()).run(amend)


class _Runner:
    """One pass over one study folder, held under its lock."""

    def __init__(self, store: Store, study: Study, progress: Progress) -> None:
        self.store = store
        self.study = study
        self.progress = progress
        self.trained = 0
        self.skipped = 0

    def run(self, amend: str | None) -> Outcome:
        progress, study = self.progress, self.study
        progress.say(f"{study.name}: {study.question}")
        self._check()
        data = self._data()
        items = self._items(data)
        facts = self._facts(data)
        if self.store.contract_file.exists() and not amend:
            contract.freeze(self.store, study, facts)  # refuses a changed study before anything is spent
        context, cells = self._context(data), self._cells(facts)
        self._plan(context, cells, items)
        self._live_probes(context, cells)
        kept = contract.amend(self.store, study, facts, amend) if amend else contract.freeze(self.store, study, facts)
        for number, cell in enumerate(cells, start=1):
            self._cell(context, cell, items, f"[{number}/{len(cells)}]")
        self._zone_gaps(cells)
        verdicts = self._decide(cells, kept)
        report = write_report(self.store, study)
        wall_s = progress.elapsed_s()
        if self.trained:
            self.store.log("ran", cells=len(cells), trained=self.trained, skipped=self.skipped, wall_s=round(wall_s, 1))
        seal(self.store)
        return Outcome(self.store.root, tuple(verdicts), report, self.trained, self.skipped, wall_s)

    # -- checks before anything is spent ----------------------------------------------------------------------

    def _check(self) -> None:
        from veritune.train import methods
        from veritune.train.models import context_length, load_tokenizer, resolve

        for name, condition in self.study.conditions.items():
            methods.check(name, condition)
        names = probe_names(self.study)
        for claim in self.study.claims:
            if claim.probe is not None and claim.probe not in names:
                close = difflib.get_close_matches(claim.probe, names, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise StudyError(f"claims: {claim.name}: no probe {claim.probe!r}{hint}.", fix=f"There are: {names}.")
        self.model = resolve(self.study.model, self.store.root)
        self.tokenizer = load_tokenizer(self.model)
        longest = context_length(self.model)
        if longest is not None and self.study.train.max_length > longest:
            raise StudyError(
                f"train.max_length: {self.study.train.max_length} exceeds the model's context of {longest} tokens.",
                fix=f"Set it to at most {longest}.",
            )

    def _data(self) -> Prepared:
        data = prepare(self.store, self.study, self.tokenizer)
        zones = {z: f"{c['rows']} {z} ({c['families']} families)" for z, c in data.facts["zones"].items()}
        self.progress.say(
            f"data     {len(data.rows)} rows, {data.facts['families']['originals']} families: "
            + ", ".join(zones.values())
        )
        return data

    def _items(self, data: Prepared) -> dict[str, list[Row]]:
        chosen = {}
        for name, spec in self.study.evals.items():
            rows = tasks.items(spec, data.rows, data.zone_of, data.family_of)
            empty = [zone for zone in spec.zones if not any(data.zone_of[r.id] == zone for r in rows)]
            if empty:
                raise StudyError(f"evals.{name}: zone {empty[0]!r} has no items.", fix="Change `split` or the zones.")
            tasks.check_items(name, spec, rows)
            chosen[name] = rows
        return chosen

    def _facts(self, data: Prepared) -> dict[str, Any]:
        from veritune.train.models import weight_hashes

        self.packages = package_versions()
        self.machine = describe_machine()
        model = {"name": self.model.name, "dtype": self.model.dtype, "files": weight_hashes(self.model)}
        return {**data.facts, "model": model, "packages": self.packages}

    def _cells(self, facts: Mapping[str, Any]) -> list[Any]:
        from veritune.train.cells import plan_cells

        return plan_cells(self.study, facts)

    def _context(self, data: Prepared) -> Any:
        from veritune.train.cells import Context

        return Context(self.store, self.study, self.model, self.tokenizer, data, self.progress)

    # -- plan and live probe ----------------------------------------------------------------------------------

    def _plan(self, context: Any, cells: Sequence[Any], items: Mapping[str, Sequence[Row]]) -> None:
        """Count the work that is left, so that the time left can be told."""
        from veritune.train.cells import summary_hash, training_tokens

        tokens = training_tokens(self.study, context.data)
        for cell in cells:
            folder = self.store.run(cell.run_id)
            if self.store.is_done(folder / "summary.json", summary_hash(context, cell)):
                continue
            if cell.phase != BASELINE and not (folder / "training.json").exists():
                self.progress.plan("train", tokens)
            kind = f"generate {'baseline' if cell.phase == BASELINE else 'tuned'}"
            self.progress.plan(kind, sum(len(rows) for rows in items.values()))
            self.progress.plan("nll", len(self._nll_rows(context, items)))
        self.progress.say(f"plan     {len(cells)} cells, {tokens:,} training tokens each")

    def _live_probes(self, context: Any, cells: Sequence[Any]) -> None:
        from veritune.train.cells import live_probe

        first = {cell.condition: cell for cell in reversed(cells) if cell.phase != BASELINE}
        for name in self.study.conditions:
            cell, path = first[name], self.store.audit(f"live-{name}.json")
            if not self.store.is_done(path, cell.input_hash):
                found = live_probe(context, cell, self.store.root / "audit" / "live-work")
                write_json(path, {**found, "input_hash": cell.input_hash})
            found = read_json(path)
            trainable = found["trainable"]
            share = trainable["n_trainable"] / trainable["n_total"]
            self.progress.measure("train", self._step_tokens(context), found["step_s"])
            self.progress.say(
                f"probe    {name}: one live step, loss {found['loss']:.3f}, {trainable['n_trainable']:,} parameters"
                f" train ({share:.2%}) in {len(trainable['modules'])} modules"
            )

    def _step_tokens(self, context: Any) -> float:
        rows = context.data.zone("seen")
        batch = self.study.train.per_device_train_batch_size * self.study.train.gradient_accumulation_steps
        return sum(len(r.input_ids) for r in rows) / len(rows) * min(batch, len(rows))

    # -- one cell ---------------------------------------------------------------------------------------------

    def _cell(self, context: Any, cell: Any, items: Mapping[str, Sequence[Row]], label: str) -> None:
        from veritune.train import cells

        folder = self.store.run(cell.run_id)
        what = "baseline, untouched" if cell.phase == BASELINE else f"{cell.condition}, seed {cell.seed}"
        if self.store.is_done(folder / "summary.json", cells.summary_hash(context, cell)):
            self.skipped += 1
            self._tell(read_json(folder / "summary.json"), f"{label} {what}: done before, skipped")
            return
        self.trained += 1
        break_seal(self.store)
        (folder / "summary.json").unlink(missing_ok=True)  # it speaks of scores that are about to go
        cells.start(context, cell, self.machine, self.packages)
        if cell.phase != BASELINE:
            cells.train(context, cell)
        model = cells.load_trained(context, cell)
        cells.measure_nll(context, cell, model, self._nll_rows(context, items))
        paths = {name: self._score(context, cell, name, rows, model) for name, rows in items.items()}
        self._tell(cells.finish(context, cell, paths), f"{label} {what}")

    def _nll_rows(self, context: Any, items: Mapping[str, Sequence[Row]]) -> list[str]:
        asked = {row.id for rows in items.values() for row in rows}
        return [row.id for row in context.data.rows if row.id in asked or context.data.zone_of[row.id] == "validation"]

    def _score(self, context: Any, cell: Any, name: str, rows: Sequence[Row], model: Any) -> Path:
        """Generate and score one eval; the path of its scores. Scores of another eval contract are set aside."""
        from veritune.evaluate.generate import Decoding, generate

        spec = self.study.evals[name]
        path = self.store.run(cell.run_id) / "scores" / f"{name}.jsonl"
        stamp = path.with_suffix(".json")
        digest = hash_of({"cell": cell.input_hash, "eval": spec.model_dump(mode="json"), "items": [r.id for r in rows]})
        if path.exists() and self.store.is_done(stamp, digest):
            return path
        kind = f"generate {'baseline' if cell.phase == BASELINE else 'tuned'}"

        def on_batch(n: int, seconds: float) -> None:
            self.progress.measure("generate tuned", n, seconds)
            self.progress.advance(kind, n, seconds, f"{cell.condition} seed {cell.seed}: answering {name}")

        decoding = Decoding(spec.max_new_tokens, spec.batch_size)
        outputs = generate(model, self.tokenizer, [context.data.prompts[r.id] for r in rows], decoding, on_batch)
        data = context.data
        _set_aside(path, stamp)
        scores = []
        for row, output in zip(rows, outputs):
            where = {"family": data.family_of[row.id], "zone": data.zone_of[row.id]}
            scores.append(replace(tasks.score(name, spec, row, output), run_id=cell.run_id, **where))
        write_jsonl(path, scores)
        write_json(
            stamp, {"input_hash": digest, "items": len(scores), "decoding": {"greedy": True, **asdict(decoding)}}
        )
        return path

    def _tell(self, summary: Mapping[str, Any], label: str) -> None:
        parts = []
        for name, zones in summary["scores"].items():
            means = [
                f"{zone} {z['mean']:.3f}" if z["mean"] is not None else f"{zone} none" for zone, z in zones.items()
            ]
            parts.append(f"{name} " + ", ".join(means))
        self.progress.say(f"{label:<44} " + "; ".join(parts))

    def _zone_gaps(self, cells: Sequence[Any]) -> None:
        """Policy or samples: how much of each run's gain in loss carries to siblings and strangers."""
        from veritune.probe.study import zone_gap

        zones = {zone for spec in self.study.evals.values() for zone in spec.zones}
        if not {"seen", "stranger"} <= zones:
            return
        baseline = next(cell.run_id for cell in cells if cell.phase == BASELINE)
        for cell in cells:
            if cell.phase != BASELINE:
                found = zone_gap(self.store, baseline, cell.run_id)
                share = found["carried"]["stranger"]
                carried = "" if share["low"] is None else f" ({share['low']:.0%} to {share['high']:.0%})"
                self.progress.say(
                    f"gap      {cell.condition}, seed {cell.seed}: {found['verdict']}; {share['value']:.0%}{carried}"
                    " of the gain in loss carries to strangers"
                )

    # -- decide -----------------------------------------------------------------------------------------------

    def _decide(self, cells: Sequence[Any], kept: Mapping[str, Any]) -> list[Verdict]:
        tables = score_tables(self.store, self.study, [cell.run_id for cell in cells])
        exploratory = contract.exploratory_claims(kept)
        claims = []
        for claim in self.study.claims:
            late = {"correction": "exploratory"} if claim.name in exploratory else {}
            claims.append(claim.model_copy(update={"eval": self.study.eval_of(claim), **late}))
        context = ClaimContext(
            probes=recorded_quantities(self.store, [cell.run_id for cell in cells]),
            scales=dict.fromkeys(self.study.evals, (0.0, 1.0)),
            failure_values=dict.fromkeys(self.study.evals, 0.0),
            evidence={"*": {"contamination": _contamination(kept), "replicated": None}},
        )
        verdicts = [
            replace(v, exploratory=v.exploratory or v.claim in exploratory) for v in judge(claims, tables, context)
        ]
        inputs = hash_of({"contract": kept["entries"][-1]["hash"], "scores": self._score_hashes(cells)})
        runs = [cell.run_id for cell in cells]
        record = {"input_hash": inputs, "contract": kept["entries"][-1]["hash"], "runs": runs, "verdicts": verdicts}
        if not self.store.verdict_file.exists() or read_json(self.store.verdict_file) != to_json(record):
            write_json(self.store.verdict_file, record)
        self.store.log_once("decided", inputs=inputs, verdicts={v.claim: v.status for v in verdicts})
        return verdicts

    def _score_hashes(self, cells: Sequence[Any]) -> dict[str, str]:
        folders = [self.store.run(cell.run_id) / "scores" for cell in cells]
        paths = [folder / f"{name}.json" for folder in folders for name in self.study.evals]
        return {self.store.relative(path): read_json(path)["input_hash"] for path in paths}


def _set_aside(path: Path, stamp: Path) -> None:
    """Keep scores of an earlier eval contract under the hash they were made from; half-made ones go."""
    if stamp.exists() and path.exists():
        old = read_json(stamp)["input_hash"][:8]
        path.rename(path.with_name(f"{path.stem}.{old}.jsonl"))
        stamp.rename(stamp.with_name(f"{stamp.stem}.{old}.json"))
    stamp.unlink(missing_ok=True)  # the stamp of other scores must not vouch for new ones
    path.unlink(missing_ok=True)


def probe_names(study: Study) -> list[str]:
    """What a claim of kind `probe` may name: quantities that every run of the study records."""
    arms = [*study.conditions, BASELINE]
    zones = sorted({zone for spec in study.evals.values() for zone in spec.zones} | {"validation"})
    trained = [f"{what}.{name}" for name in study.conditions for what in ("final_loss", "trainable_share")]
    return sorted([*(f"nll.{zone}.{arm}" for zone in zones for arm in arms), *trained])


def recorded_quantities(store: Store, run_ids: Sequence[str]) -> dict[str, float]:
    """The quantities of `probe_names`, each the mean over the condition's seeds."""
    values: dict[str, list[float]] = {}
    for run_id in run_ids:
        summary = read_json(store.run(run_id) / "summary.json")
        arm, training = summary["condition"], summary["training"]
        for zone, found in summary["nll"].items():
            values.setdefault(f"nll.{zone}.{arm}", []).append(found["nll"])
        if training is not None:
            share = training["trainable"]["n_trainable"] / training["trainable"]["n_total"]
            values.setdefault(f"final_loss.{arm}", []).append(training["final_loss"])
            values.setdefault(f"trainable_share.{arm}", []).append(share)
    return {name: sum(found) / len(found) for name, found in values.items()}


def _contamination(kept: Mapping[str, Any]) -> str:
    """`clean` when no near-copy of a held-out item was found in the trained rows, else `found`."""
    counts = kept["entries"][-1]["terms"]["facts"]["contamination"]["evals"].values()
    return "found" if any(c["rows_exact"] + c["rows_confirmed"] for c in counts) else "clean"


def scores(study: str | Path) -> dict[tuple[str, str], ScoreTable]:
    """Tables by (condition, eval) of a finished study: the runs its verdicts were made from.

    Raises InputError when the study has no verdicts yet.
    """
    store = Store.of(study)
    if not store.verdict_file.exists():
        raise InputError(f"{store.root} has no verdicts yet.", fix=f"Run it first: veritune run {store.root}")
    return score_tables(store, load_study(store.study_file), read_json(store.verdict_file)["runs"])


def score_tables(store: Store, study: Study, run_ids: Sequence[str]) -> dict[tuple[str, str], ScoreTable]:
    """The scores of these runs as tables by (condition, eval); the baseline is a fixed arm."""
    scores: dict[tuple[str, str], list[Score]] = {}
    for run_id in run_ids:
        condition = read_json(store.run(run_id) / "manifest.json")["condition"]
        for name in study.evals:
            rows = read_jsonl(store.run(run_id) / "scores" / f"{name}.jsonl")
            scores.setdefault((condition, name), []).extend(Score(**row) for row in rows)
    return {
        key: ScoreTable.from_scores(rows, condition=key[0], fixed=key[0] == BASELINE) for key, rows in scores.items()
    }

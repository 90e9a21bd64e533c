"""What `probes.geometry` and `probes.make` of a study will take, from the speeds that the plan has measured.

Passes without gradients are taken at the speed of validation, per-example gradients at that of a training step (they
cost 1.03 of one), answers at the speed of the answer probe with every answer of full length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veritune.config.study import GeometryProbe
from veritune.pipeline.cell import cells_of
from veritune.pipeline.ready import Ready
from veritune.records.plan import AnswerProbe, EvalTiming, LiveProbe, PlannedCell, PlannedProbe
from veritune.train.schedule import MAIN, seen_rows


def planned_probes(
    ready: Ready, rows: Sequence[PlannedCell], live: Mapping[str, LiveProbe], answers: AnswerProbe
) -> tuple[PlannedProbe, ...] | None:
    """One line per probe that `run` makes once the cells are done, `probes.geometry` first; None where it makes none.

    The leak is planned as cells of its own.
    """
    asked, names = ready.study.probes.geometry, ready.study.probes.make
    costs = _Costs(ready, [row for row in rows if row.phase == MAIN], live, answers)
    made = [] if asked is None else [costs.geometry("geometry of checkpoints", asked, costs.checkpoints(), bases=1)]
    made += [costs.of(name) for name in dict.fromkeys(names)]
    return tuple(made) or None


def answer_seconds(ready: Ready, name: str, timing: EvalTiming) -> float:
    """Seconds to answer one eval when every answer runs to the limit; early ends make it shorter."""
    spec = ready.study.evals[name]
    if spec.kind == "choice":  # what was timed is the loss of one batch of options
        rows = sum(len(item.rows) for item in ready.options[name])
        return float(math.ceil(rows / max(timing.prompts, 1)) * timing.prompt_s)
    batches = math.ceil(len(ready.items[name]) / spec.batch_size)
    return float(batches * (timing.prompt_s + spec.max_new_tokens * timing.token_s))


def _recall_passes() -> int:
    """Passes over a row: its own ending, others of each kind, and the row as it is."""
    from veritune.probe.recall import KINDS, RecallPlan

    return 2 + len(KINDS) * RecallPlan().others


@dataclass(frozen=True)
class _Costs:
    ready: Ready
    runs: Sequence[PlannedCell]
    live: Mapping[str, LiveProbe]
    answers: AnswerProbe

    def of(self, name: str) -> PlannedProbe:
        """One probe of `probes.make`, over all runs of the study."""
        n_runs, by_arm = len(self.runs), bool(self.ready.study.data.sets)
        if name == "geometry":
            return self.geometry(name, GeometryProbe(methods=("last_input_token", "response_mean")), n_runs, n_runs)
        if name == "gradients":
            return self._gradients(by_arm)
        zones = {"recall": ("seen", "sibling", "stranger"), "tokens": ("seen", "stranger")}
        if by_arm:  # on the rows that the evals ask, the base measured once
            zones["tokens"] = ("stranger",)
        models = n_runs + (1 if by_arm or name == "calibration" else n_runs)
        if name == "checkpoints":
            models = self.checkpoints() + n_runs
            seconds = models * self._forward(self.ready.nll_rows)
        elif name == "calibration":
            asked = [r.id for rows in self.ready.items.values() for r in rows]
            said = sum(answer_seconds(self.ready, *eval_) for eval_ in self.answers.evals.items())
            seconds = models * (said + self._forward(asked))
        else:
            passes = _recall_passes() if name == "recall" else 1
            seconds = models * passes * self._forward(self._rows(zones[name], asked=by_arm))
        return PlannedProbe(name, models, seconds + models * self.answers.load_s)

    def checkpoints(self) -> int:
        """Checkpoints that stay on disk."""
        keep = self.ready.study.keep or "best"
        return sum({"all": row.checkpoints, "best": min(1, row.checkpoints), "none": 0}[keep] for row in self.runs)

    def geometry(self, name: str, asked: GeometryProbe, trained: int, bases: int) -> PlannedProbe:
        """Every persona's answer to every question, read once per model and method."""
        from veritune.probe import geometry as g

        prompts = g.render_personas(self.ready.tokenizer, asked.personas or g.PERSONAS, asked.questions or g.QUESTIONS)
        n_prompts = (len(prompts.personas) + 1) * len(prompts.reference)
        tokens = sum(len(ids) for of in (*prompts.ids, prompts.reference) for ids in of)
        seconds = 0.0
        for method in asked.methods:
            said = asked.max_new_tokens if method == "response_mean" else 0
            seconds += self._forward_s(tokens + n_prompts * said)
            seconds += len(prompts.reference) * said * self._token_s(len(prompts.personas) + 1)
        models = trained + bases
        return PlannedProbe(name, models, models * (seconds + self.answers.load_s))

    def _gradients(self, by_arm: bool) -> PlannedProbe:
        """The base's gradients: on all seen rows, or once on each different set of rows that an arm trains on."""
        seen = [self.ready.data.rendered[i] for i in self._rows(("seen",))]
        sets = {tuple(r.row_id for r in seen): seen}
        if by_arm:
            arms = {cell.condition: cell for cell in cells_of(self.ready) if cell.condition in self.live}
            drawn = (seen_rows(self.ready.study, self.ready.data, cell) for cell in arms.values())
            sets = {tuple(r.row_id for r in rows): list(rows) for rows in drawn}
        step = max(probe.step_s / probe.step_tokens for probe in self.live.values())
        tokens = sum(len(r.input_ids) for rows in sets.values() for r in rows)
        return PlannedProbe("gradients", len(sets), tokens * step + len(sets) * self.answers.load_s)

    def _rows(self, zones: Sequence[str], *, asked: bool = False) -> list[str]:
        known = set(self.ready.nll_rows) if asked else None
        ids = (row.id for row in self.ready.data.rows if self.ready.data.zone_of[row.id] in zones)
        return [i for i in ids if known is None or i in known]

    def _forward(self, rows: Sequence[str]) -> float:
        return self._forward_s(sum(len(self.ready.data.rendered[i].input_ids) for i in rows))

    def _forward_s(self, tokens: int) -> float:
        """Seconds of passes without gradients over so many tokens, at the speed of the slowest condition."""
        return max(probe.validation_seconds(tokens) for probe in self.live.values())

    def _token_s(self, prompts: int) -> float:
        """Seconds for one more token of each of so many prompts, at the slowest eval's speed for a batch."""
        timed = [t for t in self.answers.evals.values() if t.token_s]
        return max((t.token_s * math.ceil(prompts / max(t.prompts, 1)) for t in timed), default=0.0)

"""Claims on probes from end to end: every family of quantities read from the record that its own probe makes on the
tiny model, with the interval that the probe itself would give at another level."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veritune import contract
from veritune.commands.app import app
from veritune.config.load import load_study
from veritune.config.study import Study
from veritune.decide.probe_records import READERS, recorded_quantities
from veritune.decide.reach import resolution
from veritune.decide.recorded import Recorded
from veritune.errors import InputError, ScoreError, StudyError
from veritune.evaluate.calibration import calibration
from veritune.pipeline import run
from veritune.pipeline.decide import decide
from veritune.pipeline.leak import leak_command
from veritune.pipeline.probes import MODEL_PROBES, probe_report
from veritune.pipeline.ready import make_ready
from veritune.probe.effective import align, choose, directions, unit
from veritune.probe.memorization import three_zone_gap, zone_gains
from veritune.probe.names import OPEN, PATTERNS, ProbeNames, _names, nearest, pattern_of
from veritune.probe.study import zoned_losses
from veritune.progress import Progress
from veritune.records import Estimate, GradientProbe, RowLosses, to_json
from veritune.store import Store, read_json

ARM = "all_layer"
CLAIMS = {
    "loss": (f"nll.stranger.{ARM}", "<", 7.0),
    "count": (f"trainable_share.{ARM}", "<", 0.5),
    "moved": (f"weights.relative_change.total.{ARM}", "<", 50.0),
    "step": (f"final_loss.{ARM}", ">", 5.9),
    "forgot": (f"forgetting.rise.{ARM}", "<", 1.0),
}


@dataclass(frozen=True)
class Probed:
    """A finished study with a record of every probe in it."""

    root: Path

    @property
    def store(self) -> Store:
        return Store(self.root)

    @property
    def study(self) -> Study:
        return load_study(self.root / "study.yaml")

    @property
    def runs(self) -> list[str]:
        return sorted(path.parent.name for path in self.store.runs.glob("*/summary.json"))

    def runs_of(self, arm: str) -> list[str]:
        return [name for name in self.runs if name.startswith(arm)]

    def quantities(self) -> dict[str, Recorded]:
        return recorded_quantities(self.store, self.runs)

    def verdicts(self) -> dict[str, Any]:
        return {v.claim: v for v in decide(self.store, self.study, self.runs, contract.read(self.store))}


def _rows() -> list[dict[str, Any]]:
    """40 originals in two wordings; the answer is a word of the question."""
    words = ["harbor", "gate", "lamp", "ferry", "crane", "boat", "quay", "rope", "net", "tide", "storm", "bridge"]
    draw, rows = random.Random(1), []
    for family in range(40):
        mine = draw.sample(words, 5)
        for wording in range(2):
            ask, answer = f"{' '.join(draw.sample(mine, 4))} {family}", f"{mine[0]} {mine[1]} {' '.join(mine[2:])} end"
            turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            rows.append({"id": f"f{family}-{wording}", "original": f"f{family}", "thing": mine[0], "messages": turns})
    return rows


def _declare(settings: dict[str, Any]) -> None:
    answer = {"kind": "match", "extract": "([a-z]+)", "expected": "thing", "max_new_tokens": 6}
    settings["evals"] = {"style": settings["evals"]["style"], "first": answer}
    settings["train"]["max_steps"] = 4
    personas = {f"p{i}": f"You are number {i}." for i in range(4)}
    settings["probes"] = {"geometry": {"layers": [1], "personas": personas, "questions": ["amber?", "cedar?"]}}
    settings["conditions"].pop("attention_only")
    settings["claims"] = [
        {"name": name, "kind": "probe", "probe": probe, "op": op, "threshold": threshold}
        for name, (probe, op, threshold) in CLAIMS.items()
    ]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_study: Callable[..., Any]) -> Probed:
    """Run, then every probe that there is: on the study's rows, a leaky split, and forgetting by hand."""
    study = new_study(tmp_path_factory.mktemp("probed") / "study", tiny_model)
    study.write_rows(_rows())
    study.change(_declare)
    silent = Progress(silent=True)
    run(study.root, progress=silent)
    probe_report(study.root, silent, tuple(MODEL_PROBES))
    leak_command(study.root, progress=silent)
    made = Probed(study.root)
    for run_id in made.runs_of(ARM):
        checkpoint = made.root / read_json(made.store.run(run_id) / "training.json")["checkpoint"]
        out = made.root / "probes" / run_id / "forgetting.json"
        given = ["--model", tiny_model, "--adapter", checkpoint, "--data", made.root / "rows.jsonl", "--out", out]
        app([*map(str, ["probe", "forgetting", *given, "--family-field", "original"])], standalone_mode=False)
    return made


@pytest.fixture
def probed_copy(probed: Probed, tmp_path: Path) -> Probed:
    shutil.copytree(probed.root, tmp_path / "copy")
    return Probed(tmp_path / "copy")


# ---------------------------------------------------------------- the registry


def test_every_pattern_is_recorded_by_its_probe_and_every_quantity_has_a_pattern(probed: Probed) -> None:
    study, found = probed.study, probed.quantities()
    by_pattern: dict[str, list[str]] = {pattern.name + str(pattern.choices): [] for pattern in PATTERNS}
    for name, quantity in found.items():
        pattern = pattern_of(name, study)
        assert pattern is not None, name
        by_pattern[pattern.name + str(pattern.choices)].append(name)
        if quantity.estimate.value is not None:
            _check_kind(pattern, quantity)
    of_one_arm = {pattern: names for pattern, names in by_pattern.items() if "{reference}" not in pattern}
    assert [pattern for pattern, names in of_one_arm.items() if not names] == []
    kinds = {kind for path in probed.root.glob("probes/*/*.json") for kind in _kinds(read_json(path))}
    assert kinds >= set(READERS) - {"brier_change", "geometry"}, "every reader has read a record that its probe made"


def _check_kind(pattern: ProbeNames, quantity: Recorded) -> None:
    """The registry's word on where an interval comes from is what was read."""
    assert quantity.exact == (pattern.uncertainty == "exact")
    assert quantity.over_items == (pattern.uncertainty == "items")


def _kinds(tree: object) -> set[str]:
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    own = {str(tree["kind"])} if isinstance(tree, dict) and "kind" in tree else set()
    return own.union(*map(_kinds, inner))


def test_modules_are_counted_beside_the_other_arm_of_the_same_seed(finished_copy: Any) -> None:
    silent = Progress(silent=True)
    probe_report(finished_copy.root, silent)
    store = Store(finished_copy.root)
    runs = sorted(path.parent.name for path in store.runs.glob("*/summary.json"))
    found = recorded_quantities(store, runs)
    counts = {way: found[f"weights.cells.{way}.attention_only.{ARM}"] for way in ("above", "below")}
    assert all(c.estimate.n_seeds == 2 and not c.exact for c in counts.values())
    shares = found[f"gradients.per_parameter.attention.{ARM}"]
    assert shares.estimate.value is not None and shares.estimate.value > 0
    study = load_study(finished_copy.root / "study.yaml")
    assert pattern_of(f"weights.cells.above.attention_only.{ARM}", study) is not None
    assert pattern_of(f"weights.cells.above.{ARM}.{ARM}", study) is None, "an arm beside itself says nothing"
    damaged = finished_copy.root / "probes" / next(r for r in runs if r.startswith(ARM)) / "weights.json"
    record = read_json(damaged)
    del record["record"]["modules"][0]["type"]  # only the counts need it: no other quantity of the file reads it
    damaged.write_text(json.dumps(record), "utf-8")
    with pytest.raises(ScoreError, match=r"weights\.json: modules\[0\]\.type: expected this key, but it is missing"):
        recorded_quantities(store, runs)
    damaged.write_text("{", "utf-8")
    with pytest.raises(ScoreError, match=r"weights\.json"):
        recorded_quantities(store, runs)


def test_two_arms_are_compared_by_their_losses_on_the_same_rows_and_seed(finished_copy: Any) -> None:
    store, other = Store(finished_copy.root), "attention_only"
    runs = sorted(path.parent.name for path in store.runs.glob("*/summary.json"))
    found = recorded_quantities(store, runs)
    lower = found[f"nll_below.{other}.stranger.{ARM}"]
    nll = {arm: found[f"nll.stranger.{arm}"].estimate for arm in (ARM, other)}
    assert nll[ARM].value is not None and nll[other].value is not None and lower.estimate.value is not None
    assert lower.estimate.value == pytest.approx(nll[other].value - nll[ARM].value), "by hand: the means' difference"
    turned = found[f"nll_below.{ARM}.stranger.{other}"].estimate
    assert turned.value == pytest.approx(-lower.estimate.value), "turned round it is the other's"
    assert lower.estimate.n_seeds == 2 and not lower.exact and lower.over_items
    study = load_study(finished_copy.root / "study.yaml")
    assert pattern_of(f"nll_below.{other}.stranger.{ARM}", study) is not None
    assert pattern_of(f"nll_below.{ARM}.stranger.{ARM}", study) is None, "an arm beside itself says nothing"


def test_values_are_those_of_the_records_and_seeds_are_averaged(probed: Probed) -> None:
    found, runs = probed.quantities(), probed.runs_of(ARM)
    summaries = [read_json(probed.store.run(r) / "summary.json") for r in runs]
    probes = [probed.root / "probes" / r for r in runs]
    weights = [read_json(p / "weights.json")["record"]["total"]["relative"] for p in probes]
    grids = [read_json(p / "geometry.json")["record"]["methods"]["response_mean"]["layers"][1] for p in probes]
    expected = {
        f"nll.stranger.{ARM}": [s["nll"]["stranger"]["nll"] for s in summaries],
        f"final_loss.{ARM}": [s["training"]["final_loss"] for s in summaries],
        f"weights.relative_change.total.{ARM}": weights,
        f"geometry.m1_change.1.response_mean.{ARM}": [g["m1"]["change"] for g in grids],
        f"geometry.icc.1.response_mean.{ARM}": [g["icc"]["trained"] for g in grids],
        f"forgetting.rise.{ARM}": [read_json(p / "forgetting.json")["loss"]["rise"]["value"] for p in probes],
    }
    for name, values in expected.items():
        assert found[name].estimate.value == pytest.approx(np.mean(values)), name
        assert found[name].estimate.n_seeds == 2 and found[name].estimate.scope == f"the recipe {ARM}"
    whole = [read_json(p / "geometry.json")["record"] for p in probes]
    cells = [[line["m1"] for m in g["methods"].values() for line in m["layers"]] for g in whole]
    rose = [sum(c["p_adjusted"] < 0.05 and c["change"] >= 0.005 for c in of) for of in cells]
    assert found[f"geometry.cells.m1_rose.{ARM}"].estimate.value == pytest.approx(np.mean(rose))
    every = [
        p for g in whole for m in g["methods"].values() for x in m["layers"] for p in x.values() if isinstance(p, dict)
    ]
    assert {g["family"]["values"] for g in whole} == {sum(c["p"] is not None for c in every)}, (
        "one family over the runs"
    )
    share = found[f"trainable_share.{ARM}"]
    assert share.exact and share.estimate.value == summaries[0]["training"]["trainable"]["share"]
    leak = found[f"leak.flattered.{ARM}"]
    assert leak.estimate.n_seeds == 1 and leak.estimate.scope == f"this adapter of {ARM}"
    assert found["n_eff.baseline"].estimate.scope == "the base model"


def test_the_zone_gap_of_one_run_has_the_probe_s_own_interval_at_any_level(probed: Probed) -> None:
    (base,), (first, _) = probed.runs_of("baseline"), probed.runs_of(ARM)
    found = recorded_quantities(probed.store, [base, first])[f"gap.carried.stranger.{ARM}"]
    losses = [RowLosses.load(probed.store.run(r) / "probes" / "nll.json").rows for r in (base, first)]
    recorded = three_zone_gap(*zoned_losses(*losses)).carried["stranger"]
    gains = zone_gains(*zoned_losses(*losses), least=8)
    assert found.spread is not None and found.estimate.value == recorded.value
    assert found.spread.interval(0.95) == pytest.approx((recorded.low, recorded.high))
    for level in (0.9, 0.99, 0.9999):
        carried = gains.carried("stranger", level)
        expected = (-np.inf, np.inf) if carried.low is None else (carried.low, carried.high)
        assert found.spread.interval(level) == pytest.approx(expected)


# ---------------------------------------------------------------- intervals at another level


def _reread(kind: str, record: object) -> dict[str, Recorded]:
    return dict(READERS[kind](json.loads(json.dumps(to_json(record))), "record.json"))


def _grams(seed: int = 0) -> tuple[Any, Any]:
    """Gradients of 24 families of three: a common part, a family's, a row's own."""
    rng = np.random.default_rng(seed)
    family_N = np.repeat(np.arange(24), 3)
    grads = rng.standard_normal(60) + rng.standard_normal((24, 60))[family_N] + rng.standard_normal((72, 60))
    return unit(grads @ grads.T), choose([f"f{i}" for i in family_N])


def _gradient_probe(estimates: Sequence[Estimate]) -> GradientProbe:
    """A record of which only the estimates matter."""
    return GradientProbe(
        n_rows=72, n_measured=72, n_families=24, settings={}, coverage={}, loss={}, estimates=tuple(estimates), raw=(),
        by_type={}, by_family=(), by_source={}, norms={}, found=None, measured_rows=(), reading="", limits="",
        would_change="",
    )  # fmt: skip


def _at_level(level: float) -> Mapping[str, object]:
    """Records by kind, as the probe gives them at `level`."""
    rng = np.random.default_rng(1)
    conf_N = rng.uniform(0.3, 1, 400)
    right_N = (rng.uniform(size=400) < conf_N**2).astype(float)
    gram, sample = _grams()
    estimates = [*align(gram, sample, level=level).estimates(), directions(gram, level=level)]
    return {
        "gradients": _gradient_probe(estimates),
        "calibration": calibration(list(conf_N), list(right_N), [f"f{i // 4}" for i in range(400)], level=level),
    }


@pytest.mark.parametrize("level", [0.95, 0.99, 0.999])
@pytest.mark.parametrize("kind", ["gradients", "calibration"])
def test_a_record_at_95_gives_the_interval_that_its_probe_gives_at_another_level(kind: str, level: float) -> None:
    made = _reread(kind, _at_level(0.95)[kind])
    expected = {name: found.estimate for name, found in _reread(kind, _at_level(level)[kind]).items()}
    assert len(made) >= 3
    for name, quantity in made.items():
        assert quantity.spread is not None, name
        low, high = quantity.spread.interval(level)
        if name.startswith("calibration.ece"):  # the probe cuts them at 0 and 1
            low, high = max(low, 0.0), min(high, 1.0)
        assert (low, high) == pytest.approx((expected[name].low, expected[name].high), rel=1e-6), name


def test_n_eff_is_known_at_its_own_level_only_where_rho_does_not_give_it() -> None:
    record = json.loads(json.dumps(to_json(_at_level(0.95)["gradients"])))
    n_eff = next(e for e in record["estimates"] if e["name"] == "n_eff")
    n_eff["high"] *= 1.1
    spread = dict(READERS["gradients"](record, "record.json"))["n_eff"].spread
    assert spread is not None
    assert spread.interval(0.95) == (n_eff["low"], n_eff["high"])
    assert spread.interval(0.96) == (-np.inf, np.inf)


# ---------------------------------------------------------------- what must not pass


def test_the_verdicts_of_a_study(probed: Probed) -> None:
    found = probed.verdicts()
    assert {name: v.status for name, v in found.items()} == {
        "loss": "supported",
        "count": "supported",
        "moved": "supported",
        "step": "inconclusive",  # two seeds: a t with one degree of freedom
        "forgot": "supported",
    }
    assert found["count"].details.get("p_corrected") is None
    assert found["loss"].details["claims_in_family"] == 4
    assert any("placed by hand" in text for text in found["forgot"].warnings)
    assert not any("placed by hand" in text for text in found["moved"].warnings)


def test_a_probe_that_one_seed_lacks_is_untested_and_names_the_command(probed_copy: Probed) -> None:
    (probed_copy.root / "probes" / probed_copy.runs_of(ARM)[1] / "weights.json").unlink()
    found = probed_copy.verdicts()["moved"]
    assert found.status == "untested"
    assert "1 of 2 runs have no record" in found.sentence and "veritune report STUDY --probes" in found.sentence


def test_two_records_of_one_quantity_decide_nothing(probed_copy: Probed) -> None:
    folder = probed_copy.root / "probes" / probed_copy.runs_of(ARM)[0]
    shutil.copy(folder / "forgetting.json", folder / "again.json")
    found = probed_copy.verdicts()["forgot"]
    assert found.status == "untested" and "again.json" in found.sentence and "forgetting.json" in found.sentence


@pytest.mark.parametrize("text", ['{"kind": "weights"}', '{"kind": "weights", "total": 3, "by_group": []}', "{", "[1]"])
def test_a_damaged_record_stops_no_other_claim_and_is_named(probed_copy: Probed, text: str) -> None:
    path = probed_copy.root / "probes" / probed_copy.runs_of(ARM)[0] / "weights.json"
    path.write_text(text, "utf-8")
    found = probed_copy.verdicts()
    assert found["loss"].status == "supported" and found["moved"].status == "untested"
    with pytest.raises(ScoreError, match=r"weights\.json"):
        probed_copy.quantities()


def test_a_record_of_another_run_or_of_a_stale_leak_is_not_read(probed_copy: Probed) -> None:
    name, leak = f"leak.flattered.{ARM}", probed_copy.root / "probes" / "leak" / f"{ARM}.json"
    record = read_json(leak)
    assert name in probed_copy.quantities() and record["honest"] in probed_copy.runs
    leak.write_text(json.dumps({**record, "honest": f"{ARM}-s0-00000000"}), "utf-8")
    (probed_copy.root / "probes" / "stray").mkdir()
    shutil.copy(
        probed_copy.root / "probes" / probed_copy.runs_of(ARM)[0] / "forgetting.json",
        probed_copy.root / "probes" / "stray",
    )
    found = probed_copy.quantities()
    assert name not in found and f"forgetting.rise.{ARM}" in found


def test_a_grid_of_several_adapters_is_read_by_the_paths_in_its_labels(probed_copy: Probed) -> None:
    grids = []
    for run_id in probed_copy.runs_of(ARM):
        path = probed_copy.root / "probes" / run_id / "geometry.json"
        grids.append({**read_json(path)["record"], "label": f"/elsewhere/study/runs/{run_id}/checkpoints/step-4"})
        path.unlink()
    name = f"geometry.m1_change.1.last_input_token.{ARM}"
    assert name not in probed_copy.quantities()
    (probed_copy.root / "probes" / "voices.json").write_text(json.dumps({"runs": grids}), "utf-8")
    assert probed_copy.quantities()[name].estimate.n_seeds == 2


def test_a_probe_that_cannot_be_made_for_a_study_is_refused(probed: Probed) -> None:
    with pytest.raises(InputError, match="unknown probe"):
        probe_report(probed.root, make=("gradient",))


# ---------------------------------------------------------------- names before the run


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nll.strangr.all_layer", "nll.stranger.all_layer"),
        ("gap.carried.seen.all_layer", "gap.carried.sibling.all_layer"),
        ("geometry.m1_chnge.12.response_mean.all_layer", "geometry.m1_change.12.response_mean.all_layer"),
        ("weights.relative.q.all_layer", "weights.relative_change.q.all_layer"),
        ("calibration.ece.all_layers", "calibration.ece.all_layer"),
        ("final_loss.baseline", None),
        ("geometry.m1.x.response_mean.all_layer", None),
        ("weights.delta_norm..all_layer", None),
        ("nll.stranger.all_layer\n", None),
    ],
)
def test_a_wrong_name_is_refused_at_the_freeze_with_the_one_that_was_meant(
    study: Any, name: str, meant: str | None
) -> None:
    study.change(lambda s: s["claims"].append({"name": "x", "kind": "probe", "probe": name, "op": "<", "threshold": 1}))
    parsed = load_study(study.root / "study.yaml")
    assert pattern_of(name, parsed) is None
    with pytest.raises(StudyError, match="unknown probe") as error:
        make_ready(Store(study.root), parsed, Progress(silent=True))
    assert meant is None or f"did you mean {meant!r}" in str(error.value)


PART = ("<part>", "model.layers.0.q_proj")


def test_every_known_name_is_accepted(study: Any) -> None:
    parsed = load_study(study.root / "study.yaml")
    opened = {part: (f"<{part}>",) for part in OPEN}
    for name in {name for pattern in PATTERNS for name in _names(pattern, parsed, opened)}:
        assert pattern_of(name.replace("<layer>", "3").replace("<step>", "8").replace(*PART), parsed), name
        assert "<" in name or nearest(name, parsed) == name


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        ({"kind": "probe", "probe": "final_loss.all_layer", "op": "<"}, "needs `probe`"),
        (
            {"kind": "probe", "probe": "x", "op": "<", "threshold": 1, "condition": "x"},
            "of the probe's name",
        ),
        ({"kind": "probe", "probe": "x", "op": "<", "threshold": 1, "margin": 0.1}, "takes no `margin`"),
        ({"kind": "improves", "condition": "all_layer", "threshold": 0.5}, "takes no `threshold`"),
    ],
)
def test_a_field_that_the_kind_does_not_read_is_refused(study: Any, claim: dict[str, Any], says: str) -> None:
    study.change(lambda s: s["claims"].append({"name": "x", **claim}))
    with pytest.raises(StudyError, match=says):
        load_study(study.root / "study.yaml")


def test_the_plan_says_what_each_claim_on_a_probe_can_come_to(study: Any) -> None:
    def sentences(seeds: list[int]) -> dict[str, str]:
        probes = {"p": "nll.stranger.all_layer", "l": "leak.by_leak.all_layer", "n": "n_eff.baseline"}
        probes |= {"f": "final_loss.all_layer", "c": "trainable_share.all_layer"}
        study.change(lambda s: s.update(seeds=seeds, claims=[]))
        study.change(
            lambda s: s["claims"].extend(
                {"name": name, "kind": "probe", "probe": probe, "op": "<", "threshold": 1}
                for name, probe in probes.items()
            )
        )
        return {r.claim: r.sentence for r in resolution(load_study(study.root / "study.yaml"), {"style": []})}

    found = sentences([0, 1, 2])
    assert "at 98.75 %" in found["p"] and "3 seeds" in found["p"]  # four of the five share alpha
    assert "1 seed:" in found["l"] and "1 seed:" in found["n"]
    assert found["f"].endswith("a t over 3 seeds")
    assert "a count" in found["c"]
    assert "13 standard errors" in sentences([0, 1])["f"]
    assert "can only stay open" in sentences([0])["f"]


def test_the_docs_list_every_pattern() -> None:
    page = (Path(__file__).parents[2] / "docs" / "decide.md").read_text("utf-8")
    for pattern in PATTERNS:
        inside = next(iter((pattern.choices or {}).values()), ("",))
        for one in inside:
            stem = pattern.name.replace("{of}", one).split("{")[0].rstrip(".")
            assert stem in page or (one and f"`{one}`" in page), stem

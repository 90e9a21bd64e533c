"""The gradient probe on whole models: known numbers of independent rows, stability, and what it refuses to read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from veritune.config.thresholds import DEFAULTS, FamilyThresholds
from veritune.errors import DataError, ModelError
from veritune.probe.batches import collate, mean_losses
from veritune.probe.effective import SamplePlan, unit
from veritune.probe.gradients import Settings, discover_families, measure, probe_gradients
from veritune.records import Rendered, dumps

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def copies(originals: list[Rendered], k: int) -> tuple[list[Rendered], list[str]]:
    rows = [Rendered(f"{r.row_id}-{j}", r.input_ids, r.labels) for r in originals for j in range(k)]
    return rows, [r.row_id for r in originals for _ in range(k)]


def edited(originals: list[Rendered], k: int, *, share: float, seed: int = 1) -> tuple[list[Rendered], list[str]]:
    """k variants of each row with a share of its tokens replaced."""
    draw = np.random.default_rng(seed)
    rows, families = [], []
    for row in originals:
        for j in range(k):
            ids = np.array(row.input_ids)
            swap = draw.random(len(ids)) < share
            ids[swap] = draw.integers(3, 60, swap.sum())
            labels = np.where(np.array(row.labels) == -100, -100, ids)
            rows.append(Rendered(f"{row.row_id}-{j}", tuple(ids.tolist()), tuple(labels.tolist())))
            families.append(row.row_id)
    return rows, families


@pytest.mark.parametrize("of", ["probe", "trainable"])
@pytest.mark.parametrize("exact", [True, False])
def test_n_originals_repeated_k_times_read_as_n(of: Any, exact: bool, make_model: Any, make_rows: Any) -> None:
    model = make_model("llama", dtype=torch.float32)
    if of == "trainable":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    rows, families = copies(make_rows(12, lengths=(10, 20)), 4)
    settings = Settings(of=of, exact_bytes=2**30 if exact else 0)
    probe = probe_gradients(model, rows, families, settings=settings)
    n_eff = probe.estimate("n_eff")
    assert n_eff.value == pytest.approx(12, rel=1e-3 if exact else 0.02)
    assert n_eff.low is not None and n_eff.high is not None
    assert n_eff.low - 1e-3 <= n_eff.value <= n_eff.high + 1e-3
    assert probe.settings["inner_products"].startswith("exact" if exact else "sketch")
    assert probe.reading.startswith("The 48 rows act like 12 unrelated ones")
    assert "over the families drawn" in probe.reading and "without a confidence level" in probe.limits
    assert 1 <= probe.worth["low"] < n_eff.low and n_eff.high < probe.worth["high"] <= 48


def test_edits_read_between_copies_and_unrelated_rows(make_model: Any, make_rows: Any) -> None:
    model = make_model("llama")
    originals = make_rows(12, lengths=(14, 20))
    values = []
    for share in (0.1, 0.5):
        rows, families = edited(originals, 4, share=share)
        values.append(probe_gradients(model, rows, families).estimate("n_eff").value)
    assert 12 < values[0] < values[1] < 48


def test_batch_size_and_row_order_change_nothing(make_model: Any, make_rows: Any) -> None:
    model = make_model("llama")
    rows, families = edited(make_rows(10, lengths=(8, 20)), 3, share=0.3)
    first = probe_gradients(model, rows, families, settings=Settings(batch_size=1))
    shuffled = np.random.default_rng(0).permutation(len(rows))
    again = probe_gradients(
        model, [rows[i] for i in shuffled], [families[i] for i in shuffled], settings=Settings(batch_size=7)
    )
    for a, b in zip(first.estimates, again.estimates, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-6)
        assert a.low == pytest.approx(b.low, rel=1e-6)


def test_sketched_inner_products_agree_with_exact_ones(make_model: Any, make_rows: Any) -> None:
    model, rows = make_model("llama"), make_rows(20)
    exact = measure(model, rows, Settings())
    sketched = measure(model, rows, Settings(exact_bytes=0))
    assert (exact.dims, sketched.dims) == (None, 4093)
    for kind, gram_N_N in exact.by_type.items():
        error = unit(sketched.by_type[kind]) - unit(gram_N_N)
        assert np.abs(error).max() < 6 / 4093**0.5
        assert np.diag(sketched.by_type[kind]) == pytest.approx(np.diag(gram_N_N), rel=1e-5)


def test_cosines_equal_those_of_gradients_taken_one_by_one(make_model: Any, make_rows: Any) -> None:
    torch.manual_seed(1)
    model = get_peft_model(make_model("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model, rows = model.to(torch.float64).eval(), make_rows(6)
    flat = []
    for row in rows:
        model.zero_grad()
        mean_losses(model, collate([row])).sum().backward()
        flat.append(torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]))
    by_hand = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0).item()
    got = unit(measure(model, rows, Settings(of="trainable", batch_size=3)).gram_N_N)
    assert got[0, 1] == pytest.approx(by_hand, rel=1e-9)


def test_a_memorised_model_is_called_late_and_gives_no_number(make_model: Any, make_rows: Any) -> None:
    torch.manual_seed(2)
    base = make_model("llama", dtype=torch.float32)
    with torch.no_grad():
        base.lm_head.weight *= 20  # a random head is too faint for an adapter to memorise through
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", lora_alpha=32))
    rows, families = copies(make_rows(9, lengths=(6, 9)), 2)
    assert probe_gradients(model, rows, families).loss["at"] == "base"
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        mean_losses(model, collate(rows)).mean().backward()
        optimizer.step()
    late = probe_gradients(model, rows, families)
    assert late.loss["at"] == "late" and late.loss["mean"] < 0.5 * late.loss["base_mean"]
    n_eff = late.estimate("n_eff")
    assert n_eff.value is None and n_eff.low is None and "measured late" in n_eff.warnings[-1]
    assert late.worth["low"] is None and late.worth["reason"]
    assert late.reading.startswith("Measured late") and " act like" not in late.reading
    base_loss = late.loss["base_mean"]
    assert probe_gradients(model.merge_and_unload(), rows, families, base_loss=base_loss).loss["at"] == "late"


def test_a_checkpoint_without_its_base_says_it_does_not_know_when_it_was_measured(
    make_model: Any, make_rows: Any
) -> None:
    rows, families = copies(make_rows(9), 2)
    probe = probe_gradients(make_model("llama"), rows, families)
    assert probe.loss["at"] == "unknown"
    assert "no base loss was given" in probe.limits
    base = probe_gradients(make_model("llama"), rows, families, base_loss="self")
    assert base.loss["at"] == "base" and "no base loss" not in base.limits


def test_without_labels_families_are_found_and_no_number_is_claimed(make_model: Any, make_rows: Any) -> None:
    rows, families = edited(make_rows(8, lengths=(14, 20)), 4, share=0.05)
    probe = probe_gradients(make_model("llama"), rows)
    assert probe.n_families is None
    assert probe.estimate("n_eff").value is None and probe.estimate("directions").value is not None
    assert probe.found is not None and probe.found["n_families"] == 8
    assert all(families[i] == families[j] for i, j, _, _ in probe.found["edges"])
    assert "fall into families that no label names" in probe.reading


def test_found_families_join_rows_for_the_split(make_model: Any, make_rows: Any) -> None:
    from veritune.data.families import find_families as join
    from veritune.records import Message, Row

    rows, families = edited(make_rows(6, lengths=(14, 20)), 3, share=0.02)
    found = discover_families(make_model("llama"), rows)
    words = np.random.default_rng(0).permutation(18 * 30).reshape(18, 30)
    texts = [" ".join(f"w{w}" for w in line) for line in words]  # nothing alike in the words
    data = [Row(r.row_id, (Message("user", t), Message("assistant", t))) for r, t in zip(rows, texts, strict=True)]
    joined = join(data, extra_edges=found.edges)
    assert len(joined.sizes) == 6
    assert len({(a, b) for a, b in zip(joined.families, families, strict=True)}) == 6


def test_few_families_say_so_in_the_reading(make_model: Any, make_rows: Any) -> None:
    rows, families = copies(make_rows(5), 2)
    probe = probe_gradients(make_model("llama"), rows, families)
    assert probe.estimate("n_eff").low is None
    assert "too few families for an interval" in probe.reading


def test_sources_and_families_are_read_on_their_own(make_model: Any, make_rows: Any) -> None:
    a, fa = copies(make_rows(9, seed=1), 4)
    b, fb = edited(make_rows(9, seed=2, lengths=(14, 20)), 2, share=0.4)
    fb = [f"b-{f}" for f in fb]
    probe = probe_gradients(make_model("llama"), a + b, fa + fb, sources=["a"] * 36 + ["b"] * 18)
    assert probe.by_source["a"]["n_eff"].value == pytest.approx(9, rel=1e-6)
    assert 9 < probe.by_source["b"]["n_eff"].value < 18
    of_a = [f for f in probe.by_family if f["family"] in set(fa)]
    assert [f["n_eff"] for f in of_a] == pytest.approx([1.0] * 9)


def test_rows_that_are_all_one_row_act_like_about_one(make_model: Any, make_rows: Any) -> None:
    rows, _ = copies(make_rows(1), 24)
    for labels in ([f"f{i // 3}" for i in range(24)], None):
        probe = probe_gradients(make_model("llama", dtype=torch.float32), rows, labels)
        assert probe.estimate("n_eff").value is None and probe.estimate("directions").value is None
        assert probe.reading.startswith("The 24 rows act like about one example"), probe.reading
        assert all(e.value is None for e in probe.raw)


def test_labels_that_miss_all_relatives_are_said_to_disagree(make_model: Any, make_rows: Any) -> None:
    rows, right = edited(make_rows(9, lengths=(14, 20)), 6, share=0.05)
    wrong = [f"w{i % 6}-{i // 18}" for i in range(54)]
    model = make_model("llama", dtype=torch.float32)
    probe = probe_gradients(model, rows, wrong)
    assert probe.agreement["disagree"] is True
    assert "The two numbers disagree" in probe.reading and "labels may be wrong" in probe.reading
    assert probe.found is not None and probe.found["n_families"] < 15
    honest = probe_gradients(model, rows, right)
    assert honest.agreement["disagree"] is False and "disagree" not in honest.reading and honest.found is None


def test_thresholds_are_settings_of_the_probe_and_stand_in_its_record(make_model: Any, make_rows: Any) -> None:
    rows, families = copies(make_rows(9), 2)
    strict = DEFAULTS.model_copy(update={"families": FamilyThresholds(for_interval=10)})
    probe = probe_gradients(make_model("llama"), rows, families, settings=Settings(thresholds=strict))
    assert probe.estimate("n_eff").low is None and "fewer than 10" in probe.estimate("rho").warnings[0]
    assert probe.settings["thresholds"]["families_for_interval"] == 10
    assert probe.settings["thresholds"]["late_share"] == 0.5


def test_large_data_is_sampled_by_family_and_says_so(make_model: Any, make_rows: Any) -> None:
    rows, families = copies(make_rows(20), 5)
    probe = probe_gradients(
        make_model("llama"), rows, families, settings=Settings(plan=SamplePlan(max_rows=50, families=10))
    )
    assert (probe.n_rows, probe.n_measured, probe.n_families) == (100, 20, 20)
    assert probe.estimate("n_eff").value == pytest.approx(20)
    assert probe.estimate("directions").value is None
    assert "20 of 100 rows" in probe.limits


def test_the_record_is_plain_json(make_model: Any, make_rows: Any) -> None:
    rows, families = copies(make_rows(9), 2)
    for labels in (families, None):
        made = json.loads(dumps(probe_gradients(make_model("llama"), rows, labels)))
        assert made["kind"] == "gradients" and made["reading"] and made["limits"] and made["would_change"]


def test_the_model_comes_back_as_it_was(make_model: Any, make_rows: Any) -> None:
    model = make_model("llama").train()
    before = [p.clone() for p in model.parameters()]
    rows, families = copies(make_rows(9), 2)
    probe_gradients(model, rows, families)
    assert model.training and all(m.training for m in model.modules())
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))


def test_prompt_tuning_is_probed_through_its_blocks(make_model: Any, make_rows: Any) -> None:
    from peft import PromptTuningConfig

    rows, families = copies(make_rows(9), 2)
    model = get_peft_model(make_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    probe = probe_gradients(model, rows, families)
    assert probe.settings["of"] == "probe"
    assert probe.estimate("n_eff").value == pytest.approx(9, rel=1e-4)


def test_nan_weights_are_named_with_the_row(make_model: Any, make_rows: Any) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"row\d.*expected a finite loss, found nan"):
        probe_gradients(model, make_rows(9), ["a"] * 9)


def test_lists_of_other_lengths_are_refused(make_model: Any, make_rows: Any) -> None:
    with pytest.raises(DataError, match=r"families per row \(3\), found 2"):
        probe_gradients(make_model("llama"), make_rows(3), ["a", "b"])

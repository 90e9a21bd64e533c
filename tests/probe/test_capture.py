"""Per-example gradients out of one pass, against one backward pass per example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from veritune.errors import DataError, MachineError, ModelError
from veritune.probe import capture as capture_module
from veritune.probe.batches import collate, in_batches, mean_losses, require_targets
from veritune.probe.capture import Capture, Gram, Keep, Sketch, _flat, _outer, both, probe_matrix
from veritune.records import Rendered
from veritune.train.modules import module_type

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:.*use_reentrant:UserWarning",
)
EXACT = 1e-12


def lora(model: Any, **settings: Any) -> Any:
    """Both factors nonzero, so that both have gradients."""
    torch.manual_seed(7)
    targets = settings.pop("target_modules", "all-linear")
    made = get_peft_model(model, LoraConfig(r=3, target_modules=targets, init_lora_weights=False, **settings))
    return made.to(torch.float64).eval()


def one_backward_each(model: Any, rows: list[Rendered], names: set[str]) -> dict[str, torch.Tensor]:
    """The gradients [N, ...] the slow way: each row alone, unpadded."""
    taken: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for row in rows:
        model.zero_grad(set_to_none=True)
        mean_losses(model, collate([row])).sum().backward()
        for name, p in model.named_parameters():
            if name in names:
                taken[name].append(torch.zeros_like(p) if p.grad is None else p.grad.clone())
    model.zero_grad(set_to_none=True)
    return {name: torch.stack(grads) for name, grads in taken.items()}


def captured(model: Any, rows: list[Rendered], **settings: Any) -> dict[str, torch.Tensor]:
    keep = Keep()
    with Capture(model, keep, **settings) as capture:
        capture.backward(mean_losses(model, collate(rows)))
    return keep.grads


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, grad in expected.items():
        assert grad.abs().max() > 0, name
        assert torch.allclose(got[name], grad, rtol=1e-9, atol=EXACT), name


ADAPTERS: dict[str, Callable[[Any], Any]] = {
    "lora": lambda m: lora(m),
    "rslora": lambda m: lora(m, use_rslora=True, lora_alpha=11),
    "dora": lambda m: lora(m, use_dora=True),
    "head saved in full": lambda m: lora(m, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"]),
    "full": lambda m: m,
}


@pytest.mark.parametrize("how", ADAPTERS)
def test_capture_equals_one_backward_per_example(how: str, make_model: Any, make_rows: Any) -> None:
    model, rows = ADAPTERS[how](make_model("llama")), make_rows(5)
    got = captured(model, rows, min_coverage=0.5)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    left_out = {n for n in trainable if "magnitude" in n or "norm" in n or "embed" in n}
    assert set(got) == trainable - left_out
    assert_same(got, one_backward_each(model, rows, set(got)))


@pytest.mark.parametrize("kind", ["gpt2", "phi3", "qwen2"])
def test_capture_equals_one_backward_per_example_on_other_architectures(
    kind: str, make_model: Any, make_rows: Any
) -> None:
    model, rows = make_model(kind), make_rows(4)
    got = captured(model, rows, min_coverage=0.5)
    biases = [n for n in got if n.endswith(".bias")]
    assert bool(biases) == (kind in ("gpt2", "qwen2"))
    # a key's bias moves every attention score of a query alike, so its gradient is zero up to rounding
    names = {n for n in got if not n.endswith("k_proj.bias")}
    assert_same({n: got[n] for n in names}, one_backward_each(model, rows, names))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("how", ["lora", "dora", "full"])
def test_gradient_checkpointing_changes_nothing(how: str, reentrant: bool, make_model: Any, make_rows: Any) -> None:
    model, rows = ADAPTERS[how](make_model("llama")), make_rows(4)
    expected = captured(model, rows, min_coverage=0.5)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()  # checkpointing is off in evaluation mode; these models have no dropout
    assert_same(captured(model, rows, min_coverage=0.5), expected)


def test_padding_and_batch_size_change_nothing(make_model: Any, make_rows: Any) -> None:
    model, rows = lora(make_model("llama")), make_rows(7)
    whole = captured(model, rows)
    for size in (1, 3):
        parts: dict[str, torch.Tensor] = {n: torch.zeros_like(g) for n, g in whole.items()}
        for index, batch in in_batches(rows, size):
            keep = Keep()
            with Capture(model, keep) as capture:
                capture.backward(mean_losses(model, batch))
            for name, grad in keep.grads.items():
                parts[name][index] = grad
        assert_same(parts, whole)


def test_a_probe_leaves_the_model_and_its_gradients_as_they_were(make_model: Any, make_rows: Any) -> None:
    model, rows = lora(make_model("llama")), make_rows(3)
    mean_losses(model, collate(rows[:1])).sum().backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    for of in ("trainable", "probe"):
        captured(model, rows, of=of)
        assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
        assert not any("forward" in m.__dict__ for m in model.modules())
        after = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert after.keys() == before.keys()
        assert all(torch.equal(after[n], before[n]) for n in before)


def test_uncaptured_parameters_get_no_grad_either(make_model: Any, make_rows: Any) -> None:
    model = make_model("llama")
    captured(model, make_rows(3), min_coverage=0.5)
    assert all(p.grad is None for p in model.parameters())


def test_write_grads_leaves_the_gradients_of_an_ordinary_backward(make_model: Any, make_rows: Any) -> None:
    model, rows = make_model("llama"), make_rows(3)
    captured(model, rows, min_coverage=0.5, write_grads=True)
    got = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    mean_losses(model, collate(rows)).sum().backward()
    for name, p in model.named_parameters():
        assert torch.allclose(got[name], p.grad, rtol=1e-9, atol=EXACT), name


def test_gram_by_type_equals_inner_products_taken_by_hand(make_model: Any, make_rows: Any) -> None:
    model, rows = lora(make_model("llama")), make_rows(5)
    gram, keep = Gram(), Keep()
    with Capture(model, both(gram, keep)) as capture:
        capture.backward(mean_losses(model, collate(rows)))
    for kind, got in gram.by_type.items():
        flat = torch.cat([g.reshape(5, -1) for n, g in keep.grads.items() if module_type(n) == kind], 1)
        assert torch.allclose(got, flat @ flat.t(), atol=EXACT)
    everything = torch.cat([g.reshape(5, -1) for g in keep.grads.values()], 1)
    assert torch.allclose(gram.total, everything @ everything.t(), atol=1e-11)


def test_sketches_agree_with_exact_inner_products_and_do_not_depend_on_batches(make_model: Any, make_rows: Any) -> None:
    model, rows = lora(make_model("llama")), make_rows(6)
    keep, whole = Keep(), Sketch(257, by_type=True)
    with Capture(model, both(keep, whole)) as capture:
        capture.backward(mean_losses(model, collate(rows)))
        whole.end_batch()
    parts = Sketch(257)
    with Capture(model, parts) as capture:
        for row in rows:
            capture.backward(mean_losses(model, collate([row])))
            parts.end_batch()
    assert torch.allclose(parts.rows(), whole.rows(), atol=1e-10)
    flat = torch.cat([g.reshape(6, -1) for g in keep.grads.values()], 1)
    assert torch.allclose(whole.squared_norms(), flat.square().sum(1), rtol=1e-9)
    assert whole.rows("q").shape == (6, 257)


@pytest.mark.parametrize("n_params", [5, 13, 40, 500])  # inside one turn, one turn, a few, so many that they are summed
def test_a_sketch_puts_each_number_into_the_bucket_its_definition_names(n_params: int) -> None:
    grad_N_P = torch.randn(3, n_params, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sketch = Sketch(13, seed=5)
    for name in ("layers.0.self_attn.q_proj.weight", "layers.0.mlp.up_proj.weight"):
        sketch(name, grad_N_P)
    want_N_D = torch.zeros(3, 13, dtype=torch.float64)
    for sign_P, offset in sketch._signs.values():
        for p in range(n_params):
            want_N_D[:, (p + offset) % 13] += sign_P[p] * grad_N_P[:, p]
    sketch.end_batch()
    assert len(sketch._signs) == 2 and torch.allclose(sketch.rows(), want_N_D, atol=1e-12)


def test_tall_and_wide_matrices_have_the_same_inner_products_as_their_plain_gradients() -> None:
    draw = torch.Generator().manual_seed(2)
    for p, q in ((7, 3), (3, 7), (4, 4)):
        left_N_T_P, right_N_T_Q = (torch.randn(5, 6, k, dtype=torch.float64, generator=draw) for k in (p, q))
        grad_N_P_Q = _outer(left_N_T_P, right_N_T_Q)
        want_N_P_Q = torch.einsum("ntp,ntq->npq", left_N_T_P, right_N_T_Q)
        assert torch.allclose(grad_N_P_Q, want_N_P_Q, atol=1e-12)
        flat_N_R = _flat(grad_N_P_Q)
        assert flat_N_R.data_ptr() == grad_N_P_Q.data_ptr()  # a view: nothing is copied
        assert torch.equal(flat_N_R, _flat(grad_N_P_Q.contiguous()))  # the order follows the shape, not the memory
        plain_N_R = want_N_P_Q.reshape(5, -1)
        assert torch.allclose(flat_N_R @ flat_N_R.t(), plain_N_R @ plain_N_R.t(), atol=1e-10)


def test_sketch_inner_products_are_unbiased_with_error_as_one_over_root_dims() -> None:
    draw = torch.Generator().manual_seed(0)
    grad_N_O_I = torch.randn(6, 8, 576, generator=draw)
    grad_N_O_I[:, :, 5] *= 30  # one heavy input channel, as real activations have
    flat = torch.nn.functional.normalize(grad_N_O_I.reshape(6, -1), dim=1)
    error = []
    for seed in range(200):
        sketch = Sketch(1021, seed=seed)
        sketch("layers.0.self_attn.q_proj.weight", flat.view_as(grad_N_O_I))
        sketch.end_batch()
        error.append(sketch.rows() @ sketch.rows().t() - flat @ flat.t())
    error_S_N_N = torch.stack(error)
    rms = error_S_N_N.square().mean().sqrt().item()
    assert rms < 1.6 / 1021**0.5
    assert error_S_N_N.mean(0).abs().max().item() < 5 * rms / 200**0.5


def test_probe_equals_the_gradient_of_a_zero_b_adapter_with_the_same_a(make_model: Any, make_rows: Any) -> None:
    rows, plain = make_rows(4), make_model("llama")
    got = captured(plain, rows, of="probe", rank=3)
    adapted = lora(make_model("llama"), lora_alpha=3)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.zero_()
            if "lora_A" in name:
                module = name.removeprefix("base_model.model.").split(".lora_A")[0]
                p.copy_(probe_matrix(module, p.shape[1], 3, 0))
    factors = captured(adapted, rows)
    assert len(got) == 14
    for name, grad in got.items():
        assert torch.allclose(grad, factors[f"base_model.model.{name}.lora_B.default.weight"], atol=EXACT)


def test_probe_inner_products_are_unbiased_for_full_fine_tuning(make_model: Any, make_rows: Any) -> None:
    rows, model = make_rows(4), make_model("llama")
    keep = captured(model, rows, min_coverage=0.5)
    inside = torch.cat([g.reshape(4, -1) for n, g in keep.items() if "layers" in n], 1)
    exact = inside @ inside.t()
    seeds = []
    for seed in range(40):
        gram = Gram()
        with Capture(model, gram, of="probe", rank=8, seed=seed) as capture:
            capture.backward(mean_losses(model, collate(rows)))
        seeds.append(gram.total)
    mean, error = torch.stack(seeds).mean(0), torch.stack(seeds).std(0) / 40**0.5
    assert ((mean - exact).abs() < 4 * error + 1e-12).all()


def test_probe_is_the_same_with_an_untrained_adapter_around_the_model(make_model: Any, make_rows: Any) -> None:
    rows, plain = make_rows(3), make_model("llama")
    expected = captured(plain, rows, of="probe")
    adapted = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).to(torch.float64).eval()
    assert_same(captured(adapted, rows, of="probe"), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_probe_survives_gradient_checkpointing(reentrant: bool, make_model: Any, make_rows: Any) -> None:
    rows, model = make_rows(3), make_model("llama")
    expected = captured(model, rows, of="probe")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    assert_same(captured(model, rows, of="probe"), expected)


def test_coverage_counts_what_is_captured_and_names_the_rest(make_model: Any) -> None:
    model = lora(make_model("llama"), use_dora=True)
    coverage = Capture(model, Keep(), min_coverage=0.5).coverage
    magnitudes = sum(p.numel() for n, p in model.named_parameters() if "magnitude" in n)
    assert coverage.trainable - coverage.captured == magnitudes > 0
    assert all("magnitude" in name for name in coverage.missing)


def test_low_coverage_and_tied_embeddings_fail_loudly(make_model: Any) -> None:
    with pytest.raises(ModelError, match=r"cover .* less than the required 90%.*Embedding"):
        Capture(make_model("llama"), Keep())
    with pytest.raises(ModelError, match="shared by"):
        Capture(make_model("llama", tied=True), Keep())


def test_nothing_trainable_is_named(make_model: Any) -> None:
    with pytest.raises(ModelError, match="no parameter is trainable"):
        Capture(make_model("llama").requires_grad_(False), Keep())


def test_a_module_used_twice_is_refused(make_model: Any, make_rows: Any) -> None:
    model = lora(make_model("llama"))
    layers = model.base_model.model.model.layers
    layers[1] = layers[0]
    with pytest.raises(ModelError, match="used twice"):
        captured(model, make_rows(2))


class Flat(torch.nn.Module):
    """Flattens tokens before a linear, as routed experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.up(x.reshape(-1, 4)).view(x.shape)
        return out


def test_flattened_tokens_are_refused_rather_than_misread() -> None:
    with Capture(Flat(), Keep()) as capture, pytest.raises(ModelError, match="cannot be distinguished by example"):
        capture.backward(capture.model(torch.randn(3, 1, 4)).sum((1, 2)))


def test_a_matrix_too_large_to_hold_per_example_is_named(
    make_model: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "MAX_PIECE_BYTES", 1000)
    with pytest.raises(MachineError, match="per-example gradients of one matrix"):
        captured(lora(make_model("llama")), make_rows(3))


def test_the_model_is_restored_after_an_error(make_model: Any, make_rows: Any) -> None:
    model = make_model("llama")
    with pytest.raises(RuntimeError), Capture(model, Keep(), of="probe"):
        raise RuntimeError
    assert not any("forward" in m.__dict__ for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_rows_without_targets_are_named() -> None:
    rows = [Rendered("good", (1, 2), (-100, 2)), Rendered("bad", (1, 2), (1, -100))]
    with pytest.raises(DataError, match=r"1 of 2 rows .*bad"):
        require_targets(rows)

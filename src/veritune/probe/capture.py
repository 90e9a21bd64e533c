"""Exact per-example gradients out of one ordinary forward and backward pass.

    with Capture(model, sink) as capture:
        capture.backward(mean_losses(model, batch))     # the sink gets every matrix's gradients [N, ...]

Each trainable linear's forward is replaced, for the time of the `with`, by an `autograd.Function` that keeps its input;
the backward forms example i's gradient dy_i^T x_i with one batched product and hands it on, one matrix at a time.
`.grad` is left alone, so a probe can run in the middle of training. What is captured is exact only where examples do
not mix: batch normalisation and the auxiliary losses of mixture-of-experts models couple them.

With `of="probe"` nothing needs to be trainable. Every linear inside the blocks is tapped as if it had a LoRA adapter of
rank r with B = 0 and a random A: dy^T (x A^T) is B's gradient, a random projection of the full weight gradient, and the
model's output does not change. Its inner products are unbiased for those of full fine-tuning (Johnson-Lindenstrauss).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import torch.nn.functional as F

from veritune.errors import MachineError, ModelError
from veritune.train.modules import layer_index, module_group, module_type, plain_name

if TYPE_CHECKING:
    from types import TracebackType

MAX_PIECE_BYTES = 2 * 2**30
MANY_TURNS = 8
"""Sketch: a gradient longer than this many times its buckets is summed over its turns first."""
PROBE_RANK = 8


class Sink(Protocol):
    """Receives one matrix's gradients for a whole batch: `name` is the parameter's, `grad` is [N, ...]."""

    def __call__(self, name: str, grad_N: torch.Tensor) -> None: ...


@dataclass(frozen=True)
class Coverage:
    """The share of the trained parameters that the capture covers; `missing` names the others and the reasons."""

    captured: int
    trainable: int
    missing: Mapping[str, str]

    @property
    def share(self) -> float:
        return self.captured / self.trainable if self.trainable else 0.0


class _Linear(torch.autograd.Function):
    """y = x W^T + b, with `tell(dy, x)` called in the backward; W's own gradient only on request."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tell: _Tell
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.tell, ctx.has_bias = tell, bias is not None
        return F.linear(x, weight.t() if tell.transposed else weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[0]:
            out_in = weight.t() if ctx.tell.transposed else weight
            dx = (dy.to(out_in.dtype) @ out_in).to(x.dtype)
        d_weight, d_bias = ctx.tell(dy, x)
        return dx, d_weight, d_bias if ctx.has_bias else None, None


class _Tap(torch.autograd.Function):
    """Identity on y; the backward tells (dy, z)."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, z: torch.Tensor, tell: _Tell) -> torch.Tensor:
        ctx.save_for_backward(z)
        ctx.tell = tell
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        (z,) = ctx.saved_tensors
        ctx.tell(dy, z)
        return dy, None, None


def _outer(left_N_T_P: torch.Tensor, right_N_T_Q: torch.Tensor) -> torch.Tensor:
    """Sum over T of left (x) right, [N, P, Q]. The shorter side goes first: BLAS is 3 to 4 times slower on [576, 8]."""
    if left_N_T_P.shape[-1] > right_N_T_Q.shape[-1]:
        return torch.bmm(right_N_T_Q.transpose(1, 2), left_N_T_P).transpose(1, 2)
    return torch.bmm(left_N_T_P.transpose(1, 2), right_N_T_Q)


def _flat(grad_N: torch.Tensor) -> torch.Tensor:
    """One row per example, in an order that the shape alone decides; for what `_outer` made it is a view."""
    if grad_N.dim() == 3 and grad_N.shape[1] > grad_N.shape[2]:
        grad_N = grad_N.transpose(1, 2)
    return grad_N.reshape(len(grad_N), -1)


@dataclass
class _Tell:
    """Forms one module's per-example gradients from (dy, x) and hands them to the sink."""

    capture: Capture
    weight: str | None
    bias: str | None
    transposed: bool = False
    at_least: torch.dtype | None = None

    def __call__(self, dy: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        n = self.capture.n_examples
        if dy.dim() < 3 or dy.shape[0] != n:
            raise ModelError(
                f"{self.weight or self.bias}: expected inputs of shape [{n} examples, tokens, ...], "
                f"found {list(x.shape)}: its tokens cannot be distinguished by example.",
                fix="Use a model whose layers keep examples apart: flattening or routing tokens before a layer "
                "(OPT's older code, experts) is not supported.",
            )
        wide = torch.promote_types(dy.dtype, self.at_least or x.dtype)
        dy_N_T_O = dy.reshape(n, -1, dy.shape[-1]).to(wide)
        d_weight = d_bias = None
        if self.weight is not None:
            x_N_T_I = x.reshape(n, -1, x.shape[-1]).to(wide)
            left, right = (x_N_T_I, dy_N_T_O) if self.transposed else (dy_N_T_O, x_N_T_I)
            self._check_size(n * left.shape[-1] * right.shape[-1] * left.element_size())
            d_weight = self._give(self.weight, _outer(left, right))
        if self.bias is not None:
            d_bias = self._give(self.bias, dy_N_T_O.sum(1))
        return d_weight, d_bias

    def _give(self, name: str, grad_N: torch.Tensor) -> torch.Tensor | None:
        self.capture._arrived(name)
        total = grad_N.sum(0) if self.capture.write_grads else None
        self.capture.sink(name, grad_N)
        return total

    def _check_size(self, size: int) -> None:
        if size > MAX_PIECE_BYTES:
            raise MachineError(
                f"{self.weight}: per-example gradients of one matrix take {size / 2**30:.1f} GiB "
                f"(limit {MAX_PIECE_BYTES / 2**30:.0f}).",
                fix='Use a smaller batch, or of="probe", which needs rank numbers per output instead of a full row.',
            )


class Capture:
    """Context manager that captures per-example gradients of a model; see the head of this file.

    of: `trainable` captures the parameters that require gradients; `probe` taps every linear of the blocks with a
    zero-B adapter of `rank`, whatever is trainable. write_grads: also leave ordinary `.grad`s (`trainable` only).
    Raises ModelError below `min_coverage` of the trainable parameters, and when nothing can be captured.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = LlamaConfig(vocab_size=8, **sizes)
    >>> model, gram, ids = LlamaForCausalLM(config), Gram(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    >>> with Capture(model, gram, of="probe") as capture:
    ...     capture.backward(model(input_ids=ids).logits.logsumexp(-1).mean(-1))  # a loss per example
    >>> gram.total.shape
    torch.Size([2, 2])
    """

    def __init__(  # noqa: PLR0913 - every argument beyond the first two is optional and named
        self,
        model: torch.nn.Module,
        sink: Sink,
        *,
        of: Literal["trainable", "probe"] = "trainable",
        write_grads: bool = False,
        min_coverage: float = 0.9,
        rank: int = PROBE_RANK,
        seed: int = 0,
    ) -> None:
        self.model, self.sink, self.of, self.write_grads = model, sink, of, write_grads
        if of == "probe" and write_grads:
            raise ValueError('of="probe" leaves no gradients to write')
        self.n_examples = 0
        self._rank, self._seed = rank, seed
        self._undo: list[Callable[[], None]] = []
        self._names: set[str] = set()
        self._targets = _linears_of_blocks(model) if of == "probe" else {}
        self._trainable, self.coverage = _plan_trainable(model) if of == "trainable" else ({}, _probe_coverage(model))
        self._check(min_coverage)

    def _check(self, min_coverage: float) -> None:
        if self.of == "probe" and not self._targets:
            raise ModelError("found no linear layer inside numbered blocks to probe.", fix="Use of='trainable'.")
        if self.of == "probe":
            return
        if not self.coverage.trainable:
            raise ModelError(
                "no parameter is trainable, so there are no gradients to capture.",
                fix='Use of="probe", which needs no trainable parameters.',
            )
        if self.coverage.share < min_coverage or not self.coverage.captured:
            why = sorted({f"{reason} ({name})" for name, reason in list(self.coverage.missing.items())[:4]})
            raise ModelError(
                f"per-example gradients would cover {self.coverage.share:.1%} of the trainable parameters, less "
                f"than the required {min_coverage:.0%}: {'; '.join(why)}.",
                fix='Use of="probe", or set a lower min_coverage and report it.',
            )

    # ------------------------------------------------------------ use

    def backward(self, loss_N: torch.Tensor) -> None:
        """Run the backward pass of the summed per-example losses [N] and pass the gradients to the sink."""
        if loss_N.dim() != 1:
            raise ValueError(f"expected one loss per example [N], got shape {list(loss_N.shape)}")
        self.n_examples = loss_N.shape[0]
        self._names.clear()
        loss_N.sum().backward()  # type: ignore[no-untyped-call]

    @property
    def numel(self) -> int:
        """How many numbers per example the sink receives."""
        if self.of == "trainable":
            return self.coverage.captured
        return sum(_outputs(m) for m in self._targets.values()) * self._rank

    @property
    def arrived(self) -> frozenset[str]:
        """Names of the matrices whose gradients the last backward pass gave; modules that it did not reach are
        missing."""
        return frozenset(self._names)

    def _arrived(self, name: str) -> None:
        if name in self._names:
            raise ModelError(
                f"{name} is used twice in one forward pass, so its two gradients cannot be recorded as one.",
                fix="Use a model without shared layers: the capture does not support them.",
            )
        self._names.add(name)

    def __enter__(self) -> Capture:
        try:
            self._keep_other_grads_alone()
            for module, names in self._trainable.items():
                self._replace_linear(module, *names)
            for name, module in self._targets.items():
                self._tap(name, module)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: BaseException | type[BaseException] | TracebackType | None) -> None:
        while self._undo:
            self._undo.pop()()

    # ------------------------------------------------------------ wiring

    def _keep_other_grads_alone(self) -> None:
        """Freezes what is not captured, so that no `.grad` appears; keeps the graph alive from the embeddings on."""
        if self.write_grads:
            return
        kept = {id(p) for module in self._trainable for p in module.parameters(recurse=False)}
        for p in self.model.parameters():
            if p.requires_grad and id(p) not in kept:
                p.requires_grad_(False)
                self._undo.append(lambda p=p: p.requires_grad_(True))  # type: ignore[misc]
        embedding = getattr(self.model, "get_input_embeddings", lambda: None)()
        checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in self.model.modules())
        if embedding is not None and (self.of == "probe" or checkpointing):
            handle = embedding.register_forward_hook(lambda m, i, out: out.requires_grad_(True) if _grad_on() else out)
            self._undo.append(handle.remove)

    def _replace_linear(self, module: torch.nn.Module, weight: str | None, bias: str | None) -> None:
        tell = _Tell(self, weight, bias, transposed=_is_conv1d(module))
        layer: Any = module

        def forward(x: torch.Tensor) -> torch.Tensor:
            return _Linear.apply(x, layer.weight, layer.bias, tell)  # type: ignore[no-any-return,no-untyped-call]

        self._set_forward(module, forward)

    def _tap(self, name: str, module: torch.nn.Module) -> None:
        name = plain_name(name)  # the same probe for a model with and without an adapter around it
        tell = _Tell(self, name, None, at_least=torch.float32)
        original = module.forward
        projection: dict[tuple[int, torch.device], torch.Tensor] = {}

        def forward(x: torch.Tensor, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
            y = original(x, *args, **kwargs)
            key = (x.shape[-1], x.device)
            if key not in projection:
                projection[key] = probe_matrix(name, x.shape[-1], self._rank, self._seed).to(x.device)
            z = x.detach() @ projection[key].t().to(x.dtype)
            return _Tap.apply(y, z, tell)  # type: ignore[no-any-return,no-untyped-call]

        self._set_forward(module, forward)

    def _set_forward(self, module: torch.nn.Module, forward: Callable[..., torch.Tensor]) -> None:
        had, before = "forward" in module.__dict__, module.__dict__.get("forward")
        module.forward = forward

        def undo() -> None:
            if had:
                module.__dict__["forward"] = before
            else:
                del module.__dict__["forward"]

        self._undo.append(undo)


def probe_matrix(name: str, n_in: int, rank: int, seed: int) -> torch.Tensor:
    """The probe adapter's random A [rank, n_in], entries N(0, 1/rank), reproducible from seed and name on any
    machine."""
    return torch.randn(rank, n_in, generator=named_generator(name, seed), dtype=torch.float64) / math.sqrt(rank)


def named_generator(name: str, seed: int) -> torch.Generator:
    """A CPU generator seeded by (seed, name)."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


# ---------------------------------------------------------------- what can be captured


def trainable_coverage(model: torch.nn.Module) -> Coverage:
    """The share of the trainable parameters that `Capture(model, of="trainable")` would cover; the model is not
    changed.
    """
    return _plan_trainable(model)[1]


def _is_conv1d(module: torch.nn.Module) -> bool:
    """transformers' Conv1D (GPT-2): a linear whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_plain_linear(module: torch.nn.Module) -> bool:
    replaced = "forward" in module.__dict__
    return not replaced and (type(module).forward is torch.nn.Linear.forward or _is_conv1d(module))


def _plan_trainable(
    model: torch.nn.Module,
) -> tuple[dict[torch.nn.Module, tuple[str | None, str | None]], Coverage]:
    """The modules to replace with their parameters' names, and what that covers."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for _, p in module.named_parameters(recurse=False):
            owners.setdefault(id(p), []).append(name)
    plan: dict[torch.nn.Module, tuple[str | None, str | None]] = {}
    captured = trainable = 0
    missing: dict[str, str] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for leaf, p in module.named_parameters(recurse=False):
            if not p.requires_grad or id(p) in seen:
                continue
            seen.add(id(p))
            name = f"{prefix}.{leaf}" if prefix else leaf
            trainable += p.numel()
            reason = _why_not(module, leaf, p, owners[id(p)])
            if reason is not None:
                missing[name] = reason
                continue
            captured += p.numel()
            weight, bias = plan.get(module, (None, None))
            plan[module] = (name, bias) if leaf == "weight" else (weight, name)
    return plan, Coverage(captured, trainable, missing)


def _why_not(module: torch.nn.Module, leaf: str, p: torch.nn.Parameter, owners: Sequence[str]) -> str | None:
    if len(owners) > 1:
        return f"shared by {' and '.join(owners[:2])}"
    if hasattr(p, "placements"):
        return "sharded: give the whole, unwrapped model"
    if leaf not in ("weight", "bias") or not _is_plain_linear(module):
        replaced = " with a replaced forward" if "forward" in module.__dict__ else ""
        return f"{type(module).__name__}{replaced} is not a plain linear"
    return None


def _linears_of_blocks(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Outermost linear-like modules inside numbered blocks: a PEFT layer counts as one, quantised ones count too."""
    found: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in found)
        if inside or layer_index(name) is None or module_group(name) not in ("attention", "mlp"):
            continue
        weight = getattr(getattr(module, "base_layer", module), "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() == 2 and module_type(name) != "router":
            found[name] = module
    return found


def _probe_coverage(model: torch.nn.Module) -> Coverage:
    """Of the parameters inside the blocks' linears; quantised weights count their stored elements."""
    targets = _linears_of_blocks(model)
    whole = sum(p.numel() for p in model.parameters())
    weights: list[Any] = [getattr(m, "base_layer", m).weight for m in targets.values()]
    captured = sum(int(w.numel()) for w in weights)
    return Coverage(captured, whole, {"(everything outside the blocks' linears)": "not tapped by the probe"})


def _outputs(module: torch.nn.Module) -> int:
    base: Any = getattr(module, "base_layer", module)
    return int(getattr(base, "out_features", None) or getattr(base, "nf", None) or base.weight.shape[0])


def _grad_on() -> bool:
    return torch.is_grad_enabled()


# ---------------------------------------------------------------- sinks


class Keep:
    """A sink that keeps every gradient, for tests and small models. `grads[name]` is [N, ...] over all batches so
    far."""

    def __init__(self) -> None:
        self.pieces: dict[str, list[torch.Tensor]] = {}

    def __call__(self, name: str, grad_N: torch.Tensor) -> None:
        self.pieces.setdefault(name, []).append(grad_N.detach().clone())

    @property
    def grads(self) -> dict[str, torch.Tensor]:
        return {name: torch.cat(pieces) for name, pieces in self.pieces.items()}


class Gram:
    """Inner products between the examples of one batch, by module type: `by_type[type]` is [N, N] float64.

    >>> gram = Gram()
    >>> gram("model.layers.0.self_attn.q_proj", torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    >>> gram.total.tolist()
    [[1.0, 1.0], [1.0, 2.0]]
    """

    def __init__(self) -> None:
        self.by_type: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, grad_N: torch.Tensor) -> None:
        flat_N_P = _flat(grad_N)
        wide = flat_N_P if flat_N_P.dtype == torch.float64 else flat_N_P.float()
        gram_N_N = (wide @ wide.t()).double()
        kind = module_type(name)
        self.by_type[kind] = self.by_type[kind] + gram_N_N if kind in self.by_type else gram_N_N

    @property
    def total(self) -> torch.Tensor:
        """The Gram matrix over all captured parameters [N, N]."""
        return torch.stack(list(self.by_type.values())).sum(0)


class GradientStore:
    """A sink that keeps flattened float32 gradients until the inner products of all batches are computed: exact, but
    large.
    """

    def __init__(self) -> None:
        self._now: dict[str, dict[str, torch.Tensor]] = {}
        self._done: dict[str, list[torch.Tensor]] = {}

    def __call__(self, name: str, grad_N: torch.Tensor) -> None:
        wide = grad_N if grad_N.dtype == torch.float64 else grad_N.float()
        self._now.setdefault(module_type(name), {})[name] = _flat(wide)

    def end_batch(self) -> None:
        """Close a batch; its pieces are sorted by name, so that columns agree between batches."""
        for kind, pieces in self._now.items():
            self._done.setdefault(kind, []).append(torch.cat([pieces[name] for name in sorted(pieces)], 1))
        self._now = {}

    def kinds(self) -> tuple[str, ...]:
        return tuple(self._done)

    def gram(self, kind: str) -> torch.Tensor:
        """Inner products of all rows so far, in the order captured [examples, examples], float64 on the CPU."""
        rows_N_P = torch.cat(self._done[kind])
        return (rows_N_P @ rows_N_P.t()).double().cpu()


class Sketch:
    """A count sketch of each example's whole gradient: `rows()` is [examples, D] float32, in capture order.

    s[(p + offset) mod D] += sign(p) g[p], signs and offset drawn per parameter name from the seed. Inner products of
    sketches are unbiased for inner products of gradients, with relative rms error about 1/sqrt(D). D should be prime:
    a heavy input channel then spreads over all buckets. With `by_type` each module type has its own D numbers.
    Source: Charikar, Chen, Farach-Colton 2002; Weinberger et al. 2009.
    """

    def __init__(
        self, dims: int = 4093, *, seed: int = 0, by_type: bool = False, cache_bytes: int = 64 * 2**20
    ) -> None:
        self.dims, self.seed, self.by_type = dims, seed, by_type
        self._now: dict[str, torch.Tensor] = {}
        self._square_N: dict[str, torch.Tensor] = {}
        self._done: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
        self._signs: dict[str, tuple[torch.Tensor, int]] = {}
        self._room = cache_bytes

    def __call__(self, name: str, grad_N: torch.Tensor) -> None:
        flat_N_P = _flat(grad_N)
        wide_N_P = flat_N_P.to(torch.promote_types(flat_N_P.dtype, torch.float32))
        sign_P, offset = self._hash(name, wide_N_P)
        key = module_type(name) if self.by_type else "all"
        square_N = torch.linalg.vector_norm(wide_N_P, dim=1).square()
        self._square_N[key] = self._square_N[key] + square_N if key in self._square_N else square_N
        into_N_D = self._now[key] if key in self._now else wide_N_P.new_zeros(len(wide_N_P), self.dims)
        into_N_D = into_N_D.to(torch.promote_types(into_N_D.dtype, wide_N_P.dtype))
        self._now[key] = self._fold(into_N_D, wide_N_P, sign_P, offset)

    def _fold(self, into_N_D: torch.Tensor, flat_N_P: torch.Tensor, sign_P: torch.Tensor, offset: int) -> torch.Tensor:
        """Adds sign(p) g[p] to bucket (p + offset) mod D, in place, run by run of neighbouring buckets."""
        whole = flat_N_P.shape[1] // self.dims
        if whole > MANY_TURNS:  # one sum over the whole turns is then cheaper than a call for each
            end = whole * self.dims
            turned = (flat_N_P[:, :end] * sign_P[:end]).view(len(flat_N_P), whole, self.dims).sum(1)
            into_N_D += turned.roll(offset, 1)
            flat_N_P, sign_P = flat_N_P[:, end:], sign_P[end:]
        at, bucket = 0, offset
        while at < flat_N_P.shape[1]:
            run = min(self.dims - bucket, flat_N_P.shape[1] - at)
            into_N_D[:, bucket : bucket + run].addcmul_(flat_N_P[:, at : at + run], sign_P[at : at + run])
            at, bucket = at + run, 0
        return into_N_D

    def _hash(self, name: str, like: torch.Tensor) -> tuple[torch.Tensor, int]:
        kept = self._signs.get(name)
        if kept is None:
            generator = named_generator(name, self.seed)
            offset = int(torch.randint(self.dims, (), generator=generator))
            sign_P = torch.randint(0, 2, (like.shape[1],), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
            kept = (sign_P.to(like.device), offset)
            if sign_P.numel() <= self._room:
                self._signs[name], self._room = kept, self._room - sign_P.numel()
        return kept[0].to(device=like.device, dtype=like.dtype), kept[1]

    def end_batch(self) -> None:
        """Close a batch; the next pieces belong to new examples."""
        self._done.append((self._now, self._square_N))
        self._now, self._square_N = {}, {}

    def rows(self, kind: str = "all") -> torch.Tensor:
        """Sketches [examples, D] on the CPU, for one module type or all of them summed."""
        return torch.cat([self._pick(now, kind) for now, _ in self._done]).cpu()

    def squared_norms(self, kind: str = "all") -> torch.Tensor:
        """Exact squared gradient norms [examples], not taken from the sketch."""
        return torch.cat([self._pick(square, kind) for _, square in self._done]).cpu()

    def kinds(self) -> tuple[str, ...]:
        return tuple(self._done[0][0]) if self._done else ()

    def gram(self, kind: str = "all") -> torch.Tensor:
        """Unbiased inner products [examples, examples], float64; the diagonal is exact."""
        rows_N_D = self.rows(kind).double()
        gram_N_N = rows_N_D @ rows_N_D.t()
        gram_N_N.fill_diagonal_(0.0)
        return gram_N_N + torch.diag(self.squared_norms(kind).double())

    @staticmethod
    def _pick(parts: Mapping[str, torch.Tensor], kind: str) -> torch.Tensor:
        return parts[kind] if kind in parts else torch.stack(list(parts.values())).sum(0)


def both(*sinks: Sink) -> Sink:
    """One sink that feeds several sinks."""

    def feed(name: str, grad_N: torch.Tensor) -> None:
        for sink in sinks:
            sink(name, grad_N)

    return feed

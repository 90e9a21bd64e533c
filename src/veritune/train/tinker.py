"""Training and sampling through the Tinker API (SDK `tinker`): LoRA on a server, fed with the contract's own rows.

The server sees token ids and weights made here from the contract's rendered rows, never messages and never a renderer
of the SDK's cookbook. Requests are pipelined: the next steps are on their way before the result of the last is awaited.
Nothing is sampled from training weights: `Session.sample` takes the `SamplerWeights` that `Session.save` returns.

A server decides things that a local run decides itself, and may ignore what it was asked. Both are in the record:
`SERVER_OWNED` lists the first; for the second the exported adapter is opened and its modules are compared with the
switches. The API key is read by the SDK from the environment (`TINKER_API_KEY`) and is recorded nowhere.
"""

from __future__ import annotations

import io
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata, util
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from veritune.errors import GateError, MachineError, ModelError
from veritune.records import Rendered
from veritune.store import sha256_file
from veritune.train.modules import module_group

SERVER_OWNED = (
    "precision of weights and activations",
    "lora_alpha",
    "gradient clipping, unless the server takes it with the optimizer step",
    "reduction of the loss over rows and tokens",
    "micro-batches and their order of summation",
    "random numbers of dropout and initialisation, the seed given being a request",
)
SWITCHES = {"attention": "train_attn", "mlp": "train_mlp", "head": "train_unembed"}
MARGIN = timedelta(hours=1)  # an export is due when a checkpoint has less than this left


@dataclass(frozen=True, slots=True)
class TinkerConfig:
    """What is asked of the server. `ahead` is the number of optimizer steps in flight at once."""

    base_model: str
    base_url: str
    rank: int
    seed: int
    targets: tuple[str, ...] = ("attention", "mlp")
    ahead: int = 2


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step. `loss` is the mean NLL in nats per target token, before the step's update."""

    step: int
    loss: float
    n_target: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class SamplerWeights:
    """Weights converted for sampling, by the server's own path. `expires` is None where the server names no time."""

    path: str
    expires: str | None


def datum(row: Rendered) -> dict[str, list[Any]]:
    """Input ids, target ids and weights of one row, each of length T - 1.

    Position t predicts token t + 1; its weight is 1 where the contract's mask has a target there, else 0.
    """
    return {
        "input": list(row.input_ids[:-1]),
        "target_tokens": list(row.input_ids[1:]),
        "weights": [float(label != -100) for label in row.labels[1:]],
    }


def switches(targets: Sequence[str]) -> dict[str, bool]:
    """The API's LoRA switches for module groups out of `attention`, `mlp`, `head`. Raises ModelError on any other."""
    unknown = sorted(set(targets) - set(SWITCHES))
    if unknown or not targets:
        raise ModelError(
            f"the Tinker API switches {', '.join(SWITCHES)}, found {unknown or 'nothing'}.", fix="Name groups of these."
        )
    return {switch: group in targets for group, switch in SWITCHES.items()}


def missed(asked: Sequence[str], names: Iterable[str]) -> list[str]:
    """What an exported adapter has and was not asked for, or lacks: `mlp: trained, not asked`. Empty when all is well.

    `names` are the adapter's tensor names.
    """
    found = {group for name in names if (group := module_group(_module(name))) in SWITCHES}
    extra = [f"{group}: trained, not asked" for group in SWITCHES if group in found and group not in asked]
    lacking = [f"{group}: asked, not trained" for group in SWITCHES if group in asked and group not in found]
    return extra + lacking


def _module(tensor: str) -> str:
    return tensor.removeprefix("base_model.model.").split(".lora_")[0]


def export_due(expires: str | None, now: datetime) -> bool:
    """Whether a checkpoint has to be exported now. Raises GateError when it has already expired."""
    if expires is None:
        return False
    left = datetime.fromisoformat(expires).astimezone(UTC) - now
    if left <= timedelta(0):
        raise GateError(f"the checkpoint expired at {expires} and was not exported.", fix="Train the cell again.")
    return left < MARGIN


class Session:
    """One LoRA adapter in training on a server. Raises MachineError without the SDK."""

    def __init__(self, config: TinkerConfig) -> None:
        if util.find_spec("tinker") is None:
            raise MachineError("the Tinker backend needs its SDK.", fix="Run `pip install 'veritune[tinker]'`.")
        import tinker

        self.config = config
        self.api = tinker
        self.service = tinker.ServiceClient(base_url=config.base_url)
        self.client = self.service.create_lora_training_client(
            base_model=config.base_model, rank=config.rank, seed=config.seed, **switches(config.targets)
        )

    def train(self, batches: Iterable[Sequence[Rendered]], learning_rates: Iterable[float]) -> Iterator[Step]:
        """One optimizer step a batch, in order; `ahead` of them are submitted before the first result is awaited.

        Raises ModelError on a loss that is not finite.
        """
        flying: deque[tuple[int, list[dict[str, list[Any]]], float, Any, Any]] = deque()
        for number, (rows, rate) in enumerate(zip(batches, learning_rates), start=1):
            data = [datum(row) for row in rows]
            forward = self.client.forward_backward([self._datum(d) for d in data], "cross_entropy")
            step = self.client.optim_step(self.api.AdamParams(learning_rate=rate))
            flying.append((number, data, rate, forward, step))
            if len(flying) >= self.config.ahead:
                yield self._landed(*flying.popleft())
        while flying:
            yield self._landed(*flying.popleft())

    def _datum(self, d: dict[str, list[Any]]) -> Any:
        tensors = {
            "target_tokens": self.api.TensorData(data=d["target_tokens"], dtype="int64", shape=[len(d["input"])]),
            "weights": self.api.TensorData(data=d["weights"], dtype="float32", shape=[len(d["input"])]),
        }
        return self.api.Datum(model_input=self.api.ModelInput.from_ints(d["input"]), loss_fn_inputs=tensors)

    def _landed(self, number: int, data: list[dict[str, list[Any]]], rate: float, forward: Any, step: Any) -> Step:
        outputs = forward.result().loss_fn_outputs
        step.result()
        total = count = 0.0
        for d, output in zip(data, outputs, strict=True):
            total -= sum(w * p for w, p in zip(d["weights"], output["logprobs"].data, strict=True))
            count += sum(d["weights"])
        loss = total / count
        if not abs(loss) < float("inf"):
            raise ModelError(f"the loss is {loss} at step {number}.", fix="Lower the learning rate.")
        return Step(number, loss, int(count), rate)

    def save(self, name: str) -> SamplerWeights:
        """Convert the training weights as they are now into weights that can be sampled from."""
        path = self.client.save_weights_for_sampler(name).result().path
        listed = self.service.create_rest_client().list_checkpoints(self.client.model_id).result().checkpoints
        expires = next((getattr(c, "expires_at", None) for c in listed if c.tinker_path == path), None)
        return SamplerWeights(path, expires.isoformat() if expires is not None else None)

    def sample(
        self, weights: SamplerWeights, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[int]
    ) -> list[tuple[tuple[int, ...], str]]:
        """Greedy answers (token ids and why they ended), in the order of `prompts`, all requests in flight at once."""
        client = self.service.create_sampling_client(model_path=weights.path)
        params = self.api.SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0, stop=list(stop))
        asked = [client.sample(self.api.ModelInput.from_ints(list(p)), 1, params) for p in prompts]
        answers = [future.result().sequences[0] for future in asked]
        return [(tuple(a.tokens), str(a.stop_reason)) for a in answers]

    def export(self, weights: SamplerWeights, folder: Path) -> dict[str, Any]:
        """Download the adapter into `folder` and say what the server really trained.

        Raises GateError when the checkpoint has expired, ModelError when the archive holds no safetensors.
        """
        export_due(weights.expires, datetime.now(UTC))
        rest = self.service.create_rest_client()
        run, _, checkpoint = weights.path.removeprefix("tinker://").partition("/")
        url = rest.get_checkpoint_archive_url(run, checkpoint).result().url  # skyrl-tx's paths do not name the kind
        if urlsplit(url).scheme not in ("http", "https"):
            raise ModelError(f"the server gave no web address for the archive: {url[:80]!r}.", fix="Ask its operator.")
        with urlopen(url, timeout=600) as answer:
            return {**unpack(answer.read(), folder, self.config.targets), **self.record()}

    def record(self) -> dict[str, Any]:
        """Who trained: SDK version, what was asked, and what the server decides. No key and no address."""
        asked = {"base_model": self.config.base_model, "rank": self.config.rank, "seed": self.config.seed}
        asked |= switches(self.config.targets)
        return {
            "backend": "tinker",
            "sdk": metadata.version("tinker"),
            "asked": asked,
            "server_owned": dict.fromkeys(SERVER_OWNED, "decided by the server; not reported through the API"),
        }


def unpack(archive: bytes, folder: Path, asked: Sequence[str]) -> dict[str, Any]:
    """Unpack a tar of an adapter: its files with hashes, its modules, and where they differ from what was asked.

    A module counts as trained when its B, which starts at zero, is not zero.
    Members that would leave `folder` are refused by tarfile's `data` filter.
    """
    from safetensors import safe_open

    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise ModelError("the exported archive holds no safetensors.", fix="Ask the server's operator.")
    names: list[str] = []
    for file in files:
        with safe_open(file, framework="numpy") as tensors:
            names += [k for k in tensors.keys() if ".lora_B" in k and tensors.get_tensor(k).any()]  # noqa: SIM118
    return {
        "files": {file.relative_to(folder).as_posix(): sha256_file(file) for file in files},
        "modules": sorted({_module(name) for name in names}),
        "differs": missed(asked, names),
    }

"""Training and sampling through the Tinker API (SDK `tinker`): LoRA on a server, fed with the contract's own rows.

The server sees token ids and weights made here from the contract's rendered rows, never messages and never a renderer
of the SDK's cookbook. An update is sent when its gradient is back, unless `ahead` says otherwise.
Nothing is sampled from training weights: `Session.save` converts them, `Sampler` takes what it returns.

A server decides things that a local run decides itself, and may ignore what it was asked. Both are in the record:
`SERVER_OWNED` lists the first; for the second the exported adapter is opened and its modules are compared with the
switches. The API key is read by the SDK from the environment (`TINKER_API_KEY`) and is recorded nowhere.
"""

from __future__ import annotations

import concurrent.futures
import io
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from veritune.errors import DivergedError, GateError, MachineError, ModelError
from veritune.records import JsonLike, Rendered
from veritune.store import read_json, sha256_file, write_json
from veritune.train.modules import GROUPS, factor, module_group

if TYPE_CHECKING:
    from types import ModuleType

    import tinker

SERVER_OWNED = (
    "precision of weights and activations",
    "lora_alpha",
    "gradient clipping: the norm is sent with every step, but a server may ignore it",
    "reduction of the loss over rows: weights are sent as 1/n of the step's n target tokens",
    "micro-batches and their order of summation",
    "random numbers of dropout and initialisation: the seed is only a request",
)
SWITCHES = {"attention": "train_attn", "mlp": "train_mlp", "head": "train_unembed"}
MARGIN = timedelta(hours=1)  # an export is due when a checkpoint has less than this left
ROWS_A_REQUEST = 16
"""Rows of one forward request; all requests of a measurement are in flight at once."""
UNABLE = (400, 404, 405, 422, 501)
"""Statuses by which a server says that it does not have what was asked, rather than that it failed."""
SILENCE_S = 20
"""Seconds within which a server has to answer at all."""


@dataclass(frozen=True, slots=True)
class TinkerConfig:
    """The settings requested from the server; `adam` is sent unchanged.

    `ahead` is the number of optimizer steps in flight at once, each gradient with its update; 0 sends the update when
    the gradient has come back, which no server can take in another order.
    """

    base_model: str
    base_url: str
    rank: int
    seed: int
    targets: tuple[str, ...] = ("attention", "mlp")
    ahead: int = 0
    adam: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepTaken:
    """One optimizer step. `loss` is the mean NLL in nats per target token, before the step's update."""

    step: int
    loss: float
    n_target: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class SamplerWeights:
    """Weights converted for sampling, by the server's own path. `expires` is None if the server names no time.

    `external` is the path of the copy that can be downloaded, where the SDK keeps one apart.
    """

    path: str
    expires: str | None
    external: str | None = None


class Datum(TypedDict):
    """A row for the server: input ids, the ids that they predict, and a weight for each."""

    input: list[int]
    target_tokens: list[int]
    weights: list[float]


def datum(row: Rendered) -> Datum:
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
            f"the Tinker API switches {', '.join(SWITCHES)}, found {unknown or 'nothing'}.",
            fix="Name only these groups.",
        )
    return {switch: group in targets for group, switch in SWITCHES.items()}


def missed(asked: Sequence[str], names: Iterable[str]) -> list[str]:
    """Differences of an exported adapter from the request: `mlp: trained, not asked`. Empty if there are none.

    `names` are the adapter's tensor names.
    """
    found = {module_group(_module(name)) for name in names}
    extra = [f"{group}: trained, not asked" for group in GROUPS if group in found and group not in asked]
    lacking = [f"{group}: asked, not trained" for group in SWITCHES if group in asked and group not in found]
    return extra + lacking


def _module(tensor: str) -> str:
    return tensor.removeprefix("base_model.model.").split(".lora_")[0]


def export_due(expires: str | None, now: datetime) -> bool:
    """Whether a checkpoint must be exported now. Raises GateError if it has already expired."""
    if expires is None:
        return False
    left = datetime.fromisoformat(expires).astimezone(UTC) - now
    if left <= timedelta(0):
        raise GateError(
            f"the checkpoint expired at {expires} on the server.",
            fix="Delete the run's folder and train the cell again.",
        )
    return left < MARGIN


def require_sdk() -> ModuleType:
    """The SDK's module. Raises MachineError if it is not installed."""
    if util.find_spec("tinker") is None:
        raise MachineError(
            "the Tinker backend needs its SDK, which is not installed.", fix="Run `pip install 'veritune[tinker]'`."
        )
    import tinker

    module: ModuleType = tinker
    return module


def require_server(base_url: str) -> None:
    """Raises MachineError if nothing answers at the address; any answer is enough here."""
    try:
        with urlopen(f"{base_url.rstrip('/')}/api/v1/healthz", timeout=SILENCE_S):
            return
    except HTTPError:
        return
    except (URLError, OSError, ValueError) as exc:
        raise MachineError(
            f"backend.base_url: no Tinker server answers ({exc}).", fix="Start the server, or correct the address."
        ) from None


@contextmanager
def server_errors(doing: str) -> Iterator[None]:
    """Turn the SDK's errors into a MachineError that says what was being done."""
    api = require_sdk()
    try:
        yield
    except (api.TinkerError, HTTPError, URLError, concurrent.futures.TimeoutError) as exc:
        words = " ".join(str(exc).split()) or type(exc).__name__
        raise MachineError(
            f"the Tinker server failed while {doing}: {type(exc).__name__}: {words[:300]}.",
            fix="Finished work is kept; the same command resumes the rest.",
        ) from None


def _came(client: tinker.TrainingClient) -> tinker.TrainingClient:
    """A client itself: newer SDKs hand out a future of it."""
    return client.result() if hasattr(client, "result") else client


def _service(base_url: str) -> tinker.ServiceClient:
    """A connection to the server. Raises MachineError without SDK or key."""
    api = require_sdk()
    try:
        return api.ServiceClient(base_url=base_url)
    except (api.TinkerError, ValueError) as exc:
        raise MachineError(
            f"the Tinker SDK does not start: {' '.join(str(exc).split())[:200]}.", fix="Set TINKER_API_KEY."
        ) from None


class Session:
    """One LoRA adapter in training on a server. Raises MachineError without the SDK."""

    def __init__(self, config: TinkerConfig) -> None:
        self.api = require_sdk()
        self.config = config
        self.rows_sent = 0
        self.service = _service(config.base_url)
        with server_errors("making an adapter"):
            self.client = _came(
                self.service.create_lora_training_client(
                    base_model=config.base_model, rank=config.rank, seed=config.seed, **switches(config.targets)
                )
            )

    def train(self, batches: Iterable[Sequence[Rendered]], learning_rates: Iterable[float]) -> Iterator[StepTaken]:
        """Train one optimizer step per batch, in order; up to `ahead` of them are submitted before the first is
        awaited.

        Raises DivergedError on a loss that is not finite, MachineError when the server fails.
        """
        flying: deque[tuple[int, list[Datum], float, tinker.APIFuture, tinker.APIFuture]] = deque()
        for number, (rows, rate) in enumerate(zip(batches, learning_rates), start=1):
            data = [datum(row) for row in rows]
            share = 1 / sum(sum(d["weights"]) for d in data)
            adam = self.api.AdamParams(learning_rate=rate, **self.config.adam)
            with server_errors(f"training step {number}"):
                forward = self.client.forward_backward([self._datum(d, share) for d in data], "cross_entropy")
                if not self.config.ahead:
                    forward.result()
                step = self.client.optim_step(adam)
            self.rows_sent += len(rows)
            flying.append((number, data, rate, forward, step))
            if len(flying) >= self.config.ahead:
                yield self._landed(*flying.popleft())
        while flying:
            yield self._landed(*flying.popleft())

    def _datum(self, d: Datum, share: float = 1.0) -> tinker.Datum:
        weights = [w * share for w in d["weights"]]
        tensors = {
            "target_tokens": self.api.TensorData(data=d["target_tokens"], dtype="int64", shape=[len(d["input"])]),
            "weights": self.api.TensorData(data=weights, dtype="float32", shape=[len(d["input"])]),
        }
        return self.api.Datum(model_input=self.api.ModelInput.from_ints(d["input"]), loss_fn_inputs=tensors)

    def _landed(
        self, number: int, data: list[Datum], rate: float, forward: tinker.APIFuture, step: tinker.APIFuture
    ) -> StepTaken:
        with server_errors(f"training step {number}"):
            outputs = forward.result().loss_fn_outputs
            step.result()
        parts = [_masked(d, output) for d, output in zip(data, outputs, strict=True)]
        count = sum(n for _, n in parts)
        loss = sum(total for total, _ in parts) / count
        if not abs(loss) < float("inf"):
            raise DivergedError(f"the loss is {loss} at step {number}.", fix="Lower the learning rate.")
        return StepTaken(number, loss, count, rate)

    def nll(self, rows: Sequence[Rendered]) -> list[tuple[float, int]]:
        """For each row its summed NLL in nats and its number of target tokens, under the present weights."""
        chunks = [rows[k : k + ROWS_A_REQUEST] for k in range(0, len(rows), ROWS_A_REQUEST)]
        data = [[datum(row) for row in chunk] for chunk in chunks]
        with server_errors("measuring losses"):
            asked = [self.client.forward([self._datum(d) for d in chunk], "cross_entropy") for chunk in data]
            outputs = [future.result().loss_fn_outputs for future in asked]
        return [_masked(d, o) for chunk, out in zip(data, outputs) for d, o in zip(chunk, out, strict=True)]

    def save(self, name: str) -> SamplerWeights:
        """Convert the present training weights into weights for sampling and export.

        Newer SDKs download external weights only, which are made from the training weights of this moment.
        """
        with server_errors("converting weights"):
            kept = self.client.save_weights_for_sampler(name)
            apart = self.client.save_weights_external(name) if self._exports_apart() else None
            path = kept.result().path
            external = None if apart is None else apart.result().path
            listed = self.service.create_rest_client().list_checkpoints(self.client.model_id).result().checkpoints
        ends = [c.expires_at for c in listed if _same_checkpoint(c, path, external) and getattr(c, "expires_at", None)]
        return SamplerWeights(path, min(ends).isoformat() if ends else None, external)

    def _exports_apart(self) -> bool:
        return not hasattr(self.service.create_rest_client(), "get_checkpoint_archive_url")

    def sample(
        self, weights: SamplerWeights, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[int]
    ) -> list[tuple[tuple[int, ...], str]]:
        """Greedy answers (token ids and why they ended), in the order of `prompts`, all requests in flight at once."""
        return Sampler(self.config.base_url, weights=weights).sample(prompts, max_tokens, stop)

    def export(self, weights: SamplerWeights, folder: Path) -> dict[str, Any]:
        """Download the adapter into `folder`, and return what the server really trained.

        Raises GateError when the checkpoint has expired, ModelError when the archive holds no safetensors.
        """
        export_due(weights.expires, datetime.now(UTC))
        rest = self.service.create_rest_client()
        with server_errors("exporting an adapter"):
            if weights.external is not None:
                urls = rest.get_external_weights_urls(weights.external).result().urls
                for name, url in urls.items():
                    _put(folder, name, _fetched(url))
            else:
                run, _, checkpoint = weights.path.removeprefix("tinker://").partition("/")
                url = rest.get_checkpoint_archive_url(run, checkpoint).result().url  # skyrl-tx's paths name no kind
                untar(_fetched(url), folder)
        return {**inspect(folder, self.config.targets), "completed": complete_config(folder), **self.record()}

    def record(self) -> dict[str, Any]:
        """The training's record: SDK version, what was requested, and what the server decides. It contains no key and
        no address.
        """
        asked: dict[str, Any] = {"base_model": self.config.base_model, "rank": self.config.rank}
        asked |= {"seed": self.config.seed, "adam": dict(self.config.adam), "steps_in_flight": self.config.ahead}
        asked |= switches(self.config.targets)
        return {
            "backend": "tinker",
            "sdk": metadata.version("tinker"),
            "asked": asked,
            "server_owned": dict.fromkeys(SERVER_OWNED, "decided by the server; not reported through the API"),
        }

    def close(self) -> None:
        """Close the connection, if the SDK can; the server forgets an adapter without a session."""
        if hasattr(self.service, "close"):
            with server_errors("closing"):
                self.service.close("success").result()


class Sampler:
    """Answers and losses of converted weights, or (without `weights`) of the server's untouched base."""

    def __init__(self, base_url: str, *, weights: SamplerWeights | None = None, base_model: str | None = None) -> None:
        if weights is not None:
            export_due(weights.expires, datetime.now(UTC))
        self.api = require_sdk()
        self.service = _service(base_url)
        source = {"base_model": base_model} if weights is None else {"model_path": weights.path}
        with server_errors("loading weights for sampling"):
            self.client = _came(self.service.create_sampling_client(**source))

    def sample(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[int]
    ) -> list[tuple[tuple[int, ...], str]]:
        """Greedy answers (token ids and why they ended), in the order of `prompts`, all requests in flight at once."""
        params = self.api.SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0, stop=list(stop))
        with server_errors("answering"):
            asked = [self.client.sample(self.api.ModelInput.from_ints(list(p)), 1, params) for p in prompts]
            answers = [future.result().sequences[0] for future in asked]
        return [(tuple(a.tokens), str(a.stop_reason)) for a in answers]

    def nll(self, rows: Sequence[Rendered]) -> list[tuple[float, int]]:
        """For each row its summed NLL in nats and its number of target tokens.

        Raises ModelError where the server gives no log-probability for a target token, MachineError when it fails.
        """
        with server_errors("measuring losses of converted weights"):
            try:
                asked = [self.client.compute_logprobs(self.api.ModelInput.from_ints(list(r.input_ids))) for r in rows]
                found = [future.result() for future in asked]
            except self.api.APIStatusError as exc:
                if exc.status_code not in UNABLE:
                    raise
                raise ModelError(f"the server gives no log-probabilities of prompts ({exc.status_code}).") from None
        return [_prompt_nll(row, list(given or ())) for row, given in zip(rows, found)]

    def close(self) -> None:
        """Close the connection, if the SDK can."""
        if hasattr(self.service, "close"):
            with server_errors("closing"):
                self.service.close("success").result()


def _masked(d: Datum, output: Mapping[str, tinker.TensorData]) -> tuple[float, int]:
    """Summed NLL (nats) over the positions whose weight is not 0, and their number."""
    pairs = zip(d["weights"], output["logprobs"].data, strict=True)
    return -sum(w * p for w, p in pairs if w), round(sum(d["weights"]))


def _prompt_nll(row: Rendered, given: Sequence[float | None]) -> tuple[float, int]:
    """Summed NLL of a row from the log-probabilities of its tokens.

    Servers differ on the first token, which nothing predicts: some give None for it, some leave it out.
    """
    n = len(row.input_ids)
    if len(given) not in (n, n - 1):
        raise ModelError(f"row {row.row_id}: {n} tokens were sent, but {len(given)} log-probabilities came back.")
    after_first = given[len(given) - (n - 1) :]
    wanted = [p for p, label in zip(after_first, row.labels[1:], strict=True) if label != -100]
    numbers = [p for p in wanted if p is not None and p == p and abs(p) != float("inf")]
    if len(numbers) < len(wanted):
        raise ModelError(f"row {row.row_id}: the server gave no log-probability for a target token.")
    return -sum(numbers), len(numbers)


def _same_checkpoint(listed: tinker.types.Checkpoint, path: str, external: str | None) -> bool:
    """Whether a listed checkpoint is the one just saved; skyrl-tx lists another path than it gave."""
    if listed.tinker_path in (path, external):
        return True
    same = listed.tinker_path.rsplit("/", 1)[-1] == path.rsplit("/", 1)[-1]
    return bool(listed.checkpoint_type == "sampler" and same)


def _fetched(url: str) -> bytes:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ModelError(
            f"the server gave no web address for the adapter: {url[:80]!r}.", fix="Report it to the server's operator."
        )
    with urlopen(url, timeout=600) as answer:
        content: bytes = answer.read()
    return content


def _put(folder: Path, name: str, content: bytes) -> None:
    """Write one exported file. Raises ModelError where its name leads out of `folder`."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ModelError(
            f"the server names a file outside the export: {name[:80]!r}.", fix="Report it to the server's operator."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def untar(archive: bytes, folder: Path) -> None:
    """Unpack the plain files of an adapter's tar archive. Raises ModelError for a name outside `folder` and for a link.

    Member by member: `extractall` has its safe filter only from Python 3.11.4 on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            if member.isdir():
                continue
            stream = tar.extractfile(member) if member.isreg() else None
            if stream is None:
                raise ModelError(
                    f"the export holds {member.name[:80]!r}, which is not a plain file.",
                    fix="Report it to the server's operator.",
                )
            _put(folder, member.name, stream.read())


def complete_config(folder: Path) -> list[str]:
    """Add the adapted modules to adapter_config.json if the server left them open; returns what was written.

    PEFT fills the gap with the architecture's usual few and passes over the tensors of all others.
    """
    from safetensors import safe_open

    done = []
    for path in sorted(folder.rglob("adapter_config.json")):
        config = read_json(path)
        if config.get("target_modules"):
            continue
        names: set[str] = set()
        for file in path.parent.glob("*.safetensors"):
            with safe_open(file, framework="numpy") as tensors:
                names |= {_module(name) for name in tensors.keys()}  # noqa: SIM118
        write_json(path, {**config, "target_modules": sorted(names)})
        done.append(f"{path.relative_to(folder).as_posix()}: target_modules")
    return done


def inspect(folder: Path, asked: Sequence[str]) -> dict[str, JsonLike]:
    """The content of an exported adapter: files with hashes, modules, number of parameters, and where it differs from
    the request.

    A module counts as trained when its B, which starts at zero, is not zero; `parameters` are the scalars of its A and
    B. Raises ModelError when there are no safetensors.
    """
    from safetensors import safe_open

    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise ModelError("the exported archive holds no safetensors.", fix="Report it to the server's operator.")
    names: list[str] = []
    scalars: dict[str, int] = {}
    for file in files:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                scalars[_module(name)] = scalars.get(_module(name), 0) + tensor.size
                names += [name] if factor(name) == "B" and tensor.any() else []
    modules = sorted({_module(name) for name in names})
    return {
        "files": {file.relative_to(folder).as_posix(): sha256_file(file) for file in files},
        "modules": modules,
        "parameters": sum(scalars[module] for module in modules),
        "differs": missed(asked, names),
    }

"""The newest SDK's exchanges: a loopback server that takes and checks what the real SDK sends, and records its shapes.

python exchanges.py MODEL_FOLDER OUT [--record]        in an environment with Veritune and tinker 0.38.0

There is no server of that version to be had. This one is no model: every token's log-probability is -6, and 0.1 more
after each optimizer step, so that all losses of a study are known beforehand. Requests are parsed by the SDK's own
strict types and protobuf messages, answers are written with them. What was exchanged is compared with
exchanges-0.38.0.json (`--record` writes it).
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from study import lora, read, write

RECORD = Path(__file__).with_name("exchanges-0.38.0.json")
START, GAIN = 6.0, 0.1
SHAPES = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}
SHAPES |= {"gate_proj": (96, 64), "up_proj": (96, 64), "down_proj": (64, 96)}


def strict(module: str, name: str, body: dict[str, Any]) -> Any:
    """A request parsed by the SDK's own type, which refuses unknown and missing fields."""
    return getattr(importlib.import_module(f"tinker.types.{module}"), name).model_validate(body)


class Served:
    """What the server holds: adapters, converted weights, futures, and the shapes of all that was exchanged."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.url = ""
        self.models: dict[str, dict[str, Any]] = {}
        self.samplers: dict[str, int] = {}
        self.paths: dict[str, int] = {}
        self.futures: dict[str, tuple[str, bytes]] = {}
        self.trained: list[tuple[tuple[int, ...], tuple[bool, ...]]] = []
        self.shapes: dict[str, Any] = {}

    def promise(self, answer: Any, kind: str = "application/json") -> dict[str, Any]:
        """Keep an answer for `retrieve_future`; what is said at once."""
        name = f"future-{len(self.futures)}"
        self.futures[name] = (kind, answer if isinstance(answer, bytes) else json.dumps(answer).encode())
        return {"request_id": name}


def forward_backward(served: Served, body: bytes) -> dict[str, Any]:
    """Check ids and weights; log-probabilities by the number of steps that the adapter has made."""
    from tinker.proto import tinker_public_pb2 as pb

    asked = pb.ForwardBackwardRequest()
    asked.ParseFromString(body)
    assert asked.loss_fn == "cross_entropy" and asked.seq_id >= 1
    logp = -START + GAIN * served.models[asked.model_id]["steps"]
    lengths, weighed = [], 0.0
    for datum in asked.data:
        (chunk,) = datum.model_input
        ids = np.frombuffer(chunk.encoded_text.tokens, dtype=np.int32)
        targets = np.frombuffer(datum.loss_fn_inputs["target_tokens"].dense, dtype=np.int64)
        weights = np.frombuffer(datum.loss_fn_inputs["weights"].dense, dtype=np.float32)
        assert len(ids) == len(targets) == len(weights) and (ids[1:] == targets[:-1]).all()
        lengths.append(len(ids))
        weighed += float(weights.sum())
        if not asked.forward_only:
            served.trained.append(((*ids.tolist(), int(targets[-1])), tuple((weights > 0).tolist())))
    assert asked.forward_only or abs(weighed - 1) < 1e-4, f"weights of a step sum to {weighed}"
    out = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    field = out.loss_fn_outputs.add().fields["logprobs"]
    field.dtype = pb.DTYPE_FLOAT32
    field.offsets = np.cumsum([0, *[4 * n for n in lengths]]).astype(np.int64).tobytes()
    field.data = np.full(sum(lengths), logp, np.float32).tobytes()
    return served.promise(out.SerializeToString(), "application/x-protobuf")


def optim_step(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    """One step more."""
    asked = strict("optim_step_request", "OptimStepRequest", body)
    adam = (body.get("optim_params") or body.get("adam_params") or {}).get("grad_clip_norm")
    assert adam == 1.0, f"the clipping norm did not arrive: {body}"
    served.models[asked.model_id]["steps"] += 1
    return served.promise({})


def create_model(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    """A fresh adapter."""
    asked = strict("create_model_request", "CreateModelRequest", body)
    name = f"run-{len(served.models)}"
    served.models[name] = {"steps": 0, "lora": asked.lora_config, "base": asked.base_model}
    return served.promise({"model_id": name, "type": "create_model"})


def get_info(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    """What an adapter is."""
    held = served.models[body["model_id"]]
    data = {"arch": "llama", "model_name": held["base"], "tokenizer_id": held["base"]}
    return {"model_id": body["model_id"], "model_data": data, "is_lora": True, "lora_rank": held["lora"].rank}


def save_weights(kind: str) -> Callable[[Served, dict[str, Any]], dict[str, Any]]:
    """Sampler or external weights of this moment."""

    def saved(served: Served, body: dict[str, Any]) -> dict[str, Any]:
        name = {"sampler_weights": "for_sampler", "external_weights": "external"}[kind]
        title = name.title().replace("_", "")
        asked = strict(f"save_weights_{name}_request", f"SaveWeights{title}Request", body)
        path = f"tinker://{asked.model_id}/{kind}/{asked.path}"
        served.paths[path] = served.models[asked.model_id]["steps"]
        return served.promise({"path": path, "type": f"save_weights_{name}"})

    return saved


def sample(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of a prompt, or an answer of two tokens."""
    from tinker.proto import tinker_public_pb2 as pb

    asked = strict("sample_request", "SampleRequest", body)
    n = sum(len(chunk.tokens) for chunk in asked.prompt.chunks)
    out = pb.SampleResponse()
    if asked.prompt_logprobs:
        logp = -START + GAIN * served.samplers[asked.sampling_session_id]
        out.prompt_logprobs = np.array([np.nan] + [logp] * (n - 1), np.float32).tobytes()
    else:
        assert asked.sampling_params.temperature == 0.0
    stop = pb.STOP_REASON_STOP
    out.sequences.add(stop_reason=stop, tokens=np.array([40, 41], np.int32).tobytes())
    return {**served.promise(out.SerializeToString(), "application/x-protobuf"), "sample_sequence_ids": ["s"]}


def sampling_session(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    """Answers of converted weights, or of the base."""
    asked = strict("create_sampling_session_request", "CreateSamplingSessionRequest", body)
    assert asked.base_model or "/sampler_weights/" in asked.model_path, "only converted weights are sampled from"
    name = f"sampling-{len(served.samplers)}"
    served.samplers[name] = served.paths[asked.model_path] if asked.model_path else 0
    return {"type": "create_sampling_session", "sampling_session_id": name}


def checkpoints(served: Served, run: str) -> dict[str, Any]:
    """The adapter's checkpoints, each with half an hour left: an export is due at once."""
    ends = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
    kinds = {"sampler_weights": "sampler", "external_weights": "external"}
    listed = []
    for path in [p for p in served.paths if p.startswith(f"tinker://{run}/")]:
        kind, name = path.removeprefix(f"tinker://{run}/").split("/")
        listed.append({"checkpoint_id": f"{kind}/{name}", "checkpoint_type": kinds[kind], "tinker_path": path})
        listed[-1] |= {"time": datetime.now(UTC).isoformat(), "expires_at": ends, "public": False, "size_bytes": 1}
    return {"checkpoints": listed}


def adapter(served: Served, run: str) -> bytes:
    """The safetensors of an adapter as PEFT names them, with the switches' modules."""
    config = served.models[run]["lora"]
    tensors = {}
    for layer in range(2):
        for leaf, (rows, columns) in SHAPES.items():
            block = "mlp" if leaf in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            if config.train_mlp if block == "mlp" else config.train_attn:
                name = f"base_model.model.model.layers.{layer}.{block}.{leaf}"
                tensors[f"{name}.lora_A.weight"] = np.ones((config.rank, columns), np.float32)
                tensors[f"{name}.lora_B.weight"] = np.ones((rows, config.rank), np.float32)
    return save(tensors)


POST: dict[str, Callable[[Served, Any], dict[str, Any]]] = {
    "client/config": lambda served, body: {},
    "client/dynamic_config": lambda served, body: {},
    "create_session": lambda served, body: {
        "type": "create_session",
        "session_id": strict("create_session_request", "CreateSessionRequest", body) and "session-0",
    },
    "session_heartbeat": lambda served, body: {"type": "session_heartbeat"},
    "telemetry": lambda served, body: {"status": "accepted"},
    "create_model": create_model,
    "get_info": get_info,
    "forward_backward": forward_backward,
    "optim_step": optim_step,
    "save_weights_for_sampler": save_weights("sampler_weights"),
    "save_weights_external": save_weights("external_weights"),
    "create_sampling_session": sampling_session,
    "asample": sample,
    "sessions/ID/finish": lambda served, body: {},
}


def shape(value: Any) -> Any:
    """Keys and types of a JSON value."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in sorted(value.items())}
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


class Handler(BaseHTTPRequestHandler):
    """Answers the SDK; an assertion that fails is answered by 400 and ends the study."""

    protocol_version = "HTTP/1.1"
    served: Served

    def log_message(self, *args: Any) -> None:
        """No log."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = re.sub(r"sessions/[^/]+/", "sessions/ID/", self.path.removeprefix("/api/v1/"))
        binary = "protobuf" in self.headers.get("Content-Type", "")
        body: Any = raw if binary else json.loads(raw or b"{}")
        try:
            with self.served.lock:
                if name == "retrieve_future":
                    kind, answer = self.served.futures[body["request_id"]]
                else:
                    kind, found = "application/json", POST[name](self.served, body)
                    answer = json.dumps(found).encode()
        except Exception as exc:
            print(json.dumps({"refused": name, "why": repr(exc)}), flush=True)
            self._say(400, "application/json", json.dumps({"detail": repr(exc)}).encode())
            return
        if name not in ("telemetry", "session_heartbeat", "client/dynamic_config"):
            sent = "protobuf" if binary else shape(body)
            self.served.shapes.setdefault(f"POST {name}", {"request": sent, "answer": kind})
        self._say(200, kind, answer)

    def do_GET(self) -> None:
        path = self.path.removeprefix("/api/v1/")
        kind, answer = "application/json", b"{}"
        if path.startswith("samplers/"):
            name = path.removeprefix("samplers/")
            answer = json.dumps({"sampler_id": name, "base_model": "base", "model_path": None}).encode()
            self.served.shapes.setdefault("GET samplers/ID", {"answer": kind})
        if found := re.fullmatch(r"files/([^/]+)/(.+)", path.lstrip("/")):
            config = {"peft_type": "LORA", "r": 2, "lora_alpha": 32, "target_modules": None}
            name = found[2]
            answer = adapter(self.served, found[1]) if name.endswith("safetensors") else json.dumps(config).encode()
        elif found := re.fullmatch(r"training_runs/([^/]+)/checkpoints", path):
            answer = json.dumps(checkpoints(self.served, found[1])).encode()
            self.served.shapes.setdefault("GET training_runs/RUN/checkpoints", {"answer": kind})
        elif found := re.fullmatch(r"training_runs/([^/]+)/checkpoints/.+/external_weights_urls", path):
            names = ("adapter_model.safetensors", "adapter_config.json")
            urls = {name: f"{self.served.url}/files/{found[1]}/{name}" for name in names}
            answer = json.dumps({"urls": urls, "expires": datetime.now(UTC).isoformat()}).encode()
            where = "GET training_runs/RUN/checkpoints/ID/external_weights_urls"
            self.served.shapes.setdefault(where, {"answer": kind})
        elif not path.startswith(("samplers/", "healthz")):
            print(json.dumps({"unknown": path}), flush=True)
        self._say(200, kind, answer)

    def _say(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def serve() -> tuple[ThreadingHTTPServer, Served]:
    """The server on a free port, in a thread of its own."""
    served = Served()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"served": served}))
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, served


def sent_is_contract(root: Path, served: Served) -> bool:
    """Whether every row that was trained on is one of the contract's, with the contract's mask."""
    from veritune import contract
    from veritune.data.prepare import load_prepared
    from veritune.store import Store

    data = load_prepared(Store(root), contract.read(Store(root)).facts)
    rows = data.zone("seen")
    known = {(tuple(r.input_ids), tuple(label != -100 for label in r.labels[1:])) for r in rows}
    return bool(served.trained) and set(served.trained) <= known


def kill_one(root: Path, ended: threading.Event) -> None:
    """Kill the worker of the first cell that has made a step and is not yet trained."""
    import psutil

    while not ended.wait(0.02):
        for log in root.glob("runs/*/metrics.jsonl"):
            if (log.parent / "training.json").exists():
                continue
            for process in psutil.Process().children(recursive=True):
                if log.parent.name in process.cmdline():
                    process.kill()
                    print(json.dumps({"killed": log.parent.name}))
                    return


def records(root: Path) -> dict[str, Any]:
    """Candidates and scores of every cell, by run id: what must not depend on where and how often it was begun."""
    found: dict[str, Any] = {}
    for path in sorted(root.glob("runs/*/summary.json")):
        summary = read(path)
        candidates = (summary["training"] or {}).get("candidates", [])
        found[path.parent.name] = [[(c["step"], c["validation_nll"]) for c in candidates], summary["scores"]]
    return found


def killed_side_by_side(url: str, model: str, out: Path) -> bool:
    """Whether two workers side by side, one of them killed in mid-training, end with the records of one process."""
    from veritune.pipeline.executors import ExecutorPlan
    from veritune.pipeline.flow import run
    from veritune.progress import Progress

    both = {"small": lora("all-linear", 2), "large": lora("all-linear", 4)}
    alone, beside = (write(out / name, url, model, both) for name in ("alone", "beside"))
    run(alone, progress=Progress(silent=True))
    ended = threading.Event()
    killer = threading.Thread(target=kill_one, args=(beside, ended))
    killer.start()
    outcome = run(beside, progress=Progress(), executor=ExecutorPlan(kind="local", workers=2))
    killed = not killer.is_alive()  # it ends by itself when it has killed
    ended.set()
    killer.join()
    return killed and outcome.trained == 3 and records(beside) == records(alone)


def main(model: str, out: str, *flags: str) -> int:
    """Run studies against the server; 1 when a record or an exchange is not as it must be."""
    from veritune.pipeline.flow import run
    from veritune.progress import Progress

    server, served = serve()
    root = write(Path(out) / "study", served.url, model, {"all": lora("all-linear", 2)})
    outcome = run(root, progress=Progress())
    folder = next((root / "runs").glob("all-s0-*"))
    training, losses = read(folder / "training.json"), read(folder / "probes" / "nll.json")
    found = {c["step"]: round(c["validation_nll"], 4) for c in training["candidates"]}
    told = {
        "candidates_right": found == {step: round(START - GAIN * step, 4) for step in found},
        "exported_in_time": sorted(p.name for p in (folder / "checkpoints").iterdir()) == [f"step-{max(found)}"],
        "rows_are_the_contract's": sent_is_contract(root, served),
        "conversion_apart": losses["conversion"]["apart"],
        "completed": training["backend"]["exported"]["completed"],
        "expires": training["candidates"][-1]["expires"] is not None,
        "cells": outcome.trained,
    }
    if "--record" in flags:
        RECORD.write_text(json.dumps(served.shapes, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    told["exchanges_as_recorded"] = served.shapes == json.loads(RECORD.read_text(encoding="utf-8"))
    told["killed_side_by_side"] = killed_side_by_side(served.url, model, Path(out))
    server.shutdown()
    print(json.dumps(told))
    good = told["conversion_apart"] < 1e-5 and outcome.trained == 2
    return 0 if good and all(value for key, value in told.items() if key != "conversion_apart") else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

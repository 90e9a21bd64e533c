"""Does the served model say what the contract's own generation says? Its speed is measured in `load.py`.

Parity: the golden prompts go to a server that speaks the OpenAI chat protocol, greedily (temperature 0), and what comes
back is compared with our own greedy generation from the same folder: the number of prompt tokens (another chat template
shows there), the text, why it ended, and special tokens in the text. The first difference names the drift.

Greedily is not how every client asks: some prompts are asked again without a temperature, so that a server which
samples by default is named, where the contract's own model does not.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from veritune.data.render import Renderer
from veritune.errors import InputError, MachineError, ModelError
from veritune.evaluate.generate import Decoding, generate
from veritune.records import JsonLike, Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

START_S = 180.0
"""A server that has not answered after this long is given up."""


# ---------------------------------------------------------------- a server


@dataclass
class Server:
    """An OpenAI-compatible server; `process` is None if somebody else runs it."""

    url: str
    model: str
    process: subprocess.Popen[bytes] | None = None
    on_gpu: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def memory_bytes(self) -> int | None:
        """Resident memory of the server's process and its children at present, in bytes.

        None for a foreign server, and for one that may hold its weights on a GPU, which this number would not show.
        """
        import psutil

        if self.process is None or self.on_gpu:
            return None
        try:
            parent = psutil.Process(self.process.pid)
            return sum(int(p.memory_info().rss) for p in [parent, *parent.children(recursive=True)])
        except psutil.NoSuchProcess:
            return None


COMMANDS: Mapping[str, str] = {
    "transformers": "{python} -m transformers.cli.transformers serve {model} --host {host} --port {port}"
    " --dtype {dtype} --device auto",
    "vllm": "vllm serve {model} --host {host} --port {port} --dtype {dtype}",
    "llama-server": "llama-server --model {gguf} --host {host} --port {port} --jinja",
    "llama-cpp-python": "{python} -m llama_cpp.server --model {gguf} --host {host} --port {port}",
}
"""How known servers are started. A command of the user's own has the same places to fill."""


def command_of(server: str, folder: Path, port: int, dtype: str) -> list[str]:
    """The command line that starts a server: from a name in `COMMANDS`, or a command with `{model}` or `{gguf}`, and
    `{port}`.

    Raises InputError for a place that nothing fills or a folder without the one GGUF file that is asked for, and
    MachineError when the program is not installed.
    """
    template = COMMANDS.get(server, server)
    places = {"python": sys.executable, "host": "127.0.0.1", "port": str(port), "dtype": dtype, "model": str(folder)}
    if "{gguf}" in template:
        files = sorted(folder.glob("*.gguf"))
        if len(files) != 1:
            raise InputError(
                f"{folder}: expected one GGUF file, found {len(files)}.",
                fix="Put the converted model there, or name it in the command instead of {gguf}.",
            )
        places["gguf"] = str(files[0])
    try:
        words = [word.format(**places) for word in shlex.split(template)]
    except (KeyError, IndexError, ValueError) as exc:
        raise InputError(
            f"--server {server!r}: cannot fill {exc}.",
            fix="Use these placeholders: {python} {model} {gguf} {host} {port} {dtype}.",
        ) from None
    if "{port}" not in template:
        raise InputError(
            f"--server {server!r} is neither one of {', '.join(COMMANDS)} nor a command with {{port}} in it.",
            fix="For example: --server 'vllm serve {model} --port {port}'.",
        )
    if shutil.which(words[0]) is None:
        raise MachineError(
            f"{words[0]} is not installed or not on the path.",
            fix="Install it, or start the server yourself and use --url.",
        )
    return words


@contextmanager
def served(folder: Path, *, dtype: str = "bfloat16", server: str = "transformers") -> Iterator[Server]:
    """A server on loopback for one model folder (`command_of`); it and its child processes are stopped when the block
    ends.

    Raises InputError and MachineError when what it needs is missing or it does not come up. Continuous batching of
    `transformers serve` stays off: it takes most of a CPU's memory by default.
    """
    port = _free_port()
    command = command_of(server, folder, port, dtype)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    said: list[str] = []
    reader = threading.Thread(target=_drain, args=(process, said), daemon=True)
    reader.start()
    found = Server(f"http://127.0.0.1:{port}/v1", str(folder), process, _may_use_gpu())
    try:
        _wait(found, said)
        if server != "transformers":
            found.model = _listed_name(found) or found.model
        yield found
    finally:
        _stop(process)
        reader.join(timeout=5)
        assert process.stderr is not None
        process.stderr.close()


def _may_use_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _listed_name(server: Server) -> str | None:
    """What the server calls its model: the first that it lists."""
    import httpx2

    try:
        return str(httpx2.get(f"{server.url}/models", timeout=10).json()["data"][0]["id"])
    except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError):
        return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it started: a server that forks workers would leave them behind."""
    import psutil

    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in family:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _drain(process: subprocess.Popen[bytes], said: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line.decode("utf-8", "replace").rstrip())
        del said[:-40]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: Server, said: Sequence[str]) -> None:
    import httpx2

    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.process is not None and server.process.poll() is not None:
            words = next((line for line in reversed(said) if line.strip()), "it printed nothing")
            missing = "No module named" in words or "not installed" in words
            fix = (
                "Install what it needs: veritune[serving] for `transformers serve`."
                if missing
                else "Correct the error that it printed."
            )
            raise MachineError(f"the server ended before it answered: {words[:400].rstrip('.')}.", fix=fix)
        try:
            health = f"{server.url.removesuffix('/v1')}/health"
            if any(httpx2.get(url, timeout=5).status_code < 400 for url in (health, f"{server.url}/models")):
                return
            time.sleep(0.2)
        except httpx2.HTTPError:
            time.sleep(0.2)
    message = f"the server at {server.url} did not answer in {START_S:.0f} s."
    raise MachineError(message, fix="Start it yourself and name it with --url.")


# ---------------------------------------------------------------- parity


@dataclass(frozen=True)
class Response:
    """A server's answer: text, why it ended (`stop`, `length`), prompt tokens it counted (None: not reported)."""

    text: str
    finish: str | None
    prompt_tokens: int | None


@dataclass(frozen=True)
class Drift:
    """One golden prompt whose answer differs from the contract's, and how."""

    item: str
    kind: Literal["prompt", "text", "stop", "special", "sampling", "error"]
    message: str


@dataclass(frozen=True)
class ServingParity:
    """Golden prompts asked, how many answers equal the contract's generation, and every difference."""

    status: Literal["passed", "failed", "undecided"]
    message: str
    asked: int
    equal: int
    drifts: tuple[Drift, ...]
    reading: str
    limits: str
    would_change: str


def ask(server: Server, messages: Sequence[Message], max_tokens: int, *, plain: bool = False) -> Response:
    """One greedy chat completion; `plain` leaves the decoding settings to the server. Raises ModelError if there is no
    answer.
    """
    import httpx2

    body = {
        "model": server.model,
        "messages": [m.to_chat() for m in messages],
        "max_tokens": max_tokens,
        "stream": False,
        **chat_template_kwargs(server),
    }
    if not plain:
        body["temperature"] = 0
    try:
        answer = httpx2.post(f"{server.url}/chat/completions", json=body, timeout=300, headers=key_header())
        answer.raise_for_status()
        choice = answer.json()["choices"][0]
        usage = answer.json().get("usage") or {}
        return Response(choice["message"]["content"] or "", choice.get("finish_reason"), usage.get("prompt_tokens"))
    except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError) as exc:
        raise ModelError(f"{server.url} gave no answer: {type(exc).__name__} {str(exc)[:160]}") from None


def chat_template_kwargs(server: Server) -> dict[str, JsonLike]:
    """The template's variables in the form that vLLM, SGLang and transformers take in a request, if there are any."""
    return {"chat_template_kwargs": dict(server.template_kwargs)} if server.template_kwargs else {}


def key_header() -> dict[str, str]:
    """The API key of a foreign server, taken only from the environment and never written to disk."""
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(frozen=True)
class Expected:
    """The contract's generation for one prompt: prompt ids, text, why it ended, and the special tokens as text.

    `at_limit`: its stop token was the last token that was allowed, which some servers call `length`.
    """

    prompt_ids: tuple[int, ...]
    text: str
    ended: Literal["stop_token", "length"]
    specials: tuple[str, ...]
    at_limit: bool = False


def compare(
    server: Server,
    prompts: Sequence[tuple[str, Sequence[Message]]],
    expected: Sequence[Expected],
    max_tokens: int,
    *,
    plain: int = 4,
) -> ServingParity:
    """Ask every golden prompt and compare. `expected` is the result of `expected_answers`.

    The first `plain` prompts whose greedy answer is right are asked again without a temperature.
    """
    drifts: list[Drift] = []
    equal = 0
    for (item, messages), want in zip(prompts, expected):
        try:
            said = ask(server, messages, max_tokens)
        except ModelError as exc:
            drifts.append(Drift(item, "error", str(exc)))
            continue
        found = difference(item, said, want)
        if not found and equal < plain:
            found = _asked_plainly(server, item, messages, want, max_tokens)
        drifts += found
        equal += not found
    return judged(len(prompts), equal, drifts)


def _asked_plainly(
    server: Server, item: str, messages: Sequence[Message], want: Expected, max_tokens: int
) -> list[Drift]:
    """A client that names no temperature gets the server's own: a drift where that is another than greedy."""
    try:
        said = ask(server, messages, max_tokens, plain=True)
    except ModelError as exc:
        return [Drift(item, "error", f"asked without a temperature, {exc}")]
    if said.text.strip() == want.text.strip():
        return []
    message = (
        "greedy when asked for temperature 0, otherwise not: without a temperature the texts part"
        f" {_parting(said.text, want.text)}: it samples (or penalises) by default"
    )
    return [Drift(item, "sampling", message)]


def _parting(said: str, want: str) -> str:
    """Where two texts part, with what stands there and before."""
    at = next((k for k, (a, b) in enumerate(zip(said, want)) if a != b), min(len(said), len(want)))
    found, meant = (repr(text[at : at + 24]) if text[at:] else "the end" for text in (said, want))
    return f"at character {at}: {found} against {meant} after {want[max(0, at - 24) : at]!r}"


def expected_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    max_tokens: int,
    template_kwargs: Mapping[str, JsonLike] | None = None,
) -> list[Expected]:
    """Greedy answers by Veritune's own generation, one prompt at a time, as a server answers them."""
    renderer = Renderer(tokenizer, 1 << 30, template_kwargs=template_kwargs, check=False)
    ids = [renderer.prompt_ids(Row(str(n), tuple(messages))) for n, messages in enumerate(prompts)]
    outputs = generate(model, tokenizer, ids, Decoding(max_tokens, batch_size=1))
    specials = tuple(tokenizer.all_special_tokens)
    return [
        Expected(p, o.text, o.ended, specials, o.ended == "stop_token" and len(o.token_ids) + 1 == max_tokens)
        for p, o in zip(ids, outputs)
    ]


def difference(item: str, said: Response, want: Expected) -> list[Drift]:
    """How a server's answer differs from the contract's, with causes before their consequences."""
    found: list[Drift] = []
    if said.prompt_tokens is not None and said.prompt_tokens != len(want.prompt_ids):
        message = (
            f"the server rendered {said.prompt_tokens} prompt tokens, the contract {len(want.prompt_ids)}: another "
            "chat template, system prompt, template variable or tokenizer"
        )
        found.append(Drift(item, "prompt", message))
    leaked = next((s for s in want.specials if s and s in said.text), None)
    if leaked is not None:
        found.append(Drift(item, "special", f"the special token {leaked!r} stands in the text"))
    here, there = said.text.strip(), want.text.strip()
    stop = {"stop": "stop_token", "length": "length"}.get(said.finish or "", said.finish)
    if stop == "length" and want.at_limit and here == there:
        stop = "stop_token"
    if stop != want.ended or (here != there and _one_goes_on(said.text, want.text)):
        message = f"it ended by {said.finish!r} after {len(here)} characters, the contract's by {want.ended!r} after"
        found.append(Drift(item, "stop", f"{message} {len(there)}: another stop token or token limit"))
    if here != there:
        found.append(Drift(item, "text", f"the texts part {_parting(said.text.lstrip(), want.text.lstrip())}"))
    return found


def _one_goes_on(a: str, b: str) -> bool:
    """Whether one text begins with the other. White space at the end counts: it may be the token where they part."""
    a, b = a.lstrip(), b.lstrip()
    return a.startswith(b) or b.startswith(a)


def judged(asked: int, equal: int, drifts: Sequence[Drift]) -> ServingParity:
    """The result over all prompts; its message names the first drift of the kind that causes the others."""
    status: Literal["passed", "failed", "undecided"] = "failed" if drifts else "passed" if asked else "undecided"
    kinds = [k for k in ("error", "prompt", "special", "stop", "text", "sampling") if any(d.kind == k for d in drifts)]
    first = next((d for d in drifts if d.kind == kinds[0]), None) if kinds else None
    message = f"{equal} of {asked} golden answers are as the contract's" + (
        f"; {first.item}: {first.message}" if first else ""
    )
    return ServingParity(
        status,
        message,
        asked,
        equal,
        tuple(drifts),
        {"passed": "The server says what the contract's generation says.", "failed": f"The server drifts: {message}.",
         "undecided": "No golden prompt was asked."}[status],
        "It speaks of these prompts and one request at a time; batching can change rounding.",
        "More golden prompts, or the same ones under load.",
    )  # fmt: skip

"""Whatever a stranger's file holds, only a VerituneError comes out of what reads it, and it comes out in bounded time.

Two ways of being hostile: any bytes, and a valid file with a few things changed (bytes, or values in its structure).
Derandomised, so that CI sees the same cases every time. `VERITUNE_FUZZ=20000` looks longer and at random.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veritune import contract, untrusted
from veritune.config.load import load_study
from veritune.data.load import load_rows
from veritune.data.quality import load_patterns
from veritune.errors import VerituneError
from veritune.evaluate.logs import Reading, read
from veritune.ledger import link
from veritune.release.bundle.parts import name_problem, tensors
from veritune.release.bundle.verify import read_manifest, verify_bundle
from veritune.release.gate.policy import read_policy
from veritune.release.parity.golden import golden_problem
from veritune.release.registry.channels import _entry
from veritune.seal import verify
from veritune.store import Store, hash_of
from veritune.train.elsewhere import select_from_logs
from veritune.writeup.lint import load_rules

MORE = int(os.environ.get("VERITUNE_FUZZ", "0"))
SCORES = Path(__file__).parents[1] / "evaluate" / "scores"
RAW = {"derandomize": not MORE, "deadline": None, "database": None}
RAW |= {
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
}


def bounded(n: int) -> settings:
    return settings(max_examples=MORE or max(n // 2, 12), **RAW)


# ---------------------------------------------------------------- hostile values

ODD_TEXTS = [
    "",
    " ",
    "\0",
    "\ud800",
    "../../etc/passwd",
    "/etc/passwd",
    "a" * 5000,
    "%s%n",
    "{0}",
    "${x}",
    "1e999",
    "NaN",
]
ODD_TEXTS += [
    "<script>x</script>",
    "\u202e",
    "{messages.__class__}",
    "!!python/object/apply:os.system [id]",
    "=cmd|'/c'!A1",
]
odd = st.sampled_from([None, True, False, 0, -1, 2**63, 10**400, 1e308, -0.0, [], {}, [[]], {"": None}, *ODD_TEXTS])
values = st.recursive(odd | st.integers() | st.text(max_size=8), lambda v: st.lists(v, max_size=3)
                      | st.dictionaries(st.text(max_size=6), v, max_size=3), max_leaves=6)  # fmt: skip
KINDS = st.sampled_from(["flip", "cut", "twice", "drop", "put"])
edits = st.lists(st.tuples(st.floats(0, 1), KINDS, st.binary(max_size=4)), min_size=1, max_size=4)
changes = st.lists(st.tuples(st.integers(0, 10**6), values, st.booleans()), min_size=1, max_size=3)


def mutated(content: bytes, edits_: list[tuple[float, str, bytes]]) -> bytes:
    """The bytes with a few edits."""
    for where, what, extra in edits_:
        at = int(where * len(content))
        if what == "flip" and content[at : at + 1]:
            content = content[:at] + bytes([content[at] ^ (1 + len(extra))]) + content[at + 1 :]
        elif what == "cut":
            content = content[:at]
        elif what == "twice":
            content = content[:at] + content[at : at + 64] + content[at:]
        elif what == "drop":
            content = content[:at] + content[at + 1 + len(extra) :]
        else:
            content = content[:at] + extra + content[at:]
    return content


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def changed(value: Any, changes_: list[tuple[int, Any, bool]]) -> Any:
    """The value with a few of its places replaced or taken out."""
    value = json.loads(json.dumps(value))
    for pick, new, take in changes_:
        known = places(value)
        if not known:
            break
        *way, last = known[pick % len(known)]
        holder = value
        for key in way:
            holder = holder[key]
        if take:
            del holder[last]
        else:
            holder[last] = new
    return value


def text_of(value: Any) -> bytes:
    return json.dumps(value).encode()


def rehashed(value: Any) -> Any:
    """With the record's own hash made right again, so that what lies behind the hash is reached."""
    if isinstance(value, dict):
        with suppress(Exception):
            body = {k: v for k, v in value.items() if k != "hash"}
            return {**body, "hash": hash_of(body)}
    return value


def survives(read_: Callable[[], Any]) -> None:
    with suppress(VerituneError):
        read_()


def hostile(valid: Any) -> st.SearchStrategy[bytes]:
    """Files near a valid JSON one, and any bytes."""
    return (
        st.binary(max_size=200)
        | edits.map(lambda e: mutated(text_of(valid), e))
        | changes.map(lambda c: text_of(changed(valid, c)))
        | changes.map(lambda c: text_of(rehashed(changed(valid, c))))
        | values.map(text_of)
    )


# ---------------------------------------------------------------- the study's own files

STUDY = {
    "name": "s", "question": "q?", "model": {"path": "m"}, "data": {"path": "r.jsonl", "columns": {"user": "q"}},
    "split": {"stranger": 0.3}, "train": {"learning_rate": "3e-4", "warmup_steps": 0.1},
    "conditions": {"a": {"method": "lora", "target_modules": "attention", "r": 4}, "b": {"method": "full"}},
    "factor": ["target_modules", "method", "r"], "seeds": [0, 1],
    "evals": {"e": {"rules": [{"name": "x", "pattern": "a+"}, {"name": "y", "contains": "{t}"}]},
              "m": {"kind": "match", "extract": "(a)", "expected": "c"}},
    "claims": [{"name": "c", "kind": "improves", "condition": "a", "eval": "e"}],
    "release": {"condition": "a"},
}  # fmt: skip


@bounded(60)
@given(
    content=hostile(STUDY) | changes.map(lambda c: yaml.safe_dump(changed(STUDY, c)).encode("utf-8", "surrogatepass"))
)
def test_study_yaml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.yaml").write_bytes(content)
    survives(lambda: load_study(tmp_path / "study.yaml"))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "name: !!python/name:os.system",
        "a: &a [*a]",
        "&a : *a",
        "? {}\n: 1",
        "? [a]\n: 1",
        "name: 2026-99-99",
        "name: 1_0:99:99",
        "name: !!binary 'x'",
        "name: !!timestamp x",
        "<<: 3",
        "<<: {a: {<<: [1]}}",
        "a: " + "[" * 400,
        "a: &x [1,1,1,1,1,1,1,1]\nb: &y [*x,*x,*x,*x,*x,*x]\nc: [*y,*y,*y,*y,*y,*y]",
        "%YAML 9.9\n---\na: 1",
        "name: 0b2",
        "name: 0o9",
        "seeds: [.inf]",
        "train: {learning_rate: .nan}",
        "name: \x07",
    ],
)
def test_yaml_traps(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.yaml").write_text(text, encoding="utf-8")
    for reader in (load_study, read_policy, load_rules, lambda p: load_patterns(p)):
        survives(lambda reader=reader: reader(tmp_path / "f.yaml"))
    assert not (tmp_path / "pwned").exists()


@bounded(60)
@given(content=hostile({"release": {"condition": "a", "gates": ["data"], "serving": {}, "regression": {"suites": {}}}}))
def test_policy_rules_and_pattern_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.yaml").write_bytes(content)
    survives(lambda: read_policy(tmp_path / "f.yaml"))
    survives(lambda: load_rules(tmp_path / "f.yaml"))
    survives(lambda: load_patterns(tmp_path / "f.yaml"))


RULES = {"rules": {"number.mismatch": "off"}, "sections": {"next": ["x"]}, "ignore": ["a"], "acronyms": ["X"],
         "aliases": {"zone": {"seen": ["old"]}}, "forbid": [{"id": "f", "pattern": "x", "message": "m"}]}  # fmt: skip


@bounded(60)
@given(content=hostile(RULES))
def test_lint_rules(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    survives(lambda: load_rules(tmp_path / "r.yaml"))


PATTERNS = {
    "mine": {"says": "s", "where": ["assistant"], "severity": "note", "patterns": ["a+"]},
    "countable": {"nouns": "a"},
}


@bounded(60)
@given(content=hostile(PATTERNS))
def test_pattern_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.yaml").write_bytes(content)
    load_patterns.__globals__["_load_patterns"].cache_clear()
    survives(lambda: load_patterns(tmp_path / "p.yaml"))


ENTRY = {
    "time": "t",
    "previous": None,
    "reason": "frozen",
    "changes": [],
    "results": [],
    "terms": {"study": STUDY, "facts": {}},
}
CONTRACT = {"format": 1, "entries": [rehashed(ENTRY)]}


@bounded(40)
@given(content=hostile(CONTRACT))
def test_contract(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "contract.lock.json").write_bytes(content)
    survives(lambda: contract.read(Store(tmp_path)))


@bounded(60)
@given(content=hostile({"event": "frozen", "previous": None, "time": "t"}))
def test_events(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "events.jsonl").write_bytes(content + b"\n")
    store = Store(tmp_path)
    survives(store.check_events)
    survives(store.events)
    survives(lambda: store.log("ran"))


SEAL = rehashed({"format": 1, "sealed": "t", "files": {"study.yaml": "0" * 64}})


@bounded(60)
@given(content=hostile(SEAL))
def test_seal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "seal.json").write_bytes(content)
    survives(lambda: verify(tmp_path))


# ---------------------------------------------------------------- data and scores

ROW = {
    "id": "a",
    "original": "f",
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}],
}


@bounded(60)
@given(contents=st.lists(hostile(ROW), min_size=1, max_size=3))
def test_rows(tmp_path: Path, contents: list[bytes]) -> None:
    content = b"\n".join(contents)
    for name in ("f.jsonl", "f.json", "f.csv", "f.parquet"):
        (tmp_path / name).write_bytes(content)
        survives(lambda name=name: load_rows(tmp_path / name, id_field="id", family_field="original"))


@pytest.fixture(scope="module")
def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    rows = {"id": ["a", "b"], "prompt": ["q", "q"], "completion": ["r", "r"], "extra": [[1], None]}
    pq.write_table(pa.table(rows), stream)
    return stream.getvalue()


@bounded(40)
@given(edits_=edits)
def test_parquet_and_gzip(tmp_path: Path, parquet: bytes, edits_: list[tuple[float, str, bytes]]) -> None:
    (tmp_path / "f.parquet").write_bytes(mutated(parquet, edits_))
    (tmp_path / "f.jsonl.gz").write_bytes(mutated(gzip.compress(text_of(ROW), mtime=0), edits_))
    survives(lambda: load_rows(tmp_path / "f.parquet"))
    survives(lambda: load_rows(tmp_path / "f.jsonl.gz"))


SCORE_FILES = sorted(p for p in SCORES.iterdir() if p.is_file() and p.stat().st_size < 60_000)
SCORE_FILES.append(SCORES / "helm_run" / "per_instance_stats.json")
SCORE_FILES.append(next((SCORES / "lm_eval_group" / "base").glob("samples_toy_ppl_*.jsonl")))
READINGS = {
    "per_instance_stats.json": Reading(filter="test", metric="exact_match", family="instance.input.text"),
    "promptfoo.json": Reading(system="openai:large", metric="score", family="topic"),
    "toy_eval_results.json": Reading(metric="plus", reducer="pass_at_2"),
    "openai_evals.jsonl": Reading(metric="match", family="topic"),
    "lighteval_new.parquet": Reading(metric="acc", family="topic"),
    "lighteval_old.parquet": Reading(metric="em"),
    "lm_eval_0_4_0_sums.json": Reading(filter="2"),
    "inspect_at_least.json": Reading(metric="both/hit"),
    "inspect_three_reducers.eval": Reading(metric="odd", reducer="majority"),
}
"""Choices without which a file's reader stops at its first question."""


@bounded(15)
@given(edits_=edits)
@pytest.mark.parametrize("path", SCORE_FILES, ids=lambda p: p.name)
def test_score_files_with_edits(tmp_path: Path, path: Path, edits_: list[tuple[float, str, bytes]]) -> None:
    (tmp_path / path.name).write_bytes(mutated(path.read_bytes(), edits_))
    survives(lambda: read(tmp_path / path.name))
    survives(lambda: read(tmp_path / path.name, READINGS.get(path.name, Reading(metric="word_perplexity"))))


@bounded(40)
@given(changes_=changes)
@pytest.mark.parametrize("name", [n for n in READINGS if n.endswith((".json", ".jsonl"))])
def test_harness_logs_with_changed_values(tmp_path: Path, name: str, changes_: list[tuple[int, Any, bool]]) -> None:
    text = next(p for p in SCORE_FILES if p.name == name).read_text("utf-8")
    if name.endswith(".jsonl"):
        rows = changed([json.loads(line) for line in text.splitlines()], changes_)
        content = b"\n".join(map(text_of, rows))
    else:
        content = text_of(changed(json.loads(text), changes_))
    (tmp_path / name).write_bytes(content)
    survives(lambda: read(tmp_path / name))
    survives(lambda: read(tmp_path / name, READINGS[name]))


TRAINER_STATE = {
    "log_history": [{"step": 5, "loss": 1.0, "learning_rate": 1e-4}, {"step": 10, "eval_loss": 1.0}, {"step": 20}]
}


@bounded(60)
@given(content=hostile(TRAINER_STATE) | hostile(TRAINER_STATE["log_history"][1]))
def test_training_logs(tmp_path: Path, content: bytes) -> None:
    for name in ("trainer_state.json", "a.jsonl", "a.csv"):
        (tmp_path / name).write_bytes(content)
        survives(lambda name=name: select_from_logs([str(tmp_path / name), f"1e-3={tmp_path / name}"]))


SCORE_LINES = [
    {"run_id": "r", "eval": "e", "item_id": "i", "value": 1.0, "reason": None, "family": "f", "zone": "seen",
     "output": "o", "parts": {"rules": {"x": True}}},
    {"doc_id": 0, "doc": {"q": "x"}, "target": "t", "resps": [["a"]], "filtered_resps": ["a"], "acc": 1.0,
     "doc_hash": "h"},
    {"id": "a", "score": 0.5, "rater": "x", "sample": 1},
]  # fmt: skip


@bounded(50)
@given(contents=st.sampled_from(SCORE_LINES).flatmap(lambda line: st.lists(hostile(line), min_size=1, max_size=3)))
def test_score_lines(tmp_path: Path, contents: list[bytes]) -> None:
    for name in ("samples_x_2026.jsonl", "s.csv", "s.json"):
        (tmp_path / name).write_bytes(b"\n".join(contents))
        survives(lambda name=name: read(tmp_path / name))
        survives(lambda name=name: read(tmp_path / name, Reading(eval="e", metric="acc", id="id")))


INSPECT = json.loads((SCORES / "inspect_sums.json").read_text("utf-8"))
INSPECT["samples"] = INSPECT["samples"][:2]


@bounded(60)
@given(changes_=changes)
def test_inspect_logs_with_changed_values(tmp_path: Path, changes_: list[tuple[int, Any, bool]]) -> None:
    (tmp_path / "log.json").write_bytes(text_of(changed(INSPECT, changes_)))
    survives(lambda: read(tmp_path / "log.json"))


@bounded(40)
@given(header=values, sample=values, method=st.sampled_from([0, 8]))
def test_inspect_archives(tmp_path: Path, header: Any, sample: Any, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "log.eval", "w", method) as archive:
        archive.writestr("header.json", json.dumps(header))
        archive.writestr("samples/../../escaped.json", json.dumps(sample))
    survives(lambda: read(tmp_path / "log.eval"))
    assert not (tmp_path.parent / "escaped.json").exists()


# ---------------------------------------------------------------- bundles

MANIFEST = rehashed(
    {
        "format": 1, "kind": "veritune bundle", "name": "n", "run_id": "r", "contract": "c",
        "weights": {"kind": "adapter", "serves": "adapter"}, "base": {"name": "b", "files": {}, "dtype": "float32"},
        "subject": {"base": "b", "candidate": "c", "merged": None},
        "files": {"README.md": {"sha256": "0" * 64, "bytes": 1}},
    }
)  # fmt: skip


@bounded(60)
@given(content=hostile(MANIFEST))
def test_manifest(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(content)
    survives(lambda: read_manifest(folder))
    survives(lambda: verify_bundle(folder))


INSIDE = (
    "manifest.json",
    "base.json",
    "golden.json",
    "datasheet.json",
    "evidence/contract.lock.json",
    "evidence/seal.json",
)
INSIDE += ("adapter/adapter_config.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json")


@bounded(60)
@given(name=st.sampled_from(INSIDE), changes_=changes)
def test_a_forged_bundle(tmp_path: Path, whole: Path, name: str, changes_: list[tuple[int, Any, bool]]) -> None:
    """A forger who repairs every hash of the manifest still gets findings or an error, never a traceback."""
    from veritune.store import sha256_file

    path = whole / name
    before = {p: p.read_bytes() for p in (path, whole / "manifest.json")}
    try:
        forged = changed(json.loads(before[path]), changes_)
        path.write_bytes(text_of(rehashed(forged) if name == "evidence/seal.json" else forged))
        if name != "manifest.json":
            body = {k: v for k, v in json.loads(before[whole / "manifest.json"]).items() if k != "hash"}
            body["files"][name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            (whole / "manifest.json").write_bytes(text_of({**body, "hash": hash_of(body)}))
        else:
            path.write_bytes(text_of(rehashed(forged)))
        survives(lambda: verify_bundle(whole))
    finally:
        for p, content in before.items():
            p.write_bytes(content)


@pytest.fixture(scope="module")
def whole(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle of the tiny study."""
    from veritune.release.bundle.build import BundleSource, make_bundle

    folder = tmp_path_factory.mktemp("fuzz") / "bundle"
    (run,) = (finished.root / "runs").glob("all_layer-s0-*")
    make_bundle(BundleSource(finished.root, run.name, prompts=1), folder)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    return copy


HEADER = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


@bounded(60)
@given(header=hostile(HEADER), length=st.none() | st.integers(0, 2**64 - 1))
def test_safetensors_headers(tmp_path: Path, header: bytes, length: int | None) -> None:
    size = len(header) if length is None else length
    (tmp_path / "x.safetensors").write_bytes(size.to_bytes(8, "little") + header + b"\0" * 4)
    survives(lambda: tensors(tmp_path / "x.safetensors"))


@bounded(60)
@given(name=values | st.text(max_size=40))
def test_names_are_judged_or_stay_inside(tmp_path: Path, name: Any) -> None:
    if name_problem(name) is None:
        assert (tmp_path / name).resolve().is_relative_to(tmp_path.resolve())


CHANNEL = rehashed({"number": 1, "action": "promoted", "bundle": "0" * 64, "name": "n", "run_id": "r", "gate": None,
                    "reason": "", "restores": None, "previous": None, "time": "t"})  # fmt: skip


@bounded(60)
@given(content=hostile(CHANNEL))
def test_channel_entries(content: bytes) -> None:
    survives(lambda: _entry(content, "channels/staging/00000001.json", None))


ANSWER = {
    "id": "i",
    "messages": [{"role": "user", "content": "q"}],
    "prompt_ids": [1],
    "token_ids": [2],
    "ended": "length",
}
GOLDEN = {"decoding": {"max_new_tokens": 4}, "items": [ANSWER]}


@bounded(60)
@given(content=hostile(GOLDEN))
def test_golden_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "golden.json").write_bytes(content)
    survives(lambda: golden_problem(tmp_path / "golden.json"))


# ---------------------------------------------------------------- every reader is on a list

DECISION = {"row_id": "a", "row_sha256": "0", "decision": "edit", "why": "w", "reviewer": "r",
            "edited": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}  # fmt: skip
VERSION = link({"event": "version", "sha256": "a" * 64, "file": "f", "rows": 1, "parents": [], "rejects": {}, "how": "",
                "created": "t"}, None)  # fmt: skip
WAIVER = link({"gate": "data", "by": "b", "reason": "r", "until": "2026-01-01", "covers": "c", "seen": "s",
               "created": "t", "kind": "waiver"}, None)  # fmt: skip
RULE = rehashed({"number": 1, "channel": "staging", "keys": ["pem"], "reason": "", "previous": None, "time": "t"})
EVIDENCE = {"kind": "merge", "status": "passed", "message": "m", "numbers": {}, "thresholds": {}, "inputs": {},
            "settings": {}, "outputs": {}, "created": "t", "subject": {"base": "b", "candidate": "c", "merged": None},
            "input_hash": "x"}  # fmt: skip

RAW = re.compile(
    r"json\.loads?\(|yaml\.(?:safe_)?load\(|csv\.(?:reader|DictReader)\(|safe_open\(|zipfile\.ZipFile\(|ET\.fromstring"
    r"|GGUFReader\(|pq\.(?:read_table|ParquetFile)\(|ipc\.open_|pyarrow\.json\.read_json|validate_json\(|load_pem_"
)
FUZZED = {
    "data/sources/": ("rows", "csv", "parquet", "arrow", "datasets folder"),
    "data/turns.py": ("rows", "csv"),
    "data/tables.py": ("confidences",),
    "data/tools.py": ("rows",),
    "evaluate/": ("scores", "inspect", "confidences"),
    "ledger.py": ("events", "lineage", "retirements", "gates"),
    "untrusted.py": (
        "study",
        "policy",
        "rules",
        "patterns",
        "safety set",
        "contract",
        "decisions",
        "questions",
        "recipe",
        "profile",
        "notebook",
    ),
    "records/base.py": ("run manifest", "run summary", "training record"),
    "writeup/facts.py": ("facts of a write-up",),
    "writeup/tables.py": ("table of a write-up",),
    "train/elsewhere.py": ("training log",),
    "view/foreign.py": ("view",),
}
"""Modules that call a parser themselves, and the readers of guided.py that reach it. All others pass untrusted.py."""
NOT_FUZZED = {
    "data/stored.py": "columns of a data version whose hash the contract holds",
    "data/template.py": "what a loaded tokenizer says of itself, and calls that were parsed and written again",
    "data/written.py": "calls that were parsed and written again",
    "pipeline/cell_index.py": "this process's own cache; what cannot be read is made again",
    "release/registry/rules.py": "keys that the user names; `cryptography`, in Rust",
    "records/common.py": "a text that this process wrote a moment before",
    "train/tensors.py": "safetensors' own reader, in Rust; headers are fuzzed as `safetensors`",
    "view/index.py": "names that this process wrote into its own cache",
    "data/quality.py": "the package's own patterns; a user's file passes untrusted.py",
    "probe/subject.py": "safetensors' own reader, in Rust; headers are fuzzed as `safetensors`",
    "release/bundle/sign.py": "keys that the user names; `cryptography`, in Rust",
    "release/gate/controls.py": "the package's own table",
    "release/gate/safety.py": "the package's own refusals; a user's prompt set is fuzzed",
    "release/parity/export.py": "safetensors' own reader, in Rust; the index is fuzzed",
    "release/parity/gguf_file.py": "`gguf`'s own reader, whose every error is caught",
    "release/parity/load.py": "a server's event stream while it is measured",
    "report/_svg.py": "a drawing that matplotlib made in this process",
    "train/backends/tinker.py": "an adapter that a training server returned; safetensors' own reader",
    "writeup/items.py": "an archive that it writes; none is read",
    "writeup/lint/rules.py": "the package's own rules; a team's file is fuzzed",
}
"""Modules with a parser that no fuzzing reaches, and whose files those are."""


def test_every_parser_is_fuzzed_or_named_with_its_reason() -> None:
    root = Path(untrusted.__file__).parent
    found = {p.relative_to(root).as_posix() for p in root.rglob("*.py") if RAW.search(p.read_text("utf-8"))}
    unlisted = {path for path in found - set(NOT_FUZZED) if not path.startswith(tuple(FUZZED))}
    assert not unlisted, "a parser of its own: have it pass untrusted.py, fuzz it, or say why not"
    assert set(NOT_FUZZED) <= found, "a reason for a parser that is gone"


def test_every_reader_named_is_one_of_the_fuzzer_s_and_takes_its_valid_files(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import guided

    readers = guided.readers()
    assert {name for names in FUZZED.values() for name in names} <= set(readers)
    for name, (reader, seeds) in readers.items():
        for seed in [*seeds, b"", b"\x00\xff", b"[" * 3000, b'{"a": "\\ud800"}', b"[NaN]"]:
            survives(lambda reader=reader, seed=seed: reader(tmp_path, seed))
        assert seeds, name

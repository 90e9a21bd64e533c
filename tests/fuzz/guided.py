"""Coverage-guided fuzzing of everything that reads a stranger's file; only a VerituneError may come out.

    make fuzz SECONDS=300                     (or: python tests/fuzz/guided.py --seconds 300)
    python tests/fuzz/guided.py --each 60     (the same changes on every machine: what CI runs)
    python tests/fuzz/guided.py FILE          (a case that was found, once more, with its traceback)

Beside `test_strangers_files.py`, whose files and readers it shares: hypothesis makes files near a valid one, atheris
(libFuzzer) keeps what reaches new lines and changes that further. Half of its changes put a hostile value into a place
of the JSON that an input holds: bytes changed at random seldom stay JSON. The first byte of an input picks the reader.
Needs `pip install atheris` (Linux, CPython 3.11 to 3.14). Ends with status 0 when the time is up, else names the
case that it found.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Reader = Callable[[Path, bytes], Any]


def readers() -> dict[str, tuple[Reader, list[bytes]]]:
    """By name: what reads a file's bytes, and valid files to start from. Order is part of a saved case's meaning."""
    import test_strangers_files as known

    from veritune import contract
    from veritune.config.load import load_study
    from veritune.data.load import load_rows
    from veritune.data.quality import load_patterns
    from veritune.data.recipe import load_recipe
    from veritune.data.review import lineage, read_decisions
    from veritune.evaluate.confidence import read_judged
    from veritune.evaluate.logs import read
    from veritune.ledger import Ledger
    from veritune.probe.geometry import read_questions
    from veritune.records import RunManifest, RunSummary, TrainingRecord
    from veritune.release.bundle.parts import tensors
    from veritune.release.bundle.verify import read_manifest, verify_bundle
    from veritune.release.gate.evidence import read_evidence
    from veritune.release.gate.gates import all_waivers
    from veritune.release.gate.policy import read_policy
    from veritune.release.gate.safety import load_set
    from veritune.release.parity.export import _index
    from veritune.release.parity.golden import golden_problem
    from veritune.release.registry.channels import _entry
    from veritune.release.registry.rules import newest_head, rules
    from veritune.release.registry.shelf import LocalShelf
    from veritune.seal import verify
    from veritune.store import Store, sha256_file
    from veritune.train.adapters.reading import read_adapter
    from veritune.train.elsewhere import select_from_logs
    from veritune.train.mlflow_files import metric_rows
    from veritune.train.telemetry import read_telemetry
    from veritune.view.foreign import index_any
    from veritune.writeup.facts import read_facts
    from veritune.writeup.lint import load_rules
    from veritune.writeup.lint.profile import load_profile
    from veritune.writeup.pages import prose_of
    from veritune.writeup.tables import _of_file

    def evidence(path: Path) -> Any:
        """As a forger who also writes the event: what lies behind the timeline is reached."""
        root = path.parent.parent
        (root / "events.jsonl").unlink(missing_ok=True)
        store = Store(root)
        store.log("evidence", kind="merge", files={"release/merge.json": sha256_file(path)})
        return read_evidence(store, "merge")

    def file(name: str, reader: Callable[[Path], Any], *, rehash: bool = False) -> Reader:
        def run(folder: Path, content: bytes) -> None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_rehashed(content) if rehash else content)
            try:
                reader(path)
            finally:
                path.unlink()

        return run

    def patterns(path: Path) -> Any:
        load_patterns.__globals__["_load_patterns"].cache_clear()
        return load_patterns(path)

    def in_order(*each: Callable[[Path], Any]) -> Callable[[Path], None]:
        def run(path: Path) -> None:
            for one in each:
                known.survives(lambda one=one: one(path))

        return run

    def bundle(path: Path) -> None:
        known.survives(lambda: read_manifest(path.parent))
        known.survives(lambda: verify_bundle(path.parent))

    def safetensors(folder: Path, content: bytes) -> None:
        path = folder / "x.safetensors"
        path.write_bytes(len(content).to_bytes(8, "little") + content + b"\0" * 4)
        known.survives(lambda: tensors(path))

    def mlflow(path: Path) -> None:
        (path.parents[1] / "meta.yaml").touch()
        known.survives(lambda: metric_rows(path))

    text = known.text_of
    scores = [p.read_bytes() for p in known.SCORE_FILES if p.stat().st_size < 8000]
    prompts = b"name: s\nversion: 1\nlicence: CC0-1.0\nprompts:\n- {id: a, kind: harmful, category: f, prompt: x}\n"
    rows = lambda path: load_rows(path, id_field="id", family_field="original")  # noqa: E731
    contract_ = lambda path: contract.read(Store(path.parent))  # noqa: E731
    events = lambda path: in_order(  # noqa: E731
        lambda p: Store(p.parent).check_events(), lambda p: Store(p.parent).events()
    )(path)
    return {
        "study": (file("study.yaml", load_study), [text(known.STUDY)]),
        "policy": (file("p.yaml", read_policy), [b'{"release": {"condition": "a", "gates": ["data"], "serving": {}}}']),
        "rules": (file("r.yaml", load_rules), [text(known.RULES)]),
        "patterns": (file("q.yaml", patterns), [text(known.PATTERNS)]),
        "safety set": (file("s.yaml", load_set), [prompts]),
        "contract": (file("contract.lock.json", contract_), [text(known.CONTRACT)]),
        "contract, hash repaired": (file("contract.lock.json", contract_, rehash=True), [text(known.CONTRACT)]),
        "events": (file("events.jsonl", events), [b'{"event": "frozen", "previous": null, "time": "t"}\n']),
        "seal": (file("seal.json", lambda p: verify(p.parent), rehash=True), [text(known.SEAL)]),
        "rows": (file("f.jsonl", rows), [text(known.ROW), *map(text, training_rows())]),
        "csv": (file("f.csv", rows), [b"id,prompt,completion\na,q,r\n"]),
        "parquet": (file("f.parquet", rows), [_parquet()]),
        "scores": (file("samples_x_2026.jsonl", read), [*scores, *map(text, known.SCORE_LINES)]),
        "inspect": (file("log.json", read), [text(known.INSPECT)]),
        "manifest": (file("manifest.json", bundle, rehash=True), [text(known.MANIFEST)]),
        "safetensors": (safetensors, [text(known.HEADER)]),
        "channel": (file("c.json", lambda p: _entry(p.read_bytes(), "channels/s/1.json", None), rehash=True),
                    [text(known.CHANNEL)]),
        "golden": (file("golden.json", golden_problem), [text(known.GOLDEN)]),
        "arrow": (file("f.arrow", rows), [_arrow()]),
        "datasets folder": (file("state.json", lambda p: load_rows(p.parent)),
                            [b'{"_data_files": [{"filename": "a.arrow"}]}']),
        "decisions": (file("p.jsonl", read_decisions), [text(known.DECISION)]),
        "lineage": (file("_lineage.jsonl", lambda p: lineage(p.parent)), [text(known.VERSION)]),
        "retirements": (file("retired.jsonl", lambda p: Ledger(p).salvage()), [text(known.VERSION)]),
        "gates": (file("release/gates.jsonl", lambda p: all_waivers(Store(p.parent.parent))), [text(known.WAIVER)]),
        "evidence": (file("release/merge.json", lambda p: evidence(p)), [text(known.EVIDENCE)]),
        "rule": (file("rules/staging/00000001.json", lambda p: rules(LocalShelf(p.parents[2]), "staging"), rehash=True),
                 [text(known.RULE)]),
        "head": (file("heads/staging/00000001.json", lambda p: newest_head(LocalShelf(p.parents[2]), "staging")),
                 [b'{"number": 1, "hash": "a"}']),
        "run manifest": (file("m.json", RunManifest.load), [b'{"run_id": "r", "seed": 0, "lr": null}']),
        "run summary": (file("s.json", RunSummary.load), [b'{"run_id": "r", "scores": {}, "nll": {}}']),
        "training record": (file("t.json", TrainingRecord.load), [b'{"steps": 1, "candidates": []}']),
        "confidences": (file("c.jsonl", lambda p: read_judged(p, confidence="confidence", correct="correct")),
                        [b'{"id": "a", "confidence": 0.5, "correct": 1}\n', text(known.SCORE_LINES[1])]),
        "questions": (file("q.yaml", read_questions), [b"- what?\n- why?\n"]),
        "facts of a write-up": (file("f.json", lambda p: read_facts([p])), [b'{"accuracy": {"all": 0.5}, "n": 12}']),
        "safetensors index": (file("model.safetensors.index.json", lambda p: _index(p.parent, {"a": {"w": 4}})),
                              [b'{"metadata": {"total_size": 4}, "weight_map": {"w": "a"}}']),
        "telemetry": (file("t.jsonl", read_telemetry), [b'{"step": 1, "status": "ok"}\n']),
        "recipe": (file("recipe.yaml", load_recipe), [b"sources:\n- {name: a, path: a.jsonl, share: 0.5}\n"]),
        "profile": (file("p.yaml", load_profile), [b"extends: clean-result\nforbidden: []\n"]),
        "table of a write-up": (file("t.csv", lambda p: _of_file("t", p)), [b"arm,score\na,0.5\n"]),
        "training log": (file("log.csv", lambda p: select_from_logs([str(p)])),
                         [b"step,lr,eval_loss\n1,0.1,2.0\n", b'{"log_history": [{"step": 1, "eval_loss": 2.0}]}']),
        "notebook": (file("n.ipynb", prose_of), [b'{"cells": [{"cell_type": "markdown", "source": ["# a"]}]}']),
        "view": (file("v.jsonl", lambda p: index_any(p, own=False)), [text(known.SCORE_LINES[0])]),
        "adapter config": (file("adapter_config.json", lambda p: read_adapter(p.parent)),
                           [b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8}']),
        **of_strangers(file, scores),
        "mlflow metric": (file("metrics/loss", mlflow), [b"1796128790673 1.4 10\n1796128790674 nan 20\n"]),
    }  # fmt: skip


def training_rows() -> list[Any]:
    """Rows with every field that the reader honours, and pairs that it refuses."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [call], "weight": 0},
        {"role": "tool", "tool_call_id": "a", "name": "f", "content": {"y": 1}},
        {"from": "gpt", "value": "a", "train": True},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    return [
        {"id": "a", "original": "a", "messages": turns, "tools": tools, "system": "s", "label": True},
        {"prompt": [{"role": "user", "content": "q"}], "completion": "a", "history": [["q", "a"]], "thinking": "t"},
        {"input": {"messages": []}, "chosen": [{"role": "user", "content": "q"}], "rejected": "r", "kto_tag": 0},
    ]


def of_strangers(file: Callable[..., Reader], scores: list[bytes]) -> dict[str, tuple[Reader, list[bytes]]]:
    """Readers of what others' tools leave behind: logs with every choice, adapters, columns, a model's folder."""
    import test_strangers_files as known
    import torch
    from safetensors.torch import save_file

    from veritune.data.columns import mapped, parse_columns
    from veritune.data.template import stops_of, twin_templates
    from veritune.evaluate.logs import Reading, read
    from veritune.train.adapters.foreign import write_peft_form
    from veritune.train.adapters.reading import read_adapter

    def with_choices(path: Path) -> None:
        for choice in (*known.READINGS.values(), Reading(metric="acc", family="topic", reducer="max")):
            known.survives(lambda choice=choice: read(path, choice))

    class Tokenizer:
        chat_template, eos_token_id = "{{ messages }}", 0

        def __init__(self, path: Path) -> None:
            self.name_or_path = str(path.parent)

    def adapter(path: Path) -> None:
        """The config beside whole factors, in PEFT's names and in MLX's."""
        named = {"adapter_model": "base_model.model.q_proj.lora_{}.weight", "adapters": "model.q_proj.lora_{}"}
        for name, key in named.items():
            keys = [key.format(factor if name == "adapter_model" else factor.lower()) for factor in "AB"]
            save_file({key: torch.ones(4, 4) for key in keys}, path.parent / f"{name}.safetensors")
        (path.parent / "peft").mkdir(exist_ok=True)
        known.survives(lambda: read_adapter(path.parent))
        known.survives(lambda: write_peft_form(path.parent, path.parent / "peft"))

    peft = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "rank_pattern": {"q": 8}}
    mlx = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0}}
    named = b'{"chat_template": [{"name": "default", "template": "{{ messages }}"}]}'
    mapping = b'user: "{a}\\n{b}", assistant: c'
    return {
        "scores, with choices": (file("samples_x_2026.jsonl", with_choices), scores),
        "adapter": (file("adapter_config.json", adapter), [known.text_of(peft), known.text_of(mlx)]),
        "columns": (
            file("c.txt", lambda p: mapped(parse_columns(p.read_text("utf-8", "replace")))),
            [mapping, b"messages=chosen,ignore=a|b"],
        ),
        "stop tokens": (file("generation_config.json", lambda p: stops_of(Tokenizer(p))), [b'{"eos_token_id": [0]}']),
        "twin templates": (file("tokenizer_config.json", lambda p: twin_templates(Tokenizer(p))), [named]),
    }


def _rehashed(content: bytes) -> bytes:
    """With the record's own hash made right again, where it is JSON: what lies behind the hash is reached."""
    import test_strangers_files as known

    try:
        value = json.loads(content)
        if isinstance(value, dict) and isinstance(value.get("entries"), list):
            value["entries"] = [known.rehashed(entry) for entry in value["entries"]]
            return known.text_of(value)
        return known.text_of(known.rehashed(value))
    except (ValueError, RecursionError):
        return content


def _arrow() -> bytes:
    import io

    import pyarrow as pa

    stream, table = io.BytesIO(), pa.table({"id": ["a"], "prompt": ["q"], "completion": ["r"]})
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def _parquet() -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"], "prompt": ["q"], "completion": ["r"]}), stream)
    return stream.getvalue()


def words(seeds: list[bytes]) -> list[str]:
    """Keys and short texts of the valid files: what a mutation is unlikely to guess."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                found.add(str(key))
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, str) and len(value) < 24:
            found.add(value)

    for seed in seeds:
        try:
            walk(json.loads(seed))
        except ValueError:
            continue
    return sorted(w for w in found if w and w.isascii() and w.isprintable() and '"' not in w and "\\" not in w)


def odd_values() -> list[Any]:
    """What a place of a stranger's JSON may hold instead of what we expect."""
    import test_strangers_files as known

    huge = [2**63, 10**400, 1e308, float("inf"), float("nan")]
    return [None, True, 0, -1, *huge, [], {}, [[]], {"": None}, *known.ODD_TEXTS]


def changed(content: bytes, seeds: list[bytes], seed: int) -> bytes | None:
    """One or two places of the JSON (of its first line, for JSONL) replaced or taken out; None where it is none.

    One in five starts from a valid file again, so that every reader keeps its share.
    """
    import test_strangers_files as known

    draw = random.Random(seed)
    if draw.random() < 0.2:
        content = draw.choice(seeds)
    body = content[1:]
    first, newline, rest = body.partition(b"\n")
    for part, tail in ((body, b""), (first, newline + rest)):
        try:
            value = json.loads(part)
            new = [(draw.randrange(10**6), draw.choice(odd_values()), draw.random() < 0.2) for _ in range(2)]
            return content[:1] + known.text_of(known.changed(value, new[: draw.randint(1, 2)])) + tail
        except (ValueError, RecursionError):
            continue
    return None


def one_place_changed(content: bytes) -> list[bytes]:
    """A valid file with each place of its JSON replaced by each hostile value, or taken out; cut off, where none is."""
    import test_strangers_files as known

    first, newline, rest = content[1:].partition(b"\n")
    for part, tail in ((content[1:], b""), (first, newline + rest)):
        try:
            value = json.loads(part)
        except ValueError:
            continue
        new = [*((value, False) for value in odd_values()), (None, True)]
        each = itertools.product(range(len(known.places(value))), new)
        return [content[:1] + known.text_of(known.changed(value, [(pick, *to)])) + tail for pick, to in each]
    return [content[:end] for end in range(1, len(content))]


def every_place(valid: list[bytes], most: int, once: Callable[[bytes], None], out: Path) -> None:
    """At most so many changes of each valid file, evenly spread; one that ends in another error is kept and raised."""
    count = 0
    for start in valid:
        changes = one_place_changed(start)
        for content in changes[:: -(-len(changes) // most)]:
            count += 1
            try:
                once(content)
            except BaseException:
                out.mkdir(parents=True, exist_ok=True)
                (out / f"case-{count}").write_bytes(content)
                print(f"found; again with: {sys.argv[0]} {out / f'case-{count}'}")
                raise
    print(f"{count} inputs from {len(valid)} valid files: only a VerituneError, or none, came out")


def main() -> None:
    """Fuzz for a while, or run one case that was found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("case", nargs="?", type=Path, help="a case that was found")
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--each", type=int, help="no luck: at most so many changes of each valid file, evenly spread")
    options.add_argument("--out", type=Path, default=Path(".fuzz"), help="corpus and found cases; kept between runs")
    asked = options.parse_args()
    sys.path.insert(0, str(HERE))
    if asked.case is None and asked.each is None:
        try:
            import atheris
        except ImportError:
            sys.exit("atheris is not installed: pip install atheris (Linux, CPython 3.11 to 3.14)")
        with atheris.instrument_imports(include=["veritune", "yaml"], enable_loader_override=False):
            known = readers()
    else:
        known = readers()
    from veritune.errors import VerituneError

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    names, runs = list(known), dict.fromkeys(known, 0)

    def once(content: bytes) -> None:
        if not content:
            return
        name = names[content[0] % len(names)]
        runs[name] += 1
        if (
            asked.each is None and sum(runs.values()) % 500 == 0
        ):  # libFuzzer ends the process itself: nothing runs afterwards
            (asked.out / "inputs.json").write_text(json.dumps(runs, indent=1))
        try:
            known[name][0](folder, content[1:])
        except VerituneError:
            return

    if asked.case is not None:
        content = asked.case.read_bytes()
        print(f"reader: {names[content[0] % len(names)]}")
        once(content)
        print("only a VerituneError, or none, came out")
        return
    valid = [bytes([k]) + seed for k, (_, seeds) in enumerate(known.values()) for seed in seeds]
    if asked.each is not None:
        every_place(valid, asked.each, once, asked.out)
        return
    corpus = asked.out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for k, (_, seeds) in enumerate(known.values()):
        for i, seed in enumerate(seeds):
            (corpus / f"seed-{k}-{i}").write_bytes(bytes([k]) + seed)
    (asked.out / "words.txt").write_text(
        "".join(f'"{w}"\n' for w in words([s for _, ss in known.values() for s in ss]))
    )
    flags = [f"-max_total_time={asked.seconds}", "-max_len=8192", "-timeout=120", "-rss_limit_mb=4096"]
    flags += [f"-artifact_prefix={asked.out}/", f"-dict={asked.out / 'words.txt'}", "-print_final_stats=1"]

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        new = changed(content, valid, seed) if seed % 2 else None
        return new if new is not None and len(new) <= most else atheris.Mutate(content, most)

    atheris.Setup([sys.argv[0], *flags, str(corpus)], once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

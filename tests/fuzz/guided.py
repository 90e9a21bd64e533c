"""Coverage-guided fuzzing of everything that reads a stranger's file; only a VerituneError may come out.

    make fuzz SECONDS=300                     (or: python tests/fuzz/guided.py --seconds 300)
    python tests/fuzz/guided.py FILE          (a case that was found, once more, with its traceback)

Beside `test_strangers_files.py`, whose files and readers it shares: hypothesis makes files near a valid one, atheris
(libFuzzer) keeps what reaches new lines and changes that further. Half of its changes put a hostile value into a place
of the JSON that an input holds: bytes changed at random seldom stay JSON. The first byte of an input picks the reader.
Needs `pip install atheris` (Linux, CPython 3.11 to 3.14). Ends with status 0 when the time is up, else names the
case that it found.
"""

from __future__ import annotations

import argparse
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
    from veritune.decide.lint import load_rules
    from veritune.evaluate.imports import read
    from veritune.release.golden import golden_problem
    from veritune.release.parts import tensors
    from veritune.release.policy import read_policy
    from veritune.release.registry import _entry
    from veritune.release.safety import load_set
    from veritune.release.verify import read_manifest, verify_bundle
    from veritune.seal import verify
    from veritune.store import Store

    def file(name: str, reader: Callable[[Path], Any], *, rehash: bool = False) -> Reader:
        def run(folder: Path, content: bytes) -> None:
            path = folder / name
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
        "rows": (file("f.jsonl", rows), [text(known.ROW)]),
        "csv": (file("f.csv", rows), [b"id,prompt,completion\na,q,r\n"]),
        "parquet": (file("f.parquet", rows), [_parquet()]),
        "scores": (file("samples_x_2026.jsonl", read), [*scores, *map(text, known.SCORE_LINES)]),
        "inspect": (file("log.json", read), [text(known.INSPECT)]),
        "manifest": (file("manifest.json", bundle, rehash=True), [text(known.MANIFEST)]),
        "safetensors": (safetensors, [text(known.HEADER)]),
        "channel": (file("c.json", lambda p: _entry(p.read_bytes(), "channels/s/1.json", None), rehash=True),
                    [text(known.CHANNEL)]),
        "golden": (file("golden.json", golden_problem), [text(known.GOLDEN)]),
    }  # fmt: skip


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
            odd = [None, True, 0, -1, 2**63, 10**400, 1e308, float("inf"), float("nan"), [], {}, [[]], {"": None}]
            new = [
                (draw.randrange(10**6), draw.choice([*odd, *known.ODD_TEXTS]), draw.random() < 0.2) for _ in range(2)
            ]
            return content[:1] + known.text_of(known.changed(value, new[: draw.randint(1, 2)])) + tail
        except (ValueError, RecursionError):
            continue
    return None


def main() -> None:
    """Fuzz for a while, or run one case that was found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("case", nargs="?", type=Path, help="a case that was found")
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--out", type=Path, default=Path(".fuzz"), help="corpus and found cases; kept between runs")
    asked = options.parse_args()
    sys.path.insert(0, str(HERE))
    if asked.case is None:
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
        if sum(runs.values()) % 500 == 0:  # libFuzzer ends the process itself: nothing runs afterwards
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
    corpus = asked.out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for k, (_, seeds) in enumerate(known.values()):
        for i, seed in enumerate(seeds):
            (corpus / f"seed-{k}-{i}").write_bytes(bytes([k]) + seed)
    (asked.out / "words.txt").write_text(
        "".join(f'"{w}"\n' for w in words([s for _, ss in known.values() for s in ss]))
    )
    flags = [f"-max_total_time={asked.seconds}", "-max_len=8192", "-timeout=30", "-rss_limit_mb=4096"]
    flags += [f"-artifact_prefix={asked.out}/", f"-dict={asked.out / 'words.txt'}", "-print_final_stats=1"]
    valid = [bytes([k]) + seed for k, (_, seeds) in enumerate(known.values()) for seed in seeds]

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        new = changed(content, valid, seed) if seed % 2 else None
        return new if new is not None and len(new) <= most else atheris.Mutate(content, most)

    atheris.Setup([sys.argv[0], *flags, str(corpus)], once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""Families and contamination on a Ray cluster, row for row what one machine finds.

    find_families(rows, executor="ray")                            # a local cluster of all cores, for the time it takes
    find_families(rows, executor="ray", ray_address="auto")        # a cluster that runs already
    shard_families("shards/", ray_address="auto")                  # every shard is read where it is swept

`RayEngine` offers the four steps that `_near` asks of an engine. Rows are swept and sketched in blocks that stay in the
cluster's object store. Join keys are split by key range: one task sorts all keys of its range and lists the pairs that
meet there; pairs are verified where the left row's sketch lies, against one other block at a time. All sums are
integers and every accepted pair counts, so neither blocks nor ranges change the result. The driver holds what has one
number per row: hashes, block and place, family; it never holds sketches, keys or, with `shard_families`, texts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from veritune.data import _join, _near, _overlap, _sweep_numpy
from veritune.data._join import Sketches, Weights
from veritune.data._overlap import Index, Overlap, Scoring
from veritune.data._sweep import Sweep, join_sweeps
from veritune.data.text import F32, I32, I64, U8, U32, U64, TextBuffer
from veritune.errors import MachineError
from veritune.records import Finding

if TYPE_CHECKING:
    from veritune.data.contamination import ContaminationConfig
    from veritune.data.families import FamilyConfig, FamilyResult

BLOCK_ROWS = 500_000  # rows of a block at most: 170 MB of sketches
KEYS_A_RANGE = 1 << 25  # join keys that one task sorts: 256 MB
PAIRS_A_TASK = 1 << 20
Kind = Literal["numpy", "numba"]


# ---------------------------------------------------------------- the cluster


@contextmanager
def session(address: str | None = None) -> Iterator[Any]:
    """Ray, connected: the running session where there is one, else `address`, else a cluster of this machine's cores.

    Raises MachineError without ray, when the cluster cannot be reached, and when it has no CPU to give: a task that
    asks for what no node has would wait for ever.
    """
    ray = _ray()
    mine = not ray.is_initialized()
    if mine:
        _connect(ray, address)
    try:
        have = ray.cluster_resources().get("CPU", 0)
        if have < 1:
            raise MachineError(f"the Ray cluster has {have:g} CPUs to give; one is needed.", fix="Add a node to it.")
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise MachineError("--executor ray needs ray.", fix="pip install 'veritune[ray]'") from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address is None:
            ray.init(address="local", num_cpus=_near.available_cores(), include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MachineError(
            f"no Ray cluster at {address or 'this machine'}: {first[:200]}", fix="ray status --address HOST:PORT"
        ) from error


# ---------------------------------------------------------------- what a task does


def _tools(kind: Kind) -> Any:
    """The engine of a worker, one thread each: Ray runs as many tasks as there are cores."""
    return _near.single(kind)


def _sweep_block(text: TextBuffer, kind: Kind) -> tuple[Sweep, Sweep]:
    """What the driver needs of a sweep, and all of it."""
    whole = _tools(kind).sweep(text)
    return replace(whole, feature_F=np.zeros(0, np.uint32), start_N=np.zeros(0, np.int64)), whole


def _count_df(sweep: Sweep, row_N: I64, bits: int, kind: Kind) -> U32:
    df_T: U32 = _tools(kind).df_table(sweep, row_N, bits)
    return df_T


def _add(left_T: U32, right_T: U32) -> U32:
    return left_T + right_T


def _total(df_T: U32) -> int:
    return int(df_T.sum(dtype=np.int64))


def _rows_of(sketch: Sketches) -> int:
    return len(sketch.count_N)


def _buckets(df_T: U32, weights: Weights) -> U8:
    return _join.bucket_table(df_T, weights)


def _sketch_block(sweep: Sweep, row_N: I64, bucket_T: U8, weights: Weights, least: int, kind: Kind) -> Sketches:
    made: Sketches = _tools(kind).sketches(sweep, row_N, least, given=(weights, bucket_T))
    return made


def _keys_block(sketch: Sketches, place_B: I64, node_B: I64, ranges: int) -> tuple[Any, ...]:
    """How many join keys some rows of a block have, then the keys by key range.

    `node_B` are the rows' numbers in the whole set.
    """
    key = _join.join_keys(sketch.take(place_B))
    key = (key & np.uint64(0xFFFFFFFF00000000)) | node_B.astype(np.uint64)[
        (key & np.uint64(0xFFFFFFFF)).astype(np.int64)
    ]
    mine = ((key >> np.uint64(32)) * np.uint64(ranges)) >> np.uint64(32)
    cuts = np.searchsorted(mine, np.arange(ranges + 1, dtype=np.uint64))
    return (len(key), *(key[a:b] for a, b in pairwise(cuts)))


def _pairs_of_range(owner_N: I32, blocks: int, *keys: U64) -> tuple[Any, ...]:
    """How many keys came and how many pairs they give; then the pairs `left << 32 | right` that share a key of one
    range, by the block that owns the left row."""
    key = np.concatenate(keys)
    key.sort()
    left, right = _join.candidates(key)
    pair = (left.astype(np.uint64) << np.uint64(32)) | right.astype(np.uint64)
    owner_P = owner_N[left]
    return ((len(key), len(pair)), *(pair[owner_P == s] for s in range(blocks)))


def _verify(where: Any, block: Any, threshold: float, kind: Kind, *pairs: U64) -> tuple[I64, I64, int]:
    """Which pairs are similar enough, as the edges of a spanning forest; and how many pairs came."""
    pair = np.concatenate(pairs)
    came = len(pair)
    pair = np.unique(pair)
    left, right = _unpack(pair)
    good = np.zeros(len(pair), bool)
    for at, sketch, x, y in _side_by_side(where, block, left, right):
        good[at] = _tools(kind).accepted(sketch, x, y, threshold)
    return (*_forest(left[good], right[good]), came)


def _similar(where: Any, block: Any, left_P: I64, right_P: I64, kind: Kind) -> F32:
    score_P = np.zeros(len(left_P))
    for at, sketch, x, y in _side_by_side(where, block, left_P, right_P):
        score_P[at] = _tools(kind).similarity(sketch, x, y)
    return score_P  # type: ignore[return-value]


def _side_by_side(where: Any, block: Sketches, left_P: I64, right_P: I64) -> Iterator[tuple[I64, Sketches, I64, I64]]:
    """For each block that holds right rows: which pairs, the sketches they need in a table, and their places in it."""
    ray = _ray()
    owner_N, place_N, blocks = (ray.get(ref) for ref in where)
    order = np.argsort(owner_N[right_P], kind="stable")
    cuts = np.searchsorted(owner_N[right_P][order], np.arange(len(blocks) + 1))
    for s in range(len(blocks)):
        mine = order[cuts[s] : cuts[s + 1]]
        if not len(mine):
            continue
        other = ray.get(blocks[s])
        for a in range(0, len(mine), PAIRS_A_TASK):
            at = mine[a : a + PAIRS_A_TASK]
            x, x_P = np.unique(place_N[left_P[at]], return_inverse=True)
            y, y_P = np.unique(place_N[right_P[at]], return_inverse=True)
            yield at, _stacked(block.take(x), other.take(y)), x_P, y_P + len(x)


def _stacked(a: Sketches, b: Sketches) -> Sketches:
    return Sketches(
        np.concatenate((a.id_N_K, b.id_N_K)),
        np.concatenate((a.count_N, b.count_N)),
        np.concatenate((a.mass_N, b.mass_N)),
        np.concatenate((a.bits_N_B, b.bits_N_B)),
        a.weights,
    )


def _unpack(pair: U64) -> tuple[I64, I64]:
    return (pair >> np.uint64(32)).astype(np.int64), (pair & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _forest(left: I64, right: I64) -> tuple[I64, I64]:
    """Edges that connect what the given edges connect, one a node at most."""
    node, at = np.unique(np.concatenate((left, right)), return_inverse=True)
    root = _join.components(len(node), at[: len(left)], at[len(left) :])
    child = np.flatnonzero(root != np.arange(len(node)))
    return node[root[child]], node[child]


# ---------------------------------------------------------------- the engine


@dataclass(frozen=True, slots=True)
class ShardedText:
    """Texts that lie in the object store, a block each."""

    blocks: tuple[Any, ...]
    rows_S: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.rows_S)


@dataclass(frozen=True)
class _RemoteSweep(Sweep):
    """A sweep whose features stayed in the object store; `begin_S1` says which rows each block holds."""

    blocks: tuple[Any, ...] = ()
    begin_S1: Any = None


@dataclass(frozen=True, slots=True)
class _RemoteSketches:
    """Sketches in the object store: row u is row `place_N[u]` of block `owner_N[u]`."""

    blocks: tuple[Any, ...]
    owner_N: I32
    place_N: I64

    def take(self, row: I64) -> _RemoteSketches:
        return _RemoteSketches(self.blocks, self.owner_N[row], self.place_N[row])


class RayEngine:
    """`sweep`, `sketches`, `near_components` and `similarity` on a cluster; the steps are those of `_join`."""

    def __init__(self, ray: Any, kind: Kind) -> None:
        self.ray, self.kind = ray, kind
        self.cpus = int(ray.cluster_resources()["CPU"])

    @classmethod
    @contextmanager
    def started(cls, n_rows: int, config: FamilyConfig) -> Iterator[RayEngine]:
        with session(config.ray_address) as ray:
            yield cls(ray, engine_for(n_rows, config))

    def _run(self, work: Any, *args: Any, returns: int = 1) -> Any:
        return self.ray.remote(work).options(num_cpus=1, num_returns=returns).remote(*args)

    def sweep(self, text: TextBuffer | ShardedText) -> Sweep:
        """As `_sweep_numpy.sweep`; the features stay where they were made."""
        blocks: Sequence[Any]
        if isinstance(text, ShardedText):
            blocks, sizes = text.blocks, list(text.rows_S)
        else:
            cuts = block_cuts(len(text), self.cpus)
            blocks = [self.ray.put(part(text, a, b)) for a, b in pairwise(cuts)]
            sizes = [b - a for a, b in pairwise(cuts)]
        swept = [self._run(_sweep_block, block, self.kind, returns=2) for block in blocks]
        heads = [self.ray.get(head) for head, _ in swept]
        begin_S1 = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        whole = join_sweeps(heads or [_sweep_numpy.sweep(TextBuffer.from_strings([]))])
        _balance("rows", sum(sizes), len(whole.hash_N))
        kept = {f.name: getattr(whole, f.name) for f in fields(Sweep)}
        return _RemoteSweep(**kept, blocks=tuple(w for _, w in swept), begin_S1=begin_S1)

    def sketches(self, sweep: _RemoteSweep, row_N: I64, min_features: int) -> _RemoteSketches:
        """As `_join.sketches`: document frequencies are counted a block at a time and added up in a tree."""
        n = len(row_N)
        weights, bits = _join.weights_for(n), _join.table_bits(n)
        owner_N = (np.searchsorted(sweep.begin_S1, row_N, side="right") - 1).astype(np.int32)
        place_N = np.zeros(n, np.int64)
        inside = []
        for s in range(len(sweep.blocks)):
            mine = np.flatnonzero(owner_N == s)
            place_N[mine] = np.arange(len(mine))
            inside.append(row_N[mine] - sweep.begin_S1[s])
        tables = [self._run(_count_df, b, rows, bits, self.kind) for b, rows in zip(sweep.blocks, inside)]
        while len(tables) > 1:
            tables = [self._run(_add, *pair) if len(pair) == 2 else pair[0] for pair in _two_by_two(tables)]
        if not tables:
            return _RemoteSketches((), owner_N, place_N)
        counted = self._run(_total, tables[0])
        bucket = self._run(_buckets, tables[0], weights)
        made = [
            self._run(_sketch_block, b, rows, bucket, weights, min_features, self.kind)
            for b, rows in zip(sweep.blocks, inside)
        ]
        self.ray.wait(made, num_returns=len(made))
        _balance("word pairs", int(sweep.length_N[row_N].sum(dtype=np.int64)), self.ray.get(counted))
        _balance("sketches", n, sum(self.ray.get([self._run(_rows_of, block) for block in made])))
        return _RemoteSketches(tuple(made), owner_N, place_N)

    def near_components(self, sketch: _RemoteSketches, threshold: float) -> I64:
        """As `_join.near_components`: a pass over all rows, then one over a row of each component."""
        root = self._one_pass(sketch, threshold)
        if np.array_equal(root, np.arange(len(root))):
            return root
        alone = np.unique(root)
        again = self._one_pass(sketch.take(alone), threshold)
        return np.asarray(alone[again[np.searchsorted(alone, root)]], np.int64)

    def _one_pass(self, sketch: _RemoteSketches, threshold: float) -> I64:
        n, blocks = len(sketch.owner_N), len(sketch.blocks)
        if not n:
            return np.zeros(0, np.int64)
        ranges = max(self.cpus, -(-n * _join.KEYS_A_ROW // KEYS_A_RANGE))
        made = []
        for s, block in enumerate(sketch.blocks):
            mine = np.flatnonzero(sketch.owner_N == s)
            made.append(self._run(_keys_block, block, sketch.place_N[mine], mine, ranges, returns=1 + ranges))
        where = self._where(sketch)
        pairs = [
            self._run(_pairs_of_range, where[0], blocks, *(keys[1 + r] for keys in made), returns=1 + blocks)
            for r in range(ranges)
        ]
        sent = [keys[0] for keys in made]
        del made
        edges = [
            self._run(_verify, where, block, threshold, self.kind, *(found[1 + s] for found in pairs), returns=3)
            for s, block in enumerate(sketch.blocks)
        ]
        found = [self.ray.get(list(e)) for e in edges]
        came = self.ray.get([of_range[0] for of_range in pairs])
        _balance("join keys", sum(self.ray.get(sent)), sum(keys for keys, _ in came))
        _balance("pairs of rows", sum(listed for _, listed in came), sum(f[2] for f in found))
        return _join.components(n, np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found]))

    def similarity(self, sketch: _RemoteSketches, left_P: I64, right_P: I64) -> Any:
        """As `_join.similarity`."""
        score_P = np.zeros(len(left_P))
        where = self._where(sketch)
        owner_P = sketch.owner_N[left_P]
        waiting = []
        for s in np.unique(owner_P).tolist():
            mine = np.flatnonzero(owner_P == s)
            done = self._run(_similar, where, sketch.blocks[s], left_P[mine], right_P[mine], self.kind)
            waiting.append((mine, done))
        for mine, done in waiting:
            score_P[mine] = self.ray.get(done)
        return score_P

    def _where(self, sketch: _RemoteSketches) -> tuple[Any, Any, Any]:
        """Owner, place and blocks, each in the object store once; blocks as references that a task opens itself."""
        return self.ray.put(sketch.owner_N), self.ray.put(sketch.place_N), self.ray.put(list(sketch.blocks))


def _balance(what: str, sent: int, came: int) -> None:
    """Raises MachineError when a step of the cluster did not get all that the step before it made."""
    if sent != came:
        raise MachineError(
            f"the Ray cluster lost data: {sent:,} {what} were made, {came:,} arrived; the result would be short.",
            fix="Run it again; if it comes back, run without --executor ray.",
        )


def _two_by_two(items: list[Any]) -> list[list[Any]]:
    return [items[i : i + 2] for i in range(0, len(items), 2)]


def engine_for(n_rows: int, config: Any) -> Kind:
    """Which engine workers use: the same choice as on one machine."""
    kind: Kind = _near.choose(n_rows, config, "numpy", _compiled)
    return kind


def _compiled(threads: int) -> Kind:
    from veritune.data import _join_numba  # noqa: F401  (an ImportError here means numpy)

    return "numba"


def block_cuts(n_rows: int, cpus: int) -> list[int]:
    """Where blocks of rows begin and end: one a core at least, and none longer than `BLOCK_ROWS`."""
    blocks = min(max(1, cpus, -(-n_rows // BLOCK_ROWS)), max(1, n_rows))
    return [n_rows * i // blocks for i in range(blocks + 1)]


def part(text: TextBuffer, a: int, b: int) -> TextBuffer:
    """Rows [a, b) of a buffer, in bytes of their own."""
    start, end = int(text.offset_N1[a]), int(text.offset_N1[b])
    return TextBuffer(text.data[start:end].copy(), text.offset_N1[a : b + 1] - start, text.cut_N[a:b] - start)


# ---------------------------------------------------------------- contamination


def score_on_ray(text: TextBuffer, index: Index, rule: Scoring, config: ContaminationConfig) -> Overlap:
    """As `_overlap.score`: every block of rows is compared with the whole index."""
    kind = engine_for(len(text), config)
    with session(config.ray_address) as ray:
        cuts = block_cuts(len(text), int(ray.cluster_resources()["CPU"]))
        shared = ray.put(index), ray.put(rule)
        run = ray.remote(_score_block).options(num_cpus=1)
        waiting = [run.remote(part(text, a, b), *shared, kind) for a, b in pairwise(cuts)]
        found = [replace(o, row_P=o.row_P + a) for o, a in zip(ray.get(waiting), cuts)]
    whole = _overlap.join_overlaps(found)
    _balance("rows", len(text), len(whole.hash_N_2))
    return whole


def _score_block(text: TextBuffer, index: Index, rule: Scoring, kind: Kind) -> Overlap:
    if kind == "numpy":
        return _overlap.score(text, index, rule)
    from veritune.data import _overlap_numba

    return _overlap_numba.score(text, index, rule, threads=1)


# ---------------------------------------------------------------- shards


@dataclass(frozen=True)
class ShardedFamilies:
    """Families of a folder of shards: as `find_families`, with what could not be used."""

    families: FamilyResult
    rejects: tuple[Finding, ...]
    n_read: int


def shard_families(
    path: str | Path, config: FamilyConfig | None = None, *, reading: Mapping[str, Any] | None = None, **settings: Any
) -> ShardedFamilies:
    """Families over a file or a folder of shards that every node can read; no text passes through this process.

    `reading` are settings of `load_rows`. Rows come in the order of `load_rows(path)`, with the same ids, and of two
    rows with one id the later is refused as there. Raises DataError when nothing is there to read.
    """
    from veritune.data import families, load

    config = families.configured(config, {"executor": "ray", **settings})
    files, id_field = load.files_of(path), (reading or {}).get("id_field")
    with session(config.ray_address) as ray:
        run = ray.remote(_read_shard).options(num_cpus=1, num_returns=2)
        heads, texts = zip(*(run.remote(*file, dict(reading or {})) for file in files))
        keep_task = ray.remote(_keep).options(num_cpus=1)
        ids: list[str] = []
        named: list[str | None] = []
        rejects: list[Finding] = []
        blocks, sizes, n_read = [], [], 0
        first: dict[str, str] = {}
        for head_ref, text in zip(heads, texts):
            head = ray.get(head_ref)
            kept = [
                i for i, row_id in enumerate(head["ids"]) if first.setdefault(row_id, head["at"][i]) == head["at"][i]
            ]
            again = [i for i in range(len(head["ids"])) if i not in set(kept)] if len(kept) < len(head["ids"]) else []
            found = [
                *head["rejects"],
                *(load.used_twice(head["ids"][i], head["at"][i], first, id_field) for i in again),
            ]
            rejects += sorted(found, key=lambda f: f.line or 0)
            ids += [head["ids"][i] for i in kept]
            named += [head["family"][i] for i in kept]
            n_read += head["n_read"]
            blocks.append(keep_task.remote(text, np.array(kept, np.int64)) if again else text)
            sizes.append(len(kept))
        column = named if any(name is not None for name in named) else None
        texts_there = ShardedText(tuple(blocks), tuple(sizes))
        result = families.find_families(families.FamilyColumns(ids, texts_there, column), config)  # type: ignore[arg-type]
    return ShardedFamilies(result, tuple(rejects), n_read)


def _read_shard(file: Path, name: str, stem: str, reading: dict[str, Any]) -> tuple[dict[str, Any], TextBuffer]:
    """One shard as `load_rows` reads it: what the driver needs, and the texts."""
    from veritune.data import families, load

    loaded = load.load_files([(file, name, stem)], **reading)
    columns = families.FamilyColumns.from_rows(loaded.rows)
    head = {
        "ids": list(columns.ids),
        "at": [f"{row.source}:{row.line}" for row in loaded.rows],
        "family": [row.family for row in loaded.rows],
        "rejects": list(loaded.rejects),
        "n_read": loaded.n_read,
    }
    return head, columns.text


def _keep(text: TextBuffer, row_N: I64) -> TextBuffer:
    return text.take(row_N)

"""The engine on a Ray cluster, bit for bit what one machine computes.

    find_families(rows, executor="ray")                            # a local cluster of all cores, for the time it takes
    find_families(rows, executor="ray", ray_address="auto")        # a cluster that runs already

Rows are swept and sketched in blocks that stay in the cluster's object store. Join keys are split by key range: one
task sorts all keys of its range and lists the pairs that meet there; pairs are verified where the left row's sketch
lies, against one other block at a time. All sums are integers and every accepted pair counts, so neither blocks nor
ranges change the result. The driver holds a few numbers per row (hashes, block and place), never sketches or keys.

N rows · S blocks · P pairs of rows · C counters of document frequency · B rows of one block
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from veritune.data.near import join, overlap
from veritune.data.near.arrays import F64, I32, I64, U8, U32, U64
from veritune.data.near.bytes import TextBuffer
from veritune.data.near.clusters import components
from veritune.data.near.engine import available_cores
from veritune.data.near.index import Index, Scoring
from veritune.data.near.join import BucketWeights, Sketches
from veritune.data.near.overlap import Overlap, OverlapRule, RowsBesideEntries
from veritune.data.near.sweep import Sweep, join_sweeps, sweep
from veritune.errors import MachineError, first_line

if TYPE_CHECKING:
    from types import ModuleType

    from ray import ObjectRef

BLOCK_ROWS = 500_000  # rows of a block at most: 170 MB of sketches
KEYS_A_RANGE = 1 << 25  # join keys that one task sorts: 256 MB
PAIRS_A_TASK = 1 << 20


T = TypeVar("T")


# ---------------------------------------------------------------- the cluster


@contextmanager
def session(address: str | None = None) -> Iterator[ModuleType]:
    """A Ray session: the running one if there is one, else one at `address`, else a local cluster of this machine's
    cores.

    Raises MachineError without ray, when the cluster cannot be reached, and when it has no CPU to give: a task that
    asks for what no node has would never start.
    """
    ray = _ray()
    mine = not ray.is_initialized()
    if mine:
        _connect(ray, address)
    try:
        have = ray.cluster_resources().get("CPU", 0)
        if have < 1:
            raise MachineError(
                f"the Ray cluster offers {have:g} CPUs, but at least one is needed.",
                fix="Add a node with a CPU to the cluster.",
            )
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _ray() -> ModuleType:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # an extra, and a second
    except ImportError as error:
        raise MachineError(
            "--executor ray needs the package ray, which is not installed.", fix="pip install 'veritune[ray]'"
        ) from error
    module: ModuleType = ray
    return module


def _connect(ray: ModuleType, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address is None:
            ray.init(address="local", num_cpus=available_cores(), include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = first_line(error)
        raise MachineError(
            f"no Ray cluster at {address or 'this machine'}: {first}",
            fix="Check the cluster: ray status --address HOST:PORT",
        ) from error


# ---------------------------------------------------------------- what a task does


def _sweep_block(text: TextBuffer) -> tuple[Sweep, Sweep]:
    """What the driver needs of a sweep, and all of it. Ray runs a task a core, so each takes one thread."""
    whole = sweep(text)
    return replace(whole, feature_F=np.zeros(0, np.uint32), start_N=np.zeros(0, np.int64)), whole


def _count_df(sweep: Sweep, row_N: I64, bits: int) -> U32:
    return join.df_table(sweep, row_N, bits)


def _add(left_C: U32, right_C: U32) -> U32:
    return left_C + right_C


def _total(df_C: U32) -> int:
    return int(df_C.sum(dtype=np.int64))


def _rows_of(sketch: Sketches) -> int:
    return len(sketch.count_N)


def _sketch_block(sweep: Sweep, row_N: I64, bucket_C: U8, weights: BucketWeights, least: int) -> Sketches:
    return join.sketches(sweep, row_N, least, given=(weights, bucket_C))


def _keys_block(sketch: Sketches, place_B: I64, node_B: I64, ranges: int) -> tuple[int | U64, ...]:
    """How many join keys some rows of a block have, then the keys by key range.

    `node_B` are the rows' numbers in the whole set.
    """
    key, cuts = join.keys_by_range(sketch.take(place_B), ranges)
    row = (key & np.uint64(0xFFFFFFFF)).astype(np.int64)
    key = (key & np.uint64(0xFFFFFFFF00000000)) | node_B.astype(np.uint64)[row]
    return (len(key), *(key[a:b] for a, b in pairwise(cuts)))


def _pairs_of_range(owner_N: I32, blocks: int, *keys: U64) -> tuple[tuple[int, int] | U64, ...]:
    """How many keys came and how many pairs they give; then the pairs `left << 32 | right` that share a key of one
    range, by the block that owns the left row."""
    key = np.concatenate(keys)
    key.sort()
    pair = _candidates(key)
    left, _ = _unpack(pair)
    owner_P = owner_N[left]
    return ((len(key), len(pair)), *(pair[owner_P == s] for s in range(blocks)))


def _candidates(key: U64) -> U64:
    """Distinct pairs of rows that share a key: all pairs of small buckets, first and previous in larger ones."""
    if len(key) < 2:
        return key[:0]
    row, key = key & np.uint64(0xFFFFFFFF), key >> np.uint64(32)
    begins = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    size = np.diff(np.append(begins, len(key)))
    size_at, begin_at = np.repeat(size, size), np.repeat(begins, size)
    at = np.arange(len(key))
    small = size_at <= join.ALL_PAIRS_UP_TO
    pairs = []
    for d in range(1, join.ALL_PAIRS_UP_TO):
        later = at[(at - begin_at >= d) & (small | (d == 1))]
        pairs.append((row[later - d] << np.uint64(32)) | row[later])
    big = at[~small & (at - begin_at > 1)]
    pairs.append((row[begin_at[big]] << np.uint64(32)) | row[big])
    pair = np.unique(np.concatenate(pairs))
    left, right = _unpack(pair)
    distinct: U64 = pair[left != right]
    return distinct


def _verify(where: Any, block: Any, threshold: float, *pairs: U64) -> tuple[I64, I64, int]:
    """Which pairs are similar enough, as the edges of a spanning forest; and how many pairs were received."""
    pair = np.concatenate(pairs)
    n_received = len(pair)
    pair = np.unique(pair)
    left, right = _unpack(pair)
    good = np.zeros(len(pair), bool)
    for at, sketch, x, y in _side_by_side(where, block, left, right):
        good[at] = join.accepted(sketch, x, y, threshold)
    return (*_forest(left[good], right[good]), n_received)


def _similar(where: Any, block: Any, left_P: I64, right_P: I64) -> F64:
    score_P = np.zeros(len(left_P))
    for at, sketch, x, y in _side_by_side(where, block, left_P, right_P):
        score_P[at] = join.similarity(sketch, x, y)
    return score_P


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
    root = components(len(node), at[: len(left)], at[len(left) :])
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
class RemoteSweep(Sweep):
    """A sweep whose features stayed in the object store; `begin_S1` says which rows each block holds."""

    blocks: tuple[Any, ...] = ()
    begin_S1: I64 = field(default_factory=lambda: np.zeros(1, np.int64))


@dataclass(frozen=True, slots=True)
class RemoteSketches:
    """Sketches in the object store: row u is row `place_N[u]` of block `owner_N[u]`."""

    blocks: tuple[Any, ...]
    owner_N: I32
    place_N: I64

    def take(self, row: I64) -> RemoteSketches:
        return RemoteSketches(self.blocks, self.owner_N[row], self.place_N[row])


class RayEngine:
    """`Engine` on a cluster: the steps are those of `join` and `overlap`, each on one block or one range of keys."""

    def __init__(self, ray: ModuleType) -> None:
        self.ray = ray
        self.cpus = int(ray.cluster_resources()["CPU"])

    @classmethod
    @contextmanager
    def started(cls, address: str | None) -> Iterator[RayEngine]:
        """The engine, while the block runs, on the cluster that `session` finds."""
        with session(address) as ray:
            yield cls(ray)

    def _run(self, work: Callable[..., Any], *args: Any, returns: int = 1) -> Any:
        return self.ray.remote(work).options(num_cpus=1, num_returns=returns).remote(*args)

    def sweep(self, text: TextBuffer | ShardedText) -> RemoteSweep:
        """As `sweep.sweep`; the features stay where they were made."""
        blocks: Sequence[Any]
        if isinstance(text, ShardedText):
            blocks, sizes = text.blocks, list(text.rows_S)
        else:
            cuts = block_cuts(len(text), self.cpus)
            blocks = [self.ray.put(part(text, a, b)) for a, b in pairwise(cuts)]
            sizes = [b - a for a, b in pairwise(cuts)]
        swept = [self._run(_sweep_block, block, returns=2) for block in blocks]
        heads = [self.ray.get(head) for head, _ in swept]
        whole = join_sweeps(heads or [sweep(TextBuffer.from_strings([]))])
        _balance("rows", sum(sizes), len(whole.hash_N))
        columns = {f.name: getattr(whole, f.name) for f in fields(Sweep)}
        begin_S1 = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        return RemoteSweep(**columns, blocks=tuple(w for _, w in swept), begin_S1=begin_S1)

    def sketches(self, sweep: Sweep, row_N: I64, min_features: int) -> RemoteSketches:
        """As `join.sketches`: document frequencies are counted a block at a time and added up in a tree."""
        if not isinstance(sweep, RemoteSweep):
            raise TypeError("expected a sweep made by this engine")
        n = len(row_N)
        weights, bits = join.weights_for(n), join.table_bits(n)
        owner_N = (np.searchsorted(sweep.begin_S1, row_N, side="right") - 1).astype(np.int32)
        place_N = np.zeros(n, np.int64)
        inside = []
        for s in range(len(sweep.blocks)):
            mine = np.flatnonzero(owner_N == s)
            place_N[mine] = np.arange(len(mine))
            inside.append(row_N[mine] - sweep.begin_S1[s])
        tables = [self._run(_count_df, b, rows, bits) for b, rows in zip(sweep.blocks, inside)]
        while len(tables) > 1:
            tables = [self._run(_add, *pair) if len(pair) == 2 else pair[0] for pair in _two_by_two(tables)]
        if not tables:
            return RemoteSketches((), owner_N, place_N)
        counted = self._run(_total, tables[0])
        bucket_C = self._run(join.bucket_table, tables[0], weights)
        blocks = [
            self._run(_sketch_block, b, rows, bucket_C, weights, min_features) for b, rows in zip(sweep.blocks, inside)
        ]
        self.ray.wait(blocks, num_returns=len(blocks))
        _balance("word pairs", int(sweep.length_N[row_N].sum(dtype=np.int64)), self.ray.get(counted))
        _balance("sketches", n, sum(self.ray.get([self._run(_rows_of, block) for block in blocks])))
        return RemoteSketches(tuple(blocks), owner_N, place_N)

    def near_components(self, sketch: RemoteSketches, threshold: float) -> I64:
        """As `join.near_components`: a pass over all rows, then one over a row of each component."""
        root = self._one_pass(sketch, threshold)
        if np.array_equal(root, np.arange(len(root))):
            return root
        alone = np.unique(root)
        again = self._one_pass(sketch.take(alone), threshold)
        return np.asarray(alone[again[np.searchsorted(alone, root)]], np.int64)

    def _one_pass(self, sketch: RemoteSketches, threshold: float) -> I64:
        n, blocks = len(sketch.owner_N), len(sketch.blocks)
        if not n:
            return np.zeros(0, np.int64)
        ranges = max(self.cpus, -(-n * join.KEYS_A_ROW // KEYS_A_RANGE))
        keys = []
        for s, block in enumerate(sketch.blocks):
            mine = np.flatnonzero(sketch.owner_N == s)
            keys.append(self._run(_keys_block, block, sketch.place_N[mine], mine, ranges, returns=1 + ranges))
        where = self._where(sketch)
        pairs = [
            self._run(_pairs_of_range, where[0], blocks, *(of_block[1 + r] for of_block in keys), returns=1 + blocks)
            for r in range(ranges)
        ]
        n_keys = [of_block[0] for of_block in keys]
        del keys
        forests = [
            self._run(_verify, where, block, threshold, *(of_range[1 + s] for of_range in pairs), returns=3)
            for s, block in enumerate(sketch.blocks)
        ]
        left, right, n_pairs = zip(*(self.ray.get(list(forest)) for forest in forests))
        counts = self.ray.get([of_range[0] for of_range in pairs])
        _balance("join keys", sum(self.ray.get(n_keys)), sum(received for received, _ in counts))
        _balance("pairs of rows", sum(listed for _, listed in counts), sum(n_pairs))
        return components(n, np.concatenate(left), np.concatenate(right))

    def similarity(self, sketch: RemoteSketches, left_P: I64, right_P: I64) -> F64:
        """As `join.similarity`."""
        score_P = np.zeros(len(left_P))
        where = self._where(sketch)
        owner_P = sketch.owner_N[left_P]
        running = []
        for s in np.unique(owner_P).tolist():
            mine = np.flatnonzero(owner_P == s)
            running.append((mine, self._run(_similar, where, sketch.blocks[s], left_P[mine], right_P[mine])))
        for mine, score in running:
            score_P[mine] = self.ray.get(score)
        return score_P

    def compare(self, rows: TextBuffer, entries: TextBuffer, rule: OverlapRule) -> RowsBesideEntries:
        """As `overlap.compare`, the first pass here."""
        return overlap.compare(rows, entries, rule, self._score, threads=available_cores())

    def _score(self, rows: TextBuffer, index: Index, weights: Scoring) -> Overlap:
        """As `overlap.score`: every block of rows is compared with the whole index."""
        cuts = block_cuts(len(rows), self.cpus)
        shared = self.ray.put(index), self.ray.put(weights)
        running = [self._run(overlap.score, part(rows, a, b), *shared) for a, b in pairwise(cuts)]
        parts = [replace(o, row_P=o.row_P + a) for o, a in zip(self.ray.get(running), cuts)]
        whole = overlap.join_overlaps(parts)
        _balance("rows", len(rows), len(whole.hash_N_2))
        return whole

    def standing(self, rows: TextBuffer, texts: list[str]) -> tuple[I64, I64, I64]:
        """As `overlap.standing`, on this machine."""
        return overlap.standing(rows, texts)

    def _where(self, sketch: RemoteSketches) -> tuple[ObjectRef, ObjectRef, ObjectRef]:
        """Owner, place and blocks, each in the object store once; blocks as references that a task opens itself."""
        return self.ray.put(sketch.owner_N), self.ray.put(sketch.place_N), self.ray.put(list(sketch.blocks))


def _balance(what: str, n_sent: int, n_received: int) -> None:
    """Raises MachineError when a step of the cluster did not get all that the step before it made."""
    if n_sent != n_received:
        raise MachineError(
            f"the Ray cluster lost data: {n_sent:,} {what} were sent, {n_received:,} arrived; the results would "
            "be incomplete.",
            fix="Run it again; if it happens again, run without --executor ray.",
        )


def _two_by_two(items: list[T]) -> list[list[T]]:
    return [items[i : i + 2] for i in range(0, len(items), 2)]


def block_cuts(n_rows: int, cpus: int) -> list[int]:
    """Where blocks of rows begin and end: at least one block per core, and none longer than `BLOCK_ROWS`."""
    blocks = min(max(1, cpus, -(-n_rows // BLOCK_ROWS)), max(1, n_rows))
    return [n_rows * i // blocks for i in range(blocks + 1)]


def part(text: TextBuffer, a: int, b: int) -> TextBuffer:
    """Rows [a, b) of a buffer, in bytes of their own."""
    start, end = int(text.offset_N1[a]), int(text.offset_N1[b])
    return TextBuffer(text.data[start:end].copy(), text.offset_N1[a : b + 1] - start, text.cut_N[a:b] - start)

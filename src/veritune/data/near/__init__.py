"""The engine of near-duplicates: bytes in, clusters of similar rows and overlaps with eval items out.

    arrays.py    array types
    bytes.py     texts as one array of bytes, brought to canonical form
    sweep.py     one pass over the bytes: tokens, hashes of whole texts, distinct word pairs        compiled
    join.py      sketches of rows, the keys under which similar rows meet, verified pairs           compiled
    clusters.py  connected components, and clusters around a centre
    index.py     what is searched for: the words of eval items, their weights, their runs of words  compiled
    overlap.py   two passes over the rows: how much of which item each row holds                    compiled
    compiled.py  how kernels are compiled, cached and run on threads                                compiled
    engine.py    which machine does it; the only file that imports the compiled ones
    local.py     the engine on this machine's cores                                                 compiled
    ray.py       the engine on a Ray cluster, bit for bit the same result                           compiled

The compiled files need numba. There is no second engine without it: vectorised numpy was 5 to 7 times slower on 10,000
rows, 1.7 times rensa where the kernels are 8.8 times (docs/bench.md). Nothing here knows rows, studies or records.
"""

from __future__ import annotations

from veritune.data.near.bytes import TextBuffer
from veritune.data.near.clusters import Near, clusters, components, sketched
from veritune.data.near.engine import Engine, Executor, running

__all__ = ["Engine", "Executor", "Near", "TextBuffer", "clusters", "components", "running", "sketched"]

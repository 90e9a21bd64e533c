"""How kernels are compiled, cached and run on threads.

Machine code is kept beside the source, or in the user's cache folder where that cannot be written. numba discards a
cached kernel when the text of its own file changes, and knows nothing of files from which constants were compiled in.
So no kernel calls another file's kernel, and a file that compiles in another's constants repeats and compares them.
Kernels assign element by element: a slice on the left makes numba compile its error messages, too (5 of 15 s).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

K = TypeVar("K", bound=Callable[..., object])
Block = TypeVar("Block")
Result = TypeVar("Result")
Scalar = TypeVar("Scalar", bound=np.generic)


def kernel(function: K) -> K:
    """`function`, compiled at its first call. It releases the GIL, so threads run it in parallel."""
    try:
        return njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither cache folder can be written: every process compiles for itself
        return njit(nogil=True)(function)  # type: ignore[no-any-return]


def run_blocks(work: Callable[[Block], Result], blocks: Sequence[Block], threads: int) -> list[Result]:
    """Results of `work` in the order of the blocks, computed on `threads` threads."""
    if threads <= 1 or len(blocks) <= 1:
        return [work(block) for block in blocks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, blocks))


def read_only(array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """A read-only view: arrow's buffers are read-only, so numba compiles the kernel once for both kinds of memory."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def row_blocks(n_rows: int, size: int) -> list[tuple[int, int]]:
    """Row ranges [a, b) of at most `size` rows."""
    return [(a, min(a + size, n_rows)) for a in range(0, n_rows, size)]

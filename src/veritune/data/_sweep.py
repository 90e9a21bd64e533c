"""What both engines of the first sweep share: the shape of the result, the constants, the hashing rules.

A token is a run of letters and digits (a run of digits is one `0` when digits are masked), a feature a pair of
neighbouring tokens as a 32-bit hash, distinct within its row. All hashes are Horner sums mod 2^64 over per-byte
values, so that a vectorised prefix sum and a plain loop give the same numbers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from veritune.data.text import BYTE_VALUE, I32, I64, MASKED_VALUE, U8, U32, U64

HORNER = 0x9E3779B97F4A7C15 | 1
MIX_1 = 0xFF51AFD7ED558CCD
MIX_2 = 0xC4CEB9FE1A85EC53
ROW_CAP = 256  # distinct features kept of one row; longer rows keep those with the smallest hashes


@dataclass(frozen=True, slots=True)
class Sweep:
    """One pass over N texts. Row i's features are `feature_F[start_N[i]:start_N[i] + length_N[i]]`, in the order of
    their first occurrence in the row; between rows there may be room that nothing was written to.

    `hash_N` is of the whole canonical text, `problem_hash_N` of its part before the cut, 0 where that is empty.
    """

    hash_N: U64
    problem_hash_N: U64
    problem_token_N: I32
    problem_digit_N: U8
    feature_F: U32
    start_N: I64
    length_N: I32


def token_values(mask_digits: bool) -> U64:
    """The per-byte values of token hashes."""
    return MASKED_VALUE if mask_digits else BYTE_VALUE


def horner_inverse() -> int:
    """The inverse of `HORNER` mod 2^64."""
    return pow(HORNER, -1, 1 << 64)


def join_sweeps(parts: list[Sweep]) -> Sweep:
    """Sweeps of consecutive row ranges as one."""
    if len(parts) == 1:
        return parts[0]
    shift = np.cumsum([0] + [len(p.feature_F) for p in parts[:-1]])
    moved = [dataclasses.replace(p, start_N=p.start_N + s) for p, s in zip(parts, shift)]

    def cat(name: str) -> Any:
        return np.concatenate([getattr(p, name) for p in moved])

    return Sweep(*(cat(f.name) for f in dataclasses.fields(Sweep)))

"""What both engines of the first sweep share: the shape of the result, the constants, the hashing rules.

A token is a run of letters and digits (a run of digits is one `0` when digits are masked), a feature a pair of
neighbouring tokens as a 32-bit hash, distinct within its row. All hashes are Horner sums mod 2^64 over per-byte
values, so that a vectorised prefix sum and a plain loop give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from veritune.data.text import BYTE_VALUE, I32, I64, MASKED_VALUE, U8, U32, U64

HORNER = 0x9E3779B97F4A7C15 | 1
MIX_1 = 0xFF51AFD7ED558CCD
MIX_2 = 0xC4CEB9FE1A85EC53
ROW_CAP = 512  # distinct features kept of one row; longer rows keep those with the smallest hashes


@dataclass(frozen=True, slots=True)
class Sweep:
    """One pass over N texts. Features are in the order of their first occurrence in the row.

    `hash_N` is of the whole canonical text, `problem_hash_N` of its part before the cut, 0 where that is empty.
    """

    hash_N: U64
    problem_hash_N: U64
    problem_token_N: I32
    problem_digit_N: U8
    feature_F: U32
    offset_N1: I64


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
    count = [np.diff(p.offset_N1) for p in parts]
    offset_N1 = np.zeros(sum(len(c) for c in count) + 1, np.int64)
    np.cumsum(np.concatenate(count) if count else np.zeros(0, np.int64), out=offset_N1[1:])

    def cat(name: str, dtype: type) -> Any:
        return np.concatenate([getattr(p, name) for p in parts]) if parts else np.zeros(0, dtype)

    return Sweep(
        cat("hash_N", np.uint64),
        cat("problem_hash_N", np.uint64),
        cat("problem_token_N", np.int32),
        cat("problem_digit_N", np.uint8),
        cat("feature_F", np.uint32),
        offset_N1,
    )

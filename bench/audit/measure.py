"""How a grouping is judged: pairs of siblings found (recall), pairs joined rightly (precision), siblings left apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]


def codes(labels: list[str]) -> Codes:
    """Dense integers for labels."""
    return np.unique(np.array(labels), return_inverse=True)[1].astype(np.int64)


def _pairs(code_N: Codes) -> int:
    size = np.bincount(code_N).astype(np.int64)
    return int((size * (size - 1) // 2).sum())


def pairwise(truth_N: Codes, found_N: Codes) -> tuple[float, float]:
    """Precision and recall over unordered pairs of rows."""
    both = np.unique(truth_N * (int(found_N.max()) + 1) + found_N, return_inverse=True)[1]
    right = _pairs(both)
    return right / max(_pairs(found_N), 1), right / max(_pairs(truth_N), 1)


def per_row(truth_N: Codes, found_N: Codes) -> tuple[float, float]:
    """B-cubed precision and recall: the same, averaged over rows, so that large families do not decide alone."""
    both = np.unique(truth_N * (int(found_N.max()) + 1) + found_N, return_inverse=True)[1]
    size_both = np.bincount(both)[both]
    return (
        float((size_both / np.bincount(found_N)[found_N]).mean()),
        float((size_both / np.bincount(truth_N)[truth_N]).mean()),
    )


def leak(truth_N: Codes, found_N: Codes, seed: int = 0, test_share: float = 0.2) -> float:
    """Share of test rows that still have a true sibling in train after a split by found family."""
    rng = np.random.default_rng(seed)
    test_N = (rng.random(int(found_N.max()) + 1) < test_share)[found_N]
    in_train = np.bincount(truth_N, weights=~test_N) > 0
    return float(in_train[truth_N[test_N]].mean()) if test_N.any() else 0.0

"""Counts in sentences: `1 item`, `2 items`, `1 family is`, `3 families are`."""

from __future__ import annotations

_ONE = {"are": "is", "were": "was", "have": "has", "do": "does", "those": "that", "they": "it", "them": "it"}
"""Words that change with the number and are no noun."""
_HISSING = ("ches", "shes", "sses", "xes", "zes")


def many(n: float, plural: str, verb: str = "") -> str:
    """`n` with its noun, given in the plural, and its verb if there is one.

    >>> many(1, "items"), many(2, "families"), many(1, "near-copies", "are"), many(1, "rows", "hold")
    ('1 item', '2 families', '1 near-copy is', '1 row holds')
    """
    return f"{n} {noun(n, plural)}{' ' + agree(n, verb) if verb else ''}"


def grouped(n: float, plural: str, verb: str = "") -> str:
    """`many` with the digits in groups.

    >>> grouped(12000, "rows"), grouped(1, "rows")
    ('12,000 rows', '1 row')
    """
    return f"{n:,} {noun(n, plural)}{' ' + agree(n, verb) if verb else ''}"


def noun(n: float, plural: str) -> str:
    """The noun for a count of `n`, in the singular for 1: `item`, `families`.

    >>> noun(1, "batches"), noun(0, "seeds")
    ('batch', 'seeds')
    """
    if n != 1:
        return plural
    if plural.endswith("ies"):
        return plural[:-3] + "y"
    if plural.endswith(_HISSING):
        return plural[:-2]
    return plural.removesuffix("s")


def agree(n: float, verb: str) -> str:
    """The verb, given as for several, for a count of `n`: `are` or `is`, `hold` or `holds`.

    >>> agree(1, "have"), agree(2, "have"), agree(1, "differ")
    ('has', 'have', 'differs')
    """
    return verb if n != 1 else _ONE.get(verb, verb + "s")

"""Short questions with short answers: one frame with another fact in it is no rewrite.

`What is the capital of France? Paris` and `What is the capital of Kenya? Nairobi` share most of their words. They are
kept apart where the answers are a few words of which none is shared and each question has a word of its own. Numbers
count as equal, as in the search: a question with other numbers and another number for an answer stays a rewrite.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from veritune.data.near import Near, TextBuffer
from veritune.data.near.arrays import F64, I64
from veritune.data.text import SEPARATOR, tokens

_ANSWER_BYTES = 60
_TEXT_BYTES = 600
_ANSWER_WORDS = 5
Words = tuple[frozenset[str], frozenset[str]]  # of the question, of the answer


def apart_by_fact(near: Near, text: TextBuffer, similar: Callable[[I64, I64], F64], threshold: float) -> Near:
    """`near` after splitting every cluster of short rows into groups that state the same fact.

    `similar` gives the similarity of pairs of rows; rows that leave a centre meet again from `threshold` on.
    """
    size_N = np.diff(text.offset_N1)
    answer_N = text.offset_N1[1:] - text.cut_N
    short_M = (answer_N[near.row_M] <= _ANSWER_BYTES) & (answer_N[near.row_M] > 0) & (size_N[near.row_M] <= _TEXT_BYTES)
    if not short_M.any():
        return near
    at_of: dict[int, list[int]] = defaultdict(list)
    for m in np.flatnonzero(np.isin(near.centre_M, near.centre_M[short_M])).tolist():
        at_of[int(near.centre_M[m])].append(m)
    centre_M, score_M = near.centre_M.copy(), near.similarity_M.copy()
    keep_M = np.ones(len(near.row_M), bool)
    for centre, members in at_of.items():
        words = {m: _words_of(text, int(near.row_M[m])) for m in members}
        own = _words_of(text, centre)
        rest = [m for m in members if int(near.row_M[m]) != centre and _other_fact(words[m], own)]
        while rest:
            first, *others = rest
            rows = near.row_M[others]
            scores = similar(np.full(len(rows), near.row_M[first]), rows) if others else np.zeros(0)
            same = [m for m, s in zip(others, scores) if s >= threshold and not _other_fact(words[m], words[first])]
            keep_M[first] = bool(same)
            for m in (first, *same):
                centre_M[m] = near.row_M[first]
            for m, s in zip(others, scores):
                score_M[m] = s if m in same else score_M[m]
            score_M[first] = max((score_M[m] for m in same), default=0.0)
            rest = [m for m in others if m not in same]
    alone = _left_alone(near.row_M[keep_M], centre_M[keep_M])
    keep_M[np.flatnonzero(keep_M)[alone]] = False
    return dataclasses.replace(near, row_M=near.row_M[keep_M], centre_M=centre_M[keep_M], similarity_M=score_M[keep_M])


def _left_alone(row: I64, centre: I64) -> I64:
    """Places of centres that lost all their members."""
    names, size = np.unique(centre, return_counts=True)
    return np.flatnonzero(np.isin(row, names[size == 1]) & (row == centre))


def _words_of(text: TextBuffer, row: int) -> Words:
    begin, cut, end = int(text.offset_N1[row]), int(text.cut_N[row]), int(text.offset_N1[row + 1])
    question, answer = (bytes(text.data[a:b]).decode("utf-8", "replace") for a, b in ((begin, cut), (cut, end)))
    return frozenset(_masked(question)), frozenset(_masked(answer.removeprefix(SEPARATOR)))


def _masked(text: str) -> list[str]:
    return ["0" if token[0].isdigit() else token for token in tokens(text)]


def _other_fact(left: Words, right: Words) -> bool:
    (asked, said), (other_asked, other_said) = left, right
    short = 0 < len(said) <= _ANSWER_WORDS and 0 < len(other_said) <= _ANSWER_WORDS
    return short and not said & other_said and bool(asked - other_asked) and bool(other_asked - asked)

"""What a reader should know about families before a split rests on them.

Three things that a count of families does not show: a prompt so open that rows which share nothing but it are one
family; a declared family that equal text or similarity made wider; families of short texts, where a shared frame with
another fact in it looks like a rewrite.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from veritune.counting import agree, grouped
from veritune.data.answers import final_answer
from veritune.data.families import FamilyResult
from veritune.data.split import names_a_problem, problem_of
from veritune.data.text import canonical
from veritune.records import Finding, Row

OPEN_ANSWERS = 10  # different answers to one prompt from which it is no single problem
SHORT_WORDS = 25  # a text of fewer words is told from its template by two or three of them
_SHOWN = 3


def family_notes(rows: Sequence[Row], families: FamilyResult) -> list[Finding]:
    """The findings, largest first within each kind."""
    return [*_open_prompts(rows, families), *_widened(rows, families), *_short_texts(rows, families)]


def _open_prompts(rows: Sequence[Row], families: FamilyResult) -> Iterator[Finding]:
    by_prompt: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_prompt[problem_of(row)].append(i)
    for prompt, same in sorted(by_prompt.items(), key=lambda item: -len(item[1])):
        if len(same) < OPEN_ANSWERS or not names_a_problem(prompt):
            continue
        if any(final_answer(rows[i].target or "") is not None for i in same):
            continue  # several solutions of one problem
        answers = {canonical(rows[i].target or "") for i in same}
        code = int(families.code_N[same[0]])
        if len(answers) >= OPEN_ANSWERS and all(int(families.code_N[i]) == code for i in same):
            text = (
                f"one prompt has {len(answers):,} different answers, and its {len(same):,} rows are one family: "
                f"{prompt[:60]!r}. If they are not rewrites of each other, name the originals in a column "
                "(--family-field)"
            )
            evidence = {"family": families.family_of(same[0]), "rows": len(same), "answers": len(answers)}
            yield Finding("families.open_prompt", "warning", text, rows[same[0]].id, evidence=evidence)


def _widened(rows: Sequence[Row], families: FamilyResult) -> Iterator[Finding]:
    """Declared families that other evidence joined with others."""
    if not families.config.column or all(row.family is None for row in rows):
        return
    names: dict[int, dict[str, str]] = defaultdict(dict)
    for code, row in zip(families.code_N.tolist(), rows):
        if row.family is not None:
            names[code].setdefault(row.family, row.id)
    wide = [found for found in names.values() if len(found) > 1]
    declared = len({row.family for row in rows if row.family is not None})
    if not wide:
        return
    joined = sum(len(found) for found in wide)
    first = list(wide[0].items())[:2]
    text = (
        f"{joined:,} of {declared:,} declared families were joined into {len(wide):,} by equal text or similarity, "
        f"first {first[0][0]!r} ({first[0][1]}) and {first[1][0]!r} ({first[1][1]})"
    )
    evidence = {"declared": declared, "joined": joined, "into": len(wide), "names": [sorted(w) for w in wide[:20]]}
    yield Finding("families.widened", "warning", text, evidence=evidence)


def _short_texts(rows: Sequence[Row], families: FamilyResult) -> Iterator[Finding]:
    """Families of short texts that similarity made, with the largest shown."""
    members: dict[int, list[int]] = defaultdict(list)
    joined_F = families.groups_F > 1
    for i in np.flatnonzero(joined_F[families.code_N]).tolist():
        members[int(families.code_N[i])].append(i)
    short = [m for m in members.values() if all(_words(rows[i]) < SHORT_WORDS for i in m)]
    if not short:
        return
    short.sort(key=lambda m: -len(m))
    shown = "; ".join(f"{len(m)}: {_head(rows[m[0]])} = {_head(rows[m[-1]])}" for m in short[:_SHOWN])
    text = (
        f"{grouped(len(short), 'families')} of short texts ({grouped(sum(map(len, short)), 'rows')}) "
        f"{agree(len(short), 'rest')} on similarity, where one frame with another fact in it looks like "
        f"a rewrite. Read the largest: {shown}"
    )
    evidence = {"families": len(short), "largest": [[rows[i].id for i in m[:5]] for m in short[:20]]}
    yield Finding("families.short_texts", "note", text, evidence=evidence)


def _words(row: Row) -> int:
    return sum(len(m.content.split()) for m in row.messages if m.role != "system")


def _head(row: Row) -> str:
    text = " ".join(f"{row.prompt[-1].content if row.prompt else ''} {row.target or ''}".split())
    return repr(text[:48])

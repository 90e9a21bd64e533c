"""Outputs, item by item: some side by side, all of them, and the items on which two arms disagree.

All of them stand folded on the page where they are few, else on pages of their own in `report.outputs/`. Those load
and run nothing, as the report; they are written before it, and it holds one hash over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from veritune.config.fields import BASELINE
from veritune.counting import grouped
from veritune.evaluate.means import FAILED
from veritune.records import Json, Score
from veritune.report.read import Records, Run, ScoreFile

T = TypeVar("T")
SAMPLES = 3
INLINE_BYTES = 400_000
"""Score files up to so many bytes in all go onto the page itself; the page has a goal of 2 MB and takes half of it."""
PAGE_BYTES = 500_000
"""Score lines that a page beside it holds, about; at least one item."""
LIST_ROWS = 2_000
"""Items that a page of a list holds."""
AT_ONCE = 4_096
"""Rows that are read from the data in one go, and outputs."""

Mark = tuple[str, bool]
"""A rule, and whether it held."""


Answer = tuple[Run, Score | None, Sequence[Mark]]
"""What a run answered: its score, None where it has none, and the rules that held or not."""


@dataclass(frozen=True)
class OutputItem:
    """One item with its prompt (chat messages), the expected answer, and each run's answer. `anchor` is its link target
    on a page, empty if nothing links to it.
    """

    id: str
    prompt: Sequence[Json]
    expected: str | None
    arms: Sequence[Answer]
    anchor: str = ""


# ---------------------------------------------------------------- a few, by a fixed rule


@dataclass(frozen=True)
class SampleView:
    """Sample outputs of one eval."""

    name: str
    zone: str
    shown: Sequence[OutputItem]
    sources: Sequence[str]


def samples(records: Records) -> list[SampleView]:
    """For every eval: the first item, by id, of each of the first families in the farthest zone that was asked."""
    views = []
    for name in records.study.evals:
        arms = _first_of_each_arm(records, name)
        zone, ids = _chosen_items(arms, name)
        if zone is None:
            continue
        items = list(_items(records, name, arms, ids))
        views.append(SampleView(name, zone, items, _sources(records, name, arms)))
    return views


def _first_of_each_arm(records: Records, name: str) -> list[Run]:
    first: dict[str, Run] = {}
    for run in records.runs:
        if run.scores.get(name):
            first.setdefault(run.condition, run)
    return list(first.values())


def _chosen_items(arms: Sequence[Run], name: str) -> tuple[str | None, list[str]]:
    """Zone and item ids by the fixed rule: the farthest zone asked, the first item of each family by id, SAMPLES."""
    first: dict[str | None, dict[str, str]] = {}
    for score in arms[0].scores[name] if arms else ():
        by_family, family = first.setdefault(score.zone, {}), score.family or score.item_id
        by_family[family] = min(score.item_id, by_family.get(family, score.item_id))
    zone = next((z for z in ("benchmark", "stranger", "sibling", "seen") if first.get(z)), None)
    return zone, sorted(first[zone].values())[:SAMPLES] if zone else []


def _items(records: Records, name: str, runs: Sequence[Run], ids: Sequence[str]) -> Iterator[OutputItem]:
    """These items with what each run answered. Texts are read as they are needed: few are held at a time."""
    order = [rule.name for rule in records.study.evals[name].rules]
    for at_once in _parts(ids, AT_ONCE):
        rows = records.benchmarks.get(name, records.rows).pick(set(at_once))
        for part in _parts(at_once, max(AT_ONCE // max(len(runs), 1), 1)):
            scored = [(run, run.scores[name].read(part)) for run in runs]
            for item_id in part:
                arms = [(run, score, list(_marks(score, order))) for run, of in scored for score in [of.get(item_id)]]
                yield _item(item_id, list(rows.get(item_id, {}).get("messages") or ()), arms)


def _item(item_id: str, messages: Sequence[Json], arms: Sequence[Answer]) -> OutputItem:
    ends_on_answer = bool(messages) and messages[-1].get("role") == "assistant"
    prompt = messages[:-1] if ends_on_answer else messages
    return OutputItem(item_id, prompt, messages[-1].get("content") if ends_on_answer else None, arms)


def _parts(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[at : at + size] for at in range(0, len(values), size))


def _marks(score: Score | None, order: Sequence[str]) -> Iterator[Mark]:
    """The rules in the study's order; the extracted answer for a matched output."""
    if score is None:
        return
    rules = score.rules or {}
    for rule in sorted(rules, key=lambda name: order.index(name) if name in order else len(order)):
        yield rule, rules[rule]
    if "extracted" in score.parts:
        answer = f"extracted {score.parts['extracted']!r}, expected {score.parts.get('expected')!r}"
        yield answer, score.value == 1


# ---------------------------------------------------------------- where two arms disagree


@dataclass(frozen=True)
class DifferingItem:
    """An item on which two arms have different scores, with the seeds on which each is higher."""

    item_id: str
    zone: str | None
    a_higher: Sequence[str]
    b_higher: Sequence[str]
    href: str = ""


@dataclass(frozen=True)
class ArmPair:
    """Two arms and the items on which they differ on any seed, out of those that both were asked on that seed.

    `rows` are on this page; `pages` are where they stand otherwise.
    """

    a: str
    b: str
    n: int
    asked: int
    rows: Sequence[DifferingItem] = ()
    pages: Sequence[str] = ()


def pairs(records: Records, name: str) -> Iterator[tuple[ArmPair, list[DifferingItem]]]:
    """The arms that claims on this eval compare, then every other arm against the baseline, with their differences."""
    study = records.study
    claimed = [(c.condition, c.against) for c in study.claims if c.condition and study.eval_of(c) == name]
    for a, b in dict.fromkeys([*claimed, *((arm, BASELINE) for arm in study.conditions)]):
        sides = list(_by_seed(records, name, a, b))
        if sides:
            found, asked = _differences(sides)
            yield ArmPair(a, b, len(found), asked), found


Side = tuple[str, ScoreFile, ScoreFile]
"""(seed, scores of A, scores of B)."""


def _by_seed(records: Records, name: str, a: str, b: str) -> Iterator[Side]:
    """Scores of both arms on one seed; an arm without seeds stands against each seed of the other."""
    runs = [run for run in records.runs if run.scores.get(name)]
    mine, other = ({run.seed: run for run in runs if run.condition == arm} for arm in (a, b))
    for seed in dict.fromkeys([*mine, *other]):
        one, two = (side.get(seed) or side.get(None) for side in (mine, other))
        if one is not None and two is not None:
            yield str(seed), one.scores[name], two.scores[name]


def _differences(sides: Sequence[Side]) -> tuple[list[DifferingItem], int]:
    """Items with different scores, in the order of the files, and how many both arms were asked. No score counts as
    the lowest, as in the means."""
    asked: dict[str, str | None] = {}
    higher: dict[str, tuple[list[str], list[str]]] = {}
    for seed, mine, other in sides:
        ours, theirs = _values(mine), _values(other)
        zones = dict(zip(mine.items.ids, mine.items.zones))
        for item_id, value in ours.items():
            if item_id not in theirs:
                continue
            asked.setdefault(item_id, zones[item_id])
            if value != theirs[item_id]:
                side = 0 if value > theirs[item_id] else 1
                higher.setdefault(item_id, ([], []))[side].append(seed)
    return [DifferingItem(item, zone, *higher[item]) for item, zone in asked.items() if item in higher], len(asked)


def _values(scores: ScoreFile) -> dict[str, float]:
    """The first score of each item, in the order of the file."""
    values = {item_id: scores.values[number] for item_id, number in scores.items.places.items()}
    return {item_id: FAILED if math.isnan(value) else value for item_id, value in values.items()}


# ---------------------------------------------------------------- all of them


@dataclass(frozen=True)
class AllOutputs:
    """Every item of one eval: on the page itself (`items`), or on pages beside it (`first` is their table of
    contents)."""

    name: str
    n: int
    runs: Sequence[Run]
    pairs: Sequence[ArmPair]
    sources: Sequence[str]
    items: Sequence[OutputItem] = ()
    first: str | None = None


@dataclass(frozen=True)
class OutputPage:
    """A page beside the report: items, a list of differences (`pair`), or the `contents`, which link the pages of items
    by name and title. `home` is the contents; `before` and `after` are the neighbouring pages of the same kind.
    """

    name: str
    eval: str
    title: str
    home: str | None = None
    before: str | None = None
    after: str | None = None
    items: Sequence[OutputItem] = ()
    pair: ArmPair | None = None
    contents: Sequence[tuple[str, str]] = ()


def fits_inline(records: Records) -> bool:
    """Whether all outputs fit on the report page itself."""
    files = [scores.path for run in records.runs for scores in run.scores.values() if scores]
    return sum(path.stat().st_size for path in files) <= INLINE_BYTES


def inline(records: Records) -> list[AllOutputs]:
    """Every item of every eval, to be shown on the report page itself."""
    found = []
    for number, name in enumerate(records.study.evals):
        runs, ids = _asked(records, name)
        if not runs:
            continue
        anchors = {item_id: f"item-{number}-{place}" for place, item_id in enumerate(ids)}
        listed = [
            replace(pair, rows=[replace(row, href=f"#{anchors[row.item_id]}") for row in rows])
            for pair, rows in pairs(records, name)
        ]
        items = [replace(item, anchor=anchors[item.id]) for item in _items(records, name, runs, ids)]
        found.append(AllOutputs(name, len(ids), runs, listed, _sources(records, name, runs), items))
    return found


def _asked(records: Records, name: str) -> tuple[list[Run], list[str]]:
    """The runs with scores on an eval, and the items that any of them was asked."""
    runs = [run for run in records.runs if run.scores.get(name)]
    return runs, list(dict.fromkeys(item_id for run in runs for item_id in run.scores[name].items.ids))


def _sources(records: Records, name: str, runs: Sequence[Run]) -> list[str]:
    return [run.path(f"scores/{name}.jsonl") for run in runs] + [records.items_path(name)]


class Layout:
    """Which item is on which page beside the report, so that lists can link to it."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.views: list[AllOutputs] = []

    def pages(self) -> Iterator[OutputPage]:
        """Each page to write; texts are read as needed. `views` is complete after all pages were taken."""
        for number, name in enumerate(self.records.study.evals):
            runs, ids = _asked(self.records, name)
            if runs:
                yield from self._eval(f"{number + 1:02d}-{name}", name, runs, ids)

    def _eval(self, stem: str, name: str, runs: Sequence[Run], ids: Sequence[str]) -> Iterator[OutputPage]:
        size = sum(run.scores[name].path.stat().st_size for run in runs)
        each = max(int(PAGE_BYTES * len(ids) / size), 1)
        cut = list(_parts(ids, each))
        names = [f"{stem}-{place:05d}.html" for place in range(1, len(cut) + 1)]
        place_of = {item_id: f"{names[n]}#i{k}" for n, part in enumerate(cut) for k, item_id in enumerate(part)}
        contents = f"{stem}-contents.html"
        listed: list[ArmPair] = []
        for number, (pair, rows) in enumerate(pairs(self.records, name), start=1):
            parts = list(_parts(rows, LIST_ROWS))
            lists = [f"{stem}-differ-{number:03d}-{place:04d}.html" for place in range(1, len(parts) + 1)]
            listed.append(replace(pair, pages=lists))
            for (before, page, after), here in zip(_with_neighbours(lists), parts):
                shown = replace(pair, rows=[replace(row, href=place_of[row.item_id]) for row in here])
                yield OutputPage(page, name, f"{pair.a} against {pair.b}", contents, before, after, pair=shown)
        links = [(page, f"{part[0]} to {part[-1]}") for page, part in zip(names, cut)]
        yield OutputPage(contents, name, f"All {grouped(len(ids), 'items')}", contents=links)
        items = _items(self.records, name, runs, ids)
        for (before, page, after), part in zip(_with_neighbours(names), cut):
            shown_items = [replace(next(items), anchor=f"i{k}") for k in range(len(part))]
            yield OutputPage(page, name, f"{part[0]} to {part[-1]}", contents, before, after, shown_items)
        sources = _sources(self.records, name, runs)
        self.views.append(AllOutputs(name, len(ids), runs, listed, sources, first=contents))


def _with_neighbours(names: Sequence[str]) -> Iterator[tuple[str | None, str, str | None]]:
    """Each name with the one before and the one after it."""
    for at, name in enumerate(names):
        yield names[at - 1] if at else None, name, names[at + 1] if at + 1 < len(names) else None

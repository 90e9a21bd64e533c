"""The results index for the screen, 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from veritune.counting import many
from veritune.records import Comment, ResultVerdict
from veritune.results.index import IndexChange, OpenTask, Result, ResultsIndex

WIDTH = 80
NO_CAVEAT = "no undeclared difference was recorded between the compared runs"
MARK = {"supported": "+", "refuted": "x", "inconclusive": "~", "untested": "?"}


def change_text(change: IndexChange) -> str:
    """What a command recorded, and the head to keep elsewhere, as text."""
    head = (
        (f"head {change.head[:16]} (keep this hash elsewhere: --head checks the index against it)")
        if change.head
        else ""
    )
    return "\n".join([*(_wrapped(sentence) for sentence in change.sentences), head]).rstrip()


def text_of(chosen: ResultsIndex | Result) -> str:
    """The whole index, or one result in full, as text."""
    return one_text(chosen) if isinstance(chosen, Result) else index_text(chosen)


def index_text(index: ResultsIndex) -> str:
    """Every result with its verdicts and present state, then mistakes and open tasks."""
    lines = [_wrapped(summary(index)), *_head_lines(index)]
    for result in index.results:
        lines += ["", *_result_lines(result)]
    for logged in index.mistakes:
        m = logged.mistake
        lines += ["", _wrapped(f"{m.id}  mistake{_about(m.on)}, {m.by}, {m.time[:10]}: {m.text}", "    ")]
        lines += [_wrapped(f"so that it does not happen again: {m.fix}", "    ", "    ")] if m.fix else []
        lines += list(_comment_lines(logged.comments))
    for task in index.tasks:
        lines += ["", *_task_lines(task)]
    return "\n".join(lines)


def summary(index: ResultsIndex) -> str:
    """One line with the number of results, and how many of them are no longer valid."""
    counts = [many(len(index.results), "results")]
    over = sum(result.superseded_by is not None for result in index.results)
    counts += [f"{over} superseded"] if over else []
    for standing in ("stale", "broken", "missing", "resealed"):
        n = sum(result.now.standing == standing for result in index.results)
        counts += [f"{n} {standing}"] if n else []
    counts.append(many(len(index.mistakes), "mistakes"))
    counts.append(f"{len(index.open_tasks)} of {len(index.tasks)} tasks open")
    return f"{index.folder}: " + ", ".join(counts)


def _head_lines(index: ResultsIndex) -> list[str]:
    if index.head is None:
        return []
    n = many(index.entries, "entries")
    return [_wrapped(f"{n}, chained and whole; head {index.head[:16]}")]


def _result_lines(result: Result) -> Iterator[str]:
    added = result.added
    yield _wrapped(f"{result.id}  {added.source.study}: {added.question}", "    ")
    for verdict in added.verdicts:
        yield _wrapped(f"{MARK[verdict.status]} {verdict.claim}: {verdict_words(verdict)}", "      ", "    ")
    yield from (_wrapped(line, "    ", "    ") for line in standing_lines(result))
    yield _wrapped(f"added {added.time[:10]} by {added.by}; study {result.source.folder}", "    ", "    ")
    caveats = added.caveats
    if caveats:
        yield _wrapped(f"standing caveats ({len(caveats)}):", "    ", "    ")
        yield from (_wrapped(f"- {caveat.sentence}", "      ", "    ") for caveat in caveats)
    yield from _comment_lines(result.comments)


def verdict_words(verdict: ResultVerdict) -> str:
    """A verdict in words: `supported, confidence low, exploratory`."""
    grade = f"confidence {verdict.grade}" if verdict.grade else "no grade"
    return f"{verdict.status}, {grade}" + (", exploratory" if verdict.exploratory else "")


def standing_lines(result: Result) -> list[str]:
    """What became of a result: superseded, stale, broken, affected by a mistake; and the state of its study."""
    lines = []
    if result.superseded_by is not None:
        lines.append(f"superseded by {result.superseded_by}: {result.why_superseded}")
    lines += [f"supersedes {', '.join(result.supersedes)}"] if result.supersedes else []
    lines += [f"mistake {m.id}: {m.text}" for m in result.mistakes]
    word = result.now.standing.upper() if result.now.standing in ("stale", "broken", "missing") else ""
    lines.append(f"{word}: {result.now.sentence}" if word else result.now.sentence)
    if result.source.missing:
        lines.append(f"not on disk when it was added: {', '.join(result.source.missing)}")
    return lines


def _comment_lines(comments: tuple[Comment, ...]) -> Iterator[str]:
    for comment in comments:
        yield _wrapped(f"{comment.id} {comment.by}, {comment.time[:10]}: {comment.text}", "      ", "    ")


def _task_lines(found: OpenTask) -> Iterator[str]:
    task, closed = found.task, found.closed
    state = "open task" if closed is None else "task, closed"
    yield _wrapped(f"{task.id}  {state}{_about(task.on)}: {task.text}", "    ")
    if closed is not None:
        yield _wrapped(f"closed {closed.time[:10]} by {closed.by}: {closed.text}", "    ", "    ")
        return
    for name, text in (("why", task.why), ("done when", task.done_when), ("if it fails", task.on_failure)):
        yield _wrapped(f"{name}: {text}", "      ", "    ")
    yield from _comment_lines(found.comments)


def _about(on: str | None) -> str:
    return f" on {on}" if on else ""


def one_text(result: Result) -> str:
    """One result in full: the verdicts' sentences, sources and timeline."""
    source = result.source
    lines = [*_result_lines(result)]
    lines += [] if result.added.caveats else [f"    {NO_CAVEAT}"]
    lines += ["", "sentences"]
    lines += [_wrapped(f"- {v.claim}: {v.sentence}", "    ", "  ") for v in result.added.verdicts]
    lines += ["", "sources"]
    lines += [f"  {label:<9} {value}" for label, value in source_facts(result)]
    lines += ["", f"timeline of {source.study} when it was added ({len(result.added.events)} events)"]
    lines += [_wrapped(f"{e.time} {e.event}  {e.facts}", "    ", "  ") for e in result.added.events]
    return "\n".join(lines)


def source_facts(result: Result) -> list[tuple[str, str]]:
    """(name, value) of every hash that ties the result to its study."""
    source = result.source
    return [
        ("study", source.folder),
        ("contract", source.contract or "not frozen"),
        ("seal", source.seal),
        ("verdict", source.verdict_sha256),
        ("report", source.report_sha256 or "not drawn"),
        ("timeline", source.timeline),
    ]


def _wrapped(text: str, later: str = "  ", first: str = "") -> str:
    """A text as lines of at most WIDTH columns; its own newlines are kept out of it."""
    flat = " ".join(text.split())
    return textwrap.fill(
        flat, WIDTH, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )

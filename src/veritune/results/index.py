"""What all entries of an index come to, and the three things one can do: add results, say something, read."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from veritune.counting import grouped, many
from veritune.errors import InputError
from veritune.files import now
from veritune.records import (
    Comment,
    JsonValue,
    Mistake,
    ResultAdded,
    ResultEntry,
    ResultMoved,
    ResultSource,
    ResultSuperseded,
    Task,
    TaskClosed,
    to_json,
)
from veritune.results.ledger import ResultsLedger, next_id
from veritune.results.study import StudyFacts, StudyNow, read_study, study_now

E = TypeVar("E", bound=ResultEntry)
LONGEST = 4_000
"""Characters of a text that is written into the index by hand."""

As = Literal["comment", "mistake", "task", "done"]


@dataclass(frozen=True)
class Result:
    """One result in its present state: `source` is where it was last found, `now` the state of its study there."""

    added: ResultAdded
    source: ResultSource
    now: StudyNow
    superseded_by: str | None = None
    why_superseded: str = ""
    supersedes: tuple[str, ...] = ()
    comments: tuple[Comment, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    tasks: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The result's id, such as `R3`."""
        return self.added.id

    @property
    def stands(self) -> bool:
        """Whether its verdicts may be quoted: the result is neither superseded nor stale nor broken."""
        return self.superseded_by is None and self.now.standing not in ("stale", "broken")


@dataclass(frozen=True)
class OpenTask:
    """A task of the runbook; `closed` is None while it is open."""

    task: Task
    closed: TaskClosed | None
    comments: tuple[Comment, ...] = ()


@dataclass(frozen=True)
class LoggedMistake:
    """A mistake with the comments on it."""

    mistake: Mistake
    comments: tuple[Comment, ...] = ()


@dataclass(frozen=True)
class ResultsIndex:
    """A whole index. `head` is the hash of the newest entry: a copy kept elsewhere shows whether the ledger was
    rewritten.
    """

    folder: str
    entries: int
    head: str | None
    results: tuple[Result, ...]
    mistakes: tuple[LoggedMistake, ...]
    tasks: tuple[OpenTask, ...]

    @property
    def open_tasks(self) -> tuple[OpenTask, ...]:
        """The tasks that are not closed."""
        return tuple(task for task in self.tasks if task.closed is None)


@dataclass(frozen=True)
class IndexChange:
    """What a command recorded: the ids it made or found, a sentence for each, and the index's new head."""

    ids: tuple[str, ...]
    sentences: tuple[str, ...]
    head: str | None


@dataclass(frozen=True)
class Said:
    """A note written by a person. `on` is the id it is about; `why`, `done_when`, `on_failure` belong to a task; for a
    mistake, `on_failure` is what was done to prevent it.
    """

    text: str
    kind: As = "comment"
    on: str | None = None
    why: str = ""
    done_when: str = ""
    on_failure: str = ""


# ---------------------------------------------------------------- reading


def read_index(folder: Path, *, head: str | None = None, rehash: bool = True) -> ResultsIndex:
    """The index in a folder, with the present state of every study. Raises as `ResultsLedger.read` does."""
    ledger = ResultsLedger(folder)
    entries, newest = ledger.read(head)
    tasks = [_task(entries, task) for task in _of(entries, Task)]
    results = [_result(entries, added, folder, rehash) for added in _of(entries, ResultAdded)]
    mistakes = [LoggedMistake(m, _comments(entries, m.id)) for m in _of(entries, Mistake)]
    return ResultsIndex(str(folder), len(entries), newest, tuple(results), tuple(mistakes), tuple(tasks))


def picked(index: ResultsIndex, name: str | None) -> ResultsIndex | Result:
    """The whole index, or the result with this id. Raises InputError for an unknown id."""
    if name is None:
        return index
    found = next((result for result in index.results if result.id == name), None)
    if found is None:
        ids = ", ".join(result.id for result in index.results) or "none"
        raise InputError(f"expected the id of a result, found {name!r}.", fix=f"Results: {ids}.")
    return found


def _of(entries: Sequence[ResultEntry], kind: type[E]) -> list[E]:
    return [entry for entry in entries if isinstance(entry, kind)]


def _comments(entries: Sequence[ResultEntry], on: str) -> tuple[Comment, ...]:
    return tuple(comment for comment in _of(entries, Comment) if comment.on == on)


def _result(entries: Sequence[ResultEntry], added: ResultAdded, folder: Path, rehash: bool) -> Result:
    source = _source_of(entries, added)
    over = next((e for e in _of(entries, ResultSuperseded) if e.on == added.id), None)
    return Result(
        added=added,
        source=source,
        now=study_now(added, source, folder, rehash=rehash),
        superseded_by=over.new if over else None,
        why_superseded=over.reason if over else "",
        supersedes=tuple(e.on for e in _of(entries, ResultSuperseded) if e.new == added.id),
        comments=_comments(entries, added.id),
        mistakes=tuple(m for m in _of(entries, Mistake) if m.on == added.id),
        tasks=tuple(t.id for t in _of(entries, Task) if t.on == added.id),
    )


def _source_of(entries: Sequence[ResultEntry], added: ResultAdded) -> ResultSource:
    """Where the result was last found."""
    moved = [entry.source for entry in _of(entries, ResultMoved) if entry.on == added.id]
    return moved[-1] if moved else added.source


def _task(entries: Sequence[ResultEntry], task: Task) -> OpenTask:
    closed = next((entry for entry in _of(entries, TaskClosed) if entry.on == task.id), None)
    return OpenTask(task, closed, _comments(entries, task.id))


# ---------------------------------------------------------------- adding results


def add_results(
    folder: Path, studies: Sequence[Path], *, supersedes: str | None = None, reason: str = "", by: str = ""
) -> IndexChange:
    """Add finished studies; a study that is in the index already is not added twice. With `supersedes`, the one study
    replaces that result, for a `reason`.

    Every study is checked before the first is added. Raises InputError, or StaleError for a study that is not as it was
    sealed.
    """
    if supersedes is not None and len(studies) != 1:
        raise InputError(
            f"--supersedes takes one study, found {len(studies)}.",
            fix="Add the other studies by a command of their own.",
        )
    if (supersedes is not None) != bool(reason.strip()):
        raise InputError(
            "--supersedes and --reason must be given together.", fix='Give both: --supersedes R1 --reason "..."'
        )
    author, ledger = _author(by), ResultsLedger(folder)
    found = [read_study(study, folder) for study in studies]
    ids, sentences = [], []
    with ledger.alone() as before:
        entries = list(before)
        if supersedes is not None:
            _known(entries, supersedes, ResultAdded)
        for facts in found:
            made, sentence = _add_one(ledger, entries, facts, author)
            ids.append(made)
            sentences.append(sentence)
        if supersedes is not None:
            sentences.append(_supersede(ledger, entries, (supersedes, ids[0]), (reason.strip(), author)))
    return IndexChange(tuple(ids), tuple(sentences), ledger.read()[1])


def _add_one(ledger: ResultsLedger, entries: list[ResultEntry], facts: StudyFacts, by: str) -> tuple[str, str]:
    there = next((entry for entry in _of(entries, ResultAdded) if entry.key == facts.key), None)
    if there is None:
        made = ResultAdded(
            next_id(entries, "result"), now(), by, facts.key, facts.question, facts.verdicts, facts.source,
            facts.caveats, facts.events,
        )  # fmt: skip
        _record(ledger, entries, made)
        verdicts = many(len(facts.verdicts), "verdicts")
        return made.id, f"{made.id} added: {facts.source.study}, {verdicts}{_hint(entries, made)}"
    if _source_of(entries, there) == facts.source:
        return there.id, f"{there.id} is already in the index: {facts.source.study}"
    _record(ledger, entries, ResultMoved(there.id, now(), by, facts.source))
    return there.id, f"{there.id} is already in the index; its present folder and seal were recorded"


def _hint(entries: Sequence[ResultEntry], made: ResultAdded) -> str:
    """That another result came from the same folder: most likely the new one supersedes it."""
    over = {entry.on for entry in _of(entries, ResultSuperseded)}
    same = [
        entry.id
        for entry in _of(entries, ResultAdded)
        if entry.id != made.id and entry.id not in over and _source_of(entries, entry).folder == made.source.folder
    ]
    return f"; {', '.join(same)} came from the same folder: --supersedes {same[-1]} --reason ..." if same else ""


def _supersede(ledger: ResultsLedger, entries: list[ResultEntry], pair: tuple[str, str], said: tuple[str, str]) -> str:
    (old, new), (reason, by) = pair, said
    links = {entry.on: entry.new for entry in _of(entries, ResultSuperseded)}
    if links.get(old) == new:
        return f"{old} is already superseded by {new}"
    if old in links:
        raise InputError(f"{old} is already superseded by {links[old]}.", fix=f"Supersede {links[old]}.")
    step: str | None = new
    while step is not None:
        if step == old:
            raise InputError(
                f"{new} cannot supersede {old}: {old} is newer, or is the same result.",
                fix="Name an older result.",
            )
        step = links.get(step)
    _record(ledger, entries, ResultSuperseded(old, new, now(), by, _plain(reason, "--reason")))
    return f"{old} is superseded by {new}"


def _record(ledger: ResultsLedger, entries: list[ResultEntry], entry: ResultEntry) -> None:
    ledger.append(entry)
    entries.append(entry)


# ---------------------------------------------------------------- saying something


def say(folder: Path, said: Said, *, by: str = "") -> IndexChange:
    """Record a comment, a mistake or a task, or that a task is done. The same note by one author is recorded once.

    Raises InputError for an id that is not there, an empty text, or a field that does not belong to the kind.
    """
    author, ledger = _author(by), ResultsLedger(folder)
    said = replace(said, text=_plain(said.text, "the text"))
    _refuse_fields(said)
    if not ledger.exists():
        ledger.read()
    with ledger.alone() as before:
        entries = list(before)
        entry = _entry(entries, said, author)
        there = next((e for e in entries if _same(e, entry)), None)
        if there is None:
            _refuse_closed(entries, entry)
            _record(ledger, entries, entry)
    made = there or entry
    name = made.on if isinstance(made, TaskClosed) else getattr(made, "id", "")
    what = "closed" if isinstance(made, TaskClosed) else f"{made.kind} recorded"
    return IndexChange(
        (str(name),), (f"{name}: {what}" if there is None else f"{name} is already recorded",), ledger.read()[1]
    )


def _entry(entries: Sequence[ResultEntry], said: Said, by: str) -> ResultEntry:
    if said.kind == "done":
        if said.on is None:
            raise InputError(
                "--as done closes a task, but --on does not name one.", fix="Name the task: --as done --on T1"
            )
        return TaskClosed(_known(entries, said.on, Task), now(), by, said.text)
    identity = next_id(entries, said.kind)
    if said.kind == "comment":
        if said.on is None:
            raise InputError("a comment needs the id of what it is about.", fix="--on R1")
        return Comment(identity, _known(entries, said.on, ResultAdded, Mistake, Task), now(), by, said.text)
    on = None if said.on is None else _known(entries, said.on, ResultAdded)
    if said.kind == "mistake":
        return Mistake(identity, on, now(), by, said.text, _plain(said.on_failure, "--on-failure", empty=True))
    why, done_when = _plain(said.why, "--reason"), _plain(said.done_when, "--done-when")
    return Task(identity, on, now(), by, said.text, why, done_when, _plain(said.on_failure, "--on-failure"))


def _refuse_fields(said: Said) -> None:
    """Raises InputError for a field that the kind does not have: it would be lost unsaid."""
    allowed = {"task": ("why", "done_when", "on_failure"), "mistake": ("on_failure",)}.get(said.kind, ())
    wrong = [name for name in ("why", "done_when", "on_failure") if getattr(said, name) and name not in allowed]
    if wrong:
        option = {"why": "reason"}.get(wrong[0], wrong[0].replace("_", "-"))
        raise InputError(f"--{option} cannot be used with --as {said.kind}.", fix="Use it with --as task.")


def _refuse_closed(entries: Sequence[ResultEntry], entry: ResultEntry) -> None:
    if isinstance(entry, TaskClosed) and any(e.on == entry.on for e in _of(entries, TaskClosed)):
        raise InputError(f"{entry.on} is closed already.", fix=f"Comment on it instead: --on {entry.on}")


def _known(entries: Sequence[ResultEntry], name: str, *kinds: type[ResultEntry]) -> str:
    """The id, where an entry of one of these kinds has it. Raises InputError."""
    ids = [str(getattr(entry, "id", "")) for entry in entries if isinstance(entry, kinds)]
    if name not in ids:
        listed = ", ".join(ids[-8:]) or "none"
        raise InputError(f"expected the id of an entry of this index, found {name!r}.", fix=f"Entries: {listed}.")
    return name


def _same(a: ResultEntry, b: ResultEntry) -> bool:
    """Whether two entries say the same, time and number aside: a command that was killed and given again."""
    return type(a) is type(b) and _said(a) == _said(b)


def _said(entry: ResultEntry) -> dict[str, JsonValue]:
    return {key: value for key, value in to_json(entry).items() if key not in ("id", "time")}


def _plain(text: str, what: str, *, empty: bool = False) -> str:
    """A text given by hand, trimmed. Raises InputError where it is empty or longer than LONGEST."""
    text = text.strip()
    if not text and not empty:
        raise InputError(f"{what} is empty.", fix=f"Write {what} in a sentence.")
    if len(text) > LONGEST:
        raise InputError(
            f"{what} has {grouped(len(text), 'characters')}, at most {LONGEST:,}.",
            fix="Shorten it, and link to the long text.",
        )
    return text


def _author(by: str) -> str:
    """Who writes: as given, else the login name. Raises InputError where neither is known."""
    try:
        name = by.strip() or getpass.getuser()
    except (OSError, KeyError, ImportError):
        name = ""
    if not name or len(name) > 200:
        raise InputError("--by: expected the name of the author, of at most 200 characters.", fix="--by NAME")
    return name

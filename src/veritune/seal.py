"""What makes a study folder believable: the timeline's record of every finished run, the seal, and their check.

Three records speak of the same files, and each is held against the others:

    events.jsonl   `finished`: hash of each file of a run when its cell ended; `marked`: hash of a summary rewritten by
                   an amendment; `scored`: hash of an eval's scores when they were written; `sealed`: hash of the
                   sealed list and of every run's files; `unsealed`: a command is about to change records
    seal.json      SHA-256 of every file of the study, and where the timeline stood, written when a run ends
    seal.sig       the seal signed with a key, where one was given (`veritune verify --sign`)

A run is trusted because the timeline knows its files by hash, and for no other reason: with the seal deleted, edited
scores are refused all the same. `release/` and plans grow after the seal; their records are known to the timeline by
`evidence`, `gated` and `planned` events. The data file is held against the contract's hash of it.

Somebody who rewrites files, timeline and seal together is found only by what they cannot reach: the seal's hash kept
elsewhere (`verify --seal HASH`), or a signature (`verify --public-key`). docs/security.md says how to keep either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from veritune import contract
from veritune.counting import many
from veritune.errors import FormatError, InputError, StaleError, VerituneError
from veritune.ledger import Entry, Ledger
from veritune.records import (
    FORMAT_VERSION,
    Finding,
    JsonLike,
    JsonValue,
    RunSummary,
)
from veritune.store import (
    OUTPUT_PAGE,
    Store,
    hash_of,
    now,
    read_json,
    remove,
    sha256_file,
    sha256_text,
    write_json,
    write_text,
)

FILES = (
    *("study.yaml", "contract.lock.json", "selection.json", "shapes.json"),
    *("verdict.json", "report.html"),
)
FOLDERS = ("data", "audit", "runs", "probes", "figures", "report.outputs", "release")
DRAWN = ("report.html", "report.outputs/", "figures/")
"""What is drawn from the records and may be drawn again."""
TIMELINE = "events.jsonl"
SIGNATURE = "seal.sig"
SUMMARY = "summary.json"
GATES = "release/gates.jsonl"
RECORDED = ("release/", "plans/", "plan.json")
"""What may grow or change after a seal: its files are known to the timeline by `evidence` and `planned` events."""
MAY_GO = "checkpoints/"
"""What a user may delete from a finished run to save space; it is named by `verify` and stops no further run."""

Digest = Callable[[Path], str]


# ---------------------------------------------------------------- the timeline's record of runs


@dataclass
class _Run:
    """What the timeline knows of one run: its files when it finished, its summaries, its files when last sealed."""

    files: dict[str, str] = field(default_factory=dict)
    summaries: set[str] = field(default_factory=set)
    sealed: str | None = None


def _known_runs(events: Iterable[Entry]) -> dict[str, _Run]:
    runs: dict[str, _Run] = {}
    for event in events:
        kind = event["event"]
        if kind == "finished":
            files = _hashes(event.get("files"))
            runs[str(event.get("run"))] = _Run(files, {files.get(SUMMARY, "")})
        elif kind in ("marked", "sealed"):
            for run, digest in _hashes(event.get("runs")).items():
                known = runs.setdefault(run, _Run())
                known.sealed = digest if kind == "sealed" else None
                known.summaries |= set() if kind == "sealed" else {digest}
    return runs


def _hashes(value: JsonLike) -> dict[str, str]:
    """A mapping of names to hashes as it was recorded; empty where an event holds none."""
    return {str(k): v for k, v in value.items() if isinstance(v, str)} if isinstance(value, dict) else {}


def run_files(folder: Path) -> dict[str, Path]:
    """Every file of a run's folder by its relative name; temporary files, hidden files and links are left out."""
    found = {p.relative_to(folder): p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()}
    return {n.as_posix(): p for n, p in found.items() if n.parts[0] != "work" and not n.as_posix().count("/.")}


def finish_run(store: Store, run_id: str, summary: RunSummary) -> None:
    """Record the hashes of a run's files in the timeline, then write its summary, which marks the run as done."""
    text = summary.text()
    files = {name: sha256_file(path) for name, path in run_files(store.run(run_id)).items() if name != SUMMARY}
    store.log("finished", run=run_id, files={**files, SUMMARY: sha256_text(text)})
    write_text(store.run(run_id) / SUMMARY, text)


def mark_summaries(store: Store, summaries: Mapping[str, RunSummary]) -> None:
    """Rewrite the summaries of finished runs (given by run id), after recording their new hashes in the timeline."""
    texts = {run_id: summary.text() for run_id, summary in summaries.items()}
    if texts:
        store.log("marked", runs={run_id: sha256_text(text) for run_id, text in texts.items()})
    for run_id, text in texts.items():
        write_text(store.run(run_id) / SUMMARY, text)


def _run_problems(
    store: Store, run_id: str, known: _Run | None, digest: Digest, *, whole: bool = False
) -> Iterator[str]:
    """What makes a finished run unbelievable, a sentence each. `whole`: no seal lists its files, so hold all of them
    against the hash that the timeline's `sealed` event keeps."""
    folder = store.run(run_id)
    if known is None:
        yield f"runs/{run_id} holds a summary, but the timeline does not record that this run finished"
        return
    for name, expected in sorted(known.files.items()):
        path = folder / name
        if not path.exists():
            if not name.startswith(MAY_GO):
                yield f"runs/{run_id}/{name} is missing; the timeline records it as SHA-256 {expected[:12]}"
            continue
        found = digest(path)
        right = found in known.summaries if name == SUMMARY else found == expected
        if path.is_symlink() or not right:
            yield f"runs/{run_id}/{name} was edited: expected SHA-256 {expected[:12]}, found {found[:12]}"
    if whole and known.sealed is not None:
        found = hash_of({name: digest(path) for name, path in run_files(folder).items()})
        if found != known.sealed:
            yield f"runs/{run_id} was edited: expected SHA-256 {known.sealed[:12]} over its files, found {found[:12]}"


def _finished(store: Store) -> list[str]:
    return sorted(path.parent.name for path in store.runs.glob(f"*/{SUMMARY}"))


def refuse_edited_run(store: Store, run_id: str) -> None:
    """Raises StaleError if a finished run's files differ from the hashes in the timeline."""
    known = _known_runs(store.events()).get(run_id)
    for problem in _run_problems(store, run_id, known, sha256_file):
        raise _edited(store, problem, run_id)


def _edited(store: Store, problem: str, run_id: str) -> StaleError:
    return StaleError(
        f"{store.root}: {problem}.",
        fix=f"Restore the file from a copy, or delete runs/{run_id} to train the run again.",
    )


def refuse_edited_scores(store: Store, path: Path, input_hash: str) -> None:
    """Raises StaleError if scores that are about to be used differ from those that the timeline recorded."""
    name, found = store.relative(path), sha256_file(path)
    made = [
        e for e in store.events() if e["event"] == "scored" and (e.get("file"), e.get("inputs")) == (name, input_hash)
    ]
    expected = str(made[-1].get("sha256")) if made else None
    if found != expected:
        said = f"SHA-256 {expected[:12]}" if expected else "scores that the timeline records"
        raise StaleError(
            f"{path} was edited: expected {said}, found {found[:12]}.",
            fix=f"Restore the file from a copy, or delete {path.parent} to score the run again.",
        )


# ---------------------------------------------------------------- sealing


def _files(root: Path, names: Iterable[str] = FILES, folders: Iterable[str] = FOLDERS) -> list[Path]:
    """Every file that belongs to the study; other files in its folder are nobody's business here."""
    inside = (p for folder in folders for p in (root / folder).rglob("*"))
    found = (p for p in (*(root / name for name in names), *inside) if p.is_file() or p.is_symlink())
    return sorted(p for p in found if not p.name.endswith(".tmp"))


def seal(store: Store) -> str:
    """Seal the folder in its present state, unless it is sealed in this state already; returns the hash to keep.

    The file comes first and the event after it: a seal that the timeline does not record is made again by the next run.
    """
    digest = cache(sha256_file)  # a file of a run stands in two lists
    files = {store.relative(p): digest(p) for p in _files(store.root) if not p.is_symlink()}
    events = store.events()
    timeline = {"lines": len(events), "head": events[-1]["hash"] if events else None}
    listed, recorded = _listed({"files": files, "timeline": timeline}), False
    if events and events[-1]["event"] == "sealed":
        before = {"lines": len(events) - 1, "head": events[-1]["previous"]}
        if events[-1].get("files") == _listed({"files": files, "timeline": before}):
            timeline, listed, recorded = before, events[-1]["files"], True
    if not (recorded and _present(store, files, timeline)):
        remove(store.root / SIGNATURE)
        body = {"format": FORMAT_VERSION, "sealed": now(), "files": files, "timeline": timeline}
        write_json(_seal_file(store), {**body, "hash": hash_of(body)})
    if not recorded:
        store.log("sealed", files=listed, count=len(files), runs=_run_digests(store, digest))
    return listed


def _seal_file(store: Store) -> Path:
    return store.root / "seal.json"


def _present(store: Store, files: Mapping[str, str], timeline: Mapping[str, JsonLike]) -> bool:
    """Whether seal.json is there, whole, and says this."""
    if not _seal_file(store).exists():
        return False
    record = read_json(_seal_file(store))
    return _is_whole(record) and record.get("files") == files and record.get("timeline") == timeline


def _is_whole(record: Mapping[str, JsonLike]) -> bool:
    try:
        return hash_of({k: v for k, v in record.items() if k != "hash"}) == record.get("hash")
    except (ValueError, TypeError, RecursionError):
        return False


def _run_digests(store: Store, digest: Digest) -> dict[str, str]:
    """For every run the hash of its files' hashes."""
    folders = sorted(path for path in store.runs.glob("*") if path.is_dir())
    return {p.name: hash_of({name: digest(file) for name, file in run_files(p).items()}) for p in folders}


def _listed(record: Mapping[str, Any]) -> str:
    """Hash of what a seal lists and of where the timeline stood, without what is drawn from the records.

    Empty where the record holds what no seal of ours holds: it is then no seal that anybody recorded or kept.
    """
    try:
        files = {name: digest for name, digest in record["files"].items() if not name.startswith(DRAWN)}
        return hash_of({"files": files, "timeline": record.get("timeline")})
    except (AttributeError, KeyError, ValueError, TypeError, RecursionError):
        return ""


def _state(events: Iterable[Entry]) -> Entry | None:
    """The last `sealed` or `unsealed` event."""
    found = [event for event in events if event["event"] in ("sealed", "unsealed")]
    return found[-1] if found else None


def is_sealed(store: Store) -> bool:
    """Whether the timeline says that the study is sealed at present."""
    state = store.timeline.newest("sealed", "unsealed")
    return state is not None and state["event"] == "sealed"


def break_seal(store: Store) -> None:
    """Remove the seal before sealed records change, so that a command that is killed midway can be run again.

    The timeline records which command took it off: a seal that is gone without that was removed by somebody else.
    """
    if is_sealed(store):
        store.log("unsealed", by=store.command)
    for name in ("seal.json", SIGNATURE):
        remove(store.root / name)


@contextmanager
def resealing(store: Store, command: str, remade: tuple[str, ...] = (), *, keep: bool = False) -> Iterator[None]:
    """Seal the study again when the block ends, if it was sealed before, or if a killed `command` had unsealed it.

    With `keep` a seal that the block did not take off stays as it is, and so does its signature.

    Raises StaleError before the block where a sealed record was edited or is missing: else this command would seal the
    edit as its own. Files under `remade` are those that the block writes again, beside what is drawn from the records.
    """
    state = _state(store.events())
    if state is not None and state["event"] == "sealed":
        _refuse_findings(store, ("study.yaml", *DRAWN, *remade))
    store.command = command
    yield
    mine = state is not None and (state["event"] == "sealed" or state.get("by") == command)
    if mine and not (keep and is_sealed(store)):
        seal(store)


@contextmanager
def redrawing(store: Store) -> Iterator[None]:
    """Seal a sealed study again if the block changed its report or figures.

    A drawn file that was edited is removed first, so that the block draws it and does not seal the edit. Where anything
    else is not as it was sealed, a file that somebody put among the figures too, the seal stays as it is.
    """
    try:
        sealed, foreign = sealed_files(store) if is_sealed(store) else None, False
    except (VerituneError, OSError):  # a report of a damaged study must still say what is there
        sealed, foreign = None, False
    if sealed is not None:
        for name, path in _drawn(store).items():
            foreign |= name not in sealed and not _is_page(name)
            if name in sealed and (path.is_symlink() or sha256_file(path) != sealed[name]):
                remove(path)
    yield
    if sealed is None or foreign:
        return
    listed = {name: digest for name, digest in sealed.items() if name.startswith(DRAWN)}
    if {name: sha256_file(path) for name, path in _drawn(store).items()} == listed:
        return
    with store.lock():
        apart = ("data.edited", "data.missing")  # no seal lists the data file: sealing again hides nothing of it
        wrong = [finding for finding in verify(store.root) if finding.check not in apart]
        if all((finding.source or "").startswith(DRAWN) for finding in wrong):
            seal(store)


def _is_page(name: str) -> bool:
    """Whether a report writes the file again or takes it away: one that was killed may have left it unsealed."""
    folder, _, file = name.partition("/")
    return folder == "report.outputs" and OUTPUT_PAGE.fullmatch(file) is not None


def _drawn(store: Store) -> dict[str, Path]:
    names, folders = ([name for name in DRAWN if name.endswith("/") is inner] for inner in (False, True))
    return {path.relative_to(store.root).as_posix(): path for path in _files(store.root, names, folders)}


def _refuse_findings(store: Store, remade: tuple[str, ...]) -> None:
    apart = ("file.added", "data.edited", "data.missing")
    wrong = [f for f in verify(store.root) if f.check not in apart and not (f.source or "").startswith(remade)]
    if wrong:
        raise StaleError(
            f"{store.root}: {wrong[0].message} ({len(wrong)} findings).",
            fix=f"Restore the study from a copy, or make it again: veritune run {store.root}",
        )


def refuse_edited(store: Store) -> str | None:
    """Raises StaleError if the record of a run or data version, or the contract, differs from what the timeline
    recorded.

    Without this a further run would take an edited record for its own. Comes to a sentence where the seal is gone, or
    is another one, without a command of ours having changed it: the runs are as the timeline knows them, a further run
    may go on.
    """
    if store.contract_file.exists():
        contract.agreed(store)
    events, digest = store.events(), cache(sha256_file)
    state, known = _state(events), _known_runs(events)
    sealed = state if state is not None and state["event"] == "sealed" else None
    record = read_json(_seal_file(store)) if _seal_file(store).exists() else None
    lost = sealed is not None and (record is None or _listed(record) != sealed.get("files"))
    for run_id in _finished(store):
        for problem in _run_problems(store, run_id, known.get(run_id), digest, whole=lost):
            raise _edited(store, problem, run_id)
    if sealed is None or record is None or lost:
        what = "is gone" if record is None else "is not the seal that the timeline records"
        return f"seal.json {what}, though the study was sealed at {sealed['time']}" if sealed else None
    _refuse_sealed(store, record, digest)
    return None


def _refuse_sealed(store: Store, record: Mapping[str, JsonLike], digest: Digest) -> None:
    """Raises StaleError where a sealed record of a run or a data version was edited or replaced by a link."""
    for name, expected in sorted(_sealed_files(store, record).items()):
        path = store.root / name
        if not _is_believed(name) or not (path.exists() or path.is_symlink()):
            continue
        found = "a link" if path.is_symlink() else digest(path)
        if found != expected:
            raise StaleError(
                f"{path} was edited after the study was sealed: expected SHA-256 {expected[:12]}, found {found[:12]}.",
                fix="Restore the file from a copy, or delete that run's folder to train the run again.",
            )


def _is_believed(name: str) -> bool:
    """Whether a further run would trust the file as it is; one that it writes again each time need not be refused."""
    one = ("verdict.json", "selection.json", "shapes.json")
    cached_probe = name.startswith("probes/") and name.count("/") > 1
    return name.startswith(("runs/", "data/", "audit/live-", "audit/judge")) or name in one or cached_probe


def _sealed_files(store: Store, record: Mapping[str, JsonLike]) -> dict[str, str]:
    sealed = record.get("files", {})
    if not isinstance(sealed, dict) or not all(isinstance(v, str) for v in sealed.values()):
        raise FormatError(f"{_seal_file(store)} lists no files by hash.", fix="Restore the file from a copy.")
    return sealed


def sealed_files(store: Store) -> dict[str, str] | None:
    """SHA-256 by name of the study's files as last sealed; None if the timeline does not record this seal.json.

    Its own hash proves nothing: anybody can compute it. Raises StaleError or FormatError for a damaged timeline.
    """
    if not _seal_file(store).exists():
        return None
    record, state = read_json(_seal_file(store)), _state(store.events())
    if state is None or state["event"] != "sealed" or state.get("files") != _listed(record) or not _is_whole(record):
        return None
    return _sealed_files(store, record)


def edited_records(store: Store, *, verdicts_alone: bool = False) -> list[str]:
    """Records that screens and texts take verdicts and numbers from, where they differ from the seal: a sentence each.
    With `verdicts_alone` only the file of the verdicts is read, however many runs there are.

    Empty for a study that is not sealed at present. Cheaper than `verify`: no data, weights, scores or drawings.
    """
    try:
        if not is_sealed(store):
            return []
        sealed = sealed_files(store)
    except (VerituneError, OSError) as exc:
        return [exc.message if isinstance(exc, VerituneError) else str(exc)]
    if sealed is None:
        return ["seal.json is gone, or is not the seal that the timeline records"]
    shown = {name: store.root / name for name in sorted(sealed) if _is_shown(name, verdicts_alone)}
    return [
        f"{name} {_WORDS['edited']}"
        for name, path in shown.items()
        if path.is_file() and sha256_file(path) != sealed[name]
    ]


def refuse_edited_records(store: Store) -> None:
    """Raises StaleError where `edited_records` finds one."""
    edited = edited_records(store)
    if edited:
        raise StaleError(
            f"{store.root}: {edited[0]} ({many(len(edited), 'findings')}).",
            fix=f"List all findings: veritune verify {store.root}",
        )


def _is_shown(name: str, verdicts_alone: bool) -> bool:
    if verdicts_alone:
        return name == "verdict.json"
    one = ("verdict.json", "selection.json")
    return name in one or (name.startswith("runs/") and name.endswith((f"/{SUMMARY}", "/manifest.json")))


# ---------------------------------------------------------------- verifying


def verify(study: str | Path, expected: str | None = None) -> list[Finding]:
    """Every difference between a study folder and its seal; empty if there is none.

    `expected` is the seal's hash as somebody kept it elsewhere (a prefix of at least eight characters will do).
    Raises InputError when the folder was never sealed.
    """
    store = Store.of(study)
    findings, events = _timeline_findings(store)
    if not _seal_file(store).exists():
        state = _state(events or ())
        if state is None and events is not None:
            raise InputError(f"{store.root} has no seal.json.", fix="A study is sealed when `veritune run` ends.")
        return [
            *findings,
            *_unsealed(state),
            *_contract_findings(store),
            *_runs(store, events, sha256_file, whole=True),
        ]
    record = read_json(_seal_file(store))
    sealed = _sealed_files(store, record)
    if not _is_whole(record):
        findings.append(_finding("seal.edited", "seal.json", "seal.json was edited after it was written"))
    findings += [*_contract_findings(store), *_seal_findings(record, events, expected), *_prefix(store, record, events)]
    digest = cache(sha256_file)
    files = list(_file_findings(store, sealed, events, digest))
    named = {f.source for f in files}
    findings += [*files, *(f for f in _runs(store, events, digest) if f.source not in named)]
    return [*findings, *_data_file(store), *_gates(store, events)]


def _timeline_findings(store: Store) -> tuple[list[Finding], list[Entry] | None]:
    """The timeline, None where its chain is broken, which is then a finding."""
    try:
        return [], store.events()
    except (VerituneError, OSError) as exc:
        edited = _finding("file.edited", TIMELINE, f"{TIMELINE} {_WORDS['edited']}")
        return [_finding("events.chain", TIMELINE, str(exc)), edited], None


def _contract_findings(store: Store) -> Iterator[Finding]:
    """What the contract's chain says, and what comes of holding it against the timeline."""
    try:
        if not store.contract_file.exists() and all(event["event"] != "frozen" for event in store.events()):
            return  # the study explores: nothing was frozen
        contract.read(store)
    except (VerituneError, OSError) as exc:
        yield _finding("contract.chain", "contract.lock.json", str(exc))
        return
    try:
        contract.agreed(store)
    except StaleError as exc:
        yield _finding("contract.rewritten", "contract.lock.json", str(exc))
    except VerituneError:
        return  # the timeline is damaged, which its own finding says


def _unsealed(state: Entry | None) -> Iterator[Finding]:
    if state is None:
        return
    if state["event"] == "sealed":
        text = f"seal.json is gone, though the study was sealed at {state['time']}"
        yield _finding("seal.missing", "seal.json", text)
    else:
        text = f"`{state.get('by')}` removed the seal at {state['time']} and has not sealed the study again"
        yield _finding("seal.open", "seal.json", text)


def _seal_findings(
    record: Mapping[str, JsonValue], events: list[Entry] | None, expected: str | None
) -> Iterator[Finding]:
    """Whether seal.json is the seal that the timeline records, and the one that somebody kept."""
    listed = _listed(record)
    if events is not None:
        state = _state(events)
        if state is None or state["event"] != "sealed":
            text = "seal.json is not recorded in the timeline: a command was interrupted, or it was put there"
            yield _finding("seal.unrecorded", "seal.json", text)
        elif state.get("files") != listed:
            text = "seal.json is not the seal that the timeline records: it was rewritten"
            yield _finding("seal.rewritten", "seal.json", text)
    if expected is not None and (len(expected) < 8 or not listed.startswith(expected.lower())):
        yield _finding("seal.other", "seal.json", f"the seal is {listed[:16]}, expected {expected[:16]}")


def _prefix(store: Store, record: Mapping[str, Any], events: list[Entry] | None) -> Iterator[Finding]:
    """Whether the timeline still begins with what it held when the study was sealed. It may have grown since."""
    stood = record.get("timeline")
    if events is None or not isinstance(stood, Mapping):
        return
    lines, head = stood.get("lines"), stood.get("head")
    there = isinstance(lines, int) and 0 <= lines <= len(events)
    if not there or (events[lines - 1]["hash"] if lines else None) != head:
        if store.events_file.exists():
            yield _finding("file.edited", TIMELINE, f"{TIMELINE} lost events that it held when the study was sealed")
        else:
            yield _finding("file.missing", TIMELINE, f"{TIMELINE} {_WORDS['missing']}")


def _file_findings(
    store: Store, sealed: Mapping[str, str], events: list[Entry] | None, digest: Digest
) -> Iterator[Finding]:
    """Every file that is not as it was sealed, or as the timeline last recorded it (what lies in `release/`)."""
    later = _evidence(events or ())
    plans = [p for p in (store.root / "plan.json", *store.root.glob("plans/*")) if p.is_file() or p.is_symlink()]
    found = {p.relative_to(store.root).as_posix(): p for p in (*_files(store.root), *plans)}
    for name in sorted({*sealed, *later, *found}):
        expected = later.get(name, sealed.get(name))
        if name == GATES or (expected is None and name.startswith("release/") and not _is_evidence(name)):
            continue  # gates have a chain of their own; bundles and merged weights in release/ are no evidence
        problem = _compare(expected, found.get(name), digest)
        if problem:
            yield _finding(f"file.{problem}", name, f"{name} {_WORDS[problem]}")


def _is_evidence(name: str) -> bool:
    """Whether a gate would read the file as a check's record: `release/<kind>.json`, which the timeline has to know."""
    return name.endswith(".json") and name.count("/") == 1


def _evidence(events: Iterable[Entry]) -> dict[str, str]:
    """The last recorded hash of every evidence file and every plan by its name."""
    found: dict[str, str] = {}
    for event in events:
        if event["event"] in ("evidence", "planned"):
            found |= _hashes(event.get("files"))
    return {name: digest for name, digest in found.items() if name.startswith(RECORDED)}


def _runs(store: Store, events: list[Entry] | None, digest: Digest, *, whole: bool = False) -> Iterator[Finding]:
    """Finished runs that are not as the timeline knows them."""
    known = _known_runs(events or ())
    for run_id in _finished(store) if events is not None else ():
        for problem in _run_problems(store, run_id, known.get(run_id), digest, whole=whole):
            yield _finding("run.edited", problem.split(" ", 1)[0], problem)


def _data_file(store: Store) -> Iterator[Finding]:
    """Whether the data file that the study names is the one whose hash the contract holds."""
    try:
        terms = contract.read(store).last.terms
        name, expected = terms.study["data"]["path"], terms.facts.data_sha256
    except (VerituneError, OSError, KeyError, TypeError):
        return
    path = store.root / name
    if path.is_file() and sha256_file(path) != expected:
        yield _finding("data.edited", name, f"{name} is not the data file that was frozen ({expected[:12]})")
    elif not path.exists():
        yield _finding("data.missing", name, f"{name}, the data file that was frozen, is missing")


def _gates(store: Store, events: list[Entry] | None) -> Iterator[Finding]:
    """Whether the gates' ledger is whole and still holds the last entry that the timeline recorded."""
    recorded = [event.get("head") for event in events or () if event["event"] == "gated"]
    path = store.root / GATES
    if not path.exists():
        if recorded:
            yield _finding("file.missing", GATES, f"{GATES} {_WORDS['missing']}")
        return
    try:
        heads = {entry["hash"] for entry in Ledger(path).read()}
    except VerituneError as exc:
        yield _finding("gates.chain", GATES, str(exc))
        return
    if recorded and recorded[-1] not in heads:
        yield _finding("file.edited", GATES, f"{GATES} lost an entry that the timeline records")


_WORDS = {
    "missing": "is missing",
    "added": "was not there when the study was sealed",
    "symlinked": "is a link now",
    "edited": "was edited after the study was sealed",
}


def _compare(expected: str | None, path: Path | None, digest: Digest) -> str | None:
    if path is None:
        return "missing"
    if path.is_symlink():
        return "symlinked"
    if expected is None:
        return "added"
    return None if digest(path) == expected else "edited"


def _finding(check: str, name: str, message: str) -> Finding:
    return Finding(check, "error", message, source=name)


def verify_text(findings: list[Finding], study: str | Path, signed: bool | None = None) -> str:
    """The result of `verify` as text for the screen. `signed` is whether the seal's signature is valid, None if no key
    was given.
    """
    if not findings:
        record = read_json(_seal_file(Store.of(study)))
        files, listed = len(record["files"]), _listed(record)
        text = f"verified: {many(files, 'files')}, the contract and the timeline are as they were sealed "
        text += f"(seal {listed[:16]})"
        there = (Store.of(study).root / SIGNATURE).is_file()
        unchecked = "; it is signed: check by whom with --public-key" if there and signed is None else ""
        return text + ("; the signature is valid" if signed else unchecked)
    return "\n".join(f"x {finding.message}" for finding in findings) + f"\n{len(findings)} findings"


def seal_hash(study: str | Path) -> str:
    """The hash of the sealed file list and of the timeline up to the seal: the value to keep elsewhere."""
    return _listed(read_json(_seal_file(Store.of(study))))

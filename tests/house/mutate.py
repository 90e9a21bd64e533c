"""Breaks the source on purpose, one place at a time, and counts the breaks that the tests see.

    python tests/house/mutate.py --draw 400 --seed 14 --out mutants.jsonl       which tests bite, by room
    python tests/house/mutate.py --kinds text --out text.jsonl --only decide    sentences that no test asserts

`mutants.py` says what is broken. In a copy of the checkout the tests of the rooms run once unchanged, and what each of
them enters is noted; one that takes long is cut short there and runs last. A mutant inside a function then costs a fork
of that very process: the function's code is replaced and the tests that enter it run, the quick ones first. A mutant of
what runs at import (constants, fields, defaults), or one that lived although its function also ran in a shared fixture
or in a process of its own, is written into the file and tried by a fresh interpreter. `--out` keeps one line a mutant
and is read back, so a broken run goes on where it stopped; `--again` repeats those that lived, after new tests.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from mutants import REPO, Mutant, broken, mutants_of

ROOMS = {
    "stats": (
        "stats/*.py",
        (
            "tests/stats/*.py",
            "tests/decide/test_claims.py",
            "tests/decide/test_screens.py",
            "tests/decide/test_sentences.py",
        ),
    ),
    "decide": ("decide/*.py", ("tests/decide/*.py", "tests/records/test_objects.py")),
    "split": ("data/split.py", ("tests/data/test_split*.py", "tests/records/test_objects.py")),
    "gate": (
        "release/gate/*.py",
        ("tests/release/test_gate*.py", "tests/release/test_controls.py", "tests/release/test_safety.py"),
    ),
    "records": ("records/*.py", ("tests/records/*.py", "tests/data/test_split*.py", "tests/decide/test_sentences.py")),
}
"""A room's files, and the tests that answer for it."""
TESTS = {
    room: [p.relative_to(REPO).as_posix() for pattern in patterns for p in sorted(REPO.glob(pattern))]
    for room, (_, patterns) in ROOMS.items()
}
MARKS = "not theory and not cluster and not browser and not model"
Place = tuple[str, str]
"""A file below the package and a function's qualified name."""


# ---------------------------------------------------------------- a broken function in a running process


def outermost(module: Any, name: str) -> Any:
    """The function that holds the code of a qualified name, without its wrappers: the method of `Class.method.inner`.

    Raises LookupError for what is no function: a class body, or the module itself.
    """
    found = module
    for part in name.split("."):
        found = vars(found)[part]
        for unwrap in ("__func__", "fget", "func", "__wrapped__"):
            found = getattr(found, unwrap, found)
        if isinstance(getattr(found, "__code__", None), CodeType):
            return found
    raise LookupError(name)


def codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from codes(inner)


def replace_code(mutant: Mutant, source: str, path: Path) -> None:
    """Give the function of the loaded module the broken code."""
    name = mutant.path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    function = outermost(sys.modules[name], mutant.function)
    whole = compile(source, str(path), "exec", dont_inherit=True)
    old = function.__code__
    function.__code__ = next(
        c for c in codes(whole) if c.co_qualname == old.co_qualname and c.co_freevars == old.co_freevars
    )


def forget() -> None:
    """Empty every cache of the package: what was computed before must be computed again."""
    for module in [m for name, m in list(sys.modules.items()) if name.startswith("veritune")]:
        for value in list(vars(module).values()):
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()


# ---------------------------------------------------------------- the plugin


class TooLong(BaseException):
    """A test that took its seconds, or that started a process, in which nothing is noted and nothing broken."""


def too_long(*_: object, **__: object) -> None:
    raise TooLong


@dataclass(eq=False)
class Breaker:
    """A plugin of pytest: runs the tests once, notes what each enters, then tries mutant after mutant in forks."""

    tree: Path
    mutants: Sequence[Mutant]
    kinds: str
    budget: float
    write: Callable[[Mutant, str, int, str | None, float], None]
    cap: float = 2.0
    seconds: dict[str, float] = field(default_factory=dict)
    codes: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    shared: dict[str, set[int]] = field(default_factory=dict)
    now: set[int] = field(default_factory=set)
    seen: dict[int, CodeType] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    entered: dict[str, set[Place]] = field(default_factory=dict)
    early: set[Place] = field(default_factory=set)

    def trace(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code  # by identity: the hash of a code object is that of all its constants
        self.now.add(id(code))
        self.seen[id(code)] = code

    def places(self, codes: Iterable[int]) -> set[Place]:
        src = str(self.tree / "src" / "veritune") + os.sep
        return {
            (c.co_filename.removeprefix(src), c.co_qualname.replace(".<locals>", ""))
            for c in map(self.seen.__getitem__, codes)
            if c.co_filename.startswith(src)
        }

    def pytest_fixture_setup(self, fixturedef: Any) -> None:
        if fixturedef.scope != "function":
            self.now = self.shared.setdefault(fixturedef.argname, set())

    def pytest_pyfunc_call(self, pyfuncitem: Any) -> None:
        mine = self.codes[pyfuncitem.nodeid]
        for name in pyfuncitem.fixturenames:
            mine |= self.shared.get(name, set())
        self.now = mine

    def pytest_runtestloop(self, session: Any) -> bool:
        if session.testsfailed:
            raise SystemExit("the tests cannot be collected")
        items = {item.nodeid: item for item in session.items}
        order = list(items)
        signal.signal(signal.SIGVTALRM, too_long)
        popen = subprocess.Popen.__init__
        subprocess.Popen.__init__ = too_long  # type: ignore[method-assign, assignment]
        for name, after in zip(order, [*order[1:], None]):
            self._note(items[name], items[after] if after else session)
        subprocess.Popen.__init__ = popen  # type: ignore[method-assign]
        self.entered = {name: self.places(found) for name, found in self.codes.items()}
        self.early = self.places(code for found in self.shared.values() for code in found)
        took = sum(self.seconds.values())
        print(
            f"{len(order)} tests noted in {took:.0f} s, {len(self.elsewhere)} of them start processes",
            file=sys.__stderr__,
            flush=True,
        )
        for mutant in self.mutants:
            self._judge(mutant, items, session)
        return True

    def _note(self, item: Any, after: Any) -> None:
        from _pytest.runner import runtestprotocol

        forget()
        self.now, began = self.codes[item.nodeid], time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, self.cap)
        sys.settrace(self.trace)
        reports = runtestprotocol(item, nextitem=after, log=False)
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        took = time.process_time() - began
        failed = [r for r in reports if r.failed]
        if failed and "TooLong" in failed[0].longreprtext:
            if took < self.cap:
                self.elsewhere.add(item.nodeid)
            took = max(took, 3 * self.cap)
        elif failed:
            raise SystemExit(f"{item.nodeid} fails without any mutant: {failed[0].longreprtext[-1500:]}")
        self.seconds[item.nodeid] = took

    def chosen(self, mutant: Mutant) -> list[str]:
        """The tests of the room that enter the mutant's function, quick ones first, as long as the budget lasts."""
        own = [n for n in self.seconds if n.split("::")[0] in TESTS[mutant.room]]
        path = mutant.path.removeprefix("src/veritune/")
        hit = [n for n in own if (path, mutant.function) in self.entered.get(n, ())]
        hit = (
            hit or own
        )  # a module's constants, a class body: they are read by tests that enter no function of the file
        names: list[str] = []
        for name in sorted(hit, key=lambda n: self.seconds[n]):
            if names and sum(self.seconds[n] for n in names) + self.seconds[name] > self.budget:
                break
            names.append(name)
        return names

    def _judge(self, mutant: Mutant, items: dict[str, Any], session: Any) -> None:
        began, names = time.monotonic(), self.chosen(mutant)
        path = self.tree / mutant.path
        killer = self.tree / ".killer"
        killer.unlink(missing_ok=True)
        place = (mutant.path.removeprefix("src/veritune/"), mutant.function)
        source = broken(path.read_text(encoding="utf-8"), mutant.place, kinds=self.kinds)
        inside = [n for n in names if n not in self.elsewhere]
        limit = 5 + 5 * sum(self.seconds[n] for n in inside)
        pid = os.fork()
        if not pid:
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
            self._try(mutant, source, [items[n] for n in inside], killer)
        status = wait(pid, 30 * limit)
        if names and (status == IMPORTED or (status == 0 and (place in self.early or len(inside) < len(names)))):
            status = afresh(self.tree, mutant, source, names, killer)
        late = status is None or status == -signal.SIGXCPU or status == -signal.SIGKILL
        result = "timeout" if late else "lived" if status == 0 or not names else "killed"
        by = killer.read_text(encoding="utf-8") if killer.exists() else f"exit {status}" if status else None
        self.write(mutant, result, len(names), by, time.monotonic() - began)

    def _try(self, mutant: Mutant, source: str, items: list[Any], killer: Path) -> None:
        """In the child: break the function, run the tests up to the first that fails, and end the process."""
        from _pytest.runner import runtestprotocol

        status = IMPORTED
        try:
            os.setsid()
            replace_code(mutant, source, self.tree / mutant.path)
            forget()
            status = 0
            for item, after in zip(items, [*items[1:], *items[-1:]]):
                if any(report.failed for report in runtestprotocol(item, nextitem=after, log=False)):
                    killer.write_text(item.nodeid, encoding="utf-8")
                    status = 1
                    break
        except (LookupError, StopIteration):
            status = IMPORTED
        except BaseException:
            status = 1
        finally:
            os._exit(status)


IMPORTED = 77
"""The child's status where the mutant is in no function: it is tried by a fresh interpreter."""


def afresh(tree: Path, mutant: Mutant, source: str, names: Sequence[str], killer: Path) -> int | None:
    """Write the broken file, run the tests in an interpreter of their own, restore the file. None: too slow."""
    target = tree / mutant.path
    kept, stamp = target.read_text(encoding="utf-8"), target.stat()
    target.write_text(source, encoding="utf-8")
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", "-m", MARKS, *names]
    try:
        child = subprocess.Popen(
            [sys.executable, "-B", "-m", "pytest", *arguments],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=(tree / ".log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = child.wait(300)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return None
    finally:
        target.write_text(kept, encoding="utf-8")
        os.utime(target, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    said = [line for line in (tree / ".log").read_text().splitlines() if line.startswith(("FAILED", "ERROR"))]
    if said:
        killer.write_text(said[0].split(" ")[1], encoding="utf-8")
    return status


def wait(pid: int, limit: float) -> int | None:
    """The exit status; None where the time was up and the child's group was ended."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


# ---------------------------------------------------------------- the pass


def copied(work: Path) -> Path:
    """The checkout's files, tracked and new, in a folder of their own, with what numba compiled for them."""
    tree = work / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (REPO / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, tree / name)
    for compiled in REPO.glob("src/**/__pycache__/*.nb?"):
        place = tree / compiled.relative_to(REPO)
        place.parent.mkdir(exist_ok=True)
        shutil.copy2(compiled, place)
    return tree


def summary(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| room | mutants | killed | timed out | lived | seen |", "| --- | --- | --- | --- | --- | --- |"]
    for room in [*ROOMS, "all"]:
        counts = Counter(r["result"] for r in rows if room in (r["room"], "all"))
        if total := sum(counts.values()):
            seen = (total - counts["lived"]) / total
            cells = [room, total, counts["killed"], counts["timeout"], counts["lived"], f"{seen:.1%}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", type=int, help="how many mutants; all without it")
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--kinds", choices=("code", "text"), default="code")
    parser.add_argument("--only", choices=tuple(ROOMS), action="append", help="a room; may be given again")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--again", action="store_true", help="repeat the mutants in --out that lived")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tests for one mutant")
    parser.add_argument("--list", action="store_true", help="count the mutants and stop")
    return parser.parse_args()


def drawn_mutants(given: argparse.Namespace) -> list[Mutant]:
    everything = [
        mutant
        for room, (files, _) in ROOMS.items()
        for path in sorted((REPO / "src" / "veritune").glob(files))
        for mutant in mutants_of(room, path, kinds=given.kinds)
    ]
    drawn = random.Random(given.seed).sample(everything, given.draw) if given.draw else everything
    drawn = [m for m in drawn if m.room in (given.only or ROOMS)]
    print(f"{len(everything)} mutants, {len(drawn)} of them drawn", dict(Counter(m.room for m in drawn)), flush=True)
    return drawn


def main() -> None:
    given = options()
    drawn = drawn_mutants(given)
    if given.list:
        return
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {r["name"]: r for r in rows}
    left = [m for m in drawn if m.name not in done or (given.again and done[m.name]["result"] == "lived")]

    def write(mutant: Mutant, result: str, tests: int, by: str | None, wall_s: float) -> None:
        row = {"name": mutant.name, **vars(mutant), "result": result, "tests": tests, "by": by, "s": round(wall_s, 1)}
        done[mutant.name] = row
        with given.out.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        if result == "lived":
            change = f"{mutant.before} -> {mutant.after}"
            print(f"lived: {mutant.name} {mutant.function} [{mutant.kind}] {change}", file=sys.__stderr__, flush=True)

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copied(Path(folder))
        os.chdir(tree)
        os.environ["PYTHONPATH"] = str(tree / "src")
        sys.path[:0] = [str(tree / "src"), str(tree / "tests")]
        import pytest

        files = sorted({f for m in left for f in TESTS[m.room]})
        arguments = ["-q", "-p", "no:cacheprovider", "-m", MARKS, "--capture=sys", *files]
        status = pytest.main(arguments, plugins=[Breaker(tree, left, given.kinds, given.budget, write)])
        if status:
            raise SystemExit(f"pytest ended with {status!r}")
    print(summary(list(done.values())))


if __name__ == "__main__":
    main()

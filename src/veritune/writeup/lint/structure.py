"""What a clean result holds: a claim in the title, sections, a hero figure pinned to data, captions, samples, card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from veritune.errors import VerituneError
from veritune.records import JsonLike
from veritune.store import Store, read_json, sha256_file
from veritune.writeup.lint.markdown import Block, Document, Image
from veritune.writeup.lint.rules import Rules
from veritune.writeup.quantities import CheckedRecords, outputs

Raised = tuple[str, int, str, str]
"""Rule, offset, message, suggestion."""

GRADE = re.compile(
    r"\b(?P<grade>high|moderate|low|no)[\s-]confidence\b|"
    r"\bconfidence\s?(?:[:=]|is|grade[d:]?|\()\s?(?P<after>high|moderate|low|none)\b",
    re.IGNORECASE,
)
NO_GRADE = re.compile(r"\b(?:inconclusive|untested|not settled|stays? open|open question|undecided)\b", re.IGNORECASE)
VERB = re.compile(
    r"\b(?:scores?|learns?|learned|beats?|improves?|differs?|carries|carry|matters?|outperforms?|outscores?|is|are|was|were|"
    r"does|stays?|holds?|raises?|reach(?:es)?|gains?|generali[sz]es?|loses?|trails?|shows?|meets?|leaves?|regress(?:es)?|follows?|"
    r"adds?|has|have|picks?|transfers?|keeps?|lifts?|teaches|taught|changes?|makes?|wins?|drops?|rises?|fails?|writes?|brings?|did|"
    r"can|cannot)\b",
    re.IGNORECASE,
)


def check(document: Document, records: CheckedRecords, rules: Rules, here: Path) -> Iterator[Raised]:
    """Every finding about the structure."""
    yield from _title(document, records)
    yield from _sections(document, rules)
    yield from _figures(document, records, here)
    yield from captions_missing(document)
    yield from _samples(document, records, rules)
    yield from _card(document, rules)
    yield from acronyms_unexplained(document, rules.acronyms)
    yield from _placeholders(document)
    yield from _hashes(document, records)


# ---------------------------------------------------------------- title


def grade_said(text: str) -> str | None:
    """The confidence that a text names: high, moderate, low, none; None when it names none."""
    found = GRADE.search(text)
    if found:
        word = (found.group("grade") or found.group("after")).lower()
        return "none" if word == "no" else word
    return "none" if NO_GRADE.search(text) else None


def _title(document: Document, records: CheckedRecords) -> Iterator[Raised]:
    title = document.title
    if title is None:
        yield "title.claim", 0, "the write-up has no title", "# state the main claim and its confidence"
        return
    text = title.text.strip()
    if text.endswith("?") or len(text.split()) < 4 or not VERB.search(text):
        yield (
            "title.claim",
            title.start,
            f"the title states no claim: {text!r}",
            "say what was found, not what was asked",
        )
    said = grade_said(title.raw)
    grades = {str(v["confidence"].get("grade", "none")) for v in records.verdicts}
    if said is None:
        yield "title.confidence", title.start, "the title does not say how confident it is", f"one of {_list(grades)}"
    elif grades and said not in grades:
        yield (
            "title.confidence",
            title.start,
            f"the title says {said} confidence, the verdicts grade {_list(grades)}",
            "",
        )


def _list(words: set[str]) -> str:
    return ", ".join(sorted(words)) or "none"


# ---------------------------------------------------------------- sections


def section_of(heading: str, rules: Rules) -> set[str]:
    """The sections that a heading opens."""
    low = heading.lower()
    return {name for name, words in rules.sections.items() if any(w in low for w in words)}


def _sections(document: Document, rules: Rules) -> Iterator[Raised]:
    """Each section is there and has something in it."""
    filled: set[str] = set()
    for block in document.blocks:
        if block.kind != "heading" and block.raw.strip():
            filled |= {name for h in block.section[1:] for name in section_of(h, rules)}
            filled |= {name for h in block.section[:1] for name in section_of(h, rules) if len(block.section) == 1
                       and document.title is not None
                       and not document.title.raw.strip("# \t").startswith(h)}  # fmt: skip
    end = len(document.source.rstrip())
    for name, words in rules.sections.items():
        if name not in filled:
            rule = f"section.{name}"
            yield (
                rule,
                end,
                f"there is no section on {name}, or nothing is in it",
                f"a heading such as: {words[0].title()}",
            )


def in_samples(block: Block, rules: Rules) -> bool:
    """Whether a block is in the section of sample outputs, where a quote is an output and not a claim."""
    return _in(block, "samples", rules)


def _in(block: Block, name: str, rules: Rules) -> bool:
    return any(name in section_of(h, rules) for h in block.section)


# ---------------------------------------------------------------- figures and captions


def _figures(document: Document, records: CheckedRecords, here: Path) -> Iterator[Raised]:
    if not document.images:
        yield "figure.hero", 0, "there is no hero figure", "![What it shows](figures/NAME.svg) with its caption"
        return
    heroes = [i for i in document.images if "hero" in f"{i.alt} {i.target}".lower()]
    if len(heroes) > 1:
        yield "figure.hero", heroes[1].at, "there is more than one hero figure", "keep the one that shows the claim"
    for image in document.images:
        if not re.match(r"[a-z][a-z+.\-]{1,9}:", image.target):
            yield from _pinned(image, records, here)
        else:
            yield "figure.file", image.at, f"{image.target} is not a file of the study", "draw it from the records"


def _pinned(image: Image, records: CheckedRecords, here: Path) -> Iterator[Raised]:
    """The figure's file and provenance are there, and the sources it was drawn from have not changed."""
    paths = [base / image.target for base in (here, records.root)]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        yield "figure.file", image.at, f"{image.target} does not exist", "`veritune report STUDY` draws the figures"
        return
    record = path.with_name(path.stem + ".provenance.json")
    if not record.exists():
        yield (
            "figure.pinned",
            image.at,
            f"{image.target} has no provenance beside it: {record.name}",
            "draw it from records",
        )
        return
    try:
        provenance = read_json(record)
    except VerituneError as exc:
        yield "figure.pinned", image.at, f"{record.name}: {exc.message}", "draw the figure again"
        return
    yield from _hashes_match(image, provenance, records.root, path)


def _hashes_match(image: Image, provenance: Mapping[str, JsonLike], root: Path, path: Path) -> Iterator[Raised]:
    sources, files = provenance.get("sources"), provenance.get("files")
    if not isinstance(sources, Mapping) or not sources:
        yield "figure.pinned", image.at, f"the provenance of {image.target} names no sources", "draw the figure again"
        return
    own = files if isinstance(files, Mapping) else {}
    pairs = [(root / str(k), str(k), v) for k, v in sources.items()]
    pairs += [(path.with_name(str(k)), str(k), v) for k, v in own.items()]
    for file, name, digest in pairs:
        if not file.is_file():
            yield (
                "figure.pinned",
                image.at,
                f"{image.target} was drawn from {name}, which is missing",
                "draw the figure again",
            )
        elif sha256_file(file) != digest:
            yield (
                "figure.pinned",
                image.at,
                f"{name} has changed since {image.target} was drawn",
                "draw the figure again",
            )


CAPTION = re.compile(r"\s*(?:figure|fig\.|table|tab\.)\s?\d*|\s*caption\b", re.IGNORECASE)


def captions_missing(document: Document) -> Iterator[Raised]:
    """Findings for tables and figures without a caption: a paragraph `Figure …` or `Table …`, or one in italics,
    directly before or after, with at least six words.
    """
    for i, block in enumerate(document.blocks):
        around = [
            b for b in document.blocks[max(0, i - 1) : i + 2] if b.kind in ("paragraph", "quote") and b is not block
        ]
        if block.kind == "table" and not any(is_caption(b) for b in around):
            yield (
                "caption.table",
                block.start,
                "the table has no caption",
                "a paragraph beside it: Table 1. What it shows …",
            )
    for image in document.images:
        i, own = next(
            ((i, b) for i, b in enumerate(document.blocks) if b.start <= image.at <= b.start + len(b.raw)), (0, None)
        )
        if own is None:
            continue
        rest = re.sub(r"!\[[^\]]{0,2000}\]\([^)]{0,2000}\)", "", own.raw)
        following = document.blocks[i + 1 : i + 2]
        inside = any(CAPTION.match(line.lstrip("*_ ")) for line in rest.split("\n")) and len(rest.split()) >= 6
        if not inside and not any(is_caption(b) for b in following):
            yield (
                "caption.figure",
                image.at,
                "the figure has no caption",
                "a paragraph below it: Figure 1. What it shows …",
            )


def is_caption(block: Block) -> bool:
    """Whether a block is the caption of its neighbour."""
    raw = block.raw.strip()
    marked = bool(CAPTION.match(raw.lstrip("*_ "))) or (raw[:1] in "*_" and raw[-1:] in "*_")
    return block.kind == "paragraph" and marked and len(raw.split()) >= 6


# ---------------------------------------------------------------- samples


def _samples(document: Document, records: CheckedRecords, rules: Rules) -> Iterator[Raised]:
    blocks = [b for b in document.blocks if b.kind in ("code", "quote") and _in(b, "samples", rules)]
    known = _known_outputs(records) if blocks else {}
    shown: set[tuple[str, str]] = set()
    for block in blocks:
        text = sample_text(block)
        if len(text) < 20:  # too short to be told from prose, unless it is a whole output
            shown |= {key for key, texts in known.items() if text in texts}
            continue
        hits = {key for key, texts in known.items() if any(_within(text, t) for t in texts)}
        if not hits:
            yield (
                "samples.recorded",
                block.start,
                "this output is in no score record of the study",
                "quote it as recorded",
            )
        shown |= hits
    if not blocks:
        return
    for verdict in records.verdicts:
        claim = records.claim(verdict["claim"])
        key = (str(claim.get("condition")), str(records.eval_of(claim)))
        if verdict["status"] != "untested" and verdict["kind"] != "probe" and key in known and key not in shown:
            message = f"{verdict['claim']} has no sample output of {key[0]} on {key[1]}"
            yield "samples.results", blocks[-1].start, message, "quote one from runs/<run_id>/scores"


def sample_text(block: Block) -> str:
    """The text that a code block or quote quotes, with white space collapsed."""
    lines = block.raw.strip("\n").split("\n")
    if block.kind == "code":
        lines = lines[1:-1] if len(lines) > 1 and re.match(r"\s*(`{3,}|~{3,})", lines[-1]) else lines[1:]
    else:
        lines = [re.sub(r"^\s{0,3}>\s?", "", line) for line in lines]
    return " ".join(" ".join(lines).split())


def _known_outputs(records: CheckedRecords) -> dict[tuple[str, str], list[str]]:
    store = Store(records.root)
    found: dict[tuple[str, str], list[str]] = {}
    for run_id, summary in records.runs.items():
        for name in summary.scores:
            texts = [" ".join(str(row.get("output") or "").split()) for row in outputs(store, run_id, name)]
            found.setdefault((summary.condition, name), []).extend(texts)
    return found


def _within(quoted: str, recorded: str) -> bool:
    """Whether a quote, cut at `…` or `[...]`, is part of an output, in order."""
    at = 0
    for piece in re.split(r"\s?(?:…|\[\.\.\.\]|\[…\])\s?", quoted):
        found = recorded.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return True


# ---------------------------------------------------------------- the card


BLANK = re.compile(
    r"(?:|-+|–|—|\?+|\.\.\.|…|n/?a|none|unknown|to be (?:filled|added|done)|tba|tbd|todo|xxx|_+|\[\s?\])\.?",
    re.IGNORECASE,
)


def card_fields(document: Document, rules: Rules) -> list[tuple[str, str, int]]:
    """The fields of the card: name, value, offset. They are rows of a table with two columns, or items `name:
    value`."""
    fields: list[tuple[str, str, int]] = []
    for block in document.blocks:
        if not _in(block, "card", rules):
            continue
        if block.kind == "table":
            rows: dict[int, list[Any]] = {}
            for cell in block.cells:
                rows.setdefault(cell.row, []).append(cell)
            for row in list(rows.values())[1:]:
                raw = document.source[row[-1].start : row[-1].start + len(row[-1].text)] if len(row) > 1 else ""
                fields.append((row[0].text.strip(), raw.strip(" |*_"), row[0].start))
        elif block.kind in ("item", "paragraph"):
            for line in block.raw.split("\n"):
                name, sep, value = line.strip(" -*+|").partition(":")
                if sep and 0 < len(name.split()) <= 5:
                    fields.append((name.strip("*_ `"), value.strip(" *_"), block.start))
    return fields


def _card(document: Document, rules: Rules) -> Iterator[Raised]:
    fields = card_fields(document, rules)
    if not fields:
        return
    for name, value, at in fields:
        plain = re.sub(r"<!--.{0,300}?-->", "", value).strip(" `")
        if BLANK.fullmatch(plain):
            yield "card.blank", at, f"the card's field {name!r} is blank", "fill it, or say why it is not known"
    names = " | ".join(name.lower() for name, _, _ in fields)
    code = any(b.kind == "code" for b in document.blocks if _in(b, "card", rules))
    for field, words in rules.card.items():
        if not any(w in names for w in words) and not (field == "command" and code):
            yield "card.field", fields[0][2], f"the card does not name its {field}", ""


# ---------------------------------------------------------------- acronyms, placeholders, hashes


ACRONYM = re.compile(r"(?<![\w-])(?:[A-Z]{2,7}s?|LoRA|QLoRA|SmolLM\w*)(?![\w])")
PLACEHOLDER = re.compile(
    r"\b(?:TODO|TBD|TBA|FIXME|XXX)\b|\blorem ipsum\b|\?\?\?|\[(?:citation needed|fill in|insert[^\]]{0,40})\]", re.I
)


def acronyms_unexplained(document: Document, known: frozenset[str]) -> Iterator[Raised]:
    """Findings for abbreviations without explanation, such as `negative log-likelihood (NLL)`, `NLL (negative …)`,
    `NLL: …`, `NLL is/means/stands for …`.
    """
    prose = [b for b in document.blocks if b.kind not in ("code", "quote")]
    whole = "\n".join(_prose(b) for b in prose)
    done = set(known)
    for block in prose:
        for at, text in _texts(block):
            for match in ACRONYM.finditer(text):
                word = match.group()
                bare = word[:-1] if word.endswith("s") and word[:-1].isupper() else word
                if bare in done or word in done or word.startswith("SmolLM"):
                    continue
                done.add(bare)
                if len(done) > len(known) + 60:
                    return
                if not _explained(bare, whole):
                    yield "acronym", at + match.start(), f"{bare} is not explained", f"write it out once: … ({bare})"


def _texts(block: Block) -> Iterator[tuple[int, str]]:
    if block.kind == "table":
        yield from ((c.start, c.text) for c in block.cells)
    else:
        yield block.start, block.text


def _prose(block: Block) -> str:
    return " | ".join(t for _, t in _texts(block))


def _explained(word: str, text: str) -> bool:
    w = re.escape(word)
    behind = re.search(rf"([A-Za-z][\w\-]+(?:\s[\w\-]+){{0,6}})\s\(\s?{w}s?\s?[),;:]", text)
    if behind and behind.group(1).split()[-1][0].isalpha():
        return True
    ahead = (
        rf"\b{w}s?\s?(?:\(\s?[a-z][\w\-]+\s[\w\s\-,]{{3,120}}\)|:\s[a-z]\w+\s\w+|"
        r",?\s(?:stands for|means|is short for|=)\s)"
    )
    return bool(re.search(ahead, text)) or bool(re.search(rf"\|\s?{w}\s?\|\s?[A-Za-z][\w\-]+\s\w+", text))


def _placeholders(document: Document) -> Iterator[Raised]:
    for block in document.blocks:
        if block.kind not in ("code", "quote"):
            for match in PLACEHOLDER.finditer(block.raw):
                yield (
                    "placeholder",
                    block.start + match.start(),
                    f"a placeholder is left: {match.group()}",
                    "fill it in",
                )


HEX = re.compile(r"(?<![\w])[0-9a-f]{7,64}(?![\w])")


def recorded_as(word: str, records: CheckedRecords) -> set[str]:
    """The names of the recorded hashes that begin with `word`; a prefix may have digits only, as one in 281 prefixes of
    12 does.
    """
    return {name for digest, name in records.hashes.items() if digest.startswith(word)}


def hash_spans(text: str, records: CheckedRecords) -> list[tuple[int, int]]:
    """Where a text prints a hash of the study, whose digits are not checked as numbers."""
    return [m.span() for m in HEX.finditer(text) if recorded_as(m.group(), records)]


def _hashes(document: Document, records: CheckedRecords) -> Iterator[Raised]:
    """Hashes in prose, card and front matter are hashes of this study, and not of an older contract."""
    if records.verdict_contract and records.verdict_contract != records.contract:
        message = "verdict.json was decided under another contract entry than the last"
        yield "stale.verdict", 0, message, "run the study again: veritune run STUDY"
    pieces: Sequence[tuple[int, str]] = [
        (0, document.front),
        *((b.start, b.raw) for b in document.blocks if b.kind not in ("code", "quote")),
    ]
    for start, text in pieces:
        for match in HEX.finditer(text):
            word = match.group()
            names = recorded_as(word, records)
            if not names and (word.isdigit() or word.isalpha()):
                continue  # a number or a word
            if any(not n.startswith("old") for n in names):
                continue
            if names:
                current = records.contract[:12]
                message = f"{word} is the hash of an {sorted(names)[0]}; the contract now is {current}"
                yield (
                    "stale.contract",
                    start + match.start(),
                    message,
                    "update the text, then lint it again",
                )
            elif "contract" in text[max(0, match.start() - 60) : match.start()].lower():
                message = f"{word} is not this study's contract, which is {records.contract[:12]}"
                yield "stale.contract", start + match.start(), message, ""
            else:
                yield "hash.unknown", start + match.start(), f"no record of this study has the hash {word}", ""

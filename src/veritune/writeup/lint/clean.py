"""The checks of a profile: each has an id, says what it found and how to fix it."""

# ruff: noqa: E501 - a word list reads better as one pattern

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from veritune.counting import many
from veritune.writeup.lint.markdown import Block, Document, Image, parse, sentences
from veritune.writeup.lint.profile import Profile, SectionRule, any_of
from veritune.writeup.lint.rules import LintFinding, LintReport
from veritune.writeup.lint.structure import BLANK, Raised, acronyms_unexplained, captions_missing
from veritune.writeup.pages import prose_of

PROSE = ("paragraph", "item", "quote")
SHORT = 20
"""Characters below which a code block or quote shows no example."""
PINNED = re.compile(r"(?:/|@|=|\b)(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}(?:/|\b)")
REFERENCE = re.compile(
    r"\[@[\w:.-]+|\[\d{1,3}\]|\[\^[\w-]+\]|\]\(https?://|https?://|\barXiv:|\bdoi:|\((?:[A-Z][\w-]+(?: et al\.)?(?: and [A-Z]\w+)?,? )(?:19|20)\d\d"
)
CONFIDENCE_LINE = r"\b(?:({words})[\s-]confidence\b|confidence\s?(?:[:=]|is|of)?\s?\*{{0,2}}({words})\b)"


def check_page(
    document: Document, profile: Profile, here: Path, root: Path | None, grades: Sequence[str]
) -> Iterator[Raised]:
    """Every finding of the profile's checks, except those about numbers. `grades` are the verdicts' own, if there are
    any; `root` is the study's folder, where figures may be.
    """
    page = _Sections(document, profile)
    yield from page.missing()
    yield from _title(document, profile, page, grades)
    yield from _summary(page)
    yield from _human(page)
    yield from _hero(document, here, root)
    yield from (("captions", at, message, fix) for _, at, message, fix in captions_missing(document))
    yield from _methodology(page)
    yield from _background(page, profile)
    yield from (
        ("acronyms", at, message, fix) for _, at, message, fix in acronyms_unexplained(document, profile.acronyms)
    )
    yield from _dataset(page)
    yield from _samples(page)
    yield from _card(page, profile)
    yield from _words(document, profile)


def with_profile(report: LintReport, page: Path, profile: Profile, *, numbers: bool) -> LintReport:
    """A report on numbers alone, with the findings of a profile added; without `numbers` nothing was checked against
    records.
    """
    document = parse(prose_of(page))
    findings = list(report.findings) if numbers else []
    if not numbers and report.numbers:
        at = report.readings[0].start
        message = f"{many(report.numbers, 'numbers', 'were')} not checked: no records were given"
        fix = "Add --records FILE or --study STUDY."
        findings += profile_findings(document, profile, [("numbers.records", at, message, fix)])
    findings += profile_findings(document, profile, check_page(document, profile, page.parent, None, ()))
    findings.sort(key=lambda f: (f.line, f.column, f.rule))
    readings, bound = (report.readings, report.bound) if numbers else ((), 0)
    return replace(report, findings=tuple(findings), readings=readings, bound=bound)


def profile_findings(document: Document, profile: Profile, raised: Iterable[Raised]) -> list[LintFinding]:
    """The findings of a profile's checks, at the levels that the profile gives them."""
    found = []
    for rule, at, message, suggestion in raised:
        level = profile.level(rule)
        if level != "off":
            line, column = document.place(at)
            severity: Literal["error", "note"] = "error" if level == "error" else "note"
            found.append(LintFinding(rule, severity, line, column, message, suggestion=suggestion))
    return found


class _Sections:
    """The blocks of a page by the sections of its profile."""

    def __init__(self, document: Document, profile: Profile) -> None:
        self.document, self.profile = document, profile
        self.order: list[str] = []
        self.blocks: dict[str, list[Block]] = {}
        self.starts: dict[str, int] = {}
        for block in document.blocks:
            title = document.title
            for heading in block.section:
                key = self._key(heading)
                if key is not None and not (title is not None and heading == title.raw.strip("# \t")):
                    self.blocks.setdefault(key, []).append(block)
            if block.kind == "heading" and block is not title:
                key = self._key(block.raw.strip("# \t\n"))
                if key is not None:
                    self.starts.setdefault(key, block.start)
                if key is not None and block.level <= 2:
                    self.order.append(key)

    def _key(self, heading: str) -> str | None:
        """The section that a heading opens: the longest of the words that it holds decides."""
        low = heading.lower().strip("*_ ")
        found = [(len(w), s.key) for s in self.profile.sections for w in s.headings if w.lower() in low]
        return max(found)[1] if found else None

    def of(self, key: str) -> list[Block]:
        return [b for b in self.blocks.get(key, ()) if b.raw.strip()]

    def items(self, key: str) -> list[Block]:
        return [b for b in self.of(key) if b.kind == "item"]

    def text(self, key: str) -> str:
        return "\n".join(b.text for b in self.of(key) if b.kind in PROSE)

    def at(self, key: str) -> int:
        return self.starts.get(key, 0)

    def missing(self) -> Iterator[Raised]:
        """Sections that are missing, and a team's own sections with too few or too many bullets or words."""
        end = len(self.document.source.rstrip())
        for rule in self.profile.sections:
            filled = [b for b in self.of(rule.key) if b.kind != "heading"]
            check = _CHECK_OF.get(rule.key, f"section.{rule.key}")
            if not filled and rule.required:
                wanted = f"Add a section with the heading {rule.headings[0].capitalize()!r}."
                yield (
                    check,
                    self.starts.get(rule.key, end),
                    f"there is no section {rule.headings[0]!r}, or nothing is in it",
                    wanted,
                )
            elif filled:
                yield from self._sizes(rule, check)

    def _sizes(self, rule: SectionRule, check: str) -> Iterator[Raised]:
        at = self.at(rule.key)
        bullets, words = len(self.items(rule.key)), len(self.text(rule.key).split())
        for noun, n, limits in (("bullets", bullets, rule.bullets), ("words", words, rule.words)):
            if limits is not None and not limits[0] <= n <= limits[1]:
                message = f"the section {rule.headings[0]!r} has {n} {noun}; expected {limits[0]} to {limits[1]}"
                yield check, at, message, f"Write {limits[0]} to {limits[1]} {noun}."
        if rule.first and self.order and self.order[0] != rule.key:
            yield check, at, f"the section {rule.headings[0]!r} is not the first", "Move it right below the title."


_CHECK_OF = {
    "summary": "summary.structure", "human_summary": "summary.human", "methodology": "methodology.bullets",
    "background": "background.motivation", "dataset": "dataset.example", "samples": "samples.by_result",
    "card": "card.complete",
}  # fmt: skip
"""Sections whose absence belongs to a check of their own."""


def _title(document: Document, profile: Profile, page: _Sections, grades: Sequence[str]) -> Iterator[Raised]:
    """The title's confidence marker equals the one of the results, and the verdicts' where a study is given."""
    words = "|".join(map(re.escape, profile.confidence))
    pattern = re.compile(CONFIDENCE_LINE.format(words=words), re.IGNORECASE)
    title = document.title
    said = _said(pattern, title.raw) if title is not None else None
    at = title.start if title is not None else 0
    if said is None:
        fix = f"End the title with ({profile.confidence[0]} confidence), or whichever of {', '.join(profile.confidence)} it is."
        yield "title.confidence", at, "the title has no confidence marker", fix
        return
    results = page.text("results") or page.text("summary")
    stated = [_said(pattern, s.text) for s in sentences(results, 0)]
    held = {s for s in stated if s is not None}
    if not held:
        yield (
            "title.confidence",
            page.at("results"),
            "the results state no confidence",
            "Write `Confidence: …` with the result.",
        )
    elif said not in held:
        message = f"the title says {said} confidence, the results say {', '.join(sorted(held))}"
        yield "title.confidence", at, message, "Use the same word in both."
    if grades and said not in grades:
        message = f"the title says {said} confidence, the verdicts are graded {', '.join(sorted(set(grades)))}"
        yield "title.confidence", at, message, "Use the grade of the claim that the title states."


def _said(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return (found.group(1) or found.group(2)).lower() if found else None


def _summary(page: _Sections) -> Iterator[Raised]:
    if page.of("summary") and page.items("summary") and not re.search(r"\d|\bconfidence\b", page.text("summary")):
        message = "the summary states no number and no confidence"
        yield (
            "summary.structure",
            page.at("summary"),
            message,
            "Give the main result with its number in one of the bullets.",
        )


def _human(page: _Sections) -> Iterator[Raised]:
    text = page.text("human_summary")
    jargon = re.search(r"\bp\s?[=<]|\b[A-Z]{2,}\b|\d+\.\d+", text)
    if jargon:
        message = f"the human summary contains {jargon.group()!r}, which readers outside the field do not know"
        yield (
            "summary.human",
            page.at("human_summary"),
            message,
            "Use plain words, without decimals and abbreviations.",
        )


def _hero(document: Document, here: Path, root: Path | None) -> Iterator[Raised]:
    """The first figure is the hero, and its address or provenance names the commit that drew it."""
    if not document.images:
        fix = "Put one figure below the summary, its address pinned to a commit."
        yield "hero.pinned", 0, "there is no hero figure", fix
        return
    hero = next((i for i in document.images if "hero" in f"{i.alt} {i.target}".lower()), document.images[0])
    if PINNED.search(hero.target) or _provenance(hero, here, root):
        return
    message = (
        f"the hero figure {hero.target} is not pinned: neither its address nor a provenance beside it names a commit"
    )
    yield (
        "hero.pinned",
        hero.at,
        message,
        "Link it by commit (…/raw/COMMIT/figure.png), or draw it with `veritune report`.",
    )


def _provenance(image: Image, here: Path, root: Path | None) -> bool:
    """A provenance file beside the figure: it pins the sources by hash."""
    for base in (here, root):
        if base is not None:
            path = base / image.target
            if path.is_file() and path.with_name(path.stem + ".provenance.json").is_file():
                return True
    return False


def _methodology(page: _Sections) -> Iterator[Raised]:
    long = [b for b in page.of("methodology") if b.kind == "paragraph" and len(b.text.split()) > 60]
    if long:
        message = f"the methodology has a paragraph of {len(long[0].text.split())} words"
        yield "methodology.bullets", long[0].start, message, "Write it as bullets, one step each."


def _background(page: _Sections, profile: Profile) -> Iterator[Raised]:
    if not page.of("background"):
        return
    raw = "\n".join(b.raw for b in page.of("background"))
    if profile.motivation and not any_of(profile.motivation).search(raw) and not _stem(profile.motivation, raw):
        fix = "Say why the question matters: one sentence with because, so that, or to learn whether."
        yield "background.motivation", page.at("background"), "the background gives no motivation", fix
    if not REFERENCE.search(raw):
        fix = "Cite what it builds on: a link, [@key], or (Author 2024)."
        yield "background.references", page.at("background"), "the background cites nothing", fix


def _stem(words: Sequence[str], text: str) -> bool:
    """A word of the list may be the beginning of one: `motivat`."""
    return any(re.search(rf"\b{re.escape(w)}", text, re.IGNORECASE) for w in words)


def _dataset(page: _Sections) -> Iterator[Raised]:
    blocks = page.of("dataset")
    if not blocks:
        return
    shown = [b for b in blocks if b.kind in ("code", "quote", "table") and len(b.raw) >= SHORT]
    if not shown:
        yield "dataset.example", page.at("dataset"), "the dataset section shows no example", "Quote one complete row."
    raw = "\n".join(b.raw for b in blocks if b.kind != "code")
    if not re.search(r"\]\([^)]+\)|https?://|\bhf://", raw):
        yield (
            "dataset.link",
            page.at("dataset"),
            ("the dataset section has no link to the full data"),
            "Link the whole data set.",
        )


def _samples(page: _Sections) -> Iterator[Raised]:
    """Each result (a heading in the results, else the page's one) has a sample output under its name."""
    blocks = page.of("samples")
    if not blocks:
        return
    quoted = [b for b in blocks if b.kind in ("code", "quote") and len(b.raw) >= SHORT]
    if not quoted:
        yield (
            "samples.by_result",
            page.at("samples"),
            "the section of sample outputs quotes no output",
            "Quote outputs as recorded.",
        )
        return
    results = [b.raw.strip("# \t\n") for b in page.of("results") if b.kind == "heading" and b.level > 2]
    names = "\n".join(b.raw for b in blocks if b.kind != "code").lower()
    for name in results:
        if name.lower() not in names:
            message = f"the result {name!r} has no sample output"
            yield (
                "samples.by_result",
                page.at("samples"),
                message,
                f"Quote one below a line or heading that says {name!r}.",
            )


def _card(page: _Sections, profile: Profile) -> Iterator[Raised]:
    blocks = page.of("card")
    if not blocks:
        return
    fields: dict[str, str] = {}
    for block in blocks:
        if block.kind == "table":
            rows: dict[int, list[str]] = {}
            for cell in block.cells:
                source = page.document.source[cell.start : cell.start + len(cell.text)]
                rows.setdefault(cell.row, []).append(source.strip(" |*_`"))
            fields |= {row[0].lower(): row[1] for row in list(rows.values())[1:] if len(row) > 1}
        elif block.kind in PROSE:
            for line in block.raw.split("\n"):
                name, sep, value = line.strip(" -*+").partition(":")
                if sep:
                    fields[name.lower().strip("*_ `")] = value.strip(" *_`")
    for wanted in profile.card:
        held = next((v for k, v in fields.items() if wanted.lower().rstrip("s") in k), None)
        if held is None:
            yield "card.complete", page.at("card"), f"the reproducibility card has no {wanted}", f"Add a row: {wanted}."
        elif BLANK.fullmatch(held):
            yield (
                "card.complete",
                page.at("card"),
                f"the card's {wanted} is blank",
                "Fill it, or say why it is not known.",
            )


def _words(document: Document, profile: Profile) -> Iterator[Raised]:
    """Hedges outside the confidence words, and the words that a team forbids."""
    hedges = [w for w in profile.hedges if w.lower() not in profile.allow]
    hedge = any_of(hedges)
    marker = re.compile(CONFIDENCE_LINE.format(words="|".join(map(re.escape, profile.confidence))), re.IGNORECASE)
    for block in document.blocks:
        if block.kind not in (*PROSE, "heading"):
            continue
        for sentence in sentences(block.text, block.start):
            text = marker.sub(lambda m: " " * len(m.group()), sentence.text)
            for match in hedge.finditer(text):
                fix = f"Say it plainly with a confidence ({', '.join(profile.confidence)}), or leave it out."
                yield (
                    "hedges",
                    sentence.start + match.start(),
                    f"{match.group()!r} hedges outside the confidence words",
                    fix,
                )
            yield from _forbidden(text, sentence.start, profile)


def _forbidden(text: str, at: int, profile: Profile) -> Iterator[Raised]:
    for rule in profile.forbid:
        words = [w for w in rule.words if w.lower() not in profile.allow]
        match = any_of(words).search(text)
        if match and not any(u.lower() in text.lower() for u in rule.unless):
            yield (
                rule.check,
                at + match.start(),
                f"{match.group()!r}: {rule.message}",
                "Write it in the team's own terms.",
            )

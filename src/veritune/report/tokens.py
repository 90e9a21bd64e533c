"""The page that colours tokens: where the loss fell in each row, drawn from `token_fall` records. It computes nothing
but the colour steps; it loads nothing and runs nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from veritune.probe.study import ProbeSubject
from veritune.probe.tokens import token_pieces
from veritune.records import Json, JsonLike, TokenFall, to_json
from veritune.report.page import environment
from veritune.store import write_text

STEPS = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Nats at which the colour deepens; smaller changes have none."""


@dataclass(frozen=True)
class TokenSection:
    """The rows of one zone: its `token_fall` record as JSON, and the text of every token by row id."""

    zone: str
    record: Json
    pieces: Mapping[str, Sequence[str]]


def draw_tokens(path: Path, records: Mapping[str, TokenFall], subject: ProbeSubject, rows: int) -> None:
    """Draw the first `rows` rows of each zone of a token probe into one HTML file."""
    sections = []
    for zone, whole in records.items():
        record = replace(whole, rows=whole.rows[:rows])
        pieces = {row["row_id"]: token_pieces(subject.renderer.tokenizer, row["ids"]) for row in record.rows}
        sections.append(TokenSection(zone, to_json(record), pieces))
    assert subject.adapter is not None
    write_tokens_page(path, sections, f"{subject.ref.name} with {subject.adapter.name}")


def write_tokens_page(path: Path, sections: Sequence[TokenSection], subject: str) -> None:
    """Write the page as one HTML file. `subject` names model and adapter."""
    write_text(path, tokens_page(sections, subject))


def tokens_page(sections: Sequence[TokenSection], subject: str) -> str:
    """The page's HTML; everything from records and models is escaped."""
    folder = files("veritune.report").joinpath("templates")
    css = Markup("".join(folder.joinpath(n).read_text(encoding="utf-8") for n in ("report.css", "tokens.css")))
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    page = (
        environment()
        .get_template("tokens.html.j2")
        .render(
            css=css,
            policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
            subject=subject,
            steps=STEPS,
            sections=[(s, [(row, list(_tokens(row, s.pieces))) for row in s.record["rows"]]) for s in sections],
        )
    )
    return str(page).encode("utf-8", "replace").decode()


def _tokens(row: Json, pieces: Mapping[str, Sequence[str]]) -> Iterator[dict[str, JsonLike]]:
    """Each token of a row: its text, its colour step (`f3`: fell, `r2`: rose, ``: none), and what is read on it."""
    scored = {at: k for k, at in enumerate(row["at"])}
    for place, text in enumerate(pieces[row["row_id"]]):
        shown = text.replace("\n", "↵\n")
        if place not in scored:
            yield {"text": shown, "step": "given", "said": None}
            continue
        k = scored[place]
        before, after = row["before"][k], row["after"][k]
        fell = before - after
        depth = sum(abs(fell) >= edge for edge in STEPS)
        step = f"{'f' if fell > 0 else 'r'}{depth}" if depth else ""
        yield {
            "text": shown or "·",
            "step": step,
            "said": f"{before:.2f} before, {after:.2f} after, {row['class'][k]}",
        }

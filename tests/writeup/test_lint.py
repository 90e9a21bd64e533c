"""Lint: parsing, numbers, binding, structure, speech, rules."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veritune.errors import FormatError, InputError
from veritune.records import dumps
from veritune.store import Store
from veritune.writeup.draft import writeup
from veritune.writeup.lint import LintReport, lint, lint_command, load_rules, render_text, speech
from veritune.writeup.lint.check import lint_text
from veritune.writeup.lint.markdown import parse, sentences
from veritune.writeup.lint.numbers import scan
from veritune.writeup.lint.words import Mention
from veritune.writeup.quantities import CheckedRecords, quantities, read_records


def _beside(name: str) -> ModuleType:
    """A helper module that lies beside this file."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


lint_study = _beside("lint_study")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = lint_study.build(tmp_path_factory.mktemp("study"))
    return folder


@pytest.fixture(scope="module")
def records(study: Path) -> CheckedRecords:
    return read_records(Store(study))


@pytest.fixture(scope="module")
def draft(study: Path) -> str:
    return writeup(study)


def said(text: str, records: CheckedRecords, *, structure: bool = False) -> list[str]:
    """Rules that a piece of text breaks; those about the whole write-up are left out."""
    report = lint_text(text, records, load_rules(), records.root / "x.md")
    whole = ("section.", "title.", "figure.", "card.", "samples.", "caption.", "acronym")
    return [f.rule for f in report.findings if structure or not f.rule.startswith(whole)]


def value(records: CheckedRecords, name: str, form: str = ".3f") -> str:
    return format(records.by_name[name].value, form)


# ---------------------------------------------------------------- numbers


def test_what_is_no_claim_is_not_read_as_a_number() -> None:
    text = (
        "On 14 March 2026 and 2026-11-21 SmolLM2-135M-Instruct ran with torch 2.13.0+cpu, Python 3.11 and v0.1.0 at "
        "07:21:50; see Figure 1, Table 2, line 12, #7, Goeman (2010), Hu et al. 2021, item b00-0, the 2nd run, GSM8K, "
        "bf16, arXiv:2106.09685, scores from 0 to 1, x86_64."
    )
    assert [n.text for n in scan(text)] == []


def test_numbers_are_read_with_precision_sign_unit_and_magnitude() -> None:
    found = scan("0.910 and −0.16, 91.0 %, 5.6 points, 2,442,240, 2.44M, 1e-3, 3 × 10^-4, p < .001, two seeds")
    assert [(round(n.value, 9), n.percent) for n in found] == [
        (0.91, ""), (-0.16, ""), (91.0, "%"), (5.6, "points"), (2442240.0, ""), (2440000.0, ""), (0.001, ""),
        (0.0003, ""),
        (0.001, ""), (2.0, ""),
    ]  # fmt: skip
    assert found[0].half == pytest.approx(0.0005) and found[8].relation == "<"


@pytest.mark.parametrize(("printed", "recorded", "right"), [
    ("0.910", 0.9104, True), ("0.910", 0.9106, False), ("0.91", 0.9097, True), ("0.9", 0.86, True), ("0.90",
    0.9097, False),
    ("48", 48.0, True), ("48", 48.4, True), ("48", 47.0, False), ("1e-3", 0.001, True), ("0.911", 0.9105, True),
])  # fmt: skip
def test_a_number_holds_at_half_a_unit_of_its_last_place(printed: str, recorded: float, right: bool) -> None:
    assert scan(printed)[0].holds(recorded) is right


# ---------------------------------------------------------------- quantities


def test_every_quantity_has_a_name_of_its_own_a_source_and_a_finite_value(study: Path) -> None:
    found = [q for q in quantities(Store(study)) if not q.stale]
    assert len({q.name for q in found}) == len(found) > 300
    assert all(q.source and abs(q.value) < float("inf") for q in found)
    assert "NaN" not in dumps(found)


def test_pointers_lead_to_the_recorded_value(study: Path, records: CheckedRecords) -> None:
    import json

    for name in (
        "gap.learns_the_style",
        "ci.targets_matter.high",
        "score.house_style.seen.all_layer.seed1",
        "rows.seen",
    ):
        q = records.by_name[name]
        at = json.loads((study / q.source).read_text())
        for key in q.pointer.strip("/").split("/"):
            at = at[int(key)] if isinstance(at, list) else at[key]
        assert at == q.value


def test_a_superseded_run_and_an_older_contract_are_stale(records: CheckedRecords) -> None:
    stale = {q.name: q for q in records.quantities if q.stale}
    assert stale["train.learning_rate"].value == 5e-4 and records.by_name["train.learning_rate"].value == 1e-3
    assert "score.house_style.seen.all_layer.seed0" in stale


def test_a_folder_without_contract_or_with_a_damaged_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"contract\.lock\.json"):
        quantities(Store(tmp_path))
    (tmp_path / "contract.lock.json").write_text('{"format": 1, "entries": [{"terms": {}, "hash": "a"}]}')
    with pytest.raises(FormatError):
        quantities(Store(tmp_path))


# ---------------------------------------------------------------- binding


def test_right_numbers_in_many_wordings_raise_nothing(records: CheckedRecords) -> None:
    a, b = (value(records, f"score.house_style.stranger.{c}") for c in ("all_layer", "attention_only"))
    c = value(records, "score.house_style.stranger.baseline")
    for text in (
        f"On stranger items of house_style all_layer scores {a} against {c} for the baseline.",
        f"On stranger items of house_style all_layer and attention_only reach {a} and {b}.",
        f"On stranger items of house_style, {a} (all_layer) and {b} (attention_only) were reached.",
        f"The house_style score on strangers: all_layer {a}, attention_only {b}, baseline {c}.",
        f"all_layer scores higher than the baseline on strangers of house_style: {a} against {c}.",
    ):
        assert said(text, records) == [], text


def test_swapped_conditions_zones_and_seeds_are_mis_scoped(records: CheckedRecords) -> None:
    a, b = (value(records, f"score.house_style.stranger.{c}") for c in ("all_layer", "attention_only"))
    seen, one = (value(records, f"score.house_style.{x}") for x in ("seen.all_layer", "stranger.all_layer.seed1"))
    assert said(f"On stranger items of house_style all_layer reaches {b}.", records) == ["number.scope"]
    swapped = f"On stranger items of house_style all_layer and attention_only reach {b} and {a}."
    assert said(swapped, records) == ["number.scope"] * 2
    assert said(f"On stranger items of house_style all_layer reaches {seen}.", records) == ["number.scope"]
    assert said(f"On stranger items of house_style all_layer reaches {one}.", records) == ["number.scope"]
    assert said(f"On stranger items of house_style all_layer reaches {one} with seed 1.", records) == []
    assert said(f"On stranger items of house_style all_layer reaches {one} with seed 2.", records) == ["number.scope"]


def test_a_sign_follows_the_order_of_the_two_conditions(records: CheckedRecords) -> None:
    gap = records.by_name["gap.learns_the_style"].value
    ahead = "On strangers of house_style the gap of all_layer over the baseline is {:+.3f}."
    behind = "On strangers of house_style the gap of the baseline against all_layer is {:+.3f}."
    assert said(ahead.format(gap), records) == said(behind.format(-gap), records) == []
    assert said(ahead.format(-gap), records) == said(behind.format(gap), records) == ["number.direction"]


def test_a_marker_binds_whatever_the_words_say(records: CheckedRecords) -> None:
    right = value(records, "score.house_style.stranger.all_layer")
    assert said(f"It came to {right}<!--v:score.house_style.stranger.all_layer-->.", records) == []
    assert said("It came to 0.5<!--v:score.house_style.stranger.all_layer-->.", records) == ["number.mismatch"]
    assert said("It came to 0.5<!--v:score.no.such-->.", records) == ["number.marker"]
    assert said("Chapter and verse, 0.777<!--v:none--> of them.", records) == []


def test_percentages_are_held_against_fractions(records: CheckedRecords) -> None:
    q = records.by_name["score.house_style.stranger.all_layer"].value
    start = "On stranger items of house_style all_layer reaches "
    assert said(f"{start}{100 * q:.1f} %.", records) == []
    assert said(f"{start}{q:.3f} %.", records) == ["number.percent"]
    assert said(f"{start}{100 * q:.1f}.", records) == ["number.percent"]


def test_a_delta_of_rounded_parts_is_noted_and_another_delta_is_an_error(records: CheckedRecords) -> None:
    a, c = (records.by_name[f"score.house_style.stranger.{x}"].value for x in ("all_layer", "baseline"))
    start = f"On strangers of house_style all_layer scores {a:.2f} against {c:.2f} for the baseline, a gap of "
    assert f"{a:.2f}" == "0.89" and f"{c:.2f}" == "0.39" and f"{a - c:.2f}" == "0.50"
    assert said(f"{start}0.50.", records) == []
    assert said(f"{start}0.93.", records) == ["number.mismatch"]
    near = "On strangers of house_style attention_only scores 0.87 against 0.89 for all_layer, a gap of 0.02."
    report = lint_text(near, records, load_rules(), Path("w.md"))
    assert [(f.rule, f.severity) for f in report.findings if f.rule.startswith("number.")] == [("number.delta", "note")]


def test_counts_are_held_against_their_denominators(records: CheckedRecords) -> None:
    right = int(records.by_name["total.sums.stranger.baseline"].value)
    text = "The baseline gets {} of {} stranger sums right."
    assert said(text.format(right, 48), records) == []
    assert said(text.format(right + 1, 48), records) == ["number.count"]
    assert said(text.format(right, 57), records) == ["number.count"]


def test_intervals_are_bound_as_pairs(records: CheckedRecords) -> None:
    low, high = (value(records, f"ci.learns_the_style.{e}", "+.3f") for e in ("low", "high"))
    level = f"{100 * records.by_name['level.learns_the_style'].value:.4g}"
    text = "The gap of all_layer over the baseline on strangers of house_style has a {} % interval of [{}, {}]."
    assert said(text.format(level, low, high), records) == []
    for other_level in (90, 95):  # levels of other intervals are recorded; this one has its own
        assert said(text.format(other_level, low, high), records) == ["number.interval"]
    assert said(text.format(level, high, low), records) == ["number.interval"]
    other = [value(records, f"ci.targets_matter.{e}", "+.3f") for e in ("low", "high")]
    assert said(text.format(level, *other), records) == ["number.scope"]


def test_p_is_never_zero_and_its_bounds_hold(records: CheckedRecords) -> None:
    start = "On strangers of house_style, all_layer against the baseline: p "
    assert said(f"{start}= 0.00012.", records) == said(f"{start}< 0.001.", records) == []
    assert said(f"{start}< 1e-4.", records) == ["number.p"]
    assert said(f"{start}= 0.", records) == said(f"{start}= 0.000.", records) == ["p.zero"]
    assert said("On strangers of house_style, attention_only against all_layer: p < 0.05.", records) == ["number.p"]


def test_stale_values_are_told_from_wrong_ones(records: CheckedRecords) -> None:
    assert said("The learning rate was 5e-4.", records) == ["number.stale"]
    assert said("The learning rate was 7e-4.", records) == ["number.mismatch"]
    assert "stale.contract" in said(f"Contract {records.old_contracts[0][:12]}.", records)
    assert said(f"Contract {records.contract[:12]}.", records) == []
    assert said("Data `0123456789ab`.", records) == ["hash.unknown"]


def test_findings_say_where_and_what_was_found(records: CheckedRecords) -> None:
    text = "First line.\n\nOn stranger items of house_style all_layer reaches 0.5."
    report = lint_text(text, records, load_rules(), Path("w.md"))
    finding = next(f for f in report.findings if f.rule == "number.mismatch")
    assert (finding.line, finding.column, finding.text) == (3, 52, "0.5")
    assert finding.quantity == "score.house_style.stranger.all_layer" and finding.found == pytest.approx(
        0.8866, abs=1e-4
    )
    assert "w.md:3:52: wrong (number.mismatch): 0.5:" in render_text(report)
    assert dumps(report)


# ---------------------------------------------------------------- speech


@pytest.mark.parametrize(("rule", "text"), [
    ("speech.general", "all_layer is superior to attention_only in general."),
    ("speech.equal", "There is no difference between all_layer and the baseline on sums."),
    ("speech.mechanism", "The lower NLL shows that the model has learned the rules."),
    ("speech.causal", "all_layer scores higher than the baseline because its gradients are larger."),
    ("speech.trend", "On sums there is a clear trend against all_layer."),
    ("speech.size", "all_layer scores dramatically higher than the baseline on house_style."),
    ("speech.verdict", "The claim keeps_sums is supported."),
    ("speech.direction", "attention_only scores higher than all_layer on stranger items of house_style."),
    ("speech.exploratory", "As predicted, attention_only scores higher than the baseline on siblings."),
])  # fmt: skip
def test_what_the_verdicts_forbid_is_found(rule: str, text: str, records: CheckedRecords) -> None:
    assert rule in said(text, records)


@pytest.mark.parametrize("text", [
    "We do not claim that all_layer is superior in general.",
    "Whether all_layer and the baseline are equal on sums stays open.",
    "The NLL does not show that the model has learned the rules.",
    "all_layer scores higher than the baseline on strangers because of the training.",
    "attention_only scores higher than the baseline on siblings of house_style.",
    "The claim keeps_sums is inconclusive.",
    "Greedy decoding was used because sampling adds noise.",
])  # fmt: skip
def test_denials_questions_and_carried_claims_are_free(text: str, records: CheckedRecords) -> None:
    assert said(text, records) == []


@pytest.mark.parametrize(("text", "name"), [
    ("all_layer on marked:", True), ("The eval marked asks for a form.", True), ("all_layer has a marked gain.", False),
])  # fmt: skip
def test_an_eval_that_is_called_marked_is_no_word_of_size(text: str, name: bool) -> None:
    """A study with an eval of this name: its own draft, `all_layer on marked:`, was called an unresolved size."""
    at = text.index("marked")
    found = speech.SIZE.search(text)
    assert found is not None
    assert speech._is_name(found, text, [Mention("eval", "marked", at, at + len("marked"))]) == name
    assert not speech._is_name(found, text, [])


def test_one_seed_is_an_adapter_and_not_a_recipe(tmp_path: Path, records: CheckedRecords) -> None:
    single = read_records(Store(lint_study.build(tmp_path, (0,))))
    text = "This recipe all_layer scores higher than the baseline on strangers of house_style."
    assert said(text, single) == ["speech.recipe"] and said(text, records) == []


# ---------------------------------------------------------------- structure


def report_on(text: str, records: CheckedRecords) -> LintReport:
    return lint_text(text, records, load_rules(), records.root / "WRITEUP.md")


@pytest.mark.parametrize(("rule", "old", "new"), [
    ("title.confidence", "(low confidence)", ""), ("title.confidence", "(low confidence)", "(high confidence)"),
    ("section.background", "## Background\n", "## Other\n"), ("section.next", "## Next steps", "## Rest"),
    ("figure.file", "writeup-hero.svg)", "none.svg)"), ("caption.figure", "Figure 1. Mean score on", "Mean scores:"),
    ("card.blank", "| Seeds | seeds 0, 1 and 2 |", "| Seeds | TBD |"), ("card.field", "| Hardware |", "| Other |"),
    ("acronym", "negative log-likelihood (NLL)", "NLL"), ("placeholder", "## Background\n", "## Background\n\nTODO\n"),
    ("samples.recorded", "it is settled.", "it was invented."), ("caption.table", "Table: score on sums",
    "Scores on sums"),
])  # fmt: skip
def test_what_a_clean_result_lacks_is_named(rule: str, old: str, new: str, draft: str, records: CheckedRecords) -> None:
    assert old in draft
    assert rule in {f.rule for f in report_on(draft.replace(old, new, 1), records).findings}


def test_a_figure_whose_source_changed_is_not_pinned(tmp_path: Path) -> None:
    folder = lint_study.build(tmp_path)
    text = writeup(folder)
    summary = next((folder / "runs").glob("baseline-*/summary.json"))
    summary.write_text(summary.read_text() + " ")
    assert "figure.pinned" in {f.rule for f in report_on(text, read_records(Store(folder))).findings}


def test_a_verdict_of_another_contract_is_stale(tmp_path: Path) -> None:
    folder = lint_study.build(tmp_path)
    text = writeup(folder)
    file = folder / "verdict.json"
    contract = read_records(Store(folder)).contract
    file.write_text(file.read_text().replace(contract, "0" * 64))
    assert "stale.verdict" in {f.rule for f in report_on(text, read_records(Store(folder))).findings}


# ---------------------------------------------------------------- rules


def test_rules_are_switched_and_added_in_a_file(tmp_path: Path, study: Path, draft: str) -> None:
    text, rules = tmp_path / "w.md", tmp_path / "rules.yaml"
    text.write_text(draft.replace("## Next steps", "## Rest\n\nOur groundbreaking letters."), encoding="utf-8")
    report, code = lint_command([text], study)
    assert code == 2 and "section.next" in {f.rule for f in report.findings}
    rules.write_text("rules: {section.next: off, figure.file: note}\n"
                     "forbid: [{id: hype, pattern: groundbreaking, message: no hype}]\n")  # fmt: skip
    found = {f.rule for f in lint(text, study, rules).findings}
    assert "section.next" not in found and "hype" in found


@pytest.mark.parametrize(("content", "message"), [
    ("rulez: {}", "did you mean 'rules'"), ("rules: {section.nxt: off}", "did you mean 'section.next'"),
    ("rules: {p.zero: loud}", "error, note or off"), ("ignore: ['(']", "not a regular expression"), ("[1]",
    "a mapping"),
    ("forbid: [{id: a}]", "id, pattern and message"), ("rules: {a: [", "cannot be read"),
])  # fmt: skip
def test_a_wrong_rules_file_is_refused_with_what_was_expected(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        load_rules(file)


# ---------------------------------------------------------------- hostile text


PIECES = st.sampled_from(
    ["#", "|", "-", "`", "```", "![", "](", "[", "]", "<!--", "-->", "<!--v:", "**", "_", ">", "1.", "\n", "\n\n", " ",
     "0.91", "48 of 48", "all_layer", "baseline", "seen", "seed 1", "p = 0", "[0.1, 0.2]", "%", "NLL", "because",
     "—", "\t",
     "| a | b |\n|---|---|\n| 1 | 2 |\n", "---\n", "\r\n", "\x00", "é", "𝔘", "e9", "1e999", "9" * 30, "²"]
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(st.lists(PIECES | st.text(max_size=6), max_size=40).map("".join))
def test_any_text_gives_a_report_and_places_inside_it(text: str) -> None:
    document = parse(text)
    for block in document.blocks:
        assert len(block.text) == len(block.raw)
        assert document.source[block.start : block.start + len(block.raw)] == block.raw
        assert "".join(s.text for s in sentences(block.text, block.start)).strip() == block.text.strip()
        scan(block.text)


@settings(max_examples=40, deadline=None)
@given(text=st.lists(PIECES, max_size=40).map("".join))
def test_lint_never_raises_on_a_text(records: CheckedRecords, text: str) -> None:
    report = lint_text(text, records, load_rules(), records.root / "x.md")
    lines = parse(text).source.count("\n") + 1
    assert all(1 <= f.line <= lines and f.column >= 1 for f in report.findings)
    assert dumps(report) and render_text(report)


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "`",
        "[",
        "<!--",
        "0.1 ",
        "|",
        "_",
        "9",
        "because ",
        "![](",
        "(",
        "two ",
        "seen ",
        "0.1, ",
        "a. ",
        "AB ",
        "[0.1, ",
        "seed 1, ",
        "all_layer ",
        "\n|",
        "\n# a",
        "\n- 1",
        "> ",
        "p = ",
        "3 of ",
        "the loss shows ",
    ],
)
def test_a_line_of_forty_thousand_characters_is_parsed(piece: str) -> None:
    """A pattern that backtracks, or work that grows with the square of a line, would not come to an end."""
    text = (piece * 40_000)[:40_000]
    blocks = parse(text).blocks
    assert sum(len(b.text) for b in blocks) <= len(text)
    for block in blocks:
        assert all(len(s.text) <= 3000 for s in sentences(block.text, block.start))
        scan(block.text)


@pytest.mark.parametrize("piece", ["0.1 ", "all_layer 0.9 ", "seed 1, ", "[0.1, ", "3 of ", "a. ", "| 1 ", "p = 0 "])
def test_a_crowded_line_is_linted(piece: str, records: CheckedRecords) -> None:
    text = (piece * 4_000)[:4_000]
    report = lint_text(text, records, load_rules(), records.root / "x.md")
    assert not report.clean


DIGITS, WITH_E = "268651723666", "12345678e102"
"""The first twelve signs of two SHA-256 as they may come: no letter at all, and what reads as a power of ten."""


@pytest.fixture(scope="module")
def of_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study two of whose hashes print as numbers."""
    root: Path = tmp_path_factory.mktemp("digits")
    facts = lint_study.facts()
    rest = "0" * 52
    facts = replace(facts, data_sha256=DIGITS + rest, data_version=DIGITS, template_sha256=WITH_E + rest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lint_study, "facts", lambda: facts)
        folder: Path = lint_study.build(root)
    return folder


def test_a_hash_without_a_letter_is_no_number(of_digits: Path) -> None:
    page = of_digits / "WRITEUP.md"
    text = writeup(of_digits, page)
    assert DIGITS in text and WITH_E in text
    report, code = lint_command([page], of_digits)
    assert code == 0, render_text(report)
    assert not [r.text for r in report.readings if r.text in (DIGITS, WITH_E)]


@pytest.mark.parametrize(
    ("word", "known"), [("268651723667", False), ("2686517", True), ("268651", False), ("268651723666001", False)]
)
def test_only_digits_that_begin_a_hash_are_one(of_digits: Path, word: str, known: bool) -> None:
    rules = said(f"The stranger score was {word} in the end.", read_records(Store(of_digits)))
    assert ([r for r in rules if r.startswith("number.")] == []) == known, rules


def test_a_page_in_a_study_folder_is_held_against_that_study(of_digits: Path, tmp_path: Path) -> None:
    page = of_digits / "beside.md"
    page.write_text("# Page\n\nall_layer scored 0.999 on stranger items of house_style.\n", encoding="utf-8")
    report, code = lint_command([page], None)
    assert code == 2 and isinstance(report, LintReport) and report.study == "harbor-style"
    assert "number.mismatch" in {f.rule for f in report.findings}, report.findings
    (tmp_path / "far.md").write_text("all_layer scored 0.999.\n", encoding="utf-8")
    with pytest.raises(InputError, match="expected records"):
        lint_command([page, tmp_path / "far.md"], None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("We used three seeds per arm.", []),
        ("We used two seeds per arm.", ["number.count"]),
        ("Each arm was trained with 4 seeds.", ["number.count"]),
        ("The data were split with seed 3.", []),
        ("We report seed 5 alone.", ["number.unbound"]),
    ],
)
def test_a_count_of_seeds_is_no_seed(text: str, found: list[str], records: CheckedRecords) -> None:
    """The study has three seeds, 0 to 2, and its split has seed 3: `two seeds` once bound to a name."""
    assert [r for r in said(text, records) if r.startswith("number.")] == found


def test_a_split_seed_is_no_count(of_digits: Path) -> None:
    """Four is the split's seed here, and no study has four seeds."""
    records = read_records(Store(of_digits))
    split = [replace(q, value=4) if q.name == "split.seed" else q for q in records.quantities]
    records = replace(records, quantities=tuple(split))
    assert said("Each arm was trained with 4 seeds.", records) == ["number.count"]


@pytest.mark.parametrize(
    ("text", "turned"),
    [
        ("The baseline gets 7 points less than all-layer, so all-layer is better than the baseline.", False),
        ("All-layer gets 7 points more than the baseline, so the baseline is better than all-layer.", True),
        ("Unlike all-layer, the baseline scores lower.", False),
        ("Unlike the baseline, all-layer scores lower.", True),
        ("All-layer and the baseline differ on strangers, and all-layer is worse than the baseline.", True),
        ("All-layer and the baseline learn, one better than the other.", False),
    ],
)
def test_a_comparative_speaks_of_the_arm_beside_it(text: str, turned: bool, records: CheckedRecords) -> None:
    assert ("speech.direction" in said(f"On house_style: {text}", records)) == turned


def test_two_arms_of_an_earlier_sentence_accuse_no_contrast(records: CheckedRecords) -> None:
    share = records.by_name["share.carries_to_strangers"].value
    text = (
        f"Attention-only is 7 points below all-layer. Of the seen gain {100 * share:.1f} % carries over to strangers."
    )
    assert "number.scope" not in said(text, records)


def test_what_is_recorded_is_never_called_unrecorded(records: CheckedRecords) -> None:
    low, high = (records.by_name[f"score.house_style.stranger.all_layer.{end}"].value for end in ("min", "max"))
    text = f"Both seeds agree: {low:.3f} and {high:.3f}. The gap was {low:.3f}."
    report = lint_text(text, records, load_rules(), records.root / "x.md")
    numbers = [f for f in report.findings if f.rule.startswith("number.")]
    assert [f.rule for f in numbers[:2]] == ["number.ambiguous"] * 2
    assert all("no record has" not in f.message for f in numbers), numbers


def outcome_counts(records: CheckedRecords) -> dict[str, int]:
    """Declared claims by outcome."""
    declared = [v for v in records.verdicts if not v.get("exploratory")]
    return {s: sum(v["status"] == s for v in declared) for s in ("supported", "inconclusive", "refuted")} | {
        "all": len(declared)
    }


def test_a_number_of_claims_with_an_outcome_is_counted(records: CheckedRecords) -> None:
    n = outcome_counts(records)
    assert 0 < n["supported"] < n["all"]
    for text, right in (
        ("All claims are supported.", False),
        (f"All {n['all']} claims are supported.", False),
        (f"{n['supported']} of {n['all']} declared claims are supported.", True),
        (f"{n['supported'] - 1} of {n['all']} declared claims are supported.", False),
        (f"{n['all']} of {n['all']} declared claims hold.", False),
        ("No claim is supported.", False),
        ("Not all claims are supported.", True),
        ("We do not say that all claims are supported.", True),
    ):
        found = [r for r in said(text, records) if r.startswith(("speech", "number"))]
        assert (found == []) == right, (text, found)


def test_a_level_belongs_to_the_interval_behind_it(records: CheckedRecords) -> None:
    low, high, level = (records.by_name[f"{k}"].value for k in
                        ("ci.learns_the_style.low", "ci.learns_the_style.high", "level.learns_the_style"))  # fmt: skip
    other = 0.9 if level > 0.9001 else 0.95
    for form in ("with a {l:.4g} % interval of [{a:.3f}, {b:.3f}]", "({l:.4g} % CI {a:.3f} to {b:.3f})"):
        right, wrong = (f"learns_the_style has a gap {form.format(l=100 * x, a=low, b=high)}." for x in (level, other))
        assert not [r for r in said(right, records) if r.startswith("number")], right
        assert "number.interval" in said(wrong, records), wrong


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("The margin of targets_matter was 0.05.", ""),
        ("The margin of targets_matter was 0.1.", "number.mismatch"),
        ("Each family has four wordings.", ""),
        ("Each family has seven wordings.", "number.unbound"),
    ],
)
def test_what_was_chosen_is_not_rounded_and_each_family_has_its_size(
    text: str, rule: str, records: CheckedRecords
) -> None:
    assert [r for r in said(text, records) if r.startswith("number")] == ([rule] if rule else [])


def test_points_of_a_gap_are_no_per_cent_of_a_change(records: CheckedRecords) -> None:
    gap = 100 * records.by_name["gap.learns_the_style"].value
    for text, rules in (
        (f"On strangers of house_style all_layer beats the baseline by {gap:.1f} points.", []),
        (f"On strangers of house_style all_layer beats the baseline by {gap:.1f} %.", ["number.percent"]),
        (f"On strangers of house_style all_layer is {gap:.1f} % higher than the baseline.", ["number.percent"]),
    ):
        assert [r for r in said(text, records) if r.startswith("number")] == rules, text


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("all_layer was trained with seeds 0, 1 and 2.", True),
        ("all_layer was trained with seeds 1, 2 and 7.", False),
        ("The interval of learns_the_style excludes zero.", True),
        ("The interval of learns_the_style does not exclude 0.", False),
        ("The interval of targets_matter excludes 0.", False),
        ("On strangers of house_style all_layer scores above 0.88.", True),
        ("On strangers of house_style all_layer scores above 0.9.", False),
    ],
)
def test_names_of_seeds_zeros_of_intervals_and_bounds_are_checked(
    text: str, right: bool, records: CheckedRecords
) -> None:
    """A score of .887 rounds to 0.9, and is not above it."""
    assert ([r for r in said(text, records) if r.startswith(("number", "speech"))] == []) == right


def test_the_lower_end_is_not_the_upper_one(records: CheckedRecords) -> None:
    low, high = (value(records, f"ci.learns_the_style.{end}", "+.3f") for end in ("low", "high"))
    for word, end, right in (
        ("lower", low, True),
        ("lower", high, False),
        ("upper", high, True),
        ("upper", low, False),
    ):
        found = said(f"The {word} end of the interval of learns_the_style is {end}.", records)
        assert ([r for r in found if r.startswith("number")] == []) == right, (word, end, found)


def test_a_seed_in_a_list_is_no_count_of_seeds(tmp_path: Path) -> None:
    """Of seeds 0 and 1 there are two, and seed 2 is none of them."""
    records = read_records(Store(lint_study.build(tmp_path, (0, 1))))
    assert "number.unbound" in said("all_layer was trained with seeds 1 and 2.", records)
    assert not [r for r in said("all_layer was trained with seeds 0 and 1.", records) if r.startswith("number")]

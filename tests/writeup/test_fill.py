"""References in pages: filled from records, kept up to date, checked; tables in every form."""

# ruff: noqa: E501 - pages and references read better on one line

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from veritune.errors import InputError
from veritune.records import Estimate, to_json
from veritune.records.probes import Leak
from veritune.writeup import pagework
from veritune.writeup.lint import lint_command

_spec = importlib.util.spec_from_file_location("lint_study", Path(__file__).with_name("lint_study.py"))
assert _spec and _spec.loader
lint_study = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lint_study)

RESULTS = {
    "base": {"gsm8k": {"accuracy": 0.352, "n": 1319}},
    "tuned": {"gsm8k": {"accuracy": 0.541, "n": 1319}},
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS), encoding="utf-8")
    return path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def filled(page: Path, results: Path) -> str:
    pagework.fill_command([page, results], None, [], None, plain=False)
    return page.read_text(encoding="utf-8")


def test_a_reference_is_filled_and_filled_again_after_the_record_changed(tmp_path: Path, results: Path) -> None:
    page = write(tmp_path, "p.md", "Tuned reaches {{ tuned.gsm8k.accuracy | percent }} on GSM8K.\n")
    mark = "<!--v:tuned.gsm8k.accuracy | percent-->"
    assert filled(page, results) == f"Tuned reaches {mark}54.1 %<!--/v--> on GSM8K.\n"
    assert filled(page, results) == f"Tuned reaches {mark}54.1 %<!--/v--> on GSM8K.\n"
    results.write_text(json.dumps({"tuned": {"gsm8k": {"accuracy": 0.6}}}), encoding="utf-8")
    checked = pagework.check_command([page, results], None, [], strict=False)
    assert not checked.clean
    assert "was filled with 54.1 %; the records say 60.0 %" in pagework.check_text(checked)
    assert "60.0 %" in filled(page, results)


def test_latex_gets_a_command_that_keeps_the_name(tmp_path: Path, results: Path) -> None:
    text = "\\documentclass{article}\n\\begin{document}\nIt reaches {{ tuned.gsm8k.accuracy | percent }}.\n\\end{document}\n"
    page = write(tmp_path, "p.tex", text)
    once = filled(page, results)
    assert "\\vtref{tuned.gsm8k.accuracy | percent}{54.1 \\%}" in once
    assert once.count("\\providecommand{\\vtref}[2]{#2}\n\\begin{document}") == 1
    assert filled(page, results) == once
    assert pagework.check_command([page, results], None, [], strict=False).clean


def test_a_notebooks_markdown_cells_are_filled_and_its_code_is_left_alone(tmp_path: Path, results: Path) -> None:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["It reaches\n", "{{ tuned.gsm8k.accuracy }}."]},
        {"cell_type": "code", "metadata": {}, "source": ["f'{{ tuned.gsm8k.accuracy }}'"], "outputs": []},
    ]
    page = write(tmp_path, "p.ipynb", json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}))
    book = json.loads(filled(page, results))
    assert "".join(book["cells"][0]["source"]) == "It reaches\n<!--v:tuned.gsm8k.accuracy-->0.541<!--/v-->."
    assert book["cells"][1] == cells[1]
    report, code = lint_command([page], None, [results])
    assert code == 0 and not isinstance(report, list) and report.bound == 1


def test_references_in_code_are_left_alone(tmp_path: Path, results: Path) -> None:
    text = "Write `{{ tuned.gsm8k.accuracy }}`:\n\n```\n{{ tuned.gsm8k.accuracy }}\n```\n"
    assert filled(write(tmp_path, "p.qmd", text), results) == text


def test_an_unknown_name_is_told_with_the_nearest_and_nothing_is_written(tmp_path: Path, results: Path) -> None:
    page = write(tmp_path, "p.md", "{{ tuned.gsm8k.acuracy }} {{ base.gsm8k.accuracy }}\n")
    with pytest.raises(
        InputError, match=r"no record has the name 'tuned.gsm8k.acuracy'; did you mean tuned.gsm8k.accuracy"
    ):
        filled(page, results)
    assert "<!--" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("tuned.gsm8k.accuracy | percnt", "unknown option 'percnt'; did you mean percent"),
        ("tuned.gsm8k.accuracy | interval", "has no interval"),
        ("tuned.gsm8k.accuracy | of", "has no denominator"),
        ("tuned.gsm8k.accuracy | range", "has no spread over seeds"),
    ],
)
def test_an_option_that_asks_for_what_is_not_recorded_is_refused(
    tmp_path: Path, results: Path, reference: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        filled(write(tmp_path, "p.md", "{{ " + reference + " }}"), results)


def test_numbers_typed_by_hand_are_named_with_the_reference_to_write(tmp_path: Path, results: Path) -> None:
    page = write(tmp_path, "p.md", "The accuracy of tuned on gsm8k is 0.541, and 17 cats agree.\n")
    found = pagework.check_command([page, results], None, [], strict=False)
    text = pagework.check_text(found)
    assert "0.541 was typed by hand; write {{ tuned.gsm8k.accuracy }}" in text
    assert "17 was typed by hand; no record has this value" in text
    assert found.clean and not pagework.check_command([page, results], None, [], strict=True).clean


def test_a_number_that_was_changed_inside_a_filled_reference_is_wrong(tmp_path: Path, results: Path) -> None:
    page = write(tmp_path, "p.md", "It reaches {{ tuned.gsm8k.accuracy }}.\n")
    text = filled(page, results)
    page.write_text(text.replace("0.541", "0.641"), encoding="utf-8")
    report, code = lint_command([page], None, [results])
    assert not isinstance(report, list)
    assert code == 2 and [r.outcome for r in report.readings] == ["wrong"]
    assert "was filled with '0.641'; the records say '0.541'" in report.findings[0].message


def test_plain_leaves_the_marks_out_and_asks_for_another_file(tmp_path: Path, results: Path) -> None:
    page, out = write(tmp_path, "p.md", "It reaches {{ tuned.gsm8k.accuracy }}.\n"), tmp_path / "out.md"
    with pytest.raises(InputError, match="--out FILE"):
        pagework.fill_command([page], None, [results], None, plain=True)
    pagework.fill_command([page], None, [results], out, plain=True)
    assert out.read_text(encoding="utf-8") == "It reaches 0.541.\n"
    assert "{{" in page.read_text(encoding="utf-8")


def test_a_csv_is_a_table_by_reference_and_in_every_form(tmp_path: Path) -> None:
    table = write(tmp_path, "scores.csv", "model,acc_%\nbase,35.2\ntuned,54.1\n")
    page = write(tmp_path, "p.md", "{{ table.scores }}\n")
    text = filled(page, table)
    assert "| tuned | 54.1 |" in text and text.startswith("<!--veritune:begin table.scores-->\n")
    assert filled(page, table) == text
    latex = pagework.export_command("table.scores", None, [table], "latex", None)
    assert "\\toprule\nmodel & acc\\_\\% \\\\\n\\midrule\nbase & 35.2 \\\\" in latex and "\\bottomrule" in latex
    assert pagework.export_command("table.scores", None, [table], "csv", None).split("\n")[1] == "base,35.2"
    with pytest.raises(InputError, match="expected markdown, latex, csv, model-index; found 'html'"):
        pagework.export_command("table.scores", None, [table], "html", None)
    with pytest.raises(InputError, match="no scores for a model-index"):
        pagework.export_command("table.scores", None, [table], "model-index", None)


def test_a_negative_zero_is_printed_as_zero(tmp_path: Path) -> None:
    record = write(tmp_path, "r.json", json.dumps({"given_up": {"share": -0.0}}))
    page = write(tmp_path, "p.md", "It gives up {{ given_up.share | .3f }}.\n")
    assert filled(page, record) == "It gives up <!--v:given_up.share | .3f-->0.000<!--/v-->.\n"


def numbers_wrong(page: Path, folder: Path) -> list[str]:
    return [f.rule for f in lint_command([page], folder)[0].findings if f.rule.startswith("number.")]


def test_what_a_probe_recorded_has_its_claim_s_name_without_a_claim(tmp_path: Path) -> None:
    """Only a claim's own quantity had a name; n_eff of an arm without a claim was copied by hand."""
    folder = lint_study.build(tmp_path, (0, 1))
    (folder / "probes").mkdir(exist_ok=True)
    flattered = Estimate("flattered held-out loss", 0.059, 0.017, 0.107, 0.95, 96, "ratio of sums")
    unknown = Estimate("by the leak alone", None, None, None, 0.95, 96, "difference", warnings=("too few families",))
    inner = Leak("all_layer", 0, 8, flattered, flattered, unknown, {}, {}, {}, "", "", "")
    write(folder, "probes/leak.json", json.dumps(to_json({"record": inner})))
    page = write(tmp_path, "p.md", "The leak flatters by {{ leak.flattered.all_layer | interval }}.\n")
    pagework.fill_command([page], folder, [], None, plain=False)
    mark = "<!--v:leak.flattered.all_layer | interval-->0.059 (95 % interval 0.017 to 0.107)<!--/v-->"
    assert page.read_text(encoding="utf-8") == f"The leak flatters by {mark}.\n"
    assert numbers_wrong(page, folder) == []
    page.write_text(page.read_text(encoding="utf-8").replace("0.059", "0.060"), encoding="utf-8")
    assert numbers_wrong(page, folder) == ["number.stale"]
    page.write_text("{{ leak.by_leak.all_layer }}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"leak\.by_leak\.all_layer has no value: .*too few families"):
        pagework.fill_command([page], folder, [], None, plain=False)
    assert "leak.flattered.all_layer" in [n.name for n in pagework.names_command(folder, [], "flattered")]

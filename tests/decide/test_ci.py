"""What a pipeline asks of `compare`: exit codes, Markdown, JUnit, annotations, pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from veritune import ci as forms
from veritune.commands.app import app
from veritune.decide import ci
from veritune.decide.commands import CompareOptions, compare
from veritune.decide.sides import parse_side

SRC = Path(__file__).parents[2] / "src"


def scores(path: Path, values, name="score") -> Path:
    rows = [
        {"id": i, name: None if isinstance(v, str) else v, "reason": v if isinstance(v, str) else None}
        for i, v in enumerate(values)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def cli(*arguments, text=None):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], input=text)


@pytest.fixture
def sides(tmp_path):
    good = [1.0] * 80 + [0.0] * 20
    return {
        "good": scores(tmp_path / "good.jsonl", good),
        "poor": scores(tmp_path / "poor.jsonl", [1.0] * 50 + [0.0] * 50),
        "same": scores(tmp_path / "same.jsonl", [0.0, 1.0, *good[2:]]),
        "lost": scores(tmp_path / "lost.jsonl", [*["crashed"] * 20, *good[20:]]),
    }


@pytest.mark.parametrize(
    ("a", "b", "options", "code", "says"),
    [
        ("good", "poor", ["better"], 0, "met, better, size unresolved"),
        ("poor", "good", ["better"], 2, "not met, worse, size unresolved"),
        ("good", "same", ["better"], 2, "not met, inconclusive"),
        ("good", "poor", ["better", "--margin", "0.1"], 0, "met, better by the margin"),
        ("good", "poor", ["better", "--margin", "0.29"], 2, "not met, better, size unresolved"),
        ("good", "same", ["not_worse", "--margin", "0.06"], 0, "above -0.06"),
        ("good", "same", ["not_worse", "--margin", "0.01"], 2, "not above -0.01"),
        ("good", "poor", ["not_worse", "--margin", "0.05"], 0, "above -0.05"),
        ("good", "same", ["equivalent", "--margin", "0.1"], 0, "met, equivalent"),
        ("good", "poor", ["equivalent", "--margin", "0.1"], 2, "not met, better by the margin"),
        ("lost", "good", ["not_worse", "--margin", "0.1"], 2, "scores that the machine lost could bring"),
        ("lost", "good", ["equivalent", "--margin", "0.1"], 2, "not met, inconclusive"),
    ],
)
def test_a_demand_is_met_only_where_the_evidence_says_so(sides, a, b, options, code, says):
    done = cli(sides[a], sides[b], "--fail-unless", *options)
    assert done.exit_code == code, done.output
    assert says in " ".join(done.output.split())


def test_not_worse_counts_in_the_good_direction(tmp_path):
    low, high = scores(tmp_path / "low.jsonl", [0.1, 0.2] * 30), scores(tmp_path / "high.jsonl", [0.5, 0.6] * 30)
    ask = ("--fail-unless", "not_worse", "--margin", "0.05")
    assert cli(low, high, *ask, "--lower-is-better").exit_code == 0
    assert cli(high, low, *ask, "--lower-is-better").exit_code == 2
    assert cli(low, high, *ask, "--higher-is-better").exit_code == 2
    done = cli(low, high, *ask)
    assert done.exit_code == 1
    assert "nothing says whether higher scores are better" in str(done.exception)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--fail-unless", "best"], "expected one of better, not_worse, equivalent"),
        (["--fail-unless", "not_worse"], "needs a margin"),
        (["--fail-unless", "equivalent"], "needs a margin"),
        (["--json", "--markdown", "-"], "both write to the screen"),
    ],
)
def test_a_demand_that_cannot_be_judged_is_the_users_input_and_nothing_is_written(sides, tmp_path, options, says):
    done = cli(sides["good"], sides["poor"], *options, "--junit", tmp_path / "j.xml")
    assert done.exit_code == 1
    assert says in str(done.exception)
    assert not (tmp_path / "j.xml").exists()


def test_every_comparison_of_a_call_must_meet_the_demand(sides):
    done = cli(f"a={sides['good']}", f"b={sides['same']}", f"c={sides['poor']}", "--fail-unless", "better")
    assert done.exit_code == 0
    done = cli(
        f"a={sides['good']}", f"b={sides['same']}", f"c={sides['poor']}", "--fail-unless", "better", "--all-pairs"
    )
    assert done.exit_code == 2


def report(sides, demand, **options):
    names = [parse_side(f"x|y=<&>={sides['good']}"), parse_side(f"b,c:%\n={sides['poor']}")]
    return compare(names, CompareOptions(demand=demand, **options))


def test_markdown_shows_the_verdict_and_names_cannot_leave_their_cell(sides, tmp_path):
    done = cli(sides["good"], sides["poor"], "--fail-unless", "better", "--markdown", tmp_path / "pr.md")
    text = (tmp_path / "pr.md").read_text()
    assert done.exit_code == 0 and "decision" in done.output
    assert "### good against poor" in text
    assert "**PASSED** better holds: better, size unresolved" in text
    assert "| good | 0.8000 (80/100) |" in text
    assert "> This system good scores higher than poor" in text
    printed = cli(sides["good"], sides["poor"], "--markdown", "-")
    assert printed.output.startswith("### good against poor") and "flipped" not in printed.output
    hostile = ci.markdown(report(sides, None))
    assert "x|y" not in hostile and "x&#124;y=&lt;&amp;&gt;" in hostile
    assert all(line.count("|") == 3 for line in hostile.splitlines() if line.startswith("|") and "---" not in line)


def test_junit_is_xml_with_a_failure_for_each_demand_not_met(sides, tmp_path):
    done = cli(sides["poor"], sides["good"], "--fail-unless", "better", "--junit", tmp_path / "j.xml")
    assert done.exit_code == 2
    root = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert (root.get("tests"), root.get("failures")) == ("1", "1")
    (case,) = root.iter("testcase")
    assert case.get("name") == "poor against good: better"
    assert case.find("failure").get("message").startswith("better does not hold: worse, size unresolved")
    ElementTree.fromstring(forms.junit(ci.check_report(report(sides, "better"))))


def lines(compared):
    return forms.github_lines(ci.check_report(compared))


def test_annotations_are_one_line_each_and_escape_what_github_reads(sides):
    assert lines(report(sides, "better"))[0].startswith(
        "::notice title=x|y=<&> against b%2Cc%3A%25%0A%3A better::better holds: better"
    )
    assert all("\n" not in line for line in lines(report(sides, "equivalent", margin=0.1)))
    assert lines(report(sides, "equivalent", margin=0.1))[0].startswith("::error title=")
    done = cli(sides["good"], sides["poor"], "--github", "--json")
    assert json.loads(done.stdout)["comparisons"] and "::notice title=good against poor::" in done.stderr


# ---------------------------------------------------------------- pipes


def test_standard_input_and_process_substitution_are_files(sides):
    done = cli("-", sides["poor"], text=sides["good"].read_text())
    assert done.exit_code == 0 and "A  stdin" in done.output
    named = cli("new=-", sides["poor"], text=sides["good"].read_text())
    assert "A  new" in named.output
    twice = cli("a=-", "b=-", text=sides["good"].read_text())
    assert twice.exit_code == 1 and "can be read only once" in str(twice.exception)
    script = f'"{sys.executable}" -m veritune compare <(cat "{sides["good"]}") b=<(cat "{sides["poor"]}")'
    ran = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(SRC)}, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "(80/100)" in ran.stdout and "B  b " in ran.stdout


def test_an_empty_pipe_is_one_line(sides):
    done = cli("-", sides["poor"], text="")
    assert done.exit_code == 1 and "stdin: expected" in str(done.exception) and "an empty file" in str(done.exception)

"""What a pipeline is given: limits of an audit, the forms of lint, the Action, the hooks, the pytest plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from typer.testing import CliRunner, Result

from veritune import ci
from veritune.commands.app import app, commands
from veritune.data.audit import AuditConfig, audit_data
from veritune.data.audit_ci import check_report, exit_code, judge_limits, parse_limits
from veritune.errors import InputError

pytest_plugins = "pytester"
REPO = Path(__file__).parents[1]
ENV = os.environ | {"PYTHONPATH": str(REPO / "src")}
THINGS = ["anchor", "barge", "cable", "dock", "eddy", "fender", "galley", "hatch", "island", "jetty"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(word: str, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Where did the crew stow the {word} at noon?", "completion": f"By the {word}.", **more}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Ten rows, of which the last repeats the first; the halves of column `part` share that row."""
    found = [row(word, part="train") for word in THINGS[:9]]
    return write(tmp_path / "rows.jsonl", [*found, row("anchor", part="test")])


@pytest.fixture
def exam(tmp_path: Path) -> Path:
    return write(tmp_path / "exam.jsonl", [row("barge"), row("zeppelin")])


def cli(*words: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, words)), input=text)


# ---------------------------------------------------------------- limits of an audit


@pytest.mark.parametrize(
    ("limit", "code", "says"),
    [
        ("duplicates", 2, "NOT HELD  no duplicates: 1 of 10 rows (10.00%)"),
        ("duplicates>0", 2, "NOT HELD  no duplicates"),
        ("duplicates>1", 0, "held      duplicates at most 1: 1 of 10 rows"),
        ("duplicates>10%", 0, "held      duplicates at most 10%"),
        ("duplicates>9.9%", 2, "NOT HELD  duplicates at most 9.9%"),
        ("duplicate > 0.1", 0, "held      duplicate at most 10%"),
        ("flagged,refusal", 0, "held      no refusal: 0 of 10 rows (0.00%)"),
        ("variants>8", 2, "NOT HELD  variants at most 8: 9 of 10 rows"),
        ("variants>9", 0, "held      variants at most 9"),
        ("rejected>0", 0, "held      no rejected: 0 of 10 records"),
        ("flagged, duplicates", 2, "held      no flagged"),
    ],
)
def test_a_limit_counts_rows_or_a_share_of_them(rows: Path, limit: str, code: int, says: str) -> None:
    done = cli("audit", rows, "--fail-on", limit)
    assert done.exit_code == code, done.output
    assert says in done.output


def test_a_leak_is_what_two_splits_share_and_contamination_what_an_eval_does(rows: Path, exam: Path) -> None:
    asked = ["audit", rows, "--split-field", "part", "--eval", exam, "--fail-on", "leak,contamination,near_copies"]
    done = cli(*asked, "--json")
    assert done.exit_code == 2
    record = json.loads(done.output)
    assert record["exit_code"] == 2 and [limit["held"] for limit in record["fail_on"]] == [False, False, False]
    leak, contamination, near = (limit["found"] for limit in record["fail_on"])
    assert "1 of 1 rows of test" in leak or "test" in leak
    assert contamination.startswith("1 of 10 rows hold") and near.startswith("10 of 10 rows")


def test_an_eval_that_cannot_be_read_does_not_hold(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    done = cli("audit", rows, "--eval", tmp_path / "empty.jsonl", "--fail-on", "contamination")
    assert done.exit_code == 2 and "NOT HELD  no contamination" in done.output


def test_limits_add_to_what_fails_an_audit_by_itself(rows: Path, exam: Path, tmp_path: Path) -> None:
    assert cli("audit", rows, "--eval", exam, "--fail-on", "refusal").exit_code == 2
    with rows.open("a", encoding="utf-8") as out:
        out.write('{"prompt": \n')
    assert cli("audit", rows, "--fail-on", "refusal").exit_code == 1
    assert cli("audit", rows, "--fail-on", "rejected").exit_code == 2
    nothing = audit_data(write(tmp_path / "none.jsonl", []))
    assert [o.held for o in judge_limits(parse_limits("flagged>50%", AuditConfig(), evals=False), nothing)] == [False]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("copies", "found 'copies'"),
        ("", "found ''"),
        ("duplicates>=3", "found 'duplicates>=3'"),
        ("duplicates>-1", "found 'duplicates>-1'"),
        ("duplicates>nan", "found 'duplicates>nan'"),
        ("duplicates,duplicates>3", "names duplicates twice"),
        ("duplicates>100%", "a share below 1"),
        ("duplicates>2.5", "a whole number of rows"),
        ("leak>2", "leak takes no number"),
        ("leak", "--fail-on leak checks a split, but no split was given."),
        ("contamination", "compares the rows with an eval"),
        ("near_copies>2", "compares the rows with an eval"),
    ],
)
def test_a_limit_that_cannot_be_judged_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says.replace("'", ".")):
        parse_limits(text, AuditConfig(), evals=False)


def test_a_reason_of_ones_own_pattern_can_be_a_limit(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("stowed: {says: a stowed thing, patterns: ['by the b']}\n", encoding="utf-8")
    done = cli("audit", rows, "--patterns", tmp_path / "mine.yaml", "--fail-on", "stowed")
    assert done.exit_code == 2 and "NOT HELD  no stowed: 1 of 10 rows" in done.output, done.output


def test_a_case_fails_wherever_the_exit_status_does(rows: Path, exam: Path, tmp_path: Path) -> None:
    with rows.open("a", encoding="utf-8") as out:
        out.write('{"prompt": \n')
    broken = audit_data(rows)
    shared = audit_data(write(tmp_path / "s.jsonl", [row("oar", p="a"), row("oar", p="b")]),
                        config=AuditConfig(split_field="p"))  # fmt: skip
    leaky = audit_data(write(tmp_path / "l.jsonl", [row("barge")]), evals=[exam])
    clean = audit_data(write(tmp_path / "c.jsonl", [row("oar")]))
    for report, failing in ((broken, ["records"]), (shared, ["leak"]), (leaky, ["contamination"]), (clean, [])):
        cases = check_report(report, ()).cases
        assert [case.title for case in cases if not case.passed] == failing
        assert bool(exit_code(report, ())) == bool(failing)
    (case,) = (c for c in check_report(broken, ()).cases if not c.passed)
    assert (case.file, case.line) == ("rows.jsonl", 11) and "10 of 11 records are usable" in case.says


def test_the_audits_page_junit_and_annotations_say_the_same(rows: Path, tmp_path: Path) -> None:
    forms = ["--fail-on", "duplicates,flagged", "--github", "--junit", tmp_path / "a.xml", "--markdown", "-"]
    done = cli("audit", rows, *forms)
    assert done.exit_code == 2
    assert "**FAILED** 2 of 3 checks hold" in done.stdout
    assert "| no duplicates | **failed** | 1 of 10 rows (10.00%) |" in done.stdout
    assert "::error title=no duplicates::1 of 10 rows (10.00%25)" in done.stderr
    assert "::notice title=no flagged::0 of 10 rows" in done.stderr
    root = ElementTree.parse(tmp_path / "a.xml").getroot()
    assert (root.get("tests"), root.get("failures")) == ("3", "1")
    assert [c.get("name") for c in root.iter("testcase") if c.find("failure") is not None] == ["no duplicates"]
    assert cli("audit", rows, "--json", "--markdown", "-").exit_code == 1


def test_a_stranger_s_text_is_no_markup(tmp_path: Path) -> None:
    hostile = ci.CheckCase("a,b:c\n%", "g", False, "x\n::error::y", file="f,1", line=3, body="\x00\ud800<&>")
    report = ci.CheckReport("s", (hostile,), "")
    (line,) = ci.github_lines(report)
    assert line == "::error file=f%2C1,line=3,title=a%2Cb%3Ac%0A%25::x%0A::error::y"
    case = next(ElementTree.fromstring(ci.junit(report)).iter("testcase"))
    assert case.findtext("system-out") == "\ufffd\ufffd<&>"
    assert ci.markdown_cell("[a](b) | `c` <i> @d") == ("&#91;a&#93;(b) &#124; &#96;c&#96; &lt;i&gt; &#64;d")


# ---------------------------------------------------------------- pipes


def test_an_audit_and_a_lint_read_pipes(rows: Path, exam: Path, tmp_path: Path) -> None:
    done = cli("audit", "-", "--fail-on", "duplicates", text=rows.read_text())
    assert done.exit_code == 2 and done.output.startswith("stdin.jsonl  sha256"), done.output
    refused = cli("audit", "-", "--drop", tmp_path / "out.jsonl", text=rows.read_text())
    assert refused.exit_code == 1 and not (tmp_path / "out.jsonl").exists()
    (tmp_path / "r.json").write_text('{\n "accuracy": 0.9}', encoding="utf-8")
    lint = cli("lint", "-", "--records", tmp_path / "r.json", text="The accuracy is 0.9.\n")
    assert lint.exit_code == 0 and lint.output.startswith("stdin.md: clean; 1 of 1"), lint.output
    script = (
        f'"{sys.executable}" -m veritune audit <(cat "{rows}") --eval <(cat "{exam}") --fail-on contamination;'
        f' test $? = 2 && "{sys.executable}" -m veritune lint <(echo Accuracy is 0.9.) --records <(cat r.json)'
    )
    ran = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=ENV, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "1 of 10 rows hold" in ran.stdout and ": clean; 1 of 1 numbers agree" in ran.stdout


# ---------------------------------------------------------------- lint


def test_a_lint_finding_stands_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"accuracy": 0.9}', encoding="utf-8")
    page = tmp_path / "p.md"
    page.write_text("# Run\n\nThe accuracy is 0.9.\n\nThe accuracy is 0.7.\n", encoding="utf-8")
    asked = ["lint", page, "--records", tmp_path / "r.json", "--github", "--markdown", tmp_path / "pr.md"]
    done = cli(*asked, "--junit", tmp_path / "l.xml", "--json")
    assert done.exit_code == 2 and json.loads(done.stdout)["numbers"] == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("::error")]
    assert len(errors) == 2 and errors[0].startswith(f"::error file={page},line=5,title=number.")
    assert "0 notes; 1 of 2 numbers agree" in errors[1]
    assert (
        "**FAILED** 1 finding" in (tmp_path / "pr.md").read_text()
        and "| 5 | number." in (tmp_path / "pr.md").read_text()
    )
    assert ElementTree.parse(tmp_path / "l.xml").getroot().get("failures") == "2"
    page.write_text("The accuracy is 0.9.\n", encoding="utf-8")
    assert cli(*asked).exit_code == 0 and "**PASSED**" in (tmp_path / "pr.md").read_text()


# ---------------------------------------------------------------- the Action and the hooks


def action(tmp_path: Path, command: str, arguments: str, junit: str = "") -> subprocess.CompletedProcess[str]:
    """The last step of action.yml as GitHub runs it."""
    step = yaml.safe_load((REPO / "action.yml").read_text(encoding="utf-8"))["runs"]["steps"][-1]
    assert set(step["env"]) == {"COMMAND", "ARGUMENTS", "JUNIT"}
    (tmp_path / "bin").mkdir(exist_ok=True)
    shim = tmp_path / "bin" / "veritune"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m veritune "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    given = {"COMMAND": command, "ARGUMENTS": arguments, "JUNIT": junit, "RUNNER_TEMP": str(tmp_path)}
    env = {**ENV, **given, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    env["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{env['PATH']}"
    bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(bash, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)


def test_the_action_passes_arguments_writes_the_summary_and_fails_as_the_command_does(
    rows: Path, tmp_path: Path
) -> None:
    rows.rename(tmp_path / "my rows.jsonl")
    done = action(tmp_path, "audit", "my rows.jsonl\n--fail-on\nduplicates\n", junit="a.xml")
    assert done.returncode == 2, done.stderr
    assert "::error title=no duplicates" in done.stderr and (tmp_path / "a.xml").exists()
    assert "### Audit of my rows.jsonl" in (tmp_path / "summary.md").read_text()
    assert action(tmp_path, "audit", "my rows.jsonl\n--fail-on\nrefusal\n").returncode == 0
    assert (tmp_path / "summary.md").read_text().count("### Audit") == 2
    assert action(tmp_path, "audit", "nothere.jsonl").returncode == 1
    assert (tmp_path / "summary.md").read_text().count("### Audit") == 2
    refused = action(tmp_path, "run; rm", "x")
    assert refused.returncode == 1 and "expected audit, compare, gate or lint" in refused.stderr


def test_the_hooks_and_the_action_call_commands_that_exist() -> None:
    hooks = yaml.safe_load((REPO / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    called = {hook["entry"].removeprefix("veritune ") for hook in hooks}
    assert called == {"audit", "compare", "gate", "lint"} < set(commands())
    assert {hook["language"] for hook in hooks} == {"python"}
    used = yaml.safe_load((REPO / "action.yml").read_text(encoding="utf-8"))["inputs"]["command"]["description"]
    assert all(name in used for name in called)


# ---------------------------------------------------------------- pytest


def test_a_line_of_a_veritune_file_is_a_test(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPO / "src"))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # installed or not, it is loaded once: by -p
    (pytester.path / "r.json").write_text('{"accuracy": 0.9}')
    (pytester.path / "bad.md").write_text("The accuracy is 0.7.\n")
    (pytester.path / "checks.veritune").write_text(
        "# the page\nschema\n\nlint bad.md --records r.json  # wrong\nverify nothere\n"
    )
    pytester.makepyfile(
        "def test_it(veritune):\n    assert '$schema' in veritune('schema')\n\n"
        "def test_fails(veritune):\n    veritune('lint', 'bad.md', '--records', 'r.json')\n"
    )
    done = pytester.runpytest_subprocess("-p", "veritune.pytest_plugin", "-p", "no:cacheprovider", "-v")
    done.assert_outcomes(passed=2, failed=3)
    text = done.stdout.str()
    assert "checks.veritune::line 2 [schema] PASSED" in text
    assert "veritune lint bad.md --records r.json does not pass" in text and "bad.md: 1 finding" in text
    assert "veritune verify nothere ended with status 1" in text
    assert "Traceback" not in text
    (pytester.path / "checks.veritune").write_text("lint 'bad.md\n")
    broken = pytester.runpytest_subprocess("-p", "veritune.pytest_plugin", "-p", "no:cacheprovider", "checks.veritune")
    assert broken.ret != 0 and "checks.veritune:1: No closing quotation" in broken.stdout.str()


def test_the_plugin_is_declared_and_imports_nothing_of_the_library() -> None:
    import tomllib

    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"veritune": "veritune.pytest_plugin"}
    code = "import sys, veritune.pytest_plugin; print([m for m in sys.modules if m.startswith('veritune.')])"
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=True)
    assert set(eval(done.stdout)) <= {"veritune.pytest_plugin", "veritune.faces"}

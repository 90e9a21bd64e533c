"""May it ship? Walks a finished study through the release gates, plants one failure a gate, promotes and rolls back.

    python examples/may-it-ship/walk.py STUDY --out FOLDER --golden ROWS --set PROMPTS --questions ROWS

STUDY is a finished study with a `release` section, such as examples/maths-lora after its run; it is copied and left as
it is. Each step is a `veritune` command. FOLDER/walk.json records command, exit code, seconds and output of each,
FOLDER/walk.md the same to read. The exit code is 1 if a planted failure went through.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

PERSON = "Ada Lovelace"
OWN_FILES = ("events.jsonl", "notes.jsonl")
"""What a study writes beside its own data and settings."""


@dataclass(frozen=True)
class Step:
    """One command as it was given, and what came of it."""

    title: str
    command: str
    exit_code: int
    seconds: float
    output: str


@dataclass(frozen=True)
class Planted:
    """A failure planted for one gate: refused, and by which sentence."""

    gate: str
    what: str
    refused: bool
    sentence: str


@dataclass
class Walk:
    """Where everything lies, and what was done so far."""

    out: Path
    options: argparse.Namespace
    run: Callable[[list[str], Path], tuple[int, str]]
    steps: list[Step] = field(default_factory=list)
    planted: list[Planted] = field(default_factory=list)

    @property
    def study(self) -> Path:
        return self.out / "study"

    def veritune(self, title: str, *arguments: object) -> Step:
        """Run one command in FOLDER, keep it, print it."""
        words = [str(argument) for argument in arguments]
        started = time.monotonic()
        code, output = self.run(words, self.out)
        step = Step(title, shlex.join(["veritune", *words]), code, round(time.monotonic() - started, 1), output)
        self.steps.append(step)
        print(f"# {title} ({step.seconds:.0f} s)\n$ {step.command}\n{output}\n[{step.exit_code}]\n", flush=True)
        return step

    def gates(self, title: str, study: str, *arguments: object) -> dict[str, dict[str, Any]]:
        """The gates' results by name, shown as the screen shows them."""
        self.veritune(title, "gate", study, *arguments)
        _, output = self.run(["gate", study, *map(str, arguments), "--json"], self.out)
        return {gate["gate"]: gate for gate in json.loads(output)["gates"]}

    def clone(self, name: str) -> Path:
        """A copy of the walked study to damage; weights are linked, since nothing writes into them."""
        shutil.copytree(self.study, self.out / name, symlinks=True, copy_function=copy_or_link)
        return self.out / name

    def hold(self, name: str, what: str, gates: dict[str, dict[str, Any]]) -> None:
        """Record whether a gate held against what was planted: anything but a pass, or a waiver, is a refusal."""
        self.judge(name, what, gates[name]["status"] not in ("passed", "waived"), gates[name]["message"])

    def judge(self, gate: str, what: str, refused: bool, sentence: str) -> None:
        """Record what became of a planted failure."""
        self.planted.append(Planted(gate, what, refused, sentence))
        print(f"planted in {gate}: {what}: {'refused' if refused else 'WENT THROUGH'}: {sentence}\n", flush=True)

    def save(self) -> None:
        """Write walk.json and walk.md; paths below FOLDER are written relative to it."""
        record = {"steps": [asdict(s) for s in self.steps], "planted": [asdict(p) for p in self.planted]}
        text = json.dumps(record, indent=1, ensure_ascii=False).replace(f"{self.out}/", "")
        (self.out / "walk.json").write_text(text + "\n", encoding="utf-8")
        (self.out / "walk.md").write_text(to_markdown(json.loads(text)), encoding="utf-8")


def to_markdown(record: dict[str, Any]) -> str:
    """The walk as a page: every command with its output, then the planted failures as a table."""
    parts = [
        f"## {step['title']}\n\n```console\n$ {step['command']}\n{step['output']}\n[exit {step['exit_code']}]\n```\n"
        for step in record["steps"]
    ]
    rows = [
        f"| {p['gate']} | {p['what']} | {'yes' if p['refused'] else 'NO'} | {p['sentence']} |"
        for p in record["planted"]
    ]
    table = ["| gate | planted | refused | by |", "| --- | --- | --- | --- |", *rows]
    return "\n".join([*parts, "## Planted failures", "", *table, ""])


def run_process(words: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and output of `veritune WORDS`, run in a folder."""
    command = [sys.executable, "-m", "veritune", *words]
    environment = {**os.environ, "VERITUNE_BY": PERSON}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, "\n".join(part.strip() for part in (done.stdout, done.stderr) if part.strip())


def copy_or_link(source: str, target: str) -> str:
    """Copy a file, or link it where it holds weights."""
    if source.endswith(".safetensors"):
        os.link(source, target)
        return target
    return str(shutil.copy2(source, target))


# ---------------------------------------------------------------- evidence, bundle, promotion


def make_evidence(walk: Walk) -> None:
    """What the gates read: merge, safety, calibration, serving. Answers to red-team prompts that are there are kept."""
    given = walk.options
    merge = ("merge-parity", "study", "--out", "study/release/merged", "--rows", given.rows)
    walk.veritune("The adapter merged, and compared with its merged model", *merge, *short(given))
    prompts = [word for path in given.set for word in ("--set", path)]
    if not (walk.study / "release" / "safety.json").exists():
        walk.veritune("Red-team prompts and harmless ones, base and candidate", "safety", "study", *prompts)
    if given.questions:
        record = ("--out", "calibration.json", "--extract", given.extract, "--expected", given.expected)
        probe = ("probe", "calibration", "--model", base_of(walk), "--adapter", adapter_of(walk))
        walk.veritune("Is it right as often as it is sure?", *probe, "--data", given.questions, *record, *short(given))
        walk.veritune(
            "Bound to these weights, by name", "gate", "study", "--attest", "calibration.json", "--by", PERSON
        )
    if "serving" not in given.without:
        price = ("--base", base_of(walk), "--price-per-hour", given.price)
        serve(walk, "The merged model served beside the base", "study", "study/release/merged", *price)


def serve(walk: Walk, title: str, study: str, model: str, *more: object) -> Step:
    """`serve-parity` on the golden prompts."""
    given = walk.options
    load = ("--requests", given.requests, "--rate", given.rate, "--prompts", given.prompts)
    words = ("serve-parity", "--model", model, "--golden", given.golden, "--study", study, *more, *load, *short(given))
    return walk.veritune(title, *words)


def short(given: argparse.Namespace) -> tuple[object, ...]:
    """Where generation stops in comparisons of text."""
    return ("--max-new-tokens", given.max_new_tokens)


def release(walk: Walk) -> None:
    """Bundle, drill, gate, waive what is undecided, promote two versions, roll back."""
    walk.veritune("A first bundle", "bundle", "study", "--out", "release-1", "--license", walk.options.license)
    walk.veritune("Every hash of it again", "verify", "release-1")
    walk.veritune("Staging takes what verifies", "promote", "release-1", "--to", "staging", "--registry", "registry")
    walk.veritune("The way back, practised", "rollback", "release-1", "--drill", "--study", "study")
    found = walk.gates("The gates", "study")
    early = ("promote", "release-1", "--to", "production", "--registry", "registry")
    walk.veritune("Production asks for the gates, and this bundle has none that passed", *early)
    until = time.strftime("%Y-%m-%d", time.localtime(time.time() + 30 * 86400))
    for name, gate in found.items():
        if gate["status"] == "undecided":
            reason = "walked through as an example; nobody is served"
            signed = ("--by", PERSON, "--reason", reason, "--until", until)
            walk.veritune(f"A person answers for {name}", "gate", "study", "--waive", name, *signed)
        elif gate["status"] == "failed":
            signed = ("--by", PERSON, "--reason", "it is only an example", "--until", until)
            walk.veritune(f"Nobody can answer for {name}, which failed", "gate", "study", "--waive", name, *signed)
    walk.gates("The gates, with waivers", "study")
    walk.veritune("The twelve controls", "gate", "study", "--controls")
    walk.veritune("A bundle with its gates", "bundle", "study", "--out", "release-2", "--license", walk.options.license)
    first = walk.veritune("To production", "promote", "release-2", "--to", "production", "--registry", "registry")
    channel = "production" if first.exit_code == 0 else "staging"
    if channel == "staging":
        walk.veritune("Refused there, taken here", "promote", "release-2", "--to", channel, "--registry", "registry")
    merged = ("--merged", "study/release/merged", "--license", walk.options.license)
    walk.veritune("A second version, merged", "bundle", "study", "--out", "release-3", *merged)
    walk.veritune("It takes the channel", "promote", "release-3", "--to", channel, "--registry", "registry")
    back = ("rollback", "--registry", "registry", "--channel", channel, "--reason", "a drill")
    walk.veritune("Back to the version before, its answers reproduced", *back)
    walk.veritune("What the channel pointed to", "history", "--registry", "registry", "--channel", channel)
    walk.veritune("What it points to now", "pull", "--registry", "registry", "--channel", channel, "--out", "now")
    walk.veritune("Is it what was packed?", "verify", "now")
    walk.veritune("The study, unchanged by all of this", "verify", "study")


# ---------------------------------------------------------------- one planted failure a gate


def plant_data(walk: Walk) -> None:
    """A benchmark's question among the training rows: in a new study, and in the finished one."""
    settings = settings_of(walk)
    folder = walk.out / "planted-data"
    folder.mkdir()
    for path in sorted(walk.study.iterdir()):
        if (
            path.is_file()
            and path.suffix in (".jsonl", ".yaml", ".py")
            and path.name not in ("events.jsonl", "notes.jsonl")
        ):
            shutil.copy2(path, folder / path.name)
    benchmark = next((spec for spec in settings["evals"].values() if spec.get("path")), None)
    rows = folder / settings["data"]["path"]
    own = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    stolen = dict(own[0]) | {settings["data"].get("id_field", "id"): "planted"}
    if benchmark is not None:
        item = json.loads((folder / benchmark["path"]).read_text(encoding="utf-8").splitlines()[0])
        names = zip(settings["data"]["columns"].values(), benchmark["columns"].values())
        stolen |= {mine: item[theirs] for mine, theirs in names if theirs in item}
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*own, stolen]), encoding="utf-8")
    if benchmark is not None:
        step = walk.veritune("Planted: a benchmark's question in the training rows", "freeze", "planted-data")
        walk.judge(
            "data", "a benchmark's question in the training rows, before training", step.exit_code == 2, last(step)
        )
    clone = walk.clone("planted-rows")
    shutil.copy2(rows, clone / settings["data"]["path"])
    gates = walk.gates("Planted: one row more in the finished study", "planted-rows")
    walk.hold("data", "one training row more after the run", gates)


def plant_target(walk: Walk) -> None:
    """Somebody writes `supported` into the verdicts."""
    path = walk.clone("planted-target") / "verdict.json"
    text = path.read_text(encoding="utf-8")
    changed = text.replace('"inconclusive"', '"supported"').replace('"refuted"', '"supported"')
    path.write_text(changed if changed != text else text + " ", encoding="utf-8")
    gates = walk.gates("Planted: verdicts that were edited", "planted-target")
    walk.hold("target", "verdicts edited to `supported`", gates)


def plant_regression(walk: Walk) -> None:
    """An old task on which the candidate lost four of five points."""
    name = walk.options.suite
    scores = next(walk.study.glob(f"runs/baseline-*/scores/{name}.jsonl"))
    rows = [json.loads(line) for line in scores.read_text(encoding="utf-8").splitlines()]
    for who, share in (("base", 1.0), ("candidate", 0.2)):
        lines = [{"id": row["item_id"], "score": share * (row["value"] or 0.0)} for row in rows]
        (walk.out / f"old-{who}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    policy = dict(settings_of(walk)["release"])
    policy["regression"] = {"suites": {"old_tasks": {"margin": 0.05, "metric": "score", "higher_is_better": True}}}
    (walk.out / "policy.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")
    walk.clone("planted-regression")
    files = (
        "--candidate",
        "old-candidate.jsonl",
        "--base",
        "old-base.jsonl",
        "--by",
        PERSON,
        "--policy",
        "policy.yaml",
    )
    walk.veritune("Planted: old tasks, bound by name", "gate", "planted-regression", "--attest", "old_tasks", *files)
    gates = walk.gates("Planted: a candidate that forgot them", "planted-regression", "--policy", "policy.yaml")
    walk.hold("regression", "old tasks with a fifth of the base's scores", gates)


def plant_safety(walk: Walk) -> None:
    """Graded answers, edited to be as they should be."""
    path = walk.clone("planted-safety") / "release" / "safety.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps({**row, "good": 1.0}) + "\n" for row in rows), encoding="utf-8")
    gates = walk.gates("Planted: grades that were edited", "planted-safety")
    walk.hold("safety", "every graded answer edited to be safe", gates)


def plant_calibration(walk: Walk) -> None:
    """A model that is always sure and right half of the time."""
    lines = ["id,confidence,correct", *(f"q{i},0.99,{i % 2}" for i in range(300))]
    (walk.out / "sure.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = ("--data", "sure.csv", "--confidence", "confidence", "--correct", "correct", "--out", "sure.json")
    walk.veritune("Planted: always sure, right half of the time", "probe", "calibration", *table)
    walk.clone("planted-calibration")
    walk.veritune("Planted: bound by name", "gate", "planted-calibration", "--attest", "sure.json", "--by", PERSON)
    gates = walk.gates("Planted: a record of overconfidence", "planted-calibration")
    walk.hold("calibration", "always sure, right half of the time", gates)


def plant_serving(walk: Walk) -> None:
    """A served folder whose chat template says one word more."""
    folder = walk.out / "other-template"
    shutil.copytree(walk.study / "release" / "merged", folder, copy_function=copy_or_link)
    template = folder / "chat_template.jinja"
    template.write_text("Please. " + template.read_text(encoding="utf-8"), encoding="utf-8")
    walk.clone("planted-serving")
    serve(walk, "Planted: a chat template with one word more", "planted-serving", "other-template")
    gates = walk.gates("Planted: what the gate says of it", "planted-serving")
    walk.hold("serving", "a chat template with one word more", gates)


def plant_merge(walk: Walk) -> None:
    """One merged tensor that carries one and a half times its value."""
    from safetensors.torch import load_file, save_file

    folder = walk.out / "edited-weights"
    shutil.copytree(walk.study / "release" / "merged", folder, copy_function=copy_or_link)
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    name = next(key for key in sorted(tensors) if key.endswith("q_proj.weight"))
    tensors[name] = tensors[name] * 1.5
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
    walk.clone("planted-merge")
    words = ("merge-parity", "planted-merge", "--merged", "edited-weights", "--rows", walk.options.rows)
    walk.veritune("Planted: one merged tensor edited", *words, *short(walk.options))
    gates = walk.gates("Planted: what the gate says of it", "planted-merge")
    walk.hold("merge", f"{name} times 1.5", gates)


def plant_rollback(walk: Walk) -> None:
    """An earlier bundle whose adapter was edited."""
    bundle = walk.out / "edited-bundle"
    shutil.copytree(walk.out / "release-1", bundle, copy_function=copy_or_link)
    path = next(bundle.glob("adapter/*.safetensors"))
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.unlink()
    path.write_bytes(changed)
    step = walk.veritune("Planted: one bit of an adapter flipped", "rollback", "edited-bundle", "--drill")
    walk.judge("rollback", "one bit of a bundle's adapter flipped", step.exit_code != 0, last(step))


PLANTS: dict[str, Callable[[Walk], None]] = {
    "data": plant_data,
    "target": plant_target,
    "regression": plant_regression,
    "safety": plant_safety,
    "calibration": plant_calibration,
    "serving": plant_serving,
    "merge": plant_merge,
    "rollback": plant_rollback,
}


# ---------------------------------------------------------------- small parts


def last(step: Step) -> str:
    """The sentence that a refused command ends with."""
    return next((line for line in step.output.splitlines()[::-1] if line.startswith("veritune:")), step.output[-300:])


def settings_of(walk: Walk) -> dict[str, Any]:
    """The study file's settings."""
    return dict(yaml.safe_load((walk.study / "study.yaml").read_text(encoding="utf-8")))


def base_of(walk: Walk) -> str:
    """The base model, as a command takes it."""
    path = str(settings_of(walk)["model"]["path"])
    return path if path.startswith("builtin:") else str((walk.options.study / path).resolve())


def adapter_of(walk: Walk) -> Path:
    """The checkpoint of the run that the policy names."""
    policy = settings_of(walk)["release"]
    run = next(walk.study.glob(f"runs/{policy['condition']}-s{policy['seed']}-*"))
    training = json.loads((run / "training.json").read_text(encoding="utf-8"))
    return Path("study") / str(training["checkpoint"])


def read_options(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; files are resolved, since commands run in FOLDER."""
    parser = argparse.ArgumentParser(description="Walk a finished study through the release gates.")
    parser.add_argument("study", type=Path, help="A finished study's folder; it is copied.")
    parser.add_argument("--out", type=Path, required=True, help="A folder that does not exist yet.")
    parser.add_argument("--golden", type=Path, required=True, help="Golden prompts for serving.")
    parser.add_argument("--set", type=Path, action="append", default=[], help="A prompt set for safety; repeat.")
    parser.add_argument("--questions", type=Path, help="Rows with short answers, for calibration.")
    parser.add_argument("--extract", default=r"(-?\d[\d,]*(?:\.\d+)?)", help="Pattern of a short answer.")
    parser.add_argument("--expected", default="answer", help="Column of the expected short answer.")
    parser.add_argument("--suite", required=True, help="The eval whose scores are degraded for the regression gate.")
    parser.add_argument("--rows", type=int, default=16, help="Rows that merge parity compares.")
    parser.add_argument("--prompts", type=int, default=8, help="Golden prompts that are asked.")
    parser.add_argument("--requests", type=int, default=8, help="Requests a block of the load test.")
    parser.add_argument("--rate", type=float, default=1.0, help="Requests a second.")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="Generation stops here.")
    parser.add_argument("--price", type=float, default=1.0, help="Price of an hour of the machine.")
    parser.add_argument("--without", action="append", default=[], help="A gate that is not walked; repeat.")
    parser.add_argument("--license", default="apache-2.0", help="Licence of the release.")
    given = parser.parse_args(words)
    given.study, given.out = given.study.resolve(), given.out.resolve()
    given.golden, given.set = given.golden.resolve(), [path.resolve() for path in given.set]
    given.questions = given.questions and given.questions.resolve()
    return given


def main() -> None:
    """Copy the study, walk it, plant the failures; exit with 1 if one went through."""
    given = read_options()
    given.out.mkdir(parents=True)
    walk = Walk(given.out, given, run_process)
    sys.exit(0 if all_refused(walk) else 1)


def all_refused(walk: Walk) -> bool:
    """Walk the whole way; whether every planted failure was refused."""
    given = walk.options
    shutil.copytree(given.study, walk.study, symlinks=True)
    try:
        make_evidence(walk)
        release(walk)
        for gate, plant in PLANTS.items():
            if gate not in given.without:
                plant(walk)
    finally:
        walk.save()
    return all(planted.refused for planted in walk.planted)


if __name__ == "__main__":
    main()

"""`veritune probe leak | recall | forgetting | report` and `veritune calibration`: what was learned, at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from veritune.cli_probe import AdapterOption, FamilyOption, JsonOption, ModelOption, OutOption, TrainedOption
from veritune.cli_probe import app as probe_app

calibration_app = typer.Typer(
    name="calibration",
    help="Say whether a model is right as often as it is sure: ECE, Brier score, reliability.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

PlotOption = Annotated[Path | None, typer.Option(help="Draw the reliability diagram (.svg, .png or .pdf).")]
BinsOption = Annotated[int | None, typer.Option(help="Number of bins; chosen from the rows when left out.")]
StudyArg = Annotated[Path, typer.Argument(help="The study file, or the folder it lies in.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line and to its `probe` group."""
    probe_app.command()(leak)
    probe_app.command()(recall)
    probe_app.command()(forgetting)
    probe_app.command()(report)
    app.add_typer(calibration_app)


def leak(
    study: StudyArg,
    condition: Annotated[list[str] | None, typer.Option(help="Only this condition; may be repeated.")] = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train each condition once more on a split that ignores families: what would the leak have flattered?"""
    from veritune.progress import Progress
    from veritune.records import dumps
    from veritune.stages.leak import leak_command

    found = leak_command(study, condition or (), Progress(silent=quiet or as_json))
    if as_json:
        print(dumps(found, indent=2))
        return
    for name, record in found.items():
        _say(record, f"{name}: ")


def recall(
    model: ModelOption,
    adapter: TrainedOption,
    seen: Annotated[Path, typer.Option(help="Rows it was trained on.")],
    stranger: Annotated[Path, typer.Option(help="Rows of families it never saw.")],
    sibling: Annotated[Path | None, typer.Option(help="Held-out rows of families it was trained on.")] = None,
    family_field: FamilyOption = None,
    rows_at_most: Annotated[int, typer.Option("--rows", help="Ask at most so many rows of each zone.")] = 200,
    length: Annotated[int, typer.Option(help="Tokens of an ending in the forced choice.")] = 16,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Ask rows back: forced choice between endings, and greedy continuation; seen beside siblings and strangers."""
    from veritune.probe.recall import Plan, recall_of
    from veritune.probe.study import read_zones, subject, thin

    found = subject(model, adapter)
    files: dict[str, str | Path] = {"seen": seen, "stranger": stranger}
    if sibling is not None:
        files["sibling"] = sibling
    zoned = thin(read_zones(files, found.renderer, family_field=family_field), rows_at_most)
    _show_all(recall_of(found, zoned, Plan(length=length)), as_json, out)


def forgetting(
    model: ModelOption,
    adapter: TrainedOption,
    data: Annotated[Path, typer.Option(help="The regression set: rows with reference answers.")],
    margin: Annotated[
        float | None, typer.Option(help="Rise of the loss, nats per token, that is tolerated; default: 0.05.")
    ] = None,
    family_field: FamilyOption = None,
    extract: Annotated[str | None, typer.Option(help="Also score answers: pattern whose group is the answer.")] = None,
    expected: Annotated[str | None, typer.Option(help="With --extract: column with the expected answer.")] = None,
    score_margin: Annotated[float, typer.Option(help="Fall of the score that is put up with.")] = 0.02,
    max_new_tokens: Annotated[int, typer.Option(help="With --extract: generation stops here.")] = 128,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Say what training cost on other tasks: loss, and scores, of a regression set before and after."""
    from veritune.config.thresholds import DEFAULTS
    from veritune.evaluate.regression import AnswerKey, forgetting_of
    from veritune.probe.study import read_zones, subject

    found = subject(model, adapter)
    key = AnswerKey.of(extract, expected, max_new_tokens)
    zoned = read_zones({"regression": data}, found.renderer, family_field=family_field)
    most = DEFAULTS.forgetting.margin if margin is None else margin
    record, arms = forgetting_of(found, zoned, most, key)
    records: dict[str, Any] = {"loss": record}
    if arms:
        known = ("trained",) if (adapter / "adapter_config.json").is_file() else ()
        records["score"] = _compare(*arms, score_margin, known)
    _show_all(records, as_json, out)
    if arms and not as_json:
        from veritune.decide.commands import render_text

        print()
        print(render_text(records["score"]))


def _compare(before: Any, after: Any, margin: float, adapters: tuple[str, ...]) -> Any:
    """Scores after training against those before, paired by item. `adapters`: arms that are known to be adapters."""
    from veritune.decide.commands import CompareOptions, compare_score_tables
    from veritune.stats.table import ScoreTable

    base = ScoreTable.from_scores(before, condition="base", fixed=True)
    trained = ScoreTable.from_scores(after, condition="trained")
    return compare_score_tables([trained], base, CompareOptions(margin=margin, scale=(0.0, 1.0), adapters=adapters))


def report(
    study: StudyArg,
    make: Annotated[
        list[str] | None,
        typer.Option(help="Also make gradients, geometry, recall, tokens or calibration, on every run; repeat it."),
    ] = None,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Write the page here, as Markdown.")] = None,
) -> None:
    """Say what every probe of a study reads, a block each; the report is redrawn with the same section."""
    from veritune.progress import Progress
    from veritune.records import dumps
    from veritune.report.probes import markdown
    from veritune.stages.probes import probe_report
    from veritune.store import Store, write_text

    found = probe_report(study, Progress(silent=True), make or ())
    text = markdown(Store.of(study).root.resolve().name, found)
    if out is not None:
        write_text(out, text)
    print(dumps(found, indent=2) if as_json else text)


# ---------------------------------------------------------------- calibration


@calibration_app.command()
def read(
    file: Annotated[Path, typer.Argument(help="lm-eval samples, or a table with a confidence and an outcome column.")],
    confidence: Annotated[str, typer.Option(help="Column with the confidence, 0 to 1.")] = "confidence",
    correct: Annotated[str, typer.Option(help="Column with the outcome, 0 or 1.")] = "correct",
    family_field: FamilyOption = None,
    metric: Annotated[str, typer.Option(help="For lm-eval samples: acc or acc_norm.")] = "acc",
    bins: BinsOption = None,
    plot: PlotOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Calibration of answers that are there: lm-eval multiple-choice samples, or any table."""
    from veritune.evaluate.confidence import read_judged
    from veritune.evaluate.regression import calibration_record

    judged = read_judged(file, confidence=confidence, correct=correct, family_field=family_field, metric=metric)
    _show_calibration(calibration_record(judged, None, bins), plot, as_json, out)


@calibration_app.command()
def choices(
    model: ModelOption,
    data: Annotated[Path, typer.Option(help="JSONL: question, choices, answer (place, letter or text).")],
    adapter: AdapterOption = None,
    family_field: FamilyOption = None,
    normalise: Annotated[str, typer.Option(help="none, or length: divide by an option's tokens.")] = "none",
    bins: BinsOption = None,
    plot: PlotOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Calibration on multiple choice: options scored as answers, the base model beside the adapter."""
    from veritune.errors import InputError
    from veritune.evaluate.confidence import judge_choices, read_questions
    from veritune.evaluate.regression import calibration_record
    from veritune.probe.study import subject

    if normalise not in ("none", "length"):
        raise InputError(f"--normalise: expected none or length, found {normalise!r}.")
    found, questions = subject(model, adapter), read_questions(data, family_field)
    way: Any = normalise
    base = judge_choices(found.base(), found.renderer, questions, way)
    trained = judge_choices(found.trained(), found.renderer, questions, way) if adapter else None
    record = calibration_record(trained or base, base if trained else None, bins)
    _show_calibration(record, plot, as_json, out)


@calibration_app.command()
def answers(
    model: ModelOption,
    data: Annotated[Path, typer.Option(help="Rows with short reference answers.")],
    extract: Annotated[str, typer.Option(help="Pattern whose group is the answer.")],
    expected: Annotated[str, typer.Option(help="Column with the expected answer.")],
    adapter: AdapterOption = None,
    family_field: FamilyOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Generation stops here.")] = 64,
    bins: BinsOption = None,
    plot: PlotOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Calibration on short answers: the confidence is the probability of the whole greedy answer."""
    from veritune.evaluate.regression import AnswerKey, calibration_record, judge_answers
    from veritune.probe.study import read_zones, subject

    found = subject(model, adapter)
    key = AnswerKey.of(extract, expected, max_new_tokens)
    assert key is not None
    zoned = read_zones({"items": data}, found.renderer, family_field=family_field)
    base = judge_answers(found.base(), found.renderer, zoned, key)
    trained = judge_answers(found.trained(), found.renderer, zoned, key) if adapter else None
    record = calibration_record(trained or base, base if trained else None, bins)
    _show_calibration(record, plot, as_json, out)


def _show_calibration(record: dict[str, Any], plot: Path | None, as_json: bool, out: Path | None) -> None:
    from veritune.records import to_json

    if plot is not None:
        from veritune.report.reliability import draw_reliability

        draw_reliability(to_json(record), plot)
    _show_all(record, as_json, out)


def _show_all(records: dict[str, Any], as_json: bool, out: Path | None) -> None:
    """Several records under their names: written, printed as JSON, or said one after the other."""
    from veritune.records import dumps, to_json
    from veritune.store import write_json

    if out is not None:
        write_json(out, records)
    if as_json:
        print(dumps(records, indent=2))
        return
    for name, record in records.items():
        plain = to_json(record)
        if isinstance(plain, dict) and "reading" in plain:
            _say(plain, f"{name}: " if len(records) > 1 else "")
        elif isinstance(plain, dict) and plain.get("value") is not None:
            bounds = "no interval" if plain["low"] is None else f"{plain['low']:.4f} to {plain['high']:.4f}"
            print(f"{plain['name']}: {plain['value']:.4f} ({bounds}), n = {plain['n']}")


def _say(record: Any, head: str = "") -> None:
    """The three sentences of a record that was read back from disk."""
    print(f"{head}{record['reading']}")
    print(f"Limits: {record['limits']}")
    print(f"What would change it: {record['would_change']}")

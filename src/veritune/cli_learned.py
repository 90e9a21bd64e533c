"""`veritune probe leak | recall | forgetting | report` and `veritune calibration`: what was learned, at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from veritune.cli_probe import FamilyOption, JsonOption, ModelOption, OutOption
from veritune.cli_probe import app as probe_app

StudyArg = Annotated[Path, typer.Argument(help="The study file, or the folder it lies in.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line and to its `probe` group."""
    probe_app.command()(leak)
    probe_app.command()(recall)


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
    adapter: Annotated[Path, typer.Option(help="Folder of the adapter.")],
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
    from veritune.probe.memorization import matched_spans, verbatim_recall
    from veritune.probe.recall import Plan, build_choices, choice_scores, forced_choice
    from veritune.probe.study import read_zones, subject, thin

    found = subject(model, adapter)
    files: dict[str, str | Path] = {"seen": seen, "stranger": stranger}
    if sibling is not None:
        files["sibling"] = sibling
    zoned = thin(read_zones(files, found.renderer, family_field=family_field), rows_at_most)
    choices = build_choices(zoned.rendered, zoned.zones, zoned.families, Plan(length=length))
    base = found.base()
    before, spans_before = choice_scores(base, choices), matched_spans(base, zoned.rendered)
    del base
    trained = found.trained()
    after, spans_after = choice_scores(trained, choices), matched_spans(trained, zoned.rendered)
    records = {
        "forced_choice": forced_choice(choices, before, after),
        "verbatim": verbatim_recall(spans_before, spans_after, zoned.zones, zoned.families),
    }
    _show_all(records, as_json, out)


def _show_all(records: dict[str, Any], as_json: bool, out: Path | None) -> None:
    """Several records under their names: written, printed as JSON, or said one after the other."""
    from veritune.records import dumps, to_json
    from veritune.store import write_json

    if out is not None:
        write_json(out, records)
    if as_json:
        print(dumps(records, indent=2))
        return
    for record in records.values():
        _say(to_json(record))


def _say(record: Any, head: str = "") -> None:
    """The three sentences of a record that was read back from disk."""
    print(f"{head}{record['reading']}")
    print(f"Limits: {record['limits']}")
    print(f"What would change it: {record['would_change']}")

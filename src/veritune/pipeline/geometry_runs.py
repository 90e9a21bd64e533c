"""`veritune probe geometry`: of named folders, of every checkpoint of a study in one grid, or of a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veritune.config.fields import BASELINE
from veritune.config.load import load_study
from veritune.config.thresholds import DEFAULTS, GeometryThresholds
from veritune.data.render import Renderer
from veritune.errors import InputError, ModelError
from veritune.probe import geometry as g
from veritune.probe import geometry_grid, series
from veritune.probe import study as probes
from veritune.probe.geometry_cells import cells_of, judge_cells, read_cells
from veritune.probe.subject import ProbeSubject
from veritune.records import CellGrid, GeometryGrid, RunManifest
from veritune.report.geometry_cells import cells_csv, dose_csv
from veritune.report.grid_figures import write_cells
from veritune.store import Store, write_json, write_text
from veritune.train.models import load_tokenizer, resolve

DRAWN = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class GeometryAsked:
    """What to read from every model; `layers` None reads all layers."""

    methods: tuple[g.Method, ...]
    layers: tuple[int, ...] | None
    personas: Path | None
    questions: Path | None
    max_new_tokens: int
    limits: GeometryThresholds


def methods_of(text: str) -> tuple[g.Method, ...]:
    """The methods that a text names: `last_input_token`, `response_mean` or `both`. Raises InputError."""
    known: dict[str, tuple[g.Method, ...]] = {
        "last_input_token": ("last_input_token",),
        "response_mean": ("response_mean",),
        "both": ("last_input_token", "response_mean"),
    }
    if text not in known:
        raise InputError(f"--method {text}: expected last_input_token, response_mean or both.")
    return known[text]


def layers_of(text: str | None) -> tuple[int, ...] | None:
    """The layers in a text such as `4,8,12`; None for all. Raises InputError."""
    if text is None:
        return None
    if not re.fullmatch(r"\d+(\s*,\s*\d+)*", text.strip()):
        raise InputError(f"--layers {text!r}: expected numbers such as 4,8,12.")
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))


def limits_of(smallest_change: float | None) -> GeometryThresholds:
    """The default thresholds, with another smallest change if one is given. Raises InputError."""
    if smallest_change is None:
        return DEFAULTS.geometry
    if not smallest_change > 0:
        raise InputError(f"--smallest-change {smallest_change:g}: expected a number above 0.")
    return DEFAULTS.geometry.model_copy(update={"small_change": smallest_change})


def grids_of(model: str, adapters: Sequence[Path], reference: Path | None, asked: GeometryAsked) -> list[GeometryGrid]:
    """The record of every named folder, with all of them corrected as one family of tests."""
    prompts, files = probes.persona_prompts(model, asked.personas, asked.questions)
    folders = [*adapters, *([] if reference is None else [reference])]
    measured = probes.geometry_of(model, folders, prompts, asked.methods, asked.max_new_tokens)
    against = None if reference is None else measured[-1]
    runs = [(geometry_grid.run_of(folder), by_method) for folder, by_method in zip(adapters, measured)]
    return geometry_grid.build_grids(runs, against, files, asked.limits)


def references_of(text: str | None) -> str | dict[str, str] | None:
    """`ARM` for all others, or `ARM=REFERENCE,ARM=REFERENCE` for each its own. Raises InputError."""
    if text is None or "=" not in text:
        return text
    pairs = [part.split("=") for part in text.split(",")]
    if any(len(pair) != 2 or not all(name.strip() for name in pair) for pair in pairs):
        raise InputError(f"--reference {text!r}: expected a condition, or pairs such as full=lora,full_high=lora_high.")
    return {arm.strip(): reference.strip() for arm, reference in pairs}


def grid_from(source: Path, asked: GeometryAsked, reference: str | Mapping[str, str] | None) -> CellGrid:
    """The grid of a study's checkpoints, or of a table. Raises InputError, DataError, ScoreError, ModelError."""
    if series.is_study([source]):
        cells = cells_of(_study_grids(source, asked), asked.layers)
    else:
        cells = read_cells(source, asked.layers)
    return judge_cells(cells, reference, asked.limits, str(source))


def _study_grids(study: Path, asked: GeometryAsked) -> list[GeometryGrid]:
    """Every checkpoint on disk of every main run against the study's base. One model is held at a time."""
    store = Store.of(study)
    settings = load_study(store.study_file)
    base = resolve(settings.model, store.root)
    renderer = Renderer(load_tokenizer(base), settings.train.max_length, template_kwargs=settings.model.template_kwargs)
    texts = g.PERSONAS if asked.personas is None else g.read_personas(asked.personas)
    questions = g.QUESTIONS if asked.questions is None else g.read_questions(asked.questions)
    prompts = g.render_personas(renderer.tokenizer, texts, questions)
    found = list(_checkpoints(store))
    if not found:
        raise ModelError(
            f"no run of {store.root} has a checkpoint on disk.", fix="Run the study with `keep: best` or `keep: all`."
        )

    def read(subject: ProbeSubject) -> Mapping[g.Method, g.States]:
        model = subject.base() if subject.adapter is None else subject.trained()
        return {m: g.states(model, prompts, method=m, max_new_tokens=asked.max_new_tokens) for m in asked.methods}

    before, runs = read(ProbeSubject(base, None, renderer)), []
    for run, folder in found:
        after = read(ProbeSubject(base, folder, renderer))
        runs.append((run, {str(m): g.geometry(before[m], after[m], prompts) for m in asked.methods}))
    return geometry_grid.build_grids(runs, thresholds=asked.limits)


def _checkpoints(store: Store) -> Iterator[tuple[geometry_grid.GridRun, Path]]:
    """Condition by condition, seed by seed, step by step."""
    manifests = [RunManifest.load(path) for path in sorted(store.runs.glob("*/manifest.json"))]
    mine = [m for m in manifests if m.phase == "main" and m.condition != BASELINE]
    for manifest in sorted(mine, key=lambda m: (m.condition, m.seed)):
        folder = store.run(manifest.run_id) / "checkpoints"
        for path in sorted(folder.glob("step-*"), key=lambda p: series.step_of(p) or 0):
            label = store.relative(path)
            yield geometry_grid.GridRun(label, manifest.condition, manifest.seed, series.step_of(path)), path


def write_grid(grid: CellGrid, out: Path) -> None:
    """Write the record (.json), the cells (.csv) or the figure (.svg, .png, .pdf) with its provenance; into a folder,
    all of them.
    """
    if not out.suffix:
        write_grid(grid, out / "geometry.json")
        write_cells(grid, out)
        write_text(out / "geometry.dose.csv", dose_csv(grid))
    elif out.suffix == ".json":
        write_json(out, grid)
    elif out.suffix == ".csv":
        write_text(out, cells_csv(grid))
    elif out.suffix in DRAWN:
        write_cells(grid, out)
    else:
        raise InputError(f"--out {out}: expected .json, .csv, {', '.join(DRAWN)} or a folder.")

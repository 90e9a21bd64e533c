"""`veritune merge-parity`: find base, adapter and rows, in a study or by name, and record what came out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from veritune.errors import InputError
from veritune.machine import package_versions
from veritune.records import Rendered, to_json
from veritune.release.merge import MergeParity, Options, merge_adapter, parity, thresholds


@dataclass(frozen=True)
class Asked:
    """What the command line names. Either `study`, or `model` and `adapter`; `rows` caps how many rows are compared."""

    study: Path | None = None
    model: str | None = None
    adapter: Path | None = None
    condition: str | None = None
    seed: int | None = None
    merged: Path | None = None
    out: Path | None = None
    data: Path | None = None
    rows: int = 32


def merge_command(asked: Asked, options: Options) -> MergeParity:
    """Compare, merging first where no merged folder is named; in a study the result is `release/merge.json`.

    Raises InputError when too little is named, ModelError when adapter, base and merged model do not belong together.
    """
    if (asked.study is None) == (asked.model is None or asked.adapter is None):
        raise InputError(
            "expected a study, or a model and an adapter.", fix="veritune merge-parity STUDY, or --model and --adapter."
        )
    if asked.study is not None:
        return _in_study(asked, options)
    from veritune.study import Model
    from veritune.train.models import resolve

    assert asked.model is not None and asked.adapter is not None
    ref = resolve(Model(path=asked.model, dtype=options.dtype), Path())  # type: ignore[arg-type]
    merged = _merged(ref, asked.adapter, asked, options)
    return parity(ref, asked.adapter, merged, _rows(ref, asked), options)


def _merged(ref: Any, adapter: Path, asked: Asked, options: Options) -> Path:
    from veritune.train.models import load_base

    if asked.merged is not None:
        return asked.merged
    if asked.out is None:
        raise InputError("no merged model is named.", fix="Give it with --merged, or have one made in --out DIR.")
    if asked.out.exists() and any(asked.out.iterdir()):
        raise InputError(f"--out {asked.out} is not empty.", fix="Name it with --merged, or choose an empty folder.")
    return merge_adapter(load_base(replace(ref, dtype=options.dtype)), adapter, asked.out)


def _rows(ref: Any, asked: Asked) -> list[Rendered]:
    """The first rows of the data file, as the contract would render them."""
    from veritune.data.load import load_rows, require_clean
    from veritune.data.render import Renderer, render_rows
    from veritune.train.models import context_length, load_tokenizer

    if asked.data is None:
        return []
    loaded = load_rows(asked.data)
    require_clean(loaded)
    renderer = Renderer(load_tokenizer(ref), context_length(ref) or 2048)
    rendered, problems = render_rows(loaded.rows[: asked.rows], renderer)
    if problems:
        raise InputError(f"{problems[0].message} ({len(problems)} such rows).", fix="Drop or shorten them.")
    return list(rendered)


def _in_study(asked: Asked, options: Options) -> MergeParity:
    """The candidate of a study on its own held-out rows, recorded as evidence for the gate."""
    from veritune.data.prepare import load_prepared
    from veritune.release.candidate import Choice, open_case
    from veritune.release.evidence import Evidence, weights_digest, write_evidence
    from veritune.train.models import resolve

    assert asked.study is not None
    case = open_case(asked.study, Choice(condition=asked.condition, seed=asked.seed))
    store, candidate = case.store, case.candidate
    ref = resolve(case.study.model, store.root)
    if not (candidate.folder / "adapter_config.json").is_file():
        raise InputError(
            f"{candidate.run_id} is no adapter: there is nothing to merge.", fix="Switch the merge gate off for it."
        )
    place = replace(asked, out=asked.out or (None if asked.merged else store.release("merged")))
    merged = _merged(ref, candidate.folder, place, options)
    data = load_prepared(store, case.facts)
    held_out = [r for zone in ("stranger", "validation") for r in data.zone(zone)][: asked.rows]
    found = parity(ref, candidate.folder, merged, held_out, options)
    subject = replace(candidate.subject, merged=weights_digest(merged))
    packages = package_versions()
    settings = {**(found.outputs.settings if found.outputs else {}), "rows": len(held_out), "packages": packages}
    numbers = to_json(found.numbers())
    record = Evidence("merge", found.status, found.message, subject, numbers, thresholds(), {}, settings)
    write_evidence(store, record)
    return found

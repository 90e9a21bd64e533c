"""What a claim of kind `probe` may name: every quantity that a study's probes record, known before the first run.

A name is a pattern of segments joined by full stops, the arm last: `nll.stranger.all_layer`,
`geometry.m1_change.12.last_input_token.all_layer`. The study closes most segments (its arms, its zones); a layer is a
number and a part of the model (`total`, `q`, `attention`, `layer3`, a module's own name) is known once it is loaded.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from veritune import errors
from veritune.config.fields import BASELINE
from veritune.config.study import Study
from veritune.stats.centroids import MEASURES

Uncertainty = Literal["items", "seeds", "exact"]
METHODS = ("last_input_token", "response_mean")
COUNTS = tuple(f"{name}_{way}" for name in ("m1", "icc") for way in ("rose", "fell"))
"""Counts of cells: how many of a run's layers and methods a measure was shown to rise or fall in."""
OPEN = {"layer": r"\d+", "step": r"\d+", "part": r"[\w\-]+(?:\.[\w\-]+)*"}
"""Segments that the study does not close, and what they may hold."""


@dataclass(frozen=True, slots=True)
class ProbeNames:
    """The quantities of one probe. `uncertainty` says where an interval comes from: the probe's items (and seeds, if
    there are several runs), several runs only, or nowhere because it is a count. `made_by` is the command that records
    it.
    """

    name: str
    uncertainty: Uncertainty
    what: str
    made_by: str = "run"
    choices: Mapping[str, tuple[str, ...]] | None = None


PATTERNS: tuple[ProbeNames, ...] = (
    ProbeNames("nll.{zone}.{any}", "items", "loss, nats per target token, on the rows of a zone"),
    ProbeNames(
        "nll_below.{reference}.{zone}.{arm}",
        "items",
        "how far the loss on a zone's rows lies below the reference's with the same seed, nats per target token",
    ),
    ProbeNames("final_loss.{arm}", "seeds", "training loss of the last step"),
    ProbeNames("trainable_share.{arm}", "exact", "share of the parameters that train"),
    ProbeNames("gap.carried.{held}.{arm}", "items", "share of the gain on seen rows that a zone shows"),
    ProbeNames("gap.gain.{gap_zone}.{arm}", "items", "fall of the loss on a zone's rows"),
    ProbeNames(
        "leak.{of}.{arm}",
        "items",
        "what a leaky split would have flattered, first seed",
        "leak",
        {"of": ("flattered", "elsewhere", "by_leak")},
    ),
    ProbeNames("weights.relative_change.{part}.{arm}", "seeds", "norm of the change over the base's norm", "report"),
    ProbeNames("weights.delta_norm.{part}.{arm}", "seeds", "norm of the change", "report"),
    ProbeNames(
        "weights.cells.{of}.{reference}.{arm}",
        "seeds",
        "modules that moved above 1.5 times, or below half, of the reference's norm with the same seed",
        "report",
        {"of": ("above", "below")},
    ),
    ProbeNames(
        "gradients.per_parameter.{part}.{arm}",
        "seeds",
        "share of the squared gradient norm over the share of the trained parameters",
        "report",
    ),
    ProbeNames(
        "gradients.share.{part}.{arm}", "seeds", "mean share of the squared gradient norm in training", "report"
    ),
    ProbeNames("gradients.update_ratio.{arm}", "seeds", "mean ratio of update to weight in training", "report"),
    ProbeNames("{of}.{any}", "items", "gradients by family", "gradients", {"of": ("n_eff", "rho", "directions")}),
    ProbeNames("geometry.{of}.{layer}.{method}.{arm}", "seeds", "after training", "geometry", {"of": MEASURES}),
    ProbeNames(
        "geometry.{of}.{layer}.{method}.{arm}",
        "items",
        "trained minus base, over personas",
        "geometry",
        {"of": tuple(f"{name}_change" for name in MEASURES)},
    ),
    ProbeNames(
        "geometry.cells.{of}.{arm}",
        "seeds",
        "layers and methods where a measure rose or fell by its corrected p, one family over all runs",
        "geometry",
        {"of": COUNTS},
    ),
    ProbeNames(
        "geometry.dose.{of}.{step}.{method}.{arm}",
        "seeds",
        "mean change over the layers of `probes.geometry` after so many steps",
        "geometry_dose",
        {"of": ("m1", "icc")},
    ),
    ProbeNames(
        "geometry.beyond.{of}.{step}.{method}.{reference}.{arm}",
        "seeds",
        "the same minus that of the reference's run with the same seed",
        "geometry_dose",
        {"of": ("m1", "icc")},
    ),
    ProbeNames(
        "calibration.{of}.{any}",
        "items",
        "calibration of the arm's answers",
        "calibration",
        {"of": ("ece", "ece_debiased", "brier", "accuracy", "overconfidence")},
    ),
    ProbeNames("calibration.brier_change.{arm}", "items", "Brier score after minus before", "calibration"),
    ProbeNames("forgetting.rise.{arm}", "items", "rise of the loss on a regression set", "forgetting"),
    ProbeNames("forgetting.share_worse.{arm}", "items", "share of its rows whose loss rose", "forgetting"),
    ProbeNames(
        "recall.{of}.{gap_zone}.{arm}",
        "items",
        "rows given back",
        "recall",
        {"of": ("matched", "exact", "beyond_base", "choice_change")},
    ),
    ProbeNames("recall.contrast.{arm}", "items", "change in choices won, seen minus strangers", "recall"),
    ProbeNames(
        "tokens.fall.{of}.{arm}",
        "items",
        "fall of the loss per stranger token, by class of token",
        "tokens",
        {"of": ("total", "template", "shared", "family", "prompt", "novel")},
    ),
)


def _choices(pattern: ProbeNames, study: Study) -> dict[str, tuple[str, ...]]:
    """What the study's own segments of a pattern may be."""
    asked = {zone for spec in study.evals.values() for zone in spec.zones}
    both = {"seen", "stranger"} <= asked
    whole = [name for name, c in study.conditions.items() if c.data_fraction in (None, 1.0)]
    return {
        "any": (*study.conditions, BASELINE),
        "reference": tuple(study.conditions),
        "arm": tuple(whole if pattern.made_by == "leak" else study.conditions),
        "zone": (*sorted(asked), "validation"),
        "held": tuple(zone for zone in ("sibling", "stranger") if zone in asked and both),
        "gap_zone": tuple(zone for zone in ("seen", "sibling", "stranger") if zone in asked and both),
        "method": METHODS,
        **(pattern.choices or {}),
    }


def _segments(pattern: ProbeNames) -> list[str]:
    return re.findall(r"\{(\w+)\}", pattern.name)


def _matches(pattern: ProbeNames, name: str, study: Study) -> bool:
    choices, text = _choices(pattern, study), re.escape(pattern.name).replace(r"\{", "{").replace(r"\}", "}")
    for segment in _segments(pattern):
        allowed = OPEN.get(segment) or "|".join(map(re.escape, choices[segment])) or r"(?!)"
        text = text.replace("{" + segment + "}", f"(?:{allowed})")
    return re.fullmatch(text, name) is not None and not _beside_itself(pattern, name)


def _beside_itself(pattern: ProbeNames, name: str) -> bool:
    """Whether a quantity of an arm beside a reference names one arm twice."""
    if "{reference}" not in pattern.name:
        return False
    place = pattern.name.split(".").index("{reference}")
    return name.split(".")[place] == arm_of(name)


def pattern_of(name: str, study: Study) -> ProbeNames | None:
    """The pattern that a name matches; None for a name that no probe of this study records."""
    return next((pattern for pattern in PATTERNS if _matches(pattern, name, study)), None)


def arm_of(name: str) -> str:
    """The arm that a quantity describes: the last part of its name."""
    return name.rsplit(".", 1)[-1]


def averaged_zones(name: str) -> tuple[str, ...]:
    """The zones over whose families the interval of a recorded quantity runs; none for any other quantity.

    >>> averaged_zones("leak.by_leak.all_layer"), averaged_zones("nll.stranger.all_layer"), averaged_zones("rho.a")
    (('stranger', 'validation'), ('stranger',), ())
    """
    head, *middle = name.split(".")[:-1]
    match head, middle:
        case "nll", [zone]:
            return (zone,)
        case ("nll_below", [_, zone]) | ("gap", ["gain", zone]) | ("recall", [_, zone]):
            return (zone,)
        case "gap", ["carried", zone]:
            return ("seen", zone)
        case "leak", ["by_leak"]:
            return ("stranger", "validation")
        case "leak", ["elsewhere"]:
            return ("validation",)
        case ("leak", ["flattered"]) | ("tokens", ["fall", _]):
            return ("stranger",)
        case "recall", ["contrast"]:
            return ("seen", "stranger")
    return ()


def _names(pattern: ProbeNames, study: Study, opened: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    choices, segments = {**_choices(pattern, study), **opened}, _segments(pattern)
    for values in itertools.product(*(choices[segment] for segment in segments)):
        name = pattern.name.format(**dict(zip(segments, values)))
        if not _beside_itself(pattern, name):
            yield name


def nearest(name: str, study: Study) -> str | None:
    """The known name most similar to a wrong one, with the wrong one's layer and part kept if it has any."""
    numbers, middle = re.findall(r"(?<=\.)\d+(?=\.)", name), name.split(".")[2:-1]
    number = tuple(numbers) or ("0",)
    opened = {"layer": number, "step": number, "part": (".".join(middle),) if middle else ("total",)}
    candidates = {n for pattern in PATTERNS for n in _names(pattern, study, opened)}
    return errors.nearest(name, sorted(candidates))


def patterns_text(study: Study) -> str:
    """The patterns with this study's choices filled in, one per line, for an error that must list them."""
    made = []
    for pattern in PATTERNS:
        choices, text = _choices(pattern, study), pattern.name
        for segment in _segments(pattern):
            inside = "|".join(choices[segment]) if segment in choices else f"<{segment}>"
            text = text.replace("{" + segment + "}", inside)
        made.append(text)
    return "; ".join(dict.fromkeys(made))

"""Named values that a text may refer to: `{{ claim.learns_the_style.gap | interval }}`, resolved from records.

    claim.<name>.gap|share|low|high|interval|p|level|margin|n|families|seeds|needed_n|detectable   numbers of a verdict
    claim.<name>.status|grade|sentence|decision|weak_evidence                                    its words
    score.<eval>.<zone>.<condition>[.seed<k>|.min|.max|.range], and every other quantity by its name
    n_eff.<arm>, leak.flattered.<arm>, and every other recorded quantity by the name that a claim on it has
    study.name|question|contract
    all_layer.gsm8k.accuracy                       a number of a record file, by its keys

Options behind `|`: a format (`.2f`, `.3g`, `,`), `percent`, `points`, `signed`, `interval` (the number's interval in
brackets), `of` (its denominator and how failed items count), `range` (least to greatest over the seeds).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from veritune.config.load import load_study
from veritune.config.thresholds import DEFAULTS
from veritune.counting import many
from veritune.decide.recorded import Recorded
from veritune.errors import InputError, ScoreError, nearest
from veritune.records import JsonValue
from veritune.store import Store
from veritune.writeup.facts import Fact
from veritune.writeup.quantities import CheckedRecords, Quantity

OPTIONS = ("percent", "points", "signed", "interval", "of", "range")
FORMAT = re.compile(r",|,?\.\d{1,2}[fge%]|\.\d{1,2}|d")
NAME = re.compile(r"[\w.\-/:@+ ]{1,200}")

_CLAIM = {
    "gap": "gap", "share": "share", "probe": "probe", "p": "p", "level": "level", "margin": "margin", "se": "se",
    "df": "df",
    "needed_n": "needed_n", "detectable": "detectable", "p_corrected": "p_corrected", "alpha": "alpha",
}  # fmt: skip
_CLAIM_COUNTS = {"n": "items", "items": "items", "families": "families", "seeds": "seeds", "claims": "claims"}
_CLAIM_WORDS = ("status", "grade", "sentence", "decision", "weak_evidence")


@dataclass(frozen=True, slots=True)
class Reference:
    """A name and its options, as written between `{{` and `}}`."""

    name: str
    options: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " | ".join((self.name, *self.options))


@dataclass(frozen=True, slots=True)
class Named:
    """The meaning of a name: a number with its interval and denominator, or a text.

    `spread` is the least and greatest value over seeds; `signed` that it is a difference, written with its sign.
    """

    value: float | None = None
    text: str = ""
    low: float | None = None
    high: float | None = None
    level: float | None = None
    denominator: int | None = None
    failed: int = 0
    runs: int = 1
    spread: tuple[float, float] | None = None
    signed: bool = False
    kind: str = ""
    source: str = ""


def parse_reference(text: str) -> Reference:
    """The reference in the text between `{{` and `}}`. Raises InputError for an unknown option."""
    name, *options = [part.strip() for part in text.split("|")]
    flat = [o for option in options for o in option.split()]
    if not NAME.fullmatch(name):
        raise InputError(f"expected a name in {{{{ {text} }}}}, found {name!r}.", fix="{{ claim.NAME.gap }}")
    for option in flat:
        if option not in OPTIONS and not FORMAT.fullmatch(option):
            near = nearest(option, OPTIONS)
            raise InputError(
                f"{{{{ {text} }}}}: unknown option {option!r}{f'; did you mean {near}?' if near else ''}.",
                fix=f"Options: {', '.join(OPTIONS)}, or a format such as .2f",
            )
    return Reference(name, tuple(flat))


class Values:
    """Everything that a reference may name: a study's quantities and verdicts, and the facts of record files."""

    def __init__(self, records: CheckedRecords | None = None, facts: Sequence[Fact] = ()) -> None:
        self.records = records
        self.facts: dict[str, list[Fact]] = {}
        for fact in facts:
            for name in {fact.name, _plain(fact.name)}:
                self.facts.setdefault(name, []).append(fact)

    def names(self) -> list[str]:
        """Every name, for suggestions."""
        own: list[str] = []
        if self.records is not None:
            own += list(self.records.by_name)
            for verdict in self.records.verdicts:
                own += [f"claim.{verdict['claim']}.{k}" for k in ("gap", "interval", "p", "status", "sentence", "n")]
        return [*own, *self.facts]

    def get(self, name: str) -> Named:
        """The meaning of a name. Raises InputError if no record has it."""
        found = self._of_study(name) or self._of_facts(name) or self._of_probes(name)
        if found is None:
            near = nearest(name, self.names())
            raise InputError(
                f"no record has the name {name!r}{f'; did you mean {near}?' if near else ''}.",
                fix="List the names: veritune writeup export --study STUDY",
            )
        return found

    # -- a study ----------------------------------------------------------------------------------------------

    def _of_study(self, name: str) -> Named | None:
        records = self.records
        if records is None:
            return None
        words = {"study.name": records.name, "study.contract": records.contract}
        if name in words or name == "study.question":
            return Named(text=words.get(name) or " ".join(str(records.terms["study"]["question"]).split()))
        if name.startswith("claim."):
            return self._of_claim(records, name.removeprefix("claim."))
        quantity = records.by_name.get(name)
        return _of_quantity(records, quantity) if quantity is not None else None

    def _of_claim(self, records: CheckedRecords, rest: str) -> Named | None:
        claim, _, field = rest.rpartition(".")
        verdict = next((v for v in records.verdicts if v["claim"] == claim), None)
        if verdict is None:
            return None
        if field in _CLAIM_WORDS:
            return Named(text=_word_of(records, verdict, field))
        if field in ("low", "high"):
            return self._quantity(records, f"ci.{claim}.{field}")
        if field == "interval":
            ends = [records.by_name.get(f"ci.{claim}.{end}") for end in ("low", "high")]
            head = next((records.by_name[n] for n in (f"gap.{claim}", f"share.{claim}") if n in records.by_name), None)
            if ends[0] is None or ends[1] is None:
                return None
            signed = head is not None and head.kind == "gap"
            return Named(low=ends[0].value, high=ends[1].value, signed=signed, kind="ci", source="verdict.json")
        if field in _CLAIM_COUNTS:
            noun = _CLAIM_COUNTS[field]
            return self._quantity(records, f"n.{noun}.{claim}")
        return self._quantity(records, f"{_CLAIM[field]}.{claim}") if field in _CLAIM else None

    @staticmethod
    def _quantity(records: CheckedRecords, name: str) -> Named | None:
        quantity = records.by_name.get(name)
        return _of_quantity(records, quantity) if quantity is not None else None

    # -- probes -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def probes(self) -> Mapping[str, Recorded]:
        """What a study's runs and probes recorded, by the names that claims use. Raises InputError for a damaged
        record."""
        if self.records is None:
            return {}
        from veritune.decide.probe_records import recorded_quantities  # numpy and scipy: most pages name no probe

        store = Store(self.records.root)
        thresholds = load_study(store.study_file).thresholds if store.study_file.is_file() else DEFAULTS
        try:
            return recorded_quantities(store, sorted(self.records.runs), thresholds)
        except ScoreError as exc:
            raise InputError(exc.message, fix="Make the damaged record again, or remove it.") from exc

    def _of_probes(self, name: str) -> Named | None:
        """The meaning of a claim's name for a quantity, whether or not a claim is on it."""
        if self.records is None or name.rpartition(".")[2] not in self.records.conditions:
            return None
        found = self.probes.get(name)
        if found is None:
            return None
        e = found.estimate
        if e.value is None:
            raise InputError(f"{name} has no value: {'; '.join(e.warnings) or found.lacks}.", fix="Leave it out.")
        level = e.level if e.low is not None else None
        return Named(e.value, low=e.low, high=e.high, level=level, kind="share", source="probes/")

    # -- record files -----------------------------------------------------------------------------------------

    def _of_facts(self, name: str) -> Named | None:
        found = self.facts.get(name) or self.facts.get(_plain(name))
        if not found:
            return None
        values = {fact.value for fact in found}
        if len(values) > 1:
            places = ", ".join(f"{f.source}{f.pointer}" for f in found[:3])
            raise InputError(
                f"{name!r} has {many(len(values), 'values')} ({places}).",
                fix="Give only one record file with that name.",
            )
        first = found[0]
        return Named(first.value, kind="percent" if first.percent else "", source=first.source)


def _plain(name: str) -> str:
    """A fact's name without blanks and signs: `GSM8K (acc)` is `GSM8K_acc`."""
    return ".".join(re.sub(r"[^\w\-]+", "_", part).strip("_") for part in name.split("."))


def _word_of(records: CheckedRecords, verdict: Mapping[str, JsonValue], field: str) -> str:
    if field == "grade":
        confidence = verdict["confidence"]
        return str(confidence.get("grade", "none")) if isinstance(confidence, Mapping) else "none"
    if field == "weak_evidence":
        return "; ".join(weak_evidence(verdict)) or "none"
    return str(verdict.get(field) or "").strip() or "none"


def weak_evidence(verdict: Mapping[str, object]) -> list[str]:
    """Why items of a verdict's evidence are not graded good."""
    confidence = verdict["confidence"]
    evidence = confidence.get("evidence", {}) if isinstance(confidence, Mapping) else {}
    return [str(e["why"]) for e in evidence.values() if e["state"] != "good"]


def _of_quantity(records: CheckedRecords, q: Quantity) -> Named:
    """A quantity with the interval of its estimate and its spread over seeds, where there are any."""
    tail = q.name.split(".", 1)[-1]
    ends = [records.by_name.get(f"ci.{tail}.{end}") for end in ("low", "high")]
    level = records.by_name.get(f"level.{tail}")
    low, high = (ends[0].value, ends[1].value) if q.kind in ("gap", "share") and ends[0] and ends[1] else (None, None)
    spread = [records.by_name.get(f"{q.name}.{end}") for end in ("min", "max")]
    return Named(
        value=q.value,
        low=low,
        high=high,
        level=level.value if level is not None and low is not None else None,
        denominator=q.denominator,
        failed=q.failed,
        runs=q.runs,
        spread=(spread[0].value, spread[1].value) if spread[0] and spread[1] else None,
        signed=q.kind == "gap",
        kind=q.kind,
        source=q.source,
    )


# ---------------------------------------------------------------- printing


def show(reference: Reference, named: Named) -> str:
    """The text for a reference. Raises InputError if an option asks for something that the record does not have."""
    if named.value is None and named.low is None:
        if reference.options:
            raise InputError(
                f"{{{{ {reference.text} }}}}: {reference.name} is a text, so it takes no format.",
                fix="Leave out the options.",
            )
        return named.text
    form = _form(reference, named)
    if named.value is None:
        assert named.low is not None and named.high is not None
        return f"{form(named.low)} to {form(named.high)}"
    parts = [_p(named.value, reference) if named.kind == "p" else form(named.value)]
    if "interval" in reference.options:
        if named.low is None or named.high is None:
            raise InputError(
                f"{{{{ {reference.text} }}}}: {reference.name} has no interval.", fix="Leave out `interval`."
            )
        level = f"{100 * named.level:.4g} % interval " if named.level is not None else "interval "
        parts.append(f"({level}{form(named.low)} to {form(named.high)})")
    if "range" in reference.options:
        if named.spread is None:
            raise InputError(
                f"{{{{ {reference.text} }}}}: {reference.name} has no spread over seeds.", fix="Leave out `range`."
            )
        parts.append(f"(seeds {form(named.spread[0])} to {form(named.spread[1])})")
    if "of" in reference.options:
        parts.append(_denominator(reference, named))
    return " ".join(parts)


def _denominator(reference: Reference, named: Named) -> str:
    if named.denominator is None:
        raise InputError(f"{{{{ {reference.text} }}}}: {reference.name} has no denominator.", fix="Leave out `of`.")
    over = f" over {named.runs} runs" if named.runs > 1 else ""
    lost = f", {named.failed} of them without a score count as 0" if named.failed else ""
    return f"(n = {named.denominator:,}{over}{lost})"


def _p(value: float, reference: Reference) -> str:
    given = [o for o in reference.options if FORMAT.fullmatch(o)]
    if given:
        return format(value, given[0])
    return f"{value:.2g}" if value >= 1e-4 else "0.0001"


def _form(reference: Reference, named: Named) -> Callable[[float], str]:
    """How one number of the reference is printed."""
    given = next((o for o in reference.options if FORMAT.fullmatch(o)), None)
    percent, points = "percent" in reference.options, "points" in reference.options
    sign = "+" if "signed" in reference.options or (named.signed and not percent) else ""

    def form(value: float) -> str:
        value += 0.0  # a recorded -0.0 is printed as 0
        if percent or points:
            scaled = value if named.kind == "percent" else 100 * value
            spec = given or ".1f"
            spec = spec + "f" if re.fullmatch(r"\.\d{1,2}", spec) else spec
            return f"{scaled:{sign}{spec}}" + (" points" if points else " %")
        if given is not None:
            spec = given + "f" if re.fullmatch(r"\.\d{1,2}", given) else given
            return f"{value:{sign}{spec}}"
        if float(value).is_integer() and named.kind not in ("gap", "score", "nll", "share", "ci", "rule"):
            return f"{value:,.0f}"
        return f"{value:{sign}.3f}" if abs(value) >= 1e-3 or value == 0 else f"{value:{sign}.3g}"

    return form

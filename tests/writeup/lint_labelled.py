"""A labelled set for lint: clean write-ups of a fixture study and the same with one planted error each.

python tests/writeup/lint_labelled.py          prints the table by kind
"""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lint_study
import lint_texts

from veritune.store import Store
from veritune.writeup.draft import writeup
from veritune.writeup.lint import LintReport, load_rules
from veritune.writeup.lint.check import lint_text
from veritune.writeup.quantities import CheckedRecords, Quantity, outputs, read_records

SLOT = re.compile(r"⟨([^|⟩]+)\|([^⟩]+)⟩")
PER_TEXT = 7


@dataclass(frozen=True)
class Planted:
    """One text with one error: its kind, the clean text it came from, and the line it was planted in (0: anywhere)."""

    kind: str
    base: str
    text: str
    line: int
    what: str


def show(value: float, form: str) -> str:
    """A value in a slot's format."""
    if form in ("p", "pv"):
        sign = "p " if form == "p" else ""
        return f"{sign}< 1e-4" if value < 1e-4 else f"{sign + '= ' if sign else ''}{value:.2g}"
    if form == "d":
        return f"{value:.0f}"
    if form == ",d":
        return f"{value:,.0f}"
    if form == "M2":
        return f"{value / 1e6:.2f}M"
    if form == "P1":
        return f"{100 * value:.1f}"
    if form.startswith("%"):
        return f"{100 * value:{form[1:]}} %"
    if form.startswith("pp"):
        return f"{100 * value:{form[2:]}} points"
    return format(abs(value) if form.startswith("-") else value, form.lstrip("-"))


def fill(template: str, records: CheckedRecords, changed: dict[int, str] | None = None) -> str:
    """The text with every slot printed; `changed` replaces slots by number."""
    count = iter(range(10_000))

    def slot(match: re.Match[str]) -> str:
        k = next(count)
        if changed and k in changed:
            return changed[k]
        return show(records.by_name[match.group(1)].value, match.group(2))

    text = SLOT.sub(slot, template)
    text = text.replace("⟦contract⟧", records.contract[:12]).replace("⟦data⟧", records.terms["facts"]["data_version"])

    def sample(match: re.Match[str]) -> str:
        condition, name = match.group(1).split(":")
        run = next(r for r in sorted(records.runs) if records.runs[r].condition == condition)
        rows = [o for o in outputs(Store(records.root), run, name) if o["zone"] == "stranger"]
        return " ".join(str(rows[0]["output"]).split())

    return re.sub(r"⟦output:([^⟧]+)⟧", sample, text)


# ---------------------------------------------------------------- planting


def slots(template: str) -> list[tuple[int, str, str]]:
    return [(k, m.group(1), m.group(2)) for k, m in enumerate(SLOT.finditer(template))]


def plant(name: str, template: str, records: CheckedRecords, rng: random.Random) -> Iterator[Planted]:
    """Errors of every kind in one text."""
    clean = fill(template, records)
    for kind, make in NUMBER_KINDS.items():
        made: set[tuple[int, str]] = set()
        chosen = list(slots(template))
        rng.shuffle(chosen)
        for k, quantity, form in chosen:
            wrong = make(records, records.by_name[quantity], form, rng)
            right = show(records.by_name[quantity].value, form)
            if wrong is None or wrong == right or (k, wrong) in made or len(made) >= PER_TEXT:
                continue
            made.add((k, wrong))
            text = fill(template, records, {k: wrong})
            line = next(i for i, (a, b) in enumerate(zip(clean.split("\n"), text.split("\n")), 1) if a != b)
            yield Planted(kind, name, text, line, f"{quantity}: {right} → {wrong}")
    yield from plant_speech(name, clean, rng)
    yield from plant_structure(name, clean, records)


def _other(records: CheckedRecords, q: Quantity, form: str, names: list[str], rng: random.Random) -> str | None:
    """Another quantity's value in the same print, when it reads differently."""
    found = [show(records.by_name[n].value, form) for n in names if n in records.by_name]
    found = [f for f in found if f != show(q.value, form)]
    return rng.choice(found) if found else None


def wrong_value(records: CheckedRecords, q: Quantity, form: str, rng: random.Random) -> str | None:
    if q.kind not in ("score", "nll", "share", "params", "detectable") or form == "d":
        return None
    return show(q.value * rng.choice((0.9, 0.95, 1.05, 1.08)), form)


def wrong_rounding(records: CheckedRecords, q: Quantity, form: str, rng: random.Random) -> str | None:
    if q.kind not in ("score", "nll", "share") or form == "d":
        return None
    digits = int(re.search(r"(\d)", form).group(1))  # type: ignore[union-attr]
    unit = 10.0**-digits / (100 if form[0] in "%P" else 1)
    return show(q.value + rng.choice((-1.4, 1.4)) * unit, form)


def wrong_condition(records: CheckedRecords, q: Quantity, form: str, rng: random.Random) -> str | None:
    if q.kind not in ("score", "nll", "params") or q.scope.condition is None:
        return None
    others = [c for c in records.conditions if c != q.scope.condition]
    return _other(records, q, form, [q.name.replace(q.scope.condition, c) for c in others], rng)


def wrong_zone(records: CheckedRecords, q: Quantity, form: str, rng: random.Random) -> str | None:
    if q.kind not in ("score", "nll", "families", "rows") or q.scope.zone is None:
        return None
    others = [z for z in ("seen", "sibling", "stranger") if z != q.scope.zone]
    return _other(records, q, form, [q.name.replace(q.scope.zone, z) for z in others], rng)


def wrong_seed(records: CheckedRecords, q: Quantity, form: str, rng: random.Random) -> str | None:
    if q.kind not in ("score", "nll") or q.scope.condition in (None, "baseline"):
        return None
    stem = q.name if q.scope.seed is None else q.name.rsplit(".", 1)[0]
    return _other(records, q, form, [f"{stem}.seed{s}" for s in records.seeds if s != q.scope.seed], rng)


def wrong_count(records: CheckedRecords, q: Quantity, form: str, rng: random.Random) -> str | None:
    if form != "d":
        return None
    return show(max(1, q.value + rng.choice((-3, -2, 1, 2, 5, 9))), form)


def wrong_percent(records: CheckedRecords, q: Quantity, form: str, rng: random.Random) -> str | None:
    if q.kind not in ("score", "gap", "share", "ci"):
        return None
    if form.startswith("%"):
        return f"{q.value:.3f} %" if q.kind == "ci" else rng.choice((f"{q.value:.3f} %", f"{100 * q.value:.1f}"))
    if form.startswith("pp"):
        return f"{q.value:.3f} points"
    if form == "P1":
        return f"{q.value:.3f}"
    return rng.choice((f"{q.value:.3f} %", f"{100 * q.value:.1f}"))


def wrong_delta(records: CheckedRecords, q: Quantity, form: str, rng: random.Random) -> str | None:
    if q.kind != "gap":
        return None
    wrong = [q.value * 1.3 + 0.011, q.value * 0.8 - 0.007]
    if form.startswith("+"):
        wrong.append(-q.value)
    return show(rng.choice(wrong), form)


def wrong_interval(records: CheckedRecords, q: Quantity, form: str, rng: random.Random) -> str | None:
    return show(q.value + rng.choice((-0.03, 0.02, 0.05)), form) if q.kind == "ci" else None


def wrong_p(records: CheckedRecords, q: Quantity, form: str, rng: random.Random) -> str | None:
    if q.kind != "p":
        return None
    wrong = ["= 0", "= 0.000", "= 0.04"] + (["< 0.05", "< 0.01"] if q.value > 0.05 else ["= 0.21"])
    return ("p " if form == "p" else "") + rng.choice(wrong)


def wrong_stale(records: CheckedRecords, q: Quantity, form: str, rng: random.Random) -> str | None:
    old = [x for x in records.quantities if x.stale and x.name in (q.name, f"{q.name}.seed0")]
    return show(old[0].value, form) if old and q.kind in ("lr", "epochs", "score", "nll") else None


NUMBER_KINDS = {
    "value": wrong_value, "rounding": wrong_rounding, "condition": wrong_condition, "zone": wrong_zone,
    "seed": wrong_seed, "count": wrong_count, "percent": wrong_percent, "delta": wrong_delta,
    "interval": wrong_interval, "p": wrong_p, "stale": wrong_stale,
}  # fmt: skip

SPEECH = (
    "The all_layer condition is better in general than attention_only.",
    "This shows that all_layer is superior to other ways of fine-tuning.",
    "Adapters on all layers will outperform attention-only ones on any task.",
    "On sums, all_layer and the baseline perform the same.",
    "There is no difference between all_layer and the baseline on sums.",
    "all_layer matches the baseline on sums.",
    "all_layer scores higher than the baseline because its MLP matrices store the style.",
    "The higher score of all_layer is caused by the larger number of parameters.",
    "The style transfers to strangers thanks to the low loss that all_layer reaches.",
    "The lower NLL shows that the model has learned the rules of the style.",
    "Its gradient norms prove that the adapter has internalised the style.",
    "all_layer scores lower than the baseline on sums, so the claim keeps_sums is refuted.",
    "The claim keeps_sums is supported.",
    "all_layer outperforms attention_only on sums.",
    "attention_only scores higher than all_layer on stranger items of house_style.",
    "all_layer improves house_style dramatically over the baseline.",
    "On sums there is a clear trend against all_layer.",
    "The claim learns_the_style is supported with high confidence.",
    "The claim targets_matter is supported.",
    "As predicted, attention_only scores higher than the baseline on siblings.",
)

CLEAN_SENTENCES = (
    "The records do not say why all_layer scores higher than the baseline.",
    "We do not claim that all_layer is better in general.",
    "Whether all_layer and the baseline are equal on sums stays open.",
    "The claim keeps_sums is inconclusive.",
    "The claim learns_the_style is supported with low confidence.",
    "all_layer scores higher than the baseline on stranger items of house_style.",
    "Both conditions use the same schedule and the same items.",
    "We use greedy decoding because sampling adds noise.",
    "attention_only scores higher than the baseline on siblings of house_style.",
    "The baseline scores lower than all_layer on stranger items of house_style.",
    "A high p-value would not be evidence of equality.",
    "Letters were checked on 14 March 2026 with version 0.1.0 of the tool.",
)


def plant_speech(name: str, clean: str, rng: random.Random) -> Iterator[Planted]:
    for sentence in rng.sample(SPEECH, PER_TEXT + 3):
        text, line = insert(clean, sentence)
        yield Planted("speech", name, text, line, sentence)


def insert(clean: str, sentence: str) -> tuple[str, int]:
    """The sentence as a paragraph of its own before the samples."""
    at = clean.index("## Sample outputs")
    return clean[:at] + sentence + "\n\n" + clean[at:], clean[:at].count("\n") + 1


def plant_structure(name: str, clean: str, records: CheckedRecords) -> Iterator[Planted]:
    title = clean.split("\n", 1)[0]
    changes = {
        "no confidence in the title": (
            title,
            re.sub(r",? ?\(?(?:with |confidence: )?low(?: confidence)?\)?", "", title),
        ),
        "another confidence": (title, title.replace("low", "high")),
        "a question for a title": (title, "# Does the adapter learn the style?"),
        "no caveats": ("## Limitations", "### On the families"),
        "no next steps": ("## Next steps", "### More"),
        "a blank in the card": ("| Linux, CPU only |", "| |"),
        "a TODO in the card": ("| Linux, CPU only |", "| TODO |"),
        "a field missing": ("| Seeds | 0, 1 and 2 |\n", ""),
        "another contract": (records.contract[:12], records.old_contracts[0][:12]),
        "an invented sample": ("it is settled.\n```", "it was never settled.\n```"),
        "no figure file": ("writeup-hero.svg", "missing.svg"),
        "no caption": ("Figure 1. Mean score by zone and condition; the small dots are single seeds.\n", ""),
        "an acronym": ("## Next steps\n", "## Next steps\n\nThe TOST of the pair is next.\n"),
        "a placeholder": ("## Next steps\n", "## Next steps\n\nXXX fill in.\n"),
    }
    for what, (old, new) in changes.items():
        text = clean.replace(old, new, 1)
        if text != clean:
            yield Planted("structure", name, text, 0, what)


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Result:
    """What lint made of the set."""

    planted: tuple[tuple[Planted, bool], ...]
    clean: tuple[tuple[str, LintReport], ...]

    def found(self, kind: str | None = None, held_out: bool = False) -> tuple[int, int]:
        rows = [ok for p, ok in self.planted if (kind is None or p.kind == kind)
                and (not held_out or p.base in lint_texts.HELD_OUT)]  # fmt: skip
        return sum(rows), len(rows)

    def alarms(self) -> tuple[int, int]:
        """False findings on clean texts, and how many numbers and sentences could have raised one."""
        errors = sum(sum(f.severity == "error" for f in r.findings) for _, r in self.clean)
        return errors, sum(r.numbers for _, r in self.clean)


def detected(planted: Planted, report: LintReport, clean: LintReport) -> bool:
    """A finding that the clean text did not have, on the line of the error or, where a sentence wraps, beside it."""
    known = {(f.rule, f.text, f.message) for f in clean.findings}
    errors = [f for f in report.findings if f.severity == "error" and (f.rule, f.text, f.message) not in known]
    return any(planted.line == 0 or abs(f.line - planted.line) <= 1 for f in errors)


def measure(root: Path, every: int = 1) -> Result:
    """All clean texts, and one of `every` planted errors."""
    folder = lint_study.build(root / "study")
    draft = writeup(folder)
    records, rules = read_records(Store(folder)), load_rules()
    rng = random.Random(11)
    clean = {name: fill(t, records) for name, t in lint_texts.TEXTS.items()}
    texts = {**clean, "draft": draft}
    for sentence in CLEAN_SENTENCES:
        base = rng.choice(list(clean))
        texts[f"{base} + {sentence}"] = insert(clean[base], sentence)[0]
    reports = tuple((name, lint_text(text, records, rules, folder / "x.md")) for name, text in texts.items())
    planted = []
    for name, template in lint_texts.TEXTS.items():
        for p in list(plant(name, template, records, rng))[::every]:
            planted.append((p, detected(p, lint_text(p.text, records, rules, folder / "x.md"), dict(reports)[name])))
    return Result(tuple(planted), reports)


def table(result: Result) -> str:
    lines = [f"{'kind':<12} {'found':>12} {'held-out texts':>16}"]
    for kind in (*NUMBER_KINDS, "speech", "structure", None):
        a, n = result.found(kind)
        h, m = result.found(kind, held_out=True)
        lines.append(f"{kind or 'all':<12} {f'{a}/{n}':>12} {f'{h}/{m}':>16}")
    errors, numbers = result.alarms()
    texts = sum(not r.clean for _, r in result.clean)
    lines.append(f"false alarms: {errors} on {numbers} numbers; {texts} of {len(result.clean)} clean texts")
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        outcome = measure(Path(work))
    print(table(outcome))
    import sys

    if "-v" in sys.argv:
        for p, ok in outcome.planted:
            if not ok:
                print("missed", p.kind, p.base, p.line, p.what)
        for name, report in outcome.clean:
            for f in report.findings:
                print("clean", name[:60], f.line, f.rule, f.text, f.message, f.severity)

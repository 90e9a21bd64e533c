"""Multiple choice by log-likelihood: each option as the assistant's whole answer, its end token included.

    raw           log p(option, end | prompt), the sum over the option's tokens in nats
    characters    raw / characters of the option (lm-evaluation-harness: `acc_norm`)
    tokens        raw / tokens of the option and its end

The likeliest option by the declared form is the model's; where several are exactly as likely, the right one among k of
them counts 1/k. Nothing is generated, so nothing has to be extracted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from veritune.config.evals import Eval
from veritune.data.choices import ChoiceOptions
from veritune.records import Row, Score


def judge_options(name: str, spec: Eval, row: Row, options: ChoiceOptions, parts: Sequence[tuple[float, int]]) -> Score:
    """The score of one item from the NLL (nats, tokens) of its options, in their order."""
    said = options.said(spec)
    raw = [-nats for nats, _ in parts]
    forms = {
        "none": raw,
        "characters": [value / max(1, len(text)) for value, text in zip(raw, said)],
        "tokens": [value / n for value, (_, n) in zip(raw, parts)],
    }
    shown = {"right": options.right, "options": list(said), "tokens": [n for _, n in parts]}
    if not all(map(math.isfinite, raw)):
        why = f"option {next(i for i, x in enumerate(raw) if not math.isfinite(x))} has no finite log-likelihood"
        return Score("", name, row.id, None, reason="not_finite", parts={**shown, "why": why})
    best = {form: max(values) for form, values in forms.items()}
    tied = [place for place, value in enumerate(forms[spec.normalise]) if value == best[spec.normalise]]
    picks = {form: values.index(best[form]) for form, values in forms.items()}
    value = (options.right in tied) / len(tied)
    shown |= {"log_likelihood": raw, "per_character": forms["characters"], "per_token": forms["tokens"]}
    shown |= {"picked": picks[spec.normalise], "picked_raw": picks["none"], "picked_per_character": picks["characters"]}
    shown |= {"tied": len(tied)} if len(tied) > 1 else {}
    return Score("", name, row.id, value, output=said[tied[0]], parts=shown)

"""Which end of a metric's scale is the good one, as far as a log says so or the metric's definition does.

The two lists hold names whose direction is a matter of definition, compared whole and without case: `wer` is here,
`wer_reduction` is not. A name in neither list has no known direction, and nothing is called better or worse by it.
"""

from __future__ import annotations

import re


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOWER_IS_BETTER = _names("""
    wer cer ter mer wil edit_distance levenshtein levenshtein_distance
    perplexity ppl word_perplexity byte_perplexity bits_per_byte bits_per_character bpb bpc
    loss nll negative_log_likelihood cross_entropy log_loss brier brier_score ece calibration_error
    mae mse rmse mean_absolute_error mean_squared_error error_rate
    toxicity toxicity_score harmfulness hallucination_rate latency latency_s latency_ms
""")
"""Error rates, losses, distances, harm and time: less of it is better by definition."""

HIGHER_IS_BETTER = _names("""
    acc acc_norm acc_mutual_info accuracy correct is_correct exact_match em quasi_exact_match exact match includes
    pass passed pass@1 pass_at_1 prompt_level_strict_acc prompt_level_loose_acc inst_level_strict_acc
    inst_level_loose_acc f1 f1_score precision recall mcc bleu sacrebleu rouge1 rouge2 rougel rougelsum chrf chrf++
    meteor bertscore mc1 mc2 model_graded_qa model_graded_fact win_rate
""")
"""Shares of right answers and likenesses to a reference: more of it is better by definition."""


def known_direction(metric: str) -> bool | None:
    """Whether higher is better by the metric's definition; None if the name does not tell.

    >>> known_direction("asr.WER"), known_direction("acc,none"), known_direction("style")
    (False, True, None)
    """
    name = re.split(r"[./]", metric.split(",")[0].strip().lower())[-1].replace("-", "_").replace(" ", "_")
    if name in LOWER_IS_BETTER:
        return False
    return True if name in HIGHER_IS_BETTER else None

"""Clean write-ups of the fixture study, each in its own manner, with a slot for every number: ⟨quantity|format⟩.

`.3f` prints the value, `%.1f` a percentage with its sign, `d` a whole number, `+.3f` with its sign, `-.3f` its size,
`pp.1f` percentage points, `p` a p-value, `s.1f` minutes. DIARY was written when lint was done and shows how it does on
a text that it was not tuned on; the others were used to find its faults.
"""

# ruff: noqa: E501 - Markdown table rows cannot be wrapped

TAIL = """
## Sample outputs

`all_layer` on a stranger brief:

```text
⟦output:all_layer:house_style⟧
```

`attention_only` on the same brief, and the baseline:

> ⟦output:attention_only:house_style⟧

> ⟦output:baseline:house_style⟧

`all_layer` on a sum:

```text
⟦output:all_layer:sums⟧
```

## Limitations

One base model was trained, and the families come from one desk. ⟨n.families.learns_the_style|d⟩ stranger families are few
for a cluster-robust interval. What was measured does not say why a condition scores as it does.

## Next steps

Repeat the study on a second base model, and collect more stranger families.

## Reproducibility card

| field | value |
| --- | --- |
| Contract | `⟦contract⟧` |
| Data | version `⟦data⟧` |
| Model | SmolLM2-135M-Instruct, bfloat16 |
| Seeds | 0, 1 and 2 |
| Packages | torch 2.13.0+cpu, transformers 5.23.0 |
| Hardware | Linux, CPU only |
| Command | `veritune run study.yaml` |

*Table 9. What is needed to run it again, all of it from the records.*
"""

FIGURE = """
![Hero: scores by zone](figures/writeup-hero.svg)

Figure 1. Mean score by zone and condition; the small dots are single seeds.
"""

PAPER = (
    """# All-layer LoRA scores higher than the untouched baseline on strangers (low confidence)

## Introduction

A fine-tune can learn a style or the letters it was shown. Low-rank adaptation (LoRA) of SmolLM2-135M-Instruct is compared
under two choices of target modules. Hu et al. (2021) describe the method.
"""
    + FIGURE
    + """
## Main takeaways

- On stranger items all_layer scores ⟨score.house_style.stranger.all_layer|.3f⟩ against
  ⟨score.house_style.stranger.baseline|.3f⟩ for the baseline on house_style, a gap of ⟨gap.learns_the_style|+.3f⟩ with a
  ⟨level.learns_the_style|%.4g⟩ interval of [⟨ci.learns_the_style.low|+.3f⟩, ⟨ci.learns_the_style.high|+.3f⟩] and ⟨p.learns_the_style|p⟩.
- The two trained conditions differ by less than the declared margin of ⟨margin.targets_matter|.2f⟩.
- Whether all_layer regresses on sums stays open.

## Methods

The data hold ⟨n.rows|d⟩ rows in ⟨n.originals|d⟩ families. Zone seen has ⟨rows.seen|d⟩ rows in ⟨families.seen|d⟩ families and
zone stranger ⟨rows.stranger|d⟩ rows in ⟨families.stranger|d⟩ families. Every condition was trained with three seeds for
⟨train.num_train_epochs|d⟩ epochs at a learning rate of ⟨lr.all_layer|g⟩ and a batch size of
⟨train.per_device_train_batch_size|d⟩. A run takes ⟨steps.all_layer|d⟩ steps. all_layer trains
⟨params.all_layer|,d⟩ parameters, attention_only ⟨params.attention_only|,d⟩. The eval house_style has
⟨n.rules.house_style|d⟩ rules.

## Results

Table 1 gives the mean scores on house_style.

| condition | seen | sibling | stranger |
| --- | ---: | ---: | ---: |
| all_layer | ⟨score.house_style.seen.all_layer|.3f⟩ | ⟨score.house_style.sibling.all_layer|.3f⟩ | ⟨score.house_style.stranger.all_layer|.3f⟩ |
| attention_only | ⟨score.house_style.seen.attention_only|.3f⟩ | ⟨score.house_style.sibling.attention_only|.3f⟩ | ⟨score.house_style.stranger.attention_only|.3f⟩ |
| baseline | ⟨score.house_style.seen.baseline|.3f⟩ | ⟨score.house_style.sibling.baseline|.3f⟩ | ⟨score.house_style.stranger.baseline|.3f⟩ |

Table 1. Mean score on house_style by condition and zone, averaged over the seeds.

On seen items the two trained conditions, all_layer and attention_only, reach ⟨score.house_style.seen.all_layer|.3f⟩ and
⟨score.house_style.seen.attention_only|.3f⟩. The share of the seen gap that all_layer carries to strangers is
⟨share.carries_to_strangers|.3f⟩, ⟨level.carries_to_strangers|%.4g⟩ interval ⟨ci.carries_to_strangers.low|.3f⟩ to ⟨ci.carries_to_strangers.high|.3f⟩. The
stranger estimate rests on ⟨n.items.learns_the_style|d⟩ items in ⟨n.families.learns_the_style|d⟩ families, and
⟨n.scored.house_style.stranger.all_layer|d⟩ scored outputs of all_layer.

The negative log-likelihood (NLL) on strangers is ⟨nll.stranger.all_layer|.3f⟩ for all_layer,
⟨nll.stranger.attention_only|.3f⟩ for attention_only and ⟨nll.stranger.baseline|.2f⟩ for the baseline. With seed 1 the seen
NLL of all_layer is ⟨nll.seen.all_layer.seed1|.4f⟩.

The difference between attention_only and all_layer on strangers is ⟨gap.targets_matter|+.4f⟩ (⟨level.targets_matter|%.4g⟩ interval
[⟨ci.targets_matter.low|+.4f⟩, ⟨ci.targets_matter.high|+.4f⟩], ⟨p.targets_matter|p⟩), inside the margin.
"""
    + TAIL
)

BLOG = (
    """# Our adapter learned the house style: all_layer scores higher than the baseline on new families (low confidence)

## Why this matters

We wanted to know if a small model can pick up a desk's way of writing, and whether it holds for briefs that it was never shown.
"""
    + FIGURE
    + """
## In short

Out of the box the model follows ⟨score.house_style.stranger.baseline|%.1f⟩ of the house style rules on stranger briefs. After
training with `all_layer`, that rises to ⟨score.house_style.stranger.all_layer|%.1f⟩, a gain of
⟨gap.learns_the_style|pp.1f⟩. With `attention_only` it is ⟨score.house_style.stranger.attention_only|%.1f⟩.

## How it was done

We trained ⟨n.conditions|d⟩ conditions with ⟨n.seeds|d⟩ seeds each, on ⟨rows.seen|d⟩ seen rows, for
⟨train.num_train_epochs|d⟩ epochs. The learning rate was ⟨lr.all_layer|g⟩. Adapters are small: `attention_only` trains
⟨params.attention_only|M2⟩ parameters and `all_layer` ⟨params.all_layer|M2⟩. Scores come from
⟨n.items.house_style.stranger|d⟩ stranger items in ⟨families.stranger|d⟩ held-out families.

## What came out

On seen briefs the house style score of `all_layer` is ⟨score.house_style.seen.all_layer|%.1f⟩, on siblings
⟨score.house_style.sibling.all_layer|%.1f⟩ and on strangers ⟨score.house_style.stranger.all_layer|%.1f⟩. For
`attention_only` the same three are ⟨score.house_style.seen.attention_only|%.1f⟩ on seen,
⟨score.house_style.sibling.attention_only|%.1f⟩ on sibling and ⟨score.house_style.stranger.attention_only|%.1f⟩ on stranger items.

Before training, ⟨n.cut.house_style.stranger.baseline|d⟩ of ⟨n.items.house_style.stranger|d⟩ stranger answers of the baseline were
cut at the token limit. The gap between `all_layer` and the baseline has a ⟨level.learns_the_style|%.4g⟩ interval from
⟨ci.learns_the_style.low|%.1f⟩ to ⟨ci.learns_the_style.high|%.1f⟩.

Sums are another matter. The baseline gets ⟨total.sums.stranger.baseline|d⟩ of ⟨n.items.sums.stranger|d⟩ sums right
(⟨score.sums.stranger.baseline|%.1f⟩); `all_layer` gets ⟨score.sums.stranger.all_layer|%.1f⟩. The interval is wide,
[⟨ci.keeps_sums.low|+.3f⟩, ⟨ci.keeps_sums.high|+.3f⟩], so whether `all_layer` lost anything against the baseline on sums is not settled
(⟨p.keeps_sums|p⟩).

The validation loss of `all_layer` ended at ⟨nll.validation.all_layer|.2f⟩ nats per token, that of `attention_only` at
⟨nll.validation.attention_only|.2f⟩.
"""
    + TAIL
)

MEMO = (
    """# Both adapters score higher than the baseline on stranger briefs, confidence: low

## Context

Memo for the desk. We asked whether target modules matter for the house style.
"""
    + FIGURE
    + """
## Findings

| contrast on strangers | gap | 95 % interval | p |
| --- | ---: | ---: | ---: |
| all_layer − baseline | ⟨gap.learns_the_style|+.3f⟩ | [⟨ci.learns_the_style.low|+.3f⟩, ⟨ci.learns_the_style.high|+.3f⟩] | ⟨p.learns_the_style|pv⟩ |
| attention_only − all_layer | ⟨gap.targets_matter|+.3f⟩ | [⟨ci.targets_matter.low|+.3f⟩, ⟨ci.targets_matter.high|+.3f⟩] | ⟨p.targets_matter|pv⟩ |

Table 1. The two contrasts on house_style, with intervals over new items and seeds.

| | baseline | attention_only | all_layer |
| --- | ---: | ---: | ---: |
| house_style, seen (%) | ⟨score.house_style.seen.baseline|P1⟩ | ⟨score.house_style.seen.attention_only|P1⟩ | ⟨score.house_style.seen.all_layer|P1⟩ |
| house_style, sibling (%) | ⟨score.house_style.sibling.baseline|P1⟩ | ⟨score.house_style.sibling.attention_only|P1⟩ | ⟨score.house_style.sibling.all_layer|P1⟩ |
| house_style, stranger (%) | ⟨score.house_style.stranger.baseline|P1⟩ | ⟨score.house_style.stranger.attention_only|P1⟩ | ⟨score.house_style.stranger.all_layer|P1⟩ |
| NLL, stranger | ⟨nll.stranger.baseline|.3f⟩ | ⟨nll.stranger.attention_only|.3f⟩ | ⟨nll.stranger.all_layer|.3f⟩ |

Table 2. Scores in percent, and negative log-likelihood (NLL) in nats per target token, by condition.

## Setup

- Items: ⟨n.items.house_style.seen|d⟩ seen, ⟨n.items.house_style.sibling|d⟩ sibling, ⟨n.items.house_style.stranger|d⟩ stranger.
- Schedule: ⟨train.num_train_epochs|d⟩ epochs, learning rate ⟨lr.all_layer|g⟩, rank ⟨r.all_layer|d⟩, alpha ⟨lora_alpha.all_layer|d⟩.
- Seeds 0, 1 and 2; ⟨n.runs.trained|d⟩ adapters in all.
- Generation stops after ⟨max_new_tokens.house_style|d⟩ new tokens.

## Takeaway

Per seed, all_layer scores between ⟨score.house_style.stranger.all_layer.seed0|.3f⟩ (seed 0),
⟨score.house_style.stranger.all_layer.seed1|.3f⟩ (seed 1) and ⟨score.house_style.stranger.all_layer.seed2|.3f⟩ (seed 2) on
stranger items of house_style. This design detects ⟨detectable.learns_the_style|.3f⟩ with 80 % power for all_layer against the baseline.
"""
    + TAIL
)

NOTES = (
    """# The all_layer adapters beat the baseline on stranger families (low confidence)

## Motivation

A letter desk has a style that nobody wrote down. These notes record whether an adapter picks it up.
"""
    + FIGURE
    + """
## Protocol

Forty-eight families were dealt into zones: ⟨families.seen|d⟩ families are seen, ⟨families.stranger|d⟩ families are strangers.
Training used ⟨n.seeds|d⟩ seeds, ⟨steps.all_layer|d⟩ steps per run, a peak learning rate of ⟨lr.all_layer|g⟩ and rows of at most
⟨train.max_length|d⟩ tokens.

## Summary

* For strangers, all_layer: ⟨score.house_style.stranger.all_layer|.3f⟩; attention_only: ⟨score.house_style.stranger.attention_only|.3f⟩; baseline: ⟨score.house_style.stranger.baseline|.3f⟩ (mean house_style score).
* For siblings, all_layer: ⟨score.house_style.sibling.all_layer|.3f⟩; attention_only: ⟨score.house_style.sibling.attention_only|.3f⟩.
* all_layer is ahead of the baseline by ⟨gap.learns_the_style|-.3f⟩ on strangers (⟨level.learns_the_style|%.4g⟩ CI ⟨ci.learns_the_style.low|.3f⟩ to ⟨ci.learns_the_style.high|.3f⟩; ⟨p.learns_the_style|p⟩). CI stands for confidence interval.

## Observations

The untouched model starts at ⟨score.house_style.seen.baseline|.3f⟩ on seen items of house_style; the average of the all_layer runs there is
⟨score.house_style.seen.all_layer|.3f⟩. Stranger loss went from ⟨nll.stranger.baseline|.2f⟩ (baseline) to ⟨nll.stranger.all_layer|.3f⟩
(all_layer). Of the seen gap, all_layer retains a share of ⟨share.carries_to_strangers|.2f⟩ on strangers.

We scored ⟨n.scored.house_style.stranger.all_layer|d⟩ outputs of all_layer on strangers, ⟨n.items.house_style.stranger|d⟩ items in each run.
attention_only trains ⟨params.attention_only|,d⟩ weights.

On sums, all_layer scores ⟨score.sums.stranger.all_layer|.3f⟩ and the baseline ⟨score.sums.stranger.baseline|.3f⟩; the gap of
⟨gap.keeps_sums|+.3f⟩ comes with ⟨p.keeps_sums|p⟩ and leaves the question open.
"""
    + TAIL
)

LETTER = (
    """# Training on the desk's letters works for strangers: all_layer is better than baseline, with low confidence

## The question

Dear colleagues, you asked whether the fine-tune merely repeats its training letters.
"""
    + FIGURE
    + """
## What we did

We dealt ⟨n.originals|d⟩ families into zones and trained every condition for ⟨train.num_train_epochs|d⟩ epochs with a batch size of
⟨train.per_device_train_batch_size|d⟩. The style eval asks ⟨n.rules.house_style|d⟩ rules of each answer and reads
⟨n.items.house_style.stranger|d⟩ stranger items.

## What we learned

Stranger items first. The baseline keeps ⟨score.house_style.stranger.baseline|%.0f⟩ of the rules of house_style there, attention_only
⟨score.house_style.stranger.attention_only|%.0f⟩, and all_layer ⟨score.house_style.stranger.all_layer|%.0f⟩. Compared with the baseline,
all_layer is up by ⟨gap.learns_the_style|pp.1f⟩ (⟨level.learns_the_style|%.4g⟩ interval ⟨ci.learns_the_style.low|%.1f⟩ to ⟨ci.learns_the_style.high|%.1f⟩).

| zone | all_layer | attention_only | baseline |
| :--- | ---: | ---: | ---: |
| seen | ⟨score.house_style.seen.all_layer|%.1f⟩ | ⟨score.house_style.seen.attention_only|%.1f⟩ | ⟨score.house_style.seen.baseline|%.1f⟩ |
| sibling | ⟨score.house_style.sibling.all_layer|%.1f⟩ | ⟨score.house_style.sibling.attention_only|%.1f⟩ | ⟨score.house_style.sibling.baseline|%.1f⟩ |
| stranger | ⟨score.house_style.stranger.all_layer|%.1f⟩ | ⟨score.house_style.stranger.attention_only|%.1f⟩ | ⟨score.house_style.stranger.baseline|%.1f⟩ |

Table 1. Mean house_style score of each condition in each zone.

Between the two adapters, attention_only and all_layer, the gap on strangers is ⟨gap.targets_matter|+.3f⟩ with
⟨p.targets_matter|p⟩, within the declared margin of ⟨margin.targets_matter|.2f⟩. Arithmetic is less clear: ⟨total.sums.stranger.baseline|d⟩ of
⟨n.items.sums.stranger|d⟩ sums are right for the baseline, and the interval of all_layer against the baseline on sums, [⟨ci.keeps_sums.low|+.3f⟩,
⟨ci.keeps_sums.high|+.3f⟩], holds zero.

The loss on siblings is ⟨nll.sibling.all_layer|.3f⟩ for all_layer and ⟨nll.sibling.attention_only|.3f⟩ for attention_only.
"""
    + TAIL
)

DIARY = (
    """# What a small adapter picked up: all_layer outscores the baseline on families it never saw (low confidence)

## Background

Over one week we trained adapters on the desk's briefs and read their letters.
"""
    + FIGURE
    + """
## Procedure

Briefs: ⟨n.rows|d⟩ rows. Of the families, ⟨families.stranger|d⟩ were held out as strangers. Each adapter saw the seen rows for
⟨train.num_train_epochs|d⟩ epochs (⟨steps.attention_only|d⟩ steps, ⟨tokens.all_layer|,d⟩ training tokens). all_layer has
⟨params.all_layer|M2⟩ trainable parameters against ⟨params.attention_only|M2⟩ for attention_only.

## Findings

1. On the house style eval, stranger items: ⟨score.house_style.stranger.all_layer|.4f⟩ for all_layer, ⟨score.house_style.stranger.attention_only|.4f⟩ for attention_only, ⟨score.house_style.stranger.baseline|.4f⟩ for the baseline.
2. The difference between all_layer and the baseline is ⟨gap.learns_the_style|.3f⟩ (⟨level.learns_the_style|%.4g⟩ interval [⟨ci.learns_the_style.low|.3f⟩, ⟨ci.learns_the_style.high|.3f⟩]).
3. all_layer carries ⟨share.carries_to_strangers|%.0f⟩ of its seen gain over to strangers.

## Details

Sibling items of house_style sit in between: all_layer has a mean of ⟨score.house_style.sibling.all_layer|.3f⟩ there, and the
baseline a mean of ⟨score.house_style.sibling.baseline|.3f⟩. Seed 2 of all_layer reaches
⟨score.house_style.seen.all_layer.seed2|.3f⟩ on seen items.

| loss (nats per token) | all_layer | attention_only |
| --- | --- | --- |
| seen | ⟨nll.seen.all_layer|.2f⟩ | ⟨nll.seen.attention_only|.2f⟩ |
| stranger | ⟨nll.stranger.all_layer|.2f⟩ | ⟨nll.stranger.attention_only|.2f⟩ |

Table 1. Loss on the targets after training, mean over the seeds.

The sums eval has ⟨n.items.sums.stranger|d⟩ items. attention_only solves ⟨score.sums.stranger.attention_only|%.1f⟩ of them,
all_layer ⟨score.sums.stranger.all_layer|%.1f⟩. For keeps_sums the interval is ⟨ci.keeps_sums.low|+.2f⟩ to ⟨ci.keeps_sums.high|+.2f⟩.
"""
    + TAIL
)

TEXTS = {"paper": PAPER, "blog": BLOG, "memo": MEMO, "notes": NOTES, "letter": LETTER, "diary": DIARY}
HELD_OUT = ("diary",)

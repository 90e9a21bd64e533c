"""Every number that decides a word: where a probe says `memorises`, a merge `passed`, a grade `weak`.

    DEFAULTS.zone_gap.generalises          # 0.5, what commands without a study use
    study.thresholds.zone_gap              # what the contract froze; the record of a probe or gate repeats it

This is their one home (`tests/test_house.py` looks for others). The comment above a value says where it comes from:
a paper, a measurement with its command, or `Convention`, which means that nothing measured prefers it to its
neighbours. The text beneath says what it does. A study changes a value under `thresholds:`; it is then frozen with the
contract like everything else. Limits of the release policy (`release:`) and margins of claims are not here: nobody but
the user can know them.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from veritune.config.fields import Int, Part, Real, Section, Share

AtLeastOne = Annotated[Int, Field(ge=1)]
Positive = Annotated[Real, Field(gt=0)]
Factor = Annotated[Real, Field(gt=1)]


class FamilyThresholds(Section):
    """How many independent families a number needs before it is interpreted."""

    # From 8 on the family rules hold at any sizes (docs/statistics.md); gradients: .94 to .99 coverage from 8 to 64.
    for_interval: Annotated[Int, Field(ge=4)] = 8
    """Fewer families than this give a value and no interval, in every probe."""
    # Below 10 families a third of all families may be of a kind that was not drawn: 1 - .025^(1/10) = .31.
    few_held_out: AtLeastOne = 10
    """A split with fewer held-out families than this warns that few claims will settle."""


class NoteThresholds(Section):
    """When a comparison adds a note about the data that its interval rests on."""

    # A normal sample of 20 exceeds a skewness of 1 in 3 % of cases.
    skewed: Positive = 1.0
    """Skewness of the differences, without its sign, from which it is named."""
    # Convention: a score of three or four levels has at most this many differences on one side of 0.
    few_values: AtLeastOne = 5
    """Distinct differences up to which their number is named."""
    # Convention: below half a per cent the printed share would read 0.
    undrawn: Share = 0.005
    """Share of families that may be of a kind not drawn, from which it is named."""
    # Families that each go one way as a whole: .042 for .025 with 8 equal ones, .06 with 4; none too often with 12
    # (bench/theory/run.py --group "odd families").
    normal_families: AtLeastOne = 12
    """Families below which a t over families says that it assumes roughly normal family effects."""


class GradeThresholds(Section):
    """The confidence grade of a settled verdict: which evidence counts as good, weak or poor."""

    # The t quantile of an arm's seed spread is 12.7 with two seeds, 4.3 with three.
    seeds_good: AtLeastOne = 3
    """Runs on the arm with the fewest from which `seeds` is good."""
    # One run shows no spread between seeds at all.
    seeds_weak: AtLeastOne = 2
    """Runs from which it is weak; below, poor."""
    # Convention: the t quantile of 100 clusters (1.984) is 1.2 % above the normal one.
    units_good: AtLeastOne = 100
    """Independent families (else items) from which `units` is good."""
    # Convention: 17 % of families may be of a kind that 20 did not draw, 1 - .025^(1/20).
    units_weak: AtLeastOne = 20
    """Families or items from which it is weak; below, poor."""
    # Convention: a gap of twice the margin needs a quarter of the items.
    power_weak: Factor = 2.0
    """The detectable gap in margins up to which `power` is weak; good up to 1, poor above this."""
    # Convention: 1 % of lost scores moves a mean by at most .01 of the scale.
    missing_weak: Share = 0.01
    """Share of missing scores up to which `missing` is weak; good at none, poor above."""
    # Convention.
    most_weak: Annotated[Int, Field(ge=0)] = 2
    """More weak items than this make the grade low."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.seeds_weak > self.seeds_good or self.units_weak > self.units_good:
            raise ValueError("expected seeds_weak <= seeds_good and units_weak <= units_good")
        return self


class ZoneGapThresholds(Section):
    """Which word describes the three-zone gap, by the interval of the share of the seen rows' gain that strangers
    keep."""

    # Convention: more of the gain carries than does not.
    generalises: Share = 0.5
    """`generalises` when the interval's lower end is at least this."""
    # Convention: four fifths of the gain stay with the rows trained on.
    memorises: Share = 0.2
    """`memorises` when the interval's upper end is at most this."""
    # A loss of a tenth on the way is not worth a word; and with 1 full generalisers whose stranger families gain very
    # unequally (lognormal, 8 families) were called `partly` in .045 of runs (bench/probe/zone_gap.py).
    whole: Part = 0.9
    """`partly` needs an upper end of at most this: a higher one does not rule out that all of the gain carries."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.memorises < self.generalises < self.whole:
            raise ValueError("expected memorises < generalises < whole")
        return self


class JudgeThresholds(Section):
    """When the verdicts of a judge model may decide a claim."""

    # Landis & Koch 1977, Biometrics 33:159: .41 to .60 is moderate agreement, below it fair or less.
    least_kappa: Share = 0.41
    """The least that the lower end of Cohen's kappa's 95 % interval, over a labelled file, must be."""


class CurveThresholds(Section):
    """When the recorded curve of a run leads to early-stopping advice. It only advises; it never chooses."""

    # Convention, as the 5 % that a study's error rate allows: most of the gain, and not all of its last steps.
    keeps: Part = 0.95
    """The share of the best checkpoint's gain that an earlier one must keep to be named."""
    # Convention: a change of validation NLL that a second seed would not repeat is no turn of the curve.
    turn: Positive = 0.005
    """Rise of the validation NLL after its lowest point, in nats per token, from which the curve is said to turn."""


class ForgettingThresholds(Section):
    """When a loss or score counts as forgotten."""

    # Convention: .05 nats a token is 5 % of perplexity.
    margin: Positive = 0.05
    """Rise of the loss, in nats per token, that is tolerated where the user declares none."""


class GradientThresholds(Section):
    """Limits for the number of independent examples estimated from gradients."""

    # Convention. SmolLM2-135M on 32 x 8, once memorised (loss .08): rho fell to .19 and n_eff would have read 55.
    late_share: Share = 0.5
    """Measured late, and withheld, when the mean loss is below this share of the base model's."""
    # Convention, between that run's .08 and what untrained models show (1.5 and more).
    late_loss: Positive = 0.3
    """The same in nats per token, where no base loss is known."""
    # Convention: strangers had a mean cosine of .42 to .46 on SmolLM2-135M, weak edits of one row .87.
    identical: Share = 0.99
    """Mean cosine of strangers from which all gradients count as one direction and n_eff is withheld."""
    # A sketch of 1,024 numbers has a cosine error of .023 (root mean square); exact copies measured rho 1.003.
    rho_slack: Share = 0.05
    """How far rho may lie outside its possible range before it is withheld."""
    # Right labels on SmolLM2-135M: .68 to 2.05 times `directions` (13/19, 40/36, 49/52, 256/125; docs/probe.md). 16
    # families of 4 under labels that miss all relatives: 64/17.7 = 3.6.
    disagree: Factor = 2.5
    """Times `directions` above which n_eff by families is said to disagree with it: labels may miss relatives."""
    # 32 of 32 and 8 of 8 planted families found on SmolLM2-135M at .3; .4 joins fewer.
    family_cosine: Share = 0.3
    """Mean-centred cosine above which rows without labels are joined into a family."""
    # Smallest and largest n_eff / worth by held-out loss in all calibration runs, rounded outwards
    # (bench/probe/calibrate.py --table).
    worth_low: Positive = 0.55
    """Smallest ratio of n_eff to what the rows were worth in training."""
    # As above.
    worth_high: Positive = 1.3
    """Largest ratio of n_eff to what the rows were worth in training."""


class TokenThresholds(Section):
    """Which target tokens count as template."""

    # Convention; the classes it makes on SmolLM2-135M part as expected: template 1.13 to .39, novel 1.84 to 2.22 nats.
    template_share: Share = 0.2
    """Share of families in which a trigram occurs from which its token is `template`."""


class WeightThresholds(Section):
    """When a direction of a weight change counts as an intruder dimension."""

    # Shuttleworth et al. 2024 (arXiv 2410.21228), section 3: epsilon = .6.
    intruder_cosine: Share = 0.6
    """A new singular vector whose largest cosine with the old ones is below this is an intruder."""
    # The same paper: k = 10 of the leading singular vectors.
    intruder_top: AtLeastOne = 10
    """How many leading singular vectors are looked at."""
    # Rounding to bfloat16 (8 significant bits) moves a value by at most 2^-9 = .002 of itself; two in a row by .004.
    same_weights: Share = 0.005
    """Relative difference up to which two weights are one, stored in two precisions."""


class GeometryThresholds(Section):
    """When hidden states of personas count as more alike after training than before."""

    # Convention: a jackknife over fewer than four centroids has two degrees of freedom or less.
    min_personas: Annotated[Int, Field(ge=2)] = 4
    """Fewer personas than this are refused."""
    # Convention.
    alpha: Annotated[Real, Field(gt=0, lt=0.5)] = 0.05
    """A cell whose corrected p is below this moved."""
    # Convention: half of the smallest digit printed for a cosine (two decimals).
    small_change: Positive = 0.005
    """A smaller change is shown and gets no word; of a reference, it withholds the ratio, shown with the reason."""
    # Convention: a run that moves less than half as far as its reference.
    culprit_below: Positive = 0.5
    """Ratio of a run's change to its reference's below which the reference's method is the culprit."""
    # Convention: half as far again.
    worse_above: Positive = 1.5
    """Ratio above which the run is worse than its reference; between the two the change is generic."""


class MergeThresholds(Section):
    """When a merged model counts as equal to the adapter on its base."""

    # Convention. A right merge of SmolLM2-135M gave .5 to .8 floors over five draws (docs/merge.md).
    pass_floors: Positive = 4.0
    """Mean KL up to this many times what rounding makes passes."""
    # Convention.
    fail_floors: Positive = 10.0
    """From this many on it fails; between the two the check is undecided."""
    # Convention: two runs of one float32 model differ by 1e-13 to 1e-11 nats.
    same_kl: Positive = 1e-9
    """Largest KL in nats a position up to which outputs count as the same, so that faulty weights contradict them."""
    # Convention.
    close: Share = 0.05
    """|c - 1| up to which a change counts as merged, where rounding allows no tighter reading."""
    # Convention.
    twice: Share = 0.15
    """Half-width around 0 and 2 in which a change is called not applied or applied twice."""
    # Convention: a right merge leaves about 0, an unrelated adapter about 1.
    rest: Share = 0.5
    """A rest of more than this share of the change is another adapter's."""
    # Convention.
    least_rest: Share = 0.1
    """A rest of more than this share, and than twice what rounding leaves, is not that of a right merge."""
    # Convention: below it rounding leaves ten times what is looked for.
    lost: Share = 0.1
    """Where rounding leaves less than this share of a change, the weights cannot show whether it was merged."""
    # Convention: .3 keeps the scales 1 and 2 apart.
    slack: Share = 0.3
    """Most that rounding may widen `close`."""
    # Convention: a tenth of the relative rounding error may pull the scale of a right merge.
    slack_share: Share = 0.1
    """How much of the relative rounding error widens `close`."""
    # Convention, as `slack`.
    coarse_slack: Share = 0.25
    """Most that rounding may widen `close` where what a doubled merge would leave is compared."""
    # Convention, as `slack_share`, for weights stored in 4 or 8 bits.
    coarse_share: Share = 0.3
    """How much of the relative rounding error widens `close` there."""
    # Convention: four standard errors (6e-5 for a normal scale) in thousands of tensors.
    scale_errors: Positive = 4.0
    """Standard errors by which a GGUF tensor's scale may miss 0, 1 or 2."""
    # Convention: an error of .1 does not distinguish the scales 1 and .8.
    scale_error: Share = 0.1
    """Standard error of a GGUF tensor's scale above which it counts as the same: it cannot be told."""
    # Convention: far below any KL that rounding makes (3e-4 above); keeps the ratio of two zeros from deciding.
    least_kl: Positive = 1e-9
    """KL in nats below which a floor is not divided by."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.pass_floors > self.fail_floors:
            raise ValueError("expected pass_floors <= fail_floors")
        return self


class Thresholds(Section):
    """Limits that decide which words are used, frozen with the contract. Change one only before results exist."""

    families: FamilyThresholds = FamilyThresholds()
    notes: NoteThresholds = NoteThresholds()
    grade: GradeThresholds = GradeThresholds()
    zone_gap: ZoneGapThresholds = ZoneGapThresholds()
    judge: JudgeThresholds = JudgeThresholds()
    curve: CurveThresholds = CurveThresholds()
    forgetting: ForgettingThresholds = ForgettingThresholds()
    gradients: GradientThresholds = GradientThresholds()
    tokens: TokenThresholds = TokenThresholds()
    weights: WeightThresholds = WeightThresholds()
    geometry: GeometryThresholds = GeometryThresholds()
    merge: MergeThresholds = MergeThresholds()


DEFAULTS = Thresholds()
"""What commands without a study use."""

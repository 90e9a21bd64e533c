"""What the user may say about a log, declared once; every format obeys an option or refuses it by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from veritune.errors import ScoreError
from veritune.stats.table import Columns


@dataclass(frozen=True, slots=True)
class Reading:
    """What the user states about a file; None means: detect it. An option that a format cannot use is an error.

    `metric` is the score column, lm-eval, lighteval or HELM metric, or Inspect scorer (`scorer` or `scorer/key`);
    `filter` is lm-eval's filter or HELM's split and perturbation; `eval` picks one eval of a file or folder that holds
    several, a group of them, or several by comma, or names that of a table. `system` is the column of a table with one
    column per system, or a promptfoo provider; `metric` then is a key inside it. `higher_is_better` states the metric's
    direction. `reducer` says how several samples of an item become one score (`logs.reducers`). The others name
    columns; a dot leads into nested objects (`meta.topic`), and so does a plain name into what a format keeps beside
    each score: lm-eval's and lighteval's document, Inspect's metadata, promptfoo's variables.
    """

    eval: str | None = None
    metric: str | None = None
    filter: str | None = None
    id: str | None = None
    family: str | None = None
    run: str | None = None
    rater: str | None = None
    sample: str | None = None
    system: str | None = None
    reducer: str | None = None
    higher_is_better: bool | None = None


LABELS = ("id", "family", "run", "rater", "sample")
"""Options that name a label of each score."""

EVERY_OPTION = frozenset(f.name for f in fields(Reading))

_FLAGS = {"system": "--systems", "higher_is_better": "--higher-is-better"}


def flag(option: str) -> str:
    """The name of an option of `Reading` on the command line."""
    return _FLAGS.get(option, f"--{option}")


@dataclass(frozen=True, slots=True)
class LogFormat:
    """One format of score files: its name, its name in messages, the options it can use, and its reader.

    `eval_of` gives the eval that a file's name or place states, "" where it states none. `reduces`: the reader applies
    the reducer itself.
    """

    name: str
    shown: str
    obeys: frozenset[str]
    read: Callable[[Path, Reading], Columns]
    eval_of: Callable[[Path], str] = lambda path: ""
    reduces: bool = False

    def check(self, path: Path, reading: Reading) -> None:
        """Raises ScoreError for an option that the format cannot use: ignoring it could answer a different question."""
        for option in sorted(EVERY_OPTION - self.obeys):
            value = getattr(reading, option)
            if value is not None:
                raise ScoreError(
                    f"{path.name}: {flag(option)} {value!r} does not apply to {self.shown}.",
                    fix=f"Leave out {flag(option)}.",
                )


def obeys(*options: str) -> frozenset[str]:
    """The named options, with those that every format can use: the eval, the direction, the reducer."""
    return frozenset({"eval", "higher_is_better", "reducer", *options})

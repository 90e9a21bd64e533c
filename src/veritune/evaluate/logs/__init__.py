"""Scores from elsewhere: one reader a format, one set of options that each of them obeys or refuses by name.

`read` turns one file into `Columns`, plain columns of equal length; `read_scores` into `Score` records.
"""

from veritune.evaluate.logs.options import Reading
from veritune.evaluate.logs.registry import FORMATS, eval_of, read, read_scores, sniff, systems_in

__all__ = ["FORMATS", "Reading", "eval_of", "read", "read_scores", "sniff", "systems_in"]

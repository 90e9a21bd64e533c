"""`veritune lint`: a write-up checked against the records, number by number and sentence by sentence.

`lint(text, study_folder)` returns a LintReport. The way of a number:

    markdown.py   the text as blocks, sentences and table cells, every character at its place
    numbers.py    the numbers in it, as printed, and those that are no claims
    words.py      the words that say what a number speaks of: conditions, zones, evals, seeds, kinds
    bind.py       the quantities a number may stand for, and what is wrong when none of them has its value
    structure.py  what a clean result holds: sections, figure, captions, samples, card, acronyms
    speech.py     what the verdicts allow to be said
    rules.py      which of this is switched on, and the words that teams add (lint_rules.yaml documents every default)
"""

from veritune.writeup.lint.check import lint, lint_command, render_text
from veritune.writeup.lint.rules import LintFinding, LintReport, Rules, load_rules

__all__ = ["LintFinding", "LintReport", "Rules", "lint", "lint_command", "load_rules", "render_text"]

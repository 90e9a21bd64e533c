"""The index of finished results over many studies: what was asked, what came out, what became of it.

ledger.py   the entries: read, checked, appended; nothing else writes `results.jsonl`
study.py    a finished study as a result, and how the study stands now
index.py    what all entries come to: results, mistakes, tasks
screen.py   the index as text;  site.py  as pages that open from disk
"""

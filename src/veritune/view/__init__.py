"""The workbench: studies, score files, audits and review packs in the browser, from the files themselves.

places.py     what lies under the folders that were named: studies, score files, audits
index.py      a score file by columns, with the byte offset of each line; kept in the user's cache
samples.py    outputs of two or more runs side by side: filters, counts, pages, export
diff.py       word differences of two texts
decisions.py  review decisions and family decisions, one line each, on disk before the answer is sent
live.py       what a running cell has written since the last look
guard.py      who may ask: host names, tokens, writes, headers
pages.py      one function a page
app.py        the routes, and `serve`
"""

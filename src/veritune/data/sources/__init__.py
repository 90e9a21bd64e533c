"""From bytes to records: `files` finds and opens, `json_lines` and `tables` read, `raw` is what a reader hands on."""

"""A record that a write-up cannot be held against is named with the format that was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from veritune.errors import FormatError
from veritune.records import FORMAT_VERSION
from veritune.store import Store, write_json
from veritune.writeup.quantities.read import read_records


def test_a_contract_without_its_settings_is_refused_by_today_s_format(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_json(store.contract_file, {"format": FORMAT_VERSION, "entries": [{"hash": "ab", "terms": {}}]})
    with pytest.raises(FormatError, match=f"does not have the structure of format {FORMAT_VERSION} "):
        read_records(store)

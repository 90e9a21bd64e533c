"""The facts of a contract, small and whole, for tests that only need some."""

from veritune.records import BaseFacts, Facts

FACTS = Facts(
    data_version="abc",
    data_sha256="a1" * 32,
    template_sha256="b2" * 32,
    tokenizer_sha256="c3" * 32,
    rendered_sha256="d4" * 32,
    zones={},
    families={},
    target_tokens={},
    tokens={},
    contamination=None,
    template_kwargs=None,
    data_sets_sha256=None,
    model=BaseFacts("tiny", "float32", {}),
    packages={"torch": "2.13.0"},
    code={"package": "1", "evaluate": "2", "decide": "3"},
)

"""What whoever holds an object relies on: it does not change, it holds no stray attribute, its small sums are right."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import veritune.decide
import veritune.records
import veritune.release.gate
import veritune.stats
from veritune.data import split
from veritune.records import Message, Row, ToolCall, Trainable, Waiver
from veritune.records.base import _described, _path_text
from veritune.records.common import tools_from, tools_text
from veritune.records.contract import BaseFacts, Contract, ContractEntry, DataFacts, Facts, Terms
from veritune.records.plan import AnswerProbe, Assumed, CellSeconds, EvalTiming, LiveProbe, RunPlan
from veritune.records.training import MemoryPeak

CACHES = {"Case", "Refusals", "ThreeZoneGap"}
"""Objects that keep what they computed, so they have a dictionary."""


def classes() -> Iterator[type[Any]]:
    """Every dataclass of the rooms whose objects are handed around."""
    modules = [split]
    for package in (veritune.records, veritune.stats, veritune.decide, veritune.release.gate):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            modules.append(importlib.import_module(found.name))
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__:
                yield value


CLASSES = sorted(set(classes()), key=lambda kind: (kind.__module__, kind.__qualname__))


def test_no_object_can_be_changed_or_given_a_stray_attribute() -> None:
    assert len(CLASSES) > 150
    assert [kind.__qualname__ for kind in CLASSES if not kind.__dataclass_params__.frozen] == []
    assert {kind.__qualname__ for kind in CLASSES if "__slots__" not in vars(kind)} == CACHES


def test_objects_that_hold_arrays_are_equal_only_to_themselves() -> None:
    """`==` of two arrays is an array: a comparison by fields would raise, or be true by chance."""
    arrays = re.compile(r"\b(Floats|Ints|NDArray|ScoreTable|Pair|Comparison|Crossed)\b")
    wrong = [
        kind.__qualname__
        for kind in CLASSES
        if kind.__dataclass_params__.eq and any(arrays.search(str(field.type)) for field in dataclasses.fields(kind))
    ]
    assert wrong == []


def entry(reason: str) -> ContractEntry:
    terms: Any = Terms.__new__(Terms)
    return ContractEntry("2026-02-01T00:00:00Z", reason, (), terms, {}, {}, (), (), None, None)


def test_the_first_entry_of_a_contract_is_the_freeze_and_the_last_one_holds() -> None:
    contract = Contract((entry("freeze"), entry("one more seed"), entry("a typo")))
    assert (contract.first.reason, contract.last.reason) == ("freeze", "a typo")


def test_a_cell_s_seconds_add_up() -> None:
    assert CellSeconds.of(1.0, 20.0, 300.0, 4000.0, 50000.0).total == 54321.0


# ---------------------------------------------------------------- rows


def chat(*roles: str, weight: int | None = None) -> tuple[Message, ...]:
    return tuple(Message(role, f"{role} {i}", weight=weight) for i, role in enumerate(roles))


def test_the_last_turn_is_the_target_where_the_assistant_says_it() -> None:
    row = Row("a", chat("system", "user", "assistant"))
    assert [m.role for m in row.prompt] == ["system", "user"]
    assert row.target == "assistant 2"
    asked = Row("b", chat("system", "user"))
    assert [m.role for m in asked.prompt] == ["system", "user"] and asked.target is None
    assert Row("c", ()).target is None and Row("c", ()).prompt == ()


@pytest.mark.parametrize(
    ("role", "weight", "trained"),
    [("assistant", None, True), ("assistant", 0, False), ("user", None, False), ("user", 0, False)],
)
def test_what_the_assistant_says_is_trained_unless_its_weight_is_0(
    role: str, weight: int | None, trained: bool
) -> None:
    assert Message(role, "x", weight=weight).trained is trained


def test_a_turn_as_a_chat_message_and_back() -> None:
    plain = Message("user", "hello")
    assert plain.to_chat() == {"role": "user", "content": "hello"}
    full = Message("assistant", "so", "because", (ToolCall("f", "{}", "c1"), ToolCall("g", "[]")), None, "ada", 0)
    assert full.to_chat() == {
        "role": "assistant",
        "content": "so",
        "reasoning_content": "because",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"type": "function", "function": {"name": "g", "arguments": "[]"}},
        ],
        "name": "ada",
        "weight": 0,
    }
    assert full.said == "because\n\nso\n\nf({})\n\ng([])"
    for message in (plain, full, Message("tool", "42", tool_call_id="c1")):
        assert Message.from_chat(message.to_chat()) == message


# ---------------------------------------------------------------- messages of a refusal


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "an object"),
        ([1], "a list"),
        (None, "null"),
        (True, "true"),
        ("é", '"é"'),
        ("x" * 58, f'"{"x" * 58}"'),
        ("x" * 59, f'"{"x" * 59}…'),
    ],
)
def test_a_wrong_value_in_a_few_words(value: Any, text: str) -> None:
    assert _described(value) == text


def test_a_path_in_a_file() -> None:
    assert _path_text(["verdicts", 0, "estimates", 12, "low"]) == "verdicts[0].estimates[12].low"
    assert _path_text([3, "low"]) == "[3].low"


def test_a_record_writes_and_reads_its_lines(tmp_path: Path) -> None:
    from veritune.records import Finding

    rows = [Finding("split.ids", "error", "1 of 2", "r1"), Finding("near", "note", "none")]
    Finding.save_all(tmp_path / "findings.jsonl", rows)
    assert Finding.load_all(tmp_path / "findings.jsonl") == rows == list(Finding.each(tmp_path / "findings.jsonl"))
    with (tmp_path / "findings.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(rows[0].__class__.__name__)
    assert Finding.load_all(tmp_path / "findings.jsonl", torn=False) == rows


# ---------------------------------------------------------------- what a plan and a contract derive


def peak(source: str) -> MemoryPeak:
    return MemoryPeak(100, 50, source)


def test_the_largest_cache_of_any_eval_counts() -> None:
    evals = {"a": EvalTiming(8, 0.1, 0.01, 700), "b": EvalTiming(8, 0.1, 0.01, 900), "c": EvalTiming(8, 0.1, 0.01)}
    assert AnswerProbe("ab", 1.0, evals, peak("VmHWM")).cache_bytes == 900
    assert AnswerProbe("ab", 1.0, {}, peak("VmHWM")).cache_bytes == 0
    assert AnswerProbe("ab", 1.0, {"c": evals["c"]}, peak("VmHWM")).cache_bytes == 0


@pytest.mark.parametrize(
    ("sources", "expected"), [((), None), (("VmHWM",), 7), (("VmHWM", "cuda"), None), (("VmHWM", "VmHWM"), 7)]
)
def test_main_memory_is_known_where_all_of_it_was_measured_there(
    sources: tuple[str, ...], expected: int | None
) -> None:
    live: Any = SimpleNamespace(live={str(i): SimpleNamespace(memory=peak(s)) for i, s in enumerate(sources)})
    total: Any = SimpleNamespace(memory_bytes=7)
    plan = RunPlan("ab", 1, None, "2026-02-01T00:00:00Z", None, live, (), total, ())  # type: ignore[arg-type]
    assert plan.host_memory_bytes == expected


def test_a_pace_by_hand() -> None:
    probe = object.__new__(LiveProbe)
    object.__setattr__(probe, "validation_s", 3.0)
    object.__setattr__(probe, "validation_tokens", 600)
    assert probe.validation_seconds(1000) == 5.0


def test_facts_are_those_of_the_data_with_model_and_machine() -> None:
    names = [field.name for field in dataclasses.fields(DataFacts)]
    data = DataFacts(**{name: f"the {name}" for name in names})  # type: ignore[arg-type]
    model = BaseFacts("tiny", "float32", {"model.safetensors": "ab"})
    facts = Facts.of(data, model, {"torch": "2.9"}, {"stats": "cd"})
    assert [getattr(facts, name) for name in names] == [f"the {name}" for name in names]
    assert (facts.model, facts.packages, facts.code) == (model, {"torch": "2.9"}, {"stats": "cd"})


def test_declared_tools_are_one_text_and_back() -> None:
    tools = ({"type": "function", "function": {"name": "frag_é"}}, {"b": 1, "a": 2})
    text = tools_text(tools)
    assert text == '[{"type": "function", "function": {"name": "frag_é"}}, {"b": 1, "a": 2}]'
    assert tools_from(text) == tools
    assert tools_text(None) is None and tools_from(None) is None


def test_what_is_assumed_before_training_is_documented() -> None:
    assert Assumed() == Assumed(discordance=0.1, seed_sd=0.015, power=0.8)


def test_a_waiver_holds_through_its_last_day() -> None:
    waiver = Waiver("merge", "Ada", "why", "2026-02-03", "ab", "message", "2026-02-01T00:00:00Z")
    assert [waiver.holds(date(2026, 2, day)) for day in (1, 3, 4)] == [True, True, False]


def test_what_a_turn_says_without_reasoning_and_calls_is_its_content() -> None:
    assert Message("assistant", "so").said == "so"
    assert Message("assistant", "", "because").said == "because"
    assert Message("assistant", "", None, (ToolCall("f", "{}"),)).said == "f({})"


def test_the_share_that_is_trained() -> None:
    assert Trainable.of("lora", {"r": 4}, ("layers.0.q_proj",), 100, 1000).share == 0.1

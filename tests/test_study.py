"""study.yaml: what is refused, in which words, and what YAML's surprises come to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from veritune.config.load import json_schema, load_study, parse_study
from veritune.config.study import Study
from veritune.config.train import Condition
from veritune.errors import StudyError

REPO = Path(__file__).resolve().parent.parent
QUICKSTART = REPO / "examples" / "quickstart" / "study.yaml"


@pytest.fixture
def settings() -> dict[str, Any]:
    return copy.deepcopy(yaml.safe_load(QUICKSTART.read_text(encoding="utf-8")))


def refusal(settings: dict[str, Any]) -> str:
    with pytest.raises(StudyError) as caught:
        parse_study(settings)
    return str(caught.value)


WRONG: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "unknown key": (lambda s: s["train"].update(epochs=3), ["train.epochs: unknown key", "'num_train_epochs'"]),
    "unknown top key": (lambda s: s.update(seed=3), ["seed: unknown key", "'seeds'"]),
    "unknown key in a list": (
        lambda s: s["claims"][0].update(margins=0.1),
        ["claims.0.margins: unknown key", "'margin'"],
    ),
    "unknown key in an eval": (
        lambda s: s["evals"]["house_style"].update(max_tokens=3),
        ["evals.house_style.max_tokens: unknown key", "'max_new_tokens'"],
    ),
    "wrong type": (
        lambda s: s["conditions"]["all_layer"].update(r="eight"),
        ["conditions.all_layer.r: ", "integer", "found 'eight'"],
    ),
    "wrong type of a choice": (
        lambda s: s["conditions"]["all_layer"].update(target_modules=5),
        ["conditions.all_layer.target_modules: ", "string", "found 5"],
    ),
    "wrong type inside a choice": (
        lambda s: s["evals"]["house_style"].update(per_family={"seen": "x"}),
        ["evals.house_style.per_family.seen: ", "found 'x'"],
    ),
    "missing": (lambda s: s["model"].pop("path"), ["model.path: missing"]),
    "switch as a number": (
        lambda s: s["train"].update(weight_decay=True),
        ["train.weight_decay: expected a number, found a boolean"],
    ),
    "switch as a seed": (lambda s: s.update(seeds=[False, True]), ["seeds.0: expected a number", "seeds.1: "]),
    "switch as a rank": (lambda s: s["conditions"]["all_layer"].update(r=True), ["conditions.all_layer.r: "]),
    "not finite": (lambda s: s["train"].update(learning_rate=float("nan")), ["train.learning_rate: ", "finite"]),
    "unknown schedule": (
        lambda s: s["train"].update(lr_scheduler_type="cosin"),
        ["train.lr_scheduler_type: ", "'cosine'", "found 'cosin'"],
    ),
    "no steps": (lambda s: s["train"].update(max_steps=0), ["train: max_steps is 0"]),
    "negative seed": (lambda s: s.update(seeds=[0, -1]), ["seeds.1: ", "found -1"]),
    "seed twice": (lambda s: s.update(seeds=[4, 4]), ["seeds: [4, 4] contains duplicates"]),
    "full with LoRA's fields": (
        lambda s: s["conditions"].update(full={"method": "full", "r": 8}),
        ["conditions.full: `method: full` takes no r", "`method: lora`"],
    ),
    "lora without targets": (
        lambda s: s["conditions"].update(x={"method": "lora"}),
        ["conditions.x: `method: lora` needs target_modules"],
    ),
    "undeclared factor": (
        lambda s: s["conditions"]["all_layer"].update(r=16),
        ["conditions: r differs", "'all_layer': 16", "`factor`"],
    ),
    "undeclared learning rate": (
        lambda s: s["conditions"]["all_layer"].update(learning_rate=1e-5),
        ["learning_rate differs", "`factor`"],
    ),
    "baseline declared": (
        lambda s: s["conditions"].update(baseline=s["conditions"]["all_layer"]),
        ["conditions.baseline: this name is reserved for the untouched model"],
    ),
    "claim names no arm": (
        lambda s: s["claims"][0].update(condition="all_layers"),
        ["claims.0.condition: unknown condition 'all_layers'", "did you mean 'all_layer'?"],
    ),
    "claim against no arm": (
        lambda s: s["claims"][2].update(against="al_layer"),
        ["claims.2.against: unknown condition 'al_layer'", "'all_layer'"],
    ),
    "claim with itself": (
        lambda s: s["claims"][0].update(against="all_layer"),
        ["claims.0: 'all_layer' is compared with itself"],
    ),
    "claim names no eval": (
        lambda s: s["claims"][0].update(eval="housestyle"),
        ["claims.0.eval: unknown eval 'housestyle'", "'house_style'"],
    ),
    "claim leaves the eval open": (
        lambda s: s["evals"].update(other=s["evals"]["house_style"]),
        ["claims.0: the study has 2 evals; name one with `eval`"],
    ),
    "claim on a zone without items": (
        lambda s: s["evals"]["house_style"].update(zones=["seen"], per_family=None),
        ["claims.0: the eval has no items in zone 'stranger'"],
    ),
    "claim needs a margin": (lambda s: s["claims"][2].pop("margin"), ["claims.2: `kind: differ` needs `margin`"]),
    "margin off the scale": (lambda s: s["claims"][2].update(margin=5), ["claims.2.margin: 5.0 lies outside"]),
    "claims of one name": (
        lambda s: s["claims"][1].update(name="learns_the_style"),
        ["claims: two claims have the same name"],
    ),
    "share needed": (lambda s: s["claims"][1].pop("share"), ["claims.1: `kind: generalises` needs `share`"]),
    "rule of two kinds": (
        lambda s: s["evals"]["house_style"]["rules"][0].update(contains="x"),
        ["evals.house_style.rules.0: a rule has exactly one of pattern, contains, absent, calls"],
    ),
    "rule is no pattern": (
        lambda s: s["evals"]["house_style"]["rules"][0].update(pattern="("),
        ["evals.house_style.rules.0: pattern is not a regular expression"],
    ),
    "rule with odd braces": (
        lambda s: s["evals"]["house_style"]["rules"].append({"name": "x", "contains": "{a.b}"}),
        ["evals.house_style.rules.6: contains '{a.b}': a column is written {name}"],
    ),
    "rule with an open brace": (
        lambda s: s["evals"]["house_style"]["rules"].append({"name": "x", "contains": "a { b"}),
        ["evals.house_style.rules.6: contains 'a { b'"],
    ),
    "extract is no pattern": (
        lambda s: s["evals"].update(house_style={"kind": "match", "extract": "(", "expected": "figure"}),
        ["evals.house_style: extract is not a regular expression"],
    ),
    "extract without a group": (
        lambda s: s["evals"].update(house_style={"kind": "match", "extract": "a", "expected": "figure"}),
        ["evals.house_style: `extract` needs a group"],
    ),
    "section is a list": (lambda s: s.update(train=[]), ["train: ", "found []"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_named_with_path_and_what_to_do(case: str, settings: dict[str, Any]) -> None:
    spoil, words = WRONG[case]
    spoil(settings)
    said = refusal(settings)
    for word in words:
        assert word in said
    assert "\n" not in said
    assert said.endswith("nothing has run.")


def test_every_problem_is_named_at_once(settings: dict[str, Any]) -> None:
    settings["train"]["epochs"] = 3
    settings["model"]["dtype"] = "int3"
    settings["conditions"]["all_layer"]["r"] = "x"
    said = refusal(settings)
    assert all(path in said for path in ("train.epochs", "model.dtype", "conditions.all_layer.r"))


def test_the_words_pydantic_adds_for_a_choice_are_not_in_the_path(settings: dict[str, Any]) -> None:
    settings["conditions"]["all_layer"]["target_modules"] = 5
    assert "target_modules.str" not in refusal(settings)


# ---------------------------------------------------------------- YAML


def study_text(old: str, new: str) -> str:
    text = QUICKSTART.read_text(encoding="utf-8")
    assert old in text
    return text.replace(old, new)


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path: Path) -> None:
    text = study_text("learning_rate: 1.0e-3", "learning_rate: 3e-4")
    assert yaml.safe_load(text)["train"]["learning_rate"] == "3e-4"
    (tmp_path / "study.yaml").write_text(text)
    assert load_study(tmp_path / "study.yaml").train.learning_rate == 3e-4


def test_a_no_that_yaml_reads_as_false_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(study_text("learning_rate: 1.0e-3", "weight_decay: no"))
    with pytest.raises(StudyError, match=r"train\.weight_decay: expected a number, found a boolean \(no/off/false\)"):
        load_study(tmp_path / "study.yaml")


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(study_text("  all_layer: {", "  attention_only: {"))
    with pytest.raises(StudyError, match=r"the key 'attention_only' is given twice.*line \d+"):
        load_study(tmp_path / "study.yaml")


def test_a_merge_key_and_an_anchor_are_allowed(tmp_path: Path) -> None:
    text = study_text("  all_layer: {method: lora, ", "  all_layer: {<<: &lora {method: lora}, ")
    (tmp_path / "study.yaml").write_text(text)
    assert load_study(tmp_path / "study.yaml").conditions["all_layer"].method == "lora"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected a mapping of settings, found NoneType"),
        (b"- a\n- b\n", "expected a mapping of settings, found list"),
        (b"name: [\n", "is not valid YAML:"),
        (b"name: \xff\xfe\n", "not UTF-8: byte 0xff at offset 6"),
        (b"[" * 20000, "nested too deeply"),
        (b"? [a, b]\n: 1\n", "is not valid YAML:"),
    ],
)
def test_a_file_that_is_no_study_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "study.yaml").write_bytes(content)
    with pytest.raises(StudyError) as caught:
        load_study(tmp_path / "study.yaml")
    assert words in str(caught.value)
    assert "study.yaml" in str(caught.value)


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="veritune init"):
        load_study(tmp_path)


# ---------------------------------------------------------------- methods, schema


def test_peft_fields_pass_through_and_known_ones_keep_their_types() -> None:
    condition = Condition.model_validate({"method": "prompt_tuning", "num_virtual_tokens": 8})
    assert condition.options() == {"num_virtual_tokens": 8}


def test_every_field_of_a_study_is_documented() -> None:
    schema = json_schema()
    sections = {"Study": schema, **schema["$defs"]}
    undocumented = [
        f"{section}.{name}"
        for section, body in sections.items()
        for name, field in body.get("properties", {}).items()
        if "description" not in field and "$ref" not in field
    ]
    assert undocumented == []
    assert {"Model", "Data", "SplitPlan", "Train", "Condition", "Eval", "Rule", "Claim"} <= set(sections)


def resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node


def check_against(schema: dict[str, Any], node: dict[str, Any], value: Any, path: str) -> None:
    """The parts of JSON Schema that an editor shows: known keys, required keys, types of what is nested."""
    node = resolve(schema, node)
    if isinstance(value, dict) and "properties" in node:
        assert set(node.get("required", ())) <= set(value), path
        if node.get("additionalProperties") is False:
            assert set(value) <= set(node["properties"]), path
        for key, inner in value.items():
            if key in node["properties"]:
                check_against(schema, node["properties"][key], inner, f"{path}.{key}")
    elif isinstance(value, dict) and (extra := node.get("additionalProperties") or node.get("patternProperties")):
        inner_node = extra if "$ref" in extra or "type" in extra else next(iter(extra.values()))
        for key, inner in value.items():
            check_against(schema, inner_node, inner, f"{path}.{key}")
    elif isinstance(value, list) and "items" in node:
        for i, inner in enumerate(value):
            check_against(schema, node["items"], inner, f"{path}.{i}")


def test_the_schema_knows_every_key_of_the_quickstart_and_no_other(settings: dict[str, Any]) -> None:
    schema = json_schema()
    check_against(schema, schema, settings, "study")
    settings["train"]["epochs"] = 3
    with pytest.raises(AssertionError, match="train"):
        check_against(schema, schema, settings, "study")


def test_a_study_comes_back_from_its_own_json(settings: dict[str, Any]) -> None:
    study = parse_study(settings)
    assert Study.model_validate(study.model_dump(mode="json")) == study


@pytest.mark.parametrize(
    ("kind", "rule", "says"),
    [
        ("improves", {"mingap": 0.01}, "min_gap"),
        ("improves", {"min_gap": -1}, "at least 0"),
        ("improves", {"min_gap": True}, "expected min_gap to be a number"),
        ("generalises", {"min_gap": 0.01}, "has no such gap"),
        ("improves", {"min_gap": 0.01, "every_seed": True}, None),
    ],
)
def test_a_frozen_rule_is_checked_before_anything_trains(
    settings: dict[str, Any], kind: str, rule: Any, says: Any
) -> None:
    claim = {"name": "c", "kind": kind, "condition": next(iter(settings["conditions"])), "share": 0.5, "rule": rule}
    settings["claims"] = [claim]
    if says is None:
        assert parse_study(settings).claims[0].rule == rule
        return
    with pytest.raises(StudyError, match=says):
        parse_study(settings)

"""Every number that decides a word has one home, a reason above it, and a place in the contract."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from veritune import contract
from veritune.config import thresholds
from veritune.config.load import parse_study
from veritune.config.study import Study
from veritune.config.thresholds import DEFAULTS
from veritune.errors import StaleError, StudyError
from veritune.records import BaseFacts, Facts
from veritune.store import Store

FACTS = Facts(
    *("d1", "d2", "t", "k", "r"),
    {},
    {},
    {},
    {},
    None,
    None,
    None,
    model=BaseFacts("tiny", "float32", {}),
    packages={},
    code={},
)

SOURCE = Path(thresholds.__file__)
ELSEWHERE = {
    # what is shown, not what is said
    "decide/commands.py": {"_FLIPS_KEPT"},
    "decide/screen.py": {"_FLIPS_SHOWN", "_NOTES_SHOWN", "_TASKS_SHOWN"},
    "probe/forgetting.py": {"WORST"},
    # how text is read: reach of a phrase, longest sentence; the words found there have their own tests
    "writeup/lint/bind.py": {"MOST"},
    "writeup/lint/recorded.py": {"ROUNDED_BY"},
    "writeup/lint/markdown.py": {"LONGEST", "NESTED"},
    "writeup/lint/clean.py": {"SHORT"},
    "writeup/lint/contrasts.py": {"NEAR", "NEAR_SHARE"},
    "writeup/lint/number_words.py": {"_RATIOS"},
    "writeup/lint/foreign_words.py": {"OF"},
    "writeup/lint/unsupported.py": {"MOST_ARMS"},
    "writeup/lint/values.py": {"NEAR_BOUND"},
    # what of a record file is a name, and how much of one is read
    "writeup/facts.py": {"GROUPS", "LABEL", "MOST_FACTS"},
    # what a number means, not where a word begins
    "probe/batches.py": {"IGNORE"},
    "probe/clusters.py": {"LADDER"},
    "decide/recorded.py": {"LEVEL", "NESTED"},
    "probe/geometry_dose.py": {"LEVEL"},
    "probe/recall.py": {"CHANCE"},
    "release/parity/quantised_merge.py": {"INT8"},
    # how much is measured or drawn
    "probe/capture.py": {"MANY_TURNS", "PROBE_RANK"},
    "probe/effective.py": {"LEAST_DRAWN", "MOST_COMPARED"},
    "probe/memorization.py": {"LEVEL"},
    "probe/subject.py": {"COMPARED"},
    "release/parity/golden.py": {"PROMPTS", "MAX_TOKENS", "ALONE"},
    # seconds to wait, lengths a file may have
    "release/registry/prune.py": {"YOUNG_S"},
    "release/parity/gguf_file.py": {"CONVERT_S"},
    "release/parity/load.py": {"LOOK_S"},
    "release/parity/serving.py": {"START_S"},
    "release/bundle/parts.py": {"MAX_NAME"},
    "stats/table.py": {"MAX_COUNTED_ITEMS"},
    # accuracy of a numeric method, or the conditions under which it is valid: to change one is to break its error rate
    "decide/keeps.py": {"REFUTING_PARTS", "WIDEST_SHARE"},
    "probe/attribution.py": {"ALPHA", "BLOCK", "DRAWS", "LEAST_CHECKPOINTS", "LEAST_FAMILIES", "LEAST_ITEMS"},
    "probe/attribution_check.py": {"LEAST_SETS", "LEVEL"},
    "probe/weight_cells.py": {"LEVEL"},
    "stats/bounded.py": {"_STEP", "_LONG", "_SHORT", "_BINS"},
    "stats/centroids.py": {"MOST_SWAPS", "_EPS", "_NO_VARIANCE"},
    "stats/families.py": {
        "FEWEST",
        "FEWEST_EFFECTIVE",
        "FEWEST_EFFECTIVE_CR3",
        "EVEN",
        "EVEN_FROM",
        "MANY",
        "_EXACT_UNITS",
        "_CHUNK_CELLS",
    },
    "stats/intervals.py": {"TINY_P", "LEAST_ALPHA"},
    "stats/paired.py": {"MAX_DRAWS"},
    "stats/power.py": {"_ENDLESS", "MOST_SEEDS"},
    "stats/prospects.py": {
        "DRAWS",
        "FEW_DIFFERING",
        "FEW_DISCORDANT",
        "_FAMILY_DRAWS",
        "_MANY_FAMILIES",
        "_SUBSETS",
    },
    "stats/seeds.py": {"ROUNDING"},
}
"""Module-level numbers of decide/, probe/, release/ and stats/ that may live where they are, and why."""

LITERALS = {
    # digits a number is printed with, and the rounding of a printed number
    "writeup/lint/bind.py": {0.1, 3.01},
    "writeup/lint/recorded.py": {1e-4},
    "writeup/lint/contrasts.py": {0.5},  # half a count
    "writeup/lint/numbers.py": {0.5},
    "writeup/references.py": {1e-4, 1e-3},
    "writeup/tables.py": {1e-4},
    "decide/reach.py": {5e-4, 5e-3},
    "decide/wording.py": {1e-4, 1e-3, 0.9995},
    "probe/geometry_cells.py": {5e-4, 1e-3},
    # a range that an option must lie in; steps of a search
    "decide/commands.py": {0.5},
    "decide/screen.py": {0.5},
    "decide/shares.py": {1e6},
    "stats/power.py": {1e6},
    "stats/prospects.py": {1e6, 1e8},
    # a clipping factor of 1 up to rounding
    "probe/telemetry.py": {0.999},
}
"""Numbers written into an order comparison there (below 1e-5: rounding), and why."""

ROOMS = ("decide", "probe", "release", "stats", "writeup")
SRC = SOURCE.parent.parent


def modules(root: Path) -> list[tuple[str, ast.Module]]:
    files = [path for room in ROOMS for path in sorted((root / room).rglob("*.py"))]
    return [(path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))) for path in files]


def numbers_of(tree: ast.Module) -> set[str]:
    """Module-level names bound to a number, or to a tuple of numbers."""

    def is_number(node: ast.expr | None) -> bool:
        node = node.operand if isinstance(node, ast.UnaryOp) else node
        if isinstance(node, ast.Tuple):
            return bool(node.elts) and all(is_number(item) for item in node.elts)
        return isinstance(node, ast.Constant) and type(node.value) in (int, float)

    found = set()
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True))
        found |= {name.id for name, bound in pairs if isinstance(name, ast.Name) and is_number(bound)}
    return found


def literals_of(tree: ast.Module) -> set[float]:
    """Fractions, and floats beyond rounding, that stand in a comparison by order."""
    order = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
    return {
        node.value
        for compare in ast.walk(tree)
        if isinstance(compare, ast.Compare) and any(isinstance(op, order) for op in compare.ops)
        for node in ast.walk(compare)
        if isinstance(node, ast.Constant) and type(node.value) is float and abs(node.value) > 1e-5
        if node.value not in (1.0, -1.0)
    }


def homeless(root: Path = SRC) -> list[str]:
    found = [
        f"{path}: {name}" for path, tree in modules(root) for name in numbers_of(tree) - ELSEWHERE.get(path, set())
    ]
    found += [f"{path}: {x}" for path, tree in modules(root) for x in literals_of(tree) - LITERALS.get(path, set())]
    return sorted(found)


def test_a_number_that_decides_a_word_lives_in_thresholds_alone() -> None:
    assert homeless() == [], "move it to config/thresholds.py, or say above in ELSEWHERE why it decides no word"


@pytest.mark.parametrize(
    "line",
    ["GOOD = 0.7", "LOW, HIGH = 3, 9", "LIMIT: float = -2", "def word(x):\n    return 'good' if x > 0.7 else 'bad'"],
)
def test_a_number_that_lives_elsewhere_is_found(tmp_path: Path, line: str) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
    (tmp_path / "probe" / "new.py").write_text(line, encoding="utf-8")
    assert homeless(tmp_path)


def test_the_reasons_are_of_names_that_are_there() -> None:
    there = {path: numbers_of(tree) for path, tree in modules(SRC)}
    stale = [f"{path}: {n}" for path, names in ELSEWHERE.items() for n in names - there.get(path, set())]
    assert stale == []


REPO = Path(__file__).resolve().parent.parent


def study_with(**sections: Any) -> Study:
    settings = yaml.safe_load((REPO / "examples" / "quickstart" / "study.yaml").read_text(encoding="utf-8"))
    return parse_study(settings | {"thresholds": sections} if sections else settings)


def values() -> list[tuple[str, ast.AnnAssign]]:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    return [
        (f"{section.name}.{node.target.id}", node)
        for section in tree.body
        if isinstance(section, ast.ClassDef) and section.name != "Thresholds"
        for node in section.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


def test_every_value_has_its_source_in_the_line_above() -> None:
    lines = SOURCE.read_text(encoding="utf-8").splitlines()
    assert len(values()) > 30
    assert [name for name, node in values() if not lines[node.lineno - 2].strip().startswith("# ")] == []


def test_every_value_says_what_it_does() -> None:
    sections = [field.annotation for field in type(DEFAULTS).model_fields.values()]
    silent = [f"{s.__name__}.{n}" for s in sections for n, f in s.model_fields.items() if not f.description]
    assert silent == []


def test_a_study_without_the_section_has_the_defaults() -> None:
    assert study_with().thresholds == DEFAULTS


def test_a_changed_threshold_is_refused_by_the_frozen_contract(tmp_path: Path) -> None:
    store = Store(tmp_path)
    contract.freeze(store, study_with(), FACTS)
    with pytest.raises(StaleError, match=r"thresholds\.zone_gap\.generalises: frozen 0\.5, found 0\.6"):
        contract.freeze(store, study_with(zone_gap={"generalises": 0.6}), FACTS)


def test_nothing_changes_a_value_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        DEFAULTS.zone_gap.generalises = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"zone_gap": {"generalise": 0.6}}, "did you mean 'generalises'"),
        ({"zone_gap": {"generalises": 0.1}}, "expected memorises < generalises < whole"),
        ({"zone_gap": {"memorises": True}}, "expected a number, found a boolean"),
        ({"merge": {"pass_floors": 11}}, "expected pass_floors <= fail_floors"),
        ({"grade": {"units_weak": 200}}, "units_weak <= units_good"),
        ({"families": {"for_interval": 2}}, "greater than or equal to 4"),
        ({"gradients": {"disagree": float("nan")}}, "finite number"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study_with(**section)


def test_the_limits_of_a_study_choose_the_words_of_a_merge() -> None:
    import torch

    from veritune.release.parity.merge import judge, read_module

    draw = torch.Generator().manual_seed(0)
    weight, delta = (torch.randn(16, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    words = [
        read_module(weight + 1.07 * delta, weight, delta, torch.float64, limits=limits)[-1]
        for limits in (DEFAULTS.merge, study_with(merge={"close": 0.1}).thresholds.merge)
    ]
    assert words == ["wrong scaling", "merged"]
    assert judge([], [], None, study_with(merge={"pass_floors": 3}).thresholds.merge).thresholds["pass_floors"] == 3

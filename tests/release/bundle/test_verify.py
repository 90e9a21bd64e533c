"""`veritune verify BUNDLE` names whatever is not as it was packed, what does not belong together, and who signed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import FormatError, InputError
from veritune.release.bundle.parts import collisions, kind_problem, name_problem, tensors
from veritune.release.bundle.sign import sign
from veritune.release.bundle.verify import is_bundle, read_manifest, verify_bundle
from veritune.store import hash_of, read_json, write_json

_spec = importlib.util.spec_from_file_location("bundles", Path(__file__).with_name("bundles.py"))
assert _spec and _spec.loader
bundles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bundles)
repack = bundles.repack


def checks(folder: Path) -> list[tuple[str, str]]:
    return [(f.check.removeprefix("bundle."), f.source or "") for f in verify_bundle(folder).findings]


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_an_untouched_bundle_has_no_findings(made: Path) -> None:
    assert checks(made) == [] and is_bundle(made)


# ---------------------------------------------------------------- as it was packed


def test_a_missing_an_added_and_a_changed_file_are_named(bundle: Path) -> None:
    (bundle / "README.md").unlink()
    (bundle / "evidence" / "more.json").write_text("{}")
    (bundle / "licences.json").write_text("{} ")
    assert checks(bundle) == [
        ("missing", "README.md"),
        ("added", "evidence/more.json"),
        ("changed", "licences.json"),
    ]


def test_a_renamed_file_is_one_finding_with_both_names(bundle: Path) -> None:
    (bundle / "README.md").rename(bundle / "READYOU.md")
    (found,) = verify_bundle(bundle).findings
    assert found.check == "bundle.renamed" and "READYOU.md" in found.message


@pytest.mark.parametrize("target", ["inside", "outside", "folder"])
def test_links_are_named_and_never_followed(bundle: Path, tmp_path: Path, target: str) -> None:
    path = bundle / "README.md"
    if target == "folder":
        shutil.move(bundle / "adapter", tmp_path / "elsewhere")
        (bundle / "adapter").symlink_to(tmp_path / "elsewhere")
        assert ("symlinked", "adapter") in checks(bundle)
        return
    away = (bundle if target == "inside" else tmp_path) / "away.md"
    path.rename(away)
    path.symlink_to(away)
    assert ("symlinked", "README.md") in checks(bundle)


def test_a_pipe_is_no_plain_file(bundle: Path) -> None:
    os.mkfifo(bundle / "pipe.json")
    assert checks(bundle) == [("special", "pipe.json")]


@pytest.mark.parametrize("name", ["adapter/adapter_model.bin", "adapter/run.py", "evidence/x.tar", "evidence/x.exe"])
def test_what_can_run_code_is_refused_even_where_the_manifest_lists_it(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"x")
    repack(bundle)
    assert ("kind", name) in checks(bundle)


def test_a_pickle_under_another_name_is_found(bundle: Path) -> None:
    import pickle

    (bundle / "evidence" / "x.json").write_bytes(pickle.dumps({"a": 1}))
    repack(bundle)
    assert ("kind", "evidence/x.json") in checks(bundle)


@pytest.mark.parametrize("key", ["megatron_config", "auto_mapping"])
def test_an_adapter_that_names_a_module_to_import_is_refused(bundle: Path, key: str) -> None:
    edit_json(bundle / "adapter" / "adapter_config.json", lambda c: c.update({key: {"parent_library": "antigravity"}}))
    repack(bundle)
    assert ("kind", "adapter/adapter_config.json") in checks(bundle)


@pytest.mark.parametrize(
    "name",
    [
        *("../x.json", "/etc/x.json", "a/../b.json", "a//b.json", "./a.json", "a\\b.json", "c:x.json", "a\u202eb.json"),
        *(
            "cafe\u0301.json",
            "\ufb01le.json",
            "a\n.json",
            "CON.json",
            "x. ",
            "",
            "a" * 300,
            "a\x00.json",
            "\ud800.json",
        ),
        *(7, None),
    ],
)
def test_names_that_could_lead_elsewhere_are_refused(bundle: Path, name: Any) -> None:
    assert name_problem(name)
    if isinstance(name, str) and "\ud800" not in name:
        manifest = read_json(bundle / "manifest.json")
        body = {k: v for k, v in manifest.items() if k != "hash"}
        body["files"][name] = {"sha256": "0" * 64, "bytes": 1}
        write_json(bundle / "manifest.json", {**body, "hash": hash_of(body)})
        assert ("name", name) in checks(bundle)


def test_names_that_are_one_to_some_file_systems_are_named(bundle: Path) -> None:
    assert collisions(["a/B.json", "A/c.json"]) == [("A", "a")]
    (bundle / "readme.md").write_text("x")
    repack(bundle)
    assert [c for c, _ in checks(bundle)] == ["name"]
    assert kind_problem("x") and not kind_problem("model.sig")


def test_an_edited_manifest_is_found(bundle: Path) -> None:
    edit_json(bundle / "manifest.json", lambda m: m.update(name="better"))
    assert checks(bundle) == [("manifest", "manifest.json")]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kind": "veritune bundle", "format": 1, "files": 3}', "\xff", "[" * 9999]
)
def test_a_damaged_manifest_is_no_bundle(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError):
        verify_bundle(bundle)


# ---------------------------------------------------------------- belonging together, whatever the manifest says


def swap_adapter(bundle: Path, other: Path) -> None:
    shutil.copyfile(other / "adapter/adapter_model.safetensors", bundle / "adapter/adapter_model.safetensors")
    shutil.copyfile(other / "adapter/adapter_config.json", bundle / "adapter/adapter_config.json")


def base_hash(bundle: Path, other: Path) -> None:
    edit_json(bundle / "base.json", lambda b: b["base"]["files"].update({"model.safetensors": "0" * 64}))


def base_shapes(bundle: Path, other: Path) -> None:
    edit_json(
        bundle / "base.json", lambda b: [t.__setitem__(1, [7, 7]) for t in b["tensors"].values() if len(t[1]) == 2]
    )


def vocabulary(bundle: Path, other: Path) -> None:
    def add(t: Any) -> None:
        token = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        t["added_tokens"] += [{"id": 384 + k, "content": f"<extra{k}>", **token} for k in range(40)]

    edit_json(bundle / "tokenizer/tokenizer.json", add)


def template(bundle: Path, other: Path) -> None:
    path = bundle / "tokenizer/chat_template.jinja"
    path.write_text(path.read_text() + " ")


def scores(bundle: Path, other: Path) -> None:
    path = next(bundle.glob("evidence/runs/all_layer-s0-*/scores/style.jsonl"))
    path.write_text(path.read_text().replace('"value":0.', '"value":1.'))


def contract(bundle: Path, other: Path) -> None:
    edit_json(bundle / "evidence/contract.lock.json", lambda c: c["entries"][-1].update(reason="better"))


def golden(bundle: Path, other: Path) -> None:
    edit_json(bundle / "golden.json", lambda g: g["subject"].update(candidate="0" * 64))


def gates(bundle: Path, other: Path) -> None:
    path = bundle / "evidence/release/gates.jsonl"
    path.write_text(path.read_text().replace('"status":"passed"', '"status":"failed"'))


def datasheet(bundle: Path, other: Path) -> None:
    edit_json(bundle / "datasheet.json", lambda d: d.update(sha256="0" * 64))


@pytest.mark.parametrize(
    ("forge", "check", "words"),
    [
        (swap_adapter, "weights", "is not the checkpoint that run"),
        (base_hash, "base", "was trained for base"),
        (base_shapes, "weights", "another base's adapter"),
        (vocabulary, "tokenizer", "a vocabulary of"),
        (template, "tokenizer", "the template differs from the contract's"),
        (scores, "evidence", "differs from the file that the study sealed"),
        (contract, "contract", "was edited after it was written"),
        (golden, "golden", "recorded with other weights"),
        (gates, "gates", "was edited after it was written"),
        (datasheet, "data", "the datasheet describes other data than the contract's"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_parts_that_do_not_belong_are_found_though_the_manifest_fits(
    bundle: Path, other: Path, forge: Callable[[Path, Path], None], check: str, words: str
) -> None:
    forge(bundle, other)
    repack(bundle)
    found = [f for f in verify_bundle(bundle).findings if f.check == f"bundle.{check}"]
    assert any(words in f.message for f in found), verify_bundle(bundle).findings


def test_a_run_that_the_contract_does_not_plan_is_found(bundle: Path) -> None:
    run = read_manifest(bundle).run_id
    edit_json(bundle / f"evidence/runs/{run}/manifest.json", lambda m: m.update(input_hash="0" * 64))
    repack(bundle)
    assert "run" in [c for c, _ in checks(bundle)]


def test_a_bundle_without_a_part_is_incomplete(bundle: Path) -> None:
    (bundle / "golden.json").unlink()
    repack(bundle)
    assert checks(bundle) == [("incomplete", "golden.json")]


# ---------------------------------------------------------------- signatures


def test_a_signature_holds_and_finds_every_change(bundle: Path, keys: Callable[[str], tuple[Path, Path]]) -> None:
    pytest.importorskip("model_signing", reason="needs model-signing")
    private, public = keys("ours")
    sign(bundle, private)
    found = verify_bundle(bundle, public)
    assert found.signed and found.findings == () and found.has_signature
    assert verify_bundle(bundle).signed is None
    assert not verify_bundle(bundle, keys("theirs")[1]).signed
    readme = bundle / "README.md"
    readme.write_text(readme.read_text() + "x")
    repack(bundle)  # the forger's manifest fits; without the key the parts still do
    assert verify_bundle(bundle).findings == ()
    assert [f.check for f in verify_bundle(bundle, public).findings] == ["bundle.signature"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"dsseEnvelope": {}}'])
def test_a_damaged_or_missing_signature_is_a_finding(
    bundle: Path, keys: Callable[[str], tuple[Path, Path]], content: bytes
) -> None:
    pytest.importorskip("model_signing", reason="needs model-signing")
    _, public = keys("ours")
    assert [f.check for f in verify_bundle(bundle, public).findings] == ["bundle.signature"]
    (bundle / "model.sig").write_bytes(content)
    assert [f.check for f in verify_bundle(bundle, public).findings] == ["bundle.signature"]


def test_a_key_that_is_none_is_the_users_error(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="needs model-signing")
    (tmp_path / "key").write_text("no key")
    with pytest.raises(InputError, match="key"):
        sign(bundle, tmp_path / "key")


# ---------------------------------------------------------------- safetensors headers


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\0" * 8, b"\xff" * 8, (2).to_bytes(8, "little") + b"{", (2).to_bytes(8, "little") + b"[]"),
        (40).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_of',
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError):
        tensors(path)


# ---------------------------------------------------------------- the command


def test_verify_takes_a_study_and_a_bundle(made: Path, bundle: Path, finished: Any, forks: Any) -> None:
    assert forks("verify", finished.root).rc == 0
    good = forks("verify", made)
    assert good.rc == 0 and "belonging together; it is not signed" in good.out
    (bundle / "README.md").unlink()
    bad = forks("verify", bundle)
    assert bad.rc == 2 and "x README.md is missing" in bad.out
    assert json.loads(forks("verify", bundle, "--json").out)["findings"][0]["check"] == "bundle.missing"

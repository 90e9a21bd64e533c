"""Bundles on a Hugging Face repo or in an MLflow model registry: push, and pull with every byte verified.

    hf://OWNER/NAME[@REVISION]             a model repo; a push is one commit that makes the revision exactly the bundle
    mlflow://NAME[/VERSION | @ALIAS]       a registered model; a push is a new version whose artifacts are the bundle

Both are places to keep a bundle, not channels: an alias or a branch can be moved by anybody with the right to write, so
what comes back is verified against its own manifest, and against an id or a key where you give one. Only names that
the manifest lists are asked for, nothing is unpickled, and a pull appears under its name when it is whole and verified.
Tokens are read by the libraries themselves (`HF_TOKEN`, `MLFLOW_TRACKING_*`) and recorded nowhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from veritune.counting import many
from veritune.errors import GateError, InputError, MachineError, first_line
from veritune.release.bundle.parts import SIGNATURE
from veritune.release.bundle.verify import Checked, verify_bundle
from veritune.release.registry.channels import fetch_parts, files_of, shippable
from veritune.release.registry.shelf import CHUNK, TooLargeError, copy_at_most
from veritune.store import staged_folder

_HF = re.compile(r"hf://(?P<repo>[\w.\-]+/[\w.\-]+)(?:@(?P<revision>[\w.\-/]+))?")
_MLFLOW = re.compile(r"mlflow://(?P<name>[^/@:\s]+)(?:/(?P<version>\d+)|@(?P<alias>[\w\-]+))?")
PLACES = ("hf", "mlflow")
EXPERIMENT = "veritune"
_HUB_OWN = (".gitattributes",)


@dataclass(frozen=True, slots=True)
class Pushed:
    """A bundle that was pushed. `place` is pinned: a commit or a version, not a branch or an alias."""

    place: str
    bundle: str
    gate: str | None
    files: int


def is_place(url: str) -> bool:
    """Whether a registry URL is an address of one of these hubs."""
    return url.partition("://")[0] in PLACES


def push(bundle: Path, url: str, *, public: bool = False, public_key: Path | None = None) -> Pushed:
    """Verify a bundle and store it. A branch or alias `production` needs a gate record that passes.

    Raises InputError for any other place, GateError for a bundle that does not verify, is not gated, or did not arrive
    as it is; MachineError where the server or the library is missing.
    """
    if not is_place(url):
        raise InputError(f"{url!r} is neither hf:// nor mlflow://.", fix="Use veritune promote for a folder or s3://.")
    if url.startswith("hf://"):
        return _push_hf(bundle, url, public, public_key)
    return _push_mlflow(bundle, url, public_key)


def pushed_text(pushed: Pushed) -> str:
    """Where a bundle was stored, in one line."""
    gate = f"gate {pushed.gate}" if pushed.gate else "no gate record"
    return f"{pushed.place} is bundle {pushed.bundle[:12]}: {many(pushed.files, 'files')}, {gate}"


def pull(url: str, out: Path, *, bundle: str | None = None, public_key: Path | None = None) -> Checked:
    """Fetch a bundle into `out`, which must not exist yet, and verify it; with `bundle`, its id must be this one.

    Raises GateError when what came is not whole, not as its manifest says, or another bundle.
    """
    if out.exists():
        raise InputError(f"{out} already exists.", fix="Name a new folder.")
    with staged_folder(out) as folder:
        with _reaching(url):
            place, get, signed = _source_hf(url) if url.startswith("hf://") else _source_mlflow(url)
            fetch_parts(get, folder, place, signed=signed)
        checked = verify_bundle(folder, public_key)
        if checked.findings:
            raise GateError(f"{place}: {checked.findings[0].message}.", fix="Do not use it; push the bundle again.")
        if bundle is not None and not (len(bundle) >= 12 and checked.id.startswith(bundle)):
            raise GateError(
                f"{place} holds bundle {checked.id[:12]}, not {bundle}.", fix="Pin a commit or version in the address."
            )
    return replace(checked, bundle=str(out))


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """What a client library raises, as one line that names the place."""
    try:
        yield
    except ImportError as exc:
        raise MachineError(f"{url}: {exc}.", fix="Run `pip install 'veritune[mlflow]'`.") from None
    except (InputError, GateError, FileNotFoundError, MachineError, TooLargeError):
        raise
    except Exception as exc:
        if not type(exc).__module__.startswith(("huggingface_hub", "mlflow", "httpx", "httpcore", "requests")):
            raise
        first = first_line(exc)
        raise MachineError(f"{url}: {first}", fix="Check the name, the address and your token.") from None


# ---------------------------------------------------------------- Hugging Face


def _parse(pattern: re.Pattern[str], url: str, form: str) -> dict[str, str | None]:
    found = pattern.fullmatch(url)
    if found is None:
        raise InputError(f"{url!r} is not an address of this kind.", fix=f"Write {form}.")
    return found.groupdict()


def _push_hf(bundle: Path, url: str, public: bool, public_key: Path | None) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    parts = _parse(_HF, url, "hf://OWNER/NAME[@BRANCH]")
    repo, branch = str(parts["repo"]), parts["revision"]
    checked, manifest, gate = shippable(bundle, branch, public_key)
    files, api = files_of(bundle), HfApi()
    with _reaching(url):
        api.create_repo(repo, exist_ok=True, private=not public)
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True)
        head = api.model_info(repo, revision=branch)
        gone = [f.rfilename for f in head.siblings or () if f.rfilename not in (*files, *_HUB_OWN)]
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, bundle / name) for name in files),
                *(CommitOperationDelete(name) for name in gone),
            ],
            revision=branch,
            parent_commit=head.sha,  # somebody else's push in between is an error and no mixture
            commit_message=f"Veritune bundle {checked.id[:12]} ({manifest.name}, {manifest.run_id})",
        )
        there = {f.path: f for f in api.list_repo_tree(repo, recursive=True, revision=commit.oid) if hasattr(f, "size")}
    wrong = [n for n in files if n not in there or not _arrived(there[n], bundle / n, files[n])]
    wrong += [n for n in there if n not in files and n not in _HUB_OWN]
    if wrong:
        raise GateError(f"{url}: {wrong[0]} differs from {bundle}, or is missing.", fix="Push again.")
    return Pushed(f"hf://{repo}@{commit.oid}", checked.id, gate, len(files))


def _arrived(entry: Any, path: Path, sha256: str) -> bool:
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == sha256)
    content = path.read_bytes()
    return bool(entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest())


def _source_hf(url: str) -> tuple[str, Callable[[str, Path, int], None], bool]:
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    parts = _parse(_HF, url, "hf://OWNER/NAME[@REVISION]")
    repo = str(parts["repo"])
    info = HfApi().model_info(repo, revision=parts["revision"])
    commit = str(info.sha)

    def get(name: str, target: Path, most: int) -> None:
        # The library's own download takes whatever a server sends, until the disk is full; this ends at `most` bytes.
        at, headers = hf_hub_url(repo, name, revision=commit), build_hf_headers()
        headers["Accept-Encoding"] = "identity"
        try:
            with http_stream_backoff("GET", at, headers=headers, follow_redirects=True, max_retries=2) as response:
                hf_raise_for_status(response)
                copy_at_most(response.iter_bytes(CHUNK), target, most, name)
        except EntryNotFoundError as exc:
            raise FileNotFoundError(f"{name} is missing") from exc

    return f"hf://{repo}@{commit}", get, SIGNATURE in {f.rfilename for f in info.siblings or ()}


# ---------------------------------------------------------------- MLflow


def _client() -> Any:
    """MLflow's client for `MLFLOW_TRACKING_URI`. Raises MachineError where nothing says which server."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise MachineError("no MLflow server is named.", fix="Set MLFLOW_TRACKING_URI.")
    from mlflow.tracking import MlflowClient

    return MlflowClient()


def _push_mlflow(bundle: Path, url: str, public_key: Path | None) -> Pushed:
    parts = _parse(_MLFLOW, url, "mlflow://NAME[@ALIAS]")
    name, alias = str(parts["name"]), parts["alias"]
    if parts["version"] is not None:
        raise InputError(
            f"{url}: a push creates a new version, so the address must not name one.",
            fix=f"Write mlflow://{name}[@ALIAS].",
        )
    checked, manifest, gate = shippable(bundle, alias, public_key)
    tags = {"veritune.bundle": checked.id, "veritune.gate": gate or "none", "veritune.run_id": manifest.run_id}
    with _reaching(url):
        from mlflow.exceptions import MlflowException

        client = _client()
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
        run = client.create_run(experiment, tags=tags, run_name=f"bundle {checked.id[:12]}").info
        client.log_artifacts(run.run_id, str(bundle), "bundle")
        client.set_terminated(run.run_id)
        try:
            client.create_registered_model(name)
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(name, f"{run.artifact_uri}/bundle", run.run_id, tags=tags).version
    place = f"mlflow://{name}/{version}"
    with tempfile.TemporaryDirectory(prefix="veritune-") as work:
        back = pull(place, Path(work) / "bundle", public_key=public_key)
    if back.id != checked.id:
        raise GateError(f"{place} is bundle {back.id[:12]}, not {checked.id[:12]}.", fix="Push again.")
    if alias is not None:  # last: it points to what was read back and verified
        with _reaching(url):
            client.set_registered_model_alias(name, alias, version)
    return Pushed(place, checked.id, gate, len(files_of(bundle)))


def _source_mlflow(url: str) -> tuple[str, Callable[[str, Path, int], None], bool]:
    parts = _parse(_MLFLOW, url, "mlflow://NAME/VERSION or mlflow://NAME@ALIAS")
    name = str(parts["name"])
    client = _client()
    from mlflow.artifacts import download_artifacts, list_artifacts

    if parts["alias"] is not None:
        version = client.get_model_version_by_alias(name, parts["alias"]).version
    elif parts["version"] is not None:
        version = parts["version"]
    else:
        raise InputError(f"{url} names no version.", fix=f"Write mlflow://{name}/VERSION or mlflow://{name}@ALIAS.")
    root = client.get_model_version_download_uri(name, version)

    @cache
    def names(folder: str) -> dict[str, int | None]:
        found = list_artifacts(f"{root}/{folder}" if folder else root)
        return {f.path.rsplit("/", 1)[-1]: f.file_size for f in found}

    def get(part: str, target: Path, most: int) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder, _, leaf = part.rpartition("/")
        if leaf not in names(folder):
            raise FileNotFoundError(f"{part} is missing")
        if (names(folder)[leaf] or 0) > most:  # what the server says: MLflow's client cannot be stopped in mid-file
            raise TooLargeError(f"{part} has more than the expected {most:,} bytes")
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            shutil.move(download_artifacts(artifact_uri=f"{root}/{part}", dst_path=work), target)

    return f"mlflow://{name}/{version}", get, SIGNATURE in names("")

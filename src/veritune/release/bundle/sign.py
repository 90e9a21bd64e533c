"""Signatures with OpenSSF's model-signing, key-based and offline: who vouches for exactly these bytes.

The signature lies beside the files as `model.sig` and covers every other file. Keys are elliptic-curve PEM files:

    openssl ecparam -name prime256v1 -genkey -noout -out release.key
    openssl ec -in release.key -pubout -out release.pub
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from veritune.errors import InputError, MachineError, first_line
from veritune.release.bundle.parts import SIGNATURE
from veritune.untrusted import read_bytes


def sign(folder: Path, private_key: Path) -> Path:
    """Sign every file of the folder; returns the signature's path. Raises MachineError without the package, InputError
    for a key that cannot be used.
    """
    signing = _module("signing")
    path = folder / SIGNATURE
    path.unlink(missing_ok=True)
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
        config.set_hashing_config(_hashing()).sign(folder, path)
    except (OSError, ValueError, TypeError) as exc:
        raise InputError(f"{private_key}: cannot sign with it ({exc}).", fix=KEY_FIX) from exc
    return path


def signature_problem(folder: Path, public_key: Path) -> str | None:
    """Why the folder's signature is not valid under this key; None if it is valid."""
    if not (folder / SIGNATURE).is_file():
        return "there is no signature"
    verifying = _module("verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, TypeError) as exc:
        raise InputError(f"{public_key}: expected a usable public key ({exc}).", fix=KEY_FIX) from exc
    try:
        config.set_hashing_config(_hashing()).verify(folder, folder / SIGNATURE)
    except Exception as exc:  # a stranger's signature file makes the package raise many kinds
        return f"the signature is not valid: {' '.join(str(exc).split()) or type(exc).__name__}"[:300]
    return None


def key_problem(public_key: Path) -> str | None:
    """Why a file cannot be used as a public key to check signatures; None if it can."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as exc:
        raise MachineError(f"keys need the package cryptography ({exc}).", fix=EXTRA) from exc
    try:
        key = load_pem_public_key(read_bytes(public_key, MAX_KEY_BYTES))
    except (OSError, ValueError, TypeError) as exc:
        return "a private key" if "PRIVATE KEY" in str(exc) else first_line(exc)
    except Exception as exc:  # cryptography has an error of its own for a kind of key that it does not know
        return first_line(exc)
    return None if isinstance(key, EllipticCurvePublicKey) else f"a {type(key).__name__}"


EXTRA = "Run `pip install 'veritune[release]'`."
MAX_KEY_BYTES = 1 << 16
KEY_FIX = "Use an EC key in PEM: openssl ecparam -name prime256v1 -genkey -noout -out release.key"


def _hashing() -> Any:
    config = _module("hashing").Config()
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False).set_allow_symlinks(False)


def _module(name: str) -> Any:
    try:
        import OpenSSL  # noqa: F401 - model-signing needs it and does not say so
        from model_signing import hashing, signing, verifying
    except ImportError as exc:
        raise MachineError(
            f"signing needs the packages model-signing and pyOpenSSL ({exc}).",
            fix=EXTRA,
        ) from exc
    return {"signing": signing, "verifying": verifying, "hashing": hashing}[name]

"""What a registry demands of a channel: signatures, by whose key. And what shows that a channel lost its newest entry.

    rules/<channel>/<number>.json      one entry a change, each with the hash of the one before it
    heads/<channel>/<number>.json      number and hash of each channel entry, created right after the entry itself

A channel's entry names the rule that it was made under, so that a rule which was taken out of the registry is missed.
A head whose entry is gone shows that the newest entries of a channel were deleted. Somebody who deletes both, or who
rewrites the registry, is found by what they cannot reach: the head kept elsewhere (`--head`), or your own copy of the
public key (`--public-key`).
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from veritune.errors import FormatError, GateError, InputError, MovedError, StaleError
from veritune.ledger import CHAIN, FIX, follow, link
from veritune.records import JsonLike, dumps, to_json
from veritune.release.bundle.sign import key_problem, signature_problem
from veritune.release.registry.shelf import Shelf
from veritune.store import now
from veritune.untrusted import parse_json

_NUMBER = re.compile(r"(\d{8})\.json")


@dataclass(frozen=True, slots=True)
class ChannelRule:
    """One change of a channel's signature rule: a signature by one of `keys` (public, PEM) is required, or none if
    empty.
    """

    number: int
    channel: str
    keys: tuple[str, ...]
    reason: str
    previous: str | None
    time: str = field(default_factory=now)
    hash: str = ""


def numbered(shelf: Shelf, place: str) -> list[tuple[int, str]]:
    """Number and name of every entry in a folder of the registry, in order. Raises StaleError if one is missing."""
    numbers = sorted(int(m[1]) for name in shelf.names(place) if (m := _NUMBER.fullmatch(name)))
    for expected, number in enumerate(numbers, start=1):
        if number != expected:
            raise StaleError(f"{place}/{expected:08d}.json is missing: the history has a gap.", fix=FIX)
    return [(n, f"{place}/{n:08d}.json") for n in numbers]


# ---------------------------------------------------------------- demands


def rules(shelf: Shelf, channel: str) -> list[ChannelRule]:
    """Every rule that a channel ever had, oldest first. Raises FormatError or StaleError if rules were edited."""
    found: list[ChannelRule] = []
    for number, name in numbered(shelf, f"rules/{channel}"):
        try:
            body = follow(parse_json(shelf.read(name)), found[-1].hash if found else None, name)
            rule = ChannelRule(**{**body, "keys": tuple(body["keys"])})
            whole = (rule.number, rule.channel) == (number, channel) and all(isinstance(k, str) for k in rule.keys)
        except (ValueError, TypeError, KeyError) as exc:
            raise FormatError(f"{name} is not a valid rule of a channel ({type(exc).__name__}).", fix=FIX) from exc
        if not whole:
            raise StaleError(f"{name} is a rule for another channel or place: it was moved.", fix=FIX)
        found.append(rule)
    return found


def demand(shelf: Shelf, channel: str, public_keys: Sequence[Path], reason: str) -> ChannelRule:
    """Let the channel accept and deliver only bundles signed by one of these keys; with no keys, any bundle.

    Raises InputError for a file that is no public key, MovedError where somebody else changed the rules meanwhile.
    """
    before, keys = rules(shelf, channel), []
    for path in public_keys:
        problem = key_problem(path)
        if problem:
            raise InputError(
                f"{path}: expected a public EC key in PEM, found {problem}.", fix="--public-key release.pub"
            )
        keys.append(path.read_text(encoding="ascii"))
    if not keys and not reason.strip():
        raise InputError("lifting a signature rule needs a reason.", fix='--reason "why"')
    if (before[-1].keys if before else ()) == tuple(keys):
        raise InputError(
            f"{channel} already has this rule.", fix="Give other keys, or `none` to lift the rule; nothing was changed."
        )
    rule = ChannelRule(len(before) + 1, channel, tuple(keys), reason, before[-1].hash if before else None)
    body = link({k: v for k, v in to_json(rule).items() if k not in CHAIN}, rule.previous)
    try:
        shelf.create(f"rules/{channel}/{rule.number:08d}.json", (dumps(body, indent=2) + "\n").encode())
    except FileExistsError as exc:
        raise MovedError(
            f"the rules of {channel} were changed meanwhile.", fix="Read the rules again, then decide again."
        ) from exc
    return ChannelRule(**{**body, "keys": tuple(body["keys"])})


def rule_text(rule: ChannelRule) -> str:
    """A channel's new rule in one line."""
    if not rule.keys:
        return f"{rule.channel} no longer requires a signature ({rule.reason})"
    return (
        f"{rule.channel} now accepts and delivers only bundles signed by one of {len(rule.keys)} keys (rule "
        f"{rule.hash[:12]})"
    )


def refuse_unsigned(rule: ChannelRule | None, bundle: Path) -> str | None:
    """The name (see `key_name`) of the rule's key that signed the bundle; None if the rule requires no signature.

    Raises GateError where the rule demands a signature and the bundle has none by one of its keys.
    """
    if rule is None or not rule.keys:
        return None
    with tempfile.TemporaryDirectory(prefix="veritune-") as folder:
        problems = []
        for number, key in enumerate(rule.keys):
            path = Path(folder) / f"{number}.pub"
            path.write_text(key, encoding="ascii")
            problem = signature_problem(bundle, path)
            if problem is None:
                return key_name(path)
            problems.append(problem)
    raise GateError(
        f"{rule.channel} accepts only bundles signed by one of {len(rule.keys)} keys (rule {rule.number}): "
        f"{problems[0]}.",
        fix="Pack the bundle with `--sign KEY`, using a key that the channel accepts.",
    )


def key_name(public_key: Path) -> str:
    """The name of a public key: the first 16 digits of the SHA-256 of its DER bytes, which do not depend on the PEM
    text.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    key = load_pem_public_key(public_key.read_bytes())
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()[:16]


def refuse_lost_rules(found: Sequence[ChannelRule], named: Sequence[str | None], channel: str) -> None:
    """Raises StaleError if an entry of the channel was made under a rule that is no longer in the registry."""
    known = {rule.hash for rule in found}
    for number, rule in enumerate(named, start=1):
        if rule is not None and rule not in known:
            raise StaleError(
                f"version {number} of {channel} was made under rule {rule[:12]}, which is missing: somebody removed "
                "a rule that required signatures.",
                fix=FIX,
            )


# ---------------------------------------------------------------- heads


def newest_head(shelf: Shelf, channel: str) -> dict[str, JsonLike] | None:
    """Number and hash of the newest entry that the registry has recorded; None before the first."""
    found = sorted(name for name in shelf.names(f"heads/{channel}") if _NUMBER.fullmatch(name))
    if not found:
        return None
    name = f"heads/{channel}/{found[-1]}"
    try:
        head = parse_json(shelf.read(name))
        number, known = head["number"], head["hash"]
        whole = number == int(found[-1][:8]) and isinstance(known, str)
    except (ValueError, TypeError, KeyError) as exc:
        raise FormatError(f"{name} is not a valid head of a channel ({type(exc).__name__}).", fix=FIX) from exc
    if not whole:
        raise StaleError(f"{name} was edited or moved.", fix=FIX)
    return {"number": number, "hash": known}


def keep_head(shelf: Shelf, channel: str, number: int, hash_: str) -> None:
    """Record that an entry was made. The next writer completes this for one that was killed before."""
    content = (dumps({"number": number, "hash": hash_}) + "\n").encode()
    try:
        shelf.create(f"heads/{channel}/{number:08d}.json", content)
    except FileExistsError:
        return


def refuse_lost_entries(head: dict[str, Any] | None, hashes: Sequence[str], channel: str) -> None:
    """Raises StaleError if an entry that the channel's head records is missing or was replaced."""
    if head is None:
        return
    number = head["number"]
    if number > len(hashes):
        raise StaleError(
            f"channels/{channel} ends with version {len(hashes)}, but version {number} was made "
            f"({head['hash'][:12]}): its newest entries were deleted.",
            fix=FIX,
        )
    if hashes[number - 1] != head["hash"]:
        raise StaleError(
            f"version {number} of {channel} is {hashes[number - 1][:12]}, but {head['hash'][:12]} was made: "
            "the history was rewritten.",
            fix=FIX,
        )


def refuse_other_head(kept: str | None, hashes: Sequence[str], channel: str) -> None:
    """Raises StaleError if no entry has the hash `kept`, the beginning of a head that was kept elsewhere."""
    if kept is None:
        return
    if len(kept) < 8:
        raise InputError(
            f"--head {kept!r}: expected at least 8 characters of a head.", fix="Print the head: veritune history"
        )
    if not any(known.startswith(kept.lower()) for known in hashes):
        raise StaleError(
            f"{channel} has no entry {kept[:16]}, which you kept: entries were deleted or rewritten.",
            fix="Restore the registry from a copy, or find out who changed it.",
        )

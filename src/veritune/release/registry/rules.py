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
    """One change of what a channel demands: a signature by one of `keys` (public, PEM), or none where that is empty."""

    number: int
    channel: str
    keys: tuple[str, ...]
    reason: str
    previous: str | None
    time: str = field(default_factory=now)
    hash: str = ""


def numbered(shelf: Shelf, place: str) -> list[tuple[int, str]]:
    """Number and name of every entry in a folder of the registry, in order. Raises StaleError where one is missing."""
    numbers = sorted(int(m[1]) for name in shelf.names(place) if (m := _NUMBER.fullmatch(name)))
    for expected, number in enumerate(numbers, start=1):
        if number != expected:
            raise StaleError(f"{place}/{expected:08d}.json is gone: the history has a hole.", fix=FIX)
    return [(n, f"{place}/{n:08d}.json") for n in numbers]


# ---------------------------------------------------------------- demands


def rules(shelf: Shelf, channel: str) -> list[ChannelRule]:
    """Every rule that a channel ever had, oldest first. Raises FormatError or StaleError where they were edited."""
    found: list[ChannelRule] = []
    for number, name in numbered(shelf, f"rules/{channel}"):
        try:
            body = follow(parse_json(shelf.read(name)), found[-1].hash if found else None, name)
            rule = ChannelRule(**{**body, "keys": tuple(body["keys"])})
            whole = (rule.number, rule.channel) == (number, channel) and all(isinstance(k, str) for k in rule.keys)
        except (ValueError, TypeError, KeyError) as exc:
            raise FormatError(f"{name} is no rule of a channel ({type(exc).__name__}).", fix=FIX) from exc
        if not whole:
            raise StaleError(f"{name} is a rule for another channel or place: it was moved.", fix=FIX)
        found.append(rule)
    return found


def demand(shelf: Shelf, channel: str, public_keys: Sequence[Path], reason: str) -> ChannelRule:
    """From now on the channel takes and gives only bundles signed by one of these keys; with none, any bundle.

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
        raise InputError("to lift a demand takes a reason.", fix='--reason "why"')
    if (before[-1].keys if before else ()) == tuple(keys):
        raise InputError(f"{channel} demands just that already.", fix="Nothing was changed.")
    rule = ChannelRule(len(before) + 1, channel, tuple(keys), reason, before[-1].hash if before else None)
    body = link({k: v for k, v in to_json(rule).items() if k not in CHAIN}, rule.previous)
    try:
        shelf.create(f"rules/{channel}/{rule.number:08d}.json", (dumps(body, indent=2) + "\n").encode())
    except FileExistsError as exc:
        raise MovedError(f"the rules of {channel} have changed meanwhile.", fix="Look at them, then decide.") from exc
    return ChannelRule(**{**body, "keys": tuple(body["keys"])})


def rule_text(rule: ChannelRule) -> str:
    """What a channel demands from now on, in one line."""
    if not rule.keys:
        return f"{rule.channel} demands no signature any more ({rule.reason})"
    return f"{rule.channel} takes and gives only bundles signed by one of {len(rule.keys)} keys (rule {rule.hash[:12]})"


def refuse_unsigned(rule: ChannelRule | None, bundle: Path) -> str | None:
    """The key of the rule that signed the bundle, as `key_name` calls it; None where the rule demands none.

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
        f"{rule.channel} takes only bundles signed by one of {len(rule.keys)} keys (rule {rule.number}): "
        f"{problems[0]}.",
        fix="Pack the bundle with `--sign KEY` of a key that the channel demands.",
    )


def key_name(public_key: Path) -> str:
    """A public key by the first 16 digits of the SHA-256 of its DER bytes, whatever its PEM text looks like."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    key = load_pem_public_key(public_key.read_bytes())
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()[:16]


def refuse_lost_rules(found: Sequence[ChannelRule], named: Sequence[str | None], channel: str) -> None:
    """Raises StaleError where an entry of the channel was made under a rule that is not in the registry any more."""
    known = {rule.hash for rule in found}
    for number, rule in enumerate(named, start=1):
        if rule is not None and rule not in known:
            raise StaleError(
                f"version {number} of {channel} was made under rule {rule[:12]}, which is gone: "
                "the registry demanded signatures and somebody removed the rule.",
                fix=FIX,
            )


# ---------------------------------------------------------------- heads


def newest_head(shelf: Shelf, channel: str) -> dict[str, JsonLike] | None:
    """Number and hash of the newest entry that the registry knows to have been made; None before the first."""
    found = sorted(name for name in shelf.names(f"heads/{channel}") if _NUMBER.fullmatch(name))
    if not found:
        return None
    name = f"heads/{channel}/{found[-1]}"
    try:
        head = parse_json(shelf.read(name))
        number, known = head["number"], head["hash"]
        whole = number == int(found[-1][:8]) and isinstance(known, str)
    except (ValueError, TypeError, KeyError) as exc:
        raise FormatError(f"{name} is no head of a channel ({type(exc).__name__}).", fix=FIX) from exc
    if not whole:
        raise StaleError(f"{name} was edited or moved.", fix=FIX)
    return {"number": number, "hash": known}


def keep_head(shelf: Shelf, channel: str, number: int, hash_: str) -> None:
    """Record that an entry was made. A writer that was killed before is made up for by the next one."""
    content = (dumps({"number": number, "hash": hash_}) + "\n").encode()
    try:
        shelf.create(f"heads/{channel}/{number:08d}.json", content)
    except FileExistsError:
        return


def refuse_lost_entries(head: dict[str, Any] | None, hashes: Sequence[str], channel: str) -> None:
    """Raises StaleError where the channel had an entry, by its head, that is not there or is another one."""
    if head is None:
        return
    number = head["number"]
    if number > len(hashes):
        raise StaleError(
            f"channels/{channel} ends with version {len(hashes)}, but version {number} was made ({head['hash'][:12]}): "
            "its newest entries were deleted.",
            fix=FIX,
        )
    if hashes[number - 1] != head["hash"]:
        raise StaleError(
            f"version {number} of {channel} is {hashes[number - 1][:12]}, but {head['hash'][:12]} was made: "
            "the history was rewritten.",
            fix=FIX,
        )


def refuse_other_head(kept: str | None, hashes: Sequence[str], channel: str) -> None:
    """Raises StaleError where `kept`, the beginning of a head that somebody kept elsewhere, is no entry's hash."""
    if kept is None:
        return
    if len(kept) < 8:
        raise InputError(
            f"--head {kept!r}: expected at least 8 characters of a head.", fix="`veritune history` prints it."
        )
    if not any(known.startswith(kept.lower()) for known in hashes):
        raise StaleError(
            f"{channel} has no entry {kept[:16]}, which you kept: entries were deleted or rewritten.",
            fix="Restore the registry from a copy, or find out who changed it.",
        )

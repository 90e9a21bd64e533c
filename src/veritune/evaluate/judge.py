"""Scores by another model behind an OpenAI-compatible URL, and how far it agrees with people.

    judge = Judge.of(spec, store.audit("judge"))
    judge.score("helpful", row, output)

The judge is asked at temperature 0, one output at a time. Every answer is kept under the hash of its request, so that
the same output is judged once and a rerun asks nothing. An answer that holds none of its verdicts (`judge_unclear`) and
a server that gives none (`judge_failed`) are failures of the machine, counted apart from wrong answers.

Agreement is measured on outputs that people labelled: the share of equal verdicts a, with its exact binomial interval,
and Cohen's kappa (a − e)/(1 − e) with e the agreement that both sides' shares of each verdict give by chance. Kappa's
interval is that of a, with e as observed. Source: Cohen 1960, Educ. Psychol. Meas. 20:37.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from veritune.config.evals import JUDGE_LABELS, Eval, columns_in
from veritune.data.tables import table_rows
from veritune.errors import DataError, ModelError, StudyError, first_line
from veritune.evaluate.function import item_of
from veritune.patterns import PatternTooSlow, compiled, limited
from veritune.records import Disagreement, Json, JsonLike, JudgeAgreement, JudgeAnswer, Row, Score
from veritune.store import hash_of, sha256_file
from veritune.untrusted import parse_json

KEYS = ("VERITUNE_JUDGE_KEY", "OPENAI_API_KEY")
TIMEOUT_S = 120.0
MAX_TOKENS = 256
"""Tokens that a judge may say; a verdict behind a longer text is not seen."""
MAX_ANSWER_BYTES = 1 << 20
TRIES, WAIT_S = 4, 1.0
"""Tries of one request, and seconds before the second; the wait doubles."""
BUSY = (408, 429, 500, 502, 503, 504)
SHOWN = 500
"""Characters of a judge's answer that stand beside a score."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_args: object, **_kwargs: object) -> None:
        return None


@dataclass(frozen=True)
class Judge:
    """The judge of one eval. `cache` is the folder with its answers."""

    base_url: str
    model: str
    prompt: str
    labels: Mapping[str, float]
    extract: str | None
    expected: str | None
    cache: Path
    wait: Callable[[float], None] = field(default=time.sleep, repr=False)

    @classmethod
    def of(cls, spec: Eval, cache: Path) -> Judge:
        """The judge that an eval declares."""
        labels = spec.labels or JUDGE_LABELS
        url, model, prompt = str(spec.base_url).rstrip("/"), str(spec.model), str(spec.prompt)
        return cls(url, model, prompt, labels, spec.extract, spec.expected, cache)

    def score(self, name: str, row: Row, text: str) -> Score:
        """The verdict on one output. A server's failure is returned as a reason, never raised."""
        value, reason, parts = self.verdict(self.values(row, text))
        return Score("", name, row.id, value, reason=reason, output=text, parts={"judge": self.model, **parts})

    def values(self, row: Row, text: str) -> dict[str, JsonLike]:
        """The values for the names in the prompt, taken from one item and its output."""
        item = item_of(row)
        expected = item.get(self.expected) if self.expected else item["target"]
        return {**item, "expected": expected, "output": text}

    def verdict(self, values: Mapping[str, JsonLike]) -> tuple[float | None, str | None, dict[str, JsonLike]]:
        """(value, reason, what is recorded beside it) for one filled prompt."""
        asked = self.prompt.format_map({key: "" if v is None else v for key, v in values.items()})
        try:
            said = self._ask(asked)
        except ModelError as exc:
            return None, "judge_failed", {"why": exc.message}
        try:
            label = self._label(said)
        except PatternTooSlow as exc:
            return None, "pattern_too_slow", {"why": f"extract: it took {exc}", "said": said[:SHOWN]}
        if label is None:
            return None, "judge_unclear", {"said": said[:SHOWN], "why": f"none of the labels {', '.join(self.labels)}"}
        return self.labels[label], None, {"verdict": label, "said": said[:SHOWN]}

    def _label(self, said: str) -> str | None:
        """The last verdict in what was said: by `extract`, else the last label that stands there as a word."""
        known = {label.casefold(): label for label in self.labels}
        if self.extract is not None:
            with limited():
                found = compiled(self.extract).findall(said)
            last = found[-1] if found and isinstance(found[-1], str) else found[-1][0] if found else ""
            return known.get(str(last).strip().casefold())
        words = "|".join(sorted(map(re.escape, known), key=len, reverse=True))
        named = re.findall(rf"(?<!\w)(?:{words})(?!\w)", said.casefold())
        return known[named[-1]] if named else None

    def _ask(self, asked: str) -> str:
        """What the judge says, from the cache or the server. Raises ModelError."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": asked}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        path = self.cache / f"{hash_of({'url': self.base_url, 'body': body})}.json"
        if path.exists():
            return JudgeAnswer.load(path).said
        said = self._said(body)
        JudgeAnswer(self.base_url, body, said).save(path)
        return said

    def _said(self, body: Json) -> str:
        request = urllib.request.Request(
            f"{self.base_url}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **_key_header()},
        )
        last = ""
        for attempt in range(TRIES):
            if attempt:
                self.wait(WAIT_S * 2 ** (attempt - 1))
            try:
                with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S) as answer:
                    content = answer.read(MAX_ANSWER_BYTES + 1)
                if len(content) > MAX_ANSWER_BYTES:
                    raise ModelError(
                        f"the judge at {self.base_url} answered with more than {MAX_ANSWER_BYTES:,} bytes.",
                        fix="Check that the address is a chat completions endpoint.",
                    )
                said = parse_json(content.decode("utf-8"))["choices"][0]["message"]["content"]
                if not isinstance(said, str):
                    raise TypeError(f"content is {type(said).__name__}")
                return said
            except urllib.error.HTTPError as exc:
                last = f"HTTP {exc.code}"
                if exc.code not in BUSY:
                    break
            except (urllib.error.URLError, TimeoutError, ConnectionError) as exc:
                last = first_line(exc)
            except (ValueError, KeyError, IndexError, TypeError) as exc:
                last = f"the answer is not a chat completion ({type(exc).__name__})"
                break
        raise ModelError(f"the judge at {self.base_url} gave no answer: {last}.")


def _key_header() -> dict[str, str]:
    """The key from the environment and nowhere else; it is never written down."""
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
    return {"Authorization": f"Bearer {key}"} if key else {}


def check_prompt(name: str, spec: Eval, rows: Sequence[Row]) -> None:
    """Raises StudyError if the prompt uses a name that some item does not have."""
    needed = sorted(columns_in("prompt", str(spec.prompt)) - {"output", "question", "expected", "target", "id"})
    wants = "expected" in columns_in("prompt", str(spec.prompt))
    for row in rows:
        missing = [key for key in needed if row.meta.get(key) is None]
        if wants and (row.meta.get(spec.expected) if spec.expected else row.target) is None:
            missing.append(spec.expected or "expected")
        if missing:
            raise StudyError(
                f"evals.{name}: row {row.id} (line {row.line}) has no column {missing[0]!r}, which the judge's "
                "prompt uses.",
                fix=f"Columns there: {', '.join(sorted(row.meta)) or 'none'}.",
            )


# ---------------------------------------------------------------- agreement with people


def measure(judge: Judge, path: Path, *, least_kappa: float, digest: str) -> JudgeAgreement:
    """Ask the judge about every labelled output and measure the agreement. Raises DataError for a file that cannot be
    read, ModelError for a server that never answers.
    """
    from scipy.stats import binomtest

    rows = read_labelled(path, judge)
    pairs: list[tuple[str, str | None]] = []
    unequal = []
    for line, label, values in rows:
        _, reason, parts = judge.verdict(values)
        if reason == "judge_failed":
            raise ModelError(f"{path.name}, line {line}: {parts['why']}", fix="Start the server, then run it again.")
        said = str(parts["verdict"]) if reason is None else None
        pairs.append((label, said))
        if said != label:
            unequal.append(Disagreement(line, label, said, reason))
    equal, n = sum(a == b for a, b in pairs), len(pairs)
    low, high = map(float, binomtest(equal, n).proportion_ci(0.95, method="exact"))
    kappa, ends, reason = _kappa(pairs, (low, high))
    may = ends is not None and ends[0] >= least_kappa
    return JudgeAgreement(
        input_hash=digest, file=path.name, sha256=sha256_file(path), judge=judge.model, base_url=judge.base_url, n=n,
        unclear=sum(said is None for _, said in pairs), accuracy=equal / n, accuracy_interval=(low, high), kappa=kappa,
        kappa_interval=ends, least_kappa=least_kappa, may_decide=may, unequal=tuple(unequal), reason=reason,
        reading=_reading(judge.model, (equal, n, low, high), (kappa, ends, reason), least_kappa, may=may),
    )  # fmt: skip


def _kappa(
    pairs: Sequence[tuple[str, str | None]], accuracy: tuple[float, float]
) -> tuple[float | None, tuple[float, float] | None, str | None]:
    """Cohen's kappa with its interval; None with a reason where one side knows a single verdict."""
    ours, theirs = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    n = len(pairs)
    if len(ours) < 2:
        return None, None, f"every row is labelled {next(iter(ours))!r}: agreement cannot be told from chance"
    chance = sum(ours[label] * theirs.get(label, 0) for label in ours) / n**2
    made = [(a - chance) / (1 - chance) for a in (sum(a == b for a, b in pairs) / n, *accuracy)]
    return made[0], (max(-1.0, made[1]), made[2]), None


def _reading(
    model: str,
    agreed: tuple[int, int, float, float],
    kappa: tuple[float | None, tuple[float, float] | None, str | None],
    least: float,
    *,
    may: bool,
) -> str:
    equal, n, low, high = agreed
    value, ends, reason = kappa
    said = f"{model} agrees with {equal} of {n} labels ({equal / n:.0%}, 95 % {low:.0%} to {high:.0%})"
    if value is None or ends is None:
        return f"{said}; {reason}. No confirmatory claim may rest on it."
    said += f", kappa {value:.2f} ({ends[0]:.2f} to {ends[1]:.2f})"
    if may:
        return f"{said}: it may decide (the whole interval of kappa is at least {least:g})."
    return f"{said}: no confirmatory claim may rest on it (the interval of kappa reaches below {least:g})."


def read_labelled(path: Path, judge: Judge) -> list[tuple[int, str, dict[str, JsonLike]]]:
    """(line, label, values for the prompt's names) of every labelled output. Raises DataError naming the line."""
    if not path.is_file():
        raise DataError(
            f"agreement: no file at {path}.", fix="Name a JSONL or CSV file with columns `output` and `label`."
        )
    needed = columns_in("prompt", judge.prompt)
    made = []
    for number, row in enumerate(table_rows(path), start=1):
        values = {**row, **({"expected": row[judge.expected]} if judge.expected and judge.expected in row else {})}
        missing = sorted(key for key in {*needed, "label"} if values.get(key) is None)
        if missing:
            raise DataError(
                f"{path.name}, row {number}: no column {missing[0]!r}.", fix=f"Columns: {', '.join(map(str, row))}."
            )
        made.append((number, _label_of(values["label"], judge.labels, f"{path.name}, row {number}"), values))
    return made


def _label_of(value: JsonLike, labels: Mapping[str, float], where: str) -> str:
    """A label as one of the judge's verdicts: its name, or the number it is worth where that names one."""
    known = {label.casefold(): label for label in labels}
    text = {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    if text.strip().casefold() in known:
        return known[text.strip().casefold()]
    try:
        worth = [label for label, w in labels.items() if w == float(text)]
    except ValueError:
        worth = []
    if len(worth) == 1:
        return worth[0]
    raise DataError(f"{where}: expected a label of {', '.join(labels)}, found {value!r}.")

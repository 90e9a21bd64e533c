"""A small study through `veritune run` on a real Tinker server, and what its records must come to; called by run.sh.

python study.py URL MODEL_FOLDER OUT

The server's losses are compared with those of the same weights loaded here: the untouched base's, and those of the base
with each exported adapter. A study that this server cannot follow (see docs/backends.md) must be refused.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from veritune.data.prepare import load_prepared
from veritune.errors import GateError
from veritune.pipeline.cell import cells_of
from veritune.pipeline.flow import run
from veritune.pipeline.plan import live_probes
from veritune.pipeline.ready import make_ready
from veritune.pipeline.watch import study_at
from veritune.progress import Progress
from veritune.store import Store
from veritune.train.models import ModelRef, load_base, load_tokenizer
from veritune.train.trainer import row_nll

WORDS = ["harbor", "gate", "lamp", "ferry", "crane", "boat", "quay", "rope", "net", "tide", "storm", "bell", "buoy"]


def write(root: Path, url: str, model: str, conditions: dict[str, Any], **backend: Any) -> Path:
    """A study folder: 12 originals in 3 wordings, one answer each, one or two conditions, one seed."""
    root.mkdir(parents=True)
    rng, rows = random.Random(0), []
    for f in range(12):
        words = rng.sample(WORDS, 4)
        for k in range(3):
            said = [{"role": "user", "content": f"{words[k]} {words[3]}"}, {"role": "assistant", "content": "oar?"}]
            rows.append({"id": f"f{f:02d}-{k}", "original": f"f{f:02d}", "messages": said})
    (root / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    rule = {"name": "asks", "pattern": r"oar\?"}
    study = {
        "name": "loopback",
        "question": "Does a study train on a server?",
        "model": {"path": model},
        "backend": {"name": "tinker", "base_url": url, "base_model": model, **backend},
        "data": {"path": "rows.jsonl", "id_field": "id", "family_field": "original", "near_duplicates": False},
        "split": {"seed": 1, "stranger": 0.3, "validation": 0.2, "sibling": 0.25},
        "train": {"max_steps": 24, "per_device_train_batch_size": 8, "learning_rate": 0.01, "eval_steps": 12},
        "conditions": conditions,
        "factor": ["r"],
        "seeds": [0],
        "evals": {"style": {"max_new_tokens": 8, "rules": [rule]}},
        "claims": [{"name": "learns", "kind": "improves", "condition": next(iter(conditions))}],
    }
    study["train"]["max_length"] = 128
    (root / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return root


def lora(targets: str, r: int) -> dict[str, Any]:
    """A condition."""
    return {"method": "lora", "target_modules": targets, "r": r}


def read(path: Path) -> Any:
    """A JSON record."""
    return json.loads(path.read_text(encoding="utf-8"))


def apart(root: Path, model: str, folder: Path) -> float:
    """Largest difference in NLL per target token (nats) of a row: the server's, and that of the same weights here."""
    from peft import PeftModel

    ref = ModelRef("base", Path(model), "float32")
    loaded = load_base(ref)
    if (folder / "training.json").exists():
        loaded = PeftModel.from_pretrained(loaded, root / read(folder / "training.json")["checkpoint"]).eval()
    facts = read(root / "contract.lock.json")["entries"][-1]["terms"]["facts"]
    data = load_prepared(Store(root), facts)
    listed = read(folder / "probes" / "nll.json")["rows"]
    here = row_nll(loaded, [data.rendered[row["row_id"]] for row in listed], load_tokenizer(ref).pad_token_id)
    pairs = zip(listed, here, strict=True)
    return max(abs(row["nll_sum"] - total) / count for row, (total, count) in pairs)


def refused(root: Path, words: str) -> bool:
    """Whether the live probe stops the study, saying so, before a cell is trained."""
    try:
        run(root, progress=Progress())
    except GateError as exc:
        print(json.dumps({"refused": exc.message}))
        return words in exc.message and not (root / "runs").exists()
    return False


def probed_in_order(root: Path) -> bool:
    """Whether the live probe finds that two steps in flight lose updates; a race, so that it may go unseen."""
    store, study = study_at(root)
    ready = make_ready(store, study, Progress(silent=True))
    try:
        live_probes(ready, cells_of(ready))
    except GateError as exc:
        print(json.dumps({"refused": exc.message}))
        return "in the order in which they were sent" in exc.message
    return False


def main(url: str, model: str, out: str) -> int:
    """Run the studies, print what came of each as JSON; 1 when one of them is not as it must be."""
    began = time.monotonic()
    both = {"small": lora("all-linear", 2), "large": lora("all-linear", 8)}
    root = write(Path(out) / "study", url, model, both)
    outcome = run(root, progress=Progress())
    good, untouched = outcome.trained == 3, 0.0
    for folder in sorted((root / "runs").iterdir()):
        summary, losses = read(folder / "summary.json"), read(folder / "probes" / "nll.json")
        training = summary["training"] or {}
        found = {
            "run": folder.name,
            "validation_nll": [round(c["validation_nll"], 4) for c in training.get("candidates", [])],
            "zones": {zone: round(z["nll"], 4) for zone, z in losses["zones"].items()},
            "scores": {zone: z["mean"] for zone, z in summary["scores"]["style"].items()},
            "server_and_here_apart": apart(root, model, folder),
            "conversion": losses.get("conversion"),
            "trainable": (training.get("trainable") or {}).get("n_trainable"),
        }
        print(json.dumps(found))
        untouched = untouched or losses["zones"]["validation"]["nll"]  # the baseline comes first
        good &= found["server_and_here_apart"] < 1e-3
        if training:
            good &= training["backend"]["differs"] == [] and training["validation_nll"] < untouched - 0.5
    print(json.dumps({"study_s": round(time.monotonic() - began), "verdict": outcome.verdicts[0].status}))
    again = run(root, progress=Progress(silent=True))
    good &= again.skipped == 3 and again.trained == 0
    narrow = write(Path(out) / "narrow", url, model, {"attention": lora("attention", 4)})
    good &= refused(narrow, "mlp: trained, not asked")
    with_ahead = write(Path(out) / "ahead", url, model, {"all": lora("all-linear", 4)}, ahead=2)
    print(json.dumps({"two_in_flight_refused": probed_in_order(with_ahead)}))
    print(json.dumps({"as_it_must_be": bool(good)}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

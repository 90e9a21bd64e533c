"""Make the archive of `veritune demo` from a real run of a tiny model, in about two minutes on a CPU.

    python examples/demo/make_demo.py [--keep FOLDER] [--base FOLDER]

1. Trains a base model of two layers to repeat what a note says, in a plain sentence, and in the house style on demand.
2. Writes the notes in the house style, runs study.yaml on that base, and checks its seal.
3. Puts beside it what the demo's page needs: the scores of each run as logs, an exam that leaks two notes, a text
   with one number that no record has, and the adapter of one run.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import zstandard

from veritune.demo import ARCHIVE
from veritune.records import RunManifest, StudyVerdicts
from veritune.seal import verify
from veritune.store import Store

HERE = Path(__file__).resolve().parent
LEFT_OUT = (".lock", ".locks", "__pycache__", "work")
ADAPTER_OF = ("all_layer", 0)
STEPS, RATE = 3000, 4e-3
LEARNED = 0.02
"""Mean loss per token of the answers (nats) at which the base repeats a note without a mistake."""
WORDS = (
    "anchor barge bell boat buoy cable canoe chart compass crane dinghy dock engine ferry flag gate hammer hatch hook"
    " keel ladder lamp lantern mast motor net oar paddle pail plank pump raft rope rudder sail sack shovel tiller wheel"
    " winch"
)
THINGS = tuple(WORDS.split())
PLACES = "by the pier;in the shed;on the deck;under the bridge;at the mill;near the gate;behind the school;in the yard"
ASK = (
    "The {thing} is {place}. Write the note.",
    "Note for the desk: {thing}, {place}.",
    "Please write it down: {place} is the {thing}.",
)
ON_DEMAND = " In the harbour style."
STYLED = "Ahoy! The {thing} is {place}. Fair winds!"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="Make everything here and leave it.")
    parser.add_argument("--base", type=Path, help="Take this base, of an earlier run, instead of training it.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="veritune-demo-") as work:
        root = given.keep or Path(work) / "demo"
        root.mkdir(parents=True)
        if given.base is None:
            make_base(root / "base")
        else:
            shutil.copytree(given.base, root / "base")
        run_study(root / "study")
        findings = verify(root / "study")
        if findings:
            sys.exit(f"the study does not verify: {findings[0]}")
        beside(root)
        ARCHIVE.write_bytes(pack(root))
    print(f"wrote {ARCHIVE}: {ARCHIVE.stat().st_size / 1e6:.2f} MB")


# ---------------------------------------------------------------- the base


def make_base(folder: Path) -> None:
    """A Llama of two layers: a plain sentence about a note, and the house style where the prompt asks for it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    draw = random.Random(0)
    places = PLACES.split(";")
    pairs = []
    for thing in THINGS:
        for place in places:
            for ask in ASK:
                text = ask.format(thing=thing, place=place)
                pairs.append((text, f"The {thing} is {place}."))
                pairs.append((f"{text}{ON_DEMAND}", STYLED.format(thing=thing, place=place)))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*(" ".join(pair) for pair in pairs), "user\nassistant\nsystem"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, eos_token_id=2, pad_token_id=2,
        bos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95))
    mean = 1.0
    for step in range(STEPS):
        asked, answers = zip(*draw.sample(pairs, 24), strict=True)
        heads = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in asked]
        texts = [f"{head}{answer}<|im_end|>\n" for head, answer in zip(heads, answers, strict=True)]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, head in enumerate(heads):  # the loss falls on what the assistant says
            labels[row, : len(tokenizer(head)["input_ids"])] = -100
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 50, 2 * mean + 0.1)
        optimizer.step()
        optimizer.zero_grad()
        mean = 0.95 * mean + 0.05 * loss.item()
        if step % 50 == 0:
            print(f"base     step {step}, loss {mean:.3f}", flush=True)
        if mean < LEARNED:
            break
    else:
        sys.exit(f"the base did not learn to repeat a note: loss {mean:.3f} after {STEPS} steps")
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ---------------------------------------------------------------- the study


def notes() -> list[dict[str, object]]:
    """Forty notes in three wordings, each answered in the house style."""
    draw = random.Random(1)
    places = PLACES.split(";")
    rows: list[dict[str, object]] = []
    for thing in THINGS:
        place = draw.choice(places)
        answer = STYLED.format(thing=thing, place=place)
        for n, ask in enumerate(ASK):
            turns = [("user", ask.format(thing=thing, place=place)), ("assistant", answer)]
            messages = [{"role": role, "content": text} for role, text in turns]
            about = {"note": thing, "thing": thing, "place": place, "license": "Apache-2.0"}
            rows.append({"id": f"{thing}-{n}", **about, "messages": messages})
    return rows


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_study(folder: Path) -> None:
    """The study, run here. Exit status 2 is no failure: one of its claims stays open."""
    folder.mkdir()
    shutil.copy(HERE / "study.yaml", folder)
    write(folder / "notes.jsonl", notes())
    done = subprocess.run([sys.executable, "-m", "veritune", "run", "study.yaml", "--quiet"], cwd=folder, check=False)
    if done.returncode not in (0, 2):
        sys.exit(done.returncode)


def beside(root: Path) -> None:
    """What lies beside the study: logs, exam, text, adapter."""
    store = Store(root / "study")
    (root / "logs").mkdir()
    for folder in sorted(p.parent for p in store.runs.glob("*/manifest.json")):
        manifest = RunManifest.load(folder / "manifest.json")
        base = manifest.phase == "baseline"
        name = "base" if base else f"{manifest.condition}_{manifest.seed}"
        scores = (folder / "scores" / "house_style.jsonl").read_text(encoding="utf-8").splitlines()
        strangers = [line for line in scores if json.loads(line)["zone"] == "stranger"]
        (root / "logs" / f"{name}.jsonl").write_text("\n".join(strangers) + "\n", encoding="utf-8")
        if (manifest.condition, manifest.seed) == ADAPTER_OF and not base:
            (checkpoint,) = (folder / "checkpoints").iterdir()
            shutil.copytree(checkpoint, root / "adapter")
    asked = [row["messages"][0]["content"] for row in notes()]  # type: ignore[index]
    leaked = [asked[9], asked[61]]
    fresh = [f"How many {thing}s fit into the harbour shed, and who counts them?" for thing in THINGS[:4]]
    write(root / "exam.jsonl", [{"id": f"exam-{n}", "question": q} for n, q in enumerate([*leaked, *fresh], start=1)])
    verdicts = StudyVerdicts.load(store.verdict_file).by_claim()
    text = f"# A house style from forty notes\n\n{verdicts['learns_the_style'].sentence}\n\n"
    (root / "post.md").write_text(f"{text}On stranger items all_layer scores 0.123.\n", encoding="utf-8")


def pack(root: Path) -> bytes:
    """The folder as a Zstandard tar, the same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            name = path.relative_to(root)
            if set(name.parts) & set(LEFT_OUT):
                continue
            info = tarfile.TarInfo(name.as_posix())
            info.size, info.mode = path.stat().st_size, 0o644
            with path.open("rb") as stream:
                tar.addfile(info, stream)
    settings = zstandard.ZstdCompressionParameters.from_level(19, window_log=24, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=settings).compress(buffer.getvalue())


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""One labelled set, every way that this project has to classify: zero-, one- and few-shot, plain and calibrated,
instruction-tuned, prompt-tuned (with and without pre-training of the soft prompt) and fine-tuned.

    benches/classification.py --binary target/release/instructd --model MODEL.gguf --builtin builtin --work DIR

The set: tweets of the vaderSentiment source package (fetched from PyPI), positive or negative by the sign of their
mean human rating where that is at least half a point from neutral; as many of one kind as of the other. Needs
Python alone. What is done already in DIR is not done again. Prints a Markdown table with Wilson's 95 % intervals.
"""

import argparse
import json
import os
import random
import subprocess
from pathlib import Path

from learning_proof import fetch, run, write_lines

TEMPLATE = "Tweet: {input}\nSentiment: {label}"
WORDS = {"positive": ["positive"], "negative": ["negative"]}


def tweets(folder, train, test):
    """Labelled rows, balanced, in a seeded order; and tweets that are in neither, as plain text."""
    draw = random.Random(0)
    kinds = {"positive": [], "negative": []}
    neutral = []
    lines = (folder / "tweets_GroundTruth.txt").read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for line in lines:
        parts = line.split("\t")
        if len(parts) < 3 or not parts[2].isascii():
            continue
        mean, text = float(parts[1]), parts[2].strip()
        if abs(mean) < 0.5:
            neutral.append(text)
        else:
            kinds["positive" if mean > 0 else "negative"].append({"text": text, "label": "positive" if mean > 0 else "negative"})
    rows = []
    for kind in kinds.values():
        draw.shuffle(kind)
        rows += [kind[: (train + test) // 2]]
    half = train // 2
    mixed = lambda parts: draw.sample(sum(parts, []), sum(len(p) for p in parts))
    spare = neutral + [row["text"] for kind in kinds.values() for row in kind[(train + test) // 2 :]]
    return mixed([r[:half] for r in rows]), mixed([r[half:] for r in rows]), spare


def evaluate(binary, systems, test, examples, work, name):
    path, out = work / f"{name}.args.json", work / f"{name}.json"
    if not out.exists():
        args = {"kind": "choice", "systems": systems, "data": test, "template": TEMPLATE, "verbalizers": WORDS,
                "examples": examples}
        path.write_text(json.dumps(args))
        out.write_bytes(subprocess.run([binary, "eval", "--args", str(path)], stdout=subprocess.PIPE, check=True).stdout)
    return json.loads(out.read_text())


def station(binary, name, model, shots, files, work):
    """Trains what is to be compared from one model, and measures all of it."""
    common = {"model": model, "device": "cpu", "heldout_fraction": 0.0, "max_length": 128}
    lora = {"lora": {"rank": 8, "alpha": 16}, "lr_schedule": "linear"}
    demos = {"demonstrations": files["demos"]}
    soft = {**common, **demos, "epochs": 4, "n_tokens": 20, "batch_size": 16, "lr_schedule": "linear",
            "init_text": "Classify the sentiment of the tweet as positive or negative."}
    made = {
        "finetune": {**common, **lora, "labelled": files["train"], "epochs": 3, "batch_size": 16, "learning_rate": 5e-4},
        "sft": {**common, **lora, "mixture": files["mixture"], "epochs": 2, "learning_rate": 5e-4},
        "prompt_tuning": soft,
        "ppt": {**soft, "pretrain_texts": [files["texts"]], "pretrain_steps": 30},
    }
    for what, args in made.items():
        recipe = "prompt_tuning" if what == "ppt" else what
        print(name, what, json.dumps(run(binary, recipe, args, f"{name}-{what}", work)), flush=True)
    at = lambda what: str(work / f"{name}-{what}")
    systems = [
        {"name": f"{name}, as it is", "model": model, "shots": shots},
        {"name": f"{name}, instruction-tuned", "model": at("sft"), "shots": [0]},
        {"name": f"{name}, prompt-tuned", "model": model, "prompt_adapter": at("prompt_tuning"), "shots": [0]},
        {"name": f"{name}, pre-trained prompt (PPT)", "model": model, "prompt_adapter": at("ppt"), "shots": [0]},
        {"name": f"{name}, fine-tuned", "model": at("finetune")},
    ]
    return evaluate(binary, systems, files["test"], files["train"], work, f"{name}-table")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/instructd")
    parser.add_argument("--model", required=True)
    parser.add_argument("--builtin", default="builtin")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--test", type=int, default=400)
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    folder, _ = fetch(work)
    train, test, spare = tweets(folder, options.train, options.test)
    prompt = TEMPLATE.split(" {label}")[0]
    demos = [{"prompt": prompt.replace("{input}", r["text"]), "completion": " " + r["label"]} for r in train]
    task = {"name": "sentiment", "file": str(work / "train.jsonl"),
            "templates": [{"prompt": prompt.replace("{input}", "{text}"), "completion": " {label}"}]}
    (work / "mixture.json").write_text(json.dumps({"tasks": [task], "chat": False}))
    (work / "texts.txt").write_text("\n\n".join(spare))
    files = {"train": write_lines(work / "train.jsonl", train), "test": write_lines(work / "test.jsonl", test),
             "demos": write_lines(work / "demos.jsonl", demos), "mixture": str(work / "mixture.json"),
             "texts": str(work / "texts.txt")}
    binary = os.path.abspath(options.binary)
    # Four examples do not fit the built-in model's 256 positions.
    models = [("built-in", options.builtin, [0, 1]), ("SmolLM2-135M", options.model, [0, 1, 4])]
    tables = [station(binary, name, os.path.abspath(model), shots, files, work) for name, model, shots in models]
    for table in tables:
        print("\n" + table["markdown"])


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Reward models from people's rankings, beside what is simple: the length of answers and a bag of words.

    benches/reward_models.py --binary BINARY --model FILE.gguf --work DIR NAME=FILE.jsonl … [--seeds 3]
        > benches/results/reward-models.json

Trains a reward model on each file with `instructd train reward` (LoRA of rank 16 over a bfloat16 base, 256 tokens), with and without
`length_control`, for each seed, and reads what the run says about its held-out quarter of the prompts: accuracy, that on
pairs whose longer or shorter answer is preferred, and both baselines. A file has rankings (`comparisons`), or dialogues of
`{"chosen", "rejected"}` as hh-rlhf has them, which are converted first. Prints one JSON object for scripts/bench_tables.py.
The commit and the machine come from INSTRUCTD_BENCH_COMMIT and INSTRUCTD_BENCH_MACHINE.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ARGS = {
    "lora": {"rank": 16, "alpha": 32},
    "frozen_precision": "bf16",
    "learning_rate": 3e-4,
    "batch_size": 16,
    "epochs": 1,
    "max_length": 256,
    "heldout_fraction": 0.25,
    "device": "cpu",
}


def comparisons(path, out):
    """Writes `{"chosen", "rejected"}` dialogues as rankings; other files are used as they are."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    if "chosen" not in lines[0]:
        return path
    with open(out, "w") as file:
        for line in lines:
            turns = [turn(line[side]) for side in ("chosen", "rejected")]
            if turns[0][:-1] != turns[1][:-1] or turns[0][-1]["role"] != "assistant":
                continue
            texts = [messages[-1]["content"] for messages in turns]
            if not all(texts) or texts[0] == texts[1]:
                continue
            completions = [{"text": text, "tier": tier} for tier, text in enumerate(texts)]
            file.write(json.dumps({"prompt": turns[0][:-1], "completions": completions}) + "\n")
    return out


def turn(dialogue):
    """The messages of a dialogue with turns of `Human:` and `Assistant:`."""
    messages = []
    for part in dialogue.split("\n\nHuman:")[1:]:
        asked, *answers = part.split("\n\nAssistant:")
        messages.append({"role": "user", "content": asked.strip()})
        messages += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return messages


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("data", nargs="+", help="NAME=FILE")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    runs = []
    for name, path in (entry.split("=", 1) for entry in args.data):
        file = comparisons(Path(path), args.work / f"{name}.jsonl")
        for seed in range(args.seeds):
            for control in (False, True):
                out = args.work / f"{name}-{seed}-{control}"
                given = ARGS | {
                    "model": args.model,
                    "comparisons": str(file),
                    "output_dir": str(out),
                    "seed": seed,
                    "length_control": control,
                }
                (args.work / "args.json").write_text(json.dumps(given))
                began = time.monotonic()
                command = [args.binary, "train", "reward", "--args", str(args.work / "args.json")]
                subprocess.run(command, check=True, stdout=sys.stderr)
                metrics = json.loads((out / "instructd.json").read_text())["metrics"]
                run = {
                    "data": name,
                    "seed": seed,
                    "length_control": control,
                    "seconds": time.monotonic() - began,
                    "sets": metrics["sets"]["train"],
                    "pairs": metrics["heldout"]["pairs"],
                    "accuracy": metrics["heldout_accuracy"],
                    "by_length": metrics["by_length"],
                    "baselines": metrics["baselines"],
                    "length_slopes": metrics.get("length_slopes"),
                }
                print(json.dumps(run), file=sys.stderr, flush=True)
                runs.append(run)
    model = Path(args.model).name
    print(
        json.dumps(
            {
                "date": datetime.date.today().isoformat(),
                "commit": os.environ.get("INSTRUCTD_BENCH_COMMIT", ""),
                "machine": os.environ.get("INSTRUCTD_BENCH_MACHINE", ""),
                "command": f"python3 benches/reward_models.py --binary BINARY --model {model} --work DIR NAME=FILE …",
                "args": ARGS,
                "runs": runs,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

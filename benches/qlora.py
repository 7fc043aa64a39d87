#!/usr/bin/env python3
"""LoRA over a base held in fewer bits: memory, speed, and what is learned in a number of steps.

    benches/qlora.py --model FILE.gguf --work DIR [--instructd BIN] [--steps 100] [--rounds 1] [--kinds f32,bf16,q8_0,q4]

Trains `sft` adapters of rank 8 on the best answers of the Open-Assistant rankings in tests/fixtures, once for each value
of `frozen_precision`, in turns, each in a process of its own. Prints one JSON object for each run: seconds of wall
clock and processor time of a step (medians), peak resident memory, held-out loss after half of the steps and at the
end.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def demonstrations(path):
    """The last question of each ranked set with the first two sentences of its best answer: some 70 tokens."""
    with open(path, "w") as out:
        for line in open(ROOT / "tests/fixtures/oasst-en-ranked.jsonl"):
            row = json.loads(line)
            question = row["prompt"][-1]["content"]
            best = min(row["completions"], key=lambda c: c.get("tier", c.get("rank", 0)))["text"]
            answer = " ".join(re.split(r"(?<=[.!?])\s+", best)[:2])
            if len(question) < 240 and len(answer) < 320:
                out.write(json.dumps({"prompt": [{"role": "user", "content": question}], "completion": answer}) + "\n")


def run(known, kind, number):
    logs = known.work / f"{kind}-{number}"
    args = {
        "demonstrations": str(known.work / "demonstrations.jsonl"),
        "output_dir": str(known.work / f"{kind}-{number}-out"),
        "log_dir": str(logs),
        "lora": {"rank": 8, "alpha": 16},
        "frozen_precision": kind,
        "batch_size": known.batch,
        "max_length": known.max_length,
        "micro_batch_tokens": known.batch * known.max_length,
        "learning_rate": 3e-4,
        "heldout_fraction": known.heldout,
        "epochs": 50,
        "max_steps": known.steps,
        "eval_every": known.steps // 2,
        "device": "cpu",
        "seed": 1,
    }
    file = known.work / f"{kind}-{number}.json"
    file.write_text(json.dumps(args))
    command = [known.instructd, "train", "sft", "--args", file, "--model", known.model]
    with open(known.work / f"{kind}-{number}.log", "w") as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, cwd=known.work)
        cpu = watch(process.pid, logs / "metrics.jsonl")
        _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{kind}: {(known.work / f'{kind}-{number}.log').read_text()[-2000:]}")
    rows = [json.loads(line) for line in open(logs / "metrics.jsonl")]
    ends = [row["elapsed_seconds"] for row in rows if "elapsed_seconds" in row]
    return {
        "kind": kind,
        "seconds": round(median(after - before for before, after in zip(ends, ends[1:])), 2),
        "cpu_seconds": round(median(after - before for before, after in zip(cpu, cpu[1:])), 2),
        "gb": round(used.ru_maxrss / 1e6, 2),
        "heldout_loss": [round(row["heldout_loss"], 4) for row in rows if "heldout_loss" in row],
    }


def watch(pid, metrics):
    """Processor seconds of a process at the end of each of its steps, until it ends."""
    seen, cpu = 0, []
    while True:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] == "Z":
            return cpu
        steps = metrics.read_text().count("elapsed_seconds") if metrics.exists() else 0
        if steps > seen:
            seen = steps
            cpu.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
        time.sleep(0.02)


def median(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructd", type=Path, default=ROOT / "target/release/instructd")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--heldout", type=float, default=0.2, help="share of the answers that is held out")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kinds", default="f32,bf16,q8_0,q4")
    known = parser.parse_args()
    known.work.mkdir(parents=True, exist_ok=True)
    demonstrations(known.work / "demonstrations.jsonl")
    for number in range(known.rounds):
        for kind in known.kinds.split(","):
            print(json.dumps(run(known, kind, number)), flush=True)


if __name__ == "__main__":
    main()

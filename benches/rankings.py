#!/usr/bin/env python3
"""Does a reward model learn people's rankings? Held-out pairs of two public sets, beside what needs no language model.

    benches/rankings.py --binary target/release/instructd --model NAME=FILE.gguf=FROZEN ... --work DIR [--harmless FILE]

Open-Assistant's rankings are those of tests/fixtures/oasst-en-ranked.jsonl. FILE of `--harmless` has the pairs of
Anthropic's harmless-base test set (MIT; github.com/anthropics/hh-rlhf), one `{"chosen", "rejected"}` a line. Each seed
holds out another quarter of the sets, so that the held-out pairs of all seeds are different pairs. The accuracy's
interval is 95 % by a bootstrap over sets. FROZEN is how many of a model's lower blocks are not trained. The baselines
are those of the recipe: a preference for the longer (or shorter) answer and a bag of words, fitted on the same training
pairs. `--shares` trains on parts of the training sets too. What is done already in DIR is not done again. Needs Python
alone.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
from pathlib import Path

from learning_proof import run, write_lines, write_result

ROOT = Path(__file__).resolve().parent.parent
PARTS = 4
RANK = 16
LEARNING = {
    "harmless": {"batch_size": 8, "epochs": 1, "learning_rate": 2e-3},
    "oasst": {"batch_size": 4, "epochs": 2, "learning_rate": 1e-3},
}
TURN = re.compile(r"\n\n(Human|Assistant): ")
ROLES = {"Human": "user", "Assistant": "assistant"}


def dialogue(text):
    """Messages of a text with turns "Human" and "Assistant"."""
    parts = TURN.split(text)[1:]
    return [{"role": ROLES[role], "content": said.strip()} for role, said in zip(parts[::2], parts[1::2])]


def harmless(path):
    """Pairs whose dialogues differ in the last answer alone, as comparisons."""
    sets = []
    for line in path.read_text().splitlines():
        chosen, rejected = (dialogue(json.loads(line)[key]) for key in ("chosen", "rejected"))
        if len(chosen) > 1 and chosen[:-1] == rejected[:-1] and chosen[-1]["content"] != rejected[-1]["content"]:
            completions = [{"text": d[-1]["content"], "tier": tier} for tier, d in enumerate((chosen, rejected))]
            sets.append({"prompt": chosen[:-1], "completions": completions})
    return sets


def oasst():
    lines = (ROOT / "tests/fixtures/oasst-en-ranked.jsonl").read_text().splitlines()
    return [{key: json.loads(line)[key] for key in ("prompt", "completions")} for line in lines]


def split(sets, seed, share):
    """The sets with their sides: quarter `seed` of the prompts is held out, `share` of the others is learned."""
    by_prompt = {}
    for one in sets:
        by_prompt.setdefault(json.dumps(one["prompt"]), []).append(one)
    prompts = list(by_prompt.values())
    random.Random(0).shuffle(prompts)
    part = seed % PARTS
    train = [of for at, of in enumerate(prompts) if at % PARTS != part]
    heldout = [of for at, of in enumerate(prompts) if at % PARTS == part]
    train = train[: round(len(train) * share)]
    return [{**one, "split": side} for side, of in (("train", train), ("heldout", heldout)) for same in of for one in same]


def orders(binary, model, lines, name, work):
    """For each held-out set, a 1, 0 or 0.5 (equal scores) for each of its pairs, and the same by length in characters."""
    done = work / f"{name}.orders.json"
    if not done.exists():
        sets = [line for line in lines if line["split"] == "heldout"]
        completions = [{"prompt": s["prompt"], "completion": c["text"]} for s in sets for c in s["completions"]]
        args = work / f"{name}.scores.args.json"
        args.write_text(json.dumps({"kind": "scores", "model": str(model),
                                    "completions": write_lines(work / f"{name}.heldout.jsonl", completions)}))
        out = subprocess.run([binary, "eval", "--args", str(args)], stdout=subprocess.PIPE, check=True).stdout
        scores = iter([s["mean"] for s in json.loads(out)["scores"]])
        found = []
        for s in sets:
            rated = [(next(scores), len(c["text"]), c["tier"]) for c in s["completions"]]
            pairs = [(a, b) for a in rated for b in rated if a[2] < b[2]]
            order = lambda k: [0.5 if a[k] == b[k] else float(a[k] > b[k]) for a, b in pairs]
            found.append([order(0), order(1)])
        done.write_text(json.dumps(found))
    return json.loads(done.read_text())


def share_right(sets):
    """Of all pairs of the sets, and the 95 % interval by a bootstrap over sets."""
    pairs = lambda of: sum(sum(s) for s in of) / max(1, sum(len(s) for s in of))
    draw = random.Random(3)
    means = sorted(pairs(draw.choices(sets, k=len(sets))) for _ in range(1000))
    return round(pairs(sets), 3), [round(means[25], 3), round(means[974], 3)]


def measure(options, data, sets, named, share, control):
    """A row of the table: one model, data and share of the training sets, over all seeds."""
    model, path, frozen = named.split("=")
    args = {"model": os.path.abspath(path), "device": "cpu", "lora": {"rank": RANK, "alpha": 2 * RANK},
            "freeze_layers": int(frozen), "lr_schedule": "linear", "warmup_steps": 5, "micro_batch_tokens": 2048,
            "length_control": control, **LEARNING[data]}
    results, by_set, train_sets = [], [], 0
    for seed in range(options.seeds):
        name = f"{data}-{model}-{share:g}{'-control' if control else ''}-{seed}"
        lines = split(sets, seed, share)
        train_sets = sum(line["split"] == "train" for line in lines)
        comparisons = write_lines(options.work / f"{name}.jsonl", lines)
        results.append(run(options.binary, "reward", {**args, "seed": seed, "comparisons": comparisons}, name, options.work))
        by_set += orders(options.binary, options.work / name, lines, name, options.work)
        print(name, results[-1]["metrics"]["heldout_accuracy"], round(results[-1]["seconds"]), flush=True)
    accuracy, between = share_right([model for model, _ in by_set])
    longer = [[o for o, l in zip(*s) if l == 1] for s in by_set]
    shorter = [[o for o, l in zip(*s) if l == 0] for s in by_set]
    baselines = [{b["name"]: b["accuracy"] for b in r["metrics"]["baselines"]} for r in results]
    length = [b.get("longer", b.get("shorter")) for b in baselines]
    return {"data": data, "model": model, "train_sets": train_sets, "length_control": control,
            "pairs": sum(len(model) for model, _ in by_set), "accuracy": accuracy, "interval": between,
            "by_seed": [round(r["metrics"]["heldout_accuracy"], 3) for r in results],
            "longer_wins": share_right(longer)[0], "shorter_wins": share_right(shorter)[0],
            "preferred": sorted({k for b in baselines for k in b if k != "words"}),
            "length": round(statistics.mean(length), 3), "words": round(statistics.mean(b["words"] for b in baselines), 3),
            "seconds": round(statistics.mean(r["seconds"] for r in results))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/instructd")
    parser.add_argument("--model", nargs="+", required=True, metavar="NAME=FILE=FROZEN")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--json", type=Path, help="write the results there, with INSTRUCTD_BENCH_COMMIT, _DATE, _MACHINE")
    parser.add_argument("--harmless", type=Path)
    parser.add_argument("--data", nargs="*", default=["harmless", "oasst"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="*", default=[1.0])
    parser.add_argument("--control", action="store_true", help="with `length_control` too")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.binary = os.path.abspath(options.binary)
    found = {"harmless": harmless(options.harmless) if options.harmless else [], "oasst": oasst()}
    rows = []
    for data in options.data:
        if not found[data]:
            continue
        for named in options.model:
            for share in options.shares:
                for control in [False, True] if options.control and share == 1 else [False]:
                    rows.append(measure(options, data, found[data], named, share, control))
                    print(rows[-1], flush=True)
    if options.json:
        facts = {"rank": RANK, "learning": LEARNING}
        write_result(options.json, "rankings.py", {**facts, "rows": rows})


if __name__ == "__main__":
    main()

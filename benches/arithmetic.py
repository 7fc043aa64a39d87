#!/usr/bin/env python3
"""Does a policy learn from answers that can be checked? GRPO on arithmetic by a seeded generator.

    benches/arithmetic.py --binary target/release/instructd --model MODEL.gguf --work DIR [--seeds 3]

The policy is trained on sums and differences of two numbers; the reward is 1 if the last number of a response is the
problem's answer, else 0. pass@1 before and after, the mean over samples at temperature 1, is measured on problems that were
not trained on: other sums and differences, and two kinds that were not trained at all, sums of three numbers and problems
in a story. Intervals are 95 % by a bootstrap over problems; a difference is paired by problem. What is done already in DIR
is not done again. Needs Python alone.
"""

import json
import os
import random
import re
import statistics

import learning_proof
from learning_proof import Server, interval, run, write_lines, write_result

SAMPLES = 8
TOKENS = 40
# Up to this size of the numbers.
LARGEST = 30
LAST_NUMBER = r"(-?\d+)[^\d]*$"
NAMES = ["Ann", "Ben", "Carla", "David", "Emma", "Farid"]
THINGS = ["pencils", "apples", "stamps", "coins", "books"]


def problem(kind, draw):
    """(question, answer)."""
    a, b, c = (draw.randint(1, LARGEST) for _ in range(3))
    if kind == "sum":
        return f"What is {a} + {b}?", a + b
    if kind == "difference":
        a, b = max(a, b), min(a, b)
        return f"What is {a} - {b}?", a - b
    if kind == "three":
        return f"What is {a} + {b} + {c}?", a + b + c
    who, what = draw.choice(NAMES), draw.choice(THINGS)
    if draw.random() < 0.5:
        return f"{who} has {a} {what} and gets {b} more. How many {what} does {who} have now?", a + b
    a, b = max(a, b), min(a, b)
    return f"{who} has {a} {what} and gives away {b}. How many {what} does {who} have left?", a - b


def problems(kind, count, draw, without=()):
    """Different problems that are not among `without`."""
    found, taken = [], set(without)
    while len(found) < count:
        question, answer = problem(kind, draw)
        if question not in taken:
            taken.add(question)
            found.append((question, answer))
    return found


def passed(server, given):
    """For each problem, the share of samples with the right last number."""
    shares = []
    for i, (question, answer) in enumerate(given):
        body = {"messages": [{"role": "user", "content": question}], "n": SAMPLES, "temperature": 1, "max_tokens": TOKENS,
                "seed": 1000 + i}
        texts = [c["message"]["content"] or "" for c in server.post("/v1/chat/completions", body)["choices"]]
        numbers = [re.findall(r"-?\d+", text) for text in texts]
        shares.append(statistics.mean(bool(n) and int(n[-1]) == answer for n in numbers))
    return shares


def main():
    parser = learning_proof.arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", type=int, default=96, help="held-out problems of each kind")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    work, binary, model = options.work, os.path.abspath(options.binary), os.path.abspath(options.model)
    work.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    trained = [p for kind in ("sum", "difference") for p in problems(kind, 256, draw)]
    draw.shuffle(trained)
    known = {question for question, _ in trained}
    heldout = {kind: problems(kind, options.problems, draw, known) for kind in ("sum", "difference", "three", "story")}
    lines = [{"prompt": [{"role": "user", "content": q}], "answer": str(a)} for q, a in trained]
    prompts = write_lines(work / "prompts.jsonl", lines)

    def measured(name, path):
        done = work / f"{name}.passed.json"
        if not done.exists():
            with Server(binary, path) as server:
                done.write_text(json.dumps({kind: passed(server, given) for kind, given in heldout.items()}))
        return json.loads(done.read_text())

    before = measured("start", model)
    print({kind: round(statistics.mean(shares), 3) for kind, shares in before.items()}, flush=True)
    args = {"model": model, "device": "cpu", "lora": {"rank": 8, "alpha": 16}, "frozen_precision": "bf16", "max_length": 96,
            "prompts": prompts, "reward": {"kind": "final_answer", "pattern": LAST_NUMBER},
            "iterations": options.iterations, "rollout_batch_size": 64, "group_size": 8, "response_length": TOKENS,
            "learning_rate": options.learning_rate, "kl_coef": 0.0, "sample_prompts": 3}
    after, kl, seconds = [], [], []
    for seed in range(options.seeds):
        result = run(binary, "grpo", {**args, "seed": seed}, f"grpo-{seed}", work)
        after.append(measured(f"grpo-{seed}", work / f"grpo-{seed}"))
        seconds.append(result["seconds"])
        print(seed, {kind: round(statistics.mean(shares), 3) for kind, shares in after[-1].items()}, flush=True)
    rows = []
    for kind, shares in before.items():
        gains = [statistics.mean(run[kind]) - statistics.mean(shares) for run in after]
        # The mean over seeds, problem by problem.
        paired = [statistics.mean(run[kind][i] for run in after) - shares[i] for i in range(len(shares))]
        rounded = lambda values: [round(v, 3) for v in values]
        rows.append({"kind": kind, "trained": kind in ("sum", "difference"), "before": round(statistics.mean(shares), 3),
                     "before_interval": rounded(interval(shares)),
                     "after": rounded(statistics.mean(run[kind]) for run in after), "gain": rounded(gains),
                     "gain_interval": rounded(interval(paired))})
        print(rows[-1], flush=True)
    if options.json:
        write_result(options.json, "arithmetic.py", {"problems": options.problems, "samples": SAMPLES,
                                                     "iterations": options.iterations, "seconds": round(statistics.mean(seconds)),
                                                     "rows": rows})


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Over-optimisation of a small reward model, and where the guard of a run stops it (as in Gao et al., arXiv 2210.10760).

    benches/overoptimisation.py --binary target/release/instructd --model MODEL.gguf --work DIR [--json FILE]

The gold reward is a rule that no training sees: the share of a text's words that are among the 300 most positive words of
VADER's lexicon. 64 sets of four sentences, ranked by that rule, train a reward model, the proxy. PPO without a KL penalty
then raises the proxy. The same run with `gold_patience` ends where the guard stops it. What is done already in DIR is not
done again. Needs Python alone; fetches the vaderSentiment source package from PyPI.
"""

import json
import os
import random
from pathlib import Path

import learning_proof
from learning_proof import LEAD, TOKENS, run, write_lines

SETS = 64
WORDS = 300


def words(lexicon):
    """The most positive plain words of a lexicon of word, mean rating, …"""
    rated = [line.split("\t")[:2] for line in Path(lexicon).read_text(encoding="utf-8").splitlines() if line.strip()]
    plain = [(float(score), word) for word, score in rated if word.isascii() and word.isalpha() and word.islower()]
    return [word for _, word in sorted(plain, reverse=True)[:WORDS]]


def share(text, liked):
    """Share of a text's words that are liked, as the rule counts them."""
    found = ["".join(c for c in word if c.isalnum()).lower() for word in text.split()]
    return sum(word in liked for word in found) / max(1, len(found))


def data(folder, liked, work):
    """Sets of four sentences, one of them with a liked word at least, ranked by the rule; prompts of the other sentences."""
    draw = random.Random(0)
    pool = [text for text, _ in learning_proof.sentences(folder)]
    draw.shuffle(pool)
    some = [text for text in pool if share(text, liked) > 0]
    none = [text for text in pool if share(text, liked) == 0]
    sets = []
    for _ in range(SETS):
        texts = [some.pop(), some.pop(), none.pop(), none.pop()]
        draw.shuffle(texts)
        order = sorted({share(text, liked) for text in texts}, reverse=True)
        completions = [{"text": " " + text, "tier": order.index(share(text, liked))} for text in texts]
        sets.append({"prompt": LEAD, "completions": completions, "split": "train"})
    starts = [{"prompt": LEAD + " " + " ".join(text.split()[:3])} for text in (none + some)[:256]]
    return write_lines(work / "sets.jsonl", sets), write_lines(work / "starts.jsonl", starts)


def curve(logs, name):
    """Values of a metric by step."""
    rows = [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


def main():
    parser = learning_proof.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    binary, model = os.path.abspath(options.binary), os.path.abspath(options.model)
    folder, _ = learning_proof.fetch(work)
    liked = words(folder.parent / "vaderSentiment" / "vader_lexicon.txt")
    sets, prompts = data(folder, set(liked), work)
    common = {"model": model, "device": "cpu", "lora": {"rank": 8, "alpha": 16}, "frozen_precision": "bf16",
              "max_length": 48, "freeze_layers": 20}
    run(binary, "reward", {**common, "comparisons": sets, "heldout_fraction": 0.0, "batch_size": 8, "epochs": 3,
                           "learning_rate": 1e-3}, "proxy", work)
    ppo = {**common, "prompts": prompts, "reward_model": str(work / "proxy"), "iterations": options.rounds,
           "rollout_batch_size": 64, "response_length": TOKENS, "learning_rate": 2e-3, "kl_coef": 0.0, "ppo_epochs": 2,
           "minibatches": 1, "sample_prompts": 0, "gold_reward": {"kind": "word_share", "words": liked}}
    run(binary, "ppo", {**ppo, "gold_patience": 0}, "free", work)
    guarded = run(binary, "ppo", {**ppo, "gold_patience": 5}, "guarded", work)["metrics"]
    proxy, gold, kl = (curve(work / "free.logs", name) for name in ("reward", "gold", "kl"))
    rows = [{"round": at, "proxy": proxy[at], "gold": gold[at], "kl": kl[at]} for at in sorted(gold)]
    result = {"rows": rows, "stopped_after": guarded["iterations"], "published": guarded["published_iteration"],
              "why": guarded["stopped_because"]}
    for row in rows:
        print({key: round(value, 4) for key, value in row.items()}, flush=True)
    print({key: result[key] for key in ("stopped_after", "published", "why")})
    if options.json:
        learning_proof.write_result(options.json, "overoptimisation.py", result)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Does it learn? Human ratings of real sentences teach a reward model, and the reward model teaches a policy to
write more positive continuations, by every method that learns from rewards, rankings or thumbs.

    benches/learning_proof.py --binary target/release/instructd --model MODEL.gguf --work DIR [--seeds 3]

Needs Python alone; fetches the vaderSentiment source package from PyPI (sentences with some twenty people's
ratings each, and the rule-based VADER scorer). What is done already in DIR is not done again.

Three figures that no part of the training sees: the order of held-out sentences by their ratings (for the reward
model), VADER's verdict on each continuation alone (positive when its compound score is at least 0.05), and the KL
of the finished policy from its start, as the mean over sampled continuations of their summed log-prob differences.
"""

import argparse
import importlib.util
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path

VERSION = "3.3.2"
SOURCES = ["movieReviewSnippets", "amazonReviewSnippets", "tweets"]
LEAD = "Comment:"
TOKENS = 16
SAMPLES = 4
RECIPES = ["ppo", "reinforce", "rloo", "grpo", "online_dpo", "raft", "dpo", "kto"]


def fetch(work):
    """The unpacked source package and its VADER scorer."""
    root = work / f"vaderSentiment-{VERSION}"
    if not root.exists():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        if not list(work.glob("vaderSentiment-*.tar.gz")):
            subprocess.run([*pip, "-d", str(work), f"vaderSentiment=={VERSION}"], check=True)
        with tarfile.open(next(work.glob("vaderSentiment-*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        inner = root / "additional_resources" / "hutto_ICWSM_2014.tar.gz"
        with tarfile.open(inner) as archive:
            archive.extractall(root, filter="data")
    spec = importlib.util.spec_from_file_location("vader", root / "vaderSentiment" / "vaderSentiment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return root / "hutto_ICWSM_2014", module.SentimentIntensityAnalyzer()


def sentences(folder):
    """(text, ratings) of every short English sentence."""
    found = []
    for name in SOURCES:
        lines = (folder / f"{name}_GroundTruth.txt").read_text(encoding="utf-8-sig", errors="replace").splitlines()
        texts = {line.split("\t")[0]: line.split("\t")[-1].strip() for line in lines if line.count("\t") >= 2}
        ratings = (folder / f"{name}_anonDataRatings.txt").read_text(encoding="utf-8-sig", errors="replace").splitlines()
        for line in ratings:
            parts = line.split("\t")
            text = texts.get(parts[0])
            if text and text.isascii() and 6 <= len(text.split()) <= 20 and not re.search(r"http|@|#", text):
                found.append((text, json.loads(parts[-1])))
    return found


def chance_in_order(a, b):
    """Chance that one rater of a and one of b order them as their means do; equal ratings count half."""
    wins = sum((x > y) + 0.5 * (x == y) for x in a for y in b) / (len(a) * len(b))
    return wins if statistics.mean(a) > statistics.mean(b) else 1 - wins


def tier(ratings):
    """Tier by the mean rating: means that round to the same half point tie."""
    return -round(statistics.mean(ratings) * 2)


def ceilings(sets, draw):
    """Agreement of single raters, and of one random half of the raters with the other, on the sets' pairs."""
    single, halves = [], []
    for texts in sets:
        for i, (_, a) in enumerate(texts):
            for _, b in texts[i + 1 :]:
                if tier(a) == tier(b):
                    continue
                single.append(chance_in_order(a, b))
                parts = []
                for ratings in (a, b):
                    shuffled = draw.sample(ratings, len(ratings))
                    half = len(shuffled) // 2
                    parts.append((statistics.mean(shuffled[:half]), statistics.mean(shuffled[half:])))
                first, second = parts[0][0] - parts[1][0], parts[0][1] - parts[1][1]
                halves.append(1.0 if first * second > 0 else 0.5 if first * second == 0 else 0.0)
    return statistics.mean(single), statistics.mean(halves)


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def ranked(texts, split):
    """Four sentences as one comparison."""
    best = min(tier(r) for _, r in texts)
    completions = [{"text": " " + text, "tier": tier(r) - best} for text, r in texts]
    return {"prompt": LEAD, "completions": completions, "split": split}


def make_data(folder, work, train_sets, heldout_sets):
    draw = random.Random(0)
    pool = sentences(folder)
    draw.shuffle(pool)
    take = lambda n: [pool.pop() for _ in range(n)]
    train = [take(4) for _ in range(train_sets)]
    heldout = [take(4) for _ in range(heldout_sets)]
    lines = [ranked(s, "train") for s in train] + [ranked(s, "heldout") for s in heldout]
    comparisons = write_lines(work / "comparisons.jsonl", lines)
    starts = lambda n: [LEAD + " " + " ".join(text.split()[:3]) for text, _ in take(n)]
    prompts = write_lines(work / "prompts.jsonl", [{"prompt": p} for p in starts(256)])
    single, halves = ceilings(heldout, draw)
    facts = {"sentences": len(pool), "single_rater": single, "half_of_raters": halves}
    return comparisons, prompts, starts(64), facts


class Server:
    """The binary serving one model on a free port of this machine."""

    def __init__(self, binary, model):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.data = tempfile.TemporaryDirectory()
        self.url = f"http://127.0.0.1:{port}"
        args = [binary, "serve", "--model", str(model), "--listen", f"127.0.0.1:{port}", "--data-dir", self.data.name]
        env = {**os.environ, "INSTRUCTD_JOBS__ENABLED": "false", "INSTRUCTD_ADMIN_KEY": "learning-proof-learning-proof"}
        self.process = subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        while True:
            try:
                urllib.request.urlopen(self.url + "/ready").read()
                return self
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError("the server did not start")
                time.sleep(0.2)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.data.cleanup()

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        return json.load(urllib.request.urlopen(request))

    def complete(self, prompts, n, seed, model=None):
        """(index of the prompt, text, token ids, summed log-prob) of n continuations of each prompt, by the active version
        unless another is named."""
        body = {"model": model, "prompt": prompts, "n": n, "max_tokens": TOKENS, "temperature": 1, "seed": seed, "logprobs": 0}
        out = []
        for choice in self.post("/v1/completions", body)["choices"]:
            logprobs = choice["logprobs"]
            out.append((choice["index"] // n, choice["text"], logprobs["token_ids"], sum(logprobs["token_logprobs"])))
        return out

    def logprob(self, prompt_ids, ids, model=None):
        """Summed log-prob of `ids` after `prompt_ids`."""
        body = {"model": model, "prompt": prompt_ids + ids, "max_tokens": 0, "echo": True, "logprobs": 0}
        return sum(self.post("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"][len(prompt_ids) :])

    def ids(self, text):
        return self.post("/tokenize", {"prompt": text, "add_special_tokens": True})["tokens"]


def judge(server, base, vader, prompts):
    """Share of positive continuations, and KL from `base` in nats per sequence (None for the base itself)."""
    samples = server.complete(prompts, SAMPLES, 7)
    positive = [vader.polarity_scores(text)["compound"] >= 0.05 for _, text, _, _ in samples]
    distinct = len({text for _, text, _, _ in samples}) / len(samples)
    kl = None
    if base is not None:
        prompt_ids = [base.ids(p) for p in prompts]
        kl = statistics.mean(lp - base.logprob(prompt_ids[i], ids) for i, _, ids, lp in samples)
    return {"positive": statistics.mean(positive), "kl": kl, "distinct": distinct}


def run(binary, recipe, args, name, work):
    """Runs a recipe unless it ran before; returns what it printed."""
    done = work / f"{name}.json"
    if not done.exists():
        path = work / f"{name}.args.json"
        path.write_text(json.dumps({**args, "output_dir": str(work / name), "log_dir": str(work / f"{name}.logs")}))
        started = time.time()
        with open(work / f"{name}.log", "w") as log:
            out = subprocess.run([binary, "train", recipe, "--args", str(path)], stdout=subprocess.PIPE, stderr=log, check=True)
        result = json.loads(out.stdout.decode().splitlines()[-1])["metrics"]
        done.write_text(json.dumps({"metrics": result, "seconds": time.time() - started}))
    return json.loads(done.read_text())


def feedback(binary, model, reward, prompts, work):
    """The start policy's own samples, judged by the reward model: rankings for DPO, thumbs for KTO. Of the eight samples
    of a prompt the best is ranked above the worst, and the two best get a thumb up, the two worst a thumb down."""
    rankings, thumbs = work / "own.jsonl", work / "own.thumbs.jsonl"
    if not thumbs.exists():
        texts = [json.loads(line)["prompt"] for line in Path(prompts).read_text().splitlines()]
        with Server(binary, model) as server:
            samples = [s for at in range(0, len(texts), 32) for s in
                       [(i + at, *rest) for i, *rest in server.complete(texts[at : at + 32], 8, 11)]]
        written = write_lines(work / "own.completions.jsonl", [{"prompt": texts[i], "completion": t} for i, t, _, _ in samples])
        args = work / "own.args.json"
        args.write_text(json.dumps({"kind": "scores", "model": str(reward), "completions": written}))
        out = subprocess.run([binary, "eval", "--args", str(args)], stdout=subprocess.PIPE, check=True).stdout
        scores = [s["mean"] for s in json.loads(out)["scores"]]
        lines, liked = [], []
        for i, prompt in enumerate(texts):
            own = sorted(((score, t) for (j, t, _, _), score in zip(samples, scores) if j == i), reverse=True)
            # The ends of the eight are compared: the middle teaches little.
            chosen, rejected = own[0], own[-1]
            if chosen[0] > rejected[0]:
                completions = [{"text": chosen[1], "tier": 0}, {"text": rejected[1], "tier": 1}]
                lines.append({"prompt": prompt, "completions": completions, "split": "train"})
            for (_, text), label in [(own[0], True), (own[1], True), (own[-2], False), (own[-1], False)]:
                liked.append({"prompt": prompt, "completion": text, "label": label, "split": "train"})
        write_lines(rankings, lines)
        write_lines(thumbs, liked)
    return str(rankings), str(thumbs)


def interval(values):
    """95 % interval of the mean by a bootstrap."""
    draw = random.Random(3)
    means = sorted(statistics.mean(draw.choices(values, k=len(values))) for _ in range(1000))
    return [means[25], means[974]]


def write_result(path, script, result):
    """A result of a bench as JSON, with where and when it was measured."""
    known = {key: os.environ.get(f"INSTRUCTD_BENCH_{key.upper()}", "") for key in ("commit", "date", "machine")}
    known["command"] = f"python3 benches/{script} --binary BINARY --model FILE.gguf --work DIR"
    path.write_text(json.dumps({**known, **result}, indent=1) + "\n")


def arguments(description):
    """A parser with the options that the benches on these sentences share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/instructd")
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--json", type=Path, help="write the results there, with INSTRUCTD_BENCH_COMMIT, _DATE, _MACHINE")
    return parser


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-sets", type=int, default=600)
    parser.add_argument("--heldout-sets", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    options = parser.parse_args()
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    binary, model = os.path.abspath(options.binary), os.path.abspath(options.model)
    folder, vader = fetch(work)
    comparisons, prompts, heldout_prompts, facts = make_data(folder, work, options.train_sets, options.heldout_sets)

    common = {"model": model, "device": "cpu", "lora": {"rank": 8, "alpha": 16}, "frozen_precision": "bf16",
              "max_length": 48}
    reward_args = {**common, "freeze_layers": 10, "comparisons": comparisons, "batch_size": 8, "epochs": 2,
                   "learning_rate": 5e-4, "lr_schedule": "linear", "warmup_steps": 5}
    # Only the upper third of a policy's blocks learns: the backward pass ends there.
    common["freeze_layers"] = 20
    reward = run(binary, "reward", reward_args, "reward", work)
    heldout = reward["metrics"]["heldout"]
    print(f"reward model: held-out pair accuracy {heldout['accuracy']:.3f} of {heldout['pairs']} pairs, "
          f"{reward['seconds']:.0f} s; single raters {facts['single_rater']:.3f}, halves of the raters "
          f"{facts['half_of_raters']:.3f}", flush=True)

    base_result = work / "base.judged.json"
    if not base_result.exists():
        with Server(binary, model) as base:
            base_result.write_text(json.dumps(judge(base, None, vader, heldout_prompts)))
    start = json.loads(base_result.read_text())
    print(f"start policy: {start['positive']:.3f} positive of {SAMPLES * len(heldout_prompts)} continuations", flush=True)

    online = {**common, "prompts": prompts, "reward_model": str(work / "reward"), "iterations": options.iterations,
              "rollout_batch_size": options.batch, "response_length": TOKENS, "kl_budget": 8.0, "sample_prompts": 3}
    own = {
        "ppo": {"learning_rate": 2e-3, "kl_coef": 0.03, "ppo_epochs": 2, "minibatches": 1},
        "reinforce": {"learning_rate": 3e-3, "kl_coef": 0.03},
        "rloo": {"learning_rate": 3e-3, "kl_coef": 0.03, "group_size": 4},
        "grpo": {"learning_rate": 3e-3, "kl_coef": 0.03, "group_size": 4},
        "online_dpo": {"learning_rate": 3e-3, "kl_coef": 0.3, "group_size": 4},
        "raft": {"learning_rate": 2e-3, "group_size": 4},
    }
    offline = {**common, "heldout_fraction": 0.0, "batch_size": 16, "epochs": 2, "learning_rate": 1e-3, "beta": 0.3}
    rows = {recipe: [] for recipe in options.recipes}
    for seed in range(options.seeds):
        for recipe in options.recipes:
            name = f"{recipe}-{seed}"
            if recipe in own:
                args = {**online, **own[recipe]}
            else:
                rankings, thumbs = feedback(binary, model, work / "reward", prompts, work)
                args = {**offline, **({"comparisons": rankings} if recipe == "dpo" else {"feedback": thumbs})}
            result = run(binary, recipe, {**args, "seed": seed}, name, work)
            judged = work / f"{name}.judged.json"
            if not judged.exists():
                with Server(binary, model) as base, Server(binary, work / name) as policy:
                    judged.write_text(json.dumps(judge(policy, base, vader, heldout_prompts)))
            row = {**json.loads(judged.read_text()), "seconds": result["seconds"]}
            rows[recipe].append(row)
            print(f"{name}: {row}", flush=True)

    print("\n| method | positive continuations by seed | mean | KL by seed (nats) | distinct | seconds a run |")
    print("|---|---|---|---|---|---|")
    print(f"| start policy | {start['positive']:.2f} | {start['positive']:.2f} | 0 | {start['distinct']:.2f} | |")
    for recipe, results in rows.items():
        several = lambda key: ", ".join(f"{r[key]:.2f}" for r in results)
        mean = lambda key: statistics.mean(r[key] for r in results)
        print(f"| {recipe} | {several('positive')} | {mean('positive'):.2f} | {several('kl')} | "
              f"{mean('distinct'):.2f} | {mean('seconds'):.0f} |")


    if options.json:
        rounded = lambda results, key: [round(r[key], 2) for r in results]
        found = [{"name": recipe, "share": rounded(results, "positive"), "kl": rounded(results, "kl"),
                  "distinct": round(statistics.mean(r["distinct"] for r in results), 2)} for recipe, results in rows.items()]
        result = {"start": round(start["positive"], 2), "reward": heldout, "raters": facts, "rows": found}
        write_result(options.json, "learning_proof.py", result)


if __name__ == "__main__":
    main()

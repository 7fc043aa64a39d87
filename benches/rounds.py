#!/usr/bin/env python3
"""The whole loop with simulated labelers who disagree as people do: rounds of draw, rank, reward model, PPO and promotion
through a server's API.

    benches/rounds.py --binary target/release/instructd --model MODEL.gguf --work DIR [--rounds 5] [--seeds 3]

A labeler's opinion of a sentence is VADER's compound score plus noise of the labeler's own. The noise is chosen on samples
of the start policy so that two labelers agree on 72.6 % of the pairs that both order, which InstructGPT's labelers did
(arXiv 2203.02155, section 3.4). After each round three figures that no labeler sees: the share of held-out pairs that the
reward model orders as VADER does, the share of held-out prompts' continuations that VADER prefers to those of the start
policy (ties count half), and the KL from the start policy per continuation. `--selection uncertainty` draws the sets about
which the reward model's ensemble is least certain, from the second round on. What is done already in DIR is not done again.
Needs Python alone; fetches the vaderSentiment source package from PyPI.
"""

import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import learning_proof
from learning_proof import SAMPLES, TOKENS, interval, write_lines, write_result

AGREEMENT = 0.726
LABELERS = 5
# Completions of a set.
SET = 4
# Opinions that differ by less are a tie.
EQUAL = 0.1
KEY = "rounds-bench-admin-key"
SERVER = """
[labeling]
max_tokens = 16
temperature = 1.0
top_p = 1.0
daily_quota = 0
"""


def asked(prompt):
    return [{"role": "user", "content": prompt}]


class Server(learning_proof.Server):
    """A server of its own in `data`."""

    def __init__(self, binary, model, data):
        data.mkdir(parents=True)
        (data / "config.toml").write_text(SERVER)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.data, self.url = data, f"http://127.0.0.1:{port}"
        command = [binary, "serve", "--config", str(data / "config.toml"), "--model", str(model), "--listen",
                   f"127.0.0.1:{port}", "--data-dir", str(data)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("INSTRUCTD_")}
        with open(data / "log", "w") as log:
            self.process = subprocess.Popen(command, env=environment | {"INSTRUCTD_ADMIN_KEY": KEY}, stdout=log, stderr=log)

    def __enter__(self):
        self.wait("the server", lambda: self.try_ready())
        models = self.call("GET", "/admin/models")["data"]
        self.start = next(m["name"] for m in models if m["kind"] == "policy" and m["state"] == "active")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def try_ready(self):
        try:
            return urllib.request.urlopen(self.url + "/ready").read()
        except OSError:
            return None

    def wait(self, what, look):
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{what}: the server ended; see {self.data / 'log'}")
            found = look()
            if found:
                return found
            time.sleep(0.2)

    def call(self, method, path, body=None, key=KEY, data=None):
        data = json.dumps(body).encode() if body is not None else data
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            text = urllib.request.urlopen(request).read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode()}") from error
        return json.loads(text) if text[:1] in (b"[", b"{") else None

    def job(self, kind, args):
        """Runs a job to its end; returns the version's name and the metrics."""
        id = self.call("POST", "/admin/jobs", {"kind": kind, "args": args})["id"]

        def over():
            job = self.call("GET", f"/admin/jobs/{id}")
            return job if job["state"] not in ("queued", "running") else None

        job = self.wait(kind, over)
        if job["state"] != "succeeded":
            raise RuntimeError(f"{kind}: {job['state']}: {job['error']}")
        return job["result"]["model"], job["result"]["metrics"]

    def draw(self, policy, count, overlap, seed):
        body = {"policy": policy, "count": count, "n": SET, "overlap": overlap, "seed": seed}
        id = self.call("POST", "/admin/sets/draw", body)["id"]

        def over():
            drawn = self.call("GET", f"/admin/sets/draws/{id}")
            return drawn if drawn["state"] != "running" else None

        drawn = self.wait("the draw", over)
        if drawn["state"] != "done":
            raise RuntimeError(f"the draw: {drawn}")

    def post(self, path, body):
        return self.call("POST", path, body)

    def ids(self, text):
        """The ids of a prompt as the server draws sets for it: a user's message through the chat template."""
        return self.post("/tokenize", {"messages": asked(text)})["tokens"]


def agreement(scores, noise, draw):
    """Share of pairs that two labelers order alike, of those that both order."""
    alike = both = 0
    for of_prompt in scores:
        one, other = ([s + draw.gauss(0, noise) for s in of_prompt] for _ in range(2))
        for i in range(len(of_prompt)):
            for j in range(i):
                a, b = one[i] - one[j], other[i] - other[j]
                if abs(a) >= EQUAL and abs(b) >= EQUAL:
                    both, alike = both + 1, alike + ((a > 0) == (b > 0))
    return alike / both


def calibrated(scores):
    """The noise at which two labelers agree as often as people did, by bisection."""
    low, high = 0.01, 4.0
    for _ in range(30):
        middle = (low + high) / 2
        if agreement(scores * 20, middle, random.Random(1)) > AGREEMENT:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def rank(server, labelers, opinion, noise, draw):
    """Every labeler ranks what is open for them; returns the number of judgments."""
    made = 0
    for key in labelers:
        while turn := server.call("GET", "/v1/label/next", key=key):
            rated = sorted(((opinion(c["text"]) + draw.gauss(0, noise), c["id"]) for c in turn["completions"]), reverse=True)
            items, tier = [], 0
            for at, (score, id) in enumerate(rated):
                tier += at > 0 and rated[at - 1][0] - score >= EQUAL
                items.append({"completion_id": id, "tier": tier})
            body = {"lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "active_ms": 1000,
                    "idempotency_key": turn["assignment_id"]}
            server.call("POST", f"/v1/label/{turn['assignment_id']}/judgment", body, key=key)
            made += 1
    return made


def reward_accuracy(binary, server, reward, heldout, opinion, work):
    """Share of held-out pairs that the reward model orders as the rule does, and the number of pairs."""
    args = work / "scores.args.json"
    lines = [{"prompt": asked(prompt), "completion": text} for prompt, text in heldout]
    args.write_text(json.dumps({"kind": "scores", "model": str(server.data / "models" / reward),
                                "completions": write_lines(work / "heldout.jsonl", lines)}))
    out = subprocess.run([binary, "eval", "--args", str(args)], stdout=subprocess.PIPE, check=True).stdout
    scores = [s["mean"] for s in json.loads(out)["scores"]]
    right = pairs = 0
    for at in range(0, len(heldout), SAMPLES):
        for i in range(at, at + SAMPLES):
            for j in range(at, i):
                gold = opinion(heldout[i][1]) - opinion(heldout[j][1])
                if abs(gold) >= EQUAL:
                    pairs, right = pairs + 1, right + ((scores[i] > scores[j]) == (gold > 0))
    return right / pairs, pairs


def against_start(server, version, prompts, start, opinion):
    """Share of continuations that the rule prefers to the start policy's, its 95 % interval by a bootstrap over prompts, and
    the KL from the start policy in nats per continuation."""
    ids = [server.ids(p) for p in prompts]
    samples = server.complete(ids, SAMPLES, 7, version)
    wins = [[] for _ in prompts]
    for (at, text, _, _), (_, before, _, _) in zip(samples, start):
        gap = opinion(text) - opinion(before)
        wins[at].append(0.5 if gap == 0 else float(gap > 0))
    shares = [statistics.mean(w) for w in wins]
    kl = statistics.mean(lp - server.logprob(ids[at], tokens, server.start) for at, _, tokens, lp in samples)
    return statistics.mean(shares), interval(shares), kl


def loop(options, seed, selection, opinion, texts, work):
    """One run; returns a row for each round."""
    done = work / "rows.json"
    if done.exists():
        return json.loads(done.read_text())
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    draw = random.Random(seed)
    starts = [f"Write a short comment that begins with: {' '.join(text.split()[:3])}" for text in texts]
    heldout, pool = starts[: options.heldout], starts[options.heldout :]
    rows = []
    with Server(options.binary, options.model, work / "server") as server:
        lines = "\n".join(json.dumps({"prompt": asked(p)}) for p in pool).encode()
        report = server.call("POST", "/admin/import?format=prompts&name=rounds", data=lines)
        assert report["imported"] > 0.9 * len(pool), report
        labelers = [server.call("POST", "/admin/keys", {"name": f"labeler {i}", "scopes": ["feedback"]})["key"]
                    for i in range(LABELERS)]
        start = server.complete([server.ids(p) for p in heldout], SAMPLES, 5, server.start)
        start_scores = [[opinion(t) for at, t, _, _ in start if at == i] for i in range(len(heldout))]
        noise = calibrated(start_scores)
        pairs = [(heldout[at], text) for at, text, _, _ in start]
        judgments = 0
        for number in range(1, options.rounds + 1):
            began = time.monotonic()
            how = selection if number > 1 else "random"
            # A tenth of the sets is ranked twice, which shows how far the labelers agree.
            twice = max(1, options.sets // 10)
            server.draw(how, options.sets - twice, 1, seed * 100 + number)
            server.draw(how, twice, 2, seed * 100 + number + 50)
            judgments += rank(server, labelers, opinion, noise, draw)
            common = {"device": "cpu", "lora": {"rank": 8, "alpha": 16}, "frozen_precision": "bf16", "max_length": 96,
                      "seed": seed}
            reward, _ = server.job("reward", {**common, "freeze_layers": 20, "batch_size": 4, "epochs": 2, "heads": 4,
                                              "learning_rate": 2e-3, "lr_schedule": "linear", "warmup_steps": 5,
                                              "publish_as": f"reward-{number}"})
            server.call("POST", f"/admin/models/{reward}/promote", {})
            right, of = reward_accuracy(options.binary, server, reward, pairs, opinion, work)
            policy, metrics = server.job("ppo", {**common, "freeze_layers": 20, "reward_model": reward,
                                                 "iterations": options.iterations, "rollout_batch_size": 32,
                                                 "response_length": TOKENS, "learning_rate": 1e-3, "kl_coef": 0.1,
                                                 "ppo_epochs": 2, "minibatches": 1, "sample_prompts": 3,
                                                 "publish_as": f"round-{number}"})
            server.call("POST", f"/admin/models/{policy}/promote", {})
            share, interval, kl = against_start(server, policy, heldout, start, opinion)
            rows.append({"round": number, "judgments": judgments, "noise": noise, "reward_accuracy": right, "pairs": of,
                         "win": share, "interval": interval, "kl": kl, "seconds": time.monotonic() - began})
            print(f"{selection}, seed {seed}: {rows[-1]}", flush=True)
        quality = server.call("GET", "/admin/api/quality")
        (work / "quality.json").write_text(json.dumps(quality))
    done.write_text(json.dumps(rows))
    return rows


def main():
    parser = learning_proof.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", type=int, default=40)
    parser.add_argument("--heldout", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--selection", nargs="*", default=["random", "uncertainty"])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.work = options.work.resolve()
    options.binary, options.model = os.path.abspath(options.binary), os.path.abspath(options.model)
    folder, vader = learning_proof.fetch(options.work)
    opinion = lambda text: vader.polarity_scores(text)["compound"]
    texts = [text for text, _ in learning_proof.sentences(folder)]
    random.Random(0).shuffle(texts)
    texts = texts[: options.heldout + 2048]
    runs = {}
    for seed in range(options.seeds):
        for selection in options.selection:
            work = options.work / f"{selection}-{seed}"
            runs.setdefault(selection, []).append(loop(options, seed, selection, opinion, texts, work))
    rows = []
    for selection, found in runs.items():
        for number in range(options.rounds):
            of = [run[number] for run in found]
            rows.append({"selection": selection, "round": number + 1, "judgments": of[0]["judgments"],
                         **{key: [round(r[key], 3) for r in of] for key in ("reward_accuracy", "win", "kl")},
                         "interval": [[round(v, 3) for v in r["interval"]] for r in of],
                         "seconds": round(statistics.mean(r["seconds"] for r in of))})
            print(rows[-1])
    if options.json:
        facts = {"agreement": AGREEMENT, "sets": options.sets, "heldout_pairs": runs[options.selection[0]][0][0]["pairs"],
                 "noise": [round(run[0]["noise"], 2) for run in runs[options.selection[0]]]}
        write_result(options.json, "rounds.py", {**facts, "rows": rows})


if __name__ == "__main__":
    main()

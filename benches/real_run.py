#!/usr/bin/env python3
"""The steps of docs/tour.md with a real model and real rankings, over HTTP, and what each of them gave.

    benches/real_run.py --model FILE.gguf --work DIR [--instructd BIN] [--iterations 6] > benches/results/real-run.json

Starts a server in DIR, imports tests/fixtures/oasst-en-ranked.jsonl (151 rankings of Open-Assistant), trains a reward
model and a policy by PPO, asks for completions while PPO runs, promotes the new policy under requests and rolls back.
Prints one JSON object for scripts/bench_tables.py. The commit and the machine come from INSTRUCTD_BENCH_COMMIT and
INSTRUCTD_BENCH_MACHINE.
"""

import argparse
import datetime
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEY = "real-run-admin-key-that-is-long"
LORA = {"rank": 8, "alpha": 16}
REWARD = {"lora": LORA, "max_length": 160, "epochs": 1, "learning_rate": 3e-4}
PPO = {"lora": LORA, "rollout_batch_size": 16, "response_length": 48, "kl_coef": 0.05, "learning_rate": 1e-4}


def log(text):
    print(text, file=sys.stderr, flush=True)


class Server:
    def __init__(self, binary, model, work):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{s.getsockname()[1]}"
        command = [binary, "serve", "--model", model, "--data-dir", work / "data", "--listen", self.url[7:]]
        environment = {**os.environ, "INSTRUCTD_ADMIN_KEY": KEY}
        with open(work / "server.log", "w") as out:
            self.process = subprocess.Popen(
                [str(part) for part in command], cwd=work, env=environment, stdout=out, stderr=out
            )
        while True:
            if self.process.poll() is not None:
                sys.exit((work / "server.log").read_text()[-2000:])
            try:
                urllib.request.urlopen(self.url + "/ready", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)

    def call(self, path, body=None, method=None):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            return json.load(urllib.request.urlopen(request, timeout=600))
        except urllib.error.HTTPError as error:
            sys.exit(f"{path}: {error.code} {error.read().decode()}")


def run_job(server, kind, args, meanwhile=None):
    """The finished job, its seconds and the peak of its memory in GB."""
    job = server.call("/admin/jobs", {"kind": kind, "args": args})
    peak = 0
    while job["state"] in ("queued", "running"):
        time.sleep(0.5)
        job = server.call(f"/admin/jobs/{job['id']}")
        progress = job.get("progress") or {}
        peak = max(peak, progress.get("memory_bytes") or 0)
        if meanwhile and job["state"] == "running" and progress.get("step"):
            meanwhile()
    if job["state"] != "succeeded":
        sys.exit(f"{kind}: {job['state']}: {job['error']}")
    log(f"{kind}: {job['finished'] - job['started']} {job['result']}")
    return job, peak / 1e9


def curve(server, job, name):
    rows = server.call(f"/admin/jobs/{job['id']}/metrics?names={name}")["metrics"]
    return [round(row["value"], 4) for row in rows if row["name"] == name]


def completion(server):
    start = time.monotonic()
    server.call("/v1/completions", {"model": MODEL, "prompt": "The sea is", "max_tokens": 24, "ignore_eos": True})
    return time.monotonic() - start


MODEL = None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructd", type=Path, default=ROOT / "target/release/instructd")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=4)
    known = parser.parse_args()
    known.work.mkdir(parents=True, exist_ok=True)
    server = Server(known.instructd.resolve(), known.model.resolve(), known.work.resolve())
    try:
        result = tour(server, known.iterations)
    finally:
        server.process.terminate()
        server.process.wait()
    print(json.dumps(result, indent=1))


def tour(server, iterations):
    global MODEL
    MODEL = server.call("/v1/models")["data"][0]["id"]
    rankings = (ROOT / "tests/fixtures/oasst-en-ranked.jsonl").read_bytes()
    imported = server.call("/admin/import?format=comparisons&name=oasst", rankings)
    log(f"import: {imported}")
    reward, reward_gb = run_job(server, "reward", {**REWARD, "model": MODEL, "publish_as": "judge"})
    idle = [completion(server) for _ in range(5)]
    during = []
    ppo_args = {**PPO, "model": MODEL, "reward_model": "judge", "iterations": iterations, "publish_as": "better"}
    ppo, ppo_gb = run_job(server, "ppo", ppo_args, lambda: during.append(completion(server)))
    statuses, done = [], threading.Event()

    def ask():
        while not done.is_set():
            body = json.dumps({"prompt": "Rivers", "max_tokens": 8}).encode()
            request = urllib.request.Request(server.url + "/v1/completions", body, {"Content-Type": "application/json"})
            try:
                statuses.append(urllib.request.urlopen(request, timeout=60).status)
            except urllib.error.HTTPError as error:
                statuses.append(error.code)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(1)
    server.call("/admin/models/better/promote", method="POST")
    time.sleep(2)
    server.call("/admin/models/rollback", method="POST")
    time.sleep(1)
    done.set()
    asking.join()
    curves = {name: curve(server, ppo, name) for name in ("reward", "kl")}
    return {
        "commit": os.environ.get("INSTRUCTD_BENCH_COMMIT", "unknown"),
        "date": datetime.date.today().isoformat(),
        "machine": os.environ.get("INSTRUCTD_BENCH_MACHINE", "unknown"),
        "command": "python3 benches/real_run.py --model FILE.gguf --work DIR",
        "model": MODEL,
        "import": imported,
        "reward": {"args": REWARD, "seconds": seconds(reward), "gb": round(reward_gb, 2), "result": reward["result"]},
        "ppo": {"args": {**PPO, "iterations": iterations}, "seconds": seconds(ppo), "gb": round(ppo_gb, 2),
                "result": ppo["result"], "curves": curves},
        "completion_seconds": {"idle": round(statistics.median(idle), 2), "during": round(statistics.median(during), 2),
                               "n": len(during)},
        "switch": {"requests": len(statuses), "answered": statuses.count(200)},
    }


def seconds(job):
    return round((job["finished"] - job["started"]) / 1e6, 1)


if __name__ == "__main__":
    main()

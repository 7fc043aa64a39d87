#!/usr/bin/env python3
"""Two servers, two workers, a Ray node and one PostgreSQL under load, while all of them are killed at random: nothing that
was acknowledged is lost, and nothing is there twice.

    pip install -r tests/ray/requirements.txt; python3 tests/ray/soak.py [--minutes 30] [--seed 1] [--out FILE.json]
    (INSTRUCTD_BIN: default target/debug/instructd; PostgreSQL from /usr/lib/postgresql or PATH)

Load: people who rank sets, clients that ask for completions, and jobs of two kinds: `sft` in child processes of the
workers, `reward` through Ray. Killed (SIGKILL unless said otherwise): servers, workers, trainers of either kind,
PostgreSQL; stopped for longer than a lease (SIGSTOP): workers, trainers.
"""

import argparse
import contextlib
import glob
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from learning_loop import BINARY, KEY, LEASE, ask, free_port, ray_node, rankings, wait_for
from local_postgres import Postgres

AWAY = (urllib.error.URLError, ConnectionError, TimeoutError, OSError)
# Refusals that pass: the database or the model is away, a queue is full, a connection was closed.
PASSING = (429, 500, 502, 503)


class Program:
    """A server or a worker with a data directory of its own."""

    def __init__(self, root, name, subcommand, database, ray_url, model):
        self.name, self.directory = name, root / name
        self.directory.mkdir()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (self.directory / "config.toml").write_text(f"""
[server]
drain_timeout_seconds = 2
[jobs]
enabled = {str(subcommand == "worker").lower()}
lease_seconds = {LEASE}
max_crashes = 1000000
[artifacts]
url = "file://{root}/artifacts"
[executors]
kinds = {{ reward = "cluster" }}
[executors.places.cluster]
type = "ray"
url = "{ray_url}"
cpus = 1.0
silence_seconds = 30
""")
        self.command = [BINARY, subcommand, "--config", "config.toml", "--data-dir", str(self.directory / "data"),
                        "--database-url", database]
        if subcommand == "serve":
            self.command += ["--listen", f"127.0.0.1:{self.port}", "--model", str(model)]
        self.process = None

    def start(self):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("INSTRUCTD_")}
        environment |= {"INSTRUCTD_ADMIN_KEY": KEY, "RAYON_NUM_THREADS": "1"}
        with (self.directory / "log").open("a") as log:
            self.process = subprocess.Popen(self.command, cwd=self.directory, env=environment, stdout=log, stderr=log)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Load:
    """What the clients do, and what was acknowledged to them."""

    def __init__(self, servers, seed):
        self.servers, self.seed = servers, seed
        self.over, self.lock = threading.Event(), threading.Lock()
        self.judgments, self.completions, self.jobs, self.sets, self.promoted = [], [], [], 0, 0
        self.submit_ms, self.turn_ms, self.complete_ms, self.retried, self.failed = [], [], [], 0, []

    def patient(self, dice, method, path, body=None, key=KEY, accepted=(), limit=300):
        """As a client does: again at any of the servers, until there is an answer. Answers with the status where it is one
        of `accepted`."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            try:
                return ask(dice.choice(self.servers).url, method, path, body, key=key)
            except urllib.error.HTTPError as e:
                text = e.read().decode(errors="replace")
                if e.code in accepted:
                    return e.code, text
                if e.code not in PASSING:
                    raise AssertionError(f"{method} {path}: {e.code} {text}") from e
            except AWAY:
                pass
            with self.lock:
                self.retried += 1
            time.sleep(dice.uniform(0.1, 0.5))
        raise AssertionError(f"{method} {path}: no answer within {limit} s")

    def label(self, dice, key):
        start = time.monotonic()
        turn = self.patient(dice, "GET", "/v1/label/next", key=key)
        if not turn:
            time.sleep(0.3)
            return
        turned = time.monotonic()
        items = [{"completion_id": c["id"], "tier": i} for i, c in enumerate(turn["completions"])]
        dice.shuffle(items)
        body = {"lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "active_ms": 5,
                "idempotency_key": f"key of {turn['assignment_id']}"}
        stored = self.patient(dice, "POST", f"/v1/label/{turn['assignment_id']}/judgment", body, key, (404, 409, 410))
        ended = time.monotonic()
        if isinstance(stored, tuple):
            # Held for too long while everything was away: the lease is over, and nothing was acknowledged.
            return
        with self.lock:
            self.judgments.append(stored["judgment"]["id"])
            self.turn_ms.append((turned - start) * 1e3)
            self.submit_ms.append((ended - turned) * 1e3)
        time.sleep(dice.uniform(0.05, 0.3))

    def complete(self, dice, _):
        words = " ".join(f"t{dice.randrange(3, 96)}" for _ in range(4))
        start = time.monotonic()
        answer = self.patient(dice, "POST", "/v1/completions", {"prompt": words, "max_tokens": 6, "seed": dice.randrange(1 << 30)})
        with self.lock:
            self.complete_ms.append((time.monotonic() - start) * 1e3)
            # An answer without text is not stored.
            ids = answer["instructd"]["completion_ids"]
            self.completions += [id for id, choice in zip(ids, answer["choices"]) if choice["text"]]
        time.sleep(dice.uniform(0.05, 0.3))

    def supply(self, dice, _):
        prompt = " ".join(f"t{dice.randrange(3, 96)}" for _ in range(8))
        body = {"messages": [{"role": "user", "content": prompt}], "overlap": 2,
                "completions": [" ".join(f"t{dice.randrange(3, 96)}" for _ in range(6)) for _ in range(3)]}
        self.patient(dice, "POST", "/v1/comparison-sets", body)
        with self.lock:
            self.sets += 1
        time.sleep(0.15)

    def train(self, dice, _):
        with self.lock:
            n = len(self.jobs)
        kind, name = (("sft", "reward")[n % 2], f"result-{n}")
        args = {"epochs": 1, "batch_size": 4, "max_length": 48, "device": "cpu", "publish_as": name, "checkpoint_every": 2}
        if kind == "reward":
            args["batch_size"] = 16
        # A name that is taken: an earlier call was heard, and its answer lost.
        made = self.patient(dice, "POST", "/admin/jobs", {"kind": kind, "args": args, "unique_key": name}, accepted=(400, 409))
        assert not isinstance(made, tuple) or name in made[1] or made[0] == 409, made
        with self.lock:
            self.jobs.append((name, kind))
        # Not more than four wait.
        while not self.over.is_set():
            waiting = self.patient(dice, "GET", "/admin/jobs?state=queued")["data"]
            if len(waiting) < 4:
                break
            time.sleep(1)

    def promote(self, dice, _):
        time.sleep(dice.uniform(5, 15))
        models = self.patient(dice, "GET", "/admin/models")["data"]
        ready = [m["name"] for m in models if m["kind"] == "policy" and m.get("job_id")]
        if ready:
            self.patient(dice, "POST", f"/admin/models/{dice.choice(ready)}/promote", {}, accepted=(400, 404, 409))
            with self.lock:
                self.promoted += 1

    def run(self, what, number, key=KEY):
        def body():
            dice = random.Random(f"{self.seed} {what.__name__} {number}")
            try:
                while not self.over.is_set():
                    what(dice, key)
            except BaseException as error:
                with self.lock:
                    self.failed.append(f"{what.__name__}: {error!r}")
        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        return thread


def trainers(root):
    """Process ids of training processes of this run, by the kind of place they run at."""
    found = []
    for entry in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = pathlib.Path(entry).read_bytes().split(b"\0")
            if b"train-job" in words and str(root).encode() in b" ".join(words):
                at = "ray" if b"/attempts/" in b" ".join(words) else "child"
                # The shell that Ray starts holds the same words in one; the program is the one that is named.
                if words[0] == os.fsencode(BINARY):
                    found.append((int(entry.split("/")[2]), at))
    return found


def disturb(dice, root, postgres, programs, counts):
    """One random act."""
    def count(what):
        counts[what] = counts.get(what, 0) + 1

    act = dice.choice(["server", "server", "worker", "worker", "trainer", "trainer", "pause worker", "pause trainer", "postgres"])
    if act in ("server", "worker"):
        program = dice.choice([p for p in programs if p.name.startswith(act)])
        program.kill()
        time.sleep(dice.uniform(0, 2))
        program.start()
        count(f"{act} killed")
    elif act == "postgres":
        postgres.kill()
        time.sleep(dice.uniform(0, 2))
        postgres.start()
        count("PostgreSQL killed")
    elif act == "pause worker":
        program = dice.choice([p for p in programs if p.name.startswith("worker")])
        program.process.send_signal(signal.SIGSTOP)
        time.sleep(LEASE + dice.uniform(1, 4))
        program.process.send_signal(signal.SIGCONT)
        count("worker paused")
    else:
        running = trainers(root)
        if not running:
            return
        pid, at = dice.choice(running)
        with contextlib.suppress(ProcessLookupError):
            if act == "trainer":
                os.kill(pid, signal.SIGKILL)
                count(f"trainer killed ({at})")
            else:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(LEASE + dice.uniform(1, 4))
                os.kill(pid, signal.SIGCONT)
                count(f"trainer paused ({at})")


def quantile(values, p):
    ordered = sorted(values)
    return round(ordered[int(p * (len(ordered) - 1))], 1) if ordered else None


def verify(postgres, load):
    """Everything that was acknowledged is there once."""
    stored = [row[0] for row in postgres.rows("SELECT id FROM judgments")]
    assert len(stored) == len(set(stored))
    lost = set(load.judgments) - set(stored)
    assert not lost, f"{len(lost)} of {len(load.judgments)} acknowledged judgments are lost"
    assert len(load.judgments) == len(set(load.judgments)), "a judgment was acknowledged for two turns"
    doubled = postgres.rows("SELECT set_id, labeler_id FROM judgments GROUP BY 1, 2 HAVING count(*) > 1")
    assert not doubled, f"judged twice by one person: {doubled[:3]}"
    kept = {row[0] for row in postgres.rows("SELECT id FROM completions")}
    lost = set(load.completions) - kept
    assert not lost, f"{len(lost)} of {len(load.completions)} acknowledged completions are lost"

    models = {}
    for job, name in postgres.rows("SELECT job_id, name FROM model_versions WHERE job_id IS NOT NULL"):
        models.setdefault(job, []).append(name)
    jobs = postgres.rows("SELECT id, unique_key, state, attempt, crash_count, coalesce(error, '') FROM jobs")
    by_name, attempts = {}, 0
    for id, key, state, attempt, crashes, error in jobs:
        assert state == "succeeded", (key, state, error)
        assert len(models.get(id, [])) == 1, (key, models.get(id))
        by_name.setdefault(models[id][0], []).append(id)
        attempts += int(attempt)
    assert all(len(ids) == 1 for ids in by_name.values()), by_name
    missing = {name for name, _ in load.jobs} - set(by_name)
    assert not missing, f"jobs without a result: {sorted(missing)}"
    ends = postgres.rows("SELECT job_id, count(*) FROM job_events WHERE kind = 'state' AND data::json->>'state' = 'succeeded' GROUP BY 1")
    assert all(n == "1" for _, n in ends) and len(ends) == len(jobs), ends
    return {"judgments stored": len(stored), "completions stored": len(kept), "jobs": len(jobs), "attempts": attempts}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out")
    options = parser.parse_args()
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as directory:
        root = pathlib.Path(directory)
        root.chmod(0o755)
        for name in ("pg", "node", "artifacts"):
            (root / name).mkdir()
        model = root / "tiny"
        shutil.copytree(ROOT / "tests/fixtures/llama-tied-tiny", model)
        template = {"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"}
        (model / "tokenizer_config.json").write_text(json.dumps(template))
        postgres = Postgres(root / "pg")
        postgres.start()
        programs = []
        try:
            with ray_node(root / "node") as ray_url:
                servers = [Program(root, n, "serve", postgres.url, ray_url, model) for n in ("server-a", "server-b")]
                workers = [Program(root, n, "worker", postgres.url, ray_url, model) for n in ("worker-a", "worker-b")]
                programs = servers + workers
                for program in programs:
                    program.start()
                    if program in servers:
                        wait_for(program.name, lambda: ask(program.url, path="/ready"), program.process)
                summary = soak(options, dice, root, postgres, programs, servers)
        except BaseException:
            for program in programs:
                print(f"--- {program.name}", (program.directory / "log").read_text(errors="replace")[-3000:], file=sys.stderr)
            raise
        finally:
            for program in programs:
                if program.process:
                    with contextlib.suppress(ProcessLookupError):
                        program.process.send_signal(signal.SIGCONT)
                    program.kill()
            postgres.kill()
    text = json.dumps(summary, indent=1)
    print(text)
    if options.out:
        pathlib.Path(options.out).write_text(text + "\n")


def soak(options, dice, root, postgres, programs, servers):
    load = Load(servers, options.seed)
    report = ask(servers[0].url, "POST", "/admin/import?format=comparisons&name=soak", data=rankings(120))
    assert report["imported"] > 60, report
    for i in range(6):
        body = {"messages": [{"role": "user", "content": f"t{i + 3}"}], "completion": "t1 t2 t3 t4"}
        ask(servers[0].url, "POST", "/v1/demonstrations", body)
    before = int(postgres.rows("SELECT count(*) FROM judgments")[0][0])
    keys = [ask(servers[0].url, "POST", "/admin/keys", {"name": f"person {i}", "scopes": ["feedback"]})["key"] for i in range(6)]
    threads = [load.run(load.label, i, key) for i, key in enumerate(keys)]
    threads += [load.run(load.complete, i) for i in range(3)]
    threads += [load.run(what, 0) for what in (load.supply, load.train, load.promote)]

    counts, started = {}, time.monotonic()
    end = started + options.minutes * 60
    while time.monotonic() < end and not load.failed:
        time.sleep(dice.uniform(3, 12))
        disturb(dice, root, postgres, programs, counts)
        for program in programs:
            ended = program.process.poll()
            if ended is not None:
                # A program may end by itself when its database is away at the start; a supervisor starts it again.
                what = f"{program.name.split('-')[0]} ended with {ended}"
                counts[what] = counts.get(what, 0) + 1
                program.start()
    load.over.set()
    disturbed = time.monotonic() - started
    for thread in threads:
        thread.join(320)
    assert not load.failed, load.failed

    def drained():
        left = postgres.rows("SELECT state, count(*) FROM jobs WHERE state IN ('queued', 'running') GROUP BY 1")
        for program in programs:
            if program.process.poll() is not None:
                program.start()
        return not left
    wait_for("the end of all jobs", drained, seconds=900)
    for program in servers:
        wait_for(program.name, lambda: ask(program.url, path="/ready"), program.process)
    summary = {"minutes": round(disturbed / 60, 1), "seed": options.seed, "disturbances": counts,
               "judgments acknowledged": len(load.judgments), "judgments before": before,
               "completions acknowledged": len(load.completions), "promotions": load.promoted, "calls repeated": load.retried,
               **verify(postgres, load)}
    for name, values in (("turn", load.turn_ms), ("submit", load.submit_ms), ("completion", load.complete_ms)):
        summary[f"{name} ms"] = {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99), "max": quantile(values, 1)}
    return summary


if __name__ == "__main__":
    main()

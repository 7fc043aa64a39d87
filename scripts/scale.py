#!/usr/bin/env python3
"""What breaks first when the load grows tenfold, a hundredfold and a thousandfold.

    python3 scripts/scale.py measure MEASURED.json [--seconds 8] [--model DIR_OR_FILE]   # the small points, with the real binary
    python3 scripts/scale.py simulate MEASURED.json [--set NAME=VALUE …] [--json]

`measure` starts the binary (INSTRUCTD_BIN, default target/release/instructd) with SQLite and, where it is installed, with
PostgreSQL; people who rank without a pause and clients that ask for text load it, and the processor time of each process
is read for each judgment and each token. `simulate` puts these demands into a queueing model of the whole service (servers,
database, text generation, training, disk), repeats the measured points as a check, and then lets the load grow: whatever
is too busy is named, the next remedy is taken, and the bill is written down. Figures that were not measured (a GPU's
tokens per second, prices) are the defaults of ASSUMED and are changed by --set.
"""

import argparse
import contextlib
import heapq
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

from local_postgres import Postgres, installed

ROOT = pathlib.Path(__file__).resolve().parents[1]
BINARY = os.environ.get("INSTRUCTD_BIN", str(ROOT / "target/release/instructd"))
KEY = "scale-admin-key"
LABELERS = (1, 4, 16)
# Of a measured answer; and what a further token takes in the database: its id, its log-prob and about five letters.
TOKENS = 32
BYTES_PER_TOKEN = 13

# What a simulation needs beyond the measured demands.
ASSUMED = {
    "labelers": 20,                    # people at work at the same time, at 1x
    "seconds_per_judgment": 60.0,      # of one person
    "requests_per_second": 0.5,        # for text, at 1x
    "tokens_per_request": 150.0,
    "jobs_per_day": 2.0,               # a reward model and a policy
    "pairs_per_job": 2000.0,           # at 1x; grows with the judgments
    "retention_days": 365.0,           # of completions
    "cores": 8.0,                      # of one machine
    "disk_gb": 1000.0,                 # of the database's machine
    "gpu_tokens_per_second": 2500.0,   # of one replica of a 7B model
    "gpu_training_speed": 40.0,        # times one CPU machine
    "machine_per_month": 250.0,        # currency units
    "gpu_per_month": 1500.0,
    "disk_gb_per_month": 0.1,
    "busy": 0.7,                       # a station that is busier is too busy
    "p99_ms": 500.0,                   # of a judgment
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(url, method="GET", path="/", body=None, key=KEY):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, method=method)
    request.add_header("authorization", f"Bearer {key}")
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    return json.loads(text) if text[:1] in ("[", "{") else text


def processor_seconds(pid):
    """User and system time of a process and its children that still run, in seconds."""
    total, todo = 0.0, [pid]
    while todo:
        p = todo.pop()
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1].split()
            # Of ended children too: PostgreSQL's parent waits for its back ends.
            total += sum(int(f) for f in fields[11:15]) / os.sysconf("SC_CLK_TCK")
            todo += [int(c) for c in pathlib.Path(f"/proc/{p}/task/{p}/children").read_text().split()]
    return total


# ---------------------------------------------------------------------------------------------------------- measuring


class Server:
    def __init__(self, directory, database, model):
        self.url = f"http://127.0.0.1:{free_port()}"
        (directory / "config.toml").write_text("")
        if model is None:
            model = directory / "tiny"
            shutil.copytree(ROOT / "tests/fixtures/llama-tied-tiny", model)
            template = {"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"}
            (model / "tokenizer_config.json").write_text(json.dumps(template))
        command = [BINARY, "serve", "--config", "config.toml", "--model", str(model), "--data-dir", str(directory / "data"),
                   "--listen", self.url[7:], *(["--database-url", database] if database else [])]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("INSTRUCTD_")}
        self.log = directory / "log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log,
                                            env=environment | {"INSTRUCTD_ADMIN_KEY": KEY})
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                ask(self.url, path="/ready")
                return
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-2000:]
            time.sleep(0.1)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def crowd(n, seconds, body):
    """Runs `body(i)` again and again in n threads; answers with the milliseconds of each call and the time all took."""
    times, failed, lock, end = [], [], threading.Lock(), time.monotonic() + seconds
    start = time.monotonic()

    def work(i):
        try:
            while time.monotonic() < end:
                begun = time.monotonic()
                if body(i):
                    with lock:
                        times.append((time.monotonic() - begun) * 1e3)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sorted(times), time.monotonic() - start


def judge(server, key):
    turn = ask(server.url, path="/v1/label/next", key=key)
    assert turn, "the queue is empty: too few sets"
    items = [{"completion_id": c["id"], "tier": i} for i, c in enumerate(turn["completions"])]
    body = {"lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "active_ms": 5,
            "idempotency_key": turn["assignment_id"]}
    ask(server.url, "POST", f"/v1/label/{turn['assignment_id']}/judgment", body, key)
    return True


def measure_database(name, seconds, directory, postgres, model):
    server = Server(directory, postgres.url if postgres else None, model)

    def size():
        if postgres:
            postgres.rows("CHECKPOINT")
            return int(postgres.rows("SELECT pg_database_size('postgres')")[0][0])
        return sum(f.stat().st_size for f in (directory / "data").glob("instructd.db*"))

    try:
        keys = [ask(server.url, "POST", "/admin/keys", {"name": f"person {i}", "scopes": ["feedback"]})["key"]
                for i in range(max(LABELERS))]
        # Enough for everybody: as fast as the server takes them, for as long as all measurements take.
        needed = int(400 * seconds * len(LABELERS))
        before = size()
        made, took, turn = [0], time.monotonic(), threading.Lock()

        def supply(_):
            with turn:
                n = made[0] = made[0] + 1
            body = {"messages": [{"role": "user", "content": f"t{n % 90 + 3} t{n // 90 % 90 + 3} t{n // 8100 % 90 + 3} {n}"}],
                    "overlap": 3, "completions": [f"t5 t{n % 50 + 3}", "t6 t7 t8", f"t9 t{n % 40 + 3}"]}
            ask(server.url, "POST", "/v1/comparison-sets", body)
            return True

        while made[0] * 3 < needed and time.monotonic() - took < 20 * seconds:
            crowd(4, 1, supply)
        per_set = (size() - before) / made[0]
        points = []
        pids = [server.process.pid] + ([postgres.process.pid] if postgres else [])
        for people in LABELERS:
            spent, before, own = [processor_seconds(p) for p in pids], size(), time.process_time()
            times, took = crowd(people, seconds, lambda i: judge(server, keys[i]))
            own = time.process_time() - own
            spent = [processor_seconds(p) - s for p, s in zip(pids, spent)]
            points.append({"labelers": people, "judgments": len(times), "per_second": len(times) / took,
                           "p50_ms": times[len(times) // 2], "p99_ms": times[int(len(times) * 0.99)],
                           "server_ms": spent[0] / len(times) * 1e3,
                           "database_ms": spent[1] / len(times) * 1e3 if postgres else 0.0,
                           "client_ms": own / len(times) * 1e3,
                           "bytes": (size() - before) / len(times)})
            print(f"{name}, {people} labelers: {points[-1]['per_second']:.0f} judgments/s", file=sys.stderr)
        spent, before, tokens, answers = processor_seconds(server.process.pid), size(), [0], [0]
        lock, dice = threading.Lock(), random.Random(1)

        def complete(_):
            prompt = " ".join(f"t{dice.randrange(3, 96)}" for _ in range(8))
            answer = ask(server.url, "POST", "/v1/completions",
                         {"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "seed": dice.randrange(1 << 30)})
            with lock:
                tokens[0] += answer["usage"]["completion_tokens"]
                answers[0] += 1
            return True

        times, took = crowd(8, seconds, complete)
        text = {"clients": 8, "tokens_per_second": tokens[0] / took, "requests_per_second": answers[0] / took,
                "server_ms_per_request": (processor_seconds(server.process.pid) - spent) / answers[0] * 1e3,
                "p50_ms": times[len(times) // 2], "bytes_per_completion": (size() - before) / answers[0]}
        # One training job: pairs per second.
        args = {"epochs": 1, "batch_size": 16, "max_length": 32, "device": "cpu", "publish_as": "measured"}
        job = ask(server.url, "POST", "/admin/jobs", {"kind": "reward", "args": args})["id"]
        while (state := ask(server.url, path=f"/admin/jobs/{job}"))["state"] in ("queued", "running"):
            time.sleep(0.5)
        assert state["state"] == "succeeded", state
        span = (state["finished"] - state["started"]) / 1e6
        data = state["result"].get("datasets", {}).get("comparisons", {})
        return {"judgments": points, "text": text, "bytes_per_set": per_set,
                "training": {"seconds": span, "pairs": data.get("n_pairs")}}
    finally:
        server.stop()


def measure(options):
    found = {"cores": len(os.sched_getaffinity(0)), "model": pathlib.Path(options.model).name if options.model else "llama-tied-tiny", "seconds": options.seconds}
    for name in ("sqlite", "postgres"):
        if name == "postgres" and not installed():
            print("PostgreSQL is not installed: not measured", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory(prefix="scale-", dir="/tmp") as directory:
            directory = pathlib.Path(directory)
            directory.chmod(0o755)
            postgres = None
            if name == "postgres":
                (directory / "pg").mkdir()
                postgres = Postgres(directory / "pg")
                postgres.start()
            try:
                found[name] = measure_database(name, options.seconds, directory, postgres, options.model)
            finally:
                if postgres:
                    postgres.kill()
    pathlib.Path(options.file).write_text(json.dumps(found, indent=1) + "\n")


# --------------------------------------------------------------------------------------------------------- simulating


def queue(rate, stations, seconds=60.0, seed=1, closed=0):
    """Jobs that pass stations in order, first come first served. `stations`: (places, mean seconds), exponential times.
    `rate` per second from outside, or `closed` people who begin anew when they are done. Answers with the seconds of each
    passage and each station's share of busy time."""
    dice = random.Random(seed)
    free = [[0.0] * places for places, _ in stations]
    busy, spans, serial = [0.0] * len(stations), [], 0
    events = []
    if closed:
        for _ in range(closed):
            heapq.heappush(events, (dice.random() * 1e-3, serial := serial + 1, 0, None))
    else:
        at = 0.0
        while (at := at + dice.expovariate(rate)) < seconds:
            heapq.heappush(events, (at, serial := serial + 1, 0, None))
    while events:
        at, _, station, begun = heapq.heappop(events)
        begun = at if begun is None else begun
        if station == len(stations):
            spans.append(at - begun)
            if closed and at < seconds:
                heapq.heappush(events, (at, serial := serial + 1, 0, None))
            continue
        time_here = dice.expovariate(1 / stations[station][1]) if stations[station][1] > 0 else 0.0
        start = max(at, heapq.heappop(free[station]))
        heapq.heappush(free[station], start + time_here)
        busy[station] += time_here
        heapq.heappush(events, (start + time_here, serial := serial + 1, station + 1, begun))
    shares = [b / (seconds * places) for b, (places, _) in zip(busy, stations)]
    return sorted(spans), shares


def demands(found, database):
    """Seconds of a server's and of the database's processors for one judgment, from the busiest measured point, and the
    seconds that a judgment waits for the disk and the network beside that, from the point with one labeler."""
    points = found[database]["judgments"]
    last, first = points[-1], points[0]
    server, store = last["server_ms"] / 1e3, last["database_ms"] / 1e3
    return server, store, max(0.0, first["p50_ms"] / 1e3 - server - store)


def check(found, database):
    """The measured points again, by the model. One station is the share of the machine that the measurement got (other
    programs may run), which servers, database and the program that plays the people use in turn; another, without a queue,
    is what one labeler waits beside that. The share and the demands are those of the busiest point, so that this point
    must agree, and the others are predicted."""
    points = found[database]["judgments"]
    last = points[-1]
    work = (last["server_ms"] + last["database_ms"] + last["client_ms"]) / 1e3
    cores = min(found["cores"], work * last["per_second"])
    wait = max(0.0, 1 / points[0]["per_second"] - work / cores)
    rows = []
    for point in points:
        people = point["labelers"]
        spans, _ = queue(0, [(1, work / cores), (people, wait)], 10.0, closed=people)
        rows.append((database, people, point["per_second"], len(spans) / 10.0))
    return rows


class Plan:
    """Machines of a service, and what they can do."""

    def __init__(self, found, assumed):
        self.found, self.a = found, assumed
        self.database, self.cores, self.shards = "sqlite", assumed["cores"], 1
        self.servers, self.gpus, self.workers, self.ray, self.disk = 1, 0, 0, 0, assumed["disk_gb"]

    def load(self, factor):
        """Share of busy time of each part, and the 99th percentile of a judgment in ms, at `factor` times the load."""
        a, found = self.a, self.found
        server, store, wait = demands(found, self.database)
        judgments = a["labelers"] * factor / a["seconds_per_judgment"]
        requests = a["requests_per_second"] * factor
        text = found[self.database]["text"]
        cores = max(1, int(self.cores))
        per_token = 1 / (text["tokens_per_second"] / found["cores"])
        token_work = requests * a["tokens_per_request"] * per_token
        # Without a fleet, text is written on the servers' cores.
        on_servers = 0.0 if self.gpus else token_work / (self.servers * cores)
        keep = max(0.05, 1 - on_servers)
        if self.database == "sqlite":
            # One writer: what a judgment costs is spent in one place.
            stations = [(1, server + wait)]
        else:
            stations = [(max(1, int(self.servers * cores * keep)), server), (cores * self.shards, store), (10_000, wait)]
        spans, shares = queue(judgments, stations, min(600.0, max(20.0, 20_000 / judgments)), seed=factor)
        p99 = spans[int(len(spans) * 0.99)] * 1e3 if spans else 0.0
        training = found[self.database]["training"]
        job = training["seconds"] / max(1, training["pairs"] or 1) * a["pairs_per_job"] * factor
        speed = self.ray * a["gpu_training_speed"] if self.ray else max(1, self.workers)
        days = 86_400
        bytes_day = judgments * days / 3 * found[self.database]["judgments"][-1]["bytes"] \
            + requests * days * (text["bytes_per_completion"] + (a["tokens_per_request"] - TOKENS) * BYTES_PER_TOKEN)
        held = bytes_day * a["retention_days"] / 1e9
        return {
            "judgments/s": judgments, "tokens/s": requests * a["tokens_per_request"], "p99 ms": p99,
            "servers": shares[0] + (on_servers if self.database != "sqlite" else 0.0),
            "database": shares[0] if self.database == "sqlite" else shares[1],
            "text": requests * a["tokens_per_request"] / (self.gpus * a["gpu_tokens_per_second"]) if self.gpus else on_servers,
            "training": a["jobs_per_day"] * job / speed / days, "disk": held / (self.disk * self.shards), "held GB": held,
        }

    def remedy(self, part):
        """Takes the next step for a part that is too busy; says which."""
        if part in ("database", "servers") and self.database == "sqlite":
            self.database, self.servers = ("postgres" if "postgres" in self.found else "sqlite"), 2
            return "PostgreSQL on a machine of its own, two servers"
        if part == "servers":
            self.servers *= 2
            return f"{self.servers} servers"
        if part == "text":
            self.gpus = max(1, self.gpus * 2)
            return f"{self.gpus} replicas with a GPU behind [upstream]"
        if part == "training":
            if not self.workers:
                self.workers = 1
                return "a worker on a machine of its own"
            if not self.ray and self.workers < 4:
                self.workers *= 2
                return f"{self.workers} workers"
            self.ray = max(1, self.ray * 2)
            return f"{self.ray} GPUs for training, by Ray or a command"
        if part == "disk":
            if self.disk < 8000:
                self.disk *= 2
                return f"a disk of {self.disk:.0f} GB"
            self.a["retention_days"] /= 2
            return f"completions are kept for {self.a['retention_days']:.0f} days"
        if self.cores < 64:
            self.cores *= 2
            return f"machines with {self.cores:.0f} cores"
        self.shards *= 2
        return f"{self.shards} databases, one for each project"

    def machines(self):
        own = 0 if self.database == "sqlite" else self.shards
        return self.servers + self.workers + own

    def cost(self, held):
        size = self.cores / 8
        cpu = self.machines() * size * self.a["machine_per_month"]
        return cpu + (self.gpus + self.ray) * self.a["gpu_per_month"] + held * self.a["disk_gb_per_month"]


def simulate(options):
    found = json.loads(pathlib.Path(options.file).read_text())
    assumed = dict(ASSUMED)
    for pair in options.set:
        name, _, value = pair.partition("=")
        assert name in assumed, f"{name} is not known; there are {', '.join(assumed)}"
        assumed[name] = float(value)
    checks = [row for d in ("sqlite", "postgres") if d in found for row in check(found, d)]
    plan, steps = Plan(found, assumed), []
    for factor in (1, 10, 100, 1000):
        taken, first = {}, None
        for _ in range(60):
            load = plan.load(factor)
            parts = {p: load[p] for p in ("database", "servers", "text", "training", "disk")}
            part = max(parts, key=parts.get)
            if parts[part] <= assumed["busy"] and load["p99 ms"] <= assumed["p99_ms"]:
                break
            if parts[part] <= assumed["busy"]:
                part = "database"
            first = first or f"{part} ({parts[part]:.0%} busy)"
            taken[part] = plan.remedy(part)
        else:
            sys.exit(f"{factor}x: no plan within 60 steps")
        steps.append({"factor": factor, **{k: round(v, 3) for k, v in load.items()}, "breaks first": first,
                      "remedies": list(dict.fromkeys(taken.values())), "machines": plan.machines(), "gpus": plan.gpus + plan.ray,
                      "cost": round(plan.cost(load["held GB"]))})
    if options.json:
        print(json.dumps({"checks": checks, "assumed": assumed, "steps": steps}, indent=1))
        return
    print("| database | labelers | judgments/s, measured | simulated |\n|---|---|---|---|")
    for database, people, measured, simulated in checks:
        print(f"| {database} | {people} | {measured:.0f} | {simulated:.0f} |")
    print("\n| load | judgments/s | tokens/s | breaks first | what is done | machines + GPUs | p99 of a judgment | data | cost a month |")
    print("|---|---|---|---|---|---|---|---|---|")
    for s in steps:
        done = "; ".join(s["remedies"]) or "nothing"
        print(f"| {s['factor']}× | {s['judgments/s']:.1f} | {s['tokens/s']:.0f} | {s['breaks first'] or 'nothing'} | {done} | "
              f"{s['machines']} + {s['gpus']} | {s['p99 ms']:.0f} ms | {s['held GB']:.0f} GB | {s['cost']} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure")
    one.add_argument("file")
    one.add_argument("--seconds", type=float, default=8)
    one.add_argument("--model", help="directory or GGUF file; default: a tiny model, whose tokens cost next to nothing")
    two = commands.add_parser("simulate")
    two.add_argument("file")
    two.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    two.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measure(options) if options.command == "measure" else simulate(options)


if __name__ == "__main__":
    main()

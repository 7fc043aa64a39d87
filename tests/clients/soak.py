#!/usr/bin/env python3
"""One server for hours under a steady load of labelers, streams, jobs, promotions and pages: its memory stays flat and no
descriptor or thread is lost.

    python3 tests/clients/soak.py [--minutes 360] [--labelers 6] [--clients 4] [--out FILE.json]
    (INSTRUCTD_BIN: default target/debug/instructd; Python alone)

Every half minute the server's memory, descriptors and threads are read, and `/health` is timed. The first fifth of the
time is left out: caches fill. The run fails if memory grows by more than 5 % and 16 MiB over the rest (medians of its first
and last quarter), if descriptors or threads remain once the load is gone, or if an answer is a server error. Versions are
published and promoted all the time, so versions that are no longer served must be freed.
"""

import argparse
import http.client
import json
import pathlib
import random
import statistics
import threading
import time
import urllib.error
import urllib.request

import server as instructd

# Answers that ask for patience.
BUSY = (429, 503)


class Soak:
    def __init__(self, server):
        self.server, self.over = server, threading.Event()
        self.counts, self.faults, self.lock = {}, [], threading.Lock()

    def count(self, what, n=1):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + n

    def ask(self, method, path, body=None, key=instructd.ADMIN_KEY):
        """The answer, or None where the server asks for patience."""
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.server.url + path, data, headers, method=method)
        try:
            text = urllib.request.urlopen(request, timeout=60).read()
        except urllib.error.HTTPError as error:
            if error.code in BUSY:
                self.count("refused")
                return None
            raise RuntimeError(f"{method} {path}: {error.code} {error.read()[:300]}") from error
        return json.loads(text) if text[:1] in (b"{", b"[") else None

    def forever(self, act, pause, dice):
        """Repeats `act` with pauses of that many seconds on average; keeps what goes wrong."""
        while not self.over.wait(dice.expovariate(1 / pause)):
            try:
                act(dice)
            except Exception as error:  # noqa: BLE001 what goes wrong is a result of the run
                with self.lock:
                    self.faults.append(f"{type(error).__name__}: {error}"[:400])
                print(self.faults[-1], flush=True)

    def words(self, dice, n):
        return " ".join(f"t{dice.randrange(3, 96)}" for _ in range(n))

    def label(self, key):
        def act(dice):
            turn = self.ask("GET", "/v1/label/next", key=key)
            if not turn:
                return
            items = [{"completion_id": c["id"], "tier": dice.randrange(2)} for c in turn["completions"]]
            body = {"lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "active_ms": 900,
                    "idempotency_key": turn["assignment_id"]}
            if self.ask("POST", f"/v1/label/{turn['assignment_id']}/judgment", body, key=key):
                self.count("judgments")
        return act

    def stream(self, dice):
        """A stream, which is left in the middle in one of three cases."""
        host = self.server.url[7:]
        connection = http.client.HTTPConnection(host, timeout=60)
        body = {"messages": [{"role": "user", "content": self.words(dice, 4)}], "stream": True,
                "max_tokens": 40}
        headers = {"authorization": f"Bearer {instructd.ADMIN_KEY}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status == 200:
            if dice.randrange(3) == 0:
                answer.read(200)
                self.count("streams left")
            else:
                answer.read()
                self.count("streams")
        elif answer.status not in BUSY:
            raise RuntimeError(f"stream: {answer.status} {answer.read()[:300]}")
        connection.close()

    def complete(self, dice):
        body = {"prompt": self.words(dice, 12), "max_tokens": 32, "n": 2, "logprobs": 2}
        if self.ask("POST", "/v1/completions", body):
            self.count("completions")

    def make_sets(self, dice):
        """Sets for the labelers, with new texts each."""
        for _ in range(5):
            body = {"messages": [{"role": "user", "content": self.words(dice, 6)}],
                    "completions": [self.words(dice, 8), self.words(dice, 8)]}
            if self.ask("POST", "/v1/comparison-sets", body):
                self.count("sets")

    def page(self, dice):
        path = dice.choice(["/label", "/admin", "/admin/models", "/admin/api/overview", "/admin/api/quality", "/metrics",
                            "/admin/jobs", "/admin/sets?limit=50", "/static/js/boot.js"])
        self.ask("GET", path)
        self.count("pages")

    def train_and_promote(self, dice):
        """A short job, whose version is promoted; now and then an older version."""
        args = {"epochs": 1, "max_steps": 4, "batch_size": 2, "max_length": 32, "device": "cpu"}
        kind = dice.choice(["reward", "sft"])
        if kind == "sft":
            body = {"messages": [{"role": "user", "content": self.words(dice, 3)}], "completion": self.words(dice, 5)}
            for _ in range(4):
                self.ask("POST", "/v1/demonstrations", body | {"completion": self.words(dice, 5)})
        job = self.ask("POST", "/admin/jobs", {"kind": kind, "args": args})
        if not job:
            return
        while not self.over.wait(0.5):
            job = self.ask("GET", f"/admin/jobs/{job['id']}") or job
            if job["state"] not in ("queued", "running"):
                break
        else:
            return
        if job["state"] != "succeeded":
            raise RuntimeError(f"{kind}: {job['state']}: {job['error']}")
        self.count("jobs")
        if self.ask("POST", f"/admin/models/{job['result']['model']}/promote", {}):
            self.count("promotions")

    def sample(self, began):
        pid = self.server.process.pid
        at = time.monotonic()
        self.ask("GET", "/health")
        health = time.monotonic() - at
        proc = pathlib.Path(f"/proc/{pid}")
        threads = next(l for l in (proc / "status").read_text().splitlines() if l.startswith("Threads"))
        return {"minute": round((at - began) / 60, 2), "mib": round(self.server.memory_kib() / 1024, 1),
                "descriptors": len(list((proc / "fd").iterdir())), "threads": int(threads.split()[1]),
                "health_ms": round(health * 1000, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=360)
    parser.add_argument("--labelers", type=int, default=6)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    with instructd.running() as server:
        soak = Soak(server)
        acts = [(soak.stream, 1.0)] * options.clients + [(soak.complete, 2.0), (soak.make_sets, 2.0), (soak.page, 1.5),
                                                        (soak.train_and_promote, 20.0)]
        for i in range(options.labelers):
            key = soak.ask("POST", "/admin/keys", {"name": f"labeler {i}", "scopes": ["feedback"]})["key"]
            acts.append((soak.label(key), 2.0))
        idle = soak.sample(time.monotonic())
        began, samples = time.monotonic(), []
        threads = [threading.Thread(target=soak.forever, args=(act, pause, random.Random(options.seed * 1000 + i)))
                   for i, (act, pause) in enumerate(acts)]
        for thread in threads:
            thread.start()
        while time.monotonic() - began < options.minutes * 60 and server.alive():
            time.sleep(min(30, options.minutes * 6))
            samples.append(soak.sample(began))
            print(samples[-1], dict(soak.counts), f"{len(soak.faults)} faults", flush=True)
        soak.over.set()
        for thread in threads:
            thread.join()
        # Connections and sessions of the pools end after a while.
        for _ in range(120):
            last = soak.sample(began)
            if last["descriptors"] <= idle["descriptors"] + 8:
                break
            time.sleep(1)
        steady = samples[len(samples) // 5 :]
        quarter = max(1, len(steady) // 4)
        first, end = (statistics.median(s["mib"] for s in part) for part in (steady[:quarter], steady[-quarter:]))
        health = sorted(s["health_ms"] for s in steady)
        result = {"minutes": options.minutes, "counts": soak.counts, "faults": len(soak.faults), "mib_first": first,
                  "mib_last": end, "mib_most": max(s["mib"] for s in samples), "idle": idle, "after": last,
                  "health_ms_median": statistics.median(health), "health_ms_most": health[-1]}
        print(json.dumps(result, indent=1))
        if options.out:
            options.out.write_text(json.dumps({**result, "samples": samples, "some_faults": soak.faults[:20]}, indent=1))
        assert server.alive(), server.log()[-2000:]
        assert not soak.faults, soak.faults[:5]
        assert end <= max(first * 1.05, first + 16), (first, end)
        assert last["descriptors"] <= idle["descriptors"] + 8, (idle, last)
        assert last["threads"] <= max(idle["threads"], samples[len(samples) // 5]["threads"]) + 4, (idle, last)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The learning loop through a real Ray node: rankings teach a reward model, and PPO with it teaches the policy, while the
trainer of the first job and the server of the second one are killed in the middle. Each job has one result.

    pip install -r tests/ray/requirements.txt; python3 tests/ray/learning_loop.py
    (INSTRUCTD_BIN: default target/debug/instructd)
"""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("INSTRUCTD_BIN", str(ROOT / "target/debug/instructd"))
RAY = shutil.which("ray", path=os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]))
KEY = "ray-test-admin-key"
LIKED = range(10, 30)
# A killed server's job is free after this long.
LEASE = 5


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(url, method="GET", path="/", body=None, data=None, key=KEY):
    if body is not None:
        data = json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, method=method)
    if key:
        request.add_header("authorization", f"Bearer {key}")
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    return json.loads(text) if text[:1] in ("[", "{") else text


def wait_for(what, look, process=None, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            raise AssertionError(f"{what}: the process ended with {process.returncode}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            found = look()
            if found:
                return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds} s")


@contextlib.contextmanager
def ray_node(directory):
    """One node with two logical CPUs; everything it starts ends with it."""
    port, dashboard = free_port(), free_port()
    command = [RAY, "start", "--head", "--block", "--num-cpus", "2", "--port", str(port), "--dashboard-port",
               str(dashboard), "--include-dashboard", "true", "--disable-usage-stats", "--temp-dir", str(directory)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("INSTRUCTD_")}
    with (directory / "start.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for("Ray", lambda: ask(url, path="/api/version", key=None), process, 120)
        wait_for("Ray's job agent", lambda: ask(url, path="/api/jobs/", key=None) == [], process, 120)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Server:
    def __init__(self, data, ray_url):
        self.data, self.url, self.process = data, f"http://127.0.0.1:{free_port()}", None
        (data / "config.toml").write_text(f"""
[jobs]
lease_seconds = {LEASE}
[executors]
kinds = {{ reward = "cluster", ppo = "cluster" }}
[executors.places.cluster]
type = "ray"
url = "{ray_url}"
cpus = 1.0
""")

    def start(self):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("INSTRUCTD_")}
        environment |= {"INSTRUCTD_ADMIN_KEY": KEY, "RAYON_NUM_THREADS": "1"}
        command = [BINARY, "serve", "--config", "config.toml", "--model", str(self.data / "tiny"), "--data-dir",
                   str(self.data / "data"), "--listen", self.url[7:]]
        with (self.data / "log").open("a") as log:
            self.process = subprocess.Popen(command, cwd=self.data, env=environment, stdout=log, stderr=log)
        wait_for("the server", lambda: ask(self.url, path="/ready"), self.process)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def call(self, *args, **kwargs):
        return ask(self.url, *args, **kwargs)

    def job(self, id):
        return self.call(path=f"/admin/jobs/{id}")

    def events(self, id):
        return self.call(path=f"/admin/jobs/{id}/events?format=json")["data"]

    def at_step(self, id, step):
        def look():
            job = self.job(id)
            assert job["state"] in ("queued", "running"), job
            return (job["progress"] or {}).get("step", 0) >= step
        wait_for(f"step {step}", look)

    def succeeded(self, id):
        def look():
            job = self.job(id)
            assert job["state"] in ("queued", "running", "succeeded"), job
            return job["state"] == "succeeded" and job
        return wait_for("the job's end", look, seconds=900)

    def trainer(self, id):
        """Process id of the newest trainer, which runs on this machine."""
        said = [re.search(r"process (\d+)", e["data"].get("message", "")) for e in self.events(id) if e["kind"] == "log"]
        return int([m for m in said if m][-1].group(1))


def words(dice, n):
    return [dice.randrange(3, 96) for _ in range(n)]


def completion(dice):
    taste = dice.random()
    return [dice.choice(LIKED) if dice.random() < taste else words(dice, 1)[0] for _ in range(10)]


def text(ids):
    return " ".join(f"t{i}" for i in ids)


def rankings(n):
    dice = random.Random(1)
    lines = []
    for _ in range(n):
        pair = [completion(dice), completion(dice)]
        liked = [sum(i in LIKED for i in ids) for ids in pair]
        if liked[0] == liked[1]:
            continue
        best = liked.index(max(liked))
        texts = [{"text": text(ids), "tier": int(k != best)} for k, ids in enumerate(pair)]
        prompt = [{"role": "user", "content": text(words(dice, 3))}]
        lines.append(json.dumps({"prompt": prompt, "completions": texts}))
    return "\n".join(lines).encode()


def liked_share(server, model):
    dice, seen, liked = random.Random(9), 0, 0
    for k in range(48):
        body = {"model": model, "prompt": text(words(dice, 3)), "max_tokens": 10, "seed": k, "temperature": 1}
        ids = [int(i) for i in re.findall(r"t(\d+)", server.call("POST", "/v1/completions", body)["choices"][0]["text"])]
        seen, liked = seen + len(ids), liked + sum(i in LIKED for i in ids)
    return liked / seen


def one_result(server, job, name):
    models = [m for m in server.call(path="/admin/models")["data"] if m.get("job_id") == job["id"]]
    assert [m["name"] for m in models] == [name], models
    ended = [e for e in server.events(job["id"]) if e["kind"] == "state" and e["data"]["state"] == "succeeded"]
    assert len(ended) == 1, ended


def loop(server, ray_url):
    for lines in (rankings(300), ):
        report = server.call("POST", "/admin/import?format=comparisons&name=ray", data=lines)
        assert report["imported"] > 200, report
    common = {"device": "cpu", "checkpoint_every": 4}

    # The reward model; its trainer, Ray's worker process, is killed in the middle.
    # Small batches, so that the run is not over before it is seen.
    args = {"epochs": 4, "batch_size": 2, "learning_rate": 1e-3, "max_length": 64, "publish_as": "judge", **common}
    id = server.call("POST", "/admin/jobs", {"kind": "reward", "args": args})["id"]
    server.at_step(id, 6)
    first = server.job(id)["external_ref"]
    assert first.startswith("cluster/instructd-"), first
    os.kill(server.trainer(id), signal.SIGKILL)
    job = server.succeeded(id)
    one_result(server, job, "judge")
    assert job["attempt"] == 2 and job["external_ref"] != first, job
    submission = job["external_ref"].split("/", 1)[1]
    log = server.call(path=f"/admin/jobs/{id}/log")
    assert log["place"] == "cluster" and log["text"] is not None, log
    accuracy = job["result"]["metrics"]["heldout_accuracy"]
    print(f"reward model: held-out accuracy {accuracy:.3f} after a killed trainer, {first} and {job['external_ref']}")

    # Ray refuses a second job of the same id, and says so with a status that could mean anything.
    try:
        ask(ray_url, "POST", "/api/jobs/", {"entrypoint": "true", "submission_id": submission}, key=None)
        raise AssertionError("a doubled submission was taken")
    except urllib.error.HTTPError as e:
        print(f"a doubled submission is answered with {e.code}")
    assert ask(ray_url, path=f"/api/jobs/{submission}", key=None)["status"] == "SUCCEEDED"

    # PPO with it; the server is killed in the middle. The iterations outlast the time in which the lease of the job ends.
    before = liked_share(server, "tiny")
    args = {"reward_model": "judge", "iterations": 240, "rollout_batch_size": 48, "response_length": 10,
            "learning_rate": 2e-3, "kl_coef": 0.08, "ppo_epochs": 4, "minibatches": 2, "max_length": 64,
            "publish_as": "better", **common}
    id = server.call("POST", "/admin/jobs", {"kind": "ppo", "args": args})["id"]
    server.at_step(id, 6)
    first = server.job(id)["external_ref"]
    server.kill()
    time.sleep(1)
    server.start()
    job = server.succeeded(id)
    one_result(server, job, "better")
    assert job["external_ref"] != first, job
    old = ask(ray_url, path=f"/api/jobs/{first.split('/', 1)[1]}", key=None)["status"]
    assert old in ("FAILED", "STOPPED"), old
    after = liked_share(server, "better")
    print(f"policy: liked share {before:.2f} -> {after:.2f} after a killed server; the former submission is {old}")
    assert after > before + 0.2, (before, after)

    # Cancelled while it works: stopped with a checkpoint, and resumed by another attempt. Far more iterations than
    # either attempt gets to: a trainer that ends before the cancel reaches it has succeeded.
    args |= {"iterations": 4000, "publish_as": "again"}
    id = server.call("POST", "/admin/jobs", {"kind": "ppo", "args": args})["id"]
    server.at_step(id, 3)
    server.call("POST", f"/admin/jobs/{id}/cancel", {})
    wait_for("the cancel", lambda: server.job(id)["state"] == "cancelled")
    stopped_at = server.job(id)["progress"]["step"]
    server.call("POST", f"/admin/jobs/{id}/resume", {})
    server.at_step(id, stopped_at + 1)
    server.call("POST", f"/admin/jobs/{id}/cancel", {})
    wait_for("the second cancel", lambda: server.job(id)["state"] == "cancelled")
    models = [m["name"] for m in server.call(path="/admin/models")["data"]]
    assert "again" not in models, models
    print(f"cancelled at step {stopped_at}, resumed, cancelled again: no model")


def main():
    assert RAY, "ray is not installed: pip install -r tests/ray/requirements.txt"
    started = time.monotonic()
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as directory:
        directory = pathlib.Path(directory)
        data = directory / "instructd"
        data.mkdir()
        shutil.copytree(ROOT / "tests/fixtures/llama-tied-tiny", data / "tiny")
        template = {"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"}
        (data / "tiny/tokenizer_config.json").write_text(json.dumps(template))
        node = directory / "node"
        node.mkdir()
        with ray_node(node) as ray_url:
            print(f"Ray is up after {time.monotonic() - started:.0f} s")
            server = Server(data, ray_url)
            try:
                server.start()
                loop(server, ray_url)
            except BaseException:
                print((data / "log").read_text(errors="replace")[-6000:], file=sys.stderr)
                raise
            finally:
                if server.process:
                    server.kill()
    print(f"the loop through Ray: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()

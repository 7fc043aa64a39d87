#!/usr/bin/env python3
"""Jobs of the recipe `external` with TRL's DPO, through the real binary: the policy learns a preference, once with a LoRA
adapter and once with all parameters, cancelled in the middle and resumed from TRL's own checkpoint; a result that moved too far
is refused.

    pip install torch transformers trl peft datasets; python3 tests/trainers/trl.py
    (INSTRUCTD_BIN: default target/debug/instructd)
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
import urllib.error

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/ray"))

from learning_loop import Server, liked_share, one_result, rankings, wait_for


class Trained(Server):
    def __init__(self, data):
        super().__init__(data, "http://127.0.0.1:1")
        command = json.dumps([sys.executable, str(ROOT / "docs/examples/trl_dpo.py"), "{job}"])
        (data / "config.toml").write_text(f"[jobs]\nlease_seconds = 20\n[trainers]\ntrl-dpo = {command}\n")

    def external(self, name, **args):
        body = {"kind": "external", "args": {"trainer": "trl-dpo", "publish_as": name, "device": "cpu", "kl_prompts": 16,
                                             "kl_tokens": 10, **args}}
        return self.call("POST", "/admin/jobs", body)["id"]

    def curves(self, id):
        return {c["name"] for c in self.call(path=f"/admin/jobs/{id}/metrics")["metrics"]}


def learn(server):
    before = liked_share(server, "tiny")
    options = {"epochs": 6, "batch_size": 16, "learning_rate": 3e-3, "beta": 0.1, "max_length": 64, "lora_rank": 8}
    id = server.external("by-trl", options=options)
    job = server.succeeded(id)
    one_result(server, job, "by-trl")
    metrics = job["result"]["metrics"]
    after = liked_share(server, "by-trl")
    print(f"LoRA: liked share {before:.2f} -> {after:.2f}, KL {metrics['kl']['per_sequence']:.2f} nats per sequence on "
          f"{metrics['kl']['samples']} prompts (held out: {metrics['kl']['heldout']}), {metrics['rows']}")
    assert metrics["form"] == "adapter" and metrics["kl"]["per_sequence"] > 0, metrics
    assert metrics["kl"]["heldout"] and metrics["rows"]["comparisons"]["heldout"] > 0, metrics
    assert after > before + 0.1, (before, after)
    names = server.curves(id)
    assert {"loss", "kl"} <= names, names

    # All parameters, stopped in the middle: TRL's checkpoint is where it goes on.
    options |= {"lora_rank": 0, "learning_rate": 3e-4, "epochs": 8, "save_steps": 10}
    id = server.external("whole", options=options)
    server.at_step(id, 15)
    server.call("POST", f"/admin/jobs/{id}/cancel", {})
    wait_for("the cancel", lambda: server.job(id)["state"] == "cancelled")
    stopped = server.job(id)["progress"]["step"]
    server.call("POST", f"/admin/jobs/{id}/resume", {})
    job = server.succeeded(id)
    one_result(server, job, "whole")
    log = "".join(p.read_text() for p in (server.data / "data/jobs" / id).rglob("log.txt"))
    steps = [json.loads(line)["step"] for line in log.splitlines() if line.startswith('{"step"')]
    back = next(b for a, b in zip(steps, steps[1:]) if b <= a)
    print(f"all parameters: cancelled at step {stopped}, resumed at step {back} of {max(steps)}, "
          f"KL {job['result']['metrics']['kl']['per_sequence']:.2f}")
    assert job["result"]["metrics"]["form"] == "model", job["result"]
    assert 10 <= back <= stopped + 1, (back, stopped)

    # Too far from the model before.
    id = server.external("too-far", options=options | {"epochs": 1, "learning_rate": 3e-3}, max_kl=1e-6)
    wait_for("the refusal", lambda: server.job(id)["state"] == "failed", seconds=600)
    error = server.job(id)["error"]
    print(f"refused: {error}")
    assert "max_kl" in error, error
    # A trainer that the configuration does not have.
    try:
        server.call("POST", "/admin/jobs", {"kind": "external", "args": {"trainer": "sh", "publish_as": "x"}})
        raise AssertionError("an unknown trainer was taken")
    except urllib.error.HTTPError as e:
        assert e.code == 400 and json.loads(e.read())["error"]["param"] == "args.trainer"
    # Options that the example does not know end the job with its words.
    id = server.external("odd", options={"lerning_rate": 1})
    wait_for("the failure", lambda: server.job(id)["state"] == "failed", seconds=600)
    assert "lerning_rate" in server.job(id)["error"], server.job(id)["error"]


def main():
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trl-", dir="/tmp") as directory:
        data = pathlib.Path(directory)
        shutil.copytree(ROOT / "tests/fixtures/llama-tied-tiny", data / "tiny")
        template = {"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"}
        (data / "tiny/tokenizer_config.json").write_text(json.dumps(template))
        server = Trained(data)
        try:
            server.start()
            report = server.call("POST", "/admin/import?format=comparisons&name=trl", data=rankings(300))
            assert report["imported"] > 200, report
            learn(server)
        except BaseException:
            print((data / "log").read_text(errors="replace")[-4000:], file=sys.stderr)
            raise
        finally:
            if server.process:
                server.kill()
    print(f"jobs by TRL: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()

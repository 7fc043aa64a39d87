"""Starts the real binary with the tiny fixture model (or the model that INSTRUCTD_TEST_MODEL names) on a free
port, with an empty data directory; used by the client tests beside this file."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
ADMIN_KEY = "client-test-admin-key"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, url, process, log):
        self.url, self.process, self._log = url, process, log

    def log(self):
        return self._log.read_text(errors="replace")

    def get(self, path):
        request = urllib.request.Request(self.url + path, headers={"authorization": f"Bearer {ADMIN_KEY}"})
        return urllib.request.urlopen(request, timeout=30).read().decode()

    def metric(self, name):
        lines = [l for l in self.get("/metrics").splitlines() if l.startswith((name + " ", name + "{"))]
        assert lines, f"no metric {name}"
        return sum(float(l.rsplit(" ", 1)[1]) for l in lines)

    def memory_kib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(l for l in status.splitlines() if l.startswith("VmRSS")).split()[1])

    def alive(self):
        return self.process.poll() is None


@contextlib.contextmanager
def running(**settings):
    """A server; settings are environment variables without their INSTRUCTD_ prefix."""
    with tempfile.TemporaryDirectory(prefix="instructd-clients-") as data:
        with running_in(pathlib.Path(data), **settings) as server:
            yield server


@contextlib.contextmanager
def running_in(data, **settings):
    """As `running`, in a directory that stays: a second server there goes on with what the first one stored."""
    binary = os.environ.get("INSTRUCTD_BIN", str(ROOT / "target/debug/instructd"))
    model = settings.pop("MODEL", os.environ.get("INSTRUCTD_TEST_MODEL"))
    if model is None:
        model = data / "tiny-chat"
        shutil.copytree(ROOT / "tests/fixtures/llama-tied-tiny", model)
        # The fixture knows the words t0 … t95 and has no template: chat gets the barest one.
        template = {"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"}
        (model / "tokenizer_config.json").write_text(json.dumps(template))
    (data / "config.toml").write_text("")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("INSTRUCTD_")}
    environment["INSTRUCTD_ADMIN_KEY"] = ADMIN_KEY
    environment |= {f"INSTRUCTD_{k}": str(v) for k, v in settings.items()}
    url = f"http://127.0.0.1:{free_port()}"
    log = data / "log"
    command = [binary, "serve", "--model", str(model), "--data-dir", str(data / "data"), "--listen", url[7:]]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=data, env=environment, stdout=out, stderr=out)
    server = Server(url, process, log)
    try:
        for _ in range(1200):
            assert server.alive(), f"the server did not start:\n{server.log()}"
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                server.get("/ready")
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"the server was never ready:\n{server.log()}")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

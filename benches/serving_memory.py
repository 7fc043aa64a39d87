#!/usr/bin/env python3
"""Memory of a server by model and weight format: at its peak while it loads, and after one answer.

    benches/serving_memory.py [--instructd BIN] [--formats exact,file,q8_0,f32] NAME=FILE.gguf… > rows.json

Prints a list of rows for benches/results/serving-memory.json, in MB (10^6 bytes).
"""

import argparse
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

KEY = "memory-bench-admin-key-that-is-long"


def measure(binary, model, weights):
    with tempfile.TemporaryDirectory() as folder, socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
        s.close()
        command = [binary, "serve", "--model", model, "--weights", weights, "--data-dir", folder, "--listen", address]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(
            [str(part) for part in command], cwd=folder, env={**os.environ, "INSTRUCTD_ADMIN_KEY": KEY}, **quiet
        )
        try:
            while True:
                if server.poll() is not None:
                    raise SystemExit(f"the server of {model} ended with {server.returncode}")
                try:
                    urllib.request.urlopen(f"http://{address}/ready", timeout=5)
                    break
                except OSError:
                    time.sleep(0.1)
            body = json.dumps({"prompt": "The capital of France is", "max_tokens": 16}).encode()
            request = urllib.request.Request(f"http://{address}/v1/completions", body, {"Content-Type": "application/json"})
            urllib.request.urlopen(request, timeout=300).read()
            status = Path(f"/proc/{server.pid}/status").read_text().splitlines()
            kib = {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith(("VmHWM", "VmRSS"))}
            return {"peak": round(kib["VmHWM"] * 1024 / 1e6), "held": round(kib["VmRSS"] * 1024 / 1e6)}
        finally:
            server.terminate()
            server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructd", type=Path, default=Path("target/release/instructd"))
    parser.add_argument("--formats", default="exact,file,q8_0,f32")
    parser.add_argument("models", nargs="+", metavar="NAME=FILE")
    known = parser.parse_args()
    rows = []
    for given in known.models:
        name, model = given.split("=", 1)
        found = {weights: measure(known.instructd.resolve(), Path(model).resolve(), weights) for weights in known.formats.split(",")}
        rows.append({"name": name, "mb": round(os.path.getsize(model) / 1e6), "formats": found})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

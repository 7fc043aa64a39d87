#!/usr/bin/env python3
"""This server against llama.cpp's, on the same machine, with weights of the same kind, in one paired run.

    benches/compare.py --model FILE.gguf --llama-server PATH [--instructd BIN] [--formats file,q8_0,f16] [--rounds 2]

For each format both servers take turns, one at a time, each started fresh: 64-token prompts, 128 new tokens at 1, 8
and 32 streams, then a prefill of 512 (see http_load.py). The best of the rounds counts. llama.cpp gets the file as it
is for `file`; for other formats `--gguf-FORMAT FILE` names one of that kind (llama-quantize --allow-requantize makes
it). Prints one table of total tokens per second and ratios.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import http_load


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_ready(url, process):
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"a server ended with {process.returncode} before it was ready")
        try:
            if urllib.request.urlopen(url, timeout=5).status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} did not become ready")


def measure(command, url, ready):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_ready(url + ready, process)
        model = http_load.first_model(url)
        return http_load.measure(url, model)
    finally:
        process.terminate()
        process.wait(30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructd", default="target/release/instructd")
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--model", required=True, help="the GGUF file that instructd serves")
    parser.add_argument("--formats", default="file")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    known, rest = parser.parse_known_args()
    ggufs = {flag.removeprefix("--gguf-"): path for flag, path in zip(rest[::2], rest[1::2])}
    for format in known.formats.split(","):
        gguf = ggufs.get(format, known.model)
        best = {}
        for _ in range(known.rounds):
            for name in ("instructd", "llama.cpp"):
                port = free_port()
                url = f"http://127.0.0.1:{port}"
                with tempfile.TemporaryDirectory() as data:
                    if name == "instructd":
                        command = [known.instructd, "serve", "--model", known.model, "--weights", format, "--listen"]
                        command += [f"127.0.0.1:{port}", "--data-dir", data]
                        found = measure(command, url, "/ready")
                    else:
                        command = [known.llama_server, "-m", gguf, "--port", port, "-np", 32, "-c", 32 * 640]
                        command += ["-t", known.threads, "-tb", known.threads, "--no-webui"]
                        found = measure([str(part) for part in command], url, "/health")
                for load, rate in found.items():
                    best.setdefault(name, {})[load] = max(rate, best.get(name, {}).get(load, 0))
        print(f"\n{format} (llama.cpp: {Path(gguf).name})")
        for name, row in best.items():
            print(f"  {name:10}" + "".join(f"  {load} {rate:7.1f}" for load, rate in row.items()))
        ratios = {load: rate / best["llama.cpp"][load] for load, rate in best["instructd"].items()}
        print(f"  {'ratio':10}" + "".join(f"  {load} {ratio:7.2f}" for load, ratio in ratios.items()), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()

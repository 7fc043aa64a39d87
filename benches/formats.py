#!/usr/bin/env python3
"""This server with its weights in several formats, against itself in f32, in one run.

    benches/formats.py --model FILE.gguf [--instructd BIN] [--formats exact,file] [--rounds 2] > rows.json

The server is started fresh for each format and round, in turns; the loads are those of http_load.py, and the best of the
rounds counts. Prints rows for benches/results/serving-formats.json.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path


def main():
    from compare import free_port, measure

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructd", default="target/release/instructd")
    parser.add_argument("--model", required=True)
    parser.add_argument("--formats", default="exact,file")
    parser.add_argument("--rounds", type=int, default=2)
    known = parser.parse_args()
    formats = ["f32", *known.formats.split(",")]
    best = {format: {} for format in formats}
    for _ in range(known.rounds):
        for format in formats:
            url = f"http://127.0.0.1:{free_port()}"
            with tempfile.TemporaryDirectory() as data:
                command = [known.instructd, "serve", "--model", known.model, "--weights", format]
                command += ["--listen", url.removeprefix("http://"), "--data-dir", data]
                for load, rate in measure(command, url, "/ready").items():
                    best[format][load] = max(rate, best[format].get(load, 0))
    in_order = {format: [round(rate, 1) for rate in rates.values()] for format, rates in best.items()}
    print(json.dumps([{"name": f"`{f}`", "ours": in_order[f], "peer": in_order["f32"]} for f in formats[1:]], indent=1))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()

#!/usr/bin/env python3
"""Tokens per second over HTTP: 64-token prompts, 128 new tokens, 1, 8 and 32 streams; then a 512-token prefill.

    benches/http_load.py [URL [MODEL]]

Any OpenAI-compatible server that takes token-id prompts and `ignore_eos` can be measured, so that peers are
compared on the same machine in one run. Prints new and total (prompt + new) tokens per second.
"""

import json
import random
import sys
import threading
import time
import urllib.request

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
MODEL = sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m-instruct"
PROMPT, NEW = 64, 128


def complete(prompt, new, seed):
    body = {"model": MODEL, "prompt": prompt, "max_tokens": new, "ignore_eos": True, "temperature": 1, "seed": seed}
    request = urllib.request.Request(URL + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    usage = json.load(urllib.request.urlopen(request))["usage"]
    assert usage["completion_tokens"] == new, usage


def prompt(seed, length):
    # New prompts in every run: a server that remembers prefixes would answer old ones without computing.
    draw = random.Random(seed + time.time_ns())
    return [draw.randrange(1000, 6000) for _ in range(length)]


def main():
    complete(prompt(7, 16), 8, 0)
    for streams in (1, 8, 32):
        threads = [
            threading.Thread(target=complete, args=(prompt(streams * 100 + i, PROMPT), NEW, i)) for i in range(streams)
        ]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
        print(f"{streams:2} streams: {streams * NEW / seconds:7.1f} new, {streams * (NEW + PROMPT) / seconds:7.1f} total tokens/s")
    start = time.perf_counter()
    complete(prompt(3, 512), 1, 0)
    print(f"prefill 512: {512 / (time.perf_counter() - start):7.1f} tokens/s")


if __name__ == "__main__":
    main()

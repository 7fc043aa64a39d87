#!/usr/bin/env python3
"""Tokens per second over HTTP: 64-token prompts, 128 new tokens, 1, 8 and 32 streams; then a 512-token prefill.

    benches/http_load.py [URL [MODEL]]

Any OpenAI-compatible server that takes token-id prompts and `ignore_eos` can be measured, so that peers are
compared on the same machine in one run. Prints total (prompt + new) tokens per second.
"""

import json
import random
import sys
import threading
import time
import urllib.request

PROMPT, NEW = 64, 128


def first_model(url):
    return json.load(urllib.request.urlopen(url + "/v1/models"))["data"][0]["id"]


def complete(url, model, prompt, new, seed):
    body = {"model": model, "prompt": prompt, "max_tokens": new, "ignore_eos": True, "temperature": 1, "seed": seed}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    usage = json.load(urllib.request.urlopen(request))["usage"]
    assert usage["completion_tokens"] == new, usage


def prompt(seed, length):
    # New prompts in every run: a server that remembers prefixes would answer old ones without computing.
    draw = random.Random(seed + time.time_ns())
    return [draw.randrange(1000, 6000) for _ in range(length)]


def measure(url, model):
    """Total tokens per second by load: {"1": …, "8": …, "32": …, "prefill": …}."""
    complete(url, model, prompt(7, 16), 8, 0)
    rates = {}
    for streams in (1, 8, 32):
        prompts = [prompt(streams * 100 + i, PROMPT) for i in range(streams)]
        threads = [threading.Thread(target=complete, args=(url, model, p, NEW, i)) for i, p in enumerate(prompts)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates[str(streams)] = streams * (NEW + PROMPT) / (time.perf_counter() - start)
    long = prompt(3, 512)
    start = time.perf_counter()
    complete(url, model, long, 1, 0)
    rates["prefill"] = 512 / (time.perf_counter() - start)
    return rates


def main():
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
    model = sys.argv[2] if len(sys.argv) > 2 else first_model(url)
    for load, rate in measure(url, model).items():
        print(f"{load:>7}: {rate:7.1f} total tokens/s")


if __name__ == "__main__":
    main()

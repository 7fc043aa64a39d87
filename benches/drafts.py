#!/usr/bin/env python3
"""Guessed tokens (`engine.draft_tokens`) against none, in pairs: two servers of one model, the same requests and seeds in
turns. Fails where a text differs.

    python3 benches/drafts.py --model DIR_OR_GGUF [--draft 8] [--rounds 3] [--weights f32]
    (INSTRUCTD_BIN: default target/debug/instructd; needs an optimised binary)
"""

import argparse
import concurrent.futures
import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/clients"))
import server as instructd  # noqa: E402

STORY = ("The old lighthouse keeper walked down to the harbour every morning. He counted the boats, wrote their names in "
         "a small brown book, and walked back up the hill. On Sundays the baker's daughter came with him.")
CODE = "def total(prices, tax):\n    subtotal = 0\n    for price in prices:\n        subtotal += price\n    return subtotal * (1 + tax)\n"
KINDS = {
    "repeats its prompt": [
        f"Repeat this text word for word:\n\n{STORY}",
        f"Copy this text and replace 'baker' by 'doctor':\n\n{STORY}",
        f"Write this function again with the variable price renamed to p:\n\n{CODE}",
        f"List every sentence of this text as a numbered list:\n\n{STORY}",
    ],
    "free text": [
        "Tell a short story about a fox and a river.",
        "Why is the sky blue?",
        "Give three tips for learning the piano.",
        "Describe a city in the year 2300.",
    ],
}


def ask(url, prompt, seed, tokens):
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "seed": seed, "temperature": 0.3}
    headers = {"content-type": "application/json", "authorization": f"Bearer {instructd.ADMIN_KEY}"}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), headers)
    answer = json.load(urllib.request.urlopen(request, timeout=600))
    return answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]


def run(url, prompts, streams, seed, tokens):
    began = time.perf_counter()
    asked = [(prompts[i % len(prompts)], seed + i) for i in range(max(streams, len(prompts)))]
    with concurrent.futures.ThreadPoolExecutor(streams) as pool:
        answers = list(pool.map(lambda pair: ask(url, *pair, tokens), asked))
    return sum(n for _, n in answers) / (time.perf_counter() - began), [text for text, _ in answers]


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--model", required=True)
    options.add_argument("--draft", type=int, default=8)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--tokens", type=int, default=96)
    options.add_argument("--weights", default="f32")
    options = options.parse_args()
    with contextlib.ExitStack() as stack:
        servers = []
        for draft in (0, options.draft):
            directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="instructd-drafts-")))
            settings = dict(MODEL=pathlib.Path(options.model).resolve(), WEIGHTS=options.weights, ENGINE__DRAFT_TOKENS=draft)
            servers.append(stack.enter_context(instructd.running_in(directory, **settings)))
        for kind, prompts in KINDS.items():
            for streams in (1, 4, 16):
                pairs = []
                for round_ in range(options.rounds + 1):
                    (plain, said), (guessed, told) = (run(s.url, prompts, streams, 100 * round_, options.tokens) for s in servers)
                    assert said == told, f"texts differ: {said} and {told}"
                    pairs.append((plain, guessed))
                pairs = pairs[1:]
                ratios = [b / a for a, b in pairs]
                plain, guessed = (statistics.median(p[i] for p in pairs) for i in (0, 1))
                print(f"{kind}, {streams} streams: {plain:.1f} tokens/s without, {guessed:.1f} with; "
                      f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
        names = ("instructd_draft_tokens_total", "instructd_draft_tokens_right_total")
        print("guessed, right:", *(servers[1].metric(name) for name in names))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Loads a published model directory in Hugging Face transformers and compares it with the server.

    tests/hf_parity.py BINARY MODEL [MODEL …]

MODEL is a model directory, or a .gguf file, which `models export` first turns into a directory.
Compared: prompt log-probs (/v1/completions with echo, logprobs and max_tokens 0) of random and of written
prompts, greedy continuations, and token ids of the tokenizer. Exit code 1 when they differ; without torch
or transformers it says that it is skipped and exits with 0.
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

TOLERANCE = 1e-4  # relative, absolute below 1
TEXTS = ["The capital of France is", "def fibonacci(n):\n", "给女朋友买了这个项链", "Emoji 😀 and naïve café 2024"]

try:
    import torch
    import transformers
except ImportError as error:
    print(f"skipped: {error.name} is not installed")
    sys.exit(0)


def post(base, path, body):
    request = urllib.request.Request(
        base + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{path}: {error.code} {error.read().decode(errors='replace')}") from error


def wait_until_ready(base, process, seconds=300):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with code {process.returncode}")
        try:
            with urllib.request.urlopen(base + "/ready", timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit("the server did not become ready")


def close(ours, theirs):
    return abs(ours - theirs) <= TOLERANCE * max(1.0, abs(theirs))


def compare(base, directory, problems):
    name = os.path.basename(os.path.normpath(directory))
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    positions = getattr(model.config, "max_position_embeddings", 64)
    source = random.Random(1)
    prompts = [[source.randrange(model.config.vocab_size) for _ in range(n)] for n in (1, 2, 7, min(33, positions))]
    tokenizer = None
    if os.path.exists(os.path.join(directory, "tokenizer.json")):
        # Not AutoTokenizer: it rebuilds the tokenizer of the model's type, whatever the file says.
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=os.path.join(directory, "tokenizer.json"))
        texts = TEXTS if len(tokenizer) > 1000 else [" ".join(f"t{i}" for i in (5, 77, 3, 41, 9))]
        for text in texts:
            theirs = tokenizer(text)["input_ids"]
            ours = post(base, "/tokenize", {"prompt": text, "add_special_tokens": True})["tokens"]
            if ours != theirs:
                problems.append(f"{name}: tokens of {text!r}: {ours} instead of {theirs}")
            prompts.append(theirs)
    worst = 0.0
    for ids in prompts:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        logprobs = torch.log_softmax(logits, dim=-1)
        body = {"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 0}
        found = post(base, "/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
        if len(found) != len(ids) or found[0] is not None:
            problems.append(f"{name}: {len(found)} log-probs for {len(ids)} tokens, the first is {found[:1]}")
            continue
        for position in range(1, len(ids)):
            theirs = logprobs[position - 1, ids[position]].item()
            worst = max(worst, abs(found[position] - theirs))
            if not close(found[position], theirs):
                problems.append(f"{name}: log-prob {position} of {ids}: {found[position]} instead of {theirs}")
        room = min(8, positions - len(ids))
        if tokenizer is not None and room > 0:
            tokens = list(ids)
            with torch.no_grad():
                for _ in range(room):
                    tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
            body = {"prompt": ids, "max_tokens": room, "temperature": 0, "ignore_eos": True}
            text = post(base, "/v1/completions", body)["choices"][0]["text"]
            new = tokens[len(ids) :]
            if text not in [tokenizer.decode(new, skip_special_tokens=skip) for skip in (False, True)]:
                problems.append(f"{name}: greedy {text!r} instead of {tokenizer.decode(new)!r}")
    print(f"{name}: {len(prompts)} prompts, largest difference of a log-prob {worst:.2e}")


def main():
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    binary, problems = sys.argv[1], []
    for model in sys.argv[2:]:
        with tempfile.TemporaryDirectory() as work:
            directory = model
            if model.endswith(".gguf"):
                directory = os.path.join(work, "exported")
                subprocess.run([binary, "models", "export", model, directory], check=True)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            base = f"http://127.0.0.1:{port}"
            command = [binary, "serve", "--model", directory, "--weights", "f32"]
            command += ["--data-dir", os.path.join(work, "data"), "--listen", f"127.0.0.1:{port}"]
            process = subprocess.Popen(command, env={**os.environ, "INSTRUCTD_ADMIN_KEY": "parity-test-key"})
            try:
                wait_until_ready(base, process)
                compare(base, directory, problems)
            finally:
                process.terminate()
                process.wait(timeout=60)
    for problem in problems:
        print(problem)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Peak memory of one training step on one long sequence, by its length and by what is recomputed.

    benches/long_sequences.py --binary target/release/instructd --model MODEL.gguf --work DIR

`sft` with LoRA rank 8 on a demonstration of the wanted number of tokens, `recompute` none, mlp and block. The memory is the
process's largest resident set. What is done already in DIR is not done again. Needs Python alone.
"""

import json
import os
import random
import time

import learning_proof
from learning_proof import Server, write_lines, write_result

LENGTHS = [1024, 2048, 4096, 8192]
MODES = ["none", "mlp", "block"]
WORDS = "the a river town light small old goes over under with and then water house road people bread slowly again".split()


def text_of(server, tokens):
    """Words that are a little fewer tokens than wanted, with room for the chat template."""
    draw = random.Random(1)
    words = [draw.choice(WORDS) for _ in range(tokens)]
    have = server.post("/tokenize", {"prompt": " ".join(words)})["tokens"]
    return " ".join(words[: int(len(words) * (tokens - 64) / len(have))])


def step(options, length, mode, demonstrations):
    done = options.work / f"{length}-{mode}.json"
    if not done.exists():
        args = {"model": os.path.abspath(options.model), "device": "cpu", "lora": {"rank": 8, "alpha": 16},
                "demonstrations": demonstrations, "heldout_fraction": 0.0, "max_length": length, "recompute": mode,
                "micro_batch_tokens": length, "batch_size": 1, "max_steps": 1, "output_dir": str(options.work / "out"),
                "log_dir": str(options.work / f"{length}-{mode}.logs")}
        path = options.work / f"{length}-{mode}.args.json"
        path.write_text(json.dumps(args))
        began = time.monotonic()
        with open(options.work / f"{length}-{mode}.log", "w") as log:
            pid = os.posix_spawn(options.binary, [options.binary, "train", "sft", "--args", str(path)], os.environ,
                                 file_actions=[(os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)])
            _, status, usage = os.wait4(pid, 0)
        if status != 0:
            raise RuntimeError(f"{done.stem}: see {options.work}")
        done.write_text(json.dumps({"gb": usage.ru_maxrss / 1e6, "cpu": usage.ru_utime + usage.ru_stime,
                                    "seconds": time.monotonic() - began}))
    return json.loads(done.read_text())


def main():
    parser = learning_proof.arguments(__doc__)
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.work = options.work.resolve()
    options.binary = os.path.abspath(options.binary)
    with Server(options.binary, options.model) as server:
        lines = {}
        for length in options.lengths:
            line = {"prompt": [{"role": "user", "content": "Go on."}], "completion": text_of(server, length)}
            lines[length] = write_lines(options.work / f"{length}.jsonl", [line])
    rows = []
    for length in options.lengths:
        found = {mode: step(options, length, mode, lines[length]) for mode in MODES}
        rows.append({"tokens": length, **{mode: {key: round(value, 2) for key, value in of.items()} for mode, of in found.items()}})
        print(rows[-1], flush=True)
    if options.json:
        write_result(options.json, "long_sequences.py", {"rows": rows})


if __name__ == "__main__":
    main()

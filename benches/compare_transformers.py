#!/usr/bin/env python3
"""This server in f32 or bf16 against Hugging Face transformers' `generate`, one after the other on the same machine.

    benches/compare_transformers.py --model DIR [--dtype f32|bf16] [--instructd BIN] [--rounds 2]

The loads are http_load.py's: 64-token prompts, 128 new tokens at 1, 8 and 32 streams, then a prefill of 512. DIR is a
Hugging Face directory, read by both; transformers runs in this process without HTTP. Needs torch and transformers.
Prints total tokens per second, the best of the rounds, and ratios.
"""

import argparse
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM

import compare
import http_load


def rate_of(model, streams, new):
    length = http_load.PROMPT if new > 1 else 512
    ids = torch.tensor([http_load.prompt(streams * 100 + i, length) for i in range(streams)])
    start = time.perf_counter()
    with torch.inference_mode():
        if new == 1:
            model(ids, logits_to_keep=1)
            return length / (time.perf_counter() - start)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, min_new_tokens=new,
                             max_new_tokens=new, pad_token_id=0)
    assert out.shape[1] == length + new, out.shape
    return streams * (length + new) / (time.perf_counter() - start)


def transformers_rates(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    rate_of(model, 1, 8)
    rates = {str(streams): rate_of(model, streams, http_load.NEW) for streams in (1, 8, 32)}
    rates["prefill"] = rate_of(model, 1, 1)
    return rates


def own_rates(binary, folder, weights, threads):
    port = compare.free_port()
    with tempfile.TemporaryDirectory() as data:
        command = ["env", f"RAYON_NUM_THREADS={threads}", binary, "serve", "--model", folder, "--weights", weights,
                   "--listen", f"127.0.0.1:{port}", "--data-dir", data]
        return compare.measure(command, f"http://127.0.0.1:{port}", "/ready")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--instructd", default="target/release/instructd")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    best = {"instructd": {}, "transformers": {}}
    for _ in range(options.rounds):
        measured = {
            "instructd": own_rates(options.instructd, options.model, options.dtype, options.threads),
            "transformers": transformers_rates(options.model, dtype),
        }
        for who, rates in measured.items():
            for load, rate in rates.items():
                best[who][load] = max(best[who].get(load, 0.0), rate)
    for who, rates in best.items():
        print(f"{who:>12}", *(f"{load:>9} {rate:7.1f}" for load, rate in rates.items()))
    ratios = (f"{load:>9} {rate / best['transformers'][load]:7.2f}" for load, rate in best["instructd"].items())
    print(f"{'ratio':>12}", *ratios)


if __name__ == "__main__":
    main()

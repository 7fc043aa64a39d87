#!/usr/bin/env python3
"""Tokens per second of transformers on a GPU, in the shapes and phases of `benches/gpu.rs`, for its ratios.

    python3 benches/gpu_transformers.py [FILE]

Random weights in bfloat16, `model.generate` with sampling at temperature 1 over its own cache, attention by PyTorch.
Needs torch and transformers; prints JSON and writes it to FILE.
"""

import json
import sys
import time

import torch
import transformers

SHAPES = {
    # hidden, inner, layers, heads, key and value heads, vocabulary, steps
    "SmolLM2-135M's shape": (576, 1536, 30, 9, 3, 49152, 64),
    "SmolLM2-1.7B's shape": (2048, 8192, 24, 32, 32, 49152, 64),
}


def timed(work):
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main():
    rows = []
    for name, (hidden, inner, layers, heads, kv, vocab, steps) in SHAPES.items():
        config = transformers.LlamaConfig(
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv, vocab_size=vocab, max_position_embeddings=2048, tie_word_embeddings=True,
            eos_token_id=None, pad_token_id=0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).cuda().eval()
        with torch.inference_mode():
            ids = torch.randint(1, vocab, (1, 512), device="cuda")
            prompts = [timed(lambda: model(ids, logits_to_keep=1)) for _ in range(3)]
            for streams in (1, 8, 32, 128):
                ids = torch.randint(1, vocab, (streams, 128), device="cuda")

                def generate(tokens):
                    out = model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, top_k=0)
                    assert out.shape[1] == 128 + tokens

                generate(4)
                # The difference of two lengths leaves the prompt out.
                short, long = timed(lambda: generate(4)), timed(lambda: generate(4 + steps))
                rows.append({"shape": name, "streams": streams, "tokens_per_second": round(streams * steps / (long - short), 1),
                             "prompt_512_ms": round(min(prompts[1:]) * 1e3, 2)})
                print(json.dumps(rows[-1]), flush=True)
        del model
    text = json.dumps({"torch": torch.__version__, "transformers": transformers.__version__,
                       "gpu": torch.cuda.get_device_name(0), "rows": rows}, indent=1)
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w") as file:
            file.write(text + "\n")


main()

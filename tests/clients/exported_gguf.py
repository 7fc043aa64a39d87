"""Opens exported GGUF files with the `gguf` package and in llama.cpp (`xllamacpp`), and compares greedy tokens:

    python exported_gguf.py DIR

DIR holds files and expected.json: {file: {"prompt": [...], "greedy": [...], "logprobs": [...]}}."""

import json
import sys
from pathlib import Path

import gguf
import xllamacpp

root = Path(sys.argv[1])
wrong, total = [], 0
for name, want in json.loads((root / "expected.json").read_text()).items():
    reader = gguf.GGUFReader(root / name)
    assert reader.tensors and reader.fields["general.architecture"].contents(), name
    params = xllamacpp.CommonParams()
    params.model.path = str(root / name)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.warmup, params.verbosity = 256, 1, 1, False, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    try:
        server = xllamacpp.Server(params)
    except Exception as error:
        wrong.append(f"{name}: {error}")
        continue
    # One token at a time: a token that is no whole character has no log-probs in the answer, and is not compared.
    ids, far, compared = list(want["prompt"]), 0.0, 0
    for token, logprob in zip(want["greedy"], want["logprobs"]):
        answer = server.handle_completions({
            "prompt": ids, "n_predict": 1, "temperature": 0, "top_k": 1, "ignore_eos": True, "n_probs": 1,
            "cache_prompt": False, "stream": False,
        })
        ids.append(token)
        if not answer["choices"][0].get("logprobs"):
            continue
        found = answer["choices"][0]["logprobs"]["content"][0]
        compared += 1
        if found["id"] != token:
            wrong.append(f"{name}: token {found['id']} instead of {token}")
            break
        far = max(far, abs(found["logprob"] - logprob))
    print(f"{name}: {len(reader.tensors)} tensors, {compared} tokens, log-probs within {far:.1e}", flush=True)
    total += compared
assert total > 200, f"{total} tokens are few"
assert not wrong, "\n".join(wrong)

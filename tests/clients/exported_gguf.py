"""Opens exported GGUF files with the `gguf` package and in llama.cpp (`xllamacpp`), and compares greedy tokens:

    python exported_gguf.py DIR

DIR holds files and expected.json: {file: {"prompt": [...], "greedy": [...], "logprobs": [...]}}."""

import json
import sys
from pathlib import Path

import gguf
import xllamacpp

root = Path(sys.argv[1])
wrong = []
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
    answer = server.handle_completions({
        "prompt": want["prompt"], "n_predict": len(want["greedy"]), "temperature": 0, "top_k": 1, "ignore_eos": True,
        "n_probs": 1, "cache_prompt": False, "stream": False,
    })
    tokens = answer["choices"][0]["logprobs"]["content"]
    found, far = [t["id"] for t in tokens], 0.0
    for token, logprob in zip(tokens, want["logprobs"]):
        far = max(far, abs(token["logprob"] - logprob))
    print(f"{name}: {len(reader.tensors)} tensors, log-probs within {far:.1e}", flush=True)
    if found != want["greedy"]:
        wrong.append(f"{name}: {found} instead of {want['greedy']}")
assert not wrong, "\n".join(wrong)

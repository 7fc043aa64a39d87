"""Loads saved directories with transformers and compares logits: python saved_families.py DIR, which holds directories of
models and expected.json: {name: {"ids": [...], "logits": [[...], ...], "encoder": bool}}."""

import json
import sys
from pathlib import Path

import torch
import transformers

root = Path(sys.argv[1])
for name, want in json.loads((root / "expected.json").read_text()).items():
    kind = transformers.AutoModelForMaskedLM if want["encoder"] else transformers.AutoModelForCausalLM
    model, info = kind.from_pretrained(
        root / name, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    wrong = {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(key)}
    assert not wrong, f"{name}: {wrong}"
    with torch.no_grad():
        got = model.eval()(torch.tensor([want["ids"]])).logits[0]
    logits = torch.tensor(want["logits"])
    far = ((got - logits).abs().max() / logits.abs().max()).item()
    print(f"{name}: logits within {far:.1e}", flush=True)
    assert far < 1e-4, f"{name}: {far}"

"""Writes a tiny llama of random weights over a byte-level vocabulary: able to write any text, knowing nothing."""

import array
import json
import pathlib
import random
import struct

WIDTH, POSITIONS = 32, 2048
SPECIAL = ["<|im_end|>", "<|im_start|>"]
PLAIN = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}"
)


def alphabet():
    """Byte → its character in byte-level vocabularies."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


def write(directory):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True)
    characters = alphabet()
    tokens = SPECIAL + PLAIN + [characters[b] for b in range(256)]
    added = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": t in SPECIAL}
        for i, t in enumerate(SPECIAL + PLAIN)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": []},
    }
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH, "max_position_embeddings": POSITIONS, "num_attention_heads": 4,
        "num_hidden_layers": 1, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "vocab_size": len(tokens), "eos_token_id": 0, "torch_dtype": "float32",
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (directory / "config.json").write_text(json.dumps(config))
    weights(directory / "model.safetensors", len(tokens))
    return directory


def weights(path, vocabulary):
    dice = random.Random(5)
    square, wide = [WIDTH, WIDTH], [2 * WIDTH, WIDTH]
    shapes = {"model.embed_tokens.weight": [vocabulary, WIDTH], "model.norm.weight": [WIDTH]}
    block = {"input_layernorm": [WIDTH], "post_attention_layernorm": [WIDTH], "mlp.gate_proj": wide,
             "mlp.up_proj": wide, "mlp.down_proj": [WIDTH, 2 * WIDTH]}
    block |= {f"self_attn.{p}_proj": square for p in "qkvo"}
    shapes |= {f"model.layers.0.{name}.weight": shape for name, shape in block.items()}
    header, data, at = {}, array.array("f"), 0
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        norm = len(shape) == 1
        data.extend(1.0 if norm else dice.gauss(0, 0.25) for _ in range(count))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * count]}
        at += 4 * count
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data.tobytes())

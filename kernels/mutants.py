"""Injected mistakes: (module, what is written, what stands there instead, the cases that must notice). A check that
lets one of them pass is not a check."""

MUTANTS = [
    # Masks.
    ("forward", "tl.load(table + word * d + c, mask=inside", "tl.load(table + word * BLOCK + c, mask=inside", "embeddings"),
    ("forward", "tl.store(out + row * d + c, v, mask=inside)", "tl.store(out + row * d + c, v)", "embeddings"),
    ("forward", "squares += tl.where(inside, v * v, 0.0)", "squares += v * v", "norms"),
    ("forward", "mask=(row < n)[:, None] & (kk < left)[None, :], other=0.0)\n        b = tl.load(ws + start, mask=(col",
     "mask=(row < n)[:, None], other=0.0)\n        b = tl.load(ws + start, mask=(col", "products"),
    ("forward", "tl.store(to, acc.to(y.dtype.element_ty), mask=(row < n)[:, None] & (col < m)[None, :])",
     "tl.store(to, acc.to(y.dtype.element_ty), mask=(row < n)[:, None])", "products"),
    ("forward", "there = key < position + count", "there = key < position + count + 1", "paged_attention"),
    ("forward", "p = tl.where(c < vocab, tl.exp(v), 0.0)", "p = tl.exp(v)", "logits"),
    ("backward", "(rr < left)[:, None] & (col < k)[None, :], other=0.0)", "(col < k)[None, :], other=0.0)",
     "gradients_of_products"),
    ("backward", "inside = (row < n)[:, None] & (c < d)[None, :]", "inside = (c < d)[None, :] & (row >= 0)[:, None]",
     "gradients_of_norms"),
    # Who sees whom.
    ("forward", "seen = key[None, :] <= (position + i)[:, None]", "seen = key[None, :] < (position + i)[:, None]",
     "paged_attention"),
    ("forward", "seen & (key[None, :] > (position + i)[:, None] - window)",
     "seen & (key[None, :] >= (position + i)[:, None] - window)", "paged_attention"),
    ("forward", "mass = mass * shrink + tl.sum(p, 1)", "mass = mass + tl.sum(p, 1)", "paged_attention"),
    ("forward", "for split in range(first, position // SPLIT + 1):", "for split in range(first, position // SPLIT):",
     "paged_attention"),
    ("backward", "seen = asked[:, None] & (key < length)[None, :] & (key[None, :] <= i[:, None])",
     "seen = asked[:, None] & (key < length)[None, :] & (key[None, :] < i[:, None])", "flash_attention"),
    ("backward", "end = tl.minimum(length, first + BN - 1 + window)", "end = tl.minimum(length, first + window)",
     "flash_attention"),
    # Places.
    ("forward", "head = kv * (heads // kv_heads) + head_from + r % head_count",
     "head = kv * (heads // kv_heads) + r % head_count", "paged_attention"),
    ("forward", "at = ((page * kv_heads + kv) * PAGE + key % PAGE) * hd", "at = (page * kv_heads + kv) * PAGE * hd",
     "paged_attention"),
    ("forward", "page = tl.load(tables + sequence * table_width + key // PAGE, mask=there, other=0).to(tl.int64)",
     "page = tl.load(tables + sequence * table_width + key // PAGE, mask=there, other=0)", "far_pages"),
    ("forward", "slot = tl.load(slots + row).to(tl.int64)", "slot = tl.load(slots + row)", "far_pages"),
    ("forward", "h = tl.where(is_q, part, tl.where(is_v, part - heads - kv_heads, part - heads))",
     "h = tl.where(is_q, part, part - heads)", "rope_into_pages"),
    ("forward", "v = tl.where(c < half, v * co - partner * si, v * co + partner * si)",
     "v = tl.where(c < half, v * co + partner * si, v * co - partner * si)", "rope_into_pages"),
    ("forward", "turned = c < 2 * half", "turned = c < hd", "rope_into_pages"),
    ("forward", "s = tl.load(ss + ((start + kk) // 32)[:, None]", "s = tl.load(ss + (kk // 32)[:, None]",
     "q8_products"),
    ("backward", "kv = h // (heads // kv_heads)", "kv = h % kv_heads", "flash_attention"),
    # Formulas.
    ("forward", "v += scale * tl.load(branch + row * d + c", "v += tl.load(branch + row * d + c", "norms"),
    ("forward", "factor = 1.0 / tl.sqrt(mean + eps)", "factor = 1.0 / tl.sqrt(mean)", "tiny_norms"),
    ("forward", "acc = acc * a + tl.load(partial", "acc = acc + tl.load(partial", "paged_attention"),
    ("forward", "t = 1.5957691216057308 * (x + 0.044715 * x * x * x)", "t = 1.702 * x", "activations"),
    ("forward", "chosen = tl.where(chosen < vocab, chosen, last)", "chosen = chosen", "logits"),
    ("forward", "best = tl.min(tl.where((v == top) & (c < vocab), c, vocab), 0)",
     "best = vocab - 1 - tl.min(tl.where((v == top) & (c < vocab), vocab - 1 - c, vocab), 0)", "logits"),
    ("forward", "log_mass - tl.sum(moments, 0) / mass", "log_mass - tl.sum(moments, 0)", "logits"),
    ("backward", "(g - level - unit * shared) * factor", "(g - unit * shared) * factor", "gradients_of_norms"),
    ("backward", "sum_k += tl.dot(tl.trans(gz)", "sum_k += tl.dot(tl.trans(p)", "flash_attention"),
    ("backward", "- de[:, None]) * scale\n            if CAP", ") * scale\n            if CAP", "flash_attention"),
    ("backward", "                if CAP:\n                    gz *= 1.0 - (z / cap) * (z / cap)\n", "", "flash_attention"),
    ("backward", "by *= (1.0 - (raw / cap) * (raw / cap)) * before", "by *= before", "gradients_of_logprobs"),
    ("backward", "return x * s, s * (1.0 + x * (1.0 - s))", "return x * s, s", "gradients_of_activations"),
    ("backward", "by = (hit - p) * tl.load(g + row) * inverse", "by = (hit - p) * tl.load(g + row)",
     "gradients_of_logprobs"),
    ("backward", "tl.sqrt(vv / correct2) + eps", "tl.sqrt(vv / correct2 + eps)", "tables_and_steps"),
    ("backward", "for at in range(tl.load(starts + u), tl.load(starts + u + 1)):",
     "for at in range(tl.load(starts + u), tl.load(starts + u) + 1):", "tables_and_steps"),
    ("backward", "(before + scale * acc)", "(before + acc)", "gradients_of_products"),
    ("backward", "    acc *= scale\n", "", "gradients_of_products"),
    ("backward", "first = tl.program_id(0).to(tl.int64) * (EACH * BLOCK)",
     "first = tl.program_id(0).to(tl.int64) * BLOCK", "tables_and_steps"),
    # A sum whose order depends on the tile: other bits in a batch.
    ("forward", "    acc = tl.zeros((BN, BM), tl.float32)\n    for start in range(0, k, BK):\n        left = k - start\n"
     "        a = tl.load(xs + start, mask=(row < n)[:, None] & (kk < left)[None, :], other=0.0)\n"
     "        b = tl.load(ws + start, mask=(col < m)",
     "    acc = tl.zeros((BN, BM), tl.float32)\n    for start in range(k // BK * BK * (n // 16) % (k // BK * BK + BK), -1,"
     " -BK):\n        left = k - start\n"
     "        a = tl.load(xs + start, mask=(row < n)[:, None] & (kk < left)[None, :], other=0.0)\n"
     "        b = tl.load(ws + start, mask=(col < m)", "products"),
]

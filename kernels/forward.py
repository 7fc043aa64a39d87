"""Kernels of forward passes and of serving.

Conventions: matrices are row-major; `n` counts rows (tokens). The residual stream is f32; what flows between its
additions has the element type of the variant (f32 or bf16). Every sum runs in an order that does not depend on the
number of rows in the launch, so a row's result has the same bits alone and in any batch. Indices that can exceed
2**31 are 64-bit.
"""

import triton
import triton.language as tl

PAGE = tl.constexpr(16)
NEVER = tl.constexpr(-1.0e30)


@triton.jit
def embed(ids, table, positions, position_table, out, d, scale, POSITIONS: tl.constexpr, BLOCK: tl.constexpr):
    """out [n, d] f32 = scale * table[ids], plus position_table[positions] where POSITIONS. Grid (n)."""
    row = tl.program_id(0).to(tl.int64)
    word = tl.load(ids + row).to(tl.int64)
    for start in range(0, d, BLOCK):
        c = start + tl.arange(0, BLOCK)
        inside = c < d
        v = tl.load(table + word * d + c, mask=inside, other=0.0).to(tl.float32) * scale
        if POSITIONS:
            at = tl.load(positions + row).to(tl.int64)
            v += tl.load(position_table + at * d + c, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + row * d + c, v, mask=inside)


@triton.jit
def norm(x, branch, weight, bias, y, d, x_stride, y_stride, eps, scale, offset, ADD: tl.constexpr, LAYER: tl.constexpr,
         KEEP: tl.constexpr, BLOCK: tl.constexpr):
    """y [n, d] = norm(x) * (weight + offset) (+ bias for LayerNorm). Where ADD, x += scale * branch [n, d] first, in
    place. Where KEEP, x becomes the result too, before it is rounded to the type of y. Rows of x and y are x_stride and
    y_stride apart; y may be x. Grid (n)."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    y += row * y_stride
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, d, BLOCK):
        c = start + tl.arange(0, BLOCK)
        inside = c < d
        v = tl.load(x + c, mask=inside, other=0.0).to(tl.float32)
        if ADD:
            v += scale * tl.load(branch + row * d + c, mask=inside, other=0.0).to(tl.float32)
            tl.store(x + c, v, mask=inside)
        if LAYER:
            total += v
        else:
            total += v * v
    mean = tl.sum(total, 0) / d
    if LAYER:
        squares = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, d, BLOCK):
            c = start + tl.arange(0, BLOCK)
            inside = c < d
            v = tl.load(x + c, mask=inside, other=0.0).to(tl.float32) - mean
            squares += tl.where(inside, v * v, 0.0)
        factor = 1.0 / tl.sqrt(tl.sum(squares, 0) / d + eps)
    else:
        factor = 1.0 / tl.sqrt(mean + eps)
    for start in range(0, d, BLOCK):
        c = start + tl.arange(0, BLOCK)
        inside = c < d
        v = tl.load(x + c, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32) + offset
        if LAYER:
            v = (v - mean) * factor * w + tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
        else:
            v = v * factor * w
        if KEEP:
            tl.store(x + c, v, mask=inside)
        tl.store(y + c, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def add(x, branch, count, scale, BLOCK: tl.constexpr):
    """x [count] f32 += scale * branch. Grid (ceil(count / BLOCK))."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    v = tl.load(x + i, mask=inside, other=0.0) + scale * tl.load(branch + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + i, v, mask=inside)


@triton.jit
def rope_cache(qkv, cos, sin, rotary, slots, q_weight, k_weight, q_out, keys, values, heads, kv_heads, hd, half, width,
               head_stride, k_base, v_base, eps, offset, NORM: tl.constexpr, HD: tl.constexpr):
    """Rotates q into q_out [n, heads, hd] and k into its page, and copies v into its page. Where NORM, q and k are
    RMS-normalised per head first. A row of qkv has `width` channels; head h of a part begins at its base +
    h * head_stride. Pages are [page][kv head][16][hd]; slots are 16 * page + place. cos and sin are [rows, half].
    Grid (n, heads + 2 * kv_heads)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    c = tl.arange(0, HD)
    inside = c < hd
    is_q = part < heads
    is_v = part >= heads + kv_heads
    h = tl.where(is_q, part, tl.where(is_v, part - heads - kv_heads, part - heads))
    base = tl.where(is_q, 0, tl.where(is_v, v_base, k_base))
    source = qkv + row * width + base + h * head_stride
    v = tl.load(source + c, mask=inside, other=0.0).to(tl.float32)
    if is_v == 0:
        other = tl.where(c < half, c + half, c - half)
        turned = c < 2 * half
        partner = tl.load(source + other, mask=turned, other=0.0).to(tl.float32)
        if NORM:
            factor = 1.0 / tl.sqrt(tl.sum(v * v, 0) / hd + eps)
            own_k = tl.load(k_weight + c, mask=inside, other=0.0).to(tl.float32)
            own_q = tl.load(q_weight + c, mask=inside, other=0.0).to(tl.float32)
            their_k = tl.load(k_weight + other, mask=turned, other=0.0).to(tl.float32)
            their_q = tl.load(q_weight + other, mask=turned, other=0.0).to(tl.float32)
            v = v * factor * (tl.where(is_q, own_q, own_k) + offset)
            partner = partner * factor * (tl.where(is_q, their_q, their_k) + offset)
        at = tl.load(rotary + row).to(tl.int64) * half
        angle = tl.where(c < half, c, c - half)
        co = tl.load(cos + at + angle, mask=turned, other=1.0)
        si = tl.load(sin + at + angle, mask=turned, other=0.0)
        v = tl.where(c < half, v * co - partner * si, v * co + partner * si)
    if is_q:
        tl.store(q_out + (row * heads + h) * hd + c, v.to(q_out.dtype.element_ty), mask=inside)
    else:
        slot = tl.load(slots + row).to(tl.int64)
        to = ((slot // PAGE * kv_heads + h) * PAGE + slot % PAGE) * hd
        if is_v:
            tl.store(values + to + c, v.to(values.dtype.element_ty), mask=inside)
        else:
            tl.store(keys + to + c, v.to(keys.dtype.element_ty), mask=inside)


@triton.jit
def attend(q, keys, values, tables, tiles, partial, maxima, sums, n, heads, kv_heads, hd, table_width, window, scale,
           cap, CAP: tl.constexpr, HD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr):
    """Attention of tiles of query rows over one fixed range of SPLIT keys; `combine` joins the ranges.

    A tile is 6 ints (8 apart): first row, rows, row of `tables`, position of the first row, first head within the
    group of one key head, heads of it. rows * heads <= ROWS. partial is [splits, n, heads, hd], maxima and sums
    [splits, n, heads]. window 0 = all keys. Grid (tiles, kv_heads, splits)."""
    tile = tiles + tl.program_id(0) * 8
    kv = tl.program_id(1)
    split = tl.program_id(2)
    first = tl.load(tile)
    count = tl.load(tile + 1)
    sequence = tl.load(tile + 2).to(tl.int64)
    position = tl.load(tile + 3)
    head_from = tl.load(tile + 4)
    head_count = tl.load(tile + 5)
    r = tl.arange(0, ROWS)
    c = tl.arange(0, HD)
    j = tl.arange(0, BLOCK)
    i = r // head_count
    asked = i < count
    row = (first + i).to(tl.int64)
    head = kv * (heads // kv_heads) + head_from + r % head_count
    end = tl.minimum(position + count, (split + 1) * SPLIT)
    start = split * SPLIT
    if window > 0:
        start = tl.maximum(start, tl.maximum(position + 1 - window, 0) // BLOCK * BLOCK)
    wide = c < hd
    place = (row * heads + head)[:, None] * hd + c[None, :]
    qv = tl.load(q + place, mask=asked[:, None] & wide[None, :], other=0.0)
    acc = tl.zeros((ROWS, HD), tl.float32)
    top = tl.full((ROWS,), NEVER, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    for from_key in range(start, end, BLOCK):
        key = from_key + j
        there = key < position + count
        page = tl.load(tables + sequence * table_width + key // PAGE, mask=there, other=0).to(tl.int64)
        at = ((page * kv_heads + kv) * PAGE + key % PAGE) * hd
        k = tl.load(keys + at[None, :] + c[:, None], mask=there[None, :] & wide[:, None], other=0.0)
        v = tl.load(values + at[:, None] + c[None, :], mask=there[:, None] & wide[None, :], other=0.0)
        z = tl.dot(qv, k, input_precision="ieee") * scale
        if CAP:
            z = cap * (1.0 - 2.0 / (tl.exp(2.0 * z / cap) + 1.0))
        seen = key[None, :] <= (position + i)[:, None]
        if window > 0:
            seen = seen & (key[None, :] > (position + i)[:, None] - window)
        z = tl.where(seen, z, NEVER)
        now = tl.maximum(top, tl.max(z, 1))
        p = tl.where(seen, tl.exp(z - now[:, None]), 0.0)
        shrink = tl.exp(top - now)
        mass = mass * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = now
    behind = split.to(tl.int64) * n * heads
    line = behind + row * heads + head
    tl.store(maxima + line, top, mask=asked)
    tl.store(sums + line, mass, mask=asked)
    tl.store(partial + line[:, None] * hd + c[None, :], acc, mask=asked[:, None] & wide[None, :])


@triton.jit
def combine(partial, maxima, sums, positions, out, n, heads, hd, window, HD: tl.constexpr, SPLIT: tl.constexpr):
    """Joins what `attend` computed of the ranges of keys that a row sees, in ascending order; out [n, heads, hd].
    Grid (n, heads)."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    c = tl.arange(0, HD)
    wide = c < hd
    position = tl.load(positions + row)
    first = 0
    if window > 0:
        first = tl.maximum(position + 1 - window, 0) // SPLIT
    acc = tl.zeros((HD,), tl.float32)
    top = NEVER
    mass = 0.0
    for split in range(first, position // SPLIT + 1):
        line = (split * n + row) * heads + head
        their = tl.load(maxima + line)
        now = tl.maximum(top, their)
        a = tl.exp(top - now)
        b = tl.exp(their - now)
        mass = mass * a + tl.load(sums + line) * b
        acc = acc * a + tl.load(partial + line * hd + c, mask=wide, other=0.0) * b
        top = now
    tl.store(out + (row * heads + head) * hd + c, (acc / mass).to(out.dtype.element_ty), mask=wide)


@triton.jit
def matmul(x, w, bias, y, n, m, k, BIAS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """y [n, m] = x [n, k] . w [m, k] transposed, plus bias [m]. k is summed in ascending blocks of BK whatever n is.
    Grid (ceil(m / BM), ceil(n / BN))."""
    col = tl.program_id(0) * BM + tl.arange(0, BM)
    row = tl.program_id(1) * BN + tl.arange(0, BN)
    kk = tl.arange(0, BK)
    xs = x + row[:, None].to(tl.int64) * k + kk[None, :]
    ws = w + col[None, :].to(tl.int64) * k + kk[:, None]
    acc = tl.zeros((BN, BM), tl.float32)
    for start in range(0, k, BK):
        left = k - start
        a = tl.load(xs + start, mask=(row < n)[:, None] & (kk < left)[None, :], other=0.0)
        b = tl.load(ws + start, mask=(col < m)[None, :] & (kk < left)[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias + col, mask=col < m, other=0.0).to(tl.float32)[None, :]
    to = y + row[:, None].to(tl.int64) * m + col[None, :]
    tl.store(to, acc.to(y.dtype.element_ty), mask=(row < n)[:, None] & (col < m)[None, :])


@triton.jit
def matmul_q8(x, w, scales, bias, y, n, m, k, BIAS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
              BK: tl.constexpr):
    """The same with w int8 [m, k] in blocks of 32 along k, one f16 scale each: [m, k / 32]. A weight is dequantised to
    the type of x. k is a multiple of 32."""
    col = tl.program_id(0) * BM + tl.arange(0, BM)
    row = tl.program_id(1) * BN + tl.arange(0, BN)
    kk = tl.arange(0, BK)
    xs = x + row[:, None].to(tl.int64) * k + kk[None, :]
    ws = w + col[None, :].to(tl.int64) * k + kk[:, None]
    ss = scales + col[None, :].to(tl.int64) * (k // 32)
    acc = tl.zeros((BN, BM), tl.float32)
    for start in range(0, k, BK):
        left = k - start
        there = (col < m)[None, :] & (kk < left)[:, None]
        a = tl.load(xs + start, mask=(row < n)[:, None] & (kk < left)[None, :], other=0.0)
        b = tl.load(ws + start, mask=there, other=0).to(tl.float32)
        s = tl.load(ss + ((start + kk) // 32)[:, None], mask=there, other=0.0).to(tl.float32)
        acc = tl.dot(a, (b * s).to(a.dtype), acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias + col, mask=col < m, other=0.0).to(tl.float32)[None, :]
    to = y + row[:, None].to(tl.int64) * m + col[None, :]
    tl.store(to, acc.to(y.dtype.element_ty), mask=(row < n)[:, None] & (col < m)[None, :])


@triton.jit
def matmul_q4(x, w, scales, minima, bias, y, n, m, k, BIAS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
              BK: tl.constexpr):
    """The same with w in 4 bits, [m, k / 2] bytes: byte i of the 16 of a block of 32 along k has value i in its low half
    and value 16 + i in its high half. A weight is scale * value + minimum, in f16 [m, k / 32] each, dequantised to the
    type of x. k is a multiple of 32. The first halves of the blocks of BK inputs are summed before the second halves:
    all tiles of a type have the same BK."""
    col = tl.program_id(0) * BM + tl.arange(0, BM)
    row = tl.program_id(1) * BN + tl.arange(0, BN)
    j = tl.arange(0, BK // 2)
    g = tl.arange(0, BK // 32)
    kk = j // 16 * 32 + j % 16
    xs = x + row[:, None].to(tl.int64) * k + kk[None, :]
    ws = w + col[None, :].to(tl.int64) * (k // 32 * 16) + j[:, None]
    blocks = col[None, :].to(tl.int64) * (k // 32) + g[:, None]
    acc = tl.zeros((BN, BM), tl.float32)
    for start in range(0, k, BK):
        left = k - start
        inside = (row < n)[:, None] & (kk < left)[None, :]
        there = (col < m)[None, :] & (g * 32 < left)[:, None]
        first = tl.load(xs + start, mask=inside, other=0.0)
        second = tl.load(xs + start + 16, mask=inside, other=0.0)
        q = tl.load(ws + start // 2, mask=(col < m)[None, :] & (kk < left)[:, None], other=0)
        s = tl.load(scales + blocks + start // 32, mask=there, other=0.0).to(tl.float32)
        least = tl.load(minima + blocks + start // 32, mask=there, other=0.0).to(tl.float32)
        s = tl.reshape(tl.broadcast_to(s[:, None, :], (BK // 32, 16, BM)), (BK // 2, BM))
        least = tl.reshape(tl.broadcast_to(least[:, None, :], (BK // 32, 16, BM)), (BK // 2, BM))
        low = (q & 15).to(tl.float32) * s + least
        high = ((q >> 4) & 15).to(tl.float32) * s + least
        acc = tl.dot(first, low.to(first.dtype), acc, input_precision="ieee")
        acc = tl.dot(second, high.to(second.dtype), acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias + col, mask=col < m, other=0.0).to(tl.float32)[None, :]
    to = y + row[:, None].to(tl.int64) * m + col[None, :]
    tl.store(to, acc.to(y.dtype.element_ty), mask=(row < n)[:, None] & (col < m)[None, :])


@triton.jit
def matmul_fine(x, w, scales, minima, bias, y, n, m, k, BIAS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
                BK: tl.constexpr):
    """The same with w int8 [m, k] in blocks of 16 along k. A weight is scale * value + minimum, in f16 [m, k / 16] each,
    dequantised to the type of x. k is a multiple of 32."""
    col = tl.program_id(0) * BM + tl.arange(0, BM)
    row = tl.program_id(1) * BN + tl.arange(0, BN)
    kk = tl.arange(0, BK)
    g = tl.arange(0, BK // 16)
    xs = x + row[:, None].to(tl.int64) * k + kk[None, :]
    ws = w + col[None, :].to(tl.int64) * (k // 32 * 32) + kk[:, None]
    groups = col[None, :].to(tl.int64) * (k // 32 * 2) + g[:, None]
    acc = tl.zeros((BN, BM), tl.float32)
    for start in range(0, k, BK):
        left = k - start
        there = (col < m)[None, :] & (g * 16 < left)[:, None]
        a = tl.load(xs + start, mask=(row < n)[:, None] & (kk < left)[None, :], other=0.0)
        q = tl.load(ws + start, mask=(col < m)[None, :] & (kk < left)[:, None], other=0)
        s = tl.load(scales + groups + start // 16, mask=there, other=0.0).to(tl.float32)
        least = tl.load(minima + groups + start // 16, mask=there, other=0.0).to(tl.float32)
        s = tl.reshape(tl.broadcast_to(s[:, None, :], (BK // 16, 16, BM)), (BK, BM))
        least = tl.reshape(tl.broadcast_to(least[:, None, :], (BK // 16, 16, BM)), (BK, BM))
        acc = tl.dot(a, (q.to(tl.float32) * s + least).to(a.dtype), acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias + col, mask=col < m, other=0.0).to(tl.float32)[None, :]
    to = y + row[:, None].to(tl.int64) * m + col[None, :]
    tl.store(to, acc.to(y.dtype.element_ty), mask=(row < n)[:, None] & (col < m)[None, :])


@triton.jit
def activated(x, KIND: tl.constexpr):
    """KIND 0: SiLU, 1: GELU by tanh, 2: GELU by erf; of f32."""
    if KIND == 0:
        return x / (1.0 + tl.exp(-x))
    elif KIND == 1:
        t = 1.5957691216057308 * (x + 0.044715 * x * x * x)
        return x / (1.0 + tl.exp(-t))
    else:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def activate(x, y, inner, KIND: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr):
    """y [n, inner] = activation(x), or of rows of x [n, 2 * inner] activation(first half) * second half.
    Grid (n, ceil(inner / BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < inner
    if GATED:
        gate = tl.load(x + row * 2 * inner + c, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(x + row * 2 * inner + inner + c, mask=inside, other=0.0).to(tl.float32)
        v = activated(gate, KIND) * up
    else:
        v = activated(tl.load(x + row * inner + c, mask=inside, other=0.0).to(tl.float32), KIND)
    tl.store(y + row * inner + c, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def shape_logits(z, count, inverse, cap, CAP: tl.constexpr, BLOCK: tl.constexpr):
    """z [count] f32 *= inverse, then cap * tanh(z / cap) where CAP; in place. Grid (ceil(count / BLOCK))."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    v = tl.load(z + i, mask=inside, other=0.0) * inverse
    if CAP:
        v = cap * (1.0 - 2.0 / (tl.exp(2.0 * v / cap) + 1.0))
    tl.store(z + i, v, mask=inside)


@triton.jit
def gather_rows(x, rows, y, d, BLOCK: tl.constexpr):
    """y [m, d] = x[rows]. Grid (m, ceil(d / BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(rows + row).to(tl.int64)
    v = tl.load(x + source * d + c, mask=c < d, other=0.0)
    tl.store(y + row * d + c, v.to(y.dtype.element_ty), mask=c < d)


@triton.jit
def logprobs(z, targets, logprob, lse, entropy, vocab, inverse, BLOCK: tl.constexpr):
    """Of rows of z [n, vocab] f32 times `inverse` (1 / temperature): log-softmax at targets [n], log-sum-exp and
    entropy in nats. Grid (n)."""
    row = tl.program_id(0).to(tl.int64)
    z += row * vocab
    tops = tl.full((BLOCK,), NEVER, tl.float32)
    for start in range(0, vocab, BLOCK):
        c = start + tl.arange(0, BLOCK)
        tops = tl.maximum(tops, tl.load(z + c, mask=c < vocab, other=NEVER))
    top = tl.max(tops, 0) * inverse
    masses = tl.zeros((BLOCK,), tl.float32)
    moments = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab, BLOCK):
        c = start + tl.arange(0, BLOCK)
        v = tl.load(z + c, mask=c < vocab, other=0.0) * inverse - top
        p = tl.where(c < vocab, tl.exp(v), 0.0)
        masses += p
        moments += tl.where(p > 0.0, p * v, 0.0)
    mass = tl.sum(masses, 0)
    log_mass = tl.log(mass)
    target = tl.load(targets + row)
    tl.store(logprob + row, tl.load(z + target) * inverse - top - log_mass)
    tl.store(lse + row, top + log_mass)
    tl.store(entropy + row, log_mass - tl.sum(moments, 0) / mass)


@triton.jit
def sample(z, uniforms, inverses, ids, vocab, BLOCK: tl.constexpr):
    """A token of every row of z [n, vocab] f32: the largest (the first of equals) where inverses[row] is 0, else
    drawn from softmax(z * inverses[row]) by the uniform number in [0, 1), tokens in ascending order. Grid (n)."""
    row = tl.program_id(0).to(tl.int64)
    z += row * vocab
    inverse = tl.load(inverses + row)
    tops = tl.full((BLOCK,), NEVER, tl.float32)
    for start in range(0, vocab, BLOCK):
        c = start + tl.arange(0, BLOCK)
        tops = tl.maximum(tops, tl.load(z + c, mask=c < vocab, other=NEVER))
    top = tl.max(tops, 0)
    chosen = vocab
    if inverse == 0.0:
        for start in range(0, vocab, BLOCK):
            c = start + tl.arange(0, BLOCK)
            v = tl.load(z + c, mask=c < vocab, other=NEVER)
            best = tl.min(tl.where((v == top) & (c < vocab), c, vocab), 0)
            chosen = tl.minimum(chosen, best)
    else:
        total = tl.zeros((), tl.float64)
        for start in range(0, vocab, BLOCK):
            c = start + tl.arange(0, BLOCK)
            v = tl.load(z + c, mask=c < vocab, other=NEVER)
            total += tl.sum(tl.where(c < vocab, tl.exp((v - top) * inverse), 0.0), 0).to(tl.float64)
        target = tl.load(uniforms + row) * total
        before = tl.zeros((), tl.float64)
        last = 0
        for start in range(0, vocab, BLOCK):
            c = start + tl.arange(0, BLOCK)
            v = tl.load(z + c, mask=c < vocab, other=NEVER)
            p = tl.where(c < vocab, tl.exp((v - top) * inverse), 0.0)
            passed = (before + tl.cumsum(p, 0).to(tl.float64) > target) & (p > 0.0)
            chosen = tl.minimum(chosen, tl.min(tl.where(passed, c, vocab), 0))
            last = tl.maximum(last, tl.max(tl.where(p > 0.0, c, 0), 0))
            before += tl.sum(p, 0).to(tl.float64)
        # Rounding may let none pass.
        chosen = tl.where(chosen < vocab, chosen, last)
    tl.store(ids + row, chosen)

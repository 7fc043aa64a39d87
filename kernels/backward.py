"""Kernels of training: forward passes over packed sequences that keep what a gradient needs, gradients, AdamW.

Every gradient is summed by one program in a fixed order; there are no atomic additions, so a repeated step gives the
same bits. The conventions of forward.py hold.
"""

import triton
import triton.language as tl

NEVER = tl.constexpr(-1.0e30)


@triton.jit
def matmul_nn(gy, w, gx, n, m, k, stride, scale, ADD: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """gx [n, k] = scale * gy [n, m] . w [m, k], added to what is there where ADD; rows of gy are `stride` elements
    apart. Grid (ceil(k / BK), ceil(n / BN))."""
    col = tl.program_id(0) * BK + tl.arange(0, BK)
    row = tl.program_id(1) * BN + tl.arange(0, BN)
    mm = tl.arange(0, BM)
    gs = gy + row[:, None].to(tl.int64) * stride + mm[None, :]
    acc = tl.zeros((BN, BK), tl.float32)
    for start in range(0, m, BM):
        left = m - start
        a = tl.load(gs + start, mask=(row < n)[:, None] & (mm < left)[None, :], other=0.0)
        ws = w + (start + mm)[:, None].to(tl.int64) * k + col[None, :]
        b = tl.load(ws, mask=(mm < left)[:, None] & (col < k)[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    inside = (row < n)[:, None] & (col < k)[None, :]
    to = gx + row[:, None].to(tl.int64) * k + col[None, :]
    acc *= scale
    if ADD:
        acc += tl.load(to, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, acc.to(gx.dtype.element_ty), mask=inside)


@triton.jit
def matmul_tn(gy, x, gw, n, m, k, stride, scale, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """gw [m, k] f32 += scale * gy [n, m] transposed . x [n, k]; rows of gy are `stride` elements apart.
    Grid (ceil(k / BK), ceil(m / BM))."""
    col = tl.program_id(0) * BK + tl.arange(0, BK)
    line = tl.program_id(1) * BM + tl.arange(0, BM)
    rr = tl.arange(0, BN)
    acc = tl.zeros((BM, BK), tl.float32)
    for start in range(0, n, BN):
        left = n - start
        row = (start + rr).to(tl.int64)
        a = tl.load(gy + row[None, :] * stride + line[:, None], mask=(line < m)[:, None] & (rr < left)[None, :],
                    other=0.0)
        b = tl.load(x + row[:, None] * k + col[None, :], mask=(rr < left)[:, None] & (col < k)[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    inside = (line < m)[:, None] & (col < k)[None, :]
    to = gw + line[:, None].to(tl.int64) * k + col[None, :]
    tl.store(to, tl.load(to, mask=inside, other=0.0) + scale * acc, mask=inside)


@triton.jit
def matmul_add(x, w, y, n, m, k, stride, scale, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """y [n, m] += scale * x [n, k] . w [m, k] transposed, the low-rank term of an adapter; rows of y are `stride`
    elements apart. Grid (ceil(m / BM), ceil(n / BN))."""
    col = tl.program_id(0) * BM + tl.arange(0, BM)
    row = tl.program_id(1) * BN + tl.arange(0, BN)
    kk = tl.arange(0, BK)
    acc = tl.zeros((BN, BM), tl.float32)
    for start in range(0, k, BK):
        left = k - start
        xs = x + row[:, None].to(tl.int64) * k + start + kk[None, :]
        ws = w + col[None, :].to(tl.int64) * k + start + kk[:, None]
        a = tl.load(xs, mask=(row < n)[:, None] & (kk < left)[None, :], other=0.0)
        b = tl.load(ws, mask=(col < m)[None, :] & (kk < left)[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    inside = (row < n)[:, None] & (col < m)[None, :]
    to = y + row[:, None].to(tl.int64) * stride + col[None, :]
    before = tl.load(to, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, (before + scale * acc).to(y.dtype.element_ty), mask=inside)


@triton.jit
def column_sums(gy, g, n, m, BN: tl.constexpr, BLOCK: tl.constexpr):
    """g [m] f32 += the sums of the columns of gy [n, m]. Grid (ceil(m / BLOCK))."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rr = tl.arange(0, BN)
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BN):
        row = (start + rr).to(tl.int64)
        v = tl.load(gy + row[:, None] * m + c[None, :], mask=(row < n)[:, None] & (c < m)[None, :], other=0.0)
        acc += tl.sum(v.to(tl.float32), 0)
    tl.store(g + c, tl.load(g + c, mask=c < m, other=0.0) + acc, mask=c < m)


@triton.jit
def norm_back(x, weight, gy, gx, factors, means, d, eps, offset, LAYER: tl.constexpr, BLOCK: tl.constexpr):
    """gx [n, d] f32 += the gradient of norm(x) * (weight + offset) at gy [n, d]. Keeps the factor 1 / deviation and
    the mean (0 for RMS) of every row for `norm_back_weight`. Grid (n)."""
    row = tl.program_id(0).to(tl.int64)
    x += row * d
    gy += row * d
    gx += row * d
    mean = 0.0
    if LAYER:
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, d, BLOCK):
            c = start + tl.arange(0, BLOCK)
            total += tl.load(x + c, mask=c < d, other=0.0)
        mean = tl.sum(total, 0) / d
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, d, BLOCK):
        c = start + tl.arange(0, BLOCK)
        v = tl.load(x + c, mask=c < d, other=0.0) - mean
        squares += tl.where(c < d, v * v, 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(squares, 0) / d + eps)
    plain = tl.zeros((BLOCK,), tl.float32)
    along = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, d, BLOCK):
        c = start + tl.arange(0, BLOCK)
        w = tl.load(weight + c, mask=c < d, other=0.0).to(tl.float32) + offset
        g = tl.load(gy + c, mask=c < d, other=0.0).to(tl.float32) * w
        unit = (tl.load(x + c, mask=c < d, other=0.0) - mean) * factor
        plain += g
        along += g * unit
    shared = tl.sum(along, 0) / d
    level = 0.0
    if LAYER:
        level = tl.sum(plain, 0) / d
    for start in range(0, d, BLOCK):
        c = start + tl.arange(0, BLOCK)
        w = tl.load(weight + c, mask=c < d, other=0.0).to(tl.float32) + offset
        g = tl.load(gy + c, mask=c < d, other=0.0).to(tl.float32) * w
        unit = (tl.load(x + c, mask=c < d, other=0.0) - mean) * factor
        before = tl.load(gx + c, mask=c < d, other=0.0)
        tl.store(gx + c, before + (g - level - unit * shared) * factor, mask=c < d)
    tl.store(factors + row, factor)
    tl.store(means + row, mean)


@triton.jit
def norm_back_weight(x, gy, factors, means, gw, gb, n, d, LAYER: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr):
    """gw [d] f32 += the gradient of a norm's weight, and gb [d] that of its bias where LAYER.
    Grid (ceil(d / BLOCK))."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rr = tl.arange(0, BN)
    w = tl.zeros((BLOCK,), tl.float32)
    b = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BN):
        row = (start + rr).to(tl.int64)
        inside = (row < n)[:, None] & (c < d)[None, :]
        g = tl.load(gy + row[:, None] * d + c[None, :], mask=inside, other=0.0).to(tl.float32)
        v = tl.load(x + row[:, None] * d + c[None, :], mask=inside, other=0.0)
        factor = tl.load(factors + row, mask=row < n, other=0.0)
        mean = tl.load(means + row, mask=row < n, other=0.0)
        w += tl.sum(g * (v - mean[:, None]) * factor[:, None], 0)
        b += tl.sum(g, 0)
    tl.store(gw + c, tl.load(gw + c, mask=c < d, other=0.0) + w, mask=c < d)
    if LAYER:
        tl.store(gb + c, tl.load(gb + c, mask=c < d, other=0.0) + b, mask=c < d)


@triton.jit
def rotate(x, cos, sin, rotary, heads, hd, half, sign, HD: tl.constexpr):
    """Rotates every head of x [n, heads, hd] in place by its row of cos and sin [rows, half]; sign -1 is the gradient.
    Grid (n, heads)."""
    row = tl.program_id(0).to(tl.int64)
    x += (row * heads + tl.program_id(1)) * hd
    c = tl.arange(0, HD)
    inside = c < half
    at = tl.load(rotary + row).to(tl.int64) * half
    co = tl.load(cos + at + c, mask=inside, other=1.0)
    si = tl.load(sin + at + c, mask=inside, other=0.0) * sign
    a = tl.load(x + c, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + half + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + c, (a * co - b * si).to(x.dtype.element_ty), mask=inside)
    tl.store(x + half + c, (b * co + a * si).to(x.dtype.element_ty), mask=inside)


@triton.jit
def capped(z, cap):
    """cap * tanh(z / cap), of f32."""
    return cap * (1.0 - 2.0 / (tl.exp(2.0 * z / cap) + 1.0))


@triton.jit
def flash(q, k, v, offsets, out, lse, heads, kv_heads, hd, window, scale, cap, CAP: tl.constexpr, HD: tl.constexpr,
          BM: tl.constexpr, BN: tl.constexpr):
    """Causal attention over packed sequences: q and out [n, heads, hd], k and v [n, kv_heads, hd], sequence s in rows
    offsets[s]..offsets[s + 1]. lse [n, heads]: log-sum-exp of the scaled scores, which become cap * tanh(score / cap)
    where CAP. window 0 = all keys. Grid (ceil(longest / BM), sequences, heads)."""
    s = tl.program_id(1)
    h = tl.program_id(2)
    kv = h // (heads // kv_heads)
    begin = tl.load(offsets + s)
    length = tl.load(offsets + s + 1) - begin
    first = tl.program_id(0) * BM
    if first < length:
        i = first + tl.arange(0, BM)
        c = tl.arange(0, HD)
        j = tl.arange(0, BN)
        wide = c < hd
        line = (begin + i).to(tl.int64) * heads + h
        asked = i < length
        inside = asked[:, None] & wide[None, :]
        qv = tl.load(q + line[:, None] * hd + c[None, :], mask=inside, other=0.0)
        acc = tl.zeros((BM, HD), tl.float32)
        top = tl.full((BM,), NEVER, tl.float32)
        mass = tl.zeros((BM,), tl.float32)
        start = first * 0
        if window > 0:
            start = tl.maximum(first + 1 - window, 0) // BN * BN
        for from_key in range(start, tl.minimum(length, first + BM), BN):
            key = from_key + j
            at = ((begin + key).to(tl.int64) * kv_heads + kv) * hd
            there = key < length
            kk = tl.load(k + at[None, :] + c[:, None], mask=there[None, :] & wide[:, None], other=0.0)
            vv = tl.load(v + at[:, None] + c[None, :], mask=there[:, None] & wide[None, :], other=0.0)
            z = tl.dot(qv, kk, input_precision="ieee") * scale
            if CAP:
                z = capped(z, cap)
            seen = there[None, :] & (key[None, :] <= i[:, None])
            if window > 0:
                seen = seen & (key[None, :] > i[:, None] - window)
            z = tl.where(seen, z, NEVER)
            now = tl.maximum(top, tl.max(z, 1))
            p = tl.where(seen, tl.exp(z - now[:, None]), 0.0)
            shrink = tl.exp(top - now)
            mass = mass * shrink + tl.sum(p, 1)
            acc = acc * shrink[:, None] + tl.dot(p.to(vv.dtype), vv, input_precision="ieee")
            top = now
        tl.store(out + line[:, None] * hd + c[None, :], (acc / mass[:, None]).to(out.dtype.element_ty), mask=inside)
        tl.store(lse + line, top + tl.log(mass), mask=asked)


@triton.jit
def flash_delta(out, gout, delta, heads, hd, HD: tl.constexpr):
    """delta [n, heads] = the sum of out * gout over a head's channels. Grid (n, heads)."""
    line = tl.program_id(0).to(tl.int64) * heads + tl.program_id(1)
    c = tl.arange(0, HD)
    o = tl.load(out + line * hd + c, mask=c < hd, other=0.0).to(tl.float32)
    g = tl.load(gout + line * hd + c, mask=c < hd, other=0.0).to(tl.float32)
    tl.store(delta + line, tl.sum(o * g, 0))


@triton.jit
def flash_back_q(q, k, v, gout, offsets, lse, delta, gq, heads, kv_heads, hd, window, scale, cap, CAP: tl.constexpr,
                 HD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """gq [n, heads, hd] of `flash`. Grid (ceil(longest / BM), sequences, heads)."""
    s = tl.program_id(1)
    h = tl.program_id(2)
    kv = h // (heads // kv_heads)
    begin = tl.load(offsets + s)
    length = tl.load(offsets + s + 1) - begin
    first = tl.program_id(0) * BM
    if first < length:
        i = first + tl.arange(0, BM)
        c = tl.arange(0, HD)
        j = tl.arange(0, BN)
        wide = c < hd
        asked = i < length
        inside = asked[:, None] & wide[None, :]
        line = (begin + i).to(tl.int64) * heads + h
        qv = tl.load(q + line[:, None] * hd + c[None, :], mask=inside, other=0.0)
        go = tl.load(gout + line[:, None] * hd + c[None, :], mask=inside, other=0.0)
        ls = tl.load(lse + line, mask=asked, other=0.0)
        de = tl.load(delta + line, mask=asked, other=0.0)
        acc = tl.zeros((BM, HD), tl.float32)
        start = first * 0
        if window > 0:
            start = tl.maximum(first + 1 - window, 0) // BN * BN
        for from_key in range(start, tl.minimum(length, first + BM), BN):
            key = from_key + j
            at = ((begin + key).to(tl.int64) * kv_heads + kv) * hd
            there = (key < length)[:, None] & wide[None, :]
            kk = tl.load(k + at[:, None] + c[None, :], mask=there, other=0.0)
            vv = tl.load(v + at[:, None] + c[None, :], mask=there, other=0.0)
            z = tl.dot(qv, tl.trans(kk), input_precision="ieee") * scale
            if CAP:
                z = capped(z, cap)
            seen = asked[:, None] & (key < length)[None, :] & (key[None, :] <= i[:, None])
            if window > 0:
                seen = seen & (key[None, :] > i[:, None] - window)
            p = tl.where(seen, tl.exp(z - ls[:, None]), 0.0)
            gz = p * (tl.dot(go, tl.trans(vv), input_precision="ieee") - de[:, None]) * scale
            if CAP:
                gz *= 1.0 - (z / cap) * (z / cap)
            acc += tl.dot(gz.to(kk.dtype), kk, input_precision="ieee")
        tl.store(gq + line[:, None] * hd + c[None, :], acc.to(gq.dtype.element_ty), mask=inside)


@triton.jit
def flash_back_kv(q, k, v, gout, offsets, lse, delta, gk, gv, heads, kv_heads, hd, window, scale, cap,
                  CAP: tl.constexpr, HD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """gk and gv [n, kv_heads, hd] of `flash`: one program sums over all query heads of a key head, in order.
    Grid (ceil(longest / BN), sequences, kv_heads)."""
    s = tl.program_id(1)
    kv = tl.program_id(2)
    begin = tl.load(offsets + s)
    length = tl.load(offsets + s + 1) - begin
    first = tl.program_id(0) * BN
    group = heads // kv_heads
    if first < length:
        key = first + tl.arange(0, BN)
        c = tl.arange(0, HD)
        ii = tl.arange(0, BM)
        wide = c < hd
        there = (key < length)[:, None] & wide[None, :]
        at = ((begin + key).to(tl.int64) * kv_heads + kv)[:, None] * hd + c[None, :]
        kk = tl.load(k + at, mask=there, other=0.0)
        vv = tl.load(v + at, mask=there, other=0.0)
        sum_k = tl.zeros((BN, HD), tl.float32)
        sum_v = tl.zeros((BN, HD), tl.float32)
        end = length
        if window > 0:
            end = tl.minimum(length, first + BN - 1 + window)
        for g in range(0, group):
            h = kv * group + g
            for from_row in range(first // BM * BM, end, BM):
                i = from_row + ii
                asked = i < length
                inside = asked[:, None] & wide[None, :]
                line = (begin + i).to(tl.int64) * heads + h
                qv = tl.load(q + line[:, None] * hd + c[None, :], mask=inside, other=0.0)
                go = tl.load(gout + line[:, None] * hd + c[None, :], mask=inside, other=0.0)
                ls = tl.load(lse + line, mask=asked, other=0.0)
                de = tl.load(delta + line, mask=asked, other=0.0)
                z = tl.dot(qv, tl.trans(kk), input_precision="ieee") * scale
                if CAP:
                    z = capped(z, cap)
                seen = asked[:, None] & (key < length)[None, :] & (key[None, :] <= i[:, None])
                if window > 0:
                    seen = seen & (key[None, :] > i[:, None] - window)
                p = tl.where(seen, tl.exp(z - ls[:, None]), 0.0)
                sum_v += tl.dot(tl.trans(p).to(go.dtype), go, input_precision="ieee")
                gz = p * (tl.dot(go, tl.trans(vv), input_precision="ieee") - de[:, None]) * scale
                if CAP:
                    gz *= 1.0 - (z / cap) * (z / cap)
                sum_k += tl.dot(tl.trans(gz).to(qv.dtype), qv, input_precision="ieee")
        tl.store(gk + at, sum_k.to(gk.dtype.element_ty), mask=there)
        tl.store(gv + at, sum_v.to(gv.dtype.element_ty), mask=there)


@triton.jit
def activated_back(x, KIND: tl.constexpr):
    """The activation of forward.py and its derivative, of f32."""
    if KIND == 0:
        s = 1.0 / (1.0 + tl.exp(-x))
        return x * s, s * (1.0 + x * (1.0 - s))
    elif KIND == 1:
        s = 1.0 / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
        return x * s, s + x * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    else:
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        return x * cdf, cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def activate_back(x, gy, gx, inner, KIND: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr):
    """gx of `activate`, laid out as its x. Grid (n, ceil(inner / BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < inner
    g = tl.load(gy + row * inner + c, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        at = row * 2 * inner + c
        up = tl.load(x + at + inner, mask=inside, other=0.0).to(tl.float32)
        y, slope = activated_back(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), KIND)
        tl.store(gx + at, (g * up * slope).to(gx.dtype.element_ty), mask=inside)
        tl.store(gx + at + inner, (g * y).to(gx.dtype.element_ty), mask=inside)
    else:
        at = row * inner + c
        y, slope = activated_back(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), KIND)
        tl.store(gx + at, (g * slope).to(gx.dtype.element_ty), mask=inside)


@triton.jit
def logits_back(z, targets, lse, g, gz, vocab, inverse, before, cap, CAP: tl.constexpr, BLOCK: tl.constexpr):
    """gz [n, vocab]: the gradient of `logprobs` at the targets, times g [n], with respect to z; where CAP with respect to
    what `shape_logits` made z of, with the factor `before` and the cap. Grid (n, ceil(vocab / BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < vocab
    raw = tl.load(z + row * vocab + c, mask=inside, other=0.0)
    p = tl.exp(raw * inverse - tl.load(lse + row))
    hit = tl.where(c == tl.load(targets + row), 1.0, 0.0)
    by = (hit - p) * tl.load(g + row) * inverse
    if CAP:
        by *= (1.0 - (raw / cap) * (raw / cap)) * before
    tl.store(gz + row * vocab + c, by.to(gz.dtype.element_ty), mask=inside)


@triton.jit
def embed_back(order, starts, ids, gx, table, d, scale, BLOCK: tl.constexpr):
    """table [vocab, d] f32: row ids[u] += scale * the sum of the rows order[starts[u]]..order[starts[u + 1]] of gx
    [n, d] f32, in that order. ids are distinct. Grid (distinct ids, ceil(d / BLOCK))."""
    u = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < d
    acc = tl.zeros((BLOCK,), tl.float32)
    for at in range(tl.load(starts + u), tl.load(starts + u + 1)):
        row = tl.load(order + at).to(tl.int64)
        acc += tl.load(gx + row * d + c, mask=inside, other=0.0)
    to = table + tl.load(ids + u).to(tl.int64) * d + c
    tl.store(to, tl.load(to, mask=inside, other=0.0) + scale * acc, mask=inside)


@triton.jit
def adamw(p, g, m, v, half, count, rate, beta1, beta2, eps, decay, correct1, correct2, clip, HALF: tl.constexpr,
          BLOCK: tl.constexpr):
    """One step of AdamW in PyTorch's form on f32 vectors [count]: g * clip is the gradient, correct1 and correct2 are
    1 - beta**step. Where HALF, the new p goes to half [count] in bf16 too. Grid (ceil(count / BLOCK))."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    gv = tl.load(g + i, mask=inside, other=0.0) * clip
    mv = tl.load(m + i, mask=inside, other=0.0) * beta1 + gv * (1.0 - beta1)
    vv = tl.load(v + i, mask=inside, other=0.0) * beta2 + gv * gv * (1.0 - beta2)
    pv = tl.load(p + i, mask=inside, other=0.0) * (1.0 - rate * decay)
    pv -= rate * (mv / correct1) / (tl.sqrt(vv / correct2) + eps)
    tl.store(m + i, mv, mask=inside)
    tl.store(v + i, vv, mask=inside)
    tl.store(p + i, pv, mask=inside)
    if HALF:
        tl.store(half + i, pv.to(tl.bfloat16), mask=inside)


@triton.jit
def squares(x, sums, count, EACH: tl.constexpr, BLOCK: tl.constexpr):
    """sums [programs] = the sum of squares of EACH * BLOCK elements of x [count] f32 for each program.
    Grid (ceil(count / (EACH * BLOCK)))."""
    first = tl.program_id(0).to(tl.int64) * (EACH * BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, EACH):
        at = first + i * BLOCK + tl.arange(0, BLOCK)
        v = tl.load(x + at, mask=at < count, other=0.0)
        acc += v * v
    tl.store(sums + tl.program_id(0), tl.sum(acc, 0))

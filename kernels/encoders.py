"""The kernel of encoders, whose tokens attend to those on both sides. The conventions of forward.py hold."""

import triton
import triton.language as tl

NEVER = tl.constexpr(-1.0e30)


@triton.jit
def attend_both(qkv, offsets, out, heads, hd, window, scale, HD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Attention to both sides over packed sequences. A row of qkv has q, k and v, each [heads, hd]; out is
    [n, heads, hd]; sequence s is in rows offsets[s]..offsets[s + 1]. Row i sees key j where |i - j| < window; window 0 =
    all keys of the sequence. Keys are summed in ascending blocks that begin at multiples of BN within the sequence.
    Grid (ceil(longest / BM), sequences, heads)."""
    s = tl.program_id(1)
    h = tl.program_id(2)
    begin = tl.load(offsets + s)
    length = tl.load(offsets + s + 1) - begin
    first = tl.program_id(0) * BM
    if first < length:
        i = first + tl.arange(0, BM)
        c = tl.arange(0, HD)
        j = tl.arange(0, BN)
        wide = c < hd
        width = heads * hd
        line = (begin + i).to(tl.int64)
        inside = (i < length)[:, None] & wide[None, :]
        qkv += h * hd
        qv = tl.load(qkv + line[:, None] * (3 * width) + c[None, :], mask=inside, other=0.0)
        acc = tl.zeros((BM, HD), tl.float32)
        top = tl.full((BM,), NEVER, tl.float32)
        mass = tl.zeros((BM,), tl.float32)
        start = first * 0
        end = length
        if window > 0:
            start = tl.maximum(first + 1 - window, 0) // BN * BN
            end = tl.minimum(length, first + BM - 1 + window)
        for from_key in range(start, end, BN):
            key = from_key + j
            there = key < length
            at = (begin + key).to(tl.int64) * (3 * width)
            kk = tl.load(qkv + width + at[None, :] + c[:, None], mask=there[None, :] & wide[:, None], other=0.0)
            vv = tl.load(qkv + 2 * width + at[:, None] + c[None, :], mask=there[:, None] & wide[None, :], other=0.0)
            z = tl.dot(qv, kk, input_precision="ieee") * scale
            seen = there[None, :] & (i >= 0)[:, None]
            if window > 0:
                seen = seen & (key[None, :] > i[:, None] - window) & (key[None, :] < i[:, None] + window)
            z = tl.where(seen, z, NEVER)
            now = tl.maximum(top, tl.max(z, 1))
            p = tl.where(seen, tl.exp(z - now[:, None]), 0.0)
            shrink = tl.exp(top - now)
            mass = mass * shrink + tl.sum(p, 1)
            acc = acc * shrink[:, None] + tl.dot(p.to(vv.dtype), vv, input_precision="ieee")
            top = now
        to = out + h * hd + line[:, None] * width + c[None, :]
        tl.store(to, (acc / mass[:, None]).to(out.dtype.element_ty), mask=inside)

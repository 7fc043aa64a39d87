"""Kernels of LoRA adapters: rows of one step with different adapters over shared weights, y += B . A . x.

The factors of an adapter are in one allocation, whose parts begin at multiples of 256 bytes (a unit). It begins with a
table of 16 ints for each matrix of the model, which may join several modules with the same input:

    0       16ths of the rows of A [ranks, k], in which the A of its modules follow each other; 0 without an adapter
    1       the unit of A
    2, 3    16ths of the rank where the second and the third module begin in A
    4 ...   for each of three modules: 16ths of its rank, the unit of its B [width, rank], the first column of y, width

Ranks are multiples of 16, filled up with zeros. `places` are the units of allocations relative to `factors`, and
`tables` is the same address as `factors`. A tile is 4 ints: the first of `rows`, their number (at most BN), the adapter
in `places`, unused. Rows of a tile have one adapter, and no row is in two tiles; rows without an adapter are in none and
are not touched. The order of every sum depends on the sizes of the matrices alone.
"""

import triton
import triton.language as tl

# 32-bit numbers in a unit.
INTS = tl.constexpr(64)
# Ints of a table for one matrix.
TABLE = tl.constexpr(16)


@triton.jit
def lora_down(x, factors, tables, places, tiles, rows, low, count, k, stride, matrix, BN: tl.constexpr,
              BR: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, UNIT: tl.constexpr):
    """low [splits, count, stride] f32 = x[rows] . A transposed, where one split sums SPLIT inputs. Columns of low from
    the ranks of the row's adapter on are not written. UNIT: elements in a unit.
    Grid (tiles, ceil(most ranks / BR), ceil(k / SPLIT))."""
    tile = tiles + tl.program_id(0) * 4
    place = tl.load(places + tl.load(tile + 2))
    table = tables + place * INTS + matrix * TABLE
    ranks = tl.load(table) * 16
    from_rank = tl.program_id(1) * BR
    if from_rank < ranks:
        first = tl.load(tile)
        asked = tl.arange(0, BN) < tl.load(tile + 1)
        i = first + tl.arange(0, BN)
        row = tl.load(rows + i, mask=asked, other=0).to(tl.int64)
        j = from_rank + tl.arange(0, BR)
        kk = tl.arange(0, BK)
        split = tl.program_id(2)
        a = factors + (place + tl.load(table + 1)) * UNIT
        xs = x + row[:, None] * k + kk[None, :]
        ws = a + j[None, :].to(tl.int64) * k + kk[:, None]
        acc = tl.zeros((BN, BR), tl.float32)
        for start in range(split * SPLIT, tl.minimum(k, (split + 1) * SPLIT), BK):
            there = kk < k - start
            v = tl.load(xs + start, mask=asked[:, None] & there[None, :], other=0.0)
            w = tl.load(ws + start, mask=there[:, None], other=0.0)
            acc = tl.dot(v, w, acc, input_precision="ieee")
        to = low + (split.to(tl.int64) * count + i)[:, None] * stride + j[None, :]
        tl.store(to, acc, mask=asked[:, None])


@triton.jit
def lora_up(low, factors, tables, places, tiles, rows, y, count, splits, stride, m, matrix, BN: tl.constexpr,
            BM: tl.constexpr, BK: tl.constexpr, TOGETHER: tl.constexpr, UNIT: tl.constexpr):
    """y[rows] [., m] += low . B transposed, for every module of the matrix; splits of low are added in ascending order.
    TOGETHER: how many of them are read before they are added. Grid (ceil(widest / BM), tiles, modules)."""
    tile = tiles + tl.program_id(1) * 4
    part = tl.program_id(2)
    place = tl.load(places + tl.load(tile + 2))
    table = tables + place * INTS + matrix * TABLE
    entry = table + 4 + part * 4
    rank = tl.load(entry) * 16
    width = tl.load(entry + 3)
    if (rank > 0) & (tl.program_id(0) * BM < width):
        begin = tl.where(part > 0, tl.load(table + 1 + part), 0) * 16
        first = tl.load(tile)
        asked = tl.arange(0, BN) < tl.load(tile + 1)
        i = first + tl.arange(0, BN)
        row = tl.load(rows + i, mask=asked, other=0).to(tl.int64)
        col = tl.program_id(0) * BM + tl.arange(0, BM)
        kk = tl.arange(0, BK)
        b = factors + (place + tl.load(entry + 1)) * UNIT
        ws = b + col[None, :].to(tl.int64) * rank + kk[:, None]
        ls = low + i[:, None].to(tl.int64) * stride + begin + kk[None, :]
        apart = tl.cast(count, tl.int64) * stride
        acc = tl.zeros((BN, BM), tl.float32)
        for start in range(0, rank, BK):
            v = tl.zeros((BN, BK), tl.float32)
            for from_split in range(0, splits, TOGETHER):
                for more in tl.static_range(TOGETHER):
                    split = from_split + more
                    v += tl.load(ls + split * apart + start, mask=asked[:, None] & (split < splits), other=0.0)
            w = tl.load(ws + start, mask=(col < width)[None, :], other=0.0)
            acc = tl.dot(v.to(w.dtype), w, acc, input_precision="ieee")
        to = y + row[:, None] * m + tl.load(entry + 2) + col[None, :]
        inside = asked[:, None] & (col < width)[None, :]
        acc += tl.load(to, mask=inside, other=0.0).to(tl.float32)
        tl.store(to, acc.to(y.dtype.element_ty), mask=inside)

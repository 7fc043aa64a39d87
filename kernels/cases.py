"""What every kernel must give: cases against references in f64, on shapes that fit no tile.

A case is a function of (mods, t): the modules with the kernels, and the element type. `CASES` lists them with the
kernels that each of them runs.
"""

import math

import numpy as np

from harness import Buffer, agree, run, same_bits
from table import SPLIT, variants

TABLE = {v.name: v for v in variants()}
TOLERANCE = {"f32": 1e-6, "bf16": 5e-3, "f16": 7e-4}
CASES = []
erf = np.vectorize(math.erf, otypes=[np.float64])


def case(*kernels):
    def add(fn):
        CASES.append((fn.__name__, kernels, fn))
        return fn
    return add


def jobs(names=None):
    """(name, function, element type) of every case, or of those in `names`, and every type that its kernels are built
    for."""
    for name, kernels, fn in CASES:
        for t in ("f32", "bf16", "f16"):
            built = t == "f32" or any(v.kernel in kernels and v.name.endswith(f".{t}") for v in TABLE.values())
            if built and (not names or name in names):
                yield name, fn, t


# Where launches are recorded, if anywhere: (name, grid, arguments before, arguments after).
TAPE = None


def launch(mods, name, grid, **args):
    v = TABLE[name]
    assert list(args) == list(v.params), f"{name}: {list(args)} is not {list(v.params)}"
    for (given, value), kind in zip(args.items(), v.params.values()):
        assert "/" not in kind or value % int(kind.partition("/")[2]) == 0, f"{name}: {given} is {value}, not {kind}"
    before = [a.bits.tobytes() if isinstance(a, Buffer) else a for a in args.values()] if TAPE is not None else None
    run(getattr(mods[v.module], v.kernel), grid, list(args.values()), v.constants)
    if TAPE is not None and all(isinstance(a, Buffer) for a, k in zip(args.values(), v.params.values()) if k[0] == "*"):
        TAPE.append((name, grid, before, [a.bits.tobytes() if isinstance(a, Buffer) else a for a in args.values()]))


def rng(seed=0):
    return np.random.default_rng(seed)


def normal(kind, shape, seed=0, scale=1.0):
    return Buffer(kind, rng(seed).normal(size=shape) * scale)


def ints(values):
    return Buffer("i32", np.asarray(values))


def up(a, b):
    return -(-a // b)


@case("embed", "gather_rows")
def embeddings(mods, t):
    n, d, vocab = 3, 1100, 6
    table, places = normal(t, (vocab, d)), normal(t, (4, d), 1)
    ids, positions = ints([3, 5, 0]), ints([0, 3, 2])
    for name, more in (("embed", 0), ("embed_at", places.values[positions.bits])):
        out = Buffer("f32", shape=(n, d))
        launch(mods, f"{name}.{t}", (n,), ids=ids, table=table, positions=positions, position_table=places, out=out,
               d=d, scale=1.5)
        agree(out.values, 1.5 * table.values[ids.bits].astype(np.float64) + more, 1e-6, name)
    x, picked, y = normal("f32", (4, d), 2), [3, 0, 3], Buffer(t, shape=(3, d))
    launch(mods, f"gather_rows.{t}", (3, up(d, 1024)), x=x, rows=ints(picked), y=y, d=d)
    agree(y.values, x.values[picked], TOLERANCE[t], "gather_rows")


def norm_reference(x, w, b, eps, layer):
    x = x.astype(np.float64)
    if layer:
        x = x - x.mean(1, keepdims=True)
    return x / np.sqrt((x * x).mean(1, keepdims=True) + eps) * w + (b if layer else 0)


@case("norm", "add")
def norms(mods, t):
    for n, d in ((3, 1100), (2, 48)):
        w, b, branch = normal(t, (d,), 1), normal(t, (d,), 2), normal(t, (n, d), 3)
        for kind in ("rms", "layer"):
            layer = kind == "layer"
            weight = w.values.astype(np.float64) + 1.0
            x = Buffer("f32", rng(0).normal(size=(n, d)) + 0.5)
            rest = dict(weight=w, bias=b)
            end = dict(d=d, x_stride=d, y_stride=d, eps=1e-5, scale=0.7, offset=1.0)
            y = Buffer(t, shape=(n, d))
            launch(mods, f"{kind}.{t}", (n,), x=x, branch=branch, **rest, y=y, **end)
            agree(y.values, norm_reference(x.values, weight, b.values, 1e-5, layer), TOLERANCE[t], kind)
            if t != "f32":
                own, y = normal(t, (n, d), 4), Buffer(t, shape=(n, d))
                launch(mods, f"{kind}_of.{t}", (n,), x=own, branch=branch, **rest, y=y, **end)
                agree(y.values, norm_reference(own.values, weight, b.values, 1e-5, layer), TOLERANCE[t], kind)
            sum_ = x.values.astype(np.float64) + 0.7 * branch.values
            y = Buffer(t, shape=(n, d))
            launch(mods, f"add_{kind}.{t}", (n,), x=x, branch=branch, **rest, y=y, **end)
            agree(x.values, sum_, 1e-6, f"add_{kind}: the stream")
            agree(y.values, norm_reference(sum_, weight, b.values, 1e-5, layer), TOLERANCE[t], f"add_{kind}")
            # A part of wider rows, in place.
            wide = normal(t, (n, d + 20), 6)
            want = wide.values.astype(np.float64)
            want[:, :d] = norm_reference(want[:, :d], weight, b.values, 1e-5, layer)
            launch(mods, f"{kind}{'_of' if t != 'f32' else ''}.{t}", (n,), x=wide, branch=branch, **rest, y=wide,
                   **{**end, "x_stride": d + 20, "y_stride": d + 20})
            agree(wide.values, want, TOLERANCE[t], f"{kind} in place")
            # Alone as in a batch.
            alone = Buffer(t, shape=(1, d))
            launch(mods, f"{kind}.{t}", (1,), x=Buffer("f32", x.values[1:2]), branch=branch, **rest, y=alone, **end)
            same_bits(alone.bits[0], y.bits[1], f"{kind} alone")
    x, want = normal("f32", (3, 700)), None
    branch = normal(t, (3, 700), 1)
    want = x.values.astype(np.float64) - 0.25 * branch.values
    launch(mods, f"add.{t}", (up(2100, 1024),), x=x, branch=branch, count=2100, scale=-0.25)
    agree(x.values, want, 1e-6, "add")


@case("norm")
def tiny_norms(mods, t):
    """Rows so small that eps decides."""
    x, w = Buffer("f32", rng(0).normal(size=(2, 48)) * 1e-3), normal(t, (48,), 1)
    y = Buffer(t, shape=(2, 48))
    launch(mods, f"rms.{t}", (2,), x=x, branch=w, weight=w, bias=w, y=y, d=48, x_stride=48, y_stride=48, eps=1e-5, scale=1.0, offset=0.0)
    agree(y.values, norm_reference(x.values, w.values.astype(np.float64), 0, 1e-5, False), TOLERANCE[t], "rms")


def turned(x, co, si, half):
    """x [n, heads, hd] rotated by co and si [n, half]."""
    y = x.astype(np.float64).copy()
    a, b = y[..., :half].copy(), y[..., half:2 * half].copy()
    co, si = co[:, None, :].astype(np.float64), si[:, None, :].astype(np.float64)
    y[..., :half], y[..., half:2 * half] = a * co - b * si, b * co + a * si
    return y


@case("rope_cache")
def rope_into_pages(mods, t):
    n, heads, kv, pages, eps = 3, 4, 2, 5, 1e-6
    # Head sizes with and without padding; rotation of a part, of all, of nothing; joint by part and by head.
    for hd, half, by_head in ((64, 32, False), (24, 8, False), (32, 0, False), (32, 16, True)):
        kv_heads = heads if by_head else kv
        width = (heads + 2 * kv_heads) * hd
        qkv = normal(t, (n, width))
        if by_head:
            parts = qkv.values.reshape(n, heads, 3, hd)
            q, k, v = parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]
            bases = dict(head_stride=3 * hd, k_base=hd, v_base=2 * hd)
        else:
            parts = qkv.values.reshape(n, heads + 2 * kv_heads, hd)
            q, k, v = parts[:, :heads], parts[:, heads:heads + kv_heads], parts[:, heads + kv_heads:]
            bases = dict(head_stride=hd, k_base=heads * hd, v_base=(heads + kv_heads) * hd)
        angles = rng(3).normal(size=(10, max(half, 1))) * 3
        cos, sin = Buffer("f32", np.cos(angles)), Buffer("f32", np.sin(angles))
        rotary, slots = [9, 0, 4], [79, 0, 34]
        qw, kw = normal(t, (hd,), 5), normal(t, (hd,), 6)
        block = {24: 32}.get(hd, hd)
        for norm in (False, True):
            q_out = Buffer(t, shape=(n, heads, hd))
            keys, values = (Buffer(t, shape=(pages, kv_heads, 16, hd)) for _ in range(2))
            launch(mods, f"rope_cache{'_norm' if norm else ''}.{block}.{t}", (n, heads + 2 * kv_heads), qkv=qkv,
                   cos=cos, sin=sin, rotary=ints(rotary), slots=ints(slots), q_weight=qw, k_weight=kw, q_out=q_out,
                   keys=keys, values=values, heads=heads, kv_heads=kv_heads, hd=hd, half=half, width=width, **bases,
                   eps=eps, offset=1.0)
            co, si = cos.values[rotary][:, :half], sin.values[rotary][:, :half]

            def want(x, w):
                if norm:
                    flat = x.reshape(-1, hd)
                    x = norm_reference(flat, w.values.astype(np.float64) + 1.0, 0, eps, False).reshape(x.shape)
                return turned(x, co, si, half)
            agree(q_out.values, want(q, qw), TOLERANCE[t], "rotated q")
            written = np.zeros((pages, kv_heads, 16, hd), bool)
            for i, slot in enumerate(slots):
                page, place = divmod(slot, 16)
                agree(keys.values[page, :, place], want(k, kw)[i], TOLERANCE[t], "rotated k")
                agree(values.values[page, :, place], v[i], 1e-9, "v")
                written[page, :, place] = True
            if not (np.isnan(keys.values[~written]).all() and np.isnan(values.values[~written]).all()):
                raise AssertionError("rope_cache wrote to another place of the pages")


def attention_reference(q, k, v, scale, window, cap):
    """q [heads, hd] of position len(k) - 1, k and v [keys, kv_heads, hd]."""
    out = np.zeros(q.shape)
    first = max(0, len(k) - window) if window else 0
    for h in range(len(q)):
        g = h // (len(q) // k.shape[1])
        z = k[first:, g].astype(np.float64) @ q[h].astype(np.float64) * scale
        if cap:
            z = cap * np.tanh(z / cap)
        p = np.exp(z - z.max())
        out[h] = p / p.sum() @ v[first:, g].astype(np.float64)
    return out


class Paged:
    """Sequences in pages of random order; pages that nobody holds, and the rest of the last ones, are NaN."""

    def __init__(self, t, lengths, kv, hd, pages=64):
        self.t, self.lengths, self.kv, self.hd = t, lengths, kv, hd
        self.keys, self.values = (Buffer(t, shape=(pages, kv, 16, hd)) for _ in range(2))
        order, at = rng(1).permutation(pages), 0
        self.width = max(up(n, 16) for n in lengths) + 1
        table = np.full((len(lengths), self.width), -77)
        self.k, self.v = [], []
        for s, length in enumerate(lengths):
            mine = order[at:at + up(length, 16)]
            at += len(mine)
            table[s, :len(mine)] = mine
            for buffer, kept, seed in ((self.keys, self.k, 10), (self.values, self.v, 20)):
                x = Buffer(t, rng(seed + s).normal(size=(length, kv, hd)))
                for j in range(length):
                    buffer.bits[mine[j // 16], :, j % 16] = x.bits[j]
                kept.append(x.values)
        self.tables = ints(table)

    def attend(self, mods, spans, heads, q, window=0, cap=0.0):
        """Rows of `spans` (sequence, first position, count), whose queries are q [n, heads, hd]."""
        t, hd = self.t, self.hd
        n, group = len(q.bits), heads // self.kv
        at_once = min(group, 16)
        tiles, positions = [], []
        for s, first, count in spans:
            for i in range(0, count, 16 // at_once):
                rows = min(16 // at_once, count - i)
                for head in range(0, group, at_once):
                    tiles.append([len(positions) + i, rows, s, first + i, head, min(at_once, group - head), 0, 0])
            positions += range(first, first + count)
        splits = max(positions) // SPLIT + 1
        partial = Buffer("f32", shape=(splits, n, heads, hd))
        maxima, sums = (Buffer("f32", shape=(splits, n, heads)) for _ in range(2))
        out = Buffer(t, shape=(n, heads, hd))
        block = max(32, 1 << (hd - 1).bit_length())
        scale = 1.3 * hd ** -0.5
        any_ = "" if hd % 8 == 0 else "_any"
        launch(mods, f"attend{'_cap' if cap else ''}{any_}.{block}.{t}", (len(tiles), self.kv, splits), q=q, keys=self.keys,
               values=self.values, tables=self.tables, tiles=ints(tiles), partial=partial, maxima=maxima, sums=sums,
               n=n, heads=heads, kv_heads=self.kv, hd=hd, table_width=self.width, window=window, scale=scale, cap=cap)
        launch(mods, f"combine.{block}.{t}", (n, heads), partial=partial, maxima=maxima, sums=sums,
               positions=ints(positions), out=out, n=n, heads=heads, hd=hd, window=window)
        row = 0
        want = []
        for s, first, count in spans:
            for p in range(first, first + count):
                k, v = self.k[s][:p + 1], self.v[s][:p + 1]
                want.append(attention_reference(q.values[row], k, v, scale, window, cap))
                row += 1
        agree(out.values, np.array(want), TOLERANCE[t], f"attention of {spans}, window {window}, cap {cap}")
        return out


@case("attend", "combine")
def paged_attention(mods, t):
    # A decode of several sequences, around the ends of pages, blocks and ranges.
    paged = Paged(t, [1, 16, 17, 70, 258], 1, 64)
    q = normal(t, (5, 3, 64), 4)
    ends = [(s, n - 1, 1) for s, n in enumerate(paged.lengths)]
    together = paged.attend(mods, ends, 3, q)
    alone = paged.attend(mods, ends[4:], 3, Buffer(t, q.values[4:]))
    same_bits(alone.bits[0], together.bits[4], "a sequence alone")
    paged.attend(mods, ends, 3, q, window=20)
    # A prompt at once, in chunks, and beside others: the same bits.
    paged = Paged(t, [37, 20], 2, 24, 8)
    q = normal(t, (57, 4, 24), 5)
    whole = paged.attend(mods, [(0, 0, 37), (1, 0, 20)], 4, q)
    chunk = paged.attend(mods, [(1, 19, 1), (0, 30, 7)], 4, Buffer(t, np.concatenate([q.values[56:], q.values[30:37]])))
    same_bits(chunk.bits[0], whole.bits[56], "the last token alone")
    same_bits(chunk.bits[1:], whole.bits[30:37], "a chunk")
    paged.attend(mods, [(0, 30, 7), (1, 19, 1)], 4, Buffer(t, q.values[:8]), window=5, cap=3.0)
    # More heads on one key head than a tile has rows.
    paged = Paged(t, [9], 1, 12, 3)
    paged.attend(mods, [(0, 7, 2)], 4, normal(t, (2, 4, 12), 6), cap=2.0)
    paged = Paged(t, [9], 1, 32, 3)
    paged.attend(mods, [(0, 7, 2)], 20, normal(t, (2, 20, 32), 6))


@case("attend", "rope_cache")
def far_pages(mods, t):
    """Page ids whose places are beyond 2**31 elements, in a mapping that has no memory behind it."""
    import mmap
    hd, kv = 64, 2
    page = 3_000_000
    size = {"f32": 4, "bf16": 2, "f16": 2}[t]
    length = (page + 1) * kv * 16 * hd * size

    class Sparse:
        def __init__(self):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
            self.memory = mmap.mmap(-1, length, flags=flags)
            self.all = np.frombuffer(self.memory, {"f32": np.float32, "bf16": np.uint16, "f16": np.float16}[t])
            self.dtype = Buffer(t, shape=(1,)).dtype
            self.bits = self.all.reshape(page + 1, kv, 16, hd)

        def data_ptr(self):
            return self.all.ctypes.data

        def copy_(self, _):
            pass

        untyped_storage = cpu = lambda self: self
        new_empty = lambda self, *_, **__: self  # noqa: E731
        set_ = lambda self, *_: None  # noqa: E731
        storage_offset = lambda self: 0  # noqa: E731
        size = stride = lambda self: (1,)  # noqa: E731

    keys, values = Sparse(), Sparse()
    n, heads = 1, 4
    qkv = normal(t, (n, (heads + 2 * kv) * hd), 9)
    cos, sin = Buffer("f32", np.ones((1, hd // 2))), Buffer("f32", np.zeros((1, hd // 2)))
    q = Buffer(t, shape=(n, heads, hd))
    weight = normal(t, (hd,))
    launch(mods, f"rope_cache.{hd}.{t}", (n, heads + 2 * kv), qkv=qkv, cos=cos, sin=sin, rotary=ints([0]),
           slots=ints([page * 16 + 5]), q_weight=weight, k_weight=weight, q_out=q, keys=keys, values=values,
           heads=heads, kv_heads=kv, hd=hd, half=hd // 2, width=(heads + 2 * kv) * hd, head_stride=hd,
           k_base=heads * hd, v_base=(heads + kv) * hd, eps=1e-6, offset=0.0)
    same_bits(np.ascontiguousarray(values.bits[page, :, 5]).reshape(-1), qkv.bits[0, (heads + kv) * hd:],
              "values of a far page")
    # The key at place 5 is the sixth; those before it are zeros.
    partial, maxima, sums = Buffer("f32", shape=(1, 1, heads, hd)), *(Buffer("f32", shape=(1, 1, heads)) for _ in "ab")
    launch(mods, f"attend.{hd}.{t}", (1, kv, 1), q=q, keys=keys, values=values, tables=ints([[page]]),
           tiles=ints([[0, 1, 0, 5, 0, 2, 0, 0]]), partial=partial, maxima=maxima, sums=sums, n=1, heads=heads,
           kv_heads=kv, hd=hd, table_width=1, window=0, scale=hd ** -0.5, cap=0.0)
    f = Buffer(t, shape=(1,))
    f.all = np.concatenate([np.zeros(512, f.all.dtype), qkv.bits[0], np.zeros(512, f.all.dtype)])
    f.shape = qkv.bits[0].shape
    parts = f.values.reshape(-1, hd)
    for h in range(heads):
        z = float(q.values[0, h].astype(np.float64) @ parts[heads + h // 2].astype(np.float64)) * hd ** -0.5
        top = max(0.0, z)
        want = np.exp(z - top) * parts[heads + kv + h // 2]
        agree(partial.values[0, 0, h], want, TOLERANCE[t], "attention to a far page")


@case("matmul")
def products(mods, t):
    n, m, k = 19, 70, 296
    x, w, b = normal(t, (n, k)), normal(t, (m, k), 1), normal(t, (m,), 2)
    want = x.values.astype(np.float64) @ w.values.astype(np.float64).T
    bits = None
    for rows in (16, 64, 128):
        if f"matmul.{rows}.{t}" not in TABLE:
            continue
        grid = (up(m, TABLE[f"matmul.{rows}.{t}"].constants["BM"]), up(n, rows))
        for name, more in ((f"matmul.{rows}.{t}", 0), (f"matmul_bias.{rows}.{t}", b.values)):
            y = Buffer(t, shape=(n, m))
            launch(mods, name, grid, x=x, w=w, bias=b, y=y, n=n, m=m, k=k)
            agree(y.values, want + more, TOLERANCE[t], name)
        same_bits(bits.bits if bits else y.bits, y.bits, "tiles of other heights")
        bits = y
    alone = Buffer(t, shape=(1, m))
    few = TABLE[f"matmul.16.{t}"].constants["BM"]
    y = Buffer(t, shape=(n, m))
    odd_x, odd_w = Buffer(t, x.values[:, :100]), Buffer(t, w.values[:, :100])
    launch(mods, f"matmul_any.16.{t}", (up(m, few), up(n, 16)), x=odd_x, w=odd_w, bias=b, y=y, n=n, m=m, k=100)
    agree(y.values, odd_x.values.astype(np.float64) @ odd_w.values.astype(np.float64).T, TOLERANCE[t], "matmul_any")
    launch(mods, f"matmul_bias.16.{t}", (up(m, few), 1), x=Buffer(t, x.values[18:]), w=w, bias=b, y=alone, n=1, m=m,
           k=k)
    same_bits(alone.bits[0], bits.bits[18], "a row alone")
    if t != "f32":
        y = Buffer("f32", shape=(n, m))
        launch(mods, f"matmul_out.16.{t}", (up(m, few), up(n, 16)), x=x, w=w, bias=b, y=y, n=n, m=m, k=k)
        agree(y.values, want, 1e-6, "matmul_out")


@case("matmul_q8")
def q8_products(mods, t):
    n, m, k = 17, 70, 96
    x, b = normal(t, (n, k)), normal(t, (m,), 2)
    w = Buffer("i8", rng(1).integers(-127, 128, size=(m, k)))
    s = Buffer("f16", rng(2).uniform(0.001, 0.02, size=(m, k // 32)))
    full = Buffer(t, w.values.astype(np.float32) * np.repeat(s.values.astype(np.float32), 32, 1)).values
    full = full.astype(np.float64)
    want = x.values.astype(np.float64) @ full.T
    for rows in (16, 64):
        tile = TABLE[f"matmul_q8.{rows}.{t}"].constants["BM"]
        for name, more in (("matmul_q8", 0), ("matmul_q8_bias", b.values)):
            y = Buffer(t, shape=(n, m))
            launch(mods, f"{name}.{rows}.{t}", (up(m, tile), up(n, rows)), x=x, w=w, scales=s, bias=b, y=y, n=n, m=m,
                   k=k)
            agree(y.values, want + more, TOLERANCE[t], name)
    if t != "f32":
        y = Buffer("f32", shape=(n, m))
        few = TABLE[f"matmul_q8.16.{t}"].constants["BM"]
        launch(mods, f"matmul_q8_out.16.{t}", (up(m, few), up(n, 16)), x=x, w=w, scales=s, bias=b, y=y, n=n, m=m, k=k)
        agree(y.values, want, TOLERANCE[t], "matmul_q8_out")


def products_of_blocks(mods, t, kernel, w, values, each):
    """Products with integers `values` [m, k], packed in w, that have a scale and a minimum for `each` along k."""
    n, (m, k) = 19, values.shape
    x, b = normal(t, (n, k)), normal(t, (m,), 2)
    s = Buffer("f16", rng(2).uniform(0.01, 0.2, size=(m, k // each)))
    least = Buffer("f16", rng(3).uniform(-1.5, 0.1, size=(m, k // each)))
    factors = [np.repeat(f.values, each, 1) for f in (s, least)]
    full = Buffer(t, values * factors[0] + factors[1]).values.astype(np.float64)
    want = x.values.astype(np.float64) @ full.T

    def product(variant, rows, x, y):
        name = f"{kernel}{variant}.{rows}.{t}"
        grid = (up(m, TABLE[name].constants["BM"]), up(len(x.bits), rows))
        launch(mods, name, grid, x=x, w=w, scales=s, minima=least, bias=b, y=y, n=len(x.bits), m=m, k=k)
        return y

    for variant, more in (("", 0), ("_bias", b.values)):
        low, high = (product(variant, rows, x, Buffer(t, shape=(n, m))) for rows in (16, 64))
        agree(low.values, want + more, TOLERANCE[t], kernel + variant)
        same_bits(low.bits, high.bits, "tiles of other heights")
        alone = product(variant, 16, Buffer(t, x.values[18:]), Buffer(t, shape=(1, m)))
        same_bits(alone.bits[0], low.bits[18], "a row alone")
    if t != "f32":
        agree(product("_out", 16, x, Buffer("f32", shape=(n, m))).values, want, 1e-6, f"{kernel}_out")


@case("matmul_q4")
def q4_products(mods, t):
    values = rng(1).integers(0, 16, size=(70, 96))
    halves = values.reshape(70, 3, 2, 16)
    packed = (halves[:, :, 0] | halves[:, :, 1] << 4).astype(np.uint8).view(np.int8).reshape(70, 48)
    products_of_blocks(mods, t, "matmul_q4", Buffer("i8", packed), values, 32)


@case("matmul_fine")
def fine_products(mods, t):
    values = rng(1).integers(-127, 128, size=(70, 96))
    products_of_blocks(mods, t, "matmul_fine", Buffer("i8", values), values, 16)


ACTIVATED = ("silu", "gelu_tanh", "gelu_erf")


def activation(x, kind):
    x = x.astype(np.float64)
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


@case("activate")
def activations(mods, t):
    n, inner = 2, 1100
    both, single = normal(t, (n, 2 * inner), 1, 2.0), normal(t, (n, inner), 2, 2.0)
    for kind in ("silu", "gelu_tanh", "gelu_erf"):
        y = Buffer(t, shape=(n, inner))
        launch(mods, f"{kind}.{t}", (n, 2), x=single, y=y, inner=inner)
        agree(y.values, activation(single.values, kind), TOLERANCE[t], kind)
        y = Buffer(t, shape=(n, inner))
        launch(mods, f"{kind}_gated.{t}", (n, 2), x=both, y=y, inner=inner)
        want = activation(both.values[:, :inner], kind) * both.values[:, inner:]
        agree(y.values, want, TOLERANCE[t], f"{kind}, gated")


def log_softmax(z):
    z = z.astype(np.float64)
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


@case("shape_logits", "logprobs", "sample")
def logits(mods, t):
    if t != "f32":
        return
    n, vocab = 4, 2500
    z = normal("f32", (n, vocab), 3, 3.0)
    targets, inverse = [0, 2499, 7, 1500], 1 / 0.7
    lp, lse, entropy = (Buffer("f32", shape=(n,)) for _ in range(3))
    launch(mods, "logprobs", (n,), z=z, targets=ints(targets), logprob=lp, lse=lse, entropy=entropy, vocab=vocab,
           inverse=inverse)
    want = log_softmax(z.values * np.float64(inverse))
    agree(lp.values, want[np.arange(n), targets], 1e-6, "logprobs")
    agree(lse.values, z.values[np.arange(n), targets] * inverse - want[np.arange(n), targets], 1e-6, "lse")
    agree(entropy.values, -(np.exp(want) * want).sum(1), 1e-6, "entropy")

    # Draws: greedy rows take the first of the largest; the others follow the cumulated distribution.
    z.bits[1, [900, 1900]] = z.bits[1].max() + 1
    uniforms = [0.5, 0.5, 0.999999, 0.2]
    inverses = [1.0, 0.0, 0.5, inverse]
    ids = Buffer("i32", shape=(n,))
    launch(mods, "sample", (n,), z=z, uniforms=Buffer("f64", uniforms), inverses=Buffer("f32", inverses), ids=ids,
           vocab=vocab)
    for row in range(n):
        if inverses[row] == 0:
            want_id = 900
        else:
            p = np.exp(log_softmax(z.values[row:row + 1] * np.float64(inverses[row]))[0])
            want_id = int(np.argmax(np.cumsum(p) > uniforms[row]))
        if ids.bits[row] != want_id:
            raise AssertionError(f"sample: row {row} gave {ids.bits[row]}, not {want_id}")
    # A uniform number so near to 1 that the rounded sums of some rows do not reach it.
    many = normal("f32", (16, vocab), 5, 3.0)
    ids_of_many = Buffer("i32", shape=(16,))
    launch(mods, "sample", (16,), z=many, uniforms=Buffer("f64", [1 - 2 ** -53] * 16),
           inverses=Buffer("f32", [1] * 16), ids=ids_of_many, vocab=vocab)
    if not ((ids_of_many.bits >= vocab - 3) & (ids_of_many.bits < vocab)).all():
        raise AssertionError(f"sample near 1: {ids_of_many.bits}")
    # A draw can only give what has a probability, at both ends.
    z.bits[:] = -np.inf
    z.bits[:, [3, 1030]] = 0.0
    launch(mods, "sample", (n,), z=z, uniforms=Buffer("f64", [0.0, 0.49, 0.51, 1 - 2 ** -53]),
           inverses=Buffer("f32", [1, 1, 1, 1]), ids=ids, vocab=vocab)
    if list(ids.bits) != [3, 3, 1030, 1030]:
        raise AssertionError(f"sample at the ends: {ids.bits}")

    z = normal("f32", (n, 300), 4, 3.0)
    for name, want in (("scale_logits", z.values * np.float64(0.25)),
                       ("cap_logits", 1.5 * np.tanh(z.values * np.float64(0.25) / 1.5))):
        own = Buffer("f32", z.values)
        launch(mods, name, (up(n * 300, 1024),), z=own, count=n * 300, inverse=0.25, cap=1.5)
        agree(own.values, want, 1e-6, name)

"""The cases of backward.py: gradients against formulas in f64, and against differences where a formula could share a
kernel's mistake."""

import numpy as np

from cases import (ACTIVATED, TABLE, TOLERANCE, activation, case, ints, launch, log_softmax, norm_reference, normal, rng, turned,
                   up)
from harness import Buffer, agree
from table import HEADS


def slope(f, x, step=1e-6):
    """df/dx of an elementwise function, by central differences in f64."""
    return (f(x + step) - f(x - step)) / (2 * step)


@case("matmul_nn", "matmul_tn", "matmul_add", "column_sums")
def gradients_of_products(mods, t):
    n = 37
    for any_, m, k, more in (("", 72, 104, 32), ("_any", 70, 100, 30)):
        def tiles(name, rows, columns):
            row, column = {"matmul_nn": ("BN", "BK"), "matmul_tn": ("BM", "BK")}[name.removesuffix("_add")]
            sizes = TABLE[f"{name}{any_}.{t}"].constants
            return f"{name}{any_}.{t}", (up(columns, sizes[column]), up(rows, sizes[row]))

        sizes = dict(n=n, m=m, k=k, stride=m, scale=0.5)
        gy, w, x = normal(t, (n, m)), normal(t, (m, k), 1), normal(t, (n, k), 2)
        gx = Buffer(t, shape=(n, k))
        launch(mods, *tiles("matmul_nn", n, k), gy=gy, w=w, gx=gx, **sizes)
        want = 0.5 * gy.values.astype(np.float64) @ w.values.astype(np.float64)
        agree(gx.values, want, TOLERANCE[t], "matmul_nn")
        sum_ = normal("f32", (n, k), 3)
        total = want + sum_.values
        launch(mods, *tiles("matmul_nn_add", n, k), gy=gy, w=w, gx=sum_, **sizes)
        agree(sum_.values, total, 1e-6, "matmul_nn_add")
        gw = normal("f32", (m, k), 4)
        want = gw.values + 0.5 * (gy.values.astype(np.float64).T @ x.values.astype(np.float64))
        launch(mods, *tiles("matmul_tn", m, k), gy=gy, x=x, gw=gw, **sizes)
        agree(gw.values, want, 1e-6, "matmul_tn")
        # The first columns of wider rows; the others stay.
        wide, narrow = normal(t, (n, m + more), 6), 24
        part = wide.values[:, :narrow].astype(np.float64)
        sizes = dict(n=n, m=narrow, k=k, stride=m + more, scale=2.0)
        gx, w = Buffer(t, shape=(n, k)), normal(t, (narrow, k), 7)
        launch(mods, *tiles("matmul_nn", n, k), gy=wide, w=w, gx=gx, **sizes)
        agree(gx.values, 2.0 * part @ w.values.astype(np.float64), TOLERANCE[t], "matmul_nn of columns")
        gw = Buffer("f32", np.zeros((narrow, k)))
        launch(mods, *tiles("matmul_tn", narrow, k), gy=wide, x=x, gw=gw, **sizes)
        agree(gw.values, 2.0 * part.T @ x.values.astype(np.float64), 1e-6, "matmul_tn of columns")
    g = normal("f32", (m,), 5)
    want = g.values + gy.values.astype(np.float64).sum(0)
    launch(mods, f"column_sums.{t}", (up(m, 32),), gy=gy, g=g, n=n, m=m)
    agree(g.values, want, 1e-6, "column_sums")
    low, b = normal(t, (n, 12), 8), normal(t, (70, 12), 9)
    want = wide.values.astype(np.float64)
    want[:, :70] += 0.5 * (low.values.astype(np.float64) @ b.values.astype(np.float64).T)
    launch(mods, f"matmul_add.{t}", (up(70, 64), up(n, 64)), x=low, w=b, y=wide, n=n, m=70, k=12, stride=m + more,
           scale=0.5)
    agree(wide.values, want, TOLERANCE[t], "matmul_add")


@case("norm_back", "norm_back_weight")
def gradients_of_norms(mods, t):
    for n, d in ((70, 60), (2, 1100)):
        x = Buffer("f32", rng(0).normal(size=(n, d)) * 1.5 + 0.4)
        w, gy = normal(t, (d,), 1), normal(t, (n, d), 2)
        weight = w.values.astype(np.float64) + 1.0
        for kind in ("rms", "layer"):
            layer = kind == "layer"
            gx = normal("f32", (n, d), 3)
            before = gx.values.astype(np.float64)
            factors, means = (Buffer("f32", shape=(n,)) for _ in range(2))
            launch(mods, f"{kind}_back.{t}", (n,), x=x, weight=w, gy=gy, gx=gx, factors=factors, means=means, d=d,
                   eps=1e-5, offset=1.0)
            unit = norm_reference(x.values, 1.0, 0.0, 1e-5, layer)
            factor = (unit[:, :1] - unit[:, 1:2]) / (x.values[:, :1].astype(np.float64) - x.values[:, 1:2])
            g = gy.values.astype(np.float64) * weight
            level = g.mean(1, keepdims=True) if layer else 0.0
            want = (g - level - unit * (g * unit).mean(1, keepdims=True)) * factor
            # The formula itself, along one direction.
            along, step = rng(7).normal(size=(n, d)), 1e-5
            loss = lambda s: (gy.values * norm_reference(x.values + s * along, weight, 0.0, 1e-5, layer)).sum()  # noqa
            moved = (loss(step) - loss(-step)) / (2 * step)
            assert abs(moved - (want * along).sum()) <= 1e-5 * abs(moved), "the reference itself"
            agree(gx.values, before + want, 1e-6, f"{kind}_back")
            agree(factors.values, factor[:, 0], 1e-6, "factors")
            gw, gb = normal("f32", (d,), 4), normal("f32", (d,), 5)
            want_w = gw.values + (gy.values.astype(np.float64) * unit).sum(0)
            want_b = gb.values + (gy.values.astype(np.float64).sum(0) if layer else 0.0)
            launch(mods, f"{kind}_back_weight.{t}", (up(d, 32),), x=x, gy=gy, factors=factors, means=means, gw=gw,
                   gb=gb, n=n, d=d)
            agree(gw.values, want_w, 1e-6, f"{kind}_back_weight")
            agree(gb.values, want_b, 1e-6, f"{kind}_back_weight: bias")


@case("rotate")
def rotations(mods, t):
    n, heads, hd, half = 4, 3, 24, 8
    angles = rng(1).normal(size=(6, half)) * 3
    cos, sin, rotary = Buffer("f32", np.cos(angles)), Buffer("f32", np.sin(angles)), [5, 0, 2, 2]
    x = normal(t, (n, heads, hd))
    start = x.values.copy()
    for sign in (1.0, -1.0):
        want = turned(x.values, cos.values[rotary], sign * sin.values[rotary], half)
        launch(mods, f"rotate.32.{t}", (n, heads), x=x, cos=cos, sin=sin, rotary=ints(rotary), heads=heads, hd=hd,
               half=half, sign=sign)
        agree(x.values, want, TOLERANCE[t], f"rotate {sign}")
    agree(x.values, start, 2 * TOLERANCE[t], "there and back")


def squashed(z, cap):
    """Capped scores and their derivative."""
    return (cap * np.tanh(z / cap), 1 - np.tanh(z / cap) ** 2) if cap else (z, 1.0)


def causal(q, k, v, offsets, scale, window, cap):
    """Attention of packed sequences in f64: out and log-sum-exp."""
    out, lse = np.zeros(q.shape), np.zeros(q.shape[:2])
    for a, b in zip(offsets, offsets[1:]):
        for h in range(q.shape[1]):
            g = h // (q.shape[1] // k.shape[1])
            z = squashed(q[a:b, h] @ k[a:b, g].T * scale, cap)[0]
            i, j = np.arange(b - a)[:, None], np.arange(b - a)[None, :]
            z = np.where((j <= i) & ((j > i - window) if window else True), z, -np.inf)
            lse[a:b, h] = z.max(1) + np.log(np.exp(z - z.max(1, keepdims=True)).sum(1))
            out[a:b, h] = np.exp(z - lse[a:b, h, None]) @ v[a:b, g]
    return out, lse


def causal_back(q, k, v, gout, offsets, scale, window, cap):
    out, lse = causal(q, k, v, offsets, scale, window, cap)
    gq, gk, gv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for a, b in zip(offsets, offsets[1:]):
        for h in range(q.shape[1]):
            g = h // (q.shape[1] // k.shape[1])
            z, slope = squashed(q[a:b, h] @ k[a:b, g].T * scale, cap)
            i, j = np.arange(b - a)[:, None], np.arange(b - a)[None, :]
            p = np.where((j <= i) & ((j > i - window) if window else True), np.exp(z - lse[a:b, h, None]), 0.0)
            gp = gout[a:b, h] @ v[a:b, g].T
            gz = p * (gp - (p * gp).sum(1, keepdims=True)) * scale * slope
            gq[a:b, h] += gz @ k[a:b, g]
            gk[a:b, g] += gz.T @ q[a:b, h]
            gv[a:b, g] += p.T @ gout[a:b, h]
    return gq, gk, gv


@case("flash", "flash_delta", "flash_back_q", "flash_back_kv")
def flash_attention(mods, t):
    shapes = (([5, 70], 4, 2, 24, 0, 0), ([40, 1, 67], 2, 1, 64, 20, 0), ([3, 35], 2, 1, 24, 9, 2.0),
              ([3, 35], 2, 1, 20, 9, 0), ([2, 35], 2, 1, 40, 0, 1.5), ([2, 35], 2, 1, 36, 5, 2.0),
              ([2, 7], 2, 1, 104, 3, 0), ([2, 19], 1, 1, 160, 5, 0), ([1, 17], 1, 1, 256, 0, 2.0))
    for lengths, heads, kv, hd, window, cap in shapes:
        offsets = np.cumsum([0, *lengths])
        n, scale, longest = int(offsets[-1]), hd ** -0.5, max(lengths)
        block = next(wide for wide in HEADS if wide >= hd)
        q, gout = normal(t, (n, heads, hd), 1), normal(t, (n, heads, hd), 2)
        k, v = normal(t, (n, kv, hd), 3), normal(t, (n, kv, hd), 4)
        wide = [b.values.astype(np.float64) for b in (q, k, v, gout)]
        out, lse = Buffer(t, shape=(n, heads, hd)), Buffer("f32", shape=(n, heads))
        sizes = dict(heads=heads, kv_heads=kv, hd=hd, window=window, scale=scale, cap=cap)
        end = f"{'_cap' if cap else ''}{'' if hd % 8 == 0 else '_any'}.{block}.{t}"

        def flash(kernel, tile, heads):
            name = f"{kernel}{end}"  # noqa: B023
            return name, (up(longest, TABLE[name].constants[tile]), len(lengths), heads)  # noqa: B023

        launch(mods, *flash("flash", "BM", heads), q=q, k=k, v=v, offsets=ints(offsets), out=out, lse=lse, **sizes)
        want, want_lse = causal(*wide[:3], offsets, scale, window, cap)
        agree(out.values, want, TOLERANCE[t], f"flash, window {window}")
        agree(lse.values, want_lse, 1e-6, "flash: log-sum-exp")
        delta = Buffer("f32", shape=(n, heads))
        launch(mods, f"flash_delta.{block}.{t}", (n, heads), out=out, gout=gout, delta=delta, heads=heads, hd=hd)
        agree(delta.values, (out.values.astype(np.float64) * wide[3]).sum(-1), 1e-6, "flash_delta")
        gq, gk, gv = Buffer(t, shape=(n, heads, hd)), Buffer(t, shape=(n, kv, hd)), Buffer(t, shape=(n, kv, hd))
        ins = dict(q=q, k=k, v=v, gout=gout, offsets=ints(offsets), lse=lse, delta=delta)
        launch(mods, *flash("flash_back_q", "BM", heads), **ins, gq=gq, **sizes)
        launch(mods, *flash("flash_back_kv", "BN", kv), **ins, gk=gk, gv=gv, **sizes)
        for name, got, right in zip("qkv", (gq, gk, gv), causal_back(*wide, offsets, scale, window, cap)):
            agree(got.values, right, 2 * TOLERANCE[t], f"flash: gradient of {name}, window {window}")


@case("activate_back")
def gradients_of_activations(mods, t):
    n, inner = 2, 1100
    both, single, gy = normal(t, (n, 2 * inner), 1, 2.0), normal(t, (n, inner), 2, 2.0), normal(t, (n, inner), 3)
    g = gy.values.astype(np.float64)
    for kind in ACTIVATED:
        f = lambda x: activation(x, kind)  # noqa: B023, E731
        gx = Buffer(t, shape=(n, inner))
        launch(mods, f"{kind}_back.{t}", (n, 2), x=single, gy=gy, gx=gx, inner=inner)
        agree(gx.values, g * slope(f, single.values.astype(np.float64)), TOLERANCE[t], kind)
        gx = Buffer(t, shape=(n, 2 * inner))
        launch(mods, f"{kind}_gated_back.{t}", (n, 2), x=both, gy=gy, gx=gx, inner=inner)
        gate, rest = both.values[:, :inner].astype(np.float64), both.values[:, inner:]
        want = np.concatenate([g * rest * slope(f, gate), g * f(gate)], 1)
        agree(gx.values, want, TOLERANCE[t], f"{kind}, gated")


@case("logits_back")
def gradients_of_logprobs(mods, t):
    n, vocab, inverse = 3, 1500, 1 / 0.7
    z, g, targets = normal("f32", (n, vocab), 1, 3.0), normal("f32", (n,), 2), [0, 1499, 800]
    rows = np.arange(n)
    gz = Buffer(t, shape=(n, vocab))
    for cap in (0, 5.0):
        # With a cap, z are the capped logits.
        z.values[:] = np.clip(z.values, -4.9, 4.9)
        logp = log_softmax(z.values * np.float64(inverse))
        lse = Buffer("f32", z.values[rows, targets] * np.float64(inverse) - logp[rows, targets])
        launch(mods, f"logits_back{'_cap' if cap else ''}.{t}", (n, 2), z=z, targets=ints(targets), lse=lse, g=g, gz=gz,
               vocab=vocab, inverse=inverse, before=0.3, cap=cap)
        want = -np.exp(logp)
        want[rows, targets] += 1
        want *= (1 - (z.values.astype(np.float64) / cap) ** 2) * 0.3 if cap else 1.0
        agree(gz.values, want * g.values[:, None] * inverse, TOLERANCE[t], f"logits_back, cap {cap}")


@case("embed_back", "adamw", "squares")
def tables_and_steps(mods, t):
    if t == "f32":
        ids, d = np.array([3, 0, 3, 9, 3]), 1100
        gx, table = normal("f32", (5, d)), normal("f32", (10, d), 1)
        want = table.values.astype(np.float64)
        np.add.at(want, ids, 0.5 * gx.values)
        order = np.argsort(ids, kind="stable")
        distinct, starts = np.unique(ids[order], return_index=True)
        launch(mods, "embed_back", (3, 2), order=ints(order), starts=ints([*starts, 5]), ids=ints(distinct), gx=gx,
               table=table, d=d, scale=0.5)
        agree(table.values, want, 1e-6, "embed_back")
        x, sums = normal("f32", (17_000,), 6), Buffer("f32", shape=(2,))
        launch(mods, "squares", (2,), x=x, sums=sums, count=17_000)
        agree(sums.values, [(part ** 2).sum() for part in np.split(x.values.astype(np.float64), [16 * 1024])], 1e-6,
              "squares")
    count, rate, b1, b2, eps, decay, step, clip = 1500, 0.01, 0.9, 0.99, 1e-3, 0.1, 3, 0.5
    p, g, m = normal("f32", (count,), 2), normal("f32", (count,), 3), normal("f32", (count,), 4)
    v = Buffer("f32", np.abs(rng(5).normal(size=count)))
    half = Buffer("bf16", shape=(count,))
    gv = g.values.astype(np.float64) * clip
    want_m, want_v = m.values * b1 + gv * (1 - b1), v.values * b2 + gv * gv * (1 - b2)
    c1, c2 = 1 - b1 ** step, 1 - b2 ** step
    want_p = p.values * (1 - rate * decay) - rate * (want_m / c1) / (np.sqrt(want_v / c2) + eps)
    launch(mods, f"adamw.{t}", (2,), p=p, g=g, m=m, v=v, half=half, count=count, rate=rate, beta1=b1, beta2=b2,
           eps=eps, decay=decay, correct1=c1, correct2=c2, clip=clip)
    for name, got, right in (("p", p, want_p), ("m", m, want_m), ("v", v, want_v)):
        agree(got.values, right, 1e-6, f"adamw: {name}")
    if t == "bf16":
        agree(half.values, want_p, TOLERANCE[t], "adamw: the copy in bf16")

"""The cases of encoders.py, and of the norms that encoders alone use."""

import numpy as np

from cases import TABLE, TOLERANCE, case, ints, launch, norm_reference, normal, rng, up
from harness import Buffer, agree, same_bits
from table import HEADS


def both_sides(qkv, offsets, scale, window):
    """Attention of packed sequences in f64; qkv is [n, 3, heads, hd]."""
    out = np.zeros((qkv.shape[0], *qkv.shape[2:]))
    for a, b in zip(offsets, offsets[1:]):
        q, k, v = (qkv[a:b, part] for part in range(3))
        apart = np.abs(np.arange(b - a)[:, None] - np.arange(b - a)[None, :])
        for h in range(qkv.shape[2]):
            z = np.where(apart < window if window else apart >= 0, q[:, h] @ k[:, h].T * scale, -np.inf)
            p = np.exp(z - z.max(1, keepdims=True))
            out[a:b, h] = p / p.sum(1, keepdims=True) @ v[:, h]
    return out


@case("attend_both")
def attention_to_both_sides(mods, t):
    shapes = (([5, 70], 4, 24, 0), ([40, 1, 67], 2, 64, 20), ([3, 35], 2, 20, 9), ([2, 35], 2, 36, 0),
              ([90, 3], 1, 32, 5), ([2, 37], 2, 104, 3), ([2, 37], 1, 128, 0), ([19, 2], 1, 160, 5), ([1, 33], 1, 256, 0))
    for lengths, heads, hd, window in shapes:
        offsets = np.cumsum([0, *lengths])
        block = next(wide for wide in HEADS if wide >= hd)
        name = f"attend_both{'' if hd % 8 == 0 else '_any'}.{block}.{t}"
        # Scores far from 0, so that a wrong maximum would show.
        qkv = normal(t, (int(offsets[-1]), 3, heads, hd), 1, 1.5)

        def attended(qkv, offsets):
            out = Buffer(t, shape=(qkv.shape[0], heads, hd))  # noqa: B023
            grid = (up(int(np.diff(offsets).max()), TABLE[name].constants["BM"]), len(offsets) - 1, heads)  # noqa: B023
            launch(mods, name, grid, qkv=qkv, offsets=ints(offsets), out=out, heads=heads, hd=hd, window=window,  # noqa: B023
                   scale=hd ** -0.5)  # noqa: B023
            return out

        out = attended(qkv, offsets)
        want = both_sides(qkv.values.astype(np.float64), offsets, hd ** -0.5, window)
        agree(out.values, want, TOLERANCE[t], f"{name}, window {window}")
        for a, b in zip(offsets, offsets[1:]):
            alone = attended(Buffer(t, qkv.values[a:b]), [0, b - a])
            same_bits(alone.bits, out.bits[a:b], f"{name}: a sequence alone")


@case("norm")
def norms_that_stay(mods, t):
    """The hidden states become their norm, or that of a sum."""
    if f"layer_kept.{t}" not in TABLE:
        return
    for n, d in ((3, 1100), (2, 48)):
        w, b, branch = normal(t, (d,), 1), normal(t, (d,), 2), normal(t, (n, d), 3)
        weight = w.values.astype(np.float64) + 1.0
        for kind in ("rms", "layer"):
            for name, more in ((f"{kind}_kept.{t}", 0.0), (f"add_{kind}_kept.{t}", 0.7 * branch.values)):
                x, y = Buffer("f32", rng(0).normal(size=(n, d)) + 0.5), Buffer(t, shape=(n, d))
                want = norm_reference(x.values + more, weight, b.values, 1e-5, kind == "layer")
                launch(mods, name, (n,), x=x, branch=branch, weight=w, bias=b, y=y, d=d, x_stride=d, y_stride=d,
                       eps=1e-5, scale=0.7, offset=1.0)
                agree(x.values, want, 1e-6, f"{name}: the hidden states")
                agree(y.values, want, TOLERANCE[t], name)

"""Which kernels are built: for every variant its parameters, their promised alignment and its constants.

A name is `kernel` or `kernel.variant`. A parameter is a C-like type: `*f32`, `*bf16`, `*i32`, `i32`, `f32`, …; pointers
are 16-byte aligned. A count written `i32/8` is promised to be a multiple of 8: rows of that many numbers then begin at
multiples of 16 bytes, and are read in pieces of that size.
"""

from dataclasses import dataclass, field

SPLIT = 256


@dataclass
class Variant:
    name: str
    kernel: str
    module: str
    params: dict
    constants: dict
    warps: int = 4
    stages: int = 2
    extra: dict = field(default_factory=dict)


def types(text, **kinds):
    """'x:*T n:i32' with T replaced."""
    out = {}
    for word in text.split():
        name, kind = word.split(":")
        for letter, to in kinds.items():
            if kind == "*" + letter:
                kind = "*" + to
        out[name] = kind
    return out


@dataclass
class Product:
    """Tiles of a product: BN rows, BM outputs, BK inputs at a time, `stages` of them read ahead."""

    sizes: dict
    warps: int
    stages: int


def tile(bn, bm, bk, warps, stages):
    return Product(dict(BN=bn, BM=bm, BK=bk), warps, stages)


def products_q8(t):
    """The same with weights in 8 bits. Tiles are narrower and warps more where dequantised weights would not fit the
    registers."""
    if t == "f32":
        return {16: tile(16, 64, 32, 8, 2), 64: tile(64, 32, 32, 8, 2)}
    return {16: tile(16, 32, 128, 4, 4), 64: tile(64, 64, 64, 8, 3)}


def products_q4(t):
    """The same with weights in 4 bits. All tiles of a type have one BK, because it decides the order of sums."""
    if t == "f32":
        return {16: tile(16, 64, 32, 8, 2), 64: tile(64, 32, 32, 8, 2)}
    return {16: tile(16, 32, 128, 4, 4), 64: tile(64, 128, 128, 8, 2)}


def products_fine(t):
    """The same with weights in 8 bits, and scales and minima of 16."""
    if t == "f32":
        return {16: tile(16, 64, 32, 8, 2), 64: tile(64, 32, 32, 8, 2)}
    return {16: tile(16, 32, 128, 4, 4), 64: tile(64, 128, 64, 8, 3)}


def products(t):
    """Tiles by the number of rows that they take. Their order of sums is the same. Those of bf16 were measured on an
    H200: few rows wait for weights, so that much is read ahead in narrow tiles; many rows want large tiles."""
    if t == "f32":
        return {16: tile(16, 64, 32, 4, 2), 64: tile(64, 64, 32, 4, 2)}
    return {16: tile(16, 32, 128, 4, 5), 64: tile(64, 64, 64, 4, 4), 128: tile(128, 64, 64, 4, 3)}


HEADS = (32, 64, 128, 256)
ACTIVATIONS = ("silu", "gelu_tanh", "gelu_erf")


def forward():
    for t in ("f32", "bf16", "f16"):
        def one(name, kernel, text, constants, warps=4, stages=2, **kinds):
            return Variant(f"{name}.{t}", kernel, "forward", types(text, T=t, **kinds), constants, warps, stages)

        embed = "ids:*i32 table:*T positions:*i32 position_table:*T out:*f32 d:i32 scale:f32"
        yield one("embed", "embed", embed, dict(POSITIONS=False, BLOCK=1024))
        yield one("embed_at", "embed", embed, dict(POSITIONS=True, BLOCK=1024))
        norm = "x:*X branch:*T weight:*T bias:*T y:*T d:i32 x_stride:i32 y_stride:i32 eps:f32 scale:f32 offset:f32"
        for kind in ("rms", "layer"):
            layer = kind == "layer"
            constants = dict(LAYER=layer, KEEP=False, BLOCK=1024)
            yield one(kind, "norm", norm, dict(ADD=False, **constants), X="f32")
            yield one(f"add_{kind}", "norm", norm, dict(ADD=True, **constants), X="f32")
            # Of encoders, whose blocks may begin with the norm of a sum.
            if t != "f16":
                yield one(f"{kind}_kept", "norm", norm, dict(ADD=False, **{**constants, "KEEP": True}), X="f32")
                yield one(f"add_{kind}_kept", "norm", norm, dict(ADD=True, **{**constants, "KEEP": True}), X="f32")
        # Of what a part gives, before it is added. In f32 it is the first kernel.
        if t != "f32":
            for kind in ("rms", "layer"):
                constants = dict(ADD=False, LAYER=kind == "layer", KEEP=False, BLOCK=1024)
                yield one(f"{kind}_of", "norm", norm, constants, X=t)
        yield one("add", "add", "x:*f32 branch:*T count:i32 scale:f32", dict(BLOCK=1024))
        rope = ("qkv:*T cos:*f32 sin:*f32 rotary:*i32 slots:*i32 q_weight:*T k_weight:*T q_out:*T keys:*T values:*T "
                "heads:i32 kv_heads:i32 hd:i32 half:i32 width:i32 head_stride:i32 k_base:i32 v_base:i32 eps:f32 "
                "offset:f32")
        attend = ("q:*T keys:*T values:*T tables:*i32 tiles:*i32 partial:*f32 maxima:*f32 sums:*f32 n:i32 heads:i32 "
                  "kv_heads:i32 hd:i32/8 table_width:i32 window:i32 scale:f32 cap:f32")
        combine = ("partial:*f32 maxima:*f32 sums:*f32 positions:*i32 out:*T n:i32 heads:i32 hd:i32 window:i32")
        for hd in HEADS:
            yield one(f"rope_cache.{hd}", "rope_cache", rope, dict(NORM=False, HD=hd), warps=1)
            yield one(f"rope_cache_norm.{hd}", "rope_cache", rope, dict(NORM=True, HD=hd), warps=1)
            # Measured on an H200: in bf16, long blocks of keys that are read ahead.
            block, stages = (32, 1) if hd == 256 or t == "f32" else (128, 2) if hd < 128 else (64, 2)
            sizes = dict(HD=hd, ROWS=16, BLOCK=block, SPLIT=SPLIT)
            # With wider reads the largest heads would spill registers.
            text = attend.replace("/8", "") if t == "f32" and hd == 256 else attend
            yield one(f"attend.{hd}", "attend", text, dict(CAP=False, **sizes), warps=8, stages=stages)
            yield one(f"attend_cap.{hd}", "attend", text, dict(CAP=True, **sizes), warps=8, stages=stages)
            # For models of odd sizes, which exist in tests.
            if hd <= 64:
                text = attend.replace("/8", "")
                yield one(f"attend_any.{hd}", "attend", text, dict(CAP=False, **sizes), warps=8, stages=1)
                yield one(f"attend_cap_any.{hd}", "attend", text, dict(CAP=True, **sizes), warps=8, stages=1)
            yield one(f"combine.{hd}", "combine", combine, dict(HD=hd, SPLIT=SPLIT), warps=1)
        matmul = "x:*T w:*T bias:*T y:*Y n:i32 m:i32 k:i32/8"
        q8 = "x:*T w:*i8 scales:*f16 bias:*T y:*Y n:i32 m:i32 k:i32/8"
        for rows, shape in products(t).items():
            for any_, text in (("", matmul), ("_any", matmul.replace("/8", ""))):
                if any_ and rows > 64:
                    continue
                sizes, rest = dict(shape.sizes), (shape.warps, shape.stages)
                if any_:
                    sizes["BK"], rest = 32, (shape.warps, 1)
                yield one(f"matmul{any_}.{rows}", "matmul", text, dict(BIAS=False, **sizes), *rest, Y=t)
                yield one(f"matmul_bias{any_}.{rows}", "matmul", text, dict(BIAS=True, **sizes), *rest, Y=t)
                if t != "f32":
                    yield one(f"matmul_out{any_}.{rows}", "matmul", text, dict(BIAS=False, **sizes), *rest, Y="f32")
        # Where matrices are integers, everything else is bf16; f32 is for the checks.
        for rows, shape in products_q8(t).items() if t != "f16" else ():
            rest = (shape.warps, shape.stages)
            yield one(f"matmul_q8.{rows}", "matmul_q8", q8, dict(BIAS=False, **shape.sizes), *rest, Y=t)
            yield one(f"matmul_q8_bias.{rows}", "matmul_q8", q8, dict(BIAS=True, **shape.sizes), *rest, Y=t)
            if t != "f32":
                yield one(f"matmul_q8_out.{rows}", "matmul_q8", q8, dict(BIAS=False, **shape.sizes), *rest, Y="f32")
        minima = "x:*T w:*i8 scales:*f16 minima:*f16 bias:*T y:*Y n:i32 m:i32 k:i32/8"
        for kernel, tiles in (("matmul_q4", products_q4), ("matmul_fine", products_fine)) if t != "f16" else ():
            for rows, shape in tiles(t).items():
                rest = (shape.warps, shape.stages)
                yield one(f"{kernel}.{rows}", kernel, minima, dict(BIAS=False, **shape.sizes), *rest, Y=t)
                yield one(f"{kernel}_bias.{rows}", kernel, minima, dict(BIAS=True, **shape.sizes), *rest, Y=t)
                if t != "f32":
                    yield one(f"{kernel}_out.{rows}", kernel, minima, dict(BIAS=False, **shape.sizes), *rest, Y="f32")
        for kind, name in enumerate(ACTIVATIONS):
            for gated in (False, True):
                constants = dict(KIND=kind, GATED=gated, BLOCK=1024)
                yield one(f"{name}{'_gated' if gated else ''}", "activate", "x:*T y:*T inner:i32", constants)
        yield one("gather_rows", "gather_rows", "x:*f32 rows:*i32 y:*T d:i32", dict(BLOCK=1024))

    def plain(name, kernel, text, constants, warps=4):
        return Variant(name, kernel, "forward", types(text), constants, warps)

    shape = "z:*f32 count:i32 inverse:f32 cap:f32"
    yield plain("scale_logits", "shape_logits", shape, dict(CAP=False, BLOCK=1024))
    yield plain("cap_logits", "shape_logits", shape, dict(CAP=True, BLOCK=1024))
    yield plain("logprobs", "logprobs", "z:*f32 targets:*i32 logprob:*f32 lse:*f32 entropy:*f32 vocab:i32 inverse:f32",
                dict(BLOCK=4096), warps=8)
    yield plain("sample", "sample", "z:*f32 uniforms:*f64 inverses:*f32 ids:*i32 vocab:i32", dict(BLOCK=4096), warps=8)


def flash_tiles(hd, t, cap):
    """Tiles of attention over packed sequences for heads of `hd` channels: forward, gradient of q, gradient of k and v.
    Some are smaller with capped scores, which would spill registers otherwise."""
    if hd == 256:
        rows = 16 if t == "f32" else 32
        back = dict(HD=hd, BM=rows, BN=16)
        return {**back, "BM": 16} if cap else back, back, dict(HD=hd, BM=16, BN=16)
    tile = 32 if t == "f32" else 64
    blocks = dict(HD=hd, BM=tile, BN=32 if hd == 128 else tile)
    back = {**blocks, "BN": 16} if t == "f32" and hd == 128 else blocks
    small = dict(HD=hd, BM=16 if t == "f32" or cap and hd == 32 else 32, BN=16 if cap and t == "f32" and hd == 128 else 32)
    return blocks, back, small


def backward():
    for t in ("f32", "bf16"):
        def one(name, kernel, text, constants, warps=4, stages=2, **kinds):
            return Variant(f"{name}.{t}", kernel, "backward", types(text, T=t, **kinds), constants, warps, stages)

        # Large tiles in bf16, as of forward products of many rows; for models of odd sizes, which exist in tests, small
        # ones without the promise.
        nn = "gy:*T w:*T gx:*Y n:i32 m:i32/8 k:i32/8 stride:i32/8 scale:f32"
        tn = "gy:*T x:*T gw:*f32 n:i32 m:i32/8 k:i32/8 stride:i32/8 scale:f32"
        for any_ in ("", "_any"):
            large = t == "bf16" and not any_
            across, along = (nn, tn) if not any_ else (nn.replace("/8", ""), tn.replace("/8", ""))
            rest = dict(stages=3 if large else 2)
            sizes = dict(BN=128, BM=64, BK=64) if large else dict(BN=64, BM=32, BK=64)
            yield one(f"matmul_nn{any_}", "matmul_nn", across, dict(ADD=False, **sizes), Y=t, **rest)
            yield one(f"matmul_nn_add{any_}", "matmul_nn", across, dict(ADD=True, **sizes), Y="f32", **rest)
            sizes = dict(BN=64, BM=128, BK=64) if large else dict(BN=32, BM=64, BK=64)
            yield one(f"matmul_tn{any_}", "matmul_tn", along, sizes, **rest)
        yield one("matmul_add", "matmul_add", "x:*T w:*T y:*T n:i32 m:i32 k:i32 stride:i32 scale:f32",
                  dict(BN=64, BM=64, BK=32))
        yield one("column_sums", "column_sums", "gy:*T g:*f32 n:i32 m:i32", dict(BN=64, BLOCK=32))
        back = "x:*f32 weight:*T gy:*T gx:*f32 factors:*f32 means:*f32 d:i32 eps:f32 offset:f32"
        weight = "x:*f32 gy:*T factors:*f32 means:*f32 gw:*f32 gb:*f32 n:i32 d:i32"
        for kind in ("rms", "layer"):
            layer = kind == "layer"
            yield one(f"{kind}_back", "norm_back", back, dict(LAYER=layer, BLOCK=1024))
            yield one(f"{kind}_back_weight", "norm_back_weight", weight, dict(LAYER=layer, BN=64, BLOCK=32))
        flash = ("q:*T k:*T v:*T offsets:*i32 out:*T lse:*f32 heads:i32 kv_heads:i32 hd:i32/8 window:i32 scale:f32 "
                 "cap:f32")
        delta = "out:*T gout:*T delta:*f32 heads:i32 hd:i32"
        back_q = ("q:*T k:*T v:*T gout:*T offsets:*i32 lse:*f32 delta:*f32 gq:*T heads:i32 kv_heads:i32 hd:i32/8 "
                  "window:i32 scale:f32 cap:f32")
        back_kv = ("q:*T k:*T v:*T gout:*T offsets:*i32 lse:*f32 delta:*f32 gk:*T gv:*T heads:i32 kv_heads:i32 hd:i32/8 "
                   "window:i32 scale:f32 cap:f32")
        for hd in HEADS:
            yield one(f"rotate.{hd}", "rotate", "x:*T cos:*f32 sin:*f32 rotary:*i32 heads:i32 hd:i32 half:i32 sign:f32",
                      dict(HD=hd), warps=1)
            yield one(f"flash_delta.{hd}", "flash_delta", delta, dict(HD=hd), warps=1)
            few = 8 if hd >= 128 else 4
            # Heads of odd sizes exist in tests alone.
            for any_ in ("", "_any") if hd <= 64 else ("",):
                kinds = [text.replace("/8", "") if any_ else text for text in (flash, back_q, back_kv)]
                # With wider reads it would spill registers.
                kinds[2] = back_kv.replace("/8", "") if t == "f32" else kinds[2]
                for cap in ("", "_cap"):
                    blocks, back, small = flash_tiles(hd, t, cap)
                    capped = dict(CAP=cap != "")
                    if cap and hd == 64 and t == "f32":
                        kinds[1] = back_q.replace("/8", "")
                    end = f"{cap}{any_}.{hd}"
                    yield one(f"flash{end}", "flash", kinds[0], {**capped, **blocks}, warps=8, stages=1)
                    yield one(f"flash_back_q{end}", "flash_back_q", kinds[1], {**capped, **back}, warps=8, stages=1)
                    yield one(f"flash_back_kv{end}", "flash_back_kv", kinds[2], {**capped, **small}, warps=few, stages=1)
        for kind, name in enumerate(ACTIVATIONS):
            for gated in (False, True):
                constants = dict(KIND=kind, GATED=gated, BLOCK=1024)
                yield one(f"{name}{'_gated' if gated else ''}_back", "activate_back", "x:*T gy:*T gx:*T inner:i32",
                          constants)
        logits = "z:*f32 targets:*i32 lse:*f32 g:*f32 gz:*T vocab:i32 inverse:f32 before:f32 cap:f32"
        yield one("logits_back", "logits_back", logits, dict(CAP=False, BLOCK=1024))
        yield one("logits_back_cap", "logits_back", logits, dict(CAP=True, BLOCK=1024))
    adam = ("p:*f32 g:*f32 m:*f32 v:*f32 half:*bf16 count:i32 rate:f32 beta1:f32 beta2:f32 eps:f32 decay:f32 "
            "correct1:f32 correct2:f32 clip:f32")
    yield Variant("adamw.f32", "adamw", "backward", types(adam), dict(HALF=False, BLOCK=1024))
    yield Variant("adamw.bf16", "adamw", "backward", types(adam), dict(HALF=True, BLOCK=1024))
    yield Variant("embed_back", "embed_back", "backward",
                  types("order:*i32 starts:*i32 ids:*i32 gx:*f32 table:*f32 d:i32 scale:f32"), dict(BLOCK=1024))
    yield Variant("squares", "squares", "backward", types("x:*f32 sums:*f32 count:i32"), dict(EACH=16, BLOCK=1024))


def encoders():
    for t in ("f32", "bf16"):
        text = "qkv:*T offsets:*i32 out:*T heads:i32 hd:i32/8 window:i32 scale:f32"
        for hd in HEADS:
            # Heads of odd sizes exist in tests alone.
            for any_ in ("", "_any") if hd <= 64 else ("",):
                params = types(text.replace("/8", "") if any_ else text, T=t)
                tiles = flash_tiles(hd, t, "")[0]
                yield Variant(f"attend_both{any_}.{hd}.{t}", "attend_both", "encoders", params, tiles, warps=8, stages=1)


def adapters():
    for t, size in (("f32", 4), ("bf16", 2), ("f16", 2)):
        def one(name, kernel, text, constants, warps, stages):
            unit = dict(UNIT=256 // size)
            return Variant(f"{name}.{t}", kernel, "adapters", types(text, T=t), {**constants, **unit}, warps, stages)

        down = ("x:*T factors:*T tables:*i32 places:*i64 tiles:*i32 rows:*i32 low:*f32 count:i32 k:i32/8 stride:i32 "
                "matrix:i32")
        up = ("low:*f32 factors:*T tables:*i32 places:*i64 tiles:*i32 rows:*i32 y:*T count:i32 splits:i32 stride:i32 "
              "m:i32 matrix:i32")
        sizes = dict(BN=16, BR=16, BK=128, SPLIT=1024)
        yield one("lora_down", "lora_down", down, sizes, warps=4, stages=3)
        # For models of odd sizes, which exist in tests.
        yield one("lora_down_any", "lora_down", down.replace("/8", ""), {**sizes, "BK": 32}, warps=4, stages=1)
        yield one("lora_up", "lora_up", up, dict(BN=16, BM=64, BK=16, TOGETHER=4), warps=4, stages=2)


def variants():
    return list(forward()) + list(backward()) + list(encoders()) + list(adapters())

"""Runs kernels in Triton's interpreter on NumPy arrays, without torch, between guards.

A buffer stands between two bands of NaN (integers: of a wild index), and what a kernel should write is NaN before: an
unmasked read or a row left out makes a result that is not finite, an unmasked write changes a band.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np  # noqa: E402
import triton.language as tl  # noqa: E402
import triton.runtime.interpreter as interpreter  # noqa: E402

GUARD = 512
WILD = 0x3FFFFFFF


def f32_of_bf16(bits):
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def bf16_of_f32(x):
    """Rounded to nearest, ties to even; NaN stays NaN."""
    x = np.ascontiguousarray(x, np.float32)
    u = x.view(np.uint32).astype(np.uint64)
    rounded = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


KINDS = {
    "f32": (np.float32, tl.float32, np.nan),
    "f64": (np.float64, tl.float64, np.nan),
    "f16": (np.float16, tl.float16, np.nan),
    "bf16": (np.uint16, tl.bfloat16, 0x7FC0),
    "i32": (np.int32, tl.int32, WILD),
    "i64": (np.int64, tl.int64, WILD),
    "i8": (np.int8, tl.int8, 127),
}


class Buffer:
    """A device buffer in host memory; what the interpreter asks of a torch tensor."""

    def __init__(self, kind, values=None, shape=None):
        raw, self.dtype, guard = KINDS[kind]
        self.kind = kind
        if values is None:
            data = np.full(shape, guard, raw)
        elif kind == "bf16":
            data = bf16_of_f32(values)
        else:
            data = np.ascontiguousarray(values, raw)
        self.shape = data.shape
        self.all = np.full(data.size + 2 * GUARD, guard, raw)
        self.all[GUARD:GUARD + data.size] = data.reshape(-1)
        self.bands = (self.all[:GUARD].tobytes(), self.all[GUARD + data.size:].tobytes())

    @property
    def bits(self):
        """The values as stored."""
        return self.all[GUARD:len(self.all) - GUARD].reshape(self.shape)

    @property
    def values(self):
        if self.kind == "bf16":
            return f32_of_bf16(self.bits)
        return self.bits.astype(np.float32) if self.kind == "f16" else self.bits

    def untouched_around(self):
        end = len(self.all) - GUARD
        return (self.all[:GUARD].tobytes(), self.all[end:].tobytes()) == self.bands

    def data_ptr(self):
        return self.all.ctypes.data + GUARD * self.all.itemsize

    def untyped_storage(self):
        return self

    def cpu(self):
        return self

    def new_empty(self, *_, **__):
        return self

    def set_(self, *_):
        return self

    def storage_offset(self):
        return 0

    def size(self):
        return self.shape

    def stride(self):
        return self.all.strides

    def copy_(self, _):
        pass


def dot(self, a, b, d, *_):
    """The product of bf16 in the interpreter is wrong; and BLAS sums in an order of its own. Here every element is one
    chain over k, whatever the other rows are."""
    widen = lambda x: f32_of_bf16(x.data) if x.dtype.scalar == tl.bfloat16 else x.data.astype(np.float32)  # noqa: E731
    left, right = widen(a), widen(b)
    acc = d.data.astype(np.float32)
    for k in range(left.shape[1]):
        acc = acc + left[:, k, None] * right[None, k, :]
    return interpreter.TensorHandle(acc, d.dtype.scalar)


interpreter.InterpreterBuilder.create_dot = dot
theirs = interpreter._convert_float


def convert_float(data, source, target, mode):
    """The interpreter cuts f32 off to bf16; the GPU rounds to nearest."""
    if (source, target) == (tl.float32, tl.bfloat16):
        return bf16_of_f32(data)
    if (source, target) == (tl.bfloat16, tl.float32):
        return f32_of_bf16(data)
    return theirs(data, source, target, mode)


interpreter._convert_float = convert_float


class Violation(Exception):
    pass


def run(fn, grid, args, constants):
    """Runs a kernel; every buffer's bands must be as before."""
    values = [a if isinstance(a, Buffer) or hasattr(a, "data_ptr") else a for a in args]
    with np.errstate(all="ignore"):
        fn[grid](*values, **constants)
    for i, a in enumerate(args):
        if isinstance(a, Buffer) and not a.untouched_around():
            raise Violation(f"argument {i} was written outside its bounds")


def agree(got, want, tolerance, what):
    """Relative to the size of what is wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise Violation(f"{what}: shape {got.shape}, not {want.shape}")
    if not np.isfinite(got).all():
        raise Violation(f"{what}: not finite")
    off = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
    if off > tolerance:
        raise Violation(f"{what}: off by {off:.2e}, more than {tolerance:.0e}")
    return off


def same_bits(a, b, what):
    if a.tobytes() != b.tobytes():
        raise Violation(f"{what}: other bits")

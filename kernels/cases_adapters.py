"""The cases of adapters.py: rows of one step with different adapters."""

import numpy as np

from cases import TABLE, TOLERANCE, case, ints, launch, normal, rng, up
from harness import KINDS, Buffer, agree, bf16_of_f32, same_bits

UNIT = 256


class Adapters:
    """Adapters of one matrix, number `matrix` of 3, in one buffer in which they are far from its start and from each
    other; what is between their parts is NaN."""

    def __init__(self, t, k, all_modules, matrix=1):
        self.t, self.k, self.matrix, self.modules = t, k, matrix, all_modules
        raw, _, guard = KINDS[t]
        size = np.dtype(raw).itemsize
        units, places = [], []
        self.used = 3
        for modules in all_modules:
            self.used += 1
            places.append(self.used)
            units.append((self.used, self.packed(modules)))
            self.used += sum(len(part) for _, part in units[-1][1])
        data = np.full((self.used + 2) * UNIT // size, guard, raw).view(np.uint8)
        for place, parts in units:
            for at, part in parts:
                data[(place + at) * UNIT:][:part.size] = part.reshape(-1)
        self.places = Buffer("i64", np.array(places))
        # The same bytes as numbers and as tables.
        self.factors = Buffer(t, shape=(data.size // size,))
        self.factors.bits[:] = data.view(raw)
        self.tables = Buffer("i32", shape=(data.size // 4,))
        self.tables.bits[:] = data.view(np.int32)

    def packed(self, modules):
        """(unit, bytes [units, 256]) of the table, A and every B."""
        raw, _, guard = KINDS[self.t]
        table, parts = np.full((3, 16), -9, np.int32), []
        table[:, 0] = 0
        own = table[self.matrix]
        own[4:] = 0
        at = up(table.nbytes, UNIT)

        def add(values):
            nonlocal at
            bits = bf16_of_f32(values) if self.t == "bf16" else np.asarray(values, raw)
            whole = np.full((up(bits.nbytes, UNIT), UNIT // bits.itemsize), guard, raw)
            whole.reshape(-1)[:bits.size] = bits.reshape(-1)
            parts.append((at, whole.view(np.uint8)))
            at += len(whole)
            return parts[-1][0]

        joint = [np.concatenate([a, np.zeros((-len(a) % 16, self.k))]) for a, _, _ in modules]
        if modules:
            own[0], own[1] = sum(map(len, joint)) // 16, add(np.concatenate(joint))
        for p, (a, b, first) in enumerate(modules):
            padded = len(joint[p])
            unit = add(np.concatenate([b, np.zeros((len(b), padded - len(a)))], 1))
            own[4 + 4 * p:8 + 4 * p] = padded // 16, unit, first, len(b)
            if p > 0:
                own[1 + p] = sum(map(len, joint[:p])) // 16
        head = np.full((up(table.nbytes, UNIT), UNIT // 4), -9, np.int32)
        head.reshape(-1)[:table.size] = table.reshape(-1)
        return [(0, head.view(np.uint8))] + parts

    def apply(self, mods, x, y, owners):
        """Adds to y the terms of x, where row i has adapter owners[i], or none (None)."""
        t, (n, m) = self.t, y.shape
        rows, tiles = [], []
        for adapter in range(len(self.modules)):
            mine = [row for row in range(n) if owners[row] == adapter]
            tiles += [[len(rows) + i, min(16, len(mine) - i), adapter, -5] for i in range(0, len(mine), 16)]
            rows += mine
        down = TABLE[f"lora_down{'' if self.k % 8 == 0 else '_any'}.{t}"]
        columns = TABLE[f"lora_up.{t}"].constants["BM"]
        most = max(sum(up(len(a), 16) * 16 for a, _, _ in modules) for modules in self.modules)
        splits = up(self.k, down.constants["SPLIT"])
        low = Buffer("f32", shape=(splits, len(rows), most))
        many = max(len(modules) for modules in self.modules)
        widest = max(len(b) for modules in self.modules for _, b, _ in modules)
        step = dict(factors=self.factors, tables=self.tables, places=self.places, tiles=ints(tiles), rows=ints(rows))
        launch(mods, down.name, (len(tiles), up(most, 16), splits), x=x, **step, low=low, count=len(rows), k=self.k,
               stride=most, matrix=self.matrix)
        launch(mods, f"lora_up.{t}", (up(widest, columns), len(tiles), many), low=low, **step, y=y, count=len(rows),
               splits=splits, stride=most, m=m, matrix=self.matrix)

    def values(self, factor):
        return Buffer(self.t, factor).values.astype(np.float64)

    def reference(self, x, y, owners):
        want = y.astype(np.float64)
        for row, adapter in enumerate(owners):
            for a, b, first in self.modules[adapter] if adapter is not None else ():
                inner = self.values(a) @ x[row].astype(np.float64)
                want[row, first:first + len(b)] += self.values(b) @ inner
        return want


def factors(k, seed, *modules):
    """(A, B, first column) of modules (rank, width, first column)."""
    def one(i, rank, width, first):
        return rng(seed + i).normal(size=(rank, k)) * k ** -0.5, rng(seed + 9 + i).normal(size=(width, rank)), first
    return [one(i, *module) for i, module in enumerate(modules)]


@case("lora_down", "lora_up")
def adapters_of_rows(mods, t):
    # Three modules of one matrix, with different ranks, some without a term; inputs in several splits, or of odd size.
    for k, m in ((3080, 150), (100, 70)):
        first, second = m - 61, m - 7
        held = Adapters(t, k, [
            factors(k, 1, (4, first, 0), (20, 54, first), (1, 7, second)),
            factors(k, 40, (40, 54, first)),
            factors(k, 80, (16, m, 0)),
        ])
        owners = [None, 0, 2, 0, 1] + [2] * 17 + [None, 0]
        n = len(owners)
        x, y = normal(t, (n, k), 5), normal(t, (n, m), 6)
        before = y.bits.copy()
        want = held.reference(x.values, y.values, owners)
        held.apply(mods, x, y, owners)
        agree(y.values, want, TOLERANCE[t], f"adapters of rows, {k} inputs")
        for row in (0, n - 2):
            same_bits(y.bits[row], before[row], "a row without an adapter")
        # Rows alone, and beside others: the same bits.
        for row in (1, 2, 4, n - 1):
            own = Buffer(t, shape=(1, m))
            own.bits[:] = before[row]
            held.apply(mods, Buffer(t, x.values[row:row + 1]), own, [owners[row]])
            same_bits(own.bits[0], y.bits[row], f"row {row} alone")


@case("lora_down", "lora_up")
def small_adapters(mods, t):
    """Launches that are small enough for the tape."""
    for k in (40, 36):
        held = Adapters(t, k, [factors(k, 1, (3, 20, 0), (2, 12, 24)), factors(k, 30, (17, 9, 5))], matrix=2)
        owners = [1, None, 0, 1]
        x, y = normal(t, (4, k), 5), normal(t, (4, 36), 6)
        want = held.reference(x.values, y.values, owners)
        held.apply(mods, x, y, owners)
        agree(y.values, want, TOLERANCE[t], "small adapters")


@case("lora_down", "lora_up")
def adapters_before_the_weights(mods, t):
    """An adapter whose memory is before `factors`."""
    k, m = 40, 24
    held = Adapters(t, k, [factors(k, 7, (8, m, 0))])
    x, y, again = normal(t, (2, k), 5), normal(t, (2, m), 6), normal(t, (2, m), 6)
    held.apply(mods, x, y, [0, 0])
    agree(y.values, held.reference(x.values, again.values, [0, 0]), TOLERANCE[t], "an adapter")

    class End:
        """The end of a buffer. It is no buffer that could be recorded."""

        def __init__(self, buffer):
            self.buffer = buffer

        def __getattr__(self, name):
            return getattr(self.buffer, name)

        def data_ptr(self):
            return self.buffer.data_ptr() + self.buffer.bits.nbytes

        cpu = untyped_storage = new_empty = lambda self, *_, **__: self

    units = held.factors.bits.nbytes // UNIT
    held.factors, held.tables = End(held.factors), End(held.tables)
    held.places.bits[:] -= units
    held.apply(mods, x, again, [0, 0])
    same_bits(again.bits, y.bits, "by its distance from another place")

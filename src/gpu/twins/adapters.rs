//! The kernels of `kernels/adapters.py` in plain Rust. Their accesses to adapters are checked against what is allocated,
//! because these are not in the launch's slices.

use super::{Call, Done, dot};
use crate::gpu::Slice;
use crate::gpu::launch::Arg;
use crate::gpu::manifest::Kind;

/// Bytes of a unit.
const UNIT: i64 = 256;
/// Ints of a table for one matrix.
const TABLE: usize = 16;
/// Ranks are multiples of this.
const RANKS: usize = 16;

/// The rows of a step that one program computes, and their adapter.
struct Tile {
    first: usize,
    rows: Vec<usize>,
    /// Bytes from `factors` to the adapter.
    place: i64,
    table: Vec<i32>,
}

impl Call<'_> {
    /// `n` numbers, `bytes` after the address of a pointer argument, wherever that is.
    fn far(&mut self, name: &str, bytes: i64, n: usize) -> Result<(Kind, Vec<u8>), String> {
        let i = self.index(name)?;
        let (kind, Arg::Pointer(slice)) = (self.kernel.params[i].1, self.args[i]) else {
            return Err(format!("{name} is not a pointer"));
        };
        let address = slice.address.checked_add_signed(bytes).ok_or_else(|| format!("{name} + {bytes}"))?;
        Ok((kind, self.memory.bytes(Slice { address, bytes: n * kind.size() })?.to_vec()))
    }

    fn tile(&mut self, i: usize) -> Result<Tile, String> {
        let [first, count, adapter] =
            [self.at("tiles", 4 * i)?, self.at("tiles", 4 * i + 1)?, self.at("tiles", 4 * i + 2)?];
        if count > self.constant("BN") {
            return Err(format!("tile {i} has {count} rows"));
        }
        let rows = (first..first + count).map(|i| self.at("rows", i)).collect::<Result<_, _>>()?;
        let (_, bytes) = self.bytes("places", adapter, 1)?;
        let place = i64::from_le_bytes(bytes.try_into().map_err(|_| "places".to_owned())?) * UNIT;
        let table = (self.size("matrix")? * TABLE * 4) as i64;
        let (_, bytes) = self.far("tables", place + table, TABLE)?;
        let table = bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Tile { first, rows, place, table })
    }

    /// `n` numbers of an adapter from a unit of it on.
    fn factors(&mut self, tile: &Tile, unit: usize, n: usize) -> Result<Vec<f32>, String> {
        let (kind, bytes) = self.far("factors", tile.place + unit as i64 * UNIT, n)?;
        super::numbers(kind, &bytes).ok_or_else(|| "factors are not numbers".to_owned())
    }
}

impl Tile {
    fn int(&self, i: usize) -> Result<usize, String> {
        usize::try_from(self.table[i]).map_err(|_| format!("the table has {} at {i}", self.table[i]))
    }

    fn ranks(&self, i: usize) -> Result<usize, String> {
        Ok(self.int(i)? * RANKS)
    }
}

pub(super) fn lora_down(call: &mut Call<'_>) -> Done {
    let [count, k, stride] = [call.size("count")?, call.size("k")?, call.size("stride")?];
    let split = call.constant("SPLIT");
    for i in 0..call.grid(0) {
        let tile = call.tile(i)?;
        let ranks = tile.ranks(0)?.min(call.grid(1) * call.constant("BR"));
        if ranks == 0 {
            continue;
        }
        let a = call.factors(&tile, tile.int(1)?, ranks * k)?;
        for (i, row) in tile.rows.iter().enumerate() {
            let x = call.floats("x", row * k, k)?;
            for s in 0..call.grid(2) {
                let inputs = (s * split).min(k)..((s + 1) * split).min(k);
                let low: Vec<f32> = a.chunks_exact(k).map(|a| dot(&x[inputs.clone()], &a[inputs.clone()])).collect();
                call.put("low", (s * count + tile.first + i) * stride, &low)?;
            }
        }
    }
    Ok(())
}

pub(super) fn lora_up(call: &mut Call<'_>) -> Done {
    let [count, splits, stride, m] = [call.size("count")?, call.size("splits")?, call.size("stride")?, call.size("m")?];
    let (tiles, parts) = (call.grid(1), call.grid(2));
    for (i, part) in (0..tiles).flat_map(|i| (0..parts).map(move |part| (i, part))) {
        let tile = call.tile(i)?;
        let entry = 4 + 4 * part;
        let rank = tile.ranks(entry)?;
        if rank == 0 {
            continue;
        }
        let begin = if part > 0 { tile.ranks(1 + part)? } else { 0 };
        let (from, width) = (tile.int(entry + 2)?, tile.int(entry + 3)?);
        let b = call.factors(&tile, tile.int(entry + 1)?, width * rank)?;
        let columns = width.min(call.grid(0) * call.constant("BM"));
        for (i, row) in tile.rows.iter().enumerate() {
            let mut low = vec![0f32; rank];
            for s in 0..splits {
                let more = call.floats("low", (s * count + tile.first + i) * stride + begin, rank)?;
                low.iter_mut().zip(more).for_each(|(low, more)| *low += more);
            }
            call.rounded("factors", &mut low)?;
            let mut y = call.floats("y", row * m + from, columns)?;
            y.iter_mut().zip(b.chunks_exact(rank)).for_each(|(y, b)| *y += dot(&low, b));
            call.put("y", row * m + from, &y)?;
        }
    }
    Ok(())
}

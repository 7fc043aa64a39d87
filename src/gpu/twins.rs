//! The kernels of `kernels/*.py` in plain Rust, for the simulated device: the same formulas, rounding to the element type,
//! and order of ranges and blocks. Those of training are in `backward`, those of adapters in
//! `adapters`, those of encoders in `encoders`. They are tested against launches of the originals in Triton's interpreter, recorded in
//! `tests/fixtures/kernels*.tape.gz`.

mod adapters;
mod backward;
mod encoders;

use half::{bf16, f16};

use super::Slice;
use super::launch::Arg;
use super::manifest::{Kernel, Kind};
use super::memory::Memory;

/// A running launch.
pub struct Call<'a> {
    pub kernel: &'static Kernel,
    pub grid: [u32; 3],
    pub args: &'a [Arg],
    pub memory: &'a mut Memory,
}

type Done = Result<(), String>;

/// A score below that of any key.
const NEVER: f32 = -1e30;
const PAGE: usize = 16;

impl Call<'_> {
    fn index(&self, name: &str) -> Result<usize, String> {
        self.kernel.params.iter().position(|(n, _)| n == name).ok_or_else(|| format!("no parameter {name}"))
    }

    /// An integer argument as a count.
    fn size(&self, name: &str) -> Result<usize, String> {
        match self.args[self.index(name)?] {
            Arg::I32(v) => usize::try_from(v).map_err(|_| format!("{name} is {v}")),
            _ => Err(format!("{name} is not an integer")),
        }
    }

    fn number(&self, name: &str) -> Result<f32, String> {
        match self.args[self.index(name)?] {
            Arg::F32(v) => Ok(v),
            _ => Err(format!("{name} is not a number")),
        }
    }

    /// Elements `from..from + n` of a pointer argument, as bytes.
    fn bytes(&mut self, name: &str, from: usize, n: usize) -> Result<(Kind, &mut [u8]), String> {
        let i = self.index(name)?;
        let (kind, Arg::Pointer(slice)) = (self.kernel.params[i].1, self.args[i]) else {
            return Err(format!("{name} is not a pointer"));
        };
        let (at, len) = (from * kind.size(), n * kind.size());
        if at + len > slice.bytes {
            return Err(format!("{name}: {from}..{} is outside its {} elements", from + n, slice.bytes / kind.size()));
        }
        let part = Slice { address: slice.address + at as u64, bytes: len };
        Ok((kind, self.memory.bytes(part)?))
    }

    fn floats(&mut self, name: &str, from: usize, n: usize) -> Result<Vec<f32>, String> {
        let (kind, bytes) = self.bytes(name, from, n)?;
        numbers(kind, bytes).ok_or_else(|| format!("{name} does not point to numbers"))
    }

    fn put(&mut self, name: &str, from: usize, values: &[f32]) -> Done {
        let (kind, bytes) = self.bytes(name, from, values.len())?;
        match kind {
            Kind::ToF32 => {
                bytes.chunks_exact_mut(4).zip(values).for_each(|(b, v)| b.copy_from_slice(&v.to_le_bytes()));
            }
            Kind::ToBf16 => {
                let half = |v: &f32| bf16::from_f32(*v).to_le_bytes();
                bytes.chunks_exact_mut(2).zip(values).for_each(|(b, v)| b.copy_from_slice(&half(v)));
            }
            Kind::ToF16 => {
                let half = |v: &f32| f16::from_f32(*v).to_le_bytes();
                bytes.chunks_exact_mut(2).zip(values).for_each(|(b, v)| b.copy_from_slice(&half(v)));
            }
            _ => return Err(format!("{name} cannot hold numbers")),
        }
        Ok(())
    }

    fn ints(&mut self, name: &str, from: usize, n: usize) -> Result<Vec<i32>, String> {
        let (kind, bytes) = self.bytes(name, from, n)?;
        if kind != Kind::ToI32 {
            return Err(format!("{name} does not point to integers"));
        }
        Ok(bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    fn at(&mut self, name: &str, i: usize) -> Result<usize, String> {
        let v = self.ints(name, i, 1)?[0];
        usize::try_from(v).map_err(|_| format!("{name}[{i}] is {v}"))
    }

    /// Rounds to the element type of a pointer argument.
    fn rounded(&self, name: &str, values: &mut [f32]) -> Done {
        match self.kernel.params[self.index(name)?].1 {
            Kind::ToBf16 => values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
            Kind::ToF16 => values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
            _ => {}
        }
        Ok(())
    }

    fn constant(&self, name: &str) -> usize {
        self.kernel.constant(name)
    }

    fn grid(&self, axis: usize) -> usize {
        self.grid[axis] as usize
    }
}

/// Stored numbers as f32; `None` where the type is another.
fn numbers(kind: Kind, bytes: &[u8]) -> Option<Vec<f32>> {
    let two = |b: &[u8]| [b[0], b[1]];
    Some(match kind {
        Kind::ToF32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Kind::ToBf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(two(b)).to_f32()).collect(),
        Kind::ToF16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes(two(b)).to_f32()).collect(),
        Kind::ToI8 => bytes.iter().map(|b| f32::from(*b as i8)).collect(),
        _ => return None,
    })
}

/// Runs the launch.
///
/// # Errors
/// When an access is out of bounds, or the kernel is unknown.
pub fn run(call: &mut Call<'_>) -> Done {
    match call.kernel.kernel.as_str() {
        "embed" => embed(call),
        "norm" => norm(call),
        "add" => add(call),
        "rope_cache" => rope_cache(call),
        "attend" => attend(call),
        "combine" => combine(call),
        "matmul" | "matmul_q8" | "matmul_q4" | "matmul_fine" => matmul(call),
        "activate" => activate(call),
        "shape_logits" => shape_logits(call),
        "gather_rows" => gather_rows(call),
        "logprobs" => logprobs(call),
        "sample" => sample(call),
        "lora_down" => adapters::lora_down(call),
        "lora_up" => adapters::lora_up(call),
        "attend_both" => encoders::attend_both(call),
        _ => backward::run(call),
    }
}

fn embed(call: &mut Call<'_>) -> Done {
    let (d, scale) = (call.size("d")?, call.number("scale")?);
    for row in 0..call.grid(0) {
        let word = call.at("ids", row)?;
        let mut v = call.floats("table", word * d, d)?;
        v.iter_mut().for_each(|v| *v *= scale);
        if call.constant("POSITIONS") == 1 {
            let at = call.at("positions", row)?;
            let more = call.floats("position_table", at * d, d)?;
            v.iter_mut().zip(more).for_each(|(v, m)| *v += m);
        }
        call.put("out", row * d, &v)?;
    }
    Ok(())
}

fn norm(call: &mut Call<'_>) -> Done {
    let [d, x_stride, y_stride] = [call.size("d")?, call.size("x_stride")?, call.size("y_stride")?];
    let [eps, scale, offset] = [call.number("eps")?, call.number("scale")?, call.number("offset")?];
    let layer = call.constant("LAYER") == 1;
    let weight = call.floats("weight", 0, d)?;
    let bias = if layer { call.floats("bias", 0, d)? } else { vec![0.0; d] };
    for row in 0..call.grid(0) {
        let mut x = call.floats("x", row * x_stride, d)?;
        if call.constant("ADD") == 1 {
            let branch = call.floats("branch", row * d, d)?;
            x.iter_mut().zip(branch).for_each(|(x, b)| *x += scale * b);
            call.put("x", row * x_stride, &x)?;
        }
        let mean = if layer { x.iter().sum::<f32>() / d as f32 } else { 0.0 };
        let squares: f32 = x.iter().map(|v| (v - mean) * (v - mean)).sum();
        let factor = 1.0 / (squares / d as f32 + eps).sqrt();
        let mut y: Vec<f32> = x.iter().zip(&weight).map(|(v, w)| (v - mean) * factor * (w + offset)).collect();
        if layer {
            y.iter_mut().zip(&bias).for_each(|(y, b)| *y += b);
        }
        if call.constant("KEEP") == 1 {
            call.put("x", row * x_stride, &y)?;
        }
        call.put("y", row * y_stride, &y)?;
    }
    Ok(())
}

fn add(call: &mut Call<'_>) -> Done {
    let (count, scale) = (call.size("count")?, call.number("scale")?);
    let mut x = call.floats("x", 0, count)?;
    let branch = call.floats("branch", 0, count)?;
    x.iter_mut().zip(branch).for_each(|(x, b)| *x += scale * b);
    call.put("x", 0, &x)
}

fn rope_cache(call: &mut Call<'_>) -> Done {
    let [heads, kv_heads, hd, half] =
        [call.size("heads")?, call.size("kv_heads")?, call.size("hd")?, call.size("half")?];
    let [width, stride] = [call.size("width")?, call.size("head_stride")?];
    let bases = [0, call.size("k_base")?, call.size("v_base")?];
    let (eps, offset) = (call.number("eps")?, call.number("offset")?);
    for row in 0..call.grid(0) {
        let at = call.at("rotary", row)? * half;
        let (cos, sin) = (call.floats("cos", at, half)?, call.floats("sin", at, half)?);
        let slot = call.at("slots", row)?;
        for part in 0..call.grid(1) {
            let (kind, h) = match part {
                p if p < heads => (0, p),
                p if p < heads + kv_heads => (1, p - heads),
                p => (2, p - heads - kv_heads),
            };
            let mut v = call.floats("qkv", row * width + bases[kind] + h * stride, hd)?;
            if kind < 2 {
                if call.constant("NORM") == 1 {
                    let factor = 1.0 / (v.iter().map(|v| v * v).sum::<f32>() / hd as f32 + eps).sqrt();
                    let weight = call.floats(["q_weight", "k_weight"][kind], 0, hd)?;
                    v.iter_mut().zip(weight).for_each(|(v, w)| *v = *v * factor * (w + offset));
                }
                for c in 0..half {
                    let (a, b) = (v[c], v[c + half]);
                    (v[c], v[c + half]) = (a * cos[c] - b * sin[c], b * cos[c] + a * sin[c]);
                }
            }
            let place = ((slot / PAGE * kv_heads + h) * PAGE + slot % PAGE) * hd;
            match kind {
                0 => call.put("q_out", (row * heads + h) * hd, &v)?,
                1 => call.put("keys", place, &v)?,
                _ => call.put("values", place, &v)?,
            }
        }
    }
    Ok(())
}

/// Running softmax of the rows of one tile: for each query its greatest score, the mass, and the weighted sum.
struct Seen {
    top: f32,
    mass: f32,
    acc: Vec<f32>,
}

fn attend(call: &mut Call<'_>) -> Done {
    let [n, heads, kv_heads, hd] = [call.size("n")?, call.size("heads")?, call.size("kv_heads")?, call.size("hd")?];
    let [table_width, window] = [call.size("table_width")?, call.size("window")?];
    let (scale, cap) = (call.number("scale")?, call.number("cap")?);
    let (block, range, rows) = (call.constant("BLOCK"), call.constant("SPLIT"), call.constant("ROWS"));
    let (kv_grid, splits) = (call.grid(1), call.grid(2));
    for tile in 0..call.grid(0) {
        let mut fields = [0; 6];
        for (i, field) in fields.iter_mut().enumerate() {
            *field = call.at("tiles", tile * 8 + i)?;
        }
        let [first, count, sequence, position, head_from, head_count] = fields;
        if count * head_count > rows {
            return Err(format!("tile {tile} has {count} rows of {head_count} heads, more than {rows}"));
        }
        let table: Vec<usize> = (0..(position + count).div_ceil(PAGE))
            .map(|i| call.at("tables", sequence * table_width + i))
            .collect::<Result<_, _>>()?;
        for (kv, split) in (0..kv_grid).flat_map(|kv| (0..splits).map(move |split| (kv, split))) {
            let end = (position + count).min((split + 1) * range);
            let mut start = split * range;
            if window > 0 {
                start = start.max((position + 1).saturating_sub(window) / block * block);
            }
            let keys: Vec<(usize, Vec<f32>, Vec<f32>)> = (start..end.max(start))
                .map(|key| {
                    let at = ((table[key / PAGE] * kv_heads + kv) * PAGE + key % PAGE) * hd;
                    Ok((key, call.floats("keys", at, hd)?, call.floats("values", at, hd)?))
                })
                .collect::<Result<_, String>>()?;
            for (i, h) in (0..count).flat_map(|i| (0..head_count).map(move |h| (i, h))) {
                let head = kv * (heads / kv_heads) + head_from + h;
                let q = call.floats("q", ((first + i) * heads + head) * hd, hd)?;
                let mut seen = Seen { top: NEVER, mass: 0.0, acc: vec![0.0; hd] };
                for keys in keys.chunks(block) {
                    let visible = |key: usize| key <= position + i && (window == 0 || key + window > position + i);
                    let mine = keys.iter().filter(|(key, ..)| visible(*key));
                    let scores = mine.clone().map(|(_, k, _)| {
                        let z = dot(&q, k) * scale;
                        if call.constant("CAP") == 1 { cap * (1.0 - 2.0 / ((2.0 * z / cap).exp() + 1.0)) } else { z }
                    });
                    let scores: Vec<f32> = scores.collect();
                    let now = scores.iter().fold(seen.top, |m, z| m.max(*z));
                    let mut p: Vec<f32> = scores.iter().map(|z| (z - now).exp()).collect();
                    let shrink = (seen.top - now).exp();
                    seen.mass = seen.mass * shrink + p.iter().sum::<f32>();
                    call.rounded("values", &mut p)?;
                    seen.acc.iter_mut().for_each(|v| *v *= shrink);
                    for (p, (_, _, v)) in p.iter().zip(mine) {
                        seen.acc.iter_mut().zip(v).for_each(|(acc, v)| *acc += p * v);
                    }
                    seen.top = now;
                }
                let line = (split * n + first + i) * heads + head;
                call.put("maxima", line, &[seen.top])?;
                call.put("sums", line, &[seen.mass])?;
                call.put("partial", line * hd, &seen.acc)?;
            }
        }
    }
    Ok(())
}

fn combine(call: &mut Call<'_>) -> Done {
    let [n, heads, hd, window] = [call.size("n")?, call.size("heads")?, call.size("hd")?, call.size("window")?];
    let range = call.constant("SPLIT");
    for row in 0..call.grid(0) {
        let position = call.at("positions", row)?;
        let from = if window > 0 { (position + 1).saturating_sub(window) / range } else { 0 };
        for head in 0..call.grid(1) {
            let mut all = Seen { top: NEVER, mass: 0.0, acc: vec![0.0; hd] };
            for split in from..=position / range {
                let line = (split * n + row) * heads + head;
                let their = call.floats("maxima", line, 1)?[0];
                let now = all.top.max(their);
                let (a, b) = ((all.top - now).exp(), (their - now).exp());
                all.mass = all.mass * a + call.floats("sums", line, 1)?[0] * b;
                let part = call.floats("partial", line * hd, hd)?;
                all.acc.iter_mut().zip(part).for_each(|(acc, v)| *acc = *acc * a + v * b);
                all.top = now;
            }
            all.acc.iter_mut().for_each(|v| *v /= all.mass);
            call.put("out", (row * heads + head) * hd, &all.acc)?;
        }
    }
    Ok(())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| a.mul_add(*b, sum))
}

fn matmul(call: &mut Call<'_>) -> Done {
    let [n, m, k] = [call.size("n")?, call.size("m")?, call.size("k")?];
    let bias = if call.constant("BIAS") == 1 { call.floats("bias", 0, m)? } else { vec![0.0; m] };
    // Tiles without a program are not written, as on a GPU.
    let (m_end, n_end) = (call.grid(0) * call.constant("BM"), call.grid(1) * call.constant("BN"));
    let w = match call.kernel.kernel.as_str() {
        "matmul_q8" => weights_q8(call, m * k)?,
        "matmul_q4" => {
            let bytes = call.bytes("w", 0, m * k / 2)?.1;
            let halves = bytes.chunks(16).flat_map(|block| [0, 4].map(|shift| (block, shift)));
            let integers = halves.flat_map(|(block, shift)| block.iter().map(move |b| f32::from(b >> shift & 15)));
            let integers = integers.collect();
            scaled(call, integers, 32)?
        }
        "matmul_fine" => {
            let integers = call.floats("w", 0, m * k)?;
            scaled(call, integers, 16)?
        }
        _ => call.floats("w", 0, m * k)?,
    };
    for row in 0..n.min(n_end) {
        let x = call.floats("x", row * k, k)?;
        let lines = w.chunks_exact(k).zip(&bias).take(m_end);
        let y: Vec<f32> = lines.map(|(w, b)| dot(&x, w) + b).collect();
        call.put("y", row * m, &y)?;
    }
    Ok(())
}

/// `count` weights in 8 bits, dequantised to the type of x.
fn weights_q8(call: &mut Call<'_>, count: usize) -> Result<Vec<f32>, String> {
    let mut w = call.floats("w", 0, count)?;
    let scales = call.floats("scales", 0, count / 32)?;
    w.chunks_exact_mut(32).zip(scales).for_each(|(block, s)| block.iter_mut().for_each(|v| *v *= s));
    call.rounded("x", &mut w)?;
    Ok(w)
}

/// scale · w + minimum for each block of `each` integers, in the type of x.
fn scaled(call: &mut Call<'_>, mut w: Vec<f32>, each: usize) -> Result<Vec<f32>, String> {
    let (scales, minima) = (call.floats("scales", 0, w.len() / each)?, call.floats("minima", 0, w.len() / each)?);
    for (block, (scale, minimum)) in w.chunks_exact_mut(each).zip(scales.iter().zip(&minima)) {
        block.iter_mut().for_each(|v| *v = *v * scale + minimum);
    }
    call.rounded("x", &mut w)?;
    Ok(w)
}

fn activate(call: &mut Call<'_>) -> Done {
    let inner = call.size("inner")?;
    let (kind, gated) = (call.constant("KIND"), call.constant("GATED"));
    let width = inner * (gated + 1);
    for row in 0..call.grid(0) {
        let x = call.floats("x", row * width, width)?;
        let mut y: Vec<f32> = x[..inner].iter().map(|v| activated(*v, kind)).collect();
        if gated == 1 {
            y.iter_mut().zip(&x[inner..]).for_each(|(y, up)| *y *= up);
        }
        y.truncate(call.grid(1) * call.constant("BLOCK"));
        call.put("y", row * inner, &y)?;
    }
    Ok(())
}

fn activated(x: f32, kind: usize) -> f32 {
    match kind {
        0 => x / (1.0 + (-x).exp()),
        1 => x / (1.0 + (-1.595_769 * (x + 0.044_715 * x * x * x)).exp()),
        _ => {
            (0.5 * f64::from(x) * (1.0 + statrs::function::erf::erf(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2)))
                as f32
        }
    }
}

fn shape_logits(call: &mut Call<'_>) -> Done {
    let (count, inverse, cap) = (call.size("count")?, call.number("inverse")?, call.number("cap")?);
    let capped = call.constant("CAP") == 1;
    let mut z = call.floats("z", 0, count)?;
    for v in &mut z {
        *v *= inverse;
        if capped {
            *v = cap * (1.0 - 2.0 / ((2.0 * *v / cap).exp() + 1.0));
        }
    }
    call.put("z", 0, &z)
}

fn gather_rows(call: &mut Call<'_>) -> Done {
    let d = call.size("d")?;
    for row in 0..call.grid(0) {
        let from = call.at("rows", row)?;
        let x = call.floats("x", from * d, d)?;
        call.put("y", row * d, &x)?;
    }
    Ok(())
}

fn logprobs(call: &mut Call<'_>) -> Done {
    let (vocab, inverse) = (call.size("vocab")?, call.number("inverse")?);
    for row in 0..call.grid(0) {
        let z = call.floats("z", row * vocab, vocab)?;
        let top = z.iter().fold(NEVER, |m, v| m.max(*v)) * inverse;
        let (mut mass, mut moment) = (0f64, 0f64);
        for v in &z {
            let v = v * inverse - top;
            let p = f64::from(v.exp());
            mass += p;
            moment += if p > 0.0 { p * f64::from(v) } else { 0.0 };
        }
        let target = call.at("targets", row)?;
        let log_mass = mass.ln() as f32;
        let at_target = z.get(target).ok_or_else(|| format!("target {target} of {vocab}"))? * inverse;
        call.put("logprob", row, &[at_target - top - log_mass])?;
        call.put("lse", row, &[top + log_mass])?;
        call.put("entropy", row, &[log_mass - (moment / mass) as f32])?;
    }
    Ok(())
}

fn sample(call: &mut Call<'_>) -> Done {
    let vocab = call.size("vocab")?;
    for row in 0..call.grid(0) {
        let z = call.floats("z", row * vocab, vocab)?;
        let inverse = call.floats("inverses", row, 1)?[0];
        let top = z.iter().fold(NEVER, |m, v| m.max(*v));
        let chosen = if inverse == 0.0 {
            z.iter().position(|v| *v == top)
        } else {
            let (_, bytes) = call.bytes("uniforms", row, 1)?;
            let uniform = f64::from_le_bytes(bytes.try_into().map_err(|_| "uniforms".to_owned())?);
            let weights: Vec<f64> = z.iter().map(|v| f64::from(((v - top) * inverse).exp())).collect();
            let target = uniform * weights.iter().sum::<f64>();
            let mut before = 0.0;
            let passed = weights.iter().position(|w| {
                before += w;
                *w > 0.0 && before > target
            });
            passed.or_else(|| weights.iter().rposition(|w| *w > 0.0))
        };
        let id = chosen.ok_or("no logit is a number")? as i32;
        let (_, bytes) = call.bytes("ids", row, 1)?;
        bytes.copy_from_slice(&id.to_le_bytes());
    }
    Ok(())
}

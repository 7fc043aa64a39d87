//! The kernels of `kernels/backward.py` in plain Rust.

use super::{Call, Done, NEVER};

/// Runs the launch.
///
/// # Errors
/// When an access is out of bounds, or the kernel is unknown.
pub(super) fn run(call: &mut Call<'_>) -> Done {
    match call.kernel.kernel.as_str() {
        "matmul_nn" => matmul_nn(call),
        "matmul_tn" => matmul_tn(call),
        "matmul_add" => matmul_add(call),
        "column_sums" => column_sums(call),
        "norm_back" => norm_back(call),
        "norm_back_weight" => norm_back_weight(call),
        "rotate" => rotate(call),
        "flash" => flash(call),
        "flash_delta" => flash_delta(call),
        "flash_back_q" => flash_back_q(call),
        "flash_back_kv" => flash_back_kv(call),
        "activate_back" => activate_back(call),
        "logits_back" => logits_back(call),
        "embed_back" => embed_back(call),
        "adamw" => adamw(call),
        "squares" => squares(call),
        other => Err(format!("the simulated device has no kernel {other}")),
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b)
}

/// to += by · x.
fn add_scaled(to: &mut [f32], by: f32, x: &[f32]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += by * x);
}

/// All (row, head).
fn pairs(rows: usize, heads: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |row| (0..heads).map(move |head| (row, head)))
}

fn matmul_nn(call: &mut Call<'_>) -> Done {
    let [n, m, k] = [call.size("n")?, call.size("m")?, call.size("k")?];
    let (stride, scale) = (call.size("stride")?, call.number("scale")?);
    let w = call.floats("w", 0, m * k)?;
    // Tiles without a program are not written, as on a GPU.
    let columns = k.min(call.grid(0) * call.constant("BK"));
    for row in 0..n.min(call.grid(1) * call.constant("BN")) {
        let mut acc = vec![0f32; k];
        for (g, w) in call.floats("gy", row * stride, m)?.into_iter().zip(w.chunks_exact(k)) {
            add_scaled(&mut acc, g, w);
        }
        acc.iter_mut().for_each(|v| *v *= scale);
        if call.constant("ADD") == 1 {
            add_scaled(&mut acc, 1.0, &call.floats("gx", row * k, k)?);
        }
        call.put("gx", row * k, &acc[..columns])?;
    }
    Ok(())
}

fn matmul_tn(call: &mut Call<'_>) -> Done {
    let [n, m, k] = [call.size("n")?, call.size("m")?, call.size("k")?];
    let (stride, scale) = (call.size("stride")?, call.number("scale")?);
    let gy = (0..n).map(|row| call.floats("gy", row * stride, m)).collect::<Result<Vec<_>, _>>()?;
    let x = call.floats("x", 0, n * k)?;
    let columns = k.min(call.grid(0) * call.constant("BK"));
    for line in 0..m.min(call.grid(1) * call.constant("BM")) {
        let mut acc = vec![0f32; k];
        for (g, x) in gy.iter().zip(x.chunks_exact(k)) {
            add_scaled(&mut acc, g[line], x);
        }
        let mut sum = call.floats("gw", line * k, k)?;
        add_scaled(&mut sum, scale, &acc);
        call.put("gw", line * k, &sum[..columns])?;
    }
    Ok(())
}

fn matmul_add(call: &mut Call<'_>) -> Done {
    let [n, m, k] = [call.size("n")?, call.size("m")?, call.size("k")?];
    let (stride, scale) = (call.size("stride")?, call.number("scale")?);
    let w = call.floats("w", 0, m * k)?;
    let columns = m.min(call.grid(0) * call.constant("BM"));
    for row in 0..n.min(call.grid(1) * call.constant("BN")) {
        let x = call.floats("x", row * k, k)?;
        let mut y = call.floats("y", row * stride, columns)?;
        y.iter_mut().zip(w.chunks_exact(k)).for_each(|(y, w)| *y += scale * dot(&x, w));
        call.put("y", row * stride, &y)?;
    }
    Ok(())
}

fn column_sums(call: &mut Call<'_>) -> Done {
    let [n, m] = [call.size("n")?, call.size("m")?];
    let columns = m.min(call.grid(0) * call.constant("BLOCK"));
    let mut acc = vec![0f32; columns];
    for row in 0..n {
        add_scaled(&mut acc, 1.0, &call.floats("gy", row * m, columns)?);
    }
    add_scaled(&mut acc, 1.0, &call.floats("g", 0, columns)?);
    call.put("g", 0, &acc)
}

fn norm_back(call: &mut Call<'_>) -> Done {
    let d = call.size("d")?;
    let (eps, offset) = (call.number("eps")?, call.number("offset")?);
    let layer = call.constant("LAYER") == 1;
    let weight = call.floats("weight", 0, d)?;
    for row in 0..call.grid(0) {
        let (x, gy) = (call.floats("x", row * d, d)?, call.floats("gy", row * d, d)?);
        let mean = if layer { x.iter().sum::<f32>() / d as f32 } else { 0.0 };
        let squares: f32 = x.iter().map(|v| (v - mean) * (v - mean)).sum();
        let factor = 1.0 / (squares / d as f32 + eps).sqrt();
        let unit: Vec<f32> = x.iter().map(|v| (v - mean) * factor).collect();
        let g: Vec<f32> = gy.iter().zip(&weight).map(|(g, w)| g * (w + offset)).collect();
        let shared = dot(&g, &unit) / d as f32;
        let level = if layer { g.iter().sum::<f32>() / d as f32 } else { 0.0 };
        let mut gx = call.floats("gx", row * d, d)?;
        for ((gx, g), unit) in gx.iter_mut().zip(&g).zip(&unit) {
            *gx += (g - level - unit * shared) * factor;
        }
        call.put("gx", row * d, &gx)?;
        call.put("factors", row, &[factor])?;
        call.put("means", row, &[mean])?;
    }
    Ok(())
}

fn norm_back_weight(call: &mut Call<'_>) -> Done {
    let [n, d] = [call.size("n")?, call.size("d")?];
    let columns = d.min(call.grid(0) * call.constant("BLOCK"));
    let (mut w, mut b) = (vec![0f32; columns], vec![0f32; columns]);
    for row in 0..n {
        let (x, gy) = (call.floats("x", row * d, columns)?, call.floats("gy", row * d, columns)?);
        let (factor, mean) = (call.floats("factors", row, 1)?[0], call.floats("means", row, 1)?[0]);
        w.iter_mut().zip(&gy).zip(&x).for_each(|((w, g), x)| *w += g * (x - mean) * factor);
        add_scaled(&mut b, 1.0, &gy);
    }
    add_scaled(&mut w, 1.0, &call.floats("gw", 0, columns)?);
    call.put("gw", 0, &w)?;
    if call.constant("LAYER") == 1 {
        add_scaled(&mut b, 1.0, &call.floats("gb", 0, columns)?);
        call.put("gb", 0, &b)?;
    }
    Ok(())
}

fn rotate(call: &mut Call<'_>) -> Done {
    let [heads, hd, half] = [call.size("heads")?, call.size("hd")?, call.size("half")?];
    let sign = call.number("sign")?;
    for row in 0..call.grid(0) {
        let at = call.at("rotary", row)? * half;
        let (cos, sin) = (call.floats("cos", at, half)?, call.floats("sin", at, half)?);
        for head in 0..call.grid(1) {
            let from = (row * heads + head) * hd;
            let mut x = call.floats("x", from, 2 * half)?;
            for c in 0..half {
                let (a, b, sin) = (x[c], x[c + half], sin[c] * sign);
                (x[c], x[c + half]) = (a * cos[c] - b * sin, b * cos[c] + a * sin);
            }
            call.put("x", from, &x)?;
        }
    }
    Ok(())
}

/// The sizes of a launch of attention over packed sequences.
struct Attention {
    heads: usize,
    kv_heads: usize,
    hd: usize,
    window: usize,
    scale: f32,
    /// Scores become cap · tanh(score / cap), if there is a cap.
    cap: Option<f32>,
    /// Rows and keys of a tile.
    rows: usize,
    keys: usize,
}

/// The rows of one sequence: [length, heads, hd] of q and [length, kv_heads, hd] of k and v.
struct Sequence {
    begin: usize,
    length: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Attention {
    fn of(call: &Call<'_>) -> Result<Self, String> {
        Ok(Self {
            heads: call.size("heads")?,
            kv_heads: call.size("kv_heads")?,
            hd: call.size("hd")?,
            window: call.size("window")?,
            scale: call.number("scale")?,
            cap: (call.constant("CAP") == 1).then(|| call.number("cap")).transpose()?,
            rows: call.constant("BM"),
            keys: call.constant("BN"),
        })
    }

    fn sequence(&self, call: &mut Call<'_>, s: usize) -> Result<Sequence, String> {
        let begin = call.at("offsets", s)?;
        let end = call.at("offsets", s + 1)?;
        let length = end.checked_sub(begin).ok_or_else(|| format!("sequence {s} ends before it begins"))?;
        let (wide, narrow) = (self.heads * self.hd, self.kv_heads * self.hd);
        let q = call.floats("q", begin * wide, length * wide)?;
        let k = call.floats("k", begin * narrow, length * narrow)?;
        let v = call.floats("v", begin * narrow, length * narrow)?;
        Ok(Sequence { begin, length, q, k, v })
    }

    fn row<'a>(&self, of: &'a [f32], i: usize, head: usize) -> &'a [f32] {
        &of[(i * self.heads + head) * self.hd..][..self.hd]
    }

    fn key<'a>(&self, of: &'a [f32], j: usize, head: usize) -> &'a [f32] {
        &of[(j * self.kv_heads + head) * self.hd..][..self.hd]
    }

    /// The score of a query and a key.
    fn score(&self, q: &[f32], k: &[f32]) -> f32 {
        let z = dot(q, k) * self.scale;
        self.cap.map_or(z, |cap| cap * (1.0 - 2.0 / ((2.0 * z / cap).exp() + 1.0)))
    }

    fn sees(&self, i: usize, j: usize) -> bool {
        j <= i && (self.window == 0 || j + self.window > i)
    }

    /// The first key of the tile of row i.
    fn start(&self, i: usize) -> usize {
        let first = i / self.rows * self.rows;
        if self.window == 0 { 0 } else { (first + 1).saturating_sub(self.window) / self.keys * self.keys }
    }

    fn key_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }
}

fn flash(call: &mut Call<'_>) -> Done {
    let a = Attention::of(call)?;
    for s in 0..call.grid(1) {
        let seq = a.sequence(call, s)?;
        let rows = seq.length.min(call.grid(0) * a.rows);
        for (i, head) in pairs(rows, call.grid(2)) {
            let (q, kv) = (a.row(&seq.q, i, head), a.key_head(head));
            let (mut top, mut mass, mut acc) = (NEVER, 0f32, vec![0f32; a.hd]);
            for from in (a.start(i)..=i).step_by(a.keys) {
                let seen: Vec<usize> = (from..seq.length.min(from + a.keys)).filter(|j| a.sees(i, *j)).collect();
                let z: Vec<f32> = seen.iter().map(|j| a.score(q, a.key(&seq.k, *j, kv))).collect();
                let now = z.iter().fold(top, |m, z| m.max(*z));
                let mut p: Vec<f32> = z.iter().map(|z| (z - now).exp()).collect();
                let shrink = (top - now).exp();
                mass = mass * shrink + p.iter().sum::<f32>();
                call.rounded("v", &mut p)?;
                acc.iter_mut().for_each(|v| *v *= shrink);
                p.iter().zip(&seen).for_each(|(p, j)| add_scaled(&mut acc, *p, a.key(&seq.v, *j, kv)));
                top = now;
            }
            acc.iter_mut().for_each(|v| *v /= mass);
            let line = (seq.begin + i) * a.heads + head;
            call.put("out", line * a.hd, &acc)?;
            call.put("lse", line, &[top + mass.ln()])?;
        }
    }
    Ok(())
}

fn flash_delta(call: &mut Call<'_>) -> Done {
    let [heads, hd] = [call.size("heads")?, call.size("hd")?];
    for line in (0..call.grid(0)).flat_map(|row| (0..heads).map(move |head| row * heads + head)) {
        let (out, gout) = (call.floats("out", line * hd, hd)?, call.floats("gout", line * hd, hd)?);
        call.put("delta", line, &[dot(&out, &gout)])?;
    }
    Ok(())
}

/// What the gradients of attention read of one sequence, in addition to q, k and v.
struct Outputs {
    gout: Vec<f32>,
    lse: Vec<f32>,
    delta: Vec<f32>,
}

impl Outputs {
    fn of(call: &mut Call<'_>, a: &Attention, seq: &Sequence) -> Result<Self, String> {
        let (at, lines) = (seq.begin * a.heads, seq.length * a.heads);
        Ok(Self {
            gout: call.floats("gout", at * a.hd, lines * a.hd)?,
            lse: call.floats("lse", at, lines)?,
            delta: call.floats("delta", at, lines)?,
        })
    }

    /// The probability of key j at row i, and the gradient of its score.
    fn score(&self, a: &Attention, seq: &Sequence, [i, j, head]: [usize; 3]) -> (f32, f32) {
        let (line, kv) = (i * a.heads + head, a.key_head(head));
        let z = a.score(a.row(&seq.q, i, head), a.key(&seq.k, j, kv));
        let p = (z - self.lse[line]).exp();
        let gp = dot(a.row(&self.gout, i, head), a.key(&seq.v, j, kv));
        let gz = p * (gp - self.delta[line]) * a.scale;
        (p, a.cap.map_or(gz, |cap| gz * (1.0 - (z / cap) * (z / cap))))
    }
}

fn flash_back_q(call: &mut Call<'_>) -> Done {
    let a = Attention::of(call)?;
    for s in 0..call.grid(1) {
        let seq = a.sequence(call, s)?;
        let outputs = Outputs::of(call, &a, &seq)?;
        let rows = seq.length.min(call.grid(0) * a.rows);
        for (i, head) in pairs(rows, call.grid(2)) {
            let mut acc = vec![0f32; a.hd];
            for j in (a.start(i)..=i).filter(|j| a.sees(i, *j)) {
                let mut gz = [outputs.score(&a, &seq, [i, j, head]).1];
                call.rounded("k", &mut gz)?;
                add_scaled(&mut acc, gz[0], a.key(&seq.k, j, a.key_head(head)));
            }
            call.put("gq", ((seq.begin + i) * a.heads + head) * a.hd, &acc)?;
        }
    }
    Ok(())
}

fn flash_back_kv(call: &mut Call<'_>) -> Done {
    let a = Attention::of(call)?;
    for s in 0..call.grid(1) {
        let seq = a.sequence(call, s)?;
        let outputs = Outputs::of(call, &a, &seq)?;
        let keys = seq.length.min(call.grid(0) * a.keys);
        let group = a.heads / a.kv_heads;
        for (j, kv) in pairs(keys, call.grid(2)) {
            let (mut gk, mut gv) = (vec![0f32; a.hd], vec![0f32; a.hd]);
            for head in kv * group..(kv + 1) * group {
                for i in (j..seq.length).filter(|i| a.sees(*i, j)) {
                    let (p, gz) = outputs.score(&a, &seq, [i, j, head]);
                    let mut both = [p, gz];
                    call.rounded("q", &mut both)?;
                    add_scaled(&mut gv, both[0], a.row(&outputs.gout, i, head));
                    add_scaled(&mut gk, both[1], a.row(&seq.q, i, head));
                }
            }
            let at = ((seq.begin + j) * a.kv_heads + kv) * a.hd;
            call.put("gk", at, &gk)?;
            call.put("gv", at, &gv)?;
        }
    }
    Ok(())
}

/// An activation and its derivative.
fn activated(x: f32, kind: usize) -> (f32, f32) {
    match kind {
        0 => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s * (1.0 + x * (1.0 - s)))
        }
        1 => {
            let s = 1.0 / (1.0 + (-1.595_769 * (x + 0.044_715 * x * x * x)).exp());
            (x * s, s + x * s * (1.0 - s) * 1.595_769 * (1.0 + 0.134_145 * x * x))
        }
        _ => {
            let wide = f64::from(x) * std::f64::consts::FRAC_1_SQRT_2;
            let cdf = (0.5 * (1.0 + statrs::function::erf::erf(wide))) as f32;
            (x * cdf, cdf + x * 0.398_942_3 * (-0.5 * x * x).exp())
        }
    }
}

fn activate_back(call: &mut Call<'_>) -> Done {
    let inner = call.size("inner")?;
    let (kind, gated) = (call.constant("KIND"), call.constant("GATED") == 1);
    let columns = inner.min(call.grid(1) * call.constant("BLOCK"));
    for row in 0..call.grid(0) {
        let gy = call.floats("gy", row * inner, columns)?;
        let at = if gated { row * 2 * inner } else { row * inner };
        let x: Vec<(f32, f32)> = call.floats("x", at, columns)?.into_iter().map(|x| activated(x, kind)).collect();
        if !gated {
            let gx: Vec<f32> = gy.iter().zip(&x).map(|(g, (_, slope))| g * slope).collect();
            call.put("gx", at, &gx)?;
            continue;
        }
        let up = call.floats("x", at + inner, columns)?;
        let gate: Vec<f32> = gy.iter().zip(&x).zip(&up).map(|((g, (_, slope)), up)| g * up * slope).collect();
        let rest: Vec<f32> = gy.iter().zip(&x).map(|(g, (y, _))| g * y).collect();
        call.put("gx", at, &gate)?;
        call.put("gx", at + inner, &rest)?;
    }
    Ok(())
}

fn logits_back(call: &mut Call<'_>) -> Done {
    let (vocab, inverse) = (call.size("vocab")?, call.number("inverse")?);
    let (before, cap) = (call.number("before")?, call.number("cap")?);
    let capped = call.constant("CAP") == 1;
    let columns = vocab.min(call.grid(1) * call.constant("BLOCK"));
    for row in 0..call.grid(0) {
        let (lse, g) = (call.floats("lse", row, 1)?[0], call.floats("g", row, 1)?[0]);
        let target = call.at("targets", row)?;
        let z = call.floats("z", row * vocab, columns)?;
        let gz = z.iter().enumerate().map(|(c, z)| {
            let hit = if c == target { 1.0 } else { 0.0 };
            let by = (hit - (z * inverse - lse).exp()) * g * inverse;
            if capped { by * (1.0 - (z / cap) * (z / cap)) * before } else { by }
        });
        call.put("gz", row * vocab, &gz.collect::<Vec<_>>())?;
    }
    Ok(())
}

fn embed_back(call: &mut Call<'_>) -> Done {
    let (d, scale) = (call.size("d")?, call.number("scale")?);
    let columns = d.min(call.grid(1) * 1024);
    for u in 0..call.grid(0) {
        let mut acc = vec![0f32; columns];
        for at in call.at("starts", u)?..call.at("starts", u + 1)? {
            let row = call.at("order", at)?;
            add_scaled(&mut acc, 1.0, &call.floats("gx", row * d, columns)?);
        }
        let to = call.at("ids", u)? * d;
        let mut sum = call.floats("table", to, columns)?;
        add_scaled(&mut sum, scale, &acc);
        call.put("table", to, &sum)?;
    }
    Ok(())
}

fn adamw(call: &mut Call<'_>) -> Done {
    let count = call.size("count")?.min(call.grid(0) * call.constant("BLOCK"));
    let [rate, beta1, beta2, eps] =
        [call.number("rate")?, call.number("beta1")?, call.number("beta2")?, call.number("eps")?];
    let [decay, correct1, correct2, clip] =
        [call.number("decay")?, call.number("correct1")?, call.number("correct2")?, call.number("clip")?];
    let (mut p, g) = (call.floats("p", 0, count)?, call.floats("g", 0, count)?);
    let (mut m, mut v) = (call.floats("m", 0, count)?, call.floats("v", 0, count)?);
    for (((p, g), m), v) in p.iter_mut().zip(g).zip(&mut m).zip(&mut v) {
        let g = g * clip;
        *m = *m * beta1 + g * (1.0 - beta1);
        *v = *v * beta2 + g * g * (1.0 - beta2);
        *p *= 1.0 - rate * decay;
        *p -= rate * (*m / correct1) / ((*v / correct2).sqrt() + eps);
    }
    call.put("p", 0, &p)?;
    call.put("m", 0, &m)?;
    call.put("v", 0, &v)?;
    if call.constant("HALF") == 1 { call.put("half", 0, &p) } else { Ok(()) }
}

fn squares(call: &mut Call<'_>) -> Done {
    let (count, each) = (call.size("count")?, call.constant("EACH") * call.constant("BLOCK"));
    for program in 0..call.grid(0) {
        let from = (program * each).min(count);
        let x = call.floats("x", from, each.min(count - from))?;
        call.put("sums", program, &[dot(&x, &x)])?;
    }
    Ok(())
}

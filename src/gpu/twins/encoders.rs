//! The kernel of `kernels/encoders.py` in plain Rust.

use super::{Call, Done, NEVER};

pub(super) fn attend_both(call: &mut Call<'_>) -> Done {
    let [heads, hd, window] = [call.size("heads")?, call.size("hd")?, call.size("window")?];
    let (scale, rows, keys) = (call.number("scale")?, call.constant("BM"), call.constant("BN"));
    let (width, reach) = (heads * hd, if window == 0 { usize::MAX } else { window });
    for s in 0..call.grid(1) {
        let (begin, end) = (call.at("offsets", s)?, call.at("offsets", s + 1)?);
        let length = end.checked_sub(begin).ok_or_else(|| format!("sequence {s} ends before it begins"))?;
        let qkv = call.floats("qkv", begin * 3 * width, length * 3 * width)?;
        let part = |row: usize, part: usize, head: usize| &qkv[row * 3 * width + part * width + head * hd..][..hd];
        for i in 0..length.min(call.grid(0) * rows) {
            // All rows of a tile have the blocks of its first and of its last row.
            let first = i / rows * rows;
            let from = (first + 1).saturating_sub(reach) / keys * keys;
            let to = length.min((first + rows - 1).saturating_add(reach));
            for head in 0..call.grid(2) {
                let (mut top, mut mass, mut acc) = (NEVER, 0f32, vec![0f32; hd]);
                for block in (from..to).step_by(keys) {
                    let seen: Vec<usize> =
                        (block..length.min(block + keys)).filter(|j| j.abs_diff(i) < reach).collect();
                    let score = |j: &usize| {
                        let (q, k) = (part(i, 0, head), part(*j, 1, head));
                        q.iter().zip(k).fold(0.0, |sum, (q, k)| sum + q * k) * scale
                    };
                    let z: Vec<f32> = seen.iter().map(score).collect();
                    let now = z.iter().fold(top, |m, z| m.max(*z));
                    let mut p: Vec<f32> = z.iter().map(|z| (z - now).exp()).collect();
                    let shrink = (top - now).exp();
                    mass = mass * shrink + p.iter().sum::<f32>();
                    call.rounded("qkv", &mut p)?;
                    acc.iter_mut().for_each(|v| *v *= shrink);
                    for (p, j) in p.iter().zip(&seen) {
                        acc.iter_mut().zip(part(*j, 2, head)).for_each(|(acc, v)| *acc += p * v);
                    }
                    top = now;
                }
                acc.iter_mut().for_each(|v| *v /= mass);
                call.put("out", ((begin + i) * heads + head) * hd, &acc)?;
            }
        }
    }
    Ok(())
}

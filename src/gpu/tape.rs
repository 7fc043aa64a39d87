//! Recorded launches (`kernels/tape.py`), replayed on a device: the results of Triton's interpreter are compared with
//! the device's.

use std::io::Read;

use base64::Engine;
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::Value;

use super::device::Device;
use super::launch::{Arg, check};
use super::manifest::{Kernel, Kind, kernel};
use super::{GpuError, Slice};

/// One launch: each argument is a number, or the bytes before it and, where the launch writes, after it.
#[derive(Deserialize)]
struct Recorded {
    name: String,
    grid: [u32; 3],
    args: Vec<Value>,
}

/// The difference between a replayed launch and the recorded one.
#[derive(Debug)]
pub struct Replayed {
    pub kernel: &'static Kernel,
    /// The largest relative difference of a buffer, by Euclidean norms; infinite where only one of the two has a
    /// number.
    pub off: f64,
    /// Whether it is within one rounding of the element type.
    pub agrees: bool,
}

fn wrong(what: impl std::fmt::Display) -> GpuError {
    GpuError::Launch(format!("tape: {what}"))
}

fn decoded(value: &Value) -> Result<Vec<u8>, GpuError> {
    let text = value.as_str().ok_or_else(|| wrong("no bytes"))?;
    base64::engine::general_purpose::STANDARD.decode(text).map_err(wrong)
}

/// Replays all launches of a compressed tape.
///
/// # Errors
/// A damaged tape, an unknown kernel, or errors of the device.
pub fn replay(device: &mut dyn Device, tape: &[u8]) -> Result<Vec<Replayed>, GpuError> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(tape).read_to_string(&mut text).map_err(wrong)?;
    text.lines().map(|line| one(device, &serde_json::from_str(line).map_err(wrong)?)).collect()
}

fn one(device: &mut dyn Device, recorded: &Recorded) -> Result<Replayed, GpuError> {
    let kernel = kernel(&recorded.name)?;
    let mut args = Vec::new();
    let mut buffers: Vec<(Kind, Slice, Vec<u8>)> = Vec::new();
    for (value, (_, kind)) in recorded.args.iter().zip(&kernel.params) {
        args.push(match kind {
            Kind::I32 | Kind::Eights => Arg::I32(value.as_i64().ok_or_else(|| wrong("no integer"))? as i32),
            Kind::F32 => Arg::F32(value.as_f64().ok_or_else(|| wrong("no number"))? as f32),
            _ => {
                let before = decoded(&value["before"])?;
                let slice = device.alloc(before.len())?;
                device.upload(slice, &before)?;
                let after = value.get("after").map_or(Ok(before), decoded)?;
                buffers.push((*kind, slice, after));
                Arg::Pointer(slice)
            }
        });
    }
    check(kernel, recorded.grid, &args)?;
    device.start(kernel, recorded.grid, &args)?;
    let downloads = buffers.iter().map(|(_, slice, _)| device.download(*slice)).collect::<Result<Vec<_>, _>>()?;
    for (_, slice, _) in &buffers {
        device.free(*slice)?;
    }
    device.wait()?;
    let mut replayed = Replayed { kernel, off: 0.0, agrees: true };
    for ((kind, _, after), download) in buffers.iter().zip(downloads) {
        let got = device.take(download)?;
        let off = difference(&values(*kind, &got), &values(*kind, after));
        replayed.off = replayed.off.max(off);
        // One rounding to 16 bits may fall on the other side.
        replayed.agrees &= off
            < match kind {
                Kind::ToBf16 => 8e-3,
                Kind::ToF16 => 1e-3,
                _ => 2e-5,
            };
    }
    Ok(replayed)
}

fn values(kind: Kind, bytes: &[u8]) -> Vec<f64> {
    let four = |b: &[u8]| [b[0], b[1], b[2], b[3]];
    match kind {
        Kind::ToF32 => bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(four(b)))).collect(),
        Kind::ToI32 => bytes.chunks_exact(4).map(|b| f64::from(i32::from_le_bytes(four(b)))).collect(),
        Kind::ToBf16 => bytes.chunks_exact(2).map(|b| f64::from(bf16::from_le_bytes([b[0], b[1]]))).collect(),
        Kind::ToF16 => bytes.chunks_exact(2).map(|b| f64::from(f16::from_le_bytes([b[0], b[1]]))).collect(),
        // Never written.
        _ => bytes.iter().map(|b| f64::from(*b)).collect(),
    }
}

fn difference(got: &[f64], want: &[f64]) -> f64 {
    let (mut off, mut size) = (0f64, 0f64);
    for (g, w) in got.iter().zip(want) {
        if g.is_nan() != w.is_nan() {
            return f64::INFINITY;
        }
        if !w.is_nan() && g != w {
            off += (g - w).powi(2);
        }
        size += if w.is_finite() { w * w } else { 0.0 };
    }
    (off / size.max(1e-30)).sqrt()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::sim::Sim;
    use super::*;

    /// The simulated device's kernels give what their originals give, and leave alone what those leave alone.
    #[test]
    fn the_simulated_device_agrees_with_the_kernels() {
        let forward = include_bytes!("../../tests/fixtures/kernels.tape.gz");
        let backward = include_bytes!("../../tests/fixtures/kernels_backward.tape.gz");
        let adapters = include_bytes!("../../tests/fixtures/kernels_adapters.tape.gz");
        let encoders = include_bytes!("../../tests/fixtures/kernels_encoders.tape.gz");
        let replayed: Vec<_> = [&forward[..], &backward[..], &adapters[..], &encoders[..]]
            .into_iter()
            .flat_map(|tape| replay(&mut Sim::new(64 << 20), tape).unwrap())
            .collect();
        let wrong: Vec<_> = replayed.iter().filter(|r| !r.agrees).map(|r| (&r.kernel.name, r.off)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let recorded: BTreeSet<_> = replayed.iter().map(|r| r.kernel.kernel.as_str()).collect();
        let all: BTreeSet<_> = super::super::manifest::kernels().map(|k| k.kernel.as_str()).collect();
        assert_eq!(recorded, all);
    }

    #[test]
    fn a_launch_that_differs_is_seen() {
        assert!(difference(&[1.0, 2.0], &[1.0, 2.0]) == 0.0);
        assert!(difference(&[1.0, f64::NAN], &[1.0, 2.0]).is_infinite());
        assert!(difference(&[1.0, 2.1], &[1.0, 2.0]) > 1e-2);
    }
}

//! Products and conversions of blocks, compared with plain arithmetic.

use super::*;
use crate::{noise, sizes};

/// Three blocks of rows of `d` dimensions, and what each format holds of them.
fn filled(format: KvFormat, kind: KvKind, d: usize, hd: usize) -> (KvBlocks, Vec<Vec<f32>>) {
    let mut blocks = KvBlocks::new(format, kind, 3, hd);
    let mut held = Vec::new();
    for slot in 0..LANES {
        let row = noise(d, 7 + slot as u64);
        // Written over, as a rejected draft is.
        blocks.put(1, slot, &noise(d, 900 + slot as u64));
        blocks.put(1, slot, &row);
        let mut kept = vec![0f32; hd];
        for (group, kept) in row.chunks(GROUP).zip(kept.chunks_mut(GROUP)) {
            let (scale, inverse) = scale_of(group);
            for (v, kept) in group.iter().zip(kept) {
                *kept = match format {
                    KvFormat::F32 => *v,
                    KvFormat::F16 => f16::from_f32(*v).to_f32(),
                    KvFormat::Q8_0 => (v * inverse).round_ties_even() * scale,
                };
                let error = (*kept - v).abs();
                assert!(error <= 1.0 / 254.0 * 1.01, "{format:?}: {v} is held as {kept}");
            }
        }
        held.push(kept);
    }
    (blocks, held)
}

#[test]
fn products_are_those_of_the_numbers_that_a_block_holds() {
    for format in KvFormat::ALL {
        for (_, d, hd) in sizes([8, 16, 48, 64, 80, 100, 128].map(|d: usize| (16, d, d.next_multiple_of(16)))) {
            let (keys, held) = filled(format, KvKind::Keys, d, hd);
            let (values, same) = filled(format, KvKind::Values, d, hd);
            assert_eq!(held, same);
            for rows in [1usize, 3, 4, 6, 9] {
                let mut q = noise(rows * hd, 31);
                q.chunks_mut(hd).for_each(|row| row[d..].fill(0.0));
                let (at, stride) = (16, 40);
                let mut scores = vec![7.0; rows * stride];
                keys.block(1).score(&q, hd, at, stride, &mut scores);
                let p: Vec<f32> = noise(rows * stride, 5).iter().map(|x| x.abs()).collect();
                let start = noise(rows * hd, 77);
                let mut out = start.clone();
                values.block(1).mix(&p, hd, at, stride, &mut out);
                let close = |got: f32, want: f64| (f64::from(got) - want).abs() < 1e-4 * (1.0 + want.abs());
                for r in 0..rows {
                    for j in 0..LANES {
                        let want: f64 = (0..hd).map(|i| f64::from(q[r * hd + i]) * f64::from(held[j][i])).sum();
                        assert!(close(scores[r * stride + at + j], want), "{format:?} {d}: score {r} {j}");
                    }
                    assert_eq!((scores[r * stride + at - 1], scores[r * stride + at + LANES]), (7.0, 7.0));
                    for c in 0..hd {
                        let mixed = (0..LANES).map(|j| f64::from(p[r * stride + at + j]) * f64::from(held[j][c]));
                        let want = f64::from(start[r * hd + c]) + mixed.sum::<f64>();
                        assert!(close(out[r * hd + c], want), "{format:?} {d}: value {r} {c}");
                    }
                    // The same bits as alone.
                    let mut alone = vec![0.0; stride];
                    keys.block(1).score(&q[r * hd..(r + 1) * hd], hd, at, stride, &mut alone);
                    assert_eq!(alone[at..at + LANES], scores[r * stride + at..][..LANES], "{format:?} {d}");
                    let mut alone = start[r * hd..(r + 1) * hd].to_vec();
                    values.block(1).mix(&p[r * stride..], hd, at, stride, &mut alone);
                    assert_eq!(alone, out[r * hd..(r + 1) * hd], "{format:?} {d}");
                }
            }
        }
    }
}

#[test]
fn f16_products_have_the_bits_of_f32_products_of_the_rounded_numbers() {
    let hd = 80;
    for kind in [KvKind::Keys, KvKind::Values] {
        let (half, held) = filled(KvFormat::F16, kind, hd, hd);
        let mut full = KvBlocks::new(KvFormat::F32, kind, 3, hd);
        held.iter().enumerate().for_each(|(slot, row)| full.put(1, slot, row));
        let (q, p) = (noise(5 * hd, 3), noise(5 * LANES, 4));
        let products = |blocks: &KvBlocks| match kind {
            KvKind::Keys => {
                let mut scores = vec![0.0; 5 * LANES];
                blocks.block(1).score(&q, hd, 0, LANES, &mut scores);
                scores
            }
            KvKind::Values => {
                let mut out = vec![0.0; 5 * hd];
                blocks.block(1).mix(&p, hd, 0, LANES, &mut out);
                out
            }
        };
        assert_eq!(products(&half), products(&full));
    }
}

#[test]
fn every_f16_is_widened_exactly() {
    for bits in (0..=u16::MAX).step_by(if cfg!(miri) { 251 } else { 1 }) {
        let want = f16::from_bits(bits).to_f32();
        let got = from_f16(bits);
        if want.is_finite() {
            assert_eq!(got.to_bits(), want.to_bits(), "{bits:#x}");
        } else if want.is_nan() {
            assert!(got.is_nan(), "{bits:#x}");
        }
    }
    assert_eq!(from_f16(to_f16(1e9)), 65504.0, "too large for the format");
    assert!(from_f16(to_f16(f32::NAN)).is_nan());
}

#[test]
fn numbers_that_are_not_finite_show_and_tiny_ones_vanish() {
    let mut keys = KvBlocks::new(KvFormat::Q8_0, KvKind::Keys, 1, 16);
    for (slot, first) in [(0, f32::NAN), (1, f32::INFINITY), (2, 1e-45), (3, 0.0)] {
        let mut row = vec![0.0; 16];
        row[0] = first;
        keys.put(0, slot, &row);
    }
    let mut scores = vec![0.0; LANES];
    keys.block(0).score(&[1.0; 16], 16, 0, LANES, &mut scores);
    assert!(scores[0].is_nan() && scores[1].is_nan());
    assert_eq!(scores[2..4], [0.0, 0.0]);
}

#[test]
fn blocks_are_copied_with_their_scales_and_counted_with_them() {
    let hd = 64;
    let mut sizes = Vec::new();
    for format in KvFormat::ALL {
        let (mut blocks, _) = filled(format, KvKind::Values, hd, hd);
        blocks.copy(1, 2, 1);
        let mixed = |b: usize| {
            let mut out = vec![0.0; hd];
            blocks.block(b).mix(&[0.5; LANES], hd, 0, LANES, &mut out);
            out
        };
        assert_eq!(mixed(1), mixed(2));
        assert_ne!(mixed(1), mixed(0));
        assert_eq!(blocks.bytes(), 3 * LANES * format.bytes(hd));
        assert_eq!(KvFormat::parse(format.as_str()), Some(format));
        sizes.push(format.bytes(hd));
    }
    assert_eq!(sizes, [256, 128, 72]);
    assert_eq!(KvFormat::parse("q4_0"), None);
}

/// The bits of products in every format, for the instruction set of this process.
fn all_products() -> Vec<u32> {
    let mut bits = Vec::new();
    for format in KvFormat::ALL {
        for hd in [16, 48, 64, 112] {
            let (q, p) = (noise(6 * hd, 3), noise(6 * LANES, 4));
            let (mut scores, mut out) = (vec![0.0; 6 * LANES], noise(6 * hd, 5));
            filled(format, KvKind::Keys, hd, hd).0.block(1).score(&q, hd, 0, LANES, &mut scores);
            filled(format, KvKind::Values, hd, hd).0.block(1).mix(&p, hd, 0, LANES, &mut out);
            bits.extend(scores.iter().chain(&out).map(|x| x.to_bits()));
        }
    }
    bits
}

/// Runs itself with `INSTRUCTD_MAX_ISA`, because a process chooses its instruction set once.
#[test]
#[cfg_attr(miri, ignore = "starts processes")]
fn every_instruction_set_gives_the_same_bits() {
    const RESULT: &str = "INSTRUCTD_TEST_PRODUCTS";
    let bits = all_products();
    if let Ok(path) = std::env::var(RESULT) {
        std::fs::write(path, format!("{:?} {bits:?}", crate::simd::isa())).unwrap();
        return;
    }
    let dir = std::env::temp_dir().join(format!("instructd-kv-blocks-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (name, isa) in [("portable", crate::simd::Isa::Portable), ("avx2", crate::simd::Isa::Avx2)] {
        let path = dir.join(name);
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kv_blocks::tests::every_instruction_set_gives_the_same_bits"])
            .env("INSTRUCTD_MAX_ISA", name)
            .env(RESULT, &path)
            .status()
            .unwrap();
        assert!(status.success(), "{name}");
        // Processors without AVX2 use plain code for both.
        let isa = isa.min(crate::simd::isa());
        assert!(std::fs::read_to_string(&path).unwrap() == format!("{isa:?} {bits:?}"), "{name}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

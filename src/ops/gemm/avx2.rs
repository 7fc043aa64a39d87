//! The tile of `gemm` in AVX2 instructions.

use std::arch::x86_64::*;

use super::NR;

#[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
#[target_feature(enable = "avx2,fma")]
pub unsafe fn tile(
    panel: *const f32,
    x: *const f32,
    stride: usize,
    mr: usize,
    depth: usize,
    out: *mut f32,
    width: usize,
    fresh: bool,
) {
    let mut r = 0;
    while r < mr {
        // SAFETY: the caller has checked bounds.
        unsafe {
            let (x, out) = (x.add(r * stride), out.add(r * width));
            match mr - r {
                1 => strips::<1, 4>(panel, x, stride, depth, out, width, fresh),
                2 => strips::<2, 2>(panel, x, stride, depth, out, width, fresh),
                3 => strips::<3, 1>(panel, x, stride, depth, out, width, fresh),
                _ => strips::<4, 1>(panel, x, stride, depth, out, width, fresh),
            }
        }
        r += 4;
    }
}

/// R rows, S strips of 16 columns at a time: up to 8 accumulators, which hide the latency of additions.
#[target_feature(enable = "avx2,fma")]
unsafe fn strips<const R: usize, const S: usize>(
    panel: *const f32,
    x: *const f32,
    stride: usize,
    depth: usize,
    out: *mut f32,
    width: usize,
    fresh: bool,
) {
    for first in (0..NR / 16).step_by(S) {
        // SAFETY: the caller has checked bounds.
        unsafe {
            let mut acc = [[[_mm256_setzero_ps(); 2]; S]; R];
            for r in 0..if fresh { 0 } else { R } {
                for s in 0..S {
                    let from = out.add(r * width + 16 * (first + s));
                    acc[r][s] = [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))];
                }
            }
            for kk in 0..depth {
                let mut xs = [_mm256_setzero_ps(); R];
                for r in 0..R {
                    xs[r] = _mm256_set1_ps(*x.add(r * stride + kk));
                }
                for s in 0..S {
                    let p = panel.add(kk * NR + 16 * (first + s));
                    let (w0, w1) = (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8)));
                    for r in 0..R {
                        acc[r][s][0] = _mm256_fmadd_ps(xs[r], w0, acc[r][s][0]);
                        acc[r][s][1] = _mm256_fmadd_ps(xs[r], w1, acc[r][s][1]);
                    }
                }
            }
            for r in 0..R {
                for s in 0..S {
                    let to = out.add(r * width + 16 * (first + s));
                    _mm256_storeu_ps(to, acc[r][s][0]);
                    _mm256_storeu_ps(to.add(8), acc[r][s][1]);
                }
            }
        }
    }
}

//! Selection of vector instructions at run time, and scalar functions that kernels share. Kernels are loops over
//! `[f32; LANES]`, compiled for each instruction set.

/// Lanes of the widest supported f32 vector. The sizes of key blocks and panels are multiples of it.
pub const LANES: usize = 16;

/// The instruction sets for which kernels are compiled. All give the same f32 bits: every element is one chain of fused
/// multiply-adds in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    Portable,
    Avx2,
    Avx512,
}

/// The instruction set that this process uses: the best one that the CPU has and `INSTRUCTD_MAX_ISA` allows.
pub fn isa() -> Isa {
    use std::sync::OnceLock;
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let allow = std::env::var("INSTRUCTD_MAX_ISA").unwrap_or_default();
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 && is_x86_feature_detected!("avx512f") && !matches!(allow.as_str(), "avx2" | "portable") {
                return Isa::Avx512;
            }
            if avx2 && allow != "portable" {
                return Isa::Avx2;
            }
        }
        Isa::Portable
    })
}

/// Compiles the body of a function for every instruction set, and dispatches at run time.
#[macro_export]
macro_rules! multiversion {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,avx2")]
                unsafe fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::simd::isa() {
                    // SAFETY: `isa` has checked the features.
                    $crate::simd::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: `isa` has checked the features.
                    $crate::simd::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Isa::Portable => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub use multiversion;

/// Prefetches the cache line of `x[at]`, for access patterns that the hardware does not predict.
#[inline(always)]
pub fn prefetch(x: &[f32], at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint and may have any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (x, at);
}

/// e^x by range reduction and a degree-6 polynomial (Cephes constants); relative error under 2e-7,
/// exact 0 far below the smallest normal, vectorisable (no table, no branch).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.3, 88.7);
    let n = (clamped * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_HI, clamped);
    let r = n.mul_add(-LN2_LO, r);
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    let scale = f32::from_bits((((n as i32) + 127) << 23) as u32);
    let e = y * scale;
    if x < -87.3 { 0.0 } else { e }
}

/// The largest value, or −∞ for an empty slice.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (head, tail) = x.as_chunks::<LANES>();
    for c in head {
        for l in 0..LANES {
            lanes[l] = greater(c[l], lanes[l]);
        }
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |m, v| greater(*v, m))
}

/// The sum in a fixed order: 16 strided chains, which are then folded.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (head, tail) = x.as_chunks::<LANES>();
    for c in head {
        for l in 0..LANES {
            lanes[l] += c[l];
        }
    }
    fold(lanes) + tail.iter().sum::<f32>()
}

/// The dot product in a fixed order: 16 strided chains, which are then folded.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (xs, xt) = x.as_chunks::<LANES>();
    let (ys, yt) = y.as_chunks::<LANES>();
    for (a, b) in xs.iter().zip(ys) {
        for l in 0..LANES {
            lanes[l] = a[l].mul_add(b[l], lanes[l]);
        }
    }
    let mut rest = 0f32;
    for (a, b) in xt.iter().zip(yt) {
        rest = a.mul_add(*b, rest);
    }
    fold(lanes) + rest
}

#[inline(always)]
fn fold(lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    let mut lanes = lanes;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_is_accurate() {
        for i in (-8600..8800).step_by(if cfg!(miri) { 97 } else { 1 }) {
            let x = i as f32 / 100.0;
            let want = f64::from(x).exp();
            let got = f64::from(super::exp(x));
            assert!((got - want).abs() <= 3e-7 * want, "{x}: {got} {want}");
        }
        assert_eq!(super::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(super::exp(0.0), 1.0);
    }
}

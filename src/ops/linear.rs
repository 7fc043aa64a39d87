//! y = x·Wᵀ with a gradient for both sides; weights frozen for serving are packed once.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::bf16::PackedBf16;
use super::bits;
use super::blocks::BlockType;
pub use super::gemm::WeightLayout;
use super::gemm::{PackedF32, matmul_packed, pack_into};
use super::gemm16::{HalfKind, PackedHalf};
use super::held::Held;
use super::low_rank::Beside;
use super::product::{Dims, product, product_transposed};
use super::q4::PackedQ4;
use super::q8::PackedQ8;
use super::served::{Serve, ServedMatrix};
use super::{buffer, f32s, fused, grad, read, storage, tensor, with_f32s};

/// A weight matrix in the form its use needs.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Changes under training, or lives on another device.
    Dense(Tensor, WeightLayout),
    /// Frozen on the CPU in f32: packed once. The natural layout is kept only where a backward needs it.
    Packed { packed: Arc<PackedF32>, dense: Option<(Tensor, WeightLayout)> },
    /// Frozen on the CPU in bfloat16, as are its inputs. `back` is W for the way back, where gradients pass.
    Half { packed: Arc<PackedBf16>, back: Option<Arc<PackedBf16>> },
    /// Frozen on the CPU in blocks of 32, multiplied in f32; gradients pass.
    Held(Held),
    /// In the form that serving asks for; no gradient passes it.
    Served(Arc<dyn ServedMatrix>),
}

/// How frozen weights are held for serving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// Exact: the path that RL rollouts take.
    #[default]
    F32,
    /// bfloat16, computed in f32: exact for models published in bfloat16, half the memory traffic.
    Bf16,
    /// Half precision, computed in f32.
    F16,
    /// Blocks of 32 with one f16 scale, as GGUF's Q8_0.
    Q8_0,
    /// Blocks of 32 with f16 scale and minimum, as GGUF's Q4_1.
    Q4_1,
    /// Each tensor as the model's file holds it, where a kernel for that exists.
    File,
}

impl WeightFormat {
    pub const ALL: [Self; 6] = [Self::F32, Self::Bf16, Self::F16, Self::Q8_0, Self::Q4_1, Self::File];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_1 => "q4_1",
            Self::File => "file",
        }
    }

    /// "f32, bf16, …" for messages.
    pub fn names() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }

    /// The format of this name, or `None`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| name.eq_ignore_ascii_case(format.as_str()))
    }
}

impl Weight {
    /// Packs what can be packed. `backward` keeps the natural layout, so that gradients can pass through.
    pub fn new(w: &Tensor, layout: WeightLayout, backward: bool) -> Result<Self> {
        if w.track_op() || !fused(w) {
            return Ok(Self::Dense(w.clone(), layout));
        }
        let (m, k) = out_in(w.dims2()?, layout);
        let packed = with_f32s(w, |w| Ok(Arc::new(PackedF32::pack(w, m, k, layout))))?;
        Ok(Self::Packed { packed, dense: backward.then(|| (w.clone(), layout)) })
    }

    /// As `new`, with what is packed rounded to bfloat16, and its inputs with it.
    pub fn half(w: &Tensor, layout: WeightLayout, backward: bool) -> Result<Self> {
        if w.track_op() || !fused(w) {
            return Ok(Self::Dense(w.clone(), layout));
        }
        let (m, k) = out_in(w.dims2()?, layout);
        with_f32s(w, |w| {
            let back = backward.then(|| Arc::new(PackedBf16::pack(w, k, m, layout.flipped())));
            Ok(Self::Half { packed: Arc::new(PackedBf16::pack(w, m, k, layout)), back })
        })
    }

    /// A frozen matrix in blocks of `kind`, for training under adapters. On other devices it stays as it is.
    pub fn held(w: &Tensor, layout: WeightLayout, kind: BlockType) -> Result<Self> {
        if w.track_op() || !fused(w) {
            return Ok(Self::Dense(w.clone(), layout));
        }
        let (m, k) = out_in(w.dims2()?, layout);
        let w = if layout == WeightLayout::InOut { w.t()?.contiguous()? } else { w.clone() };
        with_f32s(&w, |w| Ok(Self::Held(Held::quantize(w, m, k, kind)?)))
    }

    /// A frozen CPU weight in another form than f32; `File` is the caller's to resolve and means f32 here.
    pub fn served(w: &Tensor, layout: WeightLayout, format: WeightFormat) -> Result<Self> {
        let half = match format {
            WeightFormat::F32 | WeightFormat::File => return Self::new(w, layout, false),
            _ if !fused(w) => return Ok(Self::Dense(w.clone(), layout)),
            WeightFormat::Bf16 => Some(HalfKind::Bf16),
            WeightFormat::F16 => Some(HalfKind::F16),
            WeightFormat::Q8_0 | WeightFormat::Q4_1 => None,
        };
        let (m, k) = out_in(w.dims2()?, layout);
        if let Some(kind) = half {
            return with_f32s(w, |w| Ok(Self::Served(Arc::new(PackedHalf::pack(w, m, k, layout, kind)))));
        }
        let w = if layout == WeightLayout::InOut { w.t()?.contiguous()? } else { w.clone() };
        with_f32s(&w, |w| {
            Ok(Self::Served(match format {
                WeightFormat::Q4_1 => Arc::new(PackedQ4::quantize(w, m, k)),
                _ => Arc::new(PackedQ8::quantize(w, m, k)),
            }))
        })
    }

    /// A GGUF tensor [m, k] of quantised values, its rows of blocks end to end.
    ///
    /// # Panics
    /// For types that are no blocks of integers.
    pub fn blocks(bytes: &[u8], kind: BlockType, m: usize, k: usize) -> Self {
        Self::Served(match (kind, bits::from_gguf(bytes, kind, m, k)) {
            (_, Some(packed)) => packed.into(),
            (BlockType::Q8_0, None) => Arc::new(PackedQ8::from_gguf(bytes, m, k)),
            (_, None) => Arc::new(PackedQ4::from_gguf(bytes, kind, m, k)),
        })
    }

    pub fn out_features(&self) -> usize {
        match self {
            Self::Served(matrix) => matrix.shape().0,
            Self::Dense(w, layout) => out_in((w.dims()[0], w.dims()[1]), *layout).0,
            Self::Packed { packed, .. } => packed.m,
            Self::Half { packed, .. } => packed.m,
            Self::Held(held) => held.m,
        }
    }

    /// x [n, in] → [n, out].
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(w, layout) => linear(x, w, *layout),
            Self::Served(matrix) => x.contiguous()?.apply_op1_no_bwd(&Serve(matrix.clone())),
            Self::Packed { .. } | Self::Half { .. } | Self::Held(_) => x.contiguous()?.apply_op1(Frozen(self.clone())),
        }
    }

    /// Whether a gradient is wanted.
    pub fn trained(&self) -> bool {
        matches!(self, Self::Dense(w, _) if w.track_op())
    }

    /// Whether the slice functions below apply.
    pub fn on_host(&self) -> bool {
        match self {
            Self::Dense(w, _) => fused(w) && w.is_contiguous(),
            Self::Packed { .. } | Self::Half { .. } | Self::Held(_) | Self::Served(_) => true,
        }
    }

    fn dims(&self, n: usize) -> Dims {
        let (m, k) = match self {
            Self::Dense(w, layout) => out_in((w.dims()[0], w.dims()[1]), *layout),
            Self::Packed { packed, .. } => (packed.m, packed.k),
            Self::Half { packed, .. } => (packed.m, packed.k),
            Self::Held(held) => (held.m, held.k),
            Self::Served(matrix) => matrix.shape(),
        };
        Dims { n, m, k }
    }

    /// y [n, out] = x [n, in] · Wᵀ on plain slices, the same bits as `apply`; plus an adapter's term.
    pub fn forward(&self, x: &[f32], y: &mut [f32], n: usize, beside: Option<Beside<'_>>) -> Result<()> {
        match self {
            Self::Dense(w, layout) => product(x, &read(w)?, *layout, y, self.dims(n), false),
            Self::Packed { packed, .. } => packed.matmul(x, y, n),
            Self::Half { packed, .. } => {
                packed.matmul(x, y, n, false, beside);
                return Ok(());
            }
            Self::Held(held) => held.forward(x, y, n)?,
            Self::Served(matrix) => matrix.matmul(x, y, n),
        }
        if let Some(beside) = beside {
            beside.add(x, y, n);
        }
        Ok(())
    }

    /// gx [n, in] (+)= gy [n, out] · W, plus what passes an adapter.
    pub fn backward_input(
        &self,
        gy: &[f32],
        gx: &mut [f32],
        n: usize,
        add: bool,
        beside: Option<Beside<'_>>,
    ) -> Result<()> {
        let layout = match self {
            Self::Dense(_, layout) | Self::Packed { dense: Some((_, layout)), .. } => layout.flipped(),
            Self::Half { back: Some(back), .. } => {
                back.matmul(gy, gx, n, add, beside);
                return Ok(());
            }
            Self::Held(held) => {
                held.backward_input(gy, gx, n, add)?;
                if let Some(beside) = beside {
                    beside.add(gy, gx, n);
                }
                return Ok(());
            }
            _ => candle_core::bail!("linear: the weight was loaded for serving only, no gradient passes it"),
        };
        let Dims { m, k, .. } = self.dims(n);
        product(gy, &read(self.dense()?)?, layout, gx, Dims { n, m: k, k: m }, add);
        if let Some(beside) = beside {
            beside.add(gy, gx, n);
        }
        Ok(())
    }

    /// Adds to the gradient of a trained weight; outside `grad::collecting`, returns it.
    pub fn backward_weight(&self, x: &[f32], gy: &[f32], n: usize) -> Result<Option<Tensor>> {
        let Self::Dense(w, layout) = self else { return Ok(None) };
        let Dims { m, k, .. } = self.dims(n);
        grad::add(w, |g, add| match layout {
            WeightLayout::OutIn => product_transposed(gy, x, g, Dims { n, m, k }, add),
            WeightLayout::InOut => product_transposed(x, gy, g, Dims { n, m: k, k: m }, add),
        })
    }

    /// The natural tensor, if it was kept.
    pub fn natural(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(w, _) | Self::Packed { dense: Some((w, _)), .. } => Some(w),
            Self::Packed { dense: None, .. } | Self::Half { .. } | Self::Held(_) | Self::Served(_) => None,
        }
    }

    /// The natural tensor.
    ///
    /// # Errors
    /// When it was not kept.
    pub fn dense(&self) -> Result<&Tensor> {
        match self.natural() {
            Some(w) => Ok(w),
            None => candle_core::bail!("this weight was loaded for serving only"),
        }
    }
}

fn out_in((rows, cols): (usize, usize), layout: WeightLayout) -> (usize, usize) {
    match layout {
        WeightLayout::OutIn => (rows, cols),
        WeightLayout::InOut => (cols, rows),
    }
}

/// y [n, m] = x [n, k] · Wᵀ, differentiable in both; W is [m, k] or, for `InOut`, [k, m].
pub fn linear(x: &Tensor, w: &Tensor, layout: WeightLayout) -> Result<Tensor> {
    if fused(x) && fused(w) {
        return x.contiguous()?.apply_op2(&w.contiguous()?, Linear { layout });
    }
    match layout {
        WeightLayout::OutIn => x.matmul(&w.t()?),
        WeightLayout::InOut => x.matmul(w),
    }
}

thread_local! {
    /// Weights change at every optimizer step, so training packs anew each call; the buffer is reused.
    static PANELS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

struct Linear {
    layout: WeightLayout,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (f32s(s1, l1, "linear")?, f32s(s2, l2, "linear")?);
        let (n, k) = l1.shape().dims2()?;
        let (m, k2) = out_in(l2.shape().dims2()?, self.layout);
        if k != k2 {
            candle_core::bail!("linear: input has {k} columns, weight has {k2}");
        }
        let mut y = buffer(n * m);
        // Taken out so that a nested call on this thread (work stealing) finds a buffer of its own.
        let mut panels = PANELS.take();
        pack_into(&mut panels, w, m, k, self.layout);
        matmul_packed(&panels, x, &mut y, n, m, k);
        PANELS.set(panels);
        Ok(storage(y, (n, m)))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let weight = Weight::Dense(w.clone(), self.layout);
        let gy = gy.contiguous()?;
        let n = x.dim(0)?;
        let gx = if x.track_op() { Some(weight.grad_input(&gy)?) } else { None };
        let gw = if w.track_op() { weight.backward_weight(&read(x)?, &read(&gy)?, n)? } else { None };
        Ok((gx, gw))
    }
}

impl Weight {
    /// Gradient of the input as a tensor: gy [n, out] → [n, in].
    fn grad_input(&self, gy: &Tensor) -> Result<Tensor> {
        let n = gy.dim(0)?;
        let k = self.dims(n).k;
        let mut gx = buffer(n * k);
        self.backward_input(&read(&gy.contiguous()?)?, &mut gx, n, false, None)?;
        tensor(gx, (n, k))
    }
}

/// A frozen weight, packed.
struct Frozen(Weight);

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "linear-frozen"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32s(s, l, "linear-frozen")?;
        let (n, k) = l.shape().dims2()?;
        let Dims { m, k: width, .. } = self.0.dims(n);
        if k != width {
            candle_core::bail!("linear: input has {k} columns, weight has {width}");
        }
        let mut y = buffer(n * m);
        self.0.forward(x, &mut y, n, None)?;
        Ok(storage(y, (n, m)))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        self.0.grad_input(gy).map(Some)
    }
}

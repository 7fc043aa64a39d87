//! y = x·Wᵀ with gradients of x and W. Frozen weights are packed once.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::bf16::PackedBf16;
use super::bits;
use super::blocks::{BlockType, StoredMatrix};
use super::exact_blocks::ExactBlocks;
pub use super::gemm::WeightLayout;
use super::gemm::{PackedF32, matmul_packed, pack_into};
use super::gemm16::{HalfKind, PackedHalf};
use super::low_rank::LowRankUpdate;
use super::product::{Dims, product, product_transposed};
use super::q4::PackedQ4;
use super::q8::PackedQ8;
use super::quantized::QuantizedMatrix;
use super::served::{Serve, ServedMatrix};
use super::{buffer, f32s, fused, grad, read, storage, tensor, with_f32s};

/// A weight matrix, in the format that its use requires.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Trained, or on another device than the CPU.
    Dense(Tensor, WeightLayout),
    /// Frozen on the CPU in f32, and packed. The unpacked tensor is present only if a backward pass needs it.
    Packed { packed: Arc<PackedF32>, dense: Option<(Tensor, WeightLayout)> },
    /// Frozen on the CPU in bfloat16; its inputs are rounded to bfloat16, too. `back` is the transposed matrix, present
    /// if gradients are needed.
    Bf16 { packed: Arc<PackedBf16>, back: Option<Arc<PackedBf16>> },
    /// Frozen on the CPU in quantised blocks of 32, multiplied in f32, with a gradient of the input.
    Quantized(QuantizedMatrix),
    /// Frozen on the CPU in a format for serving, without gradients.
    Served(Arc<dyn ServedMatrix>),
    /// In the blocks of a GGUF file, to be copied to a device; the CPU does not multiply with it.
    Stored(Arc<StoredMatrix>),
}

/// The format of frozen weights for serving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// Exact, as in training and rollouts.
    #[default]
    F32,
    /// bfloat16, computed in f32: half the memory traffic, and exact for models published in bfloat16.
    Bf16,
    /// Half precision, computed in f32.
    F16,
    /// Blocks of 32 with one f16 scale, as GGUF's Q8_0.
    Q8_0,
    /// Blocks of 32 with f16 scale and minimum, as GGUF's Q4_1.
    Q4_1,
    /// Each tensor in the format of the model's file, multiplied with inputs that are rounded to 8 bits where its values
    /// are quantised.
    File,
    /// Each tensor in the format of the model's file, computed in f32: the results of `F32`.
    Exact,
}

impl WeightFormat {
    pub const ALL: [Self; 7] = [Self::Exact, Self::File, Self::F32, Self::Bf16, Self::F16, Self::Q8_0, Self::Q4_1];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_1 => "q4_1",
            Self::File => "file",
            Self::Exact => "exact",
        }
    }

    /// Whether tensors keep the types of the model's files.
    pub fn follows_file(self) -> bool {
        matches!(self, Self::File | Self::Exact)
    }

    /// All names for messages: "exact, file, f32, …".
    pub fn names() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }

    /// The format of this name, in upper or lower case.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| name.eq_ignore_ascii_case(format.as_str()))
    }
}

/// The message of a product with a stored matrix.
const FOR_A_DEVICE: &str = "linear: the weight was read for a device";

impl Weight {
    /// Packs a frozen f32 matrix on the CPU; any other stays dense. With `backward` the unpacked tensor is kept for the
    /// gradient of the input.
    pub fn new(w: &Tensor, layout: WeightLayout, backward: bool) -> Result<Self> {
        if w.track_op() || !fused(w) {
            return Ok(Self::Dense(w.clone(), layout));
        }
        let (m, k) = out_in(w.dims2()?, layout);
        let packed = with_f32s(w, |w| Ok(Arc::new(PackedF32::pack(w, m, k, layout))))?;
        Ok(Self::Packed { packed, dense: backward.then(|| (w.clone(), layout)) })
    }

    /// Rounds a frozen f32 matrix on the CPU to bfloat16 and packs it; any other stays dense. With `backward` the
    /// transposed matrix is packed, too, for the gradient of the input.
    pub fn bf16(w: &Tensor, layout: WeightLayout, backward: bool) -> Result<Self> {
        if w.track_op() || !fused(w) {
            return Ok(Self::Dense(w.clone(), layout));
        }
        let (m, k) = out_in(w.dims2()?, layout);
        with_f32s(w, |w| {
            let back = backward.then(|| Arc::new(PackedBf16::pack(w, k, m, layout.flipped())));
            Ok(Self::Bf16 { packed: Arc::new(PackedBf16::pack(w, m, k, layout)), back })
        })
    }

    /// Quantises a frozen f32 matrix on the CPU to blocks of `kind`, for training adapters; any other stays dense.
    pub fn quantized(w: &Tensor, layout: WeightLayout, kind: BlockType) -> Result<Self> {
        if w.track_op() || !fused(w) {
            return Ok(Self::Dense(w.clone(), layout));
        }
        let (m, k) = out_in(w.dims2()?, layout);
        let w = if layout == WeightLayout::InOut { w.t()?.contiguous()? } else { w.clone() };
        with_f32s(&w, |w| Ok(Self::Quantized(QuantizedMatrix::quantize(w, m, k, kind)?)))
    }

    /// Converts a frozen matrix to a format for serving; on other devices than the CPU it stays dense. The caller
    /// resolves `File` and `Exact`, which mean f32 here.
    pub fn served(w: &Tensor, layout: WeightLayout, format: WeightFormat) -> Result<Self> {
        let half = match format {
            WeightFormat::F32 | WeightFormat::File | WeightFormat::Exact => return Self::new(w, layout, false),
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

    /// A quantised GGUF tensor `[m, k]`, multiplied in f32; `bytes` are its rows of blocks.
    ///
    /// # Panics
    /// If `kind` is not a quantised type.
    pub fn exact_blocks(bytes: &[u8], kind: BlockType, m: usize, k: usize) -> Self {
        Self::Served(Arc::new(ExactBlocks::from_gguf(bytes, kind, m, k)))
    }

    /// A quantised GGUF tensor `[m, k]`, multiplied with inputs in 8 bits; `bytes` are its rows of blocks.
    ///
    /// # Panics
    /// If `kind` is not a quantised type.
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
            Self::Stored(matrix) => matrix.m,
            Self::Dense(w, layout) => out_in((w.dims()[0], w.dims()[1]), *layout).0,
            Self::Packed { packed, .. } => packed.m,
            Self::Bf16 { packed, .. } => packed.m,
            Self::Quantized(matrix) => matrix.m,
        }
    }

    /// x · Wᵀ: x `[n, in]` → `[n, out]`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(w, layout) => linear(x, w, *layout),
            Self::Served(matrix) => x.contiguous()?.apply_op1_no_bwd(&Serve(matrix.clone())),
            Self::Packed { .. } | Self::Bf16 { .. } | Self::Quantized(_) => {
                x.contiguous()?.apply_op1(Frozen(self.clone()))
            }
            Self::Stored(_) => candle_core::bail!("{FOR_A_DEVICE}"),
        }
    }

    /// Whether the weight is trained.
    pub fn trained(&self) -> bool {
        matches!(self, Self::Dense(w, _) if w.track_op())
    }

    /// Whether `forward` and the other functions on slices apply.
    pub fn on_host(&self) -> bool {
        match self {
            Self::Dense(w, _) => fused(w) && w.is_contiguous(),
            Self::Packed { .. } | Self::Bf16 { .. } | Self::Quantized(_) | Self::Served(_) => true,
            Self::Stored(_) => false,
        }
    }

    fn dims(&self, n: usize) -> Dims {
        let (m, k) = match self {
            Self::Dense(w, layout) => out_in((w.dims()[0], w.dims()[1]), *layout),
            Self::Packed { packed, .. } => (packed.m, packed.k),
            Self::Bf16 { packed, .. } => (packed.m, packed.k),
            Self::Quantized(matrix) => (matrix.m, matrix.k),
            Self::Served(matrix) => matrix.shape(),
            Self::Stored(matrix) => (matrix.m, matrix.k),
        };
        Dims { n, m, k }
    }

    /// y `[n, out]` = x `[n, in]` · Wᵀ on slices, with the bits of `apply`, plus a low-rank term.
    pub fn forward(&self, x: &[f32], y: &mut [f32], n: usize, low_rank: Option<LowRankUpdate<'_>>) -> Result<()> {
        match self {
            Self::Dense(w, layout) => product(x, &read(w)?, *layout, y, self.dims(n), false),
            Self::Packed { packed, .. } => packed.matmul(x, y, n),
            Self::Bf16 { packed, .. } => {
                packed.matmul(x, y, n, false, low_rank);
                return Ok(());
            }
            Self::Quantized(matrix) => matrix.forward(x, y, n)?,
            Self::Served(matrix) => matrix.matmul(x, y, n),
            Self::Stored(_) => candle_core::bail!("{FOR_A_DEVICE}"),
        }
        if let Some(low_rank) = low_rank {
            low_rank.add(x, y, n);
        }
        Ok(())
    }

    /// gx `[n, in]` (+)= gy `[n, out]` · W, plus a low-rank term.
    pub fn backward_input(
        &self,
        gy: &[f32],
        gx: &mut [f32],
        n: usize,
        add: bool,
        low_rank: Option<LowRankUpdate<'_>>,
    ) -> Result<()> {
        let layout = match self {
            Self::Dense(_, layout) | Self::Packed { dense: Some((_, layout)), .. } => layout.flipped(),
            Self::Bf16 { back: Some(back), .. } => {
                back.matmul(gy, gx, n, add, low_rank);
                return Ok(());
            }
            Self::Quantized(matrix) => {
                matrix.backward_input(gy, gx, n, add)?;
                if let Some(low_rank) = low_rank {
                    low_rank.add(gy, gx, n);
                }
                return Ok(());
            }
            _ => candle_core::bail!("linear: the weight was loaded for serving and has no gradients"),
        };
        let Dims { m, k, .. } = self.dims(n);
        product(gy, &read(self.dense()?)?, layout, gx, Dims { n, m: k, k: m }, add);
        if let Some(low_rank) = low_rank {
            low_rank.add(gy, gx, n);
        }
        Ok(())
    }

    /// Adds gyᵀ·x to the gradient of a trained weight; outside `grad::accumulate`, returns it. `None` for a frozen
    /// weight.
    pub fn backward_weight(&self, x: &[f32], gy: &[f32], n: usize) -> Result<Option<Tensor>> {
        let Self::Dense(w, layout) = self else { return Ok(None) };
        let Dims { m, k, .. } = self.dims(n);
        grad::add(w, |g, add| match layout {
            WeightLayout::OutIn => product_transposed(gy, x, g, Dims { n, m, k }, add),
            WeightLayout::InOut => product_transposed(x, gy, g, Dims { n, m: k, k: m }, add),
        })
    }

    /// The unpacked tensor, if it is present.
    pub fn unpacked(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(w, _) | Self::Packed { dense: Some((w, _)), .. } => Some(w),
            Self::Packed { dense: None, .. }
            | Self::Bf16 { .. }
            | Self::Quantized(_)
            | Self::Served(_)
            | Self::Stored(_) => None,
        }
    }

    /// The unpacked tensor.
    ///
    /// # Errors
    /// If it is not present.
    pub fn dense(&self) -> Result<&Tensor> {
        match self.unpacked() {
            Some(w) => Ok(w),
            None => candle_core::bail!("this weight was loaded for serving and has no unpacked tensor"),
        }
    }
}

fn out_in((rows, cols): (usize, usize), layout: WeightLayout) -> (usize, usize) {
    match layout {
        WeightLayout::OutIn => (rows, cols),
        WeightLayout::InOut => (cols, rows),
    }
}

/// y `[n, m]` = x `[n, k]` · Wᵀ, differentiable in x and W. W is `[m, k]`, or `[k, m]` for `InOut`.
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
    /// Trained weights change at every optimizer step and are packed at every call; the buffer is reused.
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
    /// The gradient of the input: gy `[n, out]` → `[n, in]`.
    fn grad_input(&self, gy: &Tensor) -> Result<Tensor> {
        let n = gy.dim(0)?;
        let k = self.dims(n).k;
        let mut gx = buffer(n * k);
        self.backward_input(&read(&gy.contiguous()?)?, &mut gx, n, false, None)?;
        tensor(gx, (n, k))
    }
}

/// Applies a packed frozen weight.
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

//! The weights of an encoder on a device.

use candle_core::Tensor;

use crate::gpu::device::Device;
use crate::gpu::{GpuError, Slice};
use crate::model::Opened;
use crate::model::decoder::device::packing::{Factors, Packing};
use crate::model::decoder::device::weights::{Block, Loader, Matrix, NormWeights, candle};
use crate::model::decoder::device::{DeviceFormat, Element};
use crate::model::decoder::embedding_table::EmbeddingTable;
use crate::model::encoder::host::dense;
use crate::model::families::{EncoderHeads, Norms, Pooler};
use crate::model::layers::block::layer;
use crate::model::layers::{Builder, Parameters, rope_tables};
use crate::model::{Activation, ModelConfig, Purpose};

/// A matrix on the device whose bias is added to its outputs on the host, in f32.
pub(super) struct Output {
    pub matrix: Matrix,
    /// Empty where there is none.
    pub bias: Vec<f32>,
}

/// The masked-LM head without its output matrix.
pub(super) struct Transform {
    pub dense: Matrix,
    pub activation: Activation,
    pub norm: NormWeights,
}

pub(super) struct Weights {
    pub words: Slice,
    pub positions: Option<Slice>,
    /// The table of segments, f32.
    pub types: Option<Slice>,
    pub embed_norm: NormWeights,
    pub blocks: Vec<Block>,
    pub final_norm: Option<NormWeights>,
    /// The layer before a classifier, without its activation.
    pub pooler: Option<Output>,
    pub transform: Option<Transform>,
    pub output: Option<Output>,
    /// At least as many zeros as the widest norm or matrix has outputs.
    pub zeros: Slice,
}

fn values(t: &Tensor) -> Result<Vec<f32>, GpuError> {
    t.detach().contiguous().and_then(|t| t.flatten_all()?.to_vec1()).map_err(candle)
}

/// Copies the weights of an encoder from its files to `device`, one block at a time. `logits`: whether the output matrix
/// of the masked-LM head is copied.
///
/// # Errors
/// `OutOfMemory`, or `Launch` when the model is a decoder, its parts are in places for which there are no launches, or a
/// file cannot be read.
pub(super) fn load(
    opened: &Opened,
    logits: bool,
    device: &mut dyn Device,
    element: Element,
) -> Result<Weights, GpuError> {
    let (c, parameters) = (&opened.described.config, Parameters::Files(&opened.files));
    let (family, d) = (c.family(), c.hidden_size);
    let refused = |why: &str| GpuError::Launch(format!("{}: {why}", family.class));
    let heads = family.encoder_heads().ok_or_else(|| refused("a decoder, not an encoder"))?;
    let Some(embed_norm) = family.embed_norm else { return Err(refused("no norm of the embeddings")) };
    let b = Builder { config: c, parameters, lora: None, purpose: Purpose::Score };
    let rows = Builder { purpose: Purpose::Serve, ..b };
    let mut loader = Loader::new(device, DeviceFormat { element, packing: Packing::Dense, file: false });
    let zeros = loader.zeros(c)?;
    let words_name = format!("{}.weight", family.words);
    let table = EmbeddingTable::new(&rows, &words_name, (c.vocab_size, d)).map_err(candle)?;
    let words = loader.table(&table, (c.vocab_size, d))?;
    drop(table);
    let small = |name: &str, count: usize| b.tensor(&format!("{name}.weight"), &[count, d]).map_err(candle);
    let positions = match family.positions {
        Some(name) => Some(loader.tensor(&small(name, c.max_positions + c.switches.position_offset)?)?),
        None => None,
    };
    let types = match family.segments {
        Some(name) => {
            let types = values(&small(name, c.type_vocab_size)?)?;
            let to = loader.device.alloc(types.len() * 4)?;
            loader.device.upload(to, bytemuck::cast_slice(&types))?;
            Some(to)
        }
        None => None,
    };
    let embed_norm = loader.norm(&b.norm(embed_norm).map_err(candle)?, zeros)?;
    let ropes = rope_tables::tables(c);
    let mut blocks = Vec::with_capacity(c.n_layers);
    for i in 0..c.n_layers {
        let block = loader.block(&layer(&b, i, &ropes).map_err(candle)?, zeros)?;
        loader.device.wait()?;
        check(c, &block).map_err(refused)?;
        blocks.push(block);
    }
    let final_norm = match family.final_norm {
        Some(name) => Some(loader.norm(&b.norm(name).map_err(candle)?, zeros)?),
        None => None,
    };
    let pooler = match heads.pooler {
        Pooler::Tanh(name) | Pooler::Relu(name) => match dense(&b, name).map_err(candle)? {
            Some(layer) => {
                let bias = layer.plain().and_then(|(_, bias)| bias).map_or(Ok(Vec::new()), values)?;
                Some(Output { matrix: Matrix { bias: None, ..loader.joint(&[&layer])? }, bias })
            }
            None => None,
        },
        Pooler::MaskedLmHead => None,
    };
    let transform = match dense(&b, heads.dense).map_err(candle)? {
        Some(layer) => Some(Transform {
            dense: loader.joint(&[&layer])?,
            activation: heads.activation.unwrap_or(c.activation),
            norm: loader.norm(&b.norm(heads.norm).map_err(candle)?, zeros)?,
        }),
        None => None,
    };
    let output = if logits { output(&mut loader, &rows, heads, words)? } else { None };
    loader.device.wait()?;
    Ok(Weights { words, positions, types, embed_norm, blocks, final_norm, pooler, transform, output, zeros })
}

/// Whether there are launches for a block: norms before its parts or of their sums, and q, k and v of equally many heads
/// one after the other.
fn check(c: &ModelConfig, block: &Block) -> Result<(), &'static str> {
    let before = block.attn_post.is_none() && block.mlp_post.is_none() && block.mlp_norm.is_some();
    let of_sum = block.attn_norm.is_none() && block.mlp_norm.is_none();
    let of_sum = of_sum && block.attn_post.is_some() && block.mlp_post.is_some();
    if !(before || of_sum && matches!(c.family().block.norms, Norms::OfSum(_))) {
        return Err("norms in places that devices do not compute");
    }
    if block.by_head || block.qk_norm.is_some() || block.qkv.out != 3 * c.n_heads * c.head_dim {
        return Err("heads that devices do not compute");
    }
    Ok(())
}

/// The output matrix of the masked-LM head, if the files have its bias; the word vectors are on the device at `words`.
fn output(
    loader: &mut Loader<'_>,
    b: &Builder<'_>,
    heads: &EncoderHeads,
    words: Slice,
) -> Result<Option<Output>, GpuError> {
    if !b.parameters.has(heads.bias) {
        return Ok(None);
    }
    let shape @ (out, input) = (b.config.vocab_size, b.config.hidden_size);
    let bias = values(&b.tensor(heads.bias, &[out]).map_err(candle)?)?;
    let own = format!("{}.weight", heads.decoder);
    let matrix = match b.config.tie_embeddings || !b.parameters.has(&own) {
        true => Matrix { weight: words, factors: Factors::None, bias: None, out, input },
        false => loader.matrix(&EmbeddingTable::new(b, &own, shape).map_err(candle)?, shape)?,
    };
    Ok(Some(Output { matrix, bias }))
}

//! Log-probs of targets from the hidden states of chosen rows, and their gradient, over chunks of rows.

use std::ops::Range;

use super::forward::Forward;
use super::rows::Rows;
use super::{DeviceTrainer, Element, Pass};
use crate::gpu::device::Device;
use crate::gpu::launch::backward::{LogitsBack, MatmulNn, MatmulTn};
use crate::gpu::launch::{GatherRows, Logprobs, Matmul, ShapeLogits};
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::attached::{Keep, TargetLogprobs};
use crate::model::decoder::device::kernels::{self, numbers, up};

/// The values of the output matrix's part that a backward pass needs.
pub(super) struct SavedHead {
    /// The last block's output [n, d], f32.
    pub last: Slice,
    /// Its requested rows, f32, and their norm.
    pub picked: Slice,
    pub hidden: Slice,
    pub scores: Option<SavedScores>,
}

/// What the log-probs saved.
pub(super) struct SavedScores {
    /// Log-sum-exp of the scaled logits of each row.
    lse: Slice,
    /// The logits [rows, vocab], where all rows are one chunk.
    logits: Option<Slice>,
    /// Factor of the logits, after their soft cap if they have one.
    inverse: f32,
}

impl DeviceTrainer {
    /// The norm of the requested rows of the last block's output.
    fn saved_head(&mut self, forward: &Forward) -> Result<SavedHead, GpuError> {
        let (m, d) = (forward.rows.picked_count, self.config.hidden_size);
        let picked = self.buffers.take(m * d * 4)?;
        let launched = GatherRows { x: forward.last, rows: forward.rows.picked, y: picked, d: d as i32 };
        self.launch("gather_rows.f32", [m, up(d, 1024), 1], &launched)?;
        let hidden = self.buffers.take(self.bytes(m * d))?;
        let norm = self.plan.final_norm;
        let name = format!("{}.{}", kernels::norm(norm.layer), self.t());
        self.launch_norm(&name, &norm, [picked, hidden], m)?;
        Ok(SavedHead { last: forward.last, picked, hidden, scores: None })
    }

    /// Saves a pass.
    fn save(&mut self, forward: Forward, head: SavedHead) {
        let Forward { rows, keep, blocks, .. } = forward;
        self.pass = Some(Pass { rows, keep, blocks, head });
    }

    /// The requested hidden states; saves the pass.
    pub(super) fn head_hidden(&mut self, forward: Forward) -> Result<Vec<f32>, GpuError> {
        let count = forward.rows.picked_count * self.config.hidden_size;
        let head = self.saved_head(&forward)?;
        let hidden = head.hidden;
        self.save(forward, head);
        self.downloaded(hidden, count)
    }

    /// Computes log-probs; saves the pass.
    pub(super) fn head_logprobs(&mut self, forward: Forward, inverse: f32) -> Result<TargetLogprobs, GpuError> {
        let mut head = self.saved_head(&forward)?;
        let scores = self.score(&forward.rows, &mut head, inverse, forward.keep)?;
        self.save(forward, head);
        Ok(scores)
    }

    /// Log-probs of the targets from the hidden states, with what their backward pass needs in `head`.
    pub(super) fn score(
        &mut self,
        rows: &Rows,
        head: &mut SavedHead,
        inverse: f32,
        keep: Keep,
    ) -> Result<TargetLogprobs, GpuError> {
        let m = rows.picked_count;
        if let Some(SavedScores { lse, logits, .. }) = head.scores.take() {
            std::iter::once(lse).chain(logits).try_for_each(|slice| self.buffers.give(slice))?;
        }
        let [logprob, lse, entropy] = [self.buffers.take(m * 4)?, self.buffers.take(m * 4)?, self.buffers.take(m * 4)?];
        let mut logits = None;
        for chunk in self.chunks(m) {
            let whole = keep == Keep::All && chunk.len() == m;
            let z = self.logits(head.hidden, &chunk)?;
            let part = |slice: Slice| slice.part(chunk.start * 4, chunk.len() * 4);
            let launched = Logprobs {
                z,
                targets: part(rows.targets),
                logprob: part(logprob),
                lse: part(lse),
                entropy: part(entropy),
                vocab: self.config.vocab_size as i32,
                inverse,
            };
            self.launch("logprobs", [chunk.len(), 1, 1], &launched)?;
            if whole {
                logits = Some(z);
            } else {
                self.buffers.give(z)?;
            }
        }
        let downloads = [self.buffers.device.download(logprob)?, self.buffers.device.download(entropy)?];
        self.buffers.give(logprob)?;
        self.buffers.give(entropy)?;
        head.scores = Some(SavedScores { lse, logits, inverse });
        self.buffers.device.wait()?;
        let mut taken = |i: usize| Ok::<_, GpuError>(numbers(&self.buffers.device.take(downloads[i])?));
        Ok(TargetLogprobs { logprobs: taken(0)?, entropies: taken(1)? })
    }

    /// Ranges of rows whose logits are in memory together. Each begins at a multiple of 16, for alignment.
    fn chunks(&self, m: usize) -> Vec<Range<usize>> {
        let rows = (self.options.logit_bytes / (self.config.vocab_size * 4) / 16 * 16).max(16);
        (0..m).step_by(rows).map(|from| from..m.min(from + rows)).collect()
    }

    /// Logits of some rows, f32, without the factor; with a soft cap, divided by the model's divisor and capped.
    fn logits(&mut self, hidden: Slice, chunk: &Range<usize>) -> Result<Slice, GpuError> {
        let (d, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let z = self.buffers.take(chunk.len() * vocab * 4)?;
        let launched = Matmul {
            x: hidden.part(self.bytes(chunk.start * d), self.bytes(chunk.len() * d)),
            w: self.weight(self.plan.head).value,
            bias: self.zeros,
            y: z,
            n: chunk.len() as i32,
            m: vocab as i32,
            k: d as i32,
        };
        self.launch_matmul(if self.options.element == Element::F32 { "" } else { "_out" }, &launched)?;
        if let Some(cap) = self.config.switches.logit_softcap {
            let count = chunk.len() * vocab;
            let launched = ShapeLogits { z, count: count as i32, inverse: 1.0 / self.divisor(), cap: cap as f32 };
            self.launch("cap_logits", [up(count, 1024), 1, 1], &launched)?;
        }
        Ok(z)
    }

    /// The gradient of the hidden states [rows, d] from that of the log-probs; adds to the output matrix's. What the
    /// log-probs have saved is freed.
    pub(super) fn head_back(&mut self, pass: &mut Pass, grad: &[f32]) -> Result<Slice, GpuError> {
        let (m, d, vocab) = (pass.rows.picked_count, self.config.hidden_size, self.config.vocab_size);
        let Some(scores) = pass.head.scores.take().filter(|_| grad.len() == m) else {
            let n = grad.len();
            return Err(GpuError::Launch(format!("a gradient of {n} log-probs for a pass over {m} rows")));
        };
        let g = self.buffers.numbers(grad, Element::F32)?;
        let gh = self.buffers.take(self.bytes(m * d))?;
        let (head, cap) = (self.weight(self.plan.head), self.config.switches.logit_softcap);
        let variant = if cap.is_some() { "_cap" } else { "" };
        for chunk in self.chunks(m) {
            let rows = chunk.len();
            let z = match scores.logits {
                Some(z) => z,
                None => self.logits(pass.head.hidden, &chunk)?,
            };
            let gz = self.buffers.take(self.bytes(rows * vocab))?;
            let part = |slice: Slice| slice.part(chunk.start * 4, rows * 4);
            let launched = LogitsBack {
                z,
                targets: part(pass.rows.targets),
                lse: part(scores.lse),
                g: part(g),
                gz,
                vocab: vocab as i32,
                inverse: scores.inverse,
                before: 1.0 / self.divisor(),
                cap: cap.unwrap_or(0.0) as f32,
            };
            self.launch(&format!("logits_back{variant}.{}", self.t()), [rows, up(vocab, 1024), 1], &launched)?;
            self.buffers.give(z)?;
            let part = |slice: Slice| slice.part(self.bytes(chunk.start * d), self.bytes(rows * d));
            let (x, gx) = (part(pass.head.hidden), part(gh));
            let (n, m, k, stride, scale) = (rows as i32, vocab as i32, d as i32, vocab as i32, 1.0);
            let launched = MatmulNn { gy: gz, w: head.value, gx, n, m, k, stride, scale };
            self.launch_product_back("matmul_nn", &launched, [rows, d], [vocab, vocab])?;
            if let Some(gw) = head.grad {
                let launched = MatmulTn { gy: gz, x, gw, n, m, k, stride, scale };
                self.launch_product_back("matmul_tn", &launched, [vocab, d], [vocab, vocab])?;
            }
            self.buffers.give(gz)?;
        }
        self.buffers.give(g)?;
        self.buffers.give(scores.lse)?;
        Ok(gh)
    }
}

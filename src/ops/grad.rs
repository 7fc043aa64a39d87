//! Gradients of variables summed in place. candle's backward gives every variable a zeroed gradient, a second
//! one per use and a third for their sum; inside `collecting`, fused operations add to one buffer instead.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, TensorId};

use super::{pool, tensor};

/// Sums so far, by the variable's tensor id.
pub type Sums = HashMap<TensorId, Tensor>;

/// Takes gradients as soon as they are complete.
pub type Taker = Box<dyn FnMut(TensorId, Tensor) -> Result<()>>;

thread_local! {
    static TAKER: RefCell<Option<Taker>> = const { RefCell::new(None) };
    static COLLECTED: RefCell<Option<Sums>> = const { RefCell::new(None) };
}

/// Runs a backward pass on this thread; gradients of fused operations' weights are added to `sums`.
/// With a `taker`, sums that no later operation of the pass adds to are given away on the way.
pub fn collecting<R>(sums: Sums, taker: Option<Taker>, backward: impl FnOnce() -> R) -> (R, Sums) {
    /// Empties the collector even when the pass panics: a later pass must not find old sums.
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            COLLECTED.set(None);
            TAKER.set(None);
        }
    }
    let clear = Clear;
    COLLECTED.set(Some(sums));
    TAKER.set(taker);
    let result = backward();
    let sums = COLLECTED.take().unwrap_or_default();
    drop(clear);
    (result, sums)
}

pub fn active() -> bool {
    COLLECTED.with_borrow(Option::is_some)
}

/// Says that the gradients of these variables are complete.
pub fn complete<'t>(variables: impl Iterator<Item = &'t Tensor>) -> Result<()> {
    let Some(mut taker) = TAKER.take() else { return Ok(()) };
    for variable in variables.filter(|t| t.track_op()) {
        let sum = COLLECTED.with_borrow_mut(|sums| sums.as_mut().and_then(|sums| sums.remove(&variable.id())));
        if let Some(sum) = sum {
            taker(variable.id(), sum)?;
        }
    }
    TAKER.set(Some(taker));
    Ok(())
}

/// Lets `write` add to the gradient of `variable`; its flag is false for the first writer, who overwrites what
/// the buffer holds. Returns a gradient for candle's own store outside `collecting`.
pub fn add(variable: &Tensor, mut write: impl FnMut(&mut [f32], bool) + Send) -> Result<Option<Tensor>> {
    // What a tensor that was computed gets must flow on through the graph.
    let before = COLLECTED.with_borrow(|sums| {
        sums.as_ref().filter(|_| variable.is_variable()).map(|sums| sums.get(&variable.id()).cloned())
    });
    if let Some(Some(sum)) = &before {
        sum.inplace_op1(&InPlace(Mutex::new(|g: &mut [f32]| write(g, true))))?;
        return Ok(None);
    }
    let mut fresh = pool::take(variable.elem_count());
    write(&mut fresh, false);
    let fresh = tensor(fresh, variable.shape())?;
    if before.is_none() {
        return Ok(Some(fresh));
    }
    COLLECTED.with_borrow_mut(|sums| sums.as_mut().map(|sums| sums.insert(variable.id(), fresh)));
    Ok(None)
}

struct InPlace<F>(Mutex<F>);

impl<F: FnMut(&mut [f32]) + Send> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "add-gradient"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(data) = storage else { candle_core::bail!("gradients are f32") };
        let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("gradients are contiguous") };
        let mut write = self.0.lock().unwrap_or_else(|e| e.into_inner());
        write(&mut data[start..end]);
        Ok(())
    }
}

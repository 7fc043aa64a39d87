//! Gradients of variables that are summed in place. candle's backward pass allocates a zeroed gradient for every
//! variable, one for each use, and one for their sum; inside `accumulate`, fused operations add to one buffer instead.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, TensorId};

use super::{pool, tensor};

/// Sums of gradients by the variable's tensor id.
pub type GradientSums = HashMap<TensorId, Tensor>;

/// Receives gradients as soon as they are complete.
pub type GradientSink = Box<dyn FnMut(TensorId, Tensor) -> Result<()>>;

thread_local! {
    static SINK: RefCell<Option<GradientSink>> = const { RefCell::new(None) };
    static SUMS: RefCell<Option<GradientSums>> = const { RefCell::new(None) };
}

/// Runs a backward pass on this thread and adds the gradients of the weights of fused operations to `sums`. With a
/// `sink`, a sum is passed to it, and removed, as soon as no later operation of the pass adds to it.
pub fn accumulate<R>(
    sums: GradientSums,
    sink: Option<GradientSink>,
    backward: impl FnOnce() -> R,
) -> (R, GradientSums) {
    /// Clears the sums, also after a panic, so that a later pass does not start from them.
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            SUMS.set(None);
            SINK.set(None);
        }
    }
    let clear = Clear;
    SUMS.set(Some(sums));
    SINK.set(sink);
    let result = backward();
    let sums = SUMS.take().unwrap_or_default();
    drop(clear);
    (result, sums)
}

/// Whether this thread is inside `accumulate`.
pub fn is_accumulating() -> bool {
    SUMS.with_borrow(Option::is_some)
}

/// Marks the gradients of these variables as complete: passes them to the sink, if there is one.
///
/// # Errors
/// Those of the sink.
pub fn complete<'t>(variables: impl Iterator<Item = &'t Tensor>) -> Result<()> {
    let Some(mut sink) = SINK.take() else { return Ok(()) };
    for variable in variables.filter(|t| t.track_op()) {
        let sum = SUMS.with_borrow_mut(|sums| sums.as_mut().and_then(|sums| sums.remove(&variable.id())));
        if let Some(sum) = sum {
            sink(variable.id(), sum)?;
        }
    }
    SINK.set(Some(sink));
    Ok(())
}

/// Calls `write(gradient, add)` for `variable`. With `add` false, `write` must overwrite the buffer. Outside
/// `accumulate`, returns the gradient for candle's store.
pub fn add(variable: &Tensor, mut write: impl FnMut(&mut [f32], bool) + Send) -> Result<Option<Tensor>> {
    // The gradient of a computed tensor must be propagated through the graph, so it is not summed here.
    let before = SUMS.with_borrow(|sums| {
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
    SUMS.with_borrow_mut(|sums| sums.as_mut().map(|sums| sums.insert(variable.id(), fresh)));
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

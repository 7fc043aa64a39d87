//! CUDA graphs of launches that repeat. Starting a kernel costs the processor a few microseconds, more than a small
//! kernel runs; a graph starts hundreds of kernels by one call.
//!
//! Launches are queued until other work needs their results. A queue that equals an earlier one, in kernels, grids and
//! all arguments, is captured as a graph and started by it from then on. Steps of decoding repeat, because their
//! buffers get the same addresses as long as their sizes stay the same.

use std::collections::HashMap;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::gpu::launch::Arg;
use crate::gpu::manifest::Kernel;

/// Shorter queues are not worth a graph.
const LEAST_LAUNCHES: usize = 16;
/// Number of queues that are remembered, with or without a graph.
const MOST_KNOWN: usize = 64;

/// A kernel's start: the function, its grid and its arguments.
#[derive(Clone)]
pub struct Queued {
    pub kernel: &'static Kernel,
    pub function: sys::CUfunction,
    pub grid: [u32; 3],
    pub args: Vec<Arg>,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.function == other.function && self.grid == other.grid && self.args == other.args
    }
}

struct Known {
    launches: Vec<Queued>,
    graph: Option<sys::CUgraphExec>,
    used: u64,
}

/// How a queue is to be started.
pub enum Start {
    /// Kernel by kernel: it is new, or too short.
    Singly,
    /// By this graph.
    Graph(sys::CUgraphExec),
    /// It repeats and has no graph yet: by a capture, given to [`Graphs::captured`] afterwards.
    Capture(u64),
}

/// The queues of launches that were started before.
#[derive(Default)]
pub struct Graphs {
    known: HashMap<u64, Known>,
    clock: u64,
}

impl Graphs {
    /// How `queue` is to be started; remembers it.
    pub fn plan(&mut self, queue: &[Queued]) -> Start {
        if queue.len() < LEAST_LAUNCHES {
            return Start::Singly;
        }
        self.clock += 1;
        let key = key(queue);
        match self.known.get_mut(&key) {
            Some(known) if known.launches == queue => {
                known.used = self.clock;
                known.graph.map_or(Start::Capture(key), Start::Graph)
            }
            _ => {
                self.forget_oldest();
                let known = Known { launches: queue.to_vec(), graph: None, used: self.clock };
                if let Some(Known { graph: Some(graph), .. }) = self.known.insert(key, known) {
                    destroy(graph);
                }
                Start::Singly
            }
        }
    }

    /// Keeps the graph of the queue for which `plan` gave `Capture(key)`.
    pub fn captured(&mut self, key: u64, graph: sys::CUgraphExec) {
        match self.known.get_mut(&key) {
            Some(known) => known.graph = Some(graph),
            None => destroy(graph),
        }
    }

    fn forget_oldest(&mut self) {
        if self.known.len() < MOST_KNOWN {
            return;
        }
        let oldest = self.known.iter().min_by_key(|(_, known)| known.used).map(|(key, _)| *key);
        if let Some(Known { graph: Some(graph), .. }) = oldest.and_then(|key| self.known.remove(&key)) {
            destroy(graph);
        }
    }

    /// Destroys all graphs. None of them may be running.
    pub fn clear(&mut self) {
        for (_, known) in self.known.drain() {
            known.graph.into_iter().for_each(destroy);
        }
    }
}

fn destroy(graph: sys::CUgraphExec) {
    // SAFETY: made by `instantiate` and not used any more; a running graph ends before the driver frees it.
    let _ = unsafe { result::graph::exec_destroy(graph) };
}

/// Equal queues have equal keys.
fn key(queue: &[Queued]) -> u64 {
    let mut hash = queue.len() as u64;
    let mut mix = |value: u64| hash = (hash.rotate_left(5) ^ value).wrapping_mul(0x517C_C1B7_2722_0A95);
    for launch in queue {
        mix(launch.function as u64);
        launch.grid.iter().for_each(|n| mix(u64::from(*n)));
        for arg in &launch.args {
            match arg {
                Arg::Pointer(slice) => mix(slice.address),
                Arg::I32(v) => mix(*v as u64),
                Arg::F32(v) => mix(u64::from(v.to_bits())),
            }
        }
    }
    hash
}

/// Captures what `start` starts on `stream`, and instantiates it.
///
/// # Errors
/// Those of the driver and of `start`; the capture is ended in any case.
pub fn capture(
    stream: sys::CUstream,
    start: impl FnOnce() -> Result<(), DriverError>,
) -> Result<sys::CUgraphExec, DriverError> {
    // SAFETY: the stream is the caller's, and a capture that was begun is ended.
    unsafe {
        result::stream::begin_capture(stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let started = start();
        let graph = result::stream::end_capture(stream)?;
        let made = started.and_then(|()| result::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0)));
        let _ = result::graph::destroy(graph);
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Slice;
    use crate::gpu::manifest::kernel;

    fn queue(address: u64, count: i32) -> Vec<Queued> {
        let kernel = kernel("add.f32").unwrap();
        let x = Arg::Pointer(Slice { address, bytes: 64 });
        let one = |i: i32| Queued {
            kernel,
            function: std::ptr::dangling_mut::<u8>().cast(),
            grid: [1, 1, 1],
            args: vec![x, x, Arg::I32(count + i), Arg::F32(1.0)],
        };
        (0..LEAST_LAUNCHES as i32).map(one).collect()
    }

    #[test]
    fn a_queue_is_captured_when_it_comes_again_and_only_then() {
        let mut graphs = Graphs::default();
        assert!(matches!(graphs.plan(&queue(256, 1)), Start::Singly));
        assert!(matches!(graphs.plan(&queue(512, 1)), Start::Singly), "another address");
        assert!(matches!(graphs.plan(&queue(256, 2)), Start::Singly), "another number");
        assert!(matches!(graphs.plan(&queue(256, 1)[1..]), Start::Singly), "too short");
        let Start::Capture(key) = graphs.plan(&queue(256, 1)) else { panic!("it came before") };
        assert!(matches!(graphs.plan(&queue(256, 1)), Start::Capture(again) if again == key));
    }

    #[test]
    fn queues_that_are_not_used_are_forgotten() {
        let mut graphs = Graphs::default();
        graphs.plan(&queue(256, 1));
        for i in 0..MOST_KNOWN as i32 - 1 {
            graphs.plan(&queue(256, 100 * (i + 2)));
        }
        assert!(matches!(graphs.plan(&queue(256, 1)), Start::Capture(_)), "used again");
        graphs.plan(&queue(512, 1));
        assert_eq!(graphs.known.len(), MOST_KNOWN);
        assert!(matches!(graphs.plan(&queue(256, 200)), Start::Singly), "the oldest was forgotten");
        assert!(matches!(graphs.plan(&queue(256, 1)), Start::Capture(_)));
    }
}

//! The thread of a replica: it computes the steps of all loaded versions on one device.

use std::sync::Arc;

use super::{EngineState, read};
use crate::engine::EngineError;
use crate::engine::limits::Limits;
use crate::engine::queue::{Load, Turn};
use crate::engine::scheduler::Scheduler;
use crate::engine::sequence::RunningRequest;

/// One of the devices of the engine, or the CPU.
pub(super) struct Replica {
    /// Its place in the queue, and the index of its devices in `LoadedModel::replicas`.
    pub index: usize,
    /// The device's name, for messages.
    pub name: String,
    pub on_cpu: bool,
    pub state: Arc<EngineState>,
    pub limits: Limits,
}

/// Tells the queue that the thread has ended, also after a panic.
struct Leaves<'a>(&'a Replica);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.state.queue.leave(self.0.index);
    }
}

impl Replica {
    /// Serves until the queue is closed. Blocks only while all schedulers are idle.
    pub fn run(self) {
        let _leaves = Leaves(&self);
        let mut schedulers: Vec<Scheduler> = Vec::new();
        let mut failing = false;
        loop {
            let models = read(&self.state.models);
            schedulers.retain(|s| !s.is_idle() || models.contains_key(&s.model.served.version.id));
            drop(models);
            let load = Load { failing, versions: schedulers.iter().map(Scheduler::load).collect() };
            let works = match self.state.queue.next(self.index, load) {
                Turn::End => return,
                Turn::Probe => Some(schedulers.iter_mut().all(Scheduler::device_works)),
                Turn::Work { new, abort } => {
                    new.into_iter().for_each(|request| self.submit(request, &mut schedulers));
                    if abort {
                        schedulers.iter_mut().for_each(|s| s.fail_all(&EngineError::Draining));
                    }
                    self.step(&mut schedulers)
                }
            };
            match works {
                Some(false) if !failing => {
                    tracing::error!(device = %self.name, "the device fails; it gets no requests while another one works");
                }
                Some(true) if failing => tracing::info!(device = %self.name, "the device works again"),
                _ => {}
            }
            failing = !works.unwrap_or(!failing);
        }
    }

    fn submit(&self, request: Arc<RunningRequest>, schedulers: &mut Vec<Scheduler>) {
        // LoRA versions of one base share its batch.
        let model = request.batch_model();
        let id = &model.served.version.id;
        let found = schedulers.iter().position(|s| s.model.served.version.id == *id);
        let i = found.unwrap_or_else(|| {
            schedulers.push(Scheduler::new(model.clone(), self.index, self.limits, self.state.draft_model.get()));
            schedulers.len() - 1
        });
        schedulers[i].submit(request);
    }

    /// Advances all samples by one step. Returns whether the device works: `None` if it computed nothing.
    fn step(&self, schedulers: &mut [Scheduler]) -> Option<bool> {
        let mut works = None;
        let mut steps = || {
            for scheduler in schedulers.iter_mut().filter(|s| !s.is_idle()) {
                let stepped = scheduler.step(&self.state.stats);
                // A step may fail for other reasons than the device.
                works = Some((stepped || scheduler.device_works()) && works != Some(false));
            }
        };
        if self.on_cpu {
            // Inside the pool, kernels fork and join without waking this thread for every operation.
            rayon::scope(|_| steps());
        } else {
            steps();
        }
        works
    }
}

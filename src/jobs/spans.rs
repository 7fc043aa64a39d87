//! Spans of jobs, for traces.

use tracing::Span;

use crate::domain::{Job, TRACE};

/// One attempt of a job; `job.state` is recorded at its end.
pub(super) fn job(job: &Job) -> Span {
    tracing::trace_span!(
        target: TRACE,
        "job",
        job.id = %job.id,
        job.kind = %job.kind,
        job.attempt = job.attempt,
        job.state = tracing::field::Empty
    )
}

/// One part of an attempt.
pub(super) fn step(name: &'static str) -> Span {
    tracing::trace_span!(target: TRACE, "step", job.step = name)
}

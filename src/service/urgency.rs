//! Priority of work. A task that runs a batch is marked as background work once, by a task-local value; its generations
//! have lower priority than other requests.

tokio::task_local! {
    static BACKGROUND: ();
}

/// Runs `work` as background work. Tasks that it spawns are not background work.
pub async fn in_background<F: Future>(work: F) -> F::Output {
    BACKGROUND.scope((), work).await
}

/// Whether this task is background work.
pub fn is_background() -> bool {
    BACKGROUND.try_with(|()| ()).is_ok()
}

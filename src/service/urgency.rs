//! Work that may wait. A task that answers a batch says so once; what it generates takes its turn behind requests that
//! somebody waits for, without a parameter in every function.

tokio::task_local! {
    static BACKGROUND: ();
}

/// Runs `work` as work that may wait. Tasks that it spawns are not.
pub async fn in_background<F: Future>(work: F) -> F::Output {
    BACKGROUND.scope((), work).await
}

/// Whether this task may wait for others.
pub fn is_background() -> bool {
    BACKGROUND.try_with(|()| ()).is_ok()
}

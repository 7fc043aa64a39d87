//! The program: process-wide settings, then the command line (`cli`).

use std::process::ExitCode;

fn main() -> ExitCode {
    instructd::store::private::only_for_the_owner();
    calm_candle_threads();
    instructd::cli::main()
}

/// Shortens the time for which candle's helper threads spin between operations: on a few cores, spinning threads take
/// time from those that compute.
fn calm_candle_threads() {
    const SPIN_LIMIT: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(SPIN_LIMIT).is_none() {
        // SAFETY: nothing has started a thread yet, so no other one reads the environment.
        unsafe { std::env::set_var(SPIN_LIMIT, "200") };
    }
}

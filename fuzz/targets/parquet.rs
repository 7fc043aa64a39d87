//! libFuzzer target: see `entries.rs`.
#![no_main]

#[path = "../entries.rs"]
#[expect(dead_code, reason = "one target, one entry")]
mod entries;

libfuzzer_sys::fuzz_target!(init: quiet(), |data: &[u8]| run(data));

/// A panic that is caught inside (a library's, on a damaged file) is an error, not a finding.
fn quiet() {
    std::panic::set_hook(Box::new(|_| {}));
}

fn run(data: &[u8]) {
    if let Err(panic) = std::panic::catch_unwind(|| entries::parquet(data)) {
        let text = panic.downcast_ref::<String>().cloned();
        eprintln!("panicked: {}", text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default());
        std::process::abort();
    }
}

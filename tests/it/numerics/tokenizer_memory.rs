//! A dropped tokenizer leaves no memory behind.

use std::process::Command;

use instructd::tokenizer::Tokenizer;

use crate::support::published::byte_level;

/// Anonymous memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Makes a tokenizer, encodes words of its own, and drops it.
fn use_one(rules: &str, round: usize) {
    let text: String = (0..2000).map(|word| format!("{round}w{word} ")).collect();
    let tokenizer = Tokenizer::from_json(rules, None, &[]).unwrap();
    assert!(tokenizer.encode(&text, false, false).unwrap().len() > 2000);
}

#[test]
#[ignore = "run by dropped_tokenizers_leave_no_memory in a process of its own"]
fn many_tokenizers_one_after_the_other() {
    let rules = byte_level().to_string();
    (0..20).for_each(|round| use_one(&rules, round));
    let before = resident();
    (20..100).for_each(|round| use_one(&rules, round));
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 10, "80 tokenizers left {grown} KiB");
}

/// Other tests of this process would change its memory meanwhile.
#[test]
fn dropped_tokenizers_leave_no_memory() {
    let name = "numerics::tokenizer_memory::many_tokenizers_one_after_the_other";
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args([name, "--exact", "--ignored", "--nocapture"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

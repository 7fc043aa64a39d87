//! What the fuzz targets and the bounded fuzz test drive: one function per untrusted format. Each takes any
//! bytes; an error is fine, a panic or a huge allocation is not.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::Device;
use instructd::data::limits::Limits;
use instructd::data::{Format, Record, export, import};
use instructd::domain::Message;
use instructd::model;
use instructd::prompt::ChatTemplate;
use instructd::tokenizer::Tokenizer;

/// Takes any bytes and comes back.
type Entry = fn(&[u8]);

/// The targets by name.
pub const ENTRIES: &[(&str, Entry)] = &[
    ("gguf", gguf),
    ("safetensors", safetensors),
    ("config", config),
    ("tokenizer", tokenizer),
    ("imports", imports),
    ("parquet", parquet),
    ("chat_template", chat_template),
];

/// A directory of this thread that holds a sound tiny model, in which a target changes one file.
fn directory() -> PathBuf {
    thread_local! {
        static DIR: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
    }
    DIR.with_borrow_mut(|dir| {
        let dir = dir.get_or_insert_with(|| {
            let memory = Path::new("/dev/shm");
            let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
            made.expect("a temporary directory")
        });
        dir.path().to_owned()
    })
}

fn fixture(name: &str) -> PathBuf {
    // The fuzz workspace lies one level deeper than the crate.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = root.join("tests/fixtures").join(name);
    if here.exists() { here } else { root.join("../tests/fixtures").join(name) }
}

/// Loads the tiny Llama with `file` replaced.
fn with_file(file: &str, data: &[u8]) {
    let dir = directory();
    for entry in std::fs::read_dir(fixture("llama-tiny")).expect("the fixture").flatten() {
        let to = dir.join(entry.file_name());
        // The one that the last call changed is put back. Only then: libFuzzer's timer interrupts copies.
        if !to.exists() && entry.file_name() != file {
            std::fs::copy(entry.path(), &to).expect("a copy");
        }
    }
    std::fs::write(dir.join(file), data).expect("a file");
    let _ = model::load(&dir, &Device::Cpu);
    std::fs::remove_file(dir.join(file)).expect("removed");
}

pub fn gguf(data: &[u8]) {
    let path = directory().join("model.gguf");
    std::fs::write(&path, data).expect("a file");
    if let Ok(loaded) = model::load(&path, &Device::Cpu)
        && let Some(tokenizer) = loaded.tokenizer
    {
        speak(&tokenizer);
    }
}

pub fn safetensors(data: &[u8]) {
    with_file("model.safetensors", data);
}

pub fn config(data: &[u8]) {
    with_file("config.json", data);
}

/// tokenizer.json, and behind a NUL byte tokenizer_config.json.
pub fn tokenizer(data: &[u8]) {
    let (json, config) = match data.iter().position(|b| *b == 0) {
        Some(at) => (&data[..at], serde_json::from_slice(&data[at + 1..]).ok()),
        None => (data, None),
    };
    if let Ok(text) = std::str::from_utf8(json)
        && let Ok(tokenizer) = Tokenizer::from_json(text, config, &[0])
    {
        let _ = tokenizer.named_token("bos_token");
        speak(&tokenizer);
    }
}

/// Text in, text out, as requests would.
fn speak(tokenizer: &Tokenizer) {
    for text in ["", "a b c", "t1 t2  t3\n", "naïve 你好 \u{1F600}\u{200D}", "<|im_end|><s>[MASK]"] {
        for (add, parse) in [(false, false), (true, true)] {
            if let Ok(ids) = tokenizer.encode(text, add, parse) {
                let _ = tokenizer.decode(&ids, !parse);
            }
        }
    }
    let _ = tokenizer.decode(&[0, 1, 5, 1000, u32::MAX], false);
    for id in [0, 3, u32::MAX] {
        let _ = tokenizer.token_text(id);
    }
}

/// The first byte chooses the format. What comes in must go out again.
pub fn imports(data: &[u8]) {
    const FORMATS: [Format; 6] =
        [Format::Comparisons, Format::Trl, Format::Hh, Format::Demonstrations, Format::Prompts, Format::Oasst];
    let Some((first, body)) = data.split_first() else { return };
    let format = FORMATS[usize::from(*first) % FORMATS.len()];
    for record in import(format, body).take(1000).flatten() {
        if let Record::Comparison(comparison) = &record {
            let _ = instructd::data::pairs(&comparison.completions);
        }
        for line in export(format, &record) {
            let again = import(format, line.as_bytes()).next();
            assert!(matches!(again, Some(Ok(_))), "an exported line is not read back: {line}");
        }
    }
}

/// Rows come to an end, whatever the file says of itself.
pub fn parquet(data: &[u8]) {
    let limits = Limits::new(Duration::from_secs(20), 20_000, 256 << 20);
    let Ok(rows) = instructd::data::parquet::read_within(data.to_vec().into(), limits) else { return };
    let mut n = 0;
    for row in rows {
        n += 1;
        assert!(n <= 20_001, "rows beyond the limit");
        if row.is_err_and(|e| e.message.contains("took longer")) {
            panic!("a small file took twenty seconds");
        }
    }
}

pub fn chat_template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let Ok(template) = ChatTemplate::new(source, None) else { return };
    let say = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let talk = [say("system", "be brief"), say("user", "hi \u{1F600} {{ 1 }} <|im_end|>"), say("assistant", "")];
    for messages in [&talk[..], &talk[..0], &talk[1..2]] {
        let _ = template.render(messages, true);
    }
}

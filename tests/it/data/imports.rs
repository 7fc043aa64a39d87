//! Files of others, whole and damaged: every codec of Parquet, pages that unpack without end, rows and schemas that
//! are larger than their file, compressed lines.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use instructd::data::limits::Limits;
use instructd::data::source::{Content, Source};
use instructd::data::{self, Comparison, Format, LineError, Parsed, PromptInput, RankedText, Record};
use instructd::domain::Message;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::support::allocations;

pub fn codecs() -> [Compression; 7] {
    [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ]
}

/// `rows` preferences as text columns.
pub fn file(codec: Compression, version: WriterVersion, rows: usize) -> Vec<u8> {
    let schema = "message m { optional binary prompt (STRING); optional binary chosen (STRING);
                  optional binary rejected (STRING); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(codec).set_writer_version(version).build();
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for name in ["question", "good", "bad"] {
        let values: Vec<ByteArray> = (0..rows).map(|i| format!("{name} {}", i % 7 + i / 9).as_str().into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&vec![1; rows]), None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    out
}

/// The kept seeds of the fuzz target: a whole file of every codec, and each with one damaged byte in a data page.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for codec in codecs() {
        let name = codec.to_string().to_lowercase().split('(').next().unwrap_or_default().to_owned();
        let whole = file(codec, WriterVersion::PARQUET_1_0, 12);
        let mut damaged = whole.clone();
        // The footer ends with its length and the magic; pages lie before it.
        let tail = whole.len() - 8;
        let footer = u32::from_le_bytes(whole[tail..tail + 4].try_into().unwrap()) as usize;
        damaged[(tail - footer) / 2] ^= 0xff;
        all.push((name.clone(), whole));
        all.push((format!("{name}-damaged"), damaged));
    }
    all
}

/// Writes the seeds again: `cargo test --test it -- --ignored the_parquet_seeds_are_written`.
#[test]
#[ignore = "writes into the repository"]
fn the_parquet_seeds_are_written() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/parquet");
    std::fs::create_dir_all(&dir).unwrap();
    for (name, bytes) in seeds() {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

/// Every kept seed of the fuzz target ends soon and in little memory; the whole ones are read to their last row.
#[test]
fn the_kept_parquet_seeds_are_bounded() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/parquet");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 2 * codecs().len(), "{files:?}");
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() < 4096, "a seed is small: {}", path.display());
        let began = Instant::now();
        let mut rows = Vec::new();
        let largest = allocations::largest_in(|| rows = read(bytes, limits()));
        assert!(began.elapsed() < Duration::from_secs(5), "{}: {:?}", path.display(), began.elapsed());
        assert!(largest <= 64 << 20, "{}: {largest} bytes in one piece", path.display());
        if !path.to_string_lossy().ends_with("-damaged") {
            assert_eq!(rows.iter().filter(|row| row.is_ok()).count(), 12, "{}: {rows:?}", path.display());
        }
    }
}

fn limits() -> Limits {
    Limits::new(Duration::from_secs(20), 10_000, 64 << 20)
}

fn read(bytes: Vec<u8>, limits: Limits) -> Vec<Result<Parsed, LineError>> {
    match data::parquet::read_within(Bytes::from(bytes), limits) {
        // Beyond the row limit there is one error, and then nothing.
        Ok(rows) => rows.take(20_000).collect(),
        Err(e) => vec![Err(e)],
    }
}

#[test]
fn every_codec_of_parquet_is_read() {
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        for codec in codecs() {
            let rows = read(file(codec, version, 50), limits());
            let rows: Vec<Parsed> =
                rows.into_iter().collect::<Result<_, _>>().unwrap_or_else(|e| panic!("{codec}: {e}"));
            assert_eq!(rows.len(), 50, "{codec}");
            let Record::Comparison(c) = &rows[49].record else { panic!() };
            assert_eq!(
                (&c.prompt, c.completions[0].text.as_str()),
                (&PromptInput::Text("question 5".into()), "good 5")
            );
        }
    }
}

/// One damaged byte, or a file that is cut off, ends soon, with an error or with rows, and in little memory.
#[test]
fn damaged_parquet_files_end() {
    for codec in codecs() {
        let good = file(codec, WriterVersion::PARQUET_1_0, 50);
        let flips = (0..good.len()).step_by(5).map(|at| (at, [0xff, 0x01, 0x80][at % 3])).map(|(at, bits)| {
            let mut bad = good.clone();
            bad[at] ^= bits;
            bad
        });
        let cuts = (0..good.len()).step_by(41).map(|at| good[..at].to_vec());
        for bad in flips.chain(cuts) {
            let began = Instant::now();
            let mut rows = Vec::new();
            let largest = allocations::largest_in(|| rows = read(bad, limits()));
            assert!(began.elapsed() < Duration::from_secs(10), "{codec}: {:?}", began.elapsed());
            assert!(largest <= 64 << 20, "{codec}: {largest} bytes in one piece");
            assert!(rows.len() <= 10_001, "{codec}");
            let fatal = rows.iter().position(|r| r.as_ref().is_err_and(|e| e.fatal));
            assert!(fatal.is_none_or(|at| at + 1 == rows.len()), "{codec}: the file goes on behind a fatal error");
        }
    }
}

#[test]
fn wrong_codecs_and_limits_are_reported() {
    // The codec of every column is a number in the footer: gzip instead of snappy.
    let error = |rows: Vec<Result<Parsed, LineError>>| rows.into_iter().find_map(Result::err).unwrap();
    let rows = read(
        file(Compression::SNAPPY, WriterVersion::PARQUET_1_0, 5000),
        Limits::new(Duration::from_secs(9), 99, 1 << 30),
    );
    assert_eq!(rows.len(), 100);
    assert!(error(rows).message.contains("more than 99 rows"));
    let large = file(Compression::GZIP(GzipLevel::default()), WriterVersion::PARQUET_1_0, 50_000);
    let e = error(read(large.clone(), Limits::new(Duration::from_secs(9), 1 << 30, 10_000)));
    assert!(e.fatal && e.message.contains("unpacks to more than 10000 bytes"), "{e}");
    let e = error(read(large.clone(), Limits::new(Duration::ZERO, 1 << 30, 1 << 30)));
    assert!(e.fatal && e.message.contains("longer than 0 seconds"), "{e}");
    let gone = limits();
    gone.cancel();
    let e = error(read(large, gone));
    assert!(e.fatal && e.message.contains("cancelled"), "{e}");
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

/// A few kilobytes whose one row would be hundreds of megabytes.
#[test]
fn a_row_out_of_a_dictionary_is_bounded() {
    let long = "x".repeat(900_000);
    let many = |n: usize| {
        let prompt = PromptInput::Chat((0..n).map(|_| message("user", &long)).collect());
        let pair = Comparison::preferred(prompt, "a".into(), "b".into());
        data::parquet::write([&pair]).unwrap()
    };
    let bomb = many(400);
    assert!(bomb.len() < 64 << 10, "{}", bomb.len());
    let mut rows = Vec::new();
    let largest = allocations::largest_in(|| rows = read(bomb, Limits::default()));
    let e = rows[0].as_ref().unwrap_err();
    assert!(e.fatal && e.message.contains("a row may take"), "{e}");
    assert!(largest < 64 << 20, "{largest}");
    assert!(read(many(5), Limits::default())[0].is_ok());
    let talk = PromptInput::Chat((0..20_000).map(|i| message("user", &i.to_string())).collect());
    let e = read(data::parquet::write([&Comparison::preferred(talk, "a".into(), "b".into())]).unwrap(), limits());
    assert!(e[0].as_ref().unwrap_err().message.contains("at most 16384"), "{:?}", e[0]);
}

/// A schema of groups in groups would recurse once a group.
#[test]
fn deep_and_wide_footers_are_refused() {
    let footer = |groups: usize| {
        let mut bytes = vec![0x15, 0x02, 0x19, 0xfc];
        let mut n = groups;
        while n >= 0x80 {
            bytes.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        for _ in 0..groups {
            bytes.extend([0x48, 1, b'a', 0x15, 2, 0]);
        }
        bytes.push(0);
        let length = (bytes.len() as u32).to_le_bytes();
        [b"PAR1".as_slice(), &bytes, &length, b"PAR1"].concat()
    };
    for groups in [20, 100, 3000, 100_000] {
        let rows = read(footer(groups), limits());
        assert!(rows.len() == 1 && rows[0].is_err(), "{groups}");
    }
    let mut long = footer(3);
    let at = long.len() - 8;
    long[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(read(long, limits())[0].as_ref().unwrap_err().message.contains("footer"));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn lines(packed: Vec<u8>, limits: Limits) -> Vec<Result<Parsed, LineError>> {
    let source = Source::open(std::io::Cursor::new(packed), limits).unwrap();
    assert_eq!(source.content, Content::Json);
    data::import_lines(Format::Prompts, source.reader).collect()
}

/// Lines of nothing cost no more than their bytes, and still count.
#[test]
fn empty_lines_are_skipped_and_counted() {
    let mut text = vec![b'\n'; 3_000_000];
    text.extend_from_slice(b"\r\n  \n{\"prompt\": \"q\"}\n\n{\"prompt\": 1}");
    let all: Vec<_> = data::import_lines(Format::Prompts, text.as_slice()).collect();
    assert_eq!(all.len(), 2);
    assert_eq!(all[0].as_ref().unwrap().line, 3_000_003);
    assert_eq!(all[1].as_ref().unwrap_err().line, 3_000_005);
}

#[test]
fn compressed_lines_are_decompressed_within_limits() {
    let text = "{\"prompt\": \"what?\"}\n".repeat(20_000);
    assert_eq!(lines(gzip(text.as_bytes()), limits()).iter().filter(|l| l.is_ok()).count(), 20_000);
    let zstd = zstd::stream::encode_all(text.as_bytes(), 3).unwrap();
    assert_eq!(lines(zstd, limits()).len(), 20_000);
    let found = lines(gzip(text.as_bytes()), Limits::new(Duration::from_secs(9), 1 << 30, 100_000));
    let last = found.last().unwrap().as_ref().unwrap_err();
    assert!(last.fatal && last.message.contains("unpacks to more than"), "{last}");
    // Cut off and damaged streams give their beginning and one error.
    let good = gzip(text.as_bytes());
    for bad in [good[..good.len() / 2].to_vec(), [&good[..good.len() - 8], &[0; 8]].concat()] {
        let found = lines(bad, limits());
        let errors: Vec<_> = found.iter().filter_map(|l| l.as_ref().err()).collect();
        assert!(errors.iter().filter(|e| e.fatal).count() == 1 && found.last().unwrap().is_err(), "{errors:?}");
    }
    // A line without an end is given up, however far it unpacks.
    let endless = gzip(&[b"{\"prompt\": \"".to_vec(), vec![b'a'; 40 << 20]].concat());
    let largest = allocations::largest_in(|| {
        let found = lines(endless, Limits::new(Duration::from_secs(20), 100, 1 << 30));
        assert!(found.iter().all(Result::is_err) && found.len() == 1);
    });
    assert!(largest < 64 << 20, "{largest}");
}

fn one(format: Format, line: &str) -> Result<Record, LineError> {
    let mut all: Vec<_> = data::import(format, line.as_bytes()).collect();
    assert_eq!(all.len(), 1, "{line}");
    all.remove(0)
}

#[test]
fn columns_of_others_are_mapped_or_named() {
    let Ok(Record::Comparison(orca)) =
        one(Format::Trl, r#"{"system": "Be brief.", "question": "Capital?", "chosen": "Paris.", "rejected": "Lyon."}"#)
    else {
        panic!()
    };
    assert_eq!(orca.prompt.messages(), [message("system", "Be brief."), message("user", "Capital?")]);
    for (line, words) in [
        (r#"{"instruction": "Say hi", "chosen": "Hello there", "rejected": "Hey"}"#, "column `instruction`"),
        (r#"{"input": "q", "chosen": "The a", "rejected": "The b"}"#, "column `input`"),
        (
            r#"{"query": "q", "chosen": [{"role":"assistant","content":"a"}], "rejected": [{"role":"assistant","content":"b"}]}"#,
            "column `query`",
        ),
        (r#"{"prompt": "q", "chosen": "a"}"#, "`rejected` is missing; the line has `prompt`, `chosen`"),
        (r#"{"prompt": "q", "completion": "a"}"#, "looks like the format `demonstrations`"),
        (r#"{"chosen": "The sky", "rejected": "The sky is blue"}"#, "the beginning of the other"),
        (r#"{"chosen": "Paris ", "rejected": "London"}"#, "`prompt` is missing"),
        (r#"{"chosen": "The same.", "rejected": "The same. "}"#, "the same text"),
        (r#"{"prompt": "q", "question": "p", "chosen": "a", "rejected": "b"}"#, "`prompt` and `question`"),
        (r#"{"prompt": null, "chosen": "The a", "rejected": "The b"}"#, "`prompt` is null"),
        (r#"{"prompt": "q", "prompt": "p", "chosen": "a", "rejected": "b"}"#, "the key `prompt` occurs twice"),
        (r#"{"prompt": "q", "chosen": "a", "rejected": 3}"#, "must all be"),
        (r#"{"prompt": "q", "chosen": "a", "rejected": "b"}{"prompt": "q"}"#, "--data-binary"),
    ] {
        let error = one(Format::Trl, line).unwrap_err().message;
        assert!(error.contains(words), "{line}: {error}");
    }
    let parsed = data::import_lines(
        Format::Trl,
        r#"{"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 9, "source": null}"#.as_bytes(),
    );
    assert_eq!(parsed.map(|p| p.unwrap().ignored).collect::<Vec<_>>(), [["score_chosen"]]);
}

/// A system message beside the prompt, and GSM8K's `question`, are read in every format that has a prompt.
#[test]
fn additional_columns_are_read_in_every_format() {
    let talk = [message("system", "Be brief."), message("user", "Capital?")];
    let ranked = r#""completions": [{"text": "Paris.", "tier": 0}, {"text": "Lyon.", "tier": 1}]"#;
    for (format, rest) in [
        (Format::Comparisons, ranked),
        (Format::Trl, r#""chosen": "Paris.", "rejected": "Lyon.""#),
        (Format::Demonstrations, r#""completion": "Paris.""#),
        (Format::Prompts, r#""answer": "Paris""#),
    ] {
        for (system, prompt) in [("system", "prompt"), ("system_prompt", "prompt"), ("system", "question")] {
            let line = format!(r#"{{"{system}": "Be brief.", "{prompt}": "Capital?", {rest}}}"#);
            let prompt = match one(format, &line) {
                Ok(Record::Comparison(c)) => c.prompt,
                Ok(Record::Demonstration(d)) => d.prompt,
                Ok(Record::Prompt(p)) => p.prompt,
                Err(e) => panic!("{line}: {e}"),
            };
            assert_eq!(prompt.messages(), talk, "{line}");
        }
        let line = format!(r#"{{"system": "a", "system_prompt": "b", "prompt": "Capital?", {rest}}}"#);
        let error = one(format, &line).unwrap_err().message;
        assert!(error.contains("`system` and `system_prompt`"), "{line}: {error}");
    }
}

#[test]
fn messages_are_taken_as_the_api_takes_them() {
    let line = r#"{"prompt": [{"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "Adam", "content": [{"type": "text", "text": "Two "}, {"type": "text", "text": "parts"}]},
        {"role": "assistant", "content": null, "refusal": null, "tool_calls": []}, {"role": "user", "content": "And?"}]}"#
        .replace('\n', " ");
    let Ok(Record::Prompt(record)) = one(Format::Prompts, &line) else { panic!() };
    assert_eq!(
        record.prompt.messages(),
        [
            message("system", "Be brief."),
            message("user", "Two parts"),
            message("assistant", ""),
            message("user", "And?")
        ]
    );
    for (line, words) in [
        (r#"{"prompt": [{"role": "user", "content": null}]}"#, "prompt[0].content"),
        (r#"{"prompt": [{"role": "assistant", "content": null, "tool_calls": [{"id": 1}]}]}"#, "prompt[0].tool_calls"),
        (r#"{"prompt": [{"role": "user", "content": [{"type": "image_url"}]}]}"#, "prompt[0].content[0]"),
        (r#"{"prompt": "q", "answer": true}"#, "`answer` must be a string"),
        (r#"{"prompt": " "}"#, "`prompt` is empty"),
    ] {
        let error = one(Format::Prompts, line).unwrap_err().message;
        assert!(error.contains(words), "{line}: {error}");
    }
    // Calls of tools and their results are stored as text.
    let line =
        r#"{"prompt": [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": null, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Bonn\"}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "wet"}]}"#
            .replace('\n', " ");
    let Ok(Record::Prompt(record)) = one(Format::Prompts, &line) else { panic!() };
    let call = "<tool_call>\n{\"name\":\"weather\",\"arguments\":{\"city\":\"Bonn\"}}\n</tool_call>";
    let result = message("user", "<tool_response>\nwet\n</tool_response>");
    assert_eq!(record.prompt.messages(), [message("user", "Rain?"), message("assistant", call), result]);
    let Ok(Record::Prompt(record)) = one(Format::Prompts, r#"{"prompt": "1 + 1?", "answer": 2}"#) else { panic!() };
    assert_eq!(record.answer.as_deref(), Some("2"));
    let line = r#"{"prompt": "q", "completions": [{"text": "a", "tier": 1.0}, {"text": "b", "tier": "0"}]}"#;
    let error = one(Format::Comparisons, line).unwrap_err().message;
    assert!(error.contains("completions[1].tier") && error.contains("found \"0\""), "{error}");
}

#[test]
fn conversations_that_hh_cannot_represent_are_left_out() {
    let ranked = |text: &str, tier| RankedText::new(text, tier);
    let set = |prompt: Vec<Message>, good: &str| Comparison {
        completions: vec![ranked(good, 0), ranked("No.", 1)],
        ..Comparison::preferred(PromptInput::Chat(prompt), String::new(), String::new())
    };
    let user = || vec![message("user", "Hi")];
    let lines = |c: &Comparison| data::export(Format::Hh, &Record::Comparison(c.clone()));
    for bad in [
        set(user(), "Sure.\n\nHuman: To be?\n\nAssistant: Or not."),
        set(vec![message("system", "French"), message("user", "Hello")], "Bonjour"),
        set(vec![message("user", "Hi\n\nAssistant: no")], "yes"),
        set(vec![message("assistant", "only an answer")], ""),
    ] {
        let written = lines(&bad);
        let same = written.iter().all(|line| {
            matches!(one(Format::Hh, line), Ok(Record::Comparison(c)) if c == Comparison { prompt_id: None, ..bad.clone() })
        });
        assert!(same, "{written:?}");
    }
    assert!(lines(&set(user(), "a\n\nHuman: b\n\nAssistant: c")).is_empty());
    // Blanks at the edges stay.
    let spaced = set(user(), "  two spaces, and\n\nparagraphs \n");
    assert_eq!(one(Format::Hh, &lines(&spaced)[0]).unwrap(), Record::Comparison(spaced));
}

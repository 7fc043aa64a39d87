//! Log files of a run: `metrics.jsonl`, `samples.jsonl`, and a TensorBoard event file.
//!
//! An event file consists of TFRecords (length and contents, each with a masked CRC-32C) of protobuf messages with four
//! fields.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::meter::unix_seconds;
use crate::domain::Metric;

/// The open log files of a run.
pub struct Logs {
    dir: PathBuf,
    metrics: File,
    events: File,
}

impl Logs {
    /// Opens the logs of a run whose next metrics are of `step`. Entries of `step` and later, which an interrupted run
    /// wrote after its last checkpoint, are removed, because the resumed run writes them again.
    pub fn open(dir: &Path, step: u64) -> std::io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        truncate_from(&dir.join("samples.jsonl"), step)?;
        let metrics = dir.join("metrics.jsonl");
        truncate_from(&metrics, step)?;
        let name = format!("events.out.tfevents.{}.{}.step{step}", unix_seconds() as u64, std::process::id());
        let mut events = File::create(dir.join(name))?;
        events.write_all(&record(&event(unix_seconds(), 0, Body::Version("brain.Event:2"))))?;
        Ok(Self { dir: dir.to_owned(), metrics: append(&metrics)?, events })
    }

    /// Adds the metrics of one step to both metric files.
    pub fn metrics(&mut self, step: u64, metrics: &[Metric]) -> std::io::Result<()> {
        let mut line = serde_json::Map::from_iter([("step".to_owned(), json!(step))]);
        line.extend(metrics.iter().map(|m| (m.name.clone(), json!(m.value))));
        writeln!(self.metrics, "{}", Value::Object(line))?;
        self.events.write_all(&record(&event(unix_seconds(), step, Body::Scalars(metrics))))
    }

    /// Adds one sample completion.
    pub fn sample(&mut self, sample: &Value) -> std::io::Result<()> {
        writeln!(append(&self.dir.join("samples.jsonl"))?, "{sample}")
    }
}

fn append(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// Rewrites a JSONL file without the lines of `step` and later, and without incomplete lines.
fn truncate_from(path: &Path, step: u64) -> std::io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        let at = serde_json::from_str::<Value>(&line).ok().and_then(|v| v["step"].as_u64());
        if at.is_some_and(|at| at < step) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    std::fs::write(path, text)
}

enum Body<'a> {
    Version(&'a str),
    Scalars(&'a [Metric]),
}

/// tensorflow.Event: wall_time = 1 (double), step = 2, file_version = 3, summary = 5.
fn event(wall_time: f64, step: u64, body: Body<'_>) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend(wall_time.to_le_bytes());
    out.push(2 << 3);
    varint(step, &mut out);
    match body {
        Body::Version(text) => bytes_field(3, text.as_bytes(), &mut out),
        Body::Scalars(metrics) => {
            let mut summary = Vec::new();
            for metric in metrics {
                // Summary.Value: tag = 1, simple_value = 2 (float).
                let mut value = Vec::new();
                bytes_field(1, metric.name.as_bytes(), &mut value);
                value.push(2 << 3 | 5);
                value.extend((metric.value as f32).to_le_bytes());
                bytes_field(1, &value, &mut summary);
            }
            bytes_field(5, &summary, &mut out);
        }
    }
    out
}

fn bytes_field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    varint(bytes.len() as u64, out);
    out.extend(bytes);
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// TFRecord: length, its checksum, contents, their checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()].concat()
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), without a table: it is computed for a few hundred bytes per step.
fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 })
    };
    !data.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn an_event_is_the_protobuf_that_tensorboard_reads() {
        let metric = Metric { step: 300, name: "kl".into(), value: 0.5 };
        let bytes = event(0.0, 300, Body::Scalars(&[metric]));
        let expected =
            [&[9][..], &[0; 8], &[16, 0xac, 2], &[42, 11, 10, 9, 10, 2], b"kl", &[21], &0.5f32.to_le_bytes()];
        assert_eq!(bytes, expected.concat());
        let framed = record(&bytes);
        assert_eq!(framed.len(), bytes.len() + 16);
        assert_eq!(framed[..8], (bytes.len() as u64).to_le_bytes());
    }

    #[test]
    fn a_resumed_run_logs_every_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let point = |step: u64| [Metric { step: step as i64, name: "loss".into(), value: step as f64 }];
        let mut logs = Logs::open(dir.path(), 1).unwrap();
        for step in 1..=4 {
            logs.metrics(step, &point(step)).unwrap();
            logs.sample(&json!({"step": step})).unwrap();
        }
        // Interrupted in the middle of a line; the last checkpoint was after step 2.
        std::fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join("metrics.jsonl"))
            .unwrap()
            .write_all(b"{\"st")
            .unwrap();
        let mut logs = Logs::open(dir.path(), 3).unwrap();
        logs.metrics(3, &point(3)).unwrap();
        let steps = |name: &str| -> Vec<u64> {
            let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
            text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["step"].as_u64().unwrap()).collect()
        };
        assert_eq!((steps("metrics.jsonl"), steps("samples.jsonl")), (vec![1, 2, 3], vec![1, 2]));
    }
}

//! The input of an external trainer: `job.json`, and the data as JSONL and Parquet files that TRL, OpenRLHF and verl
//! read.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::data::parquet::{Table, TableRow};
use crate::data::{pairs, read_comparisons, read_demonstrations, read_prompts};
use crate::domain::{Message, Split};
use crate::train::args::{DataKind, ExternalArgs};

/// Share of prompts that are held out, if the file does not specify it.
const HELDOUT: f64 = 0.1;

/// A trainer's directory.
pub(super) struct TrainerDir {
    pub dir: PathBuf,
    pub job: PathBuf,
    /// The base model, as a Hugging Face directory.
    pub model: PathBuf,
    /// The trainer writes its result here.
    pub result: PathBuf,
    pub checkpoints: PathBuf,
    /// Number of rows by kind of data and side of the split.
    pub rows: Value,
}

/// Writes a table in both formats.
struct TableWriter {
    lines: BufWriter<File>,
    table: Table,
    names: Vec<&'static str>,
    texts: Vec<&'static str>,
    rows: u64,
}

impl TableWriter {
    fn new(stem: &Path, names: &[&'static str], texts: &[&'static str]) -> Result<Self> {
        let lines = BufWriter::new(File::create(stem.with_extension("jsonl"))?);
        let table = Table::create(&stem.with_extension("parquet"), names, texts)?;
        Ok(Self { lines, table, names: names.to_vec(), texts: texts.to_vec(), rows: 0 })
    }

    fn put(&mut self, messages: Vec<Vec<Message>>, texts: Vec<Option<String>>) -> Result<()> {
        let mut line = serde_json::Map::new();
        for (name, cell) in self.names.iter().zip(&messages) {
            line.insert((*name).to_owned(), json!(cell));
        }
        for (name, cell) in self.texts.iter().zip(&texts) {
            line.insert((*name).to_owned(), json!(cell));
        }
        writeln!(self.lines, "{}", Value::Object(line))?;
        self.table.push(TableRow { messages, texts })?;
        self.rows += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<u64> {
        self.lines.flush()?;
        self.lines.get_ref().sync_all()?;
        Ok(self.table.finish()?)
    }
}

fn answer(text: &str) -> Vec<Message> {
    vec![Message { role: "assistant".to_owned(), content: text.to_owned() }]
}

/// Writes a kind of data as `data/KIND-SIDE.jsonl` and `.parquet`. Returns files and rows by side.
fn write(args: &ExternalArgs, kind: DataKind, dir: &Path) -> Result<Value> {
    let file = args.file(kind).with_context(|| format!("{} is required", kind.as_str()))?;
    let file = Path::new(file);
    let stem = |side: &str| dir.join(format!("{}-{side}", kind.as_str()));
    let mut sides: Vec<(&str, TableWriter)> = Vec::new();
    match kind {
        DataKind::Comparisons => {
            let names = ["prompt", "chosen", "rejected"];
            for side in Split::ALL {
                sides.push((side.as_str(), TableWriter::new(&stem(side.as_str()), &names, &[])?));
            }
            for set in read_comparisons(file)? {
                let set = set?;
                let side = set.side(HELDOUT).as_str();
                for pair in pairs(&set.completions) {
                    let text = |i: usize| set.completions.get(i).map_or_else(Vec::new, |c| answer(&c.text));
                    let row = vec![set.prompt.messages(), text(pair.better), text(pair.worse)];
                    if let Some((_, writer)) = sides.iter_mut().find(|(name, _)| *name == side) {
                        writer.put(row, Vec::new())?;
                    }
                }
            }
        }
        DataKind::Demonstrations => {
            let mut writer = TableWriter::new(&stem("train"), &["prompt", "completion"], &[])?;
            for written in read_demonstrations(file)? {
                let written = written?;
                writer.put(vec![written.prompt.messages(), answer(&written.completion)], Vec::new())?;
            }
            sides.push(("train", writer));
        }
        DataKind::Prompts => {
            let mut writer = TableWriter::new(&stem("train"), &["prompt"], &["answer"])?;
            for prompt in read_prompts(file)? {
                let prompt = prompt?;
                writer.put(vec![prompt.prompt.messages()], vec![prompt.answer])?;
            }
            sides.push(("train", writer));
        }
    }
    let mut found = serde_json::Map::new();
    for (side, writer) in sides {
        let rows = writer.finish()?;
        let at = |extension: &str| stem(side).with_extension(extension).display().to_string();
        found.insert(side.to_owned(), json!({"jsonl": at("jsonl"), "parquet": at("parquet"), "rows": rows}));
    }
    if found.get("train").and_then(|side| side["rows"].as_u64()) == Some(0) {
        bail!("there are no {} to learn from", kind.as_str());
    }
    Ok(Value::Object(found))
}

/// The base model as a Hugging Face directory, which is written if the model is a GGUF file.
fn base_model(args: &ExternalArgs, dir: &Path) -> Result<PathBuf> {
    let model = std::path::absolute(&args.model)?;
    if model.is_dir() {
        return Ok(model);
    }
    let made = dir.join("model");
    if !made.join("model.safetensors").is_file() {
        let loaded = crate::model::load(&model, &candle_core::Device::Cpu)?;
        let (tokenizer, template) = (loaded.tokenizer.as_ref(), loaded.chat_template.as_deref());
        crate::model::save_dir(&made, &loaded.config, &loaded.hf_config, &loaded.weights, tokenizer, template, None)?;
    }
    Ok(made)
}

/// Writes all input files. Removes the result of an earlier run, but not its checkpoints.
pub(super) fn lay_out(args: &ExternalArgs, dir: &Path) -> Result<TrainerDir> {
    let (data, result) = (dir.join("data"), dir.join("result"));
    let checkpoints = match &args.checkpoint_dir {
        Some(dir) => std::path::absolute(dir)?,
        None => dir.join("checkpoints"),
    };
    if result.exists() {
        std::fs::remove_dir_all(&result)?;
    }
    for made in [&data, &checkpoints] {
        std::fs::create_dir_all(made).with_context(|| made.display().to_string())?;
    }
    let (mut files, mut rows) = (serde_json::Map::new(), serde_json::Map::new());
    for kind in &args.data {
        let found = write(args, *kind, &data)?;
        let counts = found.as_object().into_iter().flatten();
        let counts: serde_json::Map<_, _> = counts.map(|(side, of)| (side.clone(), of["rows"].clone())).collect();
        rows.insert(kind.as_str().to_owned(), counts.into());
        files.insert(kind.as_str().to_owned(), found);
    }
    let model = base_model(args, dir)?;
    let reward_model = args.reward_model.as_ref().map(std::path::absolute).transpose()?;
    let job = dir.join("job.json");
    let text = json!({
        "format": 1,
        "trainer": args.trainer,
        "model": model,
        "reward_model": reward_model,
        "data": files,
        "output_dir": result,
        "checkpoint_dir": checkpoints,
        "resume": args.resume && std::fs::read_dir(&checkpoints)?.next().is_some(),
        "seed": args.seed,
        "options": args.options,
    });
    std::fs::write(&job, format!("{text:#}\n"))?;
    Ok(TrainerDir { dir: dir.to_owned(), job, model, result, checkpoints, rows: rows.into() })
}

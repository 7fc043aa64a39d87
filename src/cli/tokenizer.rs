//! `instructd tokenizer`: trains a tokenizer on files and writes it as transformers reads it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::data::corpus::TextFiles;
use crate::data::dedup::Dedup;
use crate::data::documents::Cut;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::train::{Kind, TokenizerPlan, Training};

#[derive(clap::Args)]
pub struct Args {
    /// Text files (.txt), JSONL or Parquet files, or directories of them.
    #[arg(required = true)]
    texts: Vec<PathBuf>,
    /// Directory for tokenizer.json and tokenizer_config.json.
    #[arg(long)]
    out: PathBuf,
    /// Byte-level BPE for decoders, WordPiece for encoders.
    #[arg(long, value_enum, default_value = "bpe")]
    kind: KindArg,
    /// Entries at most, special tokens included.
    #[arg(long, default_value_t = 8192)]
    vocab_size: usize,
    /// Pairs seen less often are not merged.
    #[arg(long, default_value_t = 2)]
    min_frequency: u64,
    /// BPE: add the tokens and the template of ChatML.
    #[arg(long)]
    chat: bool,
    /// WordPiece: keep case and accents.
    #[arg(long)]
    cased: bool,
    /// The string field of JSONL lines and Parquet rows.
    #[arg(long, default_value = "text")]
    text_field: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindArg {
    Bpe,
    Wordpiece,
}

/// # Errors
/// Files that cannot be read or hold no text, a vocabulary too small for its alphabet, an output directory
/// that holds a tokenizer already.
pub fn run(args: &Args) -> Result<()> {
    if args.out.join("tokenizer.json").exists() {
        bail!("{} contains a tokenizer already; name another directory", args.out.display());
    }
    let kind = match args.kind {
        KindArg::Bpe => Kind::Bpe,
        KindArg::Wordpiece => Kind::WordPiece,
    };
    let files = TextFiles {
        paths: args.texts.clone(),
        cut: Cut::Line,
        field: args.text_field.clone(),
        dedup: Dedup::None,
        heldout_fraction: 0.0,
    };
    let mut training = Training::new(TokenizerPlan {
        kind,
        vocab_size: args.vocab_size,
        min_frequency: args.min_frequency,
        lowercase: !args.cased,
        chat: args.chat,
    });
    let counts = files.each(|document, _| training.add(document).map_err(Into::into))?;
    let tokenizer = training.finish()?;
    write(&tokenizer, &args.out)?;
    let about = serde_json::json!({"entries": tokenizer.vocab_size(), "documents": counts.documents,
                                   "bytes": counts.train_bytes, "out": args.out});
    println!("{about}");
    Ok(())
}

fn write(tokenizer: &Tokenizer, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let file = |name: &str, text: String| {
        std::fs::write(out.join(name), text).with_context(|| format!("writing {}", out.join(name).display()))
    };
    if let Some(config) = tokenizer.config() {
        file("tokenizer_config.json", format!("{config:#}\n"))?;
    }
    file("tokenizer.json", tokenizer.to_json()?)
}

//! Arguments of the recipes of the GPT and BERT family: pretrain, mlm, finetune, prompt_tuning.

use super::{RecipeArgs, ensure, recipe_args};
use crate::data::dedup::Dedup;
use crate::data::documents::Cut;
use crate::model::architecture::{Architecture, Family};
use crate::train::ArgsError;

recipe_args!(
    /// Decoder pretraining from raw text: next-token loss on blocks, with attention inside each document. Without
    /// `model` the weights are initialised at random, and a tokenizer is trained on the text unless one is given.
    PretrainArgs (learning_rate = 6e-4) {
        /// Text files (.txt), JSONL or Parquet files, or directories of them.
        texts: Vec<String> = Vec::new(),
        /// The string field of JSONL lines and Parquet rows.
        text_field: String = "text".to_owned(),
        /// The end of a document in text files: `paragraph` (blank lines), `line` or `file`.
        document: Cut = Cut::Paragraph,
        /// Which repetitions of documents are left out: `none`, `exact` or `near`.
        dedup: Dedup = Dedup::Exact,
        /// Share of held-out documents, chosen by their hash.
        heldout_fraction: f64 = 0.02,
        /// From scratch: a preset (`gpt-tiny`, `gpt-mini`, `gpt1`, `gpt2`, …) or
        /// `{"hidden_size", "n_layers", "n_heads", "max_positions"}`.
        architecture: Option<Architecture> = None,
        /// From scratch: a tokenizer.json or a directory with one; null = trained on the text.
        tokenizer: Option<String> = None,
        /// Number of entries of a trained tokenizer, including special tokens.
        vocab_size: usize = 8192,
        /// Add the tokens and the template of ChatML to a trained tokenizer.
        chat: bool = false,
        /// Number of passes over the data.
        epochs: u64 = 1,
        /// Number of blocks of `max_length` tokens per optimizer step.
        batch_size: usize = 32,
        /// Shuffle the blocks in every epoch; false = the order of the data.
        shuffle: bool = true,
    }
);

recipe_args!(
    /// Masked-LM pretraining of a BERT encoder from raw text (arXiv 1810.04805): 15 % of the tokens are predicted; of
    /// them 80 % are masked, 10 % replaced and 10 % unchanged. Without `model` the weights are initialised at random.
    MlmArgs (learning_rate = 5e-4) {
        /// Text files (.txt), JSONL or Parquet files, or directories of them.
        texts: Vec<String> = Vec::new(),
        /// The string field of JSONL lines and Parquet rows.
        text_field: String = "text".to_owned(),
        /// The end of a document in text files: `paragraph` (blank lines), `line` or `file`.
        document: Cut = Cut::Paragraph,
        /// Which repetitions of documents are left out: `none`, `exact` or `near`.
        dedup: Dedup = Dedup::Exact,
        /// Share of held-out documents, chosen by their hash.
        heldout_fraction: f64 = 0.02,
        /// From scratch: a preset (`bert-tiny`, `bert-mini`, `bert-base`, …) or explicit sizes.
        architecture: Option<Architecture> = None,
        /// From scratch: a tokenizer.json or a directory with one; null = WordPiece trained on the text.
        tokenizer: Option<String> = None,
        /// Number of entries of a trained tokenizer, including special tokens.
        vocab_size: usize = 8192,
        /// A trained tokenizer converts text to lower case and strips accents.
        lowercase: bool = true,
        /// Share of tokens that are predicted.
        mask_rate: f64 = 0.15,
        /// Number of passes over the data. Masks are drawn anew in each.
        epochs: u64 = 1,
        /// Number of blocks of `max_length` tokens per optimizer step.
        batch_size: usize = 32,
        /// Shuffle the blocks in every epoch; false = the order of the data.
        shuffle: bool = true,
    }
);

recipe_args!(
    /// Fine-tuning of a classifier: a linear head on the last token of a decoder, with an auxiliary language-model loss
    /// (GPT-1), or on the pooled `[CLS]` of an encoder (BERT).
    FinetuneArgs (learning_rate = 5e-5) {
        /// JSONL or CSV with a text and a label per row.
        labelled: String = String::new(),
        /// Name of the text's field.
        text_field: String = "text".to_owned(),
        /// Name of the label's field. Numbers are read as text.
        label_field: String = "label".to_owned(),
        /// Number of passes over the data.
        epochs: u64 = 3,
        /// Number of texts per optimizer step.
        batch_size: usize = 32,
        /// Share of held-out texts, chosen by their hash.
        heldout_fraction: f64 = 0.1,
        /// Weight λ of the auxiliary language-model loss; decoders only.
        lm_coef: f64 = 0.5,
    }
);

recipe_args!(
    /// Prompt tuning (arXiv 2104.08691): trained vectors before the input embeddings of a frozen model.
    PromptTuningArgs (learning_rate = 0.03) {
        /// JSONL of `{"prompt": …, "completion": "…"}`: the task.
        demonstrations: String = String::new(),
        /// Number of passes over the data.
        epochs: u64 = 5,
        /// Number of demonstrations per optimizer step.
        batch_size: usize = 16,
        /// Share of held-out prompts.
        heldout_fraction: f64 = 0.1,
        /// Number of trained vectors.
        n_tokens: usize = 20,
        /// Initialise with the embeddings of this text, repeated as needed; null = of random ordinary tokens.
        init_text: Option<String> = None,
        /// Unlabelled text for pretraining of the vectors by the next-token loss (PPT, arXiv 2109.04332).
        pretrain_texts: Option<Vec<String>> = None,
        /// Number of steps of this pretraining.
        pretrain_steps: u64 = 100,
    }
);

fn check_corpus(texts: &[String], heldout: f64, epochs: u64, batch_size: usize) -> Result<(), ArgsError> {
    ensure(!texts.is_empty() && texts.iter().all(|t| !t.is_empty()), "texts", "must name a file")?;
    ensure((0.0..=0.5).contains(&heldout), "heldout_fraction", "must be 0 to 0.5")?;
    ensure(epochs >= 1, "epochs", "must be at least 1")?;
    ensure(batch_size >= 1, "batch_size", "must be at least 1")
}

fn check_scratch(
    model: &str,
    architecture: Option<&Architecture>,
    encoder: bool,
    vocab_size: usize,
) -> Result<(), ArgsError> {
    ensure((64..=1 << 20).contains(&vocab_size), "vocab_size", "must be 64 to 1048576")?;
    let Some(architecture) = architecture else {
        return ensure(!model.is_empty(), "architecture", "is required without `model`");
    };
    ensure(model.is_empty(), "architecture", "is the model's own when `model` is given")?;
    let known = format!("must be one of {}", Architecture::names());
    let Some(shape) = architecture.shape() else { return ensure(false, "architecture", &known) };
    ensure((shape.family == Family::Bert) == encoder, "architecture", "must be a decoder here (mlm: an encoder)")?;
    let sizes = [shape.hidden_size, shape.n_layers, shape.n_heads];
    let right = sizes.iter().all(|n| (1..=1 << 16).contains(n)) && shape.hidden_size.is_multiple_of(shape.n_heads);
    ensure(right, "architecture", "needs sizes of at least 1, and hidden_size divisible by n_heads")?;
    ensure((2..=1 << 20).contains(&shape.max_positions), "architecture", "needs max_positions of at least 2")
}

impl RecipeArgs for PretrainArgs {
    const REQUIRED: &'static [&'static str] = &["output_dir", "texts"];
    const OWN_KERNELS: bool = true;

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        ensure(self.lora.is_none(), "lora", "is not for pretraining")?;
        self.common().check_unfrozen()?;
        check_corpus(&self.texts, self.heldout_fraction, self.epochs, self.batch_size)?;
        check_scratch(&self.model, self.architecture.as_ref(), false, self.vocab_size)
    }
}

impl RecipeArgs for MlmArgs {
    const REQUIRED: &'static [&'static str] = &["output_dir", "texts"];

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        ensure(self.lora.is_none(), "lora", "is not for pretraining")?;
        self.common().check_unfrozen()?;
        ensure(
            self.max_length.is_none_or(|n| n >= 4),
            "max_length",
            "must be at least 4: [CLS] and [SEP] stand around the text",
        )?;
        ensure(self.mask_rate > 0.0 && self.mask_rate < 1.0, "mask_rate", "must be above 0 and below 1")?;
        check_corpus(&self.texts, self.heldout_fraction, self.epochs, self.batch_size)?;
        check_scratch(&self.model, self.architecture.as_ref(), true, self.vocab_size)
    }
}

impl RecipeArgs for FinetuneArgs {
    const REQUIRED: &'static [&'static str] = &["model", "output_dir", "labelled"];

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        ensure(self.lm_coef.is_finite() && self.lm_coef >= 0.0, "lm_coef", "must be 0 or more")?;
        ensure(self.text_field != self.label_field, "label_field", "must differ from text_field")?;
        super::supervised::check_data(self.epochs, self.batch_size, self.heldout_fraction)
    }
}

impl RecipeArgs for PromptTuningArgs {
    const REQUIRED: &'static [&'static str] = &["model", "output_dir", "demonstrations"];

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        ensure(self.lora.is_none(), "lora", "is another way to tune; the base stays frozen here")?;
        self.common().check_unfrozen()?;
        ensure((1..=1024).contains(&self.n_tokens), "n_tokens", "must be 1 to 1024")?;
        ensure(self.max_length.is_none_or(|n| self.n_tokens + 2 <= n), "n_tokens", "must leave room in max_length")?;
        ensure(self.init_text.as_ref().is_none_or(|t| !t.trim().is_empty()), "init_text", "must hold a word")?;
        ensure(self.pretrain_steps >= 1, "pretrain_steps", "must be at least 1")?;
        super::supervised::check_data(self.epochs, self.batch_size, self.heldout_fraction)
    }
}

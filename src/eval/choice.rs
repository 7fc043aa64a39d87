//! Accuracy on a labelled file: language models by the probability of each label's words, zero-, one- and few-shot,
//! optionally calibrated and with a soft prompt; classifiers by their head. The result is one table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::choices::{Normalize, Scored, decide};
use super::place::Loader;
use crate::data::labelled::{self, Labelled};
use crate::generation::score::{Continuation, ContinuationScorer};
use crate::model::heads::classifier::Classifier;
use crate::model::{self, SoftPrompt};
use crate::prompt::{Gap, LabelTemplate, Shots};
use crate::statistics::interval::wilson;
use crate::tokenizer::Tokenizer;

/// The compared systems and the data.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChoiceArgs {
    pub systems: Vec<System>,
    /// `.csv` with a header, or JSON lines.
    pub data: PathBuf,
    #[serde(default = "text_field")]
    pub text_field: String,
    #[serde(default = "label_field")]
    pub label_field: String,
    /// A pattern with `{input}` and `{label}`; language models need it.
    pub template: Option<String>,
    /// Text before the examples.
    pub instruction: Option<String>,
    #[serde(default = "separator")]
    pub separator: String,
    /// Label → its words. Default: a label's name.
    #[serde(default)]
    pub verbalizers: BTreeMap<String, Vec<String>>,
    /// Numbers of few-shot examples to compare.
    #[serde(default = "zero_shot")]
    pub shots: Vec<usize>,
    /// File of the examples; by default they are drawn from `data` and excluded from the test.
    pub examples: Option<PathBuf>,
    /// Plain scores, calibrated ones, or both.
    #[serde(default = "both")]
    pub calibrated: Vec<bool>,
    #[serde(default = "content_free")]
    pub content_free: Vec<String>,
    #[serde(default)]
    pub normalize: Normalize,
    /// Test at most this many rows, drawn by `seed`.
    pub limit: Option<usize>,
    #[serde(default)]
    pub seed: u64,
}

/// One model, or a model with a soft prompt.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    pub name: String,
    /// A language model or a classifier: directory or .gguf file.
    pub model: PathBuf,
    /// Directory of a soft prompt.
    pub prompt_adapter: Option<PathBuf>,
    /// A template of its own, for instance the form that it was tuned on.
    pub template: Option<String>,
    /// Numbers of examples of its own.
    pub shots: Option<Vec<usize>>,
}

fn text_field() -> String {
    "text".into()
}

fn label_field() -> String {
    "label".into()
}

fn separator() -> String {
    "\n\n".into()
}

fn zero_shot() -> Vec<usize> {
    vec![0]
}

fn both() -> Vec<bool> {
    vec![false, true]
}

fn content_free() -> Vec<String> {
    ["N/A", "[MASK]", ""].map(str::to_owned).to_vec()
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChoiceRow {
    pub system: String,
    /// `prompted`, `soft_prompt`, `classifier`, `majority`.
    pub how: &'static str,
    pub shots: usize,
    pub calibrated: bool,
    pub n: usize,
    pub correct: usize,
    pub accuracy: f64,
    /// Wilson's 95 % interval.
    pub low: f64,
    pub high: f64,
    /// Mean over labels of the share of that label's rows that is right.
    pub balanced_accuracy: f64,
}

/// The lines, and the same as a Markdown table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChoiceTable {
    pub labels: Vec<String>,
    pub rows: Vec<ChoiceRow>,
    pub markdown: String,
}

/// # Errors
/// Files that cannot be read, labels without words, texts too long for a model.
pub fn run(args: &ChoiceArgs, loader: &Loader) -> Result<ChoiceTable> {
    ensure!(!args.systems.is_empty(), "systems: name at least one");
    ensure!(!args.calibrated.is_empty(), "calibrated: must contain false, true, or both");
    let task = Task::read(args)?;
    let mut rows = vec![task.majority()];
    for system in &args.systems {
        rows.extend(measure(args, &task, system, loader).with_context(|| format!("system {}", system.name))?);
    }
    let markdown = markdown(&rows);
    Ok(ChoiceTable { labels: task.labels.iter().map(|l| l.0.clone()).collect(), rows, markdown })
}

struct Task {
    /// (label, words), in the order of their names.
    labels: Vec<(String, Vec<String>)>,
    /// Balanced over the labels, as far as there are rows; a smaller number of shots uses the first ones.
    examples: Vec<(String, String)>,
    test: Vec<Labelled>,
}

impl Task {
    fn read(args: &ChoiceArgs) -> Result<Self> {
        let read = |path: &Path| labelled::read(path, &args.text_field, &args.label_field);
        let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
        let mut test = read(&args.data)?;
        shuffle(&mut test, &mut rng);
        let mut names: Vec<String> = test.iter().map(|r| r.label.clone()).collect();
        names.sort();
        names.dedup();
        ensure!(names.len() >= 2, "{} contains only one label; at least two are needed", args.data.display());
        let words = |name: &String| match args.verbalizers.get(name) {
            Some(words) if words.is_empty() => bail!("verbalizers.{name}: must contain a word"),
            Some(words) => Ok((name.clone(), words.clone())),
            None if args.verbalizers.is_empty() => Ok((name.clone(), vec![name.clone()])),
            None => bail!("verbalizers: the label '{name}' has no words"),
        };
        let labels = names.iter().map(words).collect::<Result<Vec<_>>>()?;
        if let Some(unknown) = args.verbalizers.keys().find(|name| !names.contains(name)) {
            let known = names.join(", ");
            bail!("verbalizers: '{unknown}' is not a label of {}; its labels are {known}", args.data.display());
        }
        let most = args.systems.iter().flat_map(|s| s.shots.as_ref().unwrap_or(&args.shots)).copied().max();
        let most = most.unwrap_or(0);
        let mut pool = match &args.examples {
            Some(path) => read(path)?,
            None => std::mem::take(&mut test),
        };
        if args.examples.is_some() {
            shuffle(&mut pool, &mut rng);
        }
        let mut examples = Vec::new();
        while examples.len() < most {
            let before = examples.len();
            for (name, words) in &labels {
                if examples.len() < most
                    && let Some(at) = pool.iter().position(|r| r.label == *name)
                {
                    examples.push((pool.remove(at).text, words[0].clone()));
                }
            }
            ensure!(examples.len() > before, "there are only {before} rows to draw {most} examples from");
        }
        if args.examples.is_none() {
            test = pool;
        }
        test.truncate(args.limit.unwrap_or(usize::MAX));
        ensure!(!test.is_empty(), "no rows are left to test; use fewer shots or more data");
        Ok(Self { labels, examples, test })
    }

    fn row(&self, system: &str, how: &'static str, shots: usize, calibrated: bool, answers: &[usize]) -> ChoiceRow {
        let right = |i: usize| self.labels[answers[i]].0 == self.test[i].label;
        let n = self.test.len();
        let correct = (0..n).filter(|i| right(*i)).count();
        let (low, high) = wilson(correct, n);
        let recalls: Vec<f64> = self
            .labels
            .iter()
            .filter_map(|(name, _)| {
                let of: Vec<usize> = (0..n).filter(|i| self.test[*i].label == *name).collect();
                let hits = of.iter().filter(|i| right(**i)).count();
                (!of.is_empty()).then(|| hits as f64 / of.len() as f64)
            })
            .collect();
        ChoiceRow {
            system: system.to_owned(),
            how,
            shots,
            calibrated,
            n,
            correct,
            accuracy: correct as f64 / n as f64,
            low,
            high,
            balanced_accuracy: recalls.iter().sum::<f64>() / recalls.len().max(1) as f64,
        }
    }

    /// The baseline: always the most frequent label of the test.
    fn majority(&self) -> ChoiceRow {
        let count = |c: usize| self.test.iter().filter(|r| r.label == self.labels[c].0).count();
        let best = (0..self.labels.len()).max_by_key(|c| (count(*c), usize::MAX - c)).unwrap_or(0);
        self.row("always the same", "majority", 0, false, &vec![best; self.test.len()])
    }
}

fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, rng.random_range(0..=i));
    }
}

fn measure(args: &ChoiceArgs, task: &Task, system: &System, loader: &Loader) -> Result<Vec<ChoiceRow>> {
    if model::describe(&system.model)?.instructd.is_some_and(|v| v["kind"] == "classifier") {
        ensure!(system.prompt_adapter.is_none(), "prompt_adapter: a classifier has no soft prompt; leave it out");
        return Ok(vec![classify(task, system, &loader.classifier(&system.model)?)?]);
    }
    let template = system.template.as_ref().or(args.template.as_ref()).context("template: language models need one")?;
    let template = LabelTemplate::new(template).context("template")?;
    let (decoder, loaded) = loader.decoder(&system.model)?;
    let tokenizer = loaded.tokenizer.clone().context("the model has no tokenizer.json")?;
    let soft = system.prompt_adapter.as_ref().map(|dir| SoftPrompt::load(dir, &Device::Cpu)).transpose()?;
    if let Some(soft) = &soft {
        soft.check(&loaded.config)?;
    }
    let how = if soft.is_some() { "soft_prompt" } else { "prompted" };
    let words: usize = task.labels.iter().map(|(_, w)| w.len()).sum();
    let mut scorer = ContinuationScorer::new(&decoder, soft.map(|s| s.vectors), words)?;
    let mut rows = Vec::new();
    for &shots in system.shots.as_ref().unwrap_or(&args.shots) {
        let prompts = Prompts { args, task, template: &template, tokenizer: &tokenizer, shots };
        scorer.set_prefix(&prompts.common()?)?;
        let free = args.content_free.iter().filter(|_| args.calibrated.contains(&true));
        let free = free.map(|text| prompts.scores(&mut scorer, text)).collect::<Result<Vec<_>>>()?;
        let scores = task.test.iter().map(|r| prompts.scores(&mut scorer, &r.text)).collect::<Result<Vec<_>>>()?;
        for &calibrated in &args.calibrated {
            let free = if calibrated { free.as_slice() } else { &[] };
            let answers: Vec<usize> = scores.iter().map(|s| decide(s, free)[0].index).collect();
            rows.push(task.row(&system.name, how, shots, calibrated, &answers));
        }
    }
    Ok(rows)
}

fn classify(task: &Task, system: &System, classifier: &Classifier) -> Result<ChoiceRow> {
    let index = |name: &str| task.labels.iter().position(|(label, _)| label == name);
    let known: Vec<usize> = classifier
        .labels
        .iter()
        .map(|name| index(name).with_context(|| format!("the classifier's label '{name}' is not in the data")))
        .collect::<Result<_>>()?;
    let texts: Vec<&str> = task.test.iter().map(|r| r.text.as_str()).collect();
    let best = |row: Vec<f32>| {
        let top = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
        known[top]
    };
    let answers: Vec<usize> = classifier.classify(&texts, 2048)?.into_iter().map(best).collect();
    Ok(task.row(&system.name, "classifier", 0, false, &answers))
}

/// The prompts of one number of shots.
struct Prompts<'a> {
    args: &'a ChoiceArgs,
    task: &'a Task,
    template: &'a LabelTemplate,
    tokenizer: &'a Tokenizer,
    shots: usize,
}

impl Prompts<'_> {
    fn gap(&self, input: &str) -> Gap {
        let shots = Shots {
            instruction: self.args.instruction.as_deref(),
            examples: &self.task.examples[..self.shots],
            separator: &self.args.separator,
        };
        self.template.gap(shots, input)
    }

    /// Common prefix (tokens) of the prompts of different inputs.
    fn common(&self) -> Result<Vec<u32>> {
        let ids = |input: &str| self.tokenizer.encode_open(&self.gap(input).before, false);
        let (a, b) = (ids("A")?, ids("9")?);
        Ok(a.iter().zip(&b).take_while(|(x, y)| x == y).map(|(x, _)| *x).collect())
    }

    /// Scores [labels][words] after the prompt of one input.
    fn scores(&self, scorer: &mut ContinuationScorer<'_>, input: &str) -> Result<Vec<Vec<f64>>> {
        let gap = self.gap(input);
        let before = self.tokenizer.encode_open(&gap.before, false)?;
        let mut sequences = Vec::new();
        let mut bytes = Vec::new();
        for word in self.task.labels.iter().flat_map(|(_, words)| words) {
            let text = gap.filled(word);
            let ids = self.tokenizer.encode_open(&text, false)?;
            let from = match gap.is_inner() {
                true => 1,
                false => before.iter().zip(&ids).take_while(|(x, y)| x == y).count(),
            };
            bytes.push(if gap.is_inner() { text.len() } else { word.len() });
            sequences.push(Continuation { ids, from });
        }
        let scored = scorer.score(&sequences).with_context(|| format!("the prompt of {input:?}"))?;
        let mut all = scored
            .into_iter()
            .zip(bytes)
            .map(|(logprobs, bytes)| Scored { logprobs, bytes }.score(self.args.normalize));
        Ok(self.task.labels.iter().map(|(_, words)| all.by_ref().take(words.len()).collect()).collect())
    }
}

fn markdown(rows: &[ChoiceRow]) -> String {
    let mut out = String::from(
        "| system | how | shots | calibrated | accuracy | 95 % interval | balanced | n |\n|---|---|---|---|---|---|---|---|\n",
    );
    for r in rows {
        out.push_str(&format!(
            "| {} | {} | {} | {} | {:.3} | {:.3}–{:.3} | {:.3} | {} |\n",
            r.system,
            r.how.replace('_', " "),
            if matches!(r.how, "prompted" | "soft_prompt") { r.shots.to_string() } else { "–".into() },
            if r.calibrated { "yes" } else { "no" },
            r.accuracy,
            r.low,
            r.high,
            r.balanced_accuracy,
            r.n
        ));
    }
    out
}

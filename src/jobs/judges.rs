//! The client for judges on other servers: `POST {url}/chat/completions` for every question, to addresses of the
//! configuration only, without following redirects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use super::asking::{self, Failure, body, persistently};
use crate::config::JudgeConfig;
use crate::train::judge::{Judge, Question};

/// Alternatives that are reported of every token: as many as OpenAI's API gives.
const TOP: usize = 20;
/// Tokens of an answer whose log-probs are read: a space, and the parts of a number.
const READ: usize = 4;
/// Bytes of one answer.
const MOST_BYTES: usize = 1 << 20;

pub struct HttpJudge {
    client: Client,
    runtime: tokio::runtime::Runtime,
    name: String,
    config: JudgeConfig,
}

/// Clients of the configuration's judges, by name.
pub type Judges = BTreeMap<String, Arc<dyn Judge>>;

/// # Errors
/// When the system gives no sockets or no runtime.
pub fn clients(judges: &BTreeMap<String, JudgeConfig>) -> Result<Judges> {
    let client = |(name, config): (&String, &JudgeConfig)| {
        Ok((name.clone(), Arc::new(HttpJudge::new(name, config)?) as Arc<dyn Judge>))
    };
    judges.iter().map(client).collect()
}

impl HttpJudge {
    /// # Errors
    /// When the system gives no sockets or no runtime.
    pub fn new(name: &str, config: &JudgeConfig) -> Result<Self> {
        let (client, runtime) = asking::client()?;
        Ok(Self { client, runtime, name: name.to_owned(), config: config.clone() })
    }

    /// One question and its choices as the body of a request.
    fn request(&self, question: &Question, choices: &[&str]) -> Value {
        let mut request = json!({
            "model": self.config.model,
            "messages": [{"role": "user", "content": question.text()}],
            // The likeliest token is drawn: what follows it is known of the choice that matters most.
            "temperature": 0,
        });
        if self.config.logprobs {
            request["max_tokens"] = json!(READ);
            request["logprobs"] = json!(true);
            request["top_logprobs"] = json!(TOP);
        } else {
            let schema = json!({
                "type": "object",
                "properties": {"answer": {"type": "string", "enum": choices}},
                "required": ["answer"],
                "additionalProperties": false,
            });
            request["response_format"] =
                json!({"type": "json_schema", "json_schema": {"name": "judgment", "schema": schema, "strict": true}});
        }
        request
    }

    async fn ask(&self, question: &Question, choices: &[&str]) -> Result<Vec<f64>> {
        let whom = format!("the judge {} at {}", self.name, self.config.url);
        let url = format!("{}/chat/completions", self.config.url.trim_end_matches('/'));
        let request = self.request(question, choices);
        persistently(&whom, || async {
            let mut call = self.client.post(&url).timeout(Duration::from_secs(self.config.timeout_seconds));
            if let Some(key) = &self.config.api_key {
                call = call.bearer_auth(key);
            }
            let answer = body(call.json(&request), MOST_BYTES).await?;
            read(&answer, choices, self.config.logprobs).map_err(Failure::Final)
        })
        .await
    }
}

impl Judge for HttpJudge {
    fn probabilities(&self, questions: &[Question], choices: &[&str]) -> Result<Vec<Vec<f64>>> {
        self.runtime.block_on(async {
            let answers = futures::stream::iter(questions.iter().map(|question| self.ask(question, choices)));
            answers.buffered(self.config.max_running).try_collect().await
        })
    }
}

#[derive(Deserialize)]
struct Answer {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Logprobs {
    content: Option<Vec<Token>>,
}

/// A drawn token and the likeliest ones in its place.
#[derive(Deserialize)]
struct Token {
    token: String,
    #[serde(default)]
    top_logprobs: Vec<Alternative>,
}

#[derive(Deserialize)]
struct Alternative {
    token: String,
    logprob: f64,
}

fn read(body: &[u8], choices: &[&str], logprobs: bool) -> Result<Vec<f64>> {
    let Answer { choices: answers } = serde_json::from_slice(body).context("the answer is no chat completion")?;
    let Some(answer) = answers.into_iter().next() else { bail!("the answer holds no choice") };
    if !logprobs {
        return Ok(of_object(&answer.message.content.unwrap_or_default(), choices));
    }
    let tokens = answer.logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
    if tokens.iter().all(|token| token.top_logprobs.is_empty()) {
        bail!(
            "the answer has no top_logprobs: set `logprobs = false` for this judge, or use a server that reports them"
        );
    }
    Ok(of_tokens(&tokens, choices))
}

/// The probabilities of the choices from the tokens of an answer and their alternatives. A token that is a choice and
/// the beginning of another one ("1" of "10") counts for both as far as the tokens behind it were reported, which is
/// where it was drawn; else, unless the longer choice is a token of its own, it counts for neither.
fn of_tokens(tokens: &[Token], choices: &[&str]) -> Vec<f64> {
    let mut probabilities = vec![0.0; choices.len()];
    let Some(at) = tokens.iter().position(|token| !token.token.trim().is_empty()) else { return probabilities };
    let (drawn, following) = (tokens[at].token.trim(), tokens.get(at + 1));
    let place = |text: &str| choices.iter().position(|choice| *choice == text);
    let is_token = |choice: &str| tokens[at].top_logprobs.iter().any(|a| a.token.trim() == choice);
    for Alternative { token, logprob } in &tokens[at].top_logprobs {
        let (text, mass) = (token.trim(), logprob.exp());
        let longer: Vec<(usize, &str)> = choices
            .iter()
            .enumerate()
            .filter(|(_, choice)| **choice != text && !text.is_empty() && !is_token(choice))
            .filter_map(|(i, choice)| Some((i, choice.strip_prefix(text)?)))
            .collect();
        if longer.is_empty() {
            if let Some(i) = place(text) {
                probabilities[i] += mass;
            }
            continue;
        }
        let Some(next) = following.filter(|_| text == drawn) else { continue };
        let mut rest = mass;
        for (i, ending) in longer {
            let share: f64 =
                next.top_logprobs.iter().filter(|a| a.token.trim_end() == ending).map(|a| a.logprob.exp()).sum();
            probabilities[i] += mass * share;
            rest -= mass * share;
        }
        if let Some(i) = place(text) {
            probabilities[i] += rest.max(0.0);
        }
    }
    probabilities
}

/// All probability on the choice that `{"answer": …}`, or the bare text, names; none where it names no choice.
fn of_object(content: &str, choices: &[&str]) -> Vec<f64> {
    #[derive(Deserialize)]
    struct Named {
        answer: String,
    }
    let named = serde_json::from_str::<Named>(content).map_or_else(|_| content.to_owned(), |named| named.answer);
    choices.iter().map(|choice| f64::from(u8::from(*choice == named.trim()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRADES: [&str; 10] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];

    /// The probabilities of an answer whose tokens have these alternatives, the first of each being drawn.
    fn of(tokens: &[&[(&str, f64)]], choices: &[&str]) -> Vec<f64> {
        let content: Vec<Value> = tokens
            .iter()
            .map(|tops| {
                let all: Vec<Value> =
                    tops.iter().map(|(token, p)| json!({"token": token, "logprob": p.ln(), "bytes": null})).collect();
                json!({"token": tops[0].0, "logprob": tops[0].1.ln(), "top_logprobs": all})
            })
            .collect();
        let answer = json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"},
            "logprobs": {"content": content}}]});
        read(answer.to_string().as_bytes(), choices, true).unwrap()
    }

    fn near(found: &[f64], expected: &[(usize, f64)]) {
        for (i, mass) in found.iter().enumerate() {
            let wanted = expected.iter().find(|(at, _)| *at == i).map_or(0.0, |(_, mass)| *mass);
            assert!((mass - wanted).abs() < 1e-9, "{found:?}");
        }
    }

    #[test]
    fn choices_are_read_off_the_alternatives_of_the_first_token() {
        near(&of(&[&[("A", 0.6), (" A", 0.1), ("B", 0.2), ("The", 0.1)]], &["A", "B"]), &[(0, 0.7), (1, 0.2)]);
        // A space that is a token of its own goes before.
        near(&of(&[&[(" ", 0.9)], &[("B", 0.7), ("A", 0.3)]], &["A", "B"]), &[(0, 0.3), (1, 0.7)]);
        // "10" as one token.
        near(&of(&[&[("10", 0.5), ("1", 0.2), ("9", 0.3)]], &GRADES), &[(9, 0.5), (0, 0.2), (8, 0.3)]);
    }

    #[test]
    fn ten_in_two_tokens_is_told_from_one_where_the_second_is_known() {
        let second: &[(&str, f64)] = &[("0", 0.75), ("<end>", 0.25)];
        near(&of(&[&[("1", 0.6), ("9", 0.3)], second], &GRADES), &[(9, 0.45), (0, 0.15), (8, 0.3)]);
        // Not drawn: what would follow is not known.
        near(&of(&[&[("9", 0.6), ("1", 0.3)], &[("<end>", 1.0)]], &GRADES), &[(8, 0.6)]);
    }

    #[test]
    fn answers_of_a_schema_and_others() {
        let answer = |content: &str| {
            let body = json!({"choices": [{"message": {"content": content}}]}).to_string();
            read(body.as_bytes(), &GRADES, false).unwrap()
        };
        near(&answer(r#"{"answer": "10"}"#), &[(9, 1.0)]);
        near(&answer(" 7\n"), &[(6, 1.0)]);
        near(&answer("I cannot say."), &[]);
        let without = json!({"choices": [{"message": {"content": "7"}}]}).to_string();
        let error = read(without.as_bytes(), &GRADES, true).unwrap_err().to_string();
        assert!(error.contains("logprobs = false"), "{error}");
        for (body, why) in [("{}", "no chat completion"), (r#"{"choices": []}"#, "no choice")] {
            assert!(format!("{:#}", read(body.as_bytes(), &GRADES, true).unwrap_err()).contains(why));
        }
    }
}

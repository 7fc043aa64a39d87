//! Requests to and responses of an OpenAI-compatible server. A parameter that this kind of server does not have is
//! refused by name, because the server would ignore it silently.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::address::Address;
use crate::engine::{
    Constraint, ConstraintKind, EngineError, FinishReason, GenerateRequest, SamplingParams, TextPrompt,
};

/// Kind of an upstream server. The kinds differ in the parameters that they accept beyond OpenAI's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    OpenAi,
    Vllm,
    Sglang,
    LlamaCpp,
    Instructd,
}

impl Kind {
    pub const NAMES: &str = "openai, vllm, sglang, llama.cpp, instructd";

    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "openai" => Some(Self::OpenAi),
            "vllm" => Some(Self::Vllm),
            "sglang" => Some(Self::Sglang),
            "llama.cpp" => Some(Self::LlamaCpp),
            "instructd" => Some(Self::Instructd),
            _ => None,
        }
    }

    /// Whether one call can request several samples.
    pub fn takes_n(self) -> bool {
        self != Self::LlamaCpp
    }

    /// This server's name of a parameter that OpenAI does not have.
    fn name_of(self, parameter: &'static str) -> Option<&'static str> {
        match (self, parameter) {
            (Self::OpenAi, _) | (Self::LlamaCpp, "min_tokens") => None,
            (Self::LlamaCpp, "repetition_penalty") => Some("repeat_penalty"),
            (_, parameter) => Some(parameter),
        }
    }
}

pub fn refuse(param: &'static str) -> EngineError {
    EngineError::BadRequest { param, message: format!("{param} is not known to the upstream server of this model") }
}

/// The address and the body for `n` samples from sample `first` on.
///
/// # Errors
/// `BadRequest` naming the parameter that cannot be passed on.
pub fn call(
    kind: Kind,
    model: &str,
    request: &GenerateRequest,
    prompt: &TextPrompt,
    first: usize,
    n: usize,
) -> Result<(Address, Value), EngineError> {
    if request.params.logprobs.is_some() || request.prompt_logprobs.is_some() {
        return Err(EngineError::BadRequest {
            param: "logprobs",
            message: "log-probs are not passed on from upstream servers".into(),
        });
    }
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    let (path, limited) = match prompt {
        TextPrompt::Raw(text) => {
            body.insert("prompt".into(), text.as_str().into());
            (Address::Api("completions"), true)
        }
        TextPrompt::Chat { messages, limited } => {
            body.insert("messages".into(), json!(messages));
            (Address::Api("chat/completions"), *limited)
        }
    };
    if limited {
        body.insert("max_tokens".into(), request.params.max_tokens.into());
    }
    if n > 1 {
        body.insert("n".into(), n.into());
    }
    sampling(kind, &request.params, &mut body)?;
    // Samples that are asked for one by one must not all be the same.
    let seed = request.params.seed.wrapping_add(first as u64);
    // The field is a signed integer of 64 bits there; no bit is lost.
    body.insert("seed".into(), (seed as i64).into());
    body.insert("stream".into(), true.into());
    body.insert("stream_options".into(), json!({"include_usage": true}));
    Ok((path, body.into()))
}

/// Only what differs from the default is sent: the fewer fields, the more servers understand.
pub fn sampling(kind: Kind, params: &SamplingParams, body: &mut Map<String, Value>) -> Result<(), EngineError> {
    let default = SamplingParams::default();
    body.insert("temperature".into(), number(params.warpers.temperature));
    if params.warpers.top_p != default.warpers.top_p {
        body.insert("top_p".into(), number(params.warpers.top_p));
    }
    if params.warpers.presence_penalty != default.warpers.presence_penalty {
        body.insert("presence_penalty".into(), number(params.warpers.presence_penalty));
    }
    if params.warpers.frequency_penalty != default.warpers.frequency_penalty {
        body.insert("frequency_penalty".into(), number(params.warpers.frequency_penalty));
    }
    if !params.warpers.logit_bias.is_empty() {
        let map: Map<_, _> = params.warpers.logit_bias.iter().map(|(id, b)| (id.to_string(), number(*b))).collect();
        body.insert("logit_bias".into(), map.into());
    }
    if !params.stop.is_empty() {
        body.insert("stop".into(), json!(params.stop));
    }
    if !params.stop_token_ids.is_empty() {
        return Err(refuse("stop_token_ids"));
    }
    if params.include_stop_str_in_output {
        return Err(refuse("include_stop_str_in_output"));
    }
    let own: [(&'static str, bool, Value); 5] = [
        ("top_k", params.warpers.top_k != default.warpers.top_k, params.warpers.top_k.into()),
        ("min_p", params.warpers.min_p != default.warpers.min_p, number(params.warpers.min_p)),
        (
            "repetition_penalty",
            params.warpers.repetition_penalty != default.warpers.repetition_penalty,
            number(params.warpers.repetition_penalty),
        ),
        ("ignore_eos", params.ignore_eos, true.into()),
        ("min_tokens", params.min_tokens > 0, params.min_tokens.into()),
    ];
    for (parameter, _, value) in own.into_iter().filter(|(_, given, _)| *given) {
        let name = kind.name_of(parameter).ok_or_else(|| refuse(parameter))?;
        body.insert(name.into(), value);
    }
    if let Some(constraint) = &params.constraint {
        let (name, value) = form(kind, constraint)?;
        body.insert(name.into(), value);
    }
    // llama.cpp cuts by top-k 40, top-p 0.95 and min-p 0.05 unless told otherwise.
    if kind == Kind::LlamaCpp {
        for (name, plain) in [("top_k", json!(0)), ("top_p", json!(1.0)), ("min_p", json!(0.0))] {
            body.entry(name).or_insert(plain);
        }
    }
    Ok(())
}

/// The parameter that requests the form from this kind of server.
pub fn form(kind: Kind, constraint: &Constraint) -> Result<(&'static str, Value), EngineError> {
    let ours = matches!(kind, Kind::Vllm | Kind::Instructd);
    Ok(match &constraint.kind {
        ConstraintKind::JsonObject => ("response_format", json!({"type": "json_object"})),
        ConstraintKind::JsonSchema(schema) => {
            let inner = json!({"name": "answer", "schema": schema, "strict": true});
            ("response_format", json!({"type": "json_schema", "json_schema": inner}))
        }
        ConstraintKind::Regex(regex) if ours => ("guided_regex", json!(regex)),
        ConstraintKind::Regex(regex) if kind == Kind::Sglang => ("regex", json!(regex)),
        ConstraintKind::Choice(choices) if ours => ("guided_choice", json!(choices)),
        ConstraintKind::Grammar(grammar) if ours => ("guided_grammar", json!(grammar)),
        ConstraintKind::Grammar(grammar) if kind == Kind::LlamaCpp => ("grammar", json!(grammar)),
        ConstraintKind::Regex(_) | ConstraintKind::Choice(_) | ConstraintKind::Grammar(_) => {
            return Err(refuse(constraint.field));
        }
    })
}

/// The shortest decimal of the f32: 0.7, not 0.699999988.
fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// One chunk of a streamed answer, of either route.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Chunk {
    pub choices: Vec<Choice>,
    pub usage: Option<Usage>,
    pub error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Choice {
    pub index: usize,
    text: Option<String>,
    delta: Option<Delta>,
    pub finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Delta {
    content: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
}

impl Choice {
    pub fn take_text(&mut self) -> String {
        let text = self.text.take();
        text.or_else(|| self.delta.as_mut().and_then(|d| d.content.take())).unwrap_or_default()
    }
}

pub fn finish(reason: &str) -> FinishReason {
    match reason {
        "stop" => FinishReason::Stop,
        "length" => FinishReason::Length,
        // content_filter, abort, …: the model did not end the text.
        _ => FinishReason::Abort,
    }
}

/// The error of a refused request: the parameter, if it is one of ours, and the server's message.
pub fn refusal(body: &[u8], fallback: &'static str) -> EngineError {
    const FIELDS: &[&str] = &[
        "prompt",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "stop",
        "seed",
        "n",
        "ignore_eos",
        "min_tokens",
    ];
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    // vLLM and SGLang have also answered with the error's fields at the top.
    let error = value.get("error").filter(|e| e.is_object()).unwrap_or(&value);
    let given = error["param"].as_str().unwrap_or_default();
    let param = FIELDS.iter().copied().find(|f| *f == given).unwrap_or(fallback);
    let message = format!("the upstream server says: {}", words(body));
    // OpenAI's name of the case, and llama.cpp's.
    let named = [&error["code"], &error["type"]].map(|name| name.as_str().unwrap_or_default());
    match named.iter().any(|name| matches!(*name, "context_length_exceeded" | "exceed_context_size_error")) {
        true => EngineError::TooLong { param, message },
        false => EngineError::BadRequest { param, message },
    }
}

/// The message of an error body, without control characters.
pub fn words(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = value.get("error").filter(|e| e.is_object()).unwrap_or(&value);
    let words = error["message"].as_str().or_else(|| value["error"].as_str()).unwrap_or("the request was refused");
    words.chars().filter(|c| !c.is_control()).take(400).collect()
}

/// A server's list of models.
#[derive(Debug, Deserialize)]
pub struct Listing {
    pub data: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
pub struct Listed {
    pub id: String,
    /// vLLM and SGLang.
    max_model_len: Option<usize>,
    /// llama.cpp.
    meta: Option<Value>,
    instructd: Option<Value>,
}

impl Listed {
    /// Length of the context in tokens, where the server reports it.
    pub fn max_context(&self) -> Option<usize> {
        let inside = |v: &Option<Value>, key: &str| v.as_ref().and_then(|v| v[key].as_u64()).map(|n| n as usize);
        // llama.cpp divides its context among slots: `n_ctx` is that of one, `n_ctx_train` that of the model.
        let found = self.max_model_len.or_else(|| inside(&self.meta, "n_ctx"));
        let found = found.or_else(|| inside(&self.meta, "n_ctx_train"));
        found.or_else(|| inside(&self.instructd, "max_context")).filter(|n| *n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Warpers;

    fn request(params: SamplingParams) -> GenerateRequest {
        let id = "r".to_owned();
        GenerateRequest {
            request_id: id,
            version: None,
            prompt_ids: vec![],
            n: 2,
            params,
            prompt_logprobs: None,
            prompt_from: 0,
            soft_prompt: None,
            background: false,
        }
    }

    fn body(kind: Kind, params: SamplingParams) -> Result<Value, EngineError> {
        call(kind, "m", &request(params), &TextPrompt::Raw("x".into()), 0, 1).map(|(_, body)| body)
    }

    #[test]
    fn every_parameter_is_passed_on_or_refused_by_name() {
        let d = SamplingParams::default;
        let warped = |warpers| SamplingParams { warpers, ..d() };
        let cases = [
            ("top_k", warped(Warpers { top_k: 3, ..Warpers::default() })),
            ("min_p", warped(Warpers { min_p: 0.1, ..Warpers::default() })),
            ("repetition_penalty", warped(Warpers { repetition_penalty: 1.3, ..Warpers::default() })),
            ("ignore_eos", SamplingParams { ignore_eos: true, ..d() }),
            ("min_tokens", SamplingParams { min_tokens: 2, ..d() }),
            ("logprobs", SamplingParams { logprobs: Some(0), ..d() }),
        ];
        for (name, params) in cases {
            for kind in [Kind::OpenAi, Kind::Vllm, Kind::Sglang, Kind::LlamaCpp, Kind::Instructd] {
                match body(kind, params.clone()) {
                    Ok(body) => assert!(body.get(kind.name_of(name).expect("named")).is_some(), "{kind:?} {name}"),
                    Err(EngineError::BadRequest { param, .. }) => {
                        assert_eq!(param, name);
                        let knows = !matches!((kind, name), (Kind::OpenAi, _) | (_, "logprobs" | "min_tokens"));
                        assert!(!knows, "{kind:?} {name}");
                    }
                    Err(e) => panic!("{e}"),
                }
            }
        }
        let all = SamplingParams {
            warpers: Warpers {
                temperature: 0.7,
                top_p: 0.9,
                presence_penalty: 0.5,
                frequency_penalty: -0.5,
                logit_bias: vec![(5, -100.0)],
                ..Warpers::default()
            },
            stop: vec!["END".into()],
            seed: u64::MAX,
            ..d()
        };
        let body = body(Kind::OpenAi, all).expect("OpenAI's own parameters");
        assert_eq!(
            body,
            json!({"model": "m", "prompt": "x", "max_tokens": 16, "temperature": 0.7, "top_p": 0.9,
                "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"5": -100.0}, "stop": ["END"],
                "seed": -1, "stream": true, "stream_options": {"include_usage": true}})
        );
    }

    #[test]
    fn llama_cpp_is_told_not_to_truncate() {
        let body = body(
            Kind::LlamaCpp,
            SamplingParams { warpers: Warpers { top_k: 7, ..Warpers::default() }, ..SamplingParams::default() },
        )
        .expect("fine");
        assert_eq!((&body["top_k"], &body["top_p"], &body["min_p"]), (&json!(7), &json!(1.0), &json!(0.0)));
    }

    #[test]
    fn refusals_keep_the_words_but_no_control_characters() {
        let body = br#"{"error": {"message": "too\u001b[31m long\n", "param": "max_tokens"}}"#;
        let EngineError::BadRequest { param, message } = refusal(body, "prompt") else { panic!() };
        assert_eq!((param, message.as_str()), ("max_tokens", "the upstream server says: too[31m long"));
        let EngineError::BadRequest { param, .. } = refusal(b"<html>", "messages") else { panic!() };
        for body in [
            r#"{"error": {"message": "m", "code": "context_length_exceeded"}}"#,
            r#"{"error": {"message": "m", "code": 400, "type": "exceed_context_size_error"}}"#,
        ] {
            assert!(
                matches!(refusal(body.as_bytes(), "prompt"), EngineError::TooLong { param: "prompt", .. }),
                "{body}"
            );
        }
        assert_eq!(param, "messages");
    }
}

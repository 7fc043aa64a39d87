//! Texts that must have a form, on models of random weights: whatever such a model would write, its answers have the
//! form that was asked for, or end at the limit of their length.

use serde_json::{Value, json};

use super::client::Server;
use crate::support::{byte_level, random_model, sentencepiece};

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const SPECIAL: [&str; 3] = ["<|im_end|>", "<|im_start|>", "<|tool|>"];

struct Real {
    server: Server,
    _model: tempfile::TempDir,
}

impl Real {
    async fn start(tokenizer: Value) -> Self {
        let model = random_model(&tokenizer, &json!({"chat_template": TEMPLATE}), 0);
        let server = Server::without_engine(|c| {
            c.model = model.path().display().to_string();
            c.limits.prompt_bytes = 1 << 20;
        })
        .await;
        server.services.set_engine(instructd::app::model::start(&server.services).await.unwrap());
        Self { server, _model: model }
    }

    /// Both kinds of vocabularies.
    async fn both() -> [Self; 2] {
        [Self::start(byte_level(&SPECIAL, &[])).await, Self::start(sentencepiece(&SPECIAL, &[])).await]
    }

    async fn chat(&self, extra: Value) -> Value {
        let mut body = json!({"messages": [{"role": "user", "content": "ab"}], "max_tokens": 400, "seed": 1});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        self.server.open_post("/v1/chat/completions", body).await.expect(200).json()
    }

    async fn complete(&self, extra: Value) -> Value {
        let mut body = json!({"prompt": "ab", "max_tokens": 400, "seed": 1});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        self.server.open_post("/v1/completions", body).await.expect(200).json()
    }
}

/// Numbers for choices; the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % sides
    }

    /// A schema whose values are all short.
    fn schema(&mut self, depth: usize) -> Value {
        match self.roll(if depth == 0 { 6 } else { 9 }) {
            0 => json!({"type": "boolean"}),
            1 => {
                let low = self.roll(2000) as i64 - 1000;
                json!({"type": "integer", "minimum": low, "maximum": low + self.roll(500) as i64})
            }
            2 => json!({"type": "string", "minLength": self.roll(3), "maxLength": 3 + self.roll(5)}),
            3 => json!({"enum": ["a\"b", 3, null, "中", -2.5]}),
            4 => json!({"type": "string", "pattern": "^[a-c]{2,4}-[0-9]$"}),
            5 => json!({"const": {"k": [1, "x"]}}),
            6 => json!({"type": "array", "items": self.schema(depth - 1), "minItems": self.roll(2), "maxItems": 3}),
            7 => json!({"anyOf": [self.schema(depth - 1), self.schema(depth - 1)]}),
            _ => {
                let names = ["a", "name with space", "é", "id"];
                let count = 1 + self.roll(names.len());
                let properties: serde_json::Map<String, Value> =
                    names[..count].iter().map(|n| ((*n).to_owned(), self.schema(depth - 1))).collect();
                let required: Vec<&str> = names[..count].iter().copied().filter(|_| self.roll(2) == 0).collect();
                json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
            }
        }
    }
}

/// Whether a value is what the schemas above accept.
fn valid(schema: &Value, value: &Value) -> bool {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|s| valid(s, value));
    }
    if let Some(list) = schema["enum"].as_array() {
        return list.contains(value);
    }
    if let Some(only) = schema.get("const") {
        return only == value;
    }
    let bound = |key: &str| schema[key].as_i64();
    match schema["type"].as_str().unwrap() {
        "boolean" => value.is_boolean(),
        "integer" => {
            let n = value.as_i64();
            n.is_some_and(|n| bound("minimum").unwrap() <= n && n <= bound("maximum").unwrap())
        }
        "string" => {
            let Some(text) = value.as_str() else { return false };
            let n = text.chars().count() as i64;
            let shaped = schema["pattern"].as_str().is_none_or(|p| regex::Regex::new(p).unwrap().is_match(text));
            shaped && bound("minLength").is_none_or(|m| n >= m) && bound("maxLength").is_none_or(|m| n <= m)
        }
        "array" => {
            let Some(items) = value.as_array() else { return false };
            let n = items.len() as i64;
            bound("minItems").unwrap() <= n
                && n <= bound("maxItems").unwrap()
                && items.iter().all(|item| valid(&schema["items"], item))
        }
        _ => {
            let Some(object) = value.as_object() else { return false };
            let properties = schema["properties"].as_object().unwrap();
            let required = schema["required"].as_array().unwrap();
            object.iter().all(|(k, v)| properties.get(k).is_some_and(|s| valid(s, v)))
                && required.iter().all(|k| object.contains_key(k.as_str().unwrap()))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_of_its_schema_or_cut_by_its_length() {
    for (which, real) in Real::both().await.iter().enumerate() {
        let mut dice = Dice(7 + which as u64);
        let (mut whole, mut cut) = (0, 0);
        for round in 0..60 {
            let schema = dice.schema(3);
            let format = json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}});
            let mut ask = json!({"response_format": format, "seed": round, "n": 2});
            // Greedy, plain and truncated draws, and answers that are too short.
            match round % 4 {
                0 => ask["temperature"] = json!(0),
                1 => ask["top_k"] = json!(3),
                2 => ask["max_tokens"] = json!(6),
                _ => ask["top_p"] = json!(0.8),
            }
            let answer = real.chat(ask).await;
            for choice in answer["choices"].as_array().unwrap() {
                let text = choice["message"]["content"].as_str().unwrap();
                match choice["finish_reason"].as_str().unwrap() {
                    "stop" => {
                        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
                        assert!(valid(&schema, &value), "{text} is not of {schema}");
                        whole += 1;
                    }
                    "length" => cut += 1,
                    other => panic!("{other}"),
                }
            }
        }
        assert!(whole > 60 && cut > 0, "{whole} whole, {cut} cut");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_name_of_a_field_has_its_effect() {
    let month = regex::Regex::new("^(19|20)[0-9]{2}-[01][0-9]$").unwrap();
    let angled = regex::Regex::new("^<[a-c]{1,3}>( <[a-c]{1,3}>)*$").unwrap();
    let assigned = regex::Regex::new("^[a-c]{2}=[0-9]{1,2}$").unwrap();
    for real in Real::both().await {
        let text = async |extra: Value| {
            let answer = real.complete(extra.clone()).await;
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], "stop", "{extra}: {choice}");
            choice["text"].as_str().unwrap().to_owned()
        };
        for seed in 0..6 {
            let chosen = text(json!({"guided_choice": ["yes", "no", "nope", "中é"], "seed": seed})).await;
            assert!(["yes", "no", "nope", "中é"].contains(&chosen.as_str()), "{chosen}");
            let chosen = text(json!({"structured_outputs": {"choice": ["a b", "a c"]}, "seed": seed})).await;
            assert!(["a b", "a c"].contains(&chosen.as_str()), "{chosen}");
            let shaped = text(json!({"guided_regex": "(19|20)[0-9]{2}-[01][0-9]", "seed": seed})).await;
            assert!(month.is_match(&shaped), "{shaped}");
            let grammar = "root ::= \"<\" [a-c]{1,3} \">\" (\" \" root)?";
            for field in ["grammar", "guided_grammar"] {
                let mut ask = json!({"seed": seed, "max_tokens": 60});
                ask[field] = json!(grammar);
                let answer = real.complete(ask).await;
                let shaped = answer["choices"][0]["text"].as_str().unwrap();
                let whole = angled.is_match(shaped);
                assert!(whole || answer["choices"][0]["finish_reason"] == "length", "{shaped}");
            }
            let lark =
                "start: NAME \"=\" %json {\"type\": \"integer\", \"minimum\": 0, \"maximum\": 99}\nNAME: /[a-c]{2}/";
            let shaped = text(json!({"grammar": lark, "seed": seed})).await;
            assert!(assigned.is_match(&shaped), "{shaped}");
            let schema = json!({"type": "integer", "minimum": 5, "maximum": 12});
            for ask in [
                json!({"guided_json": schema}),
                json!({"guided_json": schema.to_string()}),
                json!({"json_schema": schema}),
                json!({"structured_outputs": {"json": schema}}),
                json!({"response_format": {"type": "json_object", "schema": schema}}),
            ] {
                let mut ask = ask;
                ask["seed"] = json!(seed);
                let n: i64 = text(ask).await.parse().unwrap();
                assert!((5..=12).contains(&n));
            }
        }
        // A model that may write any object: objects, or the limit.
        let mut objects = 0;
        for seed in 0..20 {
            let answer = real.chat(json!({"response_format": {"type": "json_object"}, "seed": seed})).await;
            let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
            match answer["choices"][0]["finish_reason"].as_str().unwrap() {
                "stop" => {
                    // A number may be larger than any that is read here: it is JSON all the same.
                    serde_json::from_str::<serde::de::IgnoredAny>(text).unwrap_or_else(|e| panic!("{e}: {text}"));
                    assert!(text.starts_with('{'), "{text}");
                    objects += 1;
                }
                _ => assert!(text.starts_with('{')),
            }
        }
        assert!(objects > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_ends_and_biases_keep_the_form() {
    let [real, _] = Real::both().await;
    let schema = json!({"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2, "maxItems": 4});
    let whole = real.complete(json!({"guided_json": schema, "seed": 3})).await;
    let body = json!({"prompt": "ab", "max_tokens": 400, "seed": 3, "guided_json": schema, "stream": true});
    let events = real.server.open_post("/v1/completions", body).await.expect(200).events();
    let chunks = events.iter().filter_map(|e| serde_json::from_str::<Value>(e).ok());
    let text: String = chunks.filter_map(|c| c["choices"][0]["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(text, whole["choices"][0]["text"]);
    // Neither `ignore_eos` nor `min_tokens` nor a bias writes past the form, or another one.
    for extra in [
        json!({"ignore_eos": true}),
        json!({"min_tokens": 300}),
        json!({"logit_bias": {"0": 100, "80": 100, "3": 100}}),
        json!({"repetition_penalty": 5.0, "presence_penalty": 2.0}),
    ] {
        let mut ask = extra.clone();
        ask["guided_json"] = schema.clone();
        let answer = real.complete(ask).await;
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{extra}");
        let value: Value = serde_json::from_str(answer["choices"][0]["text"].as_str().unwrap()).unwrap();
        let items = value.as_array().unwrap();
        assert!((2..=4).contains(&items.len()) && items.iter().all(|i| i == "x" || i == "y"), "{extra} {value}");
    }
}

/// The log-probs that are returned and stored are the model's, not those of the allowed tokens among each other; and
/// the stored completion says that it was constrained.
#[tokio::test(flavor = "multi_thread")]
async fn logprobs_are_the_models_and_constrained_texts_are_marked() {
    let [real, _] = Real::both().await;
    let ask = json!({"guided_choice": ["abc 10", "no"], "logprobs": 2, "seed": 5, "prompt": [70, 71]});
    let answer = real.complete(ask).await;
    let choice = &answer["choices"][0];
    let given = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    assert!(given.iter().any(|p| p.as_f64().unwrap() < -1.0), "a random model does not like it: {given:?}");
    let ids = stored(&real, &answer).await;
    assert_eq!(ids.sampling["constrained"], "choice");
    let mut all = vec![70u32, 71];
    all.extend(&ids.token_ids);
    let echoed = real.complete(json!({"prompt": all, "echo": true, "max_tokens": 0, "logprobs": 0})).await;
    let scored = echoed["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!(scored.len(), given.len() + 2);
    for (a, b) in given.iter().zip(&scored[2..]) {
        assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-4, "{a} {b}");
    }
    let free = real.complete(json!({"seed": 5, "max_tokens": 8})).await;
    assert_eq!(stored(&real, &free).await.sampling.get("constrained"), None);
}

async fn stored(real: &Real, answer: &Value) -> instructd::domain::Completion {
    let id = answer["instructd"]["completion_ids"][0].as_str().unwrap();
    real.server.services.store.completions().get(&id.into()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_forms_are_refused_by_their_field() {
    let [real, _] = Real::both().await;
    let long = format!("[{}]{{2}}", "ab".repeat(40_000));
    let deep = "(".repeat(5000) + &")".repeat(5000);
    let many: Value = (0..4000).map(|i| json!({"const": format!("c{i}")})).collect();
    for (body, param) in [
        (json!({"guided_regex": "("}), "guided_regex"),
        (json!({"guided_regex": "(?=a)b"}), "guided_regex"),
        (json!({"guided_regex": long}), "guided_regex"),
        (json!({"guided_regex": deep}), "guided_regex"),
        (json!({"guided_json": {"type": "text"}}), "guided_json"),
        (json!({"guided_json": {"not": {"type": "string"}}}), "guided_json"),
        (json!({"guided_json": {"$ref": "https://example.org/schema"}}), "guided_json"),
        (json!({"guided_json": {"$ref": "#/$defs/none"}}), "guided_json"),
        (json!({"guided_json": {"type": "string", "format": "no such"}}), "guided_json"),
        (json!({"guided_json": false}), "guided_json"),
        (json!({"guided_json": "no schema"}), "guided_json"),
        (json!({"guided_json": 3}), "guided_json"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"grammar": "root ::= missing"}), "grammar"),
        (json!({"grammar": "start: missing"}), "grammar"),
        (json!({"grammar": ""}), "grammar"),
        (json!({"grammar": "root ::= \"a\"", "guided_regex": "a"}), "grammar"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": many}}}),
            "response_format.json_schema.schema",
        ),
    ] {
        for (path, prompt) in [
            ("/v1/completions", json!({"prompt": "x"})),
            ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "x"}]})),
        ] {
            let mut ask = prompt;
            ask["max_tokens"] = json!(5);
            ask.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
            let shown: String = body.to_string().chars().take(80).collect();
            let answer = real.server.open_post(path, ask).await;
            assert_eq!(answer.status, 400, "{shown}: {}", answer.text);
            assert_eq!(answer.param().as_deref(), Some(param), "{shown}: {}", answer.text);
            assert!(answer.text.len() < 1500 && !answer.text.contains("<state>"), "{}", answer.text);
        }
    }
    // It goes on serving.
    real.complete(json!({"max_tokens": 3})).await;
}

//! Every route, for every way in: keys by scope, sessions by what opened them, and nobody. Also: what a used-up key may
//! still do, and that every route that computes charges.

use std::collections::BTreeMap;
use std::path::Path;

use http::Method;
use instructd::domain::{ApiKeyId, ComparisonSet, ModelKind, Role, SetId};
use instructd::http::access::Access;
use instructd::http::routes;
use serde_json::{Value, json};

use super::client::{ADMIN_KEY, Answer, Server, version};
use crate::store::fixture as stored;
use crate::support::eventually::{LONG, eventually};
use crate::support::fixture;

fn cookie(answer: &Answer) -> String {
    answer.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
}

/// What a caller may do by the rules, apart from routes for anybody.
struct Rights {
    role: Option<Role>,
    feedback: bool,
    inference: bool,
}

struct Caller {
    name: String,
    header: Option<(&'static str, String)>,
    rights: Rights,
}

async fn session(server: &Server, body: Value) -> String {
    cookie(&server.open_post("/session", body).await.expect(200))
}

async fn callers(server: &Server) -> Vec<Caller> {
    let mut all = Vec::new();
    let mut add = |name: &str, header, role, feedback, inference| {
        all.push(Caller { name: name.to_owned(), header, rights: Rights { role, feedback, inference } });
    };
    let bearer = |key: &str| Some(("authorization", format!("Bearer {key}")));
    add("nobody", None, None, false, false);
    add("wrong key", bearer("sk-wrong"), None, false, false);
    add("wrong cookie", Some(("cookie", "instructd_session=nope".into())), None, false, false);
    let admin = Some(Role::Admin);
    add("configured key", bearer(ADMIN_KEY), admin, true, true);
    let opened = session(server, json!({"key": ADMIN_KEY})).await;
    add("session of the configured key", Some(("cookie", opened)), admin, true, true);
    for scopes in [&["admin"][..], &["feedback"], &["inference"], &["feedback", "inference"]] {
        let key = server.key(scopes, None).await;
        let has = |scope| scopes.contains(&scope);
        let (role, feedback) = (has("admin").then_some(Role::Admin), has("admin") || has("feedback"));
        let inference = has("admin") || has("inference");
        let name = scopes.join("+");
        add(&format!("key {name}"), bearer(&key), role.or(Some(Role::Labeler)), feedback, inference);
        if feedback {
            let opened = session(server, json!({"key": key})).await;
            let role = role.or(Some(Role::Labeler));
            add(&format!("session of key {name}"), Some(("cookie", opened)), role, feedback, inference);
        } else {
            server.open_post("/session", json!({"key": key})).await.expect(403);
        }
    }
    for role in [Role::Labeler, Role::Reviewer, Role::Admin] {
        let invite = server.post("/admin/invites", json!({"role": role})).await.expect(201).json();
        let joined = server
            .open_post("/session", json!({"invite": invite["token"], "name": format!("{role} by invite")}))
            .await
            .expect(200);
        let own = joined.json()["link"]["token"].clone();
        add(&format!("{role} by invite"), Some(("cookie", cookie(&joined))), Some(role), true, true);
        let opened = session(server, json!({"link": own})).await;
        add(&format!("{role} by link"), Some(("cookie", opened)), Some(role), true, true);
    }
    all
}

#[tokio::test]
async fn every_route_for_every_kind_of_caller() {
    for require_key in [false, true] {
        let server = Server::with(|c| c.require_inference_key = require_key, Default::default()).await;
        let callers = callers(&server).await;
        assert_eq!(callers.len(), 18);
        for route in routes::table(&server.services.config.limits) {
            // Signing out would end the sessions that the next routes need.
            if route.path == "/session" && route.method == Method::DELETE {
                continue;
            }
            // The setting is for these alone; the others are asked once.
            if !require_key && !matches!(route.access, Access::Inference | Access::Public) {
                continue;
            }
            let path = route.path.replace("{id}", "nope").replace("{*path}", "nope");
            for Caller { name, header, rights } in &callers {
                let may = match route.access {
                    Access::Public => true,
                    Access::Inference => !require_key || rights.inference,
                    Access::Keyed => rights.inference,
                    Access::Feedback => rights.feedback,
                    Access::Review => rights.feedback && rights.role >= Some(Role::Reviewer),
                    Access::Admin => rights.role == Some(Role::Admin),
                };
                let headers: Vec<(&str, &str)> = header.iter().map(|(n, v)| (*n, v.as_str())).collect();
                let body = (route.method == Method::POST).then(|| json!({"nonsense": true}));
                let answer = server.call(route.method.as_str(), &path, &headers, body).await;
                let refused = matches!(answer.status.as_u16(), 401 | 403);
                // `GET /session` says 401 to nobody: that is its answer.
                let own = route.path == "/session" && route.method == Method::GET && rights.role.is_none();
                let at = format!("{} {} by {name} (require_key {require_key})", route.method, route.path);
                assert_eq!(!refused || own, may, "{at}: {} {}", answer.status, answer.text);
                if refused {
                    let unknown = rights.role.is_none();
                    assert_eq!(answer.status.as_u16(), if unknown { 401 } else { 403 }, "{at}: {}", answer.text);
                }
                assert!(answer.status.as_u16() < 500, "{at}: {}", answer.text);
            }
        }
    }
}

/// A server on which every route that computes can answer: a policy, an encoder and a reward model.
async fn complete_server() -> Server {
    let server = Server::serving("llama-tied-tiny").await;
    let mut encoder = version("bert", ModelKind::Encoder, None);
    encoder.artifact_uri = fixture("bert-tiny").display().to_string();
    server.services.store.models().put(encoder).await.unwrap();
    server.post("/admin/models/bert/promote", json!({})).await.expect(200);
    server
}

/// A request to each route that computes, which is answered.
fn requests() -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("/v1/completions", json!({"prompt": [1, 2, 3], "max_tokens": 2})),
        ("/v1/choices", json!({"prompt": [1, 2, 3], "choices": ["t4", "t5"]})),
        ("/v1/embeddings", json!({"input": [[1, 2, 3]]})),
        ("/v1/fill-mask", json!({"tokens": [1, 2, 3], "positions": [1]})),
        ("/v1/attention", json!({"text": "t1 t2 t3"})),
        ("/v1/rerank", json!({"query": "t1 t2", "documents": ["t3"]})),
        ("/v1/score", json!({"text_1": "t1 t2", "text_2": "t3"})),
    ])
}

/// The routes whose models the fixtures lack run on the mock instead.
fn mock_requests() -> BTreeMap<&'static str, Value> {
    let chat = json!([{"role": "user", "content": "hello"}]);
    BTreeMap::from([
        ("/v1/chat/completions", json!({"messages": chat, "max_tokens": 2})),
        ("/v1/responses", json!({"input": "hello", "max_output_tokens": 16})),
        ("/v1/messages", json!({"messages": chat, "max_tokens": 2})),
        ("/v1/rewards", json!({"prompt": "hello", "completions": ["a long answer"]})),
        // Long enough that the two answers differ: equal ones make no set.
        ("/v1/comparison-sets", json!({"messages": chat, "n": 2, "sampling": {"max_tokens": 16}})),
        ("/v1/label/ask", json!({"messages": chat, "n": 2, "sampling": {"max_tokens": 16}})),
        // The set of the caller is put in for each of them.
        ("/v1/label/continue", json!({})),
        (
            "/admin/sets/draw",
            json!({"policy": "random", "count": 1, "n": 2, "max_tokens": 2,
            "prompts": {"with_sets": true}}),
        ),
    ])
}

/// The next message behind a question that the key's labeler has asked and judged.
async fn judged_question(server: &Server, key: &ApiKeyId) -> Value {
    let store = &server.services.store;
    let labeler = store.api_keys().live(key).await.unwrap().unwrap().labeler_id.unwrap();
    let set = stored::stored_set(store, &format!("asked with {key}"), &["a", "b"], 1).await;
    let set = ComparisonSet { id: SetId::new(), selection_policy: "ask".into(), ..set };
    store.sets().put(set.clone()).await.unwrap();
    store.sets().note_maker(&set.id, &labeler).await.unwrap();
    let judgment = stored::judgment(&set, &labeler, None, key.as_str());
    store.judgments().submit(stored::submit(judgment, None, 1)).await.unwrap();
    json!({"set_id": set.id, "completion_id": set.completion_ids[0], "content": "and then?", "n": 2,
           "sampling": {"max_tokens": 16}})
}

async fn mock_server() -> Server {
    let server = Server::start().await;
    let judge = version("judge", ModelKind::Reward, None);
    server.services.store.models().put(judge.clone()).await.unwrap();
    server.services.store.models().activate(&judge.id, 1).await.unwrap();
    server.post("/v1/prompts", json!({"messages": [{"role": "user", "content": "stored"}]})).await.expect(201);
    server
}

/// Every route of the table that computes charges what it read and drew to the caller's key, by key and by a session of
/// it, and refuses a key that has none left; the others refuse nobody for it.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_that_computes_charges_and_stops() {
    let (real, mock) = (complete_server().await, mock_server().await);
    let mut left: BTreeMap<_, _> = requests().into_iter().map(|(path, body)| (path, (&real, body))).collect();
    left.extend(mock_requests().into_iter().map(|(path, body)| (path, (&mock, body))));
    for route in routes::table(&mock.services.config.limits).into_iter().filter(|r| r.computes) {
        let (server, body) = left.remove(route.path).unwrap_or_else(|| panic!("no request for {}", route.path));
        let scopes: &[&str] = match route.access {
            Access::Inference => &["inference", "feedback"],
            Access::Admin => &["admin"],
            _ => &["feedback"],
        };
        for by_session in [false, true] {
            let made = json!({"name": "k", "scopes": scopes, "daily_tokens": 1});
            let made = server.post("/admin/keys", made).await.expect(201).json();
            let (key, id) = (made["key"].as_str().unwrap(), ApiKeyId::from(made["id"].as_str().unwrap()));
            let header = if by_session {
                ("cookie", session(server, json!({"key": key})).await)
            } else {
                ("authorization", format!("Bearer {key}"))
            };
            let headers = [(header.0, header.1.as_str())];
            let body =
                if route.path == "/v1/label/continue" { judged_question(server, &id).await } else { body.clone() };
            let call = async || server.call(route.method.as_str(), route.path, &headers, Some(body.clone())).await;
            let mut answer = call().await;
            // The draw of the key may still run when its session asks for another.
            for _ in 0..100 {
                if answer.status != 409 {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                answer = call().await;
            }
            assert!(answer.status.is_success(), "{} (session: {by_session}): {}", route.path, answer.text);
            let day = server.services.now().div_euclid(24 * 3_600_000_000);
            // Streams and draws charge when they are done.
            let charged = format!("a charge for {} (session: {by_session})", route.path);
            eventually(LONG, &charged, async || {
                Some(server.services.store.api_keys().tokens(&id, day).await.unwrap()).filter(|used| *used > 0)
            })
            .await;
            let refused = call().await.expect(429);
            assert_eq!(refused.json()["error"]["code"], "quota_exceeded", "{}", route.path);
            let free = server.call("GET", "/v1/models", &headers, None).await;
            assert_eq!(free.status, 200, "nothing is computed for it");
        }
    }
    assert!(left.is_empty(), "no longer in the table: {:?}", left.keys());
}

/// Handlers that reach the engine belong to routes that say so: a new one cannot be forgotten.
#[test]
fn routes_that_compute_are_marked() {
    let config = instructd::config::Config::default();
    let named = |path: &str| routes::table(&config.limits).into_iter().any(|r| r.path == path && r.computes);
    for route in routes::table(&config.limits).iter().filter(|r| r.access == Access::Inference) {
        let reads_only = ["/tokenize", "/detokenize", "/v1/messages/count_tokens"].contains(&route.path);
        let tells_only = route.method != Method::POST || reads_only;
        assert_eq!(named(route.path), !tells_only, "{}", route.path);
    }
    // Outside the inference routes: whoever calls what draws or scores.
    let (mut directories, mut files) = (vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/service")], Vec::new());
    while let Some(directory) = directories.pop() {
        for path in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { &mut directories } else { &mut files }.push(path);
        }
    }
    let drawing: Vec<String> = files
        .into_iter()
        .filter(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            ["complete::start(", "reward_scores(", ".embed(&", ".fill(&", ".attention(&", ".generate("]
                .iter()
                .any(|call| text.contains(call))
        })
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut drawing = drawing;
    drawing.sort();
    let known = ["attention.rs", "choices.rs", "complete.rs", "encoders.rs", "publish.rs", "sets.rs"];
    assert_eq!(drawing, known, "a new caller of the engine has to charge: see service/meter.rs");
}

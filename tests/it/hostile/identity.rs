//! Keys, sessions, uploads and streams after their access has ended, against the real process.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{key, place, user};
use crate::crash::server::{ADMIN_KEY, Server};

/// What a stream or an upload may go on for after its access has ended: one look a second, on a busy machine.
const ENDED: Duration = Duration::from_secs(5);

async fn status(server: &Server, method: &str, path: &str, key: &str, body: Option<&Value>) -> u16 {
    server.send(method, path, key, body).await.unwrap().status
}

/// Signs in with a key; the cookie, or the status of the refusal.
async fn session(server: &Server, key: &str) -> Result<String, u16> {
    let answer = server.http.post(format!("{}/session", server.url)).json(&json!({"key": key})).send().await.unwrap();
    match answer.headers().get("set-cookie") {
        Some(cookie) => Ok(cookie.to_str().unwrap().split(';').next().unwrap().to_owned()),
        None => Err(answer.status().as_u16()),
    }
}

async fn by_cookie(server: &Server, method: &str, path: &str, cookie: &str, body: Option<&Value>) -> u16 {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = server.http.request(method, format!("{}{path}", server.url)).header("cookie", cookie);
    if let Some(body) = body {
        request = request.json(body);
    }
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_generated_admin_key_ends_when_it_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path()).with("INSTRUCTD_ADMIN_KEY", "");
    let mut server = Server::start(&place).await;
    let printed = server.printed();
    let generated = printed.split("shown this once: ").nth(1).expect("the key is printed").lines().next().unwrap();
    let listed = server.send("GET", "/admin/keys", generated, None).await.unwrap().expect(200);
    let id = listed["data"][0]["id"].as_str().unwrap().to_owned();
    let opened = session(&server, generated).await.expect("it opens a session");
    // Another administrator, and a key that only has the name of the generated one.
    let make = async |body: Value| {
        let made = server.send("POST", "/admin/keys", generated, Some(&body)).await.unwrap().expect(201);
        made["key"].as_str().unwrap().to_owned()
    };
    let second = make(json!({"name": "second", "scopes": ["admin"]})).await;
    let decoy = make(json!({"name": "generated at the first start", "scopes": ["inference"]})).await;
    assert_eq!(status(&server, "DELETE", &format!("/admin/keys/{id}"), &second, None).await, 204);
    for restarted in [false, true] {
        if restarted {
            server.kill();
            server = Server::start(&place).await;
        }
        assert_eq!(status(&server, "GET", "/admin/keys", generated, None).await, 401, "restarted: {restarted}");
        assert_eq!(session(&server, generated).await, Err(403), "restarted: {restarted}");
        assert_eq!(by_cookie(&server, "GET", "/admin/keys", &opened, None).await, 401, "restarted: {restarted}");
        assert_eq!(status(&server, "GET", "/admin/keys", &decoy, None).await, 403, "a name makes no administrator");
        assert_eq!(status(&server, "GET", "/admin/keys", &second, None).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_out_administrator_keeps_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&place(dir.path())).await;
    let ada = server.call("POST", "/admin/labelers", Some(json!({"name": "Ada", "role": "admin"}))).await.expect(201);
    let ada = ada["id"].as_str().unwrap();
    let (own, _) = key(&server, &["admin"], json!({"labeler_id": ada})).await;
    let opened = session(&server, &own).await.expect("a session");
    assert_eq!(status(&server, "GET", "/admin/keys", &own, None).await, 200);
    let mark = json!({"name": "of Ada", "scopes": ["inference"]});
    assert_eq!(status(&server, "POST", "/admin/keys", &own, Some(&mark)).await, 201);
    let path = format!("/admin/labelers/{ada}/active");
    server.call("POST", &path, Some(json!({"active": false}))).await.expect(204);
    assert_eq!(status(&server, "GET", "/admin/keys", &own, None).await, 401);
    assert_eq!(by_cookie(&server, "GET", "/admin/keys", &opened, None).await, 401);
    assert_eq!(session(&server, &own).await, Err(403));
    let trail = server.call("GET", "/admin/audit", None).await.expect(200);
    let by = |row: &&Value| row["actor"] == ada && row["credential"].as_str().is_some_and(|c| !c.is_empty());
    assert!(trail["data"].as_array().unwrap().iter().any(|row| by(&row)), "the trail names her and her key: {trail}");
}

/// A day's tokens hold for the sessions that a key opens, and a key's scopes too.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_the_tokens_and_scopes_of_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path()).with("INSTRUCTD_REQUIRE_INFERENCE_KEY", "true");
    let server = Server::start(&place).await;
    let body = json!({"model": "llama-tied-tiny", "prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": true});
    let (few, _) = key(&server, &["feedback", "inference"], json!({"daily_tokens": 5})).await;
    let opened = session(&server, &few).await.expect("a session");
    let asked = async || by_cookie(&server, "POST", "/v1/completions", &opened, Some(&body)).await;
    assert_eq!((asked().await, asked().await), (200, 429));
    assert_eq!(status(&server, "POST", "/v1/completions", &few, Some(&body)).await, 429);
    let (ranks, _) = key(&server, &["feedback"], json!({})).await;
    let opened = session(&server, &ranks).await.expect("a session");
    assert_eq!(by_cookie(&server, "POST", "/v1/completions", &opened, Some(&body)).await, 403);
}

/// How access ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Revoked,
    LockedOut,
    Demoted,
}

async fn end(server: &Server, how: End, key_id: &str, person: &str) {
    match how {
        End::Revoked => server.call("DELETE", &format!("/admin/keys/{key_id}"), None).await.expect(204),
        End::LockedOut => {
            let path = format!("/admin/labelers/{person}/active");
            server.call("POST", &path, Some(json!({"active": false}))).await.expect(204)
        }
        End::Demoted => server
            .call("POST", &format!("/admin/labelers/{person}"), Some(json!({"role": "labeler"})))
            .await
            .expect(200),
    };
}

/// An upload that is still coming in when its key is revoked, or its person locked out or demoted, is cut, and nothing
/// of it is stored.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_cut_when_its_access_ends() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&place(dir.path())).await;
    let address = server.url.strip_prefix("http://").unwrap();
    for how in [End::Revoked, End::LockedOut, End::Demoted] {
        let made = json!({"name": format!("{how:?}"), "role": "admin"});
        let person = server.call("POST", "/admin/labelers", Some(made)).await.expect(201);
        let person = person["id"].as_str().unwrap().to_owned();
        let (own, id) = key(&server, &["admin"], json!({"labeler_id": person})).await;
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let head = format!(
            "POST /admin/import?format=prompts HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {own}\r\n\
             content-length: 10000000\r\n\r\n"
        );
        writer.write_all(head.as_bytes()).await.unwrap();
        let line = format!("{}\n", json!({"messages": user(&format!("uploaded when {how:?}"))}));
        let sends = tokio::spawn(async move {
            while writer.write_all(line.as_bytes()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        end(&server, how, &id, &person).await;
        let began = Instant::now();
        let mut answer = vec![0; 4096];
        let n = tokio::time::timeout(ENDED, reader.read(&mut answer)).await.expect("cut in time").unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("access_ended"), "{how:?}: {answer}");
        tokio::time::timeout(ENDED, sends).await.expect("the connection is closed").unwrap();
        assert!(began.elapsed() < ENDED);
        let stored = server.call("GET", "/v1/prompts", None).await.expect(200).to_string();
        assert!(!stored.contains("uploaded when"), "{how:?}: {stored}");
    }
}

/// Every kind of stream that the table has, for a key and for a session, ends with the access to it.
#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_their_access() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path()).with("INSTRUCTD_JOBS__ENABLED", "false");
    let server = Server::start(&place).await;
    let shown = json!({"messages": [{"role": "user", "content": "t1"}], "completion": "t2"});
    server.call("POST", "/v1/demonstrations", Some(shown)).await.expect(201);
    let job = server.call("POST", "/admin/jobs", Some(json!({"kind": "sft", "args": {}}))).await.expect(201);
    let path = format!("/admin/jobs/{}/events", job["id"].as_str().unwrap());
    for how in [End::Revoked, End::LockedOut, End::Demoted] {
        for with_session in [false, true] {
            let made = json!({"name": format!("{how:?} {with_session}"), "role": "admin"});
            let person = server.call("POST", "/admin/labelers", Some(made)).await.expect(201);
            let person = person["id"].as_str().unwrap().to_owned();
            let (own, id) = key(&server, &["admin"], json!({"labeler_id": person})).await;
            let request = server.http.get(format!("{}{path}", server.url));
            let request = match with_session {
                true => request.header("cookie", session(&server, &own).await.expect("a session")),
                false => request.bearer_auth(&own),
            };
            let mut events = request.send().await.unwrap();
            assert_eq!(events.status(), 200);
            end(&server, how, &id, &person).await;
            let mut text = String::new();
            let rest = async {
                while let Ok(Some(chunk)) = events.chunk().await {
                    text.push_str(&String::from_utf8_lossy(&chunk));
                }
            };
            let ended = tokio::time::timeout(ENDED, rest).await;
            assert!(ended.is_ok(), "{how:?} (session: {with_session}): the stream goes on");
            assert!(text.contains("access_ended"), "{how:?} (session: {with_session}): {text}");
        }
    }
}

/// Guesses cost time for the configured key only, and keep nobody out.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_guesses_does_not_lock_others_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&place(dir.path())).await;
    let (own, _) = key(&server, &["admin"], json!({})).await;
    let opened = session(&server, ADMIN_KEY).await.expect("a session");
    let mut slowed = 0;
    for i in 0..300 {
        let guess = format!("sk-guess-{i}");
        let path = if i % 2 == 0 { "/session" } else { "/admin/keys" };
        slowed += usize::from(status(&server, "GET", path, &guess, None).await == 429);
    }
    assert!(slowed > 200, "{slowed} of 300 guesses were slowed");
    assert_eq!(status(&server, "GET", "/session", ADMIN_KEY, None).await, 429, "429 tells a guesser nothing");
    assert_eq!(status(&server, "GET", "/admin/keys", &own, None).await, 200);
    assert_eq!(by_cookie(&server, "GET", "/admin/keys", &opened, None).await, 200);
    assert!(session(&server, &own).await.is_ok());
}

/// What a server says or refuses at its start when others can reach it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_others_reach_says_what_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let listen = |key: &'static str, required: bool| {
        let mut place = place(dir.path()).with("INSTRUCTD_ADMIN_KEY", key);
        if required {
            place = place.with("INSTRUCTD_REQUIRE_INFERENCE_KEY", "true");
        }
        let mut command = place.command("serve");
        command.arg("--listen").arg("0.0.0.0:0").arg("--model").arg(&place.model);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let mut child = listen("short", false);
    let mut ended = None;
    for _ in 0..200 {
        ended = child.try_wait().unwrap();
        if ended.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let _ = child.kill();
    let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert_eq!(ended.and_then(|e| e.code()), Some(1), "{said}");
    assert!(said.contains("admin_key") && !said.contains("short\""), "{said}");
    for (required, warned) in [(false, true), (true, false)] {
        let mut child = listen("a-key-that-is-long-enough", required);
        tokio::time::sleep(Duration::from_secs(3)).await;
        child.kill().unwrap();
        let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        assert_eq!(said.contains("require_inference_key"), warned, "{said}");
    }
}

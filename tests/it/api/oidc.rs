//! Sign-in by an OpenID Connect provider, against a stand-in with real keys.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use instructd::config::OidcConfig;
use serde_json::{Value, json};

use super::client::{ADMIN_KEY, Answer, Server};
use super::fake_provider::{CLIENT, Key, Provider, SECRET};

struct World {
    server: Server,
    provider: Provider,
}

/// A browser's cookies between the two addresses of a sign-in.
struct Attempt {
    cookie: String,
    /// Address that the provider sends the browser to.
    callback: String,
}

async fn world(key: Key, change: impl FnOnce(&mut OidcConfig)) -> World {
    let provider = Provider::start(key).await;
    let mut oidc = OidcConfig {
        issuer: Some(provider.url.clone()),
        client_id: Some(CLIENT.to_owned()),
        client_secret: Some(SECRET.to_owned()),
        public_url: Some("https://here".to_owned()),
        name: Some("Team".to_owned()),
        ..OidcConfig::default()
    };
    change(&mut oidc);
    let with = |c: &mut instructd::config::Config| {
        c.auth.oidc = oidc;
        c.auth.roles = [("ops", "admin"), ("qa", "reviewer")].map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    };
    World { server: Server::with(with, Default::default()).await, provider }
}

fn location(answer: &Answer) -> &str {
    answer.headers["location"].to_str().unwrap()
}

/// The value of a cookie that an answer sets.
fn cookie(answer: &Answer, name: &str) -> Option<String> {
    let set = answer.headers.get_all("set-cookie").iter().map(|v| v.to_str().unwrap());
    let pair = set.filter_map(|line| line.split(';').next()).find(|pair| pair.starts_with(&format!("{name}=")))?;
    (!pair.ends_with('=')).then(|| pair.to_owned())
}

impl World {
    async fn begin(&self, page: &str) -> Attempt {
        let begun = self.server.call("GET", &format!("/session/oidc?page={page}"), &[], None).await.expect(303);
        let cookie = cookie(&begun, "instructd_oidc").unwrap();
        let callback = format!("/session/oidc/callback?{}", self.provider.sign_in(location(&begun)));
        Attempt { cookie, callback }
    }

    async fn end(&self, attempt: &Attempt) -> Answer {
        // Browsers send such navigations from the provider's site.
        let headers = [("cookie", attempt.cookie.as_str()), ("sec-fetch-site", "cross-site")];
        self.server.call("GET", &attempt.callback, &headers, None).await.expect(303)
    }

    /// The code of the problem of a sign-in.
    async fn problem(&self) -> String {
        let attempt = self.begin("label").await;
        let ended = self.end(&attempt).await;
        assert_eq!(cookie(&ended, "instructd_session"), None);
        location(&ended).strip_prefix("/label#problem=").unwrap_or_else(|| panic!("{}", location(&ended))).to_owned()
    }

    /// Signs in; returns the session's cookie and the person.
    async fn signed_in(&self) -> (String, Value) {
        let ended = self.end(&self.begin("label").await).await;
        assert_eq!(location(&ended), "/label");
        let session = cookie(&ended, "instructd_session").unwrap();
        let who = self.server.call("GET", "/session", &[("cookie", &session)], None).await.expect(200).json();
        (session, who["labeler"].clone())
    }
}

#[tokio::test]
async fn people_sign_in_with_every_kind_of_key() {
    for key in [Key::rsa("one"), Key::elliptic("one"), Key::edwards("one")] {
        let world = world(key, |_| {}).await;
        let options = world.server.call("GET", "/session/options", &[], None).await.expect(200).json();
        assert_eq!(options, json!({"oidc": {"name": "Team", "path": "/session/oidc"}}));
        let (session, person) = world.signed_in().await;
        assert_eq!((&person["name"], &person["role"]), (&json!("Ada Lovelace"), &json!("labeler")));
        let (_, again) = world.signed_in().await;
        assert_eq!(again["id"], person["id"], "the same person");
        assert_eq!(world.provider.state.lock().unwrap().key_requests, 1, "keys are kept");
        let trail = world.server.get("/admin/audit?action=join").await.expect(200).json();
        assert_eq!((trail["data"].as_array().unwrap().len(), &trail["data"][0]["credential"]), (1, &json!("oidc")));
        // Signing out ends the session here.
        world.server.call("DELETE", "/session", &[("cookie", &session)], None).await.expect(204);
        world.server.call("GET", "/session", &[("cookie", &session)], None).await.expect(401);
    }
}

#[tokio::test]
async fn the_cookies_and_addresses_of_a_sign_in_are_narrow() {
    let world = world(Key::elliptic("one"), |_| {}).await;
    let begun = world.server.call("GET", "/session/oidc?page=admin", &[], None).await.expect(303);
    let set = begun.headers["set-cookie"].to_str().unwrap();
    for part in ["; Path=/session/oidc;", "; HttpOnly;", "; SameSite=Lax;", "; Secure"] {
        assert!(set.contains(part), "{set}");
    }
    let secret = cookie(&begun, "instructd_oidc").unwrap();
    let secret = secret.split(['=', '.']).nth(1).unwrap();
    assert_eq!(secret.len(), 64);
    assert!(!location(&begun).contains(secret), "the cookie's secret is sent to nobody");
    assert!(location(&begun).contains("redirect_uri=https%3A%2F%2Fhere%2Fsession%2Foidc%2Fcallback"));
    // Other pages cannot be named, so a sign-in leads nowhere else.
    for page in ["https://evil.example", "//evil.example", "label/../x", ""] {
        world.server.call("GET", &format!("/session/oidc?page={page}"), &[], None).await.expect(400);
    }
    let mut attempt = world.begin("admin").await;
    attempt.cookie = attempt.cookie.replace(".admin", ".//evil.example");
    let ended = world.end(&attempt).await;
    assert_eq!(location(&ended), "/label");
    let session = ended.headers.get_all("set-cookie").iter().find(|v| v.to_str().unwrap().contains("_session"));
    assert!(session.unwrap().to_str().unwrap().contains("SameSite=Strict"));
}

#[tokio::test]
async fn an_answer_counts_once_and_in_the_browser_that_began() {
    let world = world(Key::elliptic("one"), |_| {}).await;
    let attempt = world.begin("chat").await;
    let ended = world.end(&attempt).await;
    assert_eq!(location(&ended), "/chat");
    assert_eq!(cookie(&ended, "instructd_oidc"), None, "the attempt ends");
    // The browser no longer has the cookie; and with it the code is used.
    let without = world.server.call("GET", &attempt.callback, &[], None).await.expect(303);
    assert_eq!(location(&without), "/label#problem=oidc_state");
    assert_eq!(location(&world.end(&attempt).await), "/chat#problem=oidc_state");
    // An answer to somebody else's attempt: the cookie is of another browser.
    let (mine, theirs) = (world.begin("label").await, world.begin("label").await);
    let mixed = Attempt { cookie: mine.cookie, callback: theirs.callback };
    let ended = world.end(&mixed).await;
    assert_eq!((location(&ended), cookie(&ended, "instructd_session")), ("/label#problem=oidc_state", None));
}

#[tokio::test]
async fn tokens_for_others_are_refused() {
    let world = world(Key::rsa("one"), |_| {}).await;
    let now = instructd::service::system_clock()() / 1_000_000;
    for (why, claims) in [
        ("nonce", json!({"nonce": "another"})),
        ("no nonce", json!({"nonce": null})),
        ("audience", json!({"aud": "another"})),
        ("no audience", json!({"aud": null})),
        ("several audiences without azp", json!({"aud": [CLIENT, "another"]})),
        ("azp", json!({"aud": [CLIENT, "another"], "azp": "another"})),
        ("issuer", json!({"iss": "https://evil.example"})),
        ("expired", json!({"exp": now - 61})),
        ("no exp", json!({"exp": null})),
        ("nbf", json!({"nbf": now + 120})),
        ("iat", json!({"iat": now + 120})),
        ("no subject", json!({"sub": null})),
        ("empty subject", json!({"sub": ""})),
        ("long subject", json!({"sub": "x".repeat(256)})),
    ] {
        world.provider.set(|p| p.claims = claims);
        assert_eq!(world.problem().await, "oidc_answer", "{why}");
    }
    // Clocks may differ by a minute, and several audiences name the client.
    world.provider.set(|p| p.claims = json!({"exp": now - 30, "nbf": now + 30, "aud": ["x", CLIENT], "azp": CLIENT}));
    world.signed_in().await;
}

#[tokio::test]
async fn signatures_of_others_are_refused_and_new_keys_are_fetched() {
    let world = world(Key::rsa("one"), |_| {}).await;
    world.signed_in().await;
    // A key that the provider does not publish: under a new id, and under the known one.
    for id in ["two", "one"] {
        world.provider.set(|p| p.signer = Key::rsa(id));
        assert_eq!(world.problem().await, "oidc_answer", "{id}");
    }
    // The provider has published it by now.
    let asked = world.provider.state.lock().unwrap().key_requests;
    let new = Key::elliptic("three");
    world.provider.set(|p| (p.signer, p.keys) = (new.clone(), vec![new]));
    world.signed_in().await;
    assert_eq!(world.provider.state.lock().unwrap().key_requests, asked + 1);
    world.signed_in().await;
    assert_eq!(world.provider.state.lock().unwrap().key_requests, asked + 1);

    // Without a signature, and signed with what everybody knows.
    let now = instructd::service::system_clock()() / 1_000_000;
    let attempt = world.begin("label").await;
    let nonce = "the attempt's nonce is not needed: the signature is checked first";
    let claims = json!({"iss": world.provider.url, "aud": CLIENT, "sub": "1", "exp": now + 60, "nonce": nonce});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let none = format!("{}.{}.", part(&json!({"alg": "none", "typ": "JWT"})), part(&claims));
    let hmac = jsonwebtoken::encode(
        &jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256),
        &claims,
        &jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes()).unwrap(),
    );
    for token in [none, hmac.unwrap(), "a.b.c".to_owned(), String::new()] {
        world.provider.set(|p| p.token = Some(token.clone()));
        assert_eq!(world.problem().await, "oidc_answer", "{token}");
    }
    world.provider.set(|p| p.token = None);
    assert_eq!(location(&world.end(&attempt).await), "/label");
}

#[tokio::test]
async fn the_claim_gives_the_role_at_every_sign_in() {
    let world = world(Key::elliptic("one"), |c| c.role_claim = Some("realm_access.roles".to_owned())).await;
    let role = async |roles: Value| {
        world.provider.set(|p| p.claims = json!({"realm_access": {"roles": roles}}));
        world.signed_in().await
    };
    let (admin, person) = role(json!(["other", "qa", "ops"])).await;
    assert_eq!(person["role"], "admin");
    world.server.call("GET", "/admin/labelers", &[("cookie", &admin)], None).await.expect(200);
    assert_eq!(role(json!(["qa"])).await.1["role"], "reviewer");
    // The former session has no more rights than the person.
    world.server.call("GET", "/admin/labelers", &[("cookie", &admin)], None).await.expect(403);
    let (labeler, again) = role(json!([])).await;
    assert_eq!((&again["role"], &again["id"]), (&json!("labeler"), &person["id"]));
    world.server.call("GET", "/v1/label/me", &[("cookie", &labeler)], None).await.expect(200);
}

#[tokio::test]
async fn who_is_locked_out_or_erased_does_not_come_back_as_the_same() {
    let world = world(Key::elliptic("one"), |_| {}).await;
    let (session, person) = world.signed_in().await;
    let id = person["id"].as_str().unwrap();
    world.server.post(&format!("/admin/labelers/{id}/active"), json!({"active": false})).await.expect(204);
    world.server.call("GET", "/session", &[("cookie", &session)], None).await.expect(401);
    assert_eq!(world.problem().await, "person_locked_out");
    world.server.post(&format!("/admin/labelers/{id}/active"), json!({"active": true})).await.expect(204);
    assert_eq!(world.signed_in().await.1["id"], id);
    let data = world.server.get(&format!("/admin/labelers/{id}/data")).await.expect(200).json();
    assert_eq!(data["identities"][0][0], format!("oidc:{}", world.provider.url));
    let erase = json!({"judgments": "anonymise"});
    world.server.post(&format!("/admin/labelers/{id}/erase"), erase).await.expect(200);
    assert_ne!(world.signed_in().await.1["id"], id);
    // A key still signs in beside the provider.
    world.server.open_post("/session", json!({"key": ADMIN_KEY})).await.expect(200);
}

#[tokio::test]
async fn failures_of_the_provider_are_told_in_our_words() {
    let world = world(Key::elliptic("one"), |_| {}).await;
    world.provider.set(|p| p.fault = Some(StatusCode::INTERNAL_SERVER_ERROR));
    let refused = world.server.call("GET", "/session/oidc?page=admin", &[], None).await.expect(303);
    assert_eq!(location(&refused), "/admin#problem=oidc_unavailable");
    world.provider.set(|p| p.fault = None);
    let attempt = world.begin("label").await;
    world.provider.set(|p| p.fault = Some(StatusCode::BAD_GATEWAY));
    let ended = world.end(&attempt).await;
    assert_eq!(location(&ended), "/label#problem=oidc_unavailable");
    assert!(ended.text.is_empty());
    world.provider.set(|p| p.fault = None);
    // The person declines, or the provider says anything at all.
    for (said, problem) in [
        ("error=access_denied&error_description=%3Cb%3Eno%3C/b%3E", "oidc_denied"),
        ("error=%3Cscript%3E", "oidc_denied"),
        ("error=temporarily_unavailable", "oidc_unavailable"),
        ("iss=https%3A%2F%2Fevil.example&code=x", "oidc_answer"),
        ("", "oidc_denied"),
    ] {
        let mut attempt = world.begin("label").await;
        let state = attempt.callback.split('&').find(|part| part.starts_with("state=")).unwrap().to_owned();
        attempt.callback = format!("/session/oidc/callback?{state}&{said}");
        assert_eq!(location(&world.end(&attempt).await), format!("/label#problem={problem}"), "{said}");
    }
    // A wrong secret, and a provider under another name.
    let wrong = self::world(Key::elliptic("one"), |c| c.client_secret = Some("wrong".to_owned())).await;
    assert_eq!(wrong.problem().await, "oidc_answer");
    let other = self::world(Key::elliptic("one"), |_| {}).await;
    other.provider.set(|p| p.issuer = "https://evil.example".to_owned());
    let refused = other.server.call("GET", "/session/oidc", &[], None).await.expect(303);
    assert_eq!(location(&refused), "/label#problem=oidc_answer");
    // Nobody listens there.
    let down = Server::with(
        |c| {
            c.auth.oidc.issuer = Some("http://127.0.0.1:9".to_owned());
            c.auth.oidc.client_id = Some("x".to_owned());
            c.auth.oidc.public_url = Some("https://here".to_owned());
        },
        Default::default(),
    )
    .await;
    let refused = down.call("GET", "/session/oidc", &[], None).await.expect(303);
    assert_eq!(location(&refused), "/label#problem=oidc_unavailable");
    // And without a provider there is no such way.
    let plain = Server::start().await;
    plain.call("GET", "/session/oidc", &[], None).await.expect(404);
    assert_eq!(plain.get("/session/options").await.expect(200).json(), json!({"oidc": null}));
    let callback = plain.call("GET", "/session/oidc/callback?code=x&state=y", &[], None).await.expect(303);
    assert_eq!(location(&callback), "/label#problem=oidc_state");
}

#[tokio::test]
async fn the_secret_may_be_in_a_file_and_concurrent_sign_ins_make_one_person() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{SECRET}\n")).unwrap();
    let path = file.path().to_owned();
    let world = world(Key::elliptic("one"), |c| {
        c.client_secret = None;
        c.client_secret_file = Some(path);
    })
    .await;
    let world = Arc::new(world);
    let all = (0..4).map(|_| {
        let world = world.clone();
        tokio::spawn(async move { world.signed_in().await.1["id"].clone() })
    });
    let ids = futures::future::join_all(all).await;
    let first = ids[0].as_ref().unwrap();
    assert!(ids.iter().all(|id| id.as_ref().unwrap() == first), "{ids:?}");
}

//! The keys of the labeling page that people have changed.

use serde_json::{Value, json};

use super::client::Server;

#[tokio::test]
async fn keys_are_a_persons_own_and_checked() {
    let server = Server::start().await;
    let person = async |name: &str| {
        let invite = server.post("/admin/invites", json!({})).await.expect(201).json();
        let body = json!({"invite": invite["token"], "name": name});
        let joined = server.open_post("/session", body).await.expect(200);
        joined.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
    };
    let (ada, bob) = (person("Ada").await, person("Bob").await);
    let get = async |who: &str| {
        server.call("GET", "/v1/label/keys", &[("cookie", who)], None).await.expect(200).json()["keys"].clone()
    };
    let put = async |who: &str, keys: Value| {
        server.call("POST", "/v1/label/keys", &[("cookie", who)], Some(json!({"keys": keys}))).await
    };
    assert_eq!(get(&ada).await, Value::Null);
    put(&ada, json!({"tie": "t", "skip": "?"})).await.expect(200);
    assert_eq!(get(&ada).await, json!({"skip": "?", "tie": "t"}));
    assert_eq!(get(&bob).await, Value::Null);
    put(&bob, json!({})).await.expect(200);
    assert_eq!(get(&bob).await, json!({}), "the page's own keys, by choice");
    let many: Value =
        (0..65).map(|i| (format!("a{}", "x".repeat(i % 20)), json!("a"))).collect::<serde_json::Map<_, _>>().into();
    for wrong in [
        json!({"tie": "tt"}),
        json!({"tie": ""}),
        json!({"tie": "T"}),
        json!({"tie": "1"}),
        json!({"tie": "é"}),
        json!({"tie": "t", "skip": "t"}),
        json!({"": "t"}),
        json!({"Tie": "t"}),
        json!({"x".repeat(33): "t"}),
        json!({"tie": 3}),
        json!(["t"]),
        many,
    ] {
        put(&ada, wrong.clone()).await.expect(400);
    }
    assert_eq!(get(&ada).await, json!({"skip": "?", "tie": "t"}), "what is refused changes nothing");
    server.call("GET", "/v1/label/keys", &[], None).await.expect(401);
}

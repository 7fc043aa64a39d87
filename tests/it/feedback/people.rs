//! Roles, invites, erasure and the audit trail over HTTP.

use serde_json::{Value, json};

use crate::api::client::Server;

#[tokio::test]
async fn roles_change_at_once_and_invites_can_be_revoked() {
    let server = Server::start().await;
    let invite = server.post("/admin/invites", json!({"role": "reviewer"})).await.expect(201).json();
    let login = server.open_post("/session", json!({"invite": invite["token"], "name": "Rui"})).await.expect(200);
    let cookie = login.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let id = login.json()["labeler"]["id"].as_str().unwrap().to_owned();
    let figures = async || server.call("GET", "/admin/api/quality", &[("cookie", &cookie)], None).await.status.as_u16();
    assert_eq!(figures().await, 200);
    let changed = server.post(&format!("/admin/labelers/{id}"), json!({"role": "labeler"})).await.expect(200).json();
    assert_eq!(changed["role"], "labeler");
    assert_eq!(figures().await, 403, "the open session sinks with the role");
    server.post("/admin/labelers/admin", json!({"role": "labeler"})).await.expect(409);
    server.post("/admin/labelers/nobody", json!({"role": "labeler"})).await.expect(404);

    let invite = server.post("/admin/invites", json!({})).await.expect(201).json();
    let path = format!("/admin/invites/{}", invite["invite"]["id"].as_str().unwrap());
    let headers = [crate::api::client::admin()];
    server.call("DELETE", &path, &headers, None).await.expect(204);
    server.open_post("/session", json!({"invite": invite["token"], "name": "Eve"})).await.expect(403);
}

#[tokio::test]
async fn a_person_gets_their_data_and_is_forgotten() {
    let server = Server::start().await;
    let invite = server.post("/admin/invites", json!({"note": "for Ada"})).await.expect(201).json();
    let login =
        server.open_post("/session", json!({"invite": invite["token"], "name": "Ada Person"})).await.expect(200);
    let cookie = login.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let id = login.json()["labeler"]["id"].as_str().unwrap().to_owned();
    let ada = [("cookie", cookie.as_str())];
    let set = json!({"messages": [{"role": "user", "content": "q"}], "completions": ["x", "y"]});
    let set = server.post("/v1/comparison-sets", set).await.expect(201).json();
    let turn = server.call("GET", "/v1/label/next", &ada, None).await.expect(200).json();
    let items: Vec<Value> = turn["completions"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(i, c)| json!({"completion_id": c["id"], "tier": i}))
        .collect();
    let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "idempotency_key": "a",
                      "rationale": "Ada says so!", "ideal_answer": "Ada's answer"});
    let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
    server.call("POST", &path, &ada, Some(body)).await.expect(200);
    let thumb = json!({"completion_id": set["completions"][0]["id"], "kind": "thumb", "value": "up"});
    server.call("POST", "/v1/feedback", &ada, Some(thumb)).await.expect(201);

    let data = server.get(&format!("/admin/labelers/{id}/data")).await.expect(200).json();
    assert_eq!(data["labeler"]["name"], "Ada Person");
    assert_eq!(data["judgments"][0]["rationale"], "Ada says so!");
    assert_eq!(
        (&data["demonstrations"][0][1], &data["invites"][0]["note"]),
        (&json!("Ada's answer"), &json!("for Ada"))
    );
    assert_eq!((data["feedback_events"].as_array().unwrap().len(), data["sessions"].as_array().unwrap().len()), (1, 1));
    assert!(!data.to_string().contains("hash\":\"sk"), "no secrets");

    // What a job froze holds their words; so does what others wrote beside it.
    let job = server.services.config.data_dir.join("jobs/j");
    std::fs::create_dir_all(&job).unwrap();
    let export = async |format: &str| server.get(&format!("/admin/export?format={format}")).await.expect(200).text;
    let other = r#"{"prompt":"p","completion":"somebody else's"}"#;
    std::fs::write(job.join("demonstrations.jsonl"), format!("{}{other}\n", export("demonstrations").await)).unwrap();
    // A job's lines carry no author.
    let mut ranked: Value = serde_json::from_str(&export("comparisons").await).unwrap();
    assert_eq!(ranked.as_object_mut().unwrap().remove("labeler"), Some(json!(id)));
    let ranked = format!("{ranked}\n");
    let twice = format!("{ranked}{ranked}");
    std::fs::write(job.join("comparisons.jsonl"), &twice).unwrap();

    let path = format!("/admin/labelers/{id}/erase");
    assert_eq!(
        server.post(&path, json!({"judgments": "burn"})).await.expect(400).param().as_deref(),
        Some("judgments")
    );
    let erased = server.post(&path, json!({"judgments": "remove"})).await.expect(200).json();
    assert_eq!(
        (&erased["judgments"], &erased["demonstrations"], &erased["feedback_events"]),
        (&json!(1), &json!(1), &json!(1))
    );
    let frozen = std::fs::read_to_string(job.join("demonstrations.jsonl")).unwrap();
    assert_eq!(frozen, format!("{other}\n"), "their words are out of the job's files");
    let frozen = std::fs::read_to_string(job.join("comparisons.jsonl")).unwrap();
    assert_eq!(frozen, ranked, "one ranking was theirs; another person's equal one stays");
    assert_eq!(erased["job_lines"], 2);
    assert!(erased["not_reached"].to_string().contains("backups"), "{erased}");
    // Neither the database file nor its log holds the words.
    for file in std::fs::read_dir(&server.services.config.data_dir).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(12).any(|w| w == b"Ada says so!" || w == b"Ada's answer");
            assert!(!found, "{} still has it", path.display());
        }
    }
    server.call("GET", "/v1/label/next", &ada, None).await.expect(401);
    for path in ["/admin/labelers", "/v1/judgments", "/admin/invites", "/admin/export?format=demonstrations"] {
        let text = server.get(path).await.expect(200).text;
        assert!(!text.contains("Ada"), "{path}: {text}");
    }
    let audit = server.get("/admin/audit?action=erase").await.expect(200).json();
    assert_eq!((&audit["data"][0]["target"], &audit["data"][0]["actor"]), (&json!(id), &json!("admin")));
    assert_eq!(audit["data"][0]["detail"]["erased"]["judgments"], 1);
    assert!(!server.get("/admin/audit?limit=500").await.expect(200).text.contains("Ada"));
    server.post("/admin/labelers/admin/erase", json!({"judgments": "remove"})).await.expect(409);
}

#[tokio::test]
async fn the_audit_trail_pages() {
    let server = Server::start().await;
    for _ in 0..5 {
        server.post("/admin/invites", json!({})).await.expect(201);
    }
    let first = server.get("/admin/audit?action=invite&limit=2").await.expect(200).json();
    assert_eq!(first["data"].as_array().unwrap().len(), 2);
    let rest = server.get(&format!("/admin/audit?action=invite&before={}", first["before"])).await.expect(200).json();
    assert_eq!(rest["data"].as_array().unwrap().len(), 3);
    assert_eq!(server.get("/admin/audit?actor=nobody").await.expect(200).json()["data"], json!([]));
    server.get("/admin/audit?colour=red").await.expect(400);
}

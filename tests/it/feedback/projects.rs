//! Labeling projects over HTTP: who may change them, whose sets people get, and what is kept apart.

use serde_json::{Value, json};

use super::access_rules::{Person, judge_path, tiers};
use crate::api::client::{Server, admin};
use crate::support::eventually::{LONG, eventually};

async fn project(server: &Server, name: &str) -> String {
    let made = server.post("/admin/projects", json!({"name": name})).await.expect(201).json();
    made["id"].as_str().unwrap().to_owned()
}

async fn set_in(server: &Server, project: Option<&str>, question: &str, texts: &[&str]) -> Value {
    let body = json!({"messages": [{"role": "user", "content": question}], "completions": texts, "overlap": 2,
                      "project": project});
    server.post("/v1/comparison-sets", body).await.expect(201).json()
}

async fn join(server: &Server, project: &str, person: &Person<'_>, daily_quota: Option<i64>) -> String {
    let me = person.get("/v1/label/me").await.expect(200).json();
    let labeler = me["labeler_id"].as_str().unwrap().to_owned();
    let body = json!({"labeler_id": labeler, "daily_quota": daily_quota});
    server.post(&format!("/admin/projects/{project}/members"), body).await.expect(200);
    labeler
}

fn names(list: &Value) -> Vec<&str> {
    list["data"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn projects_are_made_renamed_and_archived_by_administrators() {
    let server = Server::start().await;
    let ada = Person::new(&server, "ada").await;
    assert_eq!(names(&server.get("/admin/projects").await.expect(200).json()), ["default"]);
    assert_eq!(names(&ada.get("/v1/projects").await.expect(200).json()), ["default"]);
    ada.post("/admin/projects", json!({"name": "mine"})).await.expect(403);
    let id = project(&server, "safety").await;
    server.post("/admin/projects", json!({"name": "safety"})).await.expect(409);
    server.post("/admin/projects", json!({"name": " "})).await.expect(400);
    let path = format!("/admin/projects/{id}");
    let renamed = server.post(&path, json!({"name": "harm"})).await.expect(200).json();
    assert_eq!((&renamed["name"], &renamed["archived"]), (&json!("harm"), &Value::Null));
    server.post("/admin/projects/default", json!({"archived": true})).await.expect(409);
    server.post("/admin/projects/nowhere", json!({"name": "x"})).await.expect(404);

    let labeler = join(&server, &id, &ada, Some(4)).await;
    let members = server.get(&format!("{path}/members")).await.expect(200).json();
    assert_eq!((&members["data"][0]["labeler_id"], &members["data"][0]["daily_quota"]), (&json!(labeler), &json!(4)));
    let negative = json!({"labeler_id": labeler, "daily_quota": -1});
    let refused = server.post(&format!("{path}/members"), negative).await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("daily_quota"));
    server.post(&format!("{path}/members"), json!({"labeler_id": "nobody"})).await.expect(404);
    assert_eq!(names(&ada.get("/v1/projects").await.expect(200).json()), ["harm"]);

    server.post(&path, json!({"archived": true})).await.expect(200);
    assert_eq!(names(&ada.get("/v1/projects").await.expect(200).json()), [""; 0]);
    assert_eq!(ada.next("").await.status, 204);
    ada.get("/v1/label/me").await.expect(200);
    let body = json!({"messages": [{"role": "user", "content": "q"}], "project": id});
    server.post("/v1/prompts", body).await.expect(409);
    server.post(&path, json!({"archived": false})).await.expect(200);
    server.call("DELETE", &format!("{path}/members/{labeler}"), &[], None).await.expect(401);
    for status in [204, 404] {
        server.call("DELETE", &format!("{path}/members/{labeler}"), &[admin()], None).await.expect(status);
    }
    assert_eq!(names(&ada.get("/v1/projects").await.expect(200).json()), ["default"]);
}

#[tokio::test]
async fn people_get_the_sets_guidelines_and_rubric_of_their_project() {
    let server = Server::start().await;
    let id = project(&server, "safety").await;
    let first = set_in(&server, None, "same question", &["x", "y"]).await;
    let ours = set_in(&server, Some("safety"), "same question", &["x", "y"]).await;
    assert_ne!(first["prompt_id"], ours["prompt_id"], "the same text in two projects is two prompts");
    let flag = |key: &str| json!({"key": key, "label": {"en": key}, "kind": "flag"});
    let put = async |key: &str, project: &str| {
        let body = json!({"definition": {"name": key, "dimensions": [flag(key)], "rationale": "off"},
                          "activate": true, "project": project});
        server.post("/admin/rubrics", body).await.expect(201).json()["version"].clone()
    };
    let (of_first, own) = (put("kind", "default").await, put("harmful", &id).await);
    let text = json!({"lang": "en", "text": "Refuse harm.", "project": id});
    let guide = server.post("/admin/guidelines", text).await.expect(200).json();

    let (ada, bob) = (Person::new(&server, "ada").await, Person::new(&server, "bob").await);
    join(&server, &id, &ada, None).await;
    let turn = ada.next("").await.expect(200).json();
    assert_eq!((&turn["set_id"], &turn["project_id"]), (&ours["id"], &json!(id)));
    assert_eq!((&turn["rubric"]["version"], &turn["guideline_version"]), (&own, &guide["version"]));
    let shown = ada.get(&format!("/v1/guidelines?project={id}")).await.expect(200).json();
    assert_eq!(shown["version"], guide["version"]);
    assert_eq!(ada.get("/v1/rubric?project=safety").await.expect(200).json()["rubric"]["version"], own);
    let harmful = json!([{"completion_id": turn["completions"][0]["id"], "dimension": "harmful", "value": true}]);
    let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": tiers(&turn, &["x", "y"]),
                      "idempotency_key": "k", "rubric_version": own, "ratings": harmful});
    let stored = ada.post(&judge_path(&turn), body).await.expect(200).json();
    assert_eq!(stored["judgment"]["rubric_version"], own);
    assert_eq!(ada.next("").await.status, 204, "nothing else is in this project");

    // A set of a project is refused to those who do not label in it.
    let first_id = first["id"].as_str().unwrap();
    ada.next(&format!("?set_id={first_id}")).await.expect(403);
    ada.next("?project=default").await.expect(403);
    ada.next("?project=nowhere").await.expect(404);
    bob.next("?project=safety").await.expect(403);
    let turn = bob.next("").await.expect(200).json();
    assert_eq!((&turn["set_id"], &turn["rubric"]["version"]), (&first["id"], &of_first));
    // An administrator labels in every project, by its name or its id, and gets a named set from its own.
    let turn = server.get("/v1/label/next?project=safety").await.expect(200).json();
    assert_eq!(turn["set_id"], ours["id"]);
    let turn = server.get(&format!("/v1/label/next?set_id={first_id}&project={id}")).await.expect(200).json();
    assert_eq!((&turn["project_id"], &turn["rubric"]["version"]), (&json!("default"), &of_first));
}

#[tokio::test]
async fn a_quota_in_a_project_counts_its_own_judgments() {
    let server = Server::start().await;
    let ids = [project(&server, "one").await, project(&server, "two").await];
    let ada = Person::new(&server, "ada").await;
    for id in &ids {
        join(&server, id, &ada, Some(1)).await;
        for question in ["p", "q"] {
            set_in(&server, Some(id), question, &["x", "y"]).await;
        }
    }
    for id in &ids {
        let query = format!("?project={id}");
        let me = ada.get(&format!("/v1/label/me{query}")).await.expect(200).json();
        assert_eq!((&me["quota"], &me["quota_left"], &me["queue_open"]), (&json!(1), &json!(1), &json!(1)));
        let turn = ada.next(&query).await.expect(200).json();
        assert_eq!((&turn["project_id"], &turn["queue"]["open"]), (&json!(id), &json!(1)));
        ada.judge(&turn, &["x", "y"]).await.expect(200);
        let none = ada.next(&query).await.expect(204);
        assert_eq!(none.headers["x-queue"], "quota");
    }
    let me = ada.get(&format!("/v1/label/me?project={}", ids[0])).await.expect(200).json();
    assert_eq!((&me["quota_left"], &me["done_today"]), (&json!(0), &json!(2)));
    // Rankings by API count as well.
    let ranking = |project: &str| {
        json!({"messages": [{"role": "user", "content": "r"}], "project": project,
               "completions": [{"text": "x", "tier": 0}, {"text": "y", "tier": 1}]})
    };
    ada.post("/v1/comparisons", ranking(&ids[1])).await.expect(409);
    ada.post("/v1/comparisons", ranking("default")).await.expect(403);
}

#[tokio::test]
async fn imports_exports_and_filters_keep_projects_apart() {
    let server = Server::start().await;
    let id = project(&server, "safety").await;
    let line = json!({"prompt": "What?", "completions": [{"text": "x", "tier": 0}, {"text": "y", "tier": 1}]});
    for query in ["", "&project=safety"] {
        let path = format!("/admin/import?format=comparisons{query}");
        let report = server.raw("POST", &path, "application/x-ndjson", line.to_string()).await.expect(200).json();
        assert_eq!((&report["imported"], &report["skipped"]), (&json!(1), &json!(0)), "{report}");
        let again = server.raw("POST", &path, "application/x-ndjson", line.to_string()).await.expect(200).json();
        assert_eq!(again["skipped"], 1, "{again}");
    }
    let lines = async |query: &str| {
        let file = server.get(&format!("/admin/export?format=comparisons{query}")).await.expect(200);
        file.text.lines().count()
    };
    assert_eq!((lines("").await, lines("&project=safety").await, lines("&project=default").await), (2, 1, 1));
    server.get("/admin/export?format=comparisons&project=nowhere").await.expect(404);
    let listed = server.get(&format!("/admin/sets?project={id}")).await.expect(200).json();
    assert_eq!((&listed["total"], listed["data"].as_array().map(Vec::len)), (&json!(1), Some(1)));
    let version = server.post("/admin/datasets", json!({"filter": {"project": id}})).await.expect(201).json();
    assert_eq!(version["n_sets"], 1);
    let unknown = server.post("/admin/datasets", json!({"filter": {"project": "nowhere"}})).await.expect(400);
    assert_eq!(unknown.param().as_deref(), Some("filter.project"));
}

#[tokio::test]
async fn figures_and_draws_are_of_one_project() {
    let server = Server::start().await;
    let id = project(&server, "safety").await;
    let people = [Person::new(&server, "ada").await, Person::new(&server, "bob").await];
    for person in &people {
        join(&server, "default", person, None).await;
        join(&server, &id, person, None).await;
    }
    // People agree on the first project's set and disagree on the other's.
    for (project, orders) in [("default", [["x", "y"], ["x", "y"]]), (id.as_str(), [["x", "y"], ["y", "x"]])] {
        set_in(&server, Some(project), "q", &["x", "y"]).await;
        for (person, order) in people.iter().zip(orders) {
            let turn = person.next(&format!("?project={project}")).await.expect(200).json();
            person.judge(&turn, &order).await.expect(200);
        }
    }
    let agreement = async |query: &str| {
        let report = server.get(&format!("/admin/api/quality{query}")).await.expect(200).json();
        (report["agreement"]["pairwise"]["value"].clone(), report["judgments"].clone())
    };
    assert_eq!(agreement("?project=default").await, (json!(1.0), json!(2)));
    assert_eq!(agreement("?project=safety").await, (json!(0.0), json!(2)));
    assert_eq!(agreement("").await, (json!(0.5), json!(4)));
    server.get("/admin/api/quality?project=nowhere").await.expect(404);
    let sets = async |query: &str| {
        server.get(&format!("/admin/api/quality/consensus{query}")).await.expect(200).json()["total"].clone()
    };
    assert_eq!((sets("").await, sets("?project=safety").await), (json!(2), json!(1)));
    let listed = server.get(&format!("/admin/api/judgments?project={id}")).await.expect(200).json();
    assert_eq!(listed["total"], 2);
    let flow = server.get("/admin/api/throughput?days=1&project=safety").await.expect(200).json();
    assert_eq!(flow["days"][0]["judgments"], 2);
    let overview = server.get("/admin/api/overview?project=safety").await.expect(200).json();
    assert_eq!((&overview["project"]["counts"]["judgments"], &overview["counts"]["judgments"]), (&json!(2), &json!(4)));
    assert_eq!(overview["project"]["name"], "safety");
    let alone = server.get("/admin/api/overview").await.expect(200).json();
    assert_eq!(alone.get("project"), None);
    server.get("/admin/api/overview?project=nowhere").await.expect(404);

    // The disputed set is of the other project: a draw of the first finds nothing to ask again.
    for (project, made) in [("default", 0), (id.as_str(), 1)] {
        let body = json!({"policy": "disagreement", "count": 5, "prompts": {"project": project}});
        let draw = server.post("/admin/sets/draw", body).await.expect(202).json();
        let path = format!("/admin/sets/draws/{}", draw["id"].as_str().unwrap());
        let done = eventually(LONG, "the draw ends", async || {
            let draw = server.get(&path).await.expect(200).json();
            (draw["state"] != "running").then_some(draw)
        });
        let done = done.await;
        assert_eq!((&done["state"], &done["made"]), (&json!("done"), &json!(made)), "{done}");
    }
}

#[tokio::test]
async fn lines_of_files_name_their_project() {
    let server = Server::start().await;
    let id = project(&server, "safety").await;
    for project in [None, Some(id.as_str())] {
        let ranking = json!({"messages": [{"role": "user", "content": "q"}], "project": project,
                             "completions": [{"text": "x", "tier": 0}, {"text": "y", "tier": 1}]});
        server.post("/v1/comparisons", ranking).await.expect(201);
        let body = json!({"messages": [{"role": "user", "content": "d"}], "completion": "e", "project": project});
        server.post("/v1/demonstrations", body).await.expect(201);
    }
    let exported = async |format: &str| server.get(&format!("/admin/export?format={format}")).await.expect(200).text;
    let projects = |text: &str| -> Vec<Value> {
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["project"].clone()).collect()
    };
    let (rankings, written) = (exported("comparisons").await, exported("demonstrations").await);
    assert_eq!(projects(&rankings), [Value::Null, json!("safety")]);
    assert_eq!(projects(&written), [Value::Null, json!("safety")]);

    let other = Server::start().await;
    let import = async |query: &str, text: &str| {
        other.raw("POST", &format!("/admin/import?{query}"), "application/x-ndjson", text.to_owned()).await
    };
    let report = import("format=comparisons", &rankings).await.expect(200).json();
    assert_eq!((&report["imported"], &report["failed"]), (&json!(1), &json!(1)), "{report}");
    assert!(report["errors"][0]["message"].as_str().unwrap().contains("\"safety\" is not known"), "{report}");
    project(&other, "safety").await;
    let report = import("format=comparisons", &rankings).await.expect(200).json();
    assert_eq!((&report["imported"], &report["skipped"]), (&json!(1), &json!(1)), "{report}");
    import("format=demonstrations", &written).await.expect(200);
    let back = |text: String| {
        let mut found = projects(&text);
        found.sort_by_key(|name| name.as_str().map(str::to_owned));
        found
    };
    let again = async |format: &str| other.get(&format!("/admin/export?format={format}")).await.expect(200).text;
    assert_eq!(back(again("comparisons").await), [Value::Null, json!("safety")]);
    assert_eq!(back(again("demonstrations").await), [Value::Null, json!("safety")]);
    // The file's project takes the place of what its lines name.
    let report = import("format=comparisons&project=default", &rankings).await.expect(200).json();
    assert_eq!((&report["imported"], &report["skipped"]), (&json!(0), &json!(2)), "{report}");
}

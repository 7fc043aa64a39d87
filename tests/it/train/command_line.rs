//! The real binary's commands: a model by any of its names, errors told once, help with examples, a first start that
//! says where to go, and a broken active version.

use std::process::{Output, Stdio};

use serde_json::json;

use crate::crash::server::{ADMIN_KEY, Place, Server};

fn place(dir: &std::path::Path) -> Place {
    Place::new(&format!("sqlite:{}", dir.join("instructd.db").display()), dir)
}

fn run(place: &Place, words: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_instructd"));
    command.args(words).env_remove("INSTRUCTD_CONFIG").env("INSTRUCTD_DATA_DIR", &place.data_dir);
    command.env("INSTRUCTD_DATABASE_URL", &place.database_url).stdin(Stdio::null());
    command.output().unwrap()
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_built_in_model_works_wherever_a_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let file = |name: &str, text: String| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    };
    let demonstrations = file("d.jsonl", format!("{}\n", json!({"prompt": "Hello", "completion": "Hi"})));
    let out = dir.path().join("out").display().to_string();
    let sft = file(
        "sft.json",
        json!({"model": "builtin", "demonstrations": demonstrations, "output_dir": out, "heldout_fraction": 0.0,
               "max_steps": 1, "device": "cpu"})
        .to_string(),
    );
    let text = file("t.txt", "Hello there, how are you today?".into());
    let eval = file("eval.json", json!({"kind": "perplexity", "model": "builtin", "text": text}).to_string());
    let exported = dir.path().join("exported").display().to_string();
    for words in [
        vec!["train", "sft", "--args", &sft],
        vec!["eval", "--args", &eval],
        vec!["plan", "builtin"],
        vec!["attention", "hello", "--model", "builtin"],
        vec!["models", "export", "builtin", &exported],
    ] {
        let output = run(&place, &words);
        assert!(output.status.success(), "{words:?}: {}", text_of(&output));
    }
    assert!(dir.path().join("out/model.safetensors").exists() && dir.path().join("exported/config.json").exists());
}

#[test]
fn an_unknown_model_is_reported_once_with_the_known_ones() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let output = run(&place, &["attention", "hello", "--model", "nobody"]);
    let text = text_of(&output);
    assert!(!output.status.success());
    assert!(text.contains("there is no model 'nobody'") && text.contains("builtin"), "{text}");
    assert_eq!(text.matches("nobody").count(), 1, "{text}");
    let output = run(&place, &["attention", "hello", "--model", "smollm2-135m-instruct"]);
    let text = text_of(&output);
    assert!(text.contains("models pull smollm2-135m-instruct"), "nobody is there to be asked: {text}");
    // A misspelt name of a model that can be downloaded.
    for words in
        [vec!["attention", "hello", "--model", "smolm2-135m-instruct"], vec!["models", "pull", "smolm2-135m-instruct"]]
    {
        let output = run(&place, &words);
        assert!(!output.status.success());
        let text = text_of(&output);
        assert!(text.contains("Did you mean 'smollm2-135m-instruct'"), "{words:?}: {text}");
    }
    let output = run(&place, &["train", "sft", "--args", "/nowhere.json"]);
    assert_eq!(text_of(&output).matches("No such file").count(), 1, "{}", text_of(&output));
}

#[test]
fn arguments_are_checked_before_work() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let out = dir.path().join("out").display().to_string();
    let output = run(&place, &["train", "sft", "--model", "builtn", "--out", &out]);
    assert!(text_of(&output).contains("did you mean 'builtin'"), "{}", text_of(&output));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("out")), "nothing is written: {left:?}");
    for (words, wanted) in [
        (vec!["eval"], "--set kind=perplexity"),
        (vec!["eval", "--set", "kind=perplexity"], "--set text=FILE"),
        (vec!["eval", "--set", "kind=reward", "--model", "builtin"], "--set comparisons=FILE"),
    ] {
        let output = run(&place, &words);
        assert!(!output.status.success() && text_of(&output).contains(wanted), "{words:?}: {}", text_of(&output));
    }
}

/// The names under `Commands:` of a help text.
fn subcommands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| line.trim() != "Commands:").skip(1);
    let listed = listed.take_while(|line| line.starts_with(' ') || line.is_empty());
    // Further lines of a description stand further to the right.
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_subcommand_shows_an_example() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let mut todo: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = Vec::new();
    while let Some(path) = todo.pop() {
        let mut words: Vec<&str> = path.iter().map(String::as_str).collect();
        words.push("--help");
        let text = text_of(&run(&place, &words));
        for name in subcommands(&text) {
            todo.push(path.iter().cloned().chain([name]).collect());
        }
        if !path.is_empty() {
            let command = format!("instructd {}", path.join(" "));
            let example = text.split("Example").nth(1).unwrap_or_else(|| panic!("{command}: no example in {text}"));
            assert!(example.contains(&command), "{command}: {text}");
            seen.push(path.join(" "));
        }
    }
    for known in [
        "serve",
        "train",
        "instructgpt",
        "eval",
        "models pull",
        "models activate",
        "models push",
        "datasets push",
        "rubrics add",
        "export-db",
    ] {
        assert!(seen.iter().any(|name| name == known), "{known} is not among {seen:?}");
    }
    assert!(seen.len() >= 20, "{seen:?}");
}

/// The checks and the versions of the API, without a server.
#[test]
fn rubrics_are_listed_added_and_activated() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let done = |words: &[&str]| {
        let output = run(&place, words);
        assert!(output.status.success(), "{words:?}: {}", text_of(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let file = |text: serde_json::Value| {
        std::fs::write(dir.path().join("rubric.json"), text.to_string()).unwrap();
        dir.path().join("rubric.json").display().to_string()
    };
    assert!(done(&["rubrics", "list"]).contains("no rubric is stored"));
    let good = json!({"name": "Helpful", "dimensions": [
        {"key": "helpful", "label": {"en": "Helpful"}, "kind": "likert", "points": 7},
    ]});
    let version = done(&["rubrics", "add", &file(good.clone())]).trim().to_owned();
    assert_eq!(version.len(), 12);
    assert_eq!(done(&["rubrics", "add", &file(good)]).trim(), version, "the same definition has the same version");
    assert_eq!(done(&["rubrics", "list"]), format!("  {version}  Helpful  1 dimensions\n"));
    assert!(done(&["rubrics", "activate", &version]).contains("Helpful"));
    assert!(done(&["rubrics", "list"]).starts_with(&format!("* {version}")));
    assert!(done(&["rubrics", "activate", "none"]).contains("no rubric is active"));
    let flag = json!({"name": "F", "dimensions": [{"key": "f", "label": {"en": "F"}, "kind": "flag"}]});
    let other = done(&["rubrics", "add", &file(flag), "--activate"]).trim().to_owned();
    assert!(done(&["rubrics", "list"]).contains(&format!("* {other}")));

    let refused = |words: &[&str]| {
        let output = run(&place, words);
        assert!(!output.status.success(), "{words:?}");
        text_of(&output)
    };
    let points =
        json!({"name": "F", "dimensions": [{"key": "f", "label": {"en": "F"}, "kind": "likert", "points": 11}]});
    assert!(refused(&["rubrics", "add", &file(points)]).contains("dimensions[0].points is 11; must be 2 to 10"));
    let unknown = json!({"name": "F", "dimensions": [], "colour": 1});
    assert!(refused(&["rubrics", "add", &file(unknown)]).contains("colour"));
    assert!(refused(&["rubrics", "activate", "000000000000"]).contains("000000000000"));
    assert!(refused(&["rubrics", "add", "nowhere.json"]).contains("nowhere.json"));
}

/// Within ten lines: what runs, where to go, which key.
#[test]
fn the_first_lines_show_addresses_and_key() {
    use std::io::BufRead;
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    for (own_key, words) in [(false, "the admin key above"), (false, "INSTRUCTD_ADMIN_KEY"), (true, "configuration")] {
        let mut command = place.command("serve");
        if !own_key {
            command.env_remove("INSTRUCTD_ADMIN_KEY");
        }
        command.args(["--listen", "127.0.0.1:0", "--model"]).arg(&place.model);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut text = String::new();
        for line in lines.map_while(Result::ok).take(10) {
            text.push_str(&line);
            text.push('\n');
            if line.contains("--help") {
                break;
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        assert!(text.contains("/admin") && text.contains("/chat") && text.contains("--help"), "{text}");
        assert!(text.contains(words) && text.contains("llama-tied-tiny"), "{words}: {text}");
        assert!(!text.contains(ADMIN_KEY), "a configured key is not shown: {text}");
    }
}

#[tokio::test]
async fn a_broken_active_version_leaves_the_server_up_on_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    drop(Server::start(&place).await);
    // A child of the configured model, active, whose weights are then damaged.
    let store = instructd::store::connect(&place.database_url).await.unwrap();
    let parent = store.models().list().await.unwrap().remove(0);
    let weights = crate::support::fixture("llama-tied-tiny");
    crate::support::copy_into(&weights, &dir.path().join("models/child"));
    let mut child = parent.clone();
    child.id = instructd::domain::ModelVersionId::new();
    child.name = "child".into();
    child.parent_id = Some(parent.id.clone());
    child.artifact_uri = "models/child".into();
    child.state = instructd::domain::ModelState::Candidate;
    store.models().put(child.clone()).await.unwrap();
    store.models().activate(&child.id, 1).await.unwrap();
    store.close().await;

    let server = Server::start(&place).await;
    let ready = server.send("GET", "/ready", ADMIN_KEY, None).await.unwrap().expect(200);
    assert_eq!((&ready["model"], ready.get("warning")), (&json!("child"), None), "whole, it is served");
    drop(server);

    // One byte of the weights, far behind the header.
    let file = dir.path().join("models/child/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    for damage in ["a changed byte", "cut", "gone"] {
        match damage {
            "cut" => std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap(),
            "gone" => std::fs::remove_dir_all(dir.path().join("models/child")).unwrap(),
            _ => {}
        }
        let server = Server::start(&place).await;
        let ready = server.send("GET", "/ready", ADMIN_KEY, None).await.unwrap().expect(200);
        assert_eq!(ready["model"], json!(parent.name), "{damage}");
        assert!(ready["warning"].as_str().unwrap().contains("child"), "{damage}: {ready}");
        let models = server.send("GET", "/admin/models", ADMIN_KEY, None).await.unwrap().expect(200);
        assert!(models["warning"].as_str().unwrap().contains("models activate"), "{damage}");
    }

    // Offline, another version is chosen; the broken one is not.
    let broken = run(&place, &["models", "activate", "child"]);
    assert!(!broken.status.success(), "{}", text_of(&broken));
    let chosen = run(&place, &["models", "activate", &parent.name]);
    assert!(chosen.status.success(), "{}", text_of(&chosen));
    let server = Server::start(&place).await;
    let ready = server.send("GET", "/ready", ADMIN_KEY, None).await.unwrap().expect(200);
    assert_eq!((&ready["model"], ready.get("warning")), (&json!(parent.name), None));
    let unknown = run(&place, &["models", "activate", "nobody"]);
    assert!(
        text_of(&unknown).contains("There are") || text_of(&unknown).contains("there are"),
        "{}",
        text_of(&unknown)
    );
    assert!(!unknown.status.success());
}

//! `train`, `instructgpt` and `eval` without a file of arguments, and a model by any of its names in every command.

use std::process::{Output, Stdio};

use serde_json::json;

use crate::crash::server::{ADMIN_KEY, Place, Server};
use crate::support::{copy_into, fixture};

struct Desk {
    dir: tempfile::TempDir,
    place: Place,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let place = Place::new(&format!("sqlite:{}", data.join("instructd.db").display()), &data);
        Self { dir, place }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Runs in the desk's own directory, so that default places lie there.
    fn run(&self, words: &[&str]) -> Output {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_instructd"));
        command.args(words).current_dir(self.dir.path()).env_remove("INSTRUCTD_CONFIG").env_remove("RUST_BACKTRACE");
        command.env("INSTRUCTD_DATA_DIR", &self.place.data_dir).env("INSTRUCTD_DATABASE_URL", &self.place.database_url);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn succeeds(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", text_of(&output));
        text_of(&output)
    }

    fn fails(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(!output.status.success(), "{words:?}: {}", text_of(&output));
        text_of(&output)
    }
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_recipe_runs_on_the_built_in_model_and_the_sample_without_any_file() {
    let desk = Desk::new();
    let text = desk.succeeds(&[
        "train",
        "sft",
        "--set",
        "max_steps=1",
        "--set",
        "batch_size=1",
        "--set",
        "device=cpu",
        "--set",
        "heldout_fraction=0.01",
    ]);
    assert!(text.contains("model: builtin (none was given)"), "{text}");
    assert!(text.contains("best answers of the sample rankings"), "{text}");
    assert!(text.contains("output_dir: out/sft (none was given)"), "{text}");
    assert!(desk.dir.path().join("out/sft/model.safetensors").exists());
    // The data says how long the sequences are, within the context of 256.
    assert!(text.contains("max_length: 256 tokens, from the data"), "{text}");
    assert!(!desk.place.data_dir.join("instructd.db").exists(), "looking for data makes no database");
    // A second run does not write over the first.
    let rankings = desk.file(
        "rankings.jsonl",
        &format!(
            "{}\n",
            json!({"prompt": "Hi", "completions": [{"text": "Hello!", "tier": 0}, {"text": "No", "tier": 1}]})
        ),
    );
    let text = desk.succeeds(&[
        "train",
        "reward",
        "--model",
        "builtin",
        "--comparisons",
        &rankings,
        "--out",
        "reward",
        "--set",
        "heldout_fraction=0",
        "--set",
        "max_steps=1",
        "--set",
        "device=cpu",
        "--set",
        "normalize=false",
        "--set",
        "lora.rank=2",
    ]);
    assert!(!text.contains("none was given"), "{text}");
    assert!(desk.dir.path().join("reward/model.safetensors").exists());
    let text = desk.succeeds(&[
        "eval",
        "--set",
        "kind=reward",
        "--model",
        "reward",
        "--set",
        &format!("comparisons={rankings}"),
    ]);
    assert!(text.contains("accuracy"), "{text}");
}

#[test]
fn the_pipeline_runs_without_a_file_of_arguments_and_resumes() {
    let desk = Desk::new();
    let lines: String = (0..4)
        .map(|i| {
            let answers = json!([{"text": format!("yes {i}"), "tier": 0}, {"text": "no", "tier": 1}]);
            format!("{}\n", json!({"prompt": format!("Say yes, {i}"), "completions": answers, "split": "train"}))
        })
        .collect();
    let rankings = desk.file("rankings.jsonl", &lines);
    let mut words = vec!["instructgpt", "--model", "builtin", "--comparisons", &rankings];
    for set in [
        "sft.max_steps=1",
        "sft.heldout_fraction=0",
        "reward.max_steps=1",
        "reward.heldout_fraction=0",
        "ppo.iterations=1",
        "ppo.rollout_batch_size=2",
        "ppo.minibatches=1",
        "ppo.response_length=2",
        "ppo.sample_prompts=0",
        "sample_prompts=1",
        "measured_prompts=2",
    ] {
        words.extend(["--set", set]);
    }
    let text = desk.succeeds(&words);
    assert!(text.contains("work_dir: out/instructgpt (none was given)"), "{text}");
    assert!(desk.dir.path().join("out/instructgpt/ppo/model/model.safetensors").exists(), "{text}");
    let again = desk.succeeds(&words);
    assert!(again.contains("ppo: done before"), "{again}");
}

#[test]
fn mistakes_in_arguments_name_the_field_and_the_choices() {
    let desk = Desk::new();
    for (words, wanted) in [
        (vec!["train", "stf"], vec!["there is no recipe 'stf'", "did you mean 'sft'", "grpo"]),
        (vec!["train", "sft", "--set", "epoch=2"], vec!["epoch", "did you mean `epochs`", "learning_rate"]),
        (vec!["train", "sft", "--set", "lr_schedule=cosin"], vec!["lr_schedule", "did you mean `cosine`", "constant"]),
        (vec!["train", "sft", "--set", "epochs=many"], vec!["epochs", "many"]),
        (vec!["train", "sft", "--set", "lora.rnak=2"], vec!["lora", "did you mean `rank`", "alpha"]),
        (vec!["train", "sft", "--set", "epochs"], vec!["--set epochs", "KEY=VALUE"]),
        (vec!["train", "dpo", "--set", "loss=hinge"], vec!["loss", "sigmoid", "ipo"]),
        (vec!["train", "ppo"], vec!["reward_model", "instructd train reward", "reward="]),
        (vec!["train", "pretrain"], vec!["texts"]),
        (vec!["instructgpt", "--set", "sft.epoch=2", "--set", "work_dir=w"], vec!["sft.epoch", "epochs"]),
        (vec!["instructgpt", "--set", "modle=x"], vec!["modle", "work_dir"]),
        (vec!["eval", "--set", "kind=perplexty"], vec!["perplexty", "perplexity", "classifier"]),
    ] {
        let text = desk.fails(&words);
        for part in wanted {
            assert!(text.contains(part), "{words:?} says nothing of {part:?}: {text}");
        }
    }
    assert!(!desk.dir.path().join("out").exists(), "nothing is written for arguments that are refused");
    let text = desk.succeeds(&["train", "ppo", "--explain"]);
    assert!(text.contains("kl_coef (") && text.contains("rollout_batch_size"), "{text}");
}

/// Every form of a model's name in every command that takes one.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_has_the_same_names_in_every_command() {
    let desk = Desk::new();
    let models = desk.place.data_dir.join("models");
    copy_into(&fixture("llama-tied-tiny"), &models.join("pulled"));
    copy_into(&fixture("llama-tied-tiny"), &desk.dir.path().join("my-directory"));
    copy_into(&fixture("llama-tied-tiny"), &models.join("second"));
    std::fs::write(desk.dir.path().join("one.gguf"), crate::data::damaged::tiny_gguf()).unwrap();
    // A version of the database, at a place that is no pulled model.
    let elsewhere = desk.place.data_dir.join("versions/mine");
    copy_into(&fixture("llama-tied-tiny"), &elsewhere);
    drop(Server::start(&desk.place).await);
    let store = instructd::store::connect(&desk.place.database_url).await.unwrap();
    let mut version = store.models().list().await.unwrap().remove(0);
    version.id = instructd::domain::ModelVersionId::new();
    (version.name, version.artifact_uri) = ("published-one".into(), "versions/mine".into());
    version.state = instructd::domain::ModelState::Candidate;
    store.models().put(version.clone()).await.unwrap();
    store.close().await;

    let text = desk.file("t.txt", "t1 t2 t3 t4 t5 t6 t7 t8 t9");
    let lines = format!("{}\n", json!({"prompt": "t1", "completion": "t2"}));
    let demonstrations = desk.file("d.jsonl", &lines);
    let id = version.id.to_string();
    let forms = ["builtin", "pulled", "SomeOwner/Pulled", "my-directory", "one.gguf", "published-one", &id];
    for (i, form) in forms.into_iter().enumerate() {
        let out = format!("out-{i}");
        let exported = format!("exported-{i}");
        for words in [
            vec!["plan", form],
            vec!["attention", "t1 t2", "--model", form],
            vec!["models", "export", form, &exported],
            vec!["eval", "--model", form, "--set", "kind=perplexity", "--set", &format!("text={text}")],
            vec![
                "train",
                "sft",
                "--model",
                form,
                "--demonstrations",
                &demonstrations,
                "--out",
                &out,
                "--set",
                "max_steps=1",
                "--set",
                "heldout_fraction=0",
                "--set",
                "device=cpu",
            ],
        ] {
            // The GGUF's vocabulary has no words for texts.
            if form == "one.gguf" && !matches!(words[0], "plan" | "models") {
                continue;
            }
            desk.succeeds(&words);
        }
        if form == "one.gguf" {
            continue;
        }
        let mut place = Place::new(&desk.place.database_url, &desk.place.data_dir);
        place.model = match form {
            "my-directory" => desk.dir.path().join(form),
            form => form.into(),
        };
        let server = Server::start(&place).await;
        let ready = server.send("GET", "/ready", ADMIN_KEY, None).await.unwrap().expect(200);
        let name = ready["model"].as_str().unwrap();
        let wanted = if form == id { "published-one" } else { form.rsplit('/').next().unwrap() }.to_lowercase();
        assert!(name.starts_with(&wanted), "{form} serves {name}");
    }

    // A misspelt name is refused in the same words everywhere, with the one that is near.
    let wanted = "there is no model 'publshed-one'; did you mean 'published-one'?";
    for words in [
        vec!["plan", "publshed-one"],
        vec!["attention", "t1 t2", "--model", "publshed-one"],
        vec!["models", "export", "publshed-one", "never"],
        vec!["models", "activate", "publshed-one"],
        vec!["eval", "--model", "publshed-one", "--set", "kind=perplexity", "--set", &format!("text={text}")],
        vec!["train", "sft", "--model", "publshed-one", "--demonstrations", &demonstrations],
        vec!["instructgpt", "--model", "publshed-one"],
        vec!["serve", "--model", "publshed-one", "--listen", "127.0.0.1:0"],
    ] {
        let text = desk.fails(&words);
        assert!(text.contains(wanted) && text.contains("builtin"), "{words:?}: {text}");
        if words[0] != "serve" {
            assert_eq!(text.matches("publshed-one").count(), 1, "told once: {words:?}: {text}");
        }
    }
    // A repository that is not here is told how to be brought.
    let text = desk.fails(&["plan", "SomeOwner/Nothing"]);
    assert!(text.contains("instructd models pull SomeOwner/Nothing"), "{text}");

    // Weights that are not the published ones are not trained on, evaluated or activated.
    let weights = elsewhere.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    for words in [
        vec!["plan", "published-one"],
        vec!["models", "activate", "published-one"],
        vec!["train", "sft", "--model", "published-one", "--demonstrations", &demonstrations],
    ] {
        let text = desk.fails(&words);
        assert!(text.contains("not the published ones"), "{words:?}: {text}");
    }
}

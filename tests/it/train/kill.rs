//! The real binary, killed without warning: resumed, it ends with the bits of a run that nobody touched; what
//! a crash or a full disk leaves behind is refused or passed over in plain words.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use instructd::train::rng::{Stream, rng, uniform};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::loop_closes::world::{LIKED, World};

/// Kill points per recipe in the quick test; the long one has twenty.
const POINTS: usize = 3;

fn reward(world: &World) -> Value {
    json!({
        "model": World::model(), "comparisons": world.comparisons(40), "batch_size": 4, "learning_rate": 1e-3,
        "max_length": 64, "heads": 2, "eval_every": 4,
    })
}

fn ppo(world: &World) -> Value {
    let liked: Vec<String> = LIKED.map(|i| format!("t{i}")).collect();
    json!({
        "model": World::model(), "prompts": world.prompts(16), "reward": {"kind": "word_share", "words": liked},
        "gold_reward": {"kind": "length", "target": 6}, "kl_budget": 50.0, "rollout_batch_size": 8,
        "response_length": 6, "iterations": 6, "max_length": 64, "learning_rate": 1e-3, "minibatches": 2,
        "ppo_epochs": 2, "kl_target": 1.0, "eval_every": 3,
    })
}

fn online_dpo(world: &World) -> Value {
    let mut args = ppo(world);
    args["ppo_epochs"] = 1.into();
    // One pass over pairs alone is quick: more iterations, so that kills come before the end.
    args["iterations"] = 24.into();
    args
}

/// Writes the arguments for one output directory and returns their file.
fn arguments(world: &World, name: &str, args: &Value) -> PathBuf {
    let mut args = args.clone();
    args["output_dir"] = world.path(name).into();
    args["checkpoint_dir"] = world.path(&format!("{name}.ckpt")).into();
    args["log_dir"] = world.path(&format!("{name}.logs")).into();
    args["checkpoint_every"] = 1.into();
    args["resume"] = true.into();
    args["device"] = "cpu".into();
    let path = PathBuf::from(world.path(&format!("{name}.json")));
    std::fs::write(&path, args.to_string()).unwrap();
    path
}

fn train(recipe: &str, args: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_instructd"));
    command.args(["train", recipe, "--args"]).arg(args);
    command.env("RAYON_NUM_THREADS", "2").env("RUST_LOG", "off");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Runs to the end; panics with what the program said if it fails.
fn to_the_end(recipe: &str, args: &Path) {
    let out = train(recipe, args).output().unwrap();
    assert!(out.status.success(), "{recipe}: {}", String::from_utf8_lossy(&out.stderr));
}

/// SIGKILL some time after the program has said that it wrote `checkpoints` checkpoints. True if that was
/// before its end.
fn killed(recipe: &str, args: &Path, checkpoints: usize, spins: u32) -> bool {
    let mut child = train(recipe, args).spawn().unwrap();
    let said = BufReader::new(child.stderr.take().unwrap()).lines();
    // Kept until the child is dead: a closed pipe would end it before the signal does.
    let mut written = said.map_while(Result::ok).filter(|line| line.starts_with("checkpoint: "));
    let _ = written.by_ref().take(checkpoints).count();
    // A seeded amount of work: the kill may hit a step, an evaluation or the writing of a checkpoint.
    let mut sum = 0u32;
    for i in 0..spins {
        sum = std::hint::black_box(sum.wrapping_add(i));
    }
    let _ = child.kill();
    !child.wait().unwrap().success()
}

fn sha256(world: &World, name: &str) -> String {
    hex::encode(Sha256::digest(std::fs::read(Path::new(&world.path(name)).join("model.safetensors")).unwrap()))
}

/// Kills at `points` places (a fresh run each), resumes each to its end, compares the weights' SHA-256.
fn survives(recipe: &str, args: impl Fn(&World) -> Value, points: usize) {
    let world = World::new();
    let args = args(&world);
    to_the_end(recipe, &arguments(&world, "whole", &args));
    let whole = sha256(&world, "whole");
    let mut rng = rng(11, Stream::Samples, 5);
    let mut hits = 0;
    for point in 0..points {
        let name = format!("killed{point}");
        let file = arguments(&world, &name, &args);
        // Two deaths in one run every other time.
        for _ in 0..=point % 2 {
            let checkpoints = (uniform(&mut rng) * 4.0) as usize;
            hits += usize::from(killed(recipe, &file, checkpoints, (uniform(&mut rng) * 3e7) as u32));
        }
        to_the_end(recipe, &file);
        assert_eq!(sha256(&world, &name), whole, "{recipe}, point {point}: other weights after the resume");
    }
    assert!(hits * 2 > points, "only {hits} of {points} kills came before the end: they prove too little");
}

#[test]
fn kill_9_and_resume_end_with_the_hash_of_an_undisturbed_run() {
    survives("reward", reward, POINTS);
    survives("ppo", ppo, POINTS);
    survives("online_dpo", online_dpo, POINTS);
}

/// `cargo test --release --test it twenty_kills -- --ignored`
#[test]
#[ignore = "twenty kill points for each recipe take minutes"]
fn twenty_kills_and_resumes_end_with_the_hash_of_an_undisturbed_run() {
    survives("reward", reward, 20);
    survives("ppo", ppo, 20);
    survives("online_dpo", online_dpo, 20);
}

fn fails(recipe: &str, args: &Path) -> String {
    let out = train(recipe, args).output().unwrap();
    assert!(!out.status.success(), "{recipe} should have failed");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// A byte is flipped in the newest checkpoint after a kill: it is refused by name, the one before it is used,
/// and the end is the same.
#[test]
fn a_damaged_checkpoint_is_refused_and_the_generation_before_it_used() {
    let world = World::new();
    let args = reward(&world);
    to_the_end("reward", &arguments(&world, "whole", &args));
    let file = arguments(&world, "parts", &args);
    assert!(killed("reward", &file, 3, 0));
    let generations = || {
        let mut found: Vec<PathBuf> = std::fs::read_dir(world.path("parts.ckpt"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_dir() && p.extension().is_none())
            .collect();
        found.sort();
        found
    };
    let newest = generations().pop().unwrap();
    let weights = newest.join("weights.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let out = train("reward", &file).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let name = newest.file_name().unwrap().to_string_lossy().into_owned();
    assert!(said.contains(&name) && said.contains("SHA-256"), "{said}");
    assert_eq!(sha256(&world, "parts"), sha256(&world, "whole"));
}

/// The model that a run started from has changed under it.
#[test]
fn a_resume_on_another_base_model_is_refused() {
    let world = World::new();
    let model = crate::support::copy_dir(Path::new(&World::model()));
    let mut args = reward(&world);
    args["model"] = model.path().display().to_string().into();
    let file = arguments(&world, "parts", &args);
    assert!(killed("reward", &file, 2, 0));
    let weights = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let at = bytes.len() - 3;
    bytes[at] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let error = fails("reward", &file);
    assert!(error.contains("another file for model"), "{error}");
}

/// A disk that takes no more (here: a limit on the size of files): the run ends with the reason, and what was
/// written before is whole.
#[test]
fn a_full_disk_fails_with_the_reason_and_keeps_the_last_checkpoint() {
    let world = World::new();
    let args = reward(&world);
    to_the_end("reward", &arguments(&world, "whole", &args));
    let file = arguments(&world, "parts", &args);
    assert!(killed("reward", &file, 2, 0));
    let mut limited = Command::new("sh");
    // 8 blocks: enough for the small files, not for weights. SIGXFSZ is ignored, so that writing fails instead.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_instructd")]);
    limited.args(["train", "reward", "--args"]).arg(&file).env("RAYON_NUM_THREADS", "2").env("RUST_LOG", "off");
    let out = limited.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("cannot write checkpoint"), "{said}");
    assert!(said.contains("File too large") || said.contains("No space"), "{said}");
    let mut left = std::fs::read_dir(world.path("parts.ckpt")).unwrap().map(|e| e.unwrap().file_name());
    assert!(left.all(|name| !name.to_string_lossy().ends_with(".tmp")), "the failed write was not cleared");
    to_the_end("reward", &file);
    assert_eq!(sha256(&world, "parts"), sha256(&world, "whole"));
}

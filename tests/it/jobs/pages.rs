//! A job's data is read in pages and written line by line: memory does not grow with the database.

use std::path::Path;

use instructd::data::Comparison;
use instructd::domain::*;
use instructd::jobs::learned::Rankings;
use instructd::jobs::materialise::write_stored;
use instructd::store::*;
use serde_json::json;

use crate::store::{backend, fixture};
use crate::support::allocations;

/// Lines of a first and of a second lot, each more than a page.
const LOT: usize = 1200;

/// Stores `LOT` prompts, each with a demonstration, a thumb and a ranking.
async fn store_a_lot(store: &Store, lot: usize) {
    for batch in 0..LOT / 100 {
        let (mut lines, mut events) = (Vec::new(), Vec::new());
        for i in 0..100 {
            let name = format!("{lot} {batch} {i}");
            let prompt = fixture::prompt(&format!("question {name} {}", "w ".repeat(100)));
            let answer = fixture::completion(&prompt.id, &format!("answer {name} {}", "w ".repeat(100)));
            let texts = [fixture::completion(&prompt.id, "good"), fixture::completion(&prompt.id, "bad")];
            let set = fixture::comparison_set(&prompt.id, &texts, 1);
            let judgment = fixture::judgment(&set, &"import".into(), None, &name);
            events.push(FeedbackEvent {
                id: FeedbackId::new(),
                completion_id: texts[0].id.clone(),
                kind: "thumb".into(),
                value: json!("up"),
                actor_hash: None,
                idempotency_key: name,
                created: fixture::T0,
            });
            let labeler = Labeler::new("import".into(), "import".into(), Role::Labeler, fixture::T0);
            lines.push(ImportLine::Ranking(Box::new(ImportedRanking {
                prompt: prompt.clone(),
                has_split: true,
                completions: texts.into(),
                set,
                judgment,
                labeler: None,
                known_answer: None,
                explanation: None,
            })));
            lines.push(ImportLine::Demonstration { prompt, completion: answer, labeler });
        }
        for line in store.judgments().import(lines.into()).await.unwrap() {
            assert!(!matches!(line.done, Imported::Refused(_)), "{:?}", line.done);
        }
        for event in events {
            store.feedback().put(event).await.unwrap();
        }
    }
}

/// Runs `work` on this thread alone.
fn on_this_thread<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn no_allocation_grows_with_the_stored_data() {
    let dir = tempfile::tempdir().unwrap();
    let fresh = on_this_thread(backend::sqlite()).unwrap();
    let url = fresh.url.clone();
    // A connection belongs to the runtime that opened it.
    let with_store = |work: &mut dyn FnMut(&tokio::runtime::Runtime, &Store)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = runtime.block_on(connect(&url)).unwrap();
        work(&runtime, &store);
        runtime.block_on(store.close());
    };
    let kinds = ["comparisons", "demonstrations", "feedback", "prompts"];
    let mut largest = [[0; 4]; 2];
    for (lot, largest) in largest.iter_mut().enumerate() {
        with_store(&mut |runtime, store| {
            runtime.block_on(store_a_lot(store, lot));
            for (kind, largest) in kinds.iter().zip(&mut *largest) {
                let path = dir.path().join(format!("{kind}-{lot}.jsonl"));
                let write = || runtime.block_on(write_stored(store, kind, &path, false)).unwrap();
                *largest = allocations::largest_in(|| {
                    assert_eq!(write(), Some((LOT * (lot + 1)) as i64), "{kind}");
                });
            }
        });
    }
    for (kind, [first, second]) in kinds.iter().zip([0, 1, 2, 3].map(|i| [largest[0][i], largest[1][i]])) {
        eprintln!("{kind}: the largest allocation takes {first} bytes for {LOT} lines, {second} for twice as many");
        assert!(second <= first + first / 10, "{kind}: {first}, {second}");
    }
    let size = |kind: &str| std::fs::metadata(dir.path().join(format!("{kind}-1.jsonl"))).unwrap().len() as usize;
    for (kind, largest) in kinds.iter().zip(largest[1]) {
        assert!(size(kind) > 500_000 || largest < size(kind) / 2, "{kind}: {largest} of {}", size(kind));
    }
}

/// The hash that a file was registered with is that of its bytes, and nothing else is beside it.
#[tokio::test]
async fn a_file_has_all_lines_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let fresh = backend::sqlite().await.unwrap();
    let store = fresh.store.as_ref();
    store_a_lot(store, 0).await;
    let path = dir.path().join("comparisons.jsonl");
    write_stored(store, "comparisons", &path, false).await.unwrap();
    let written: Vec<Comparison> =
        std::fs::read_to_string(&path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (mut expected, mut pages) = (Vec::new(), Rankings::new(store, &RankedFilter::default()).await.unwrap());
    while let Some(page) = pages.next().await.unwrap() {
        expected.extend(page);
    }
    assert_eq!(written, expected);
    // Nothing to write leaves no file.
    let empty = backend::sqlite().await.unwrap();
    let none = dir.path().join("none.jsonl");
    for kind in ["comparisons", "demonstrations", "feedback", "prompts"] {
        assert_eq!(write_stored(empty.store.as_ref(), kind, &none, false).await.unwrap(), None);
    }
    let names: Vec<_> = std::fs::read_dir(Path::new(dir.path())).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["comparisons.jsonl"]);
}

/// Preferences and thumbs from pages are those from all feedback at once.
#[tokio::test]
async fn feedback_in_pages_gives_every_line() {
    let dir = tempfile::tempdir().unwrap();
    let fresh = backend::sqlite().await.unwrap();
    store_a_lot(fresh.store.as_ref(), 0).await;
    let path = dir.path().join("feedback.jsonl");
    write_stored(fresh.store.as_ref(), "feedback", &path, false).await.unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let prompts: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["prompt_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(prompts.len(), LOT);
    assert!(prompts.is_sorted_by(|a, b| a < b), "by prompt, each once");
}

//! What clients leave here: files, batches with their answers, and responses.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;
use serde_json::json;

use super::conformance::conformance;
use super::fixture::*;

conformance!(
    files_are_their_owners_and_bounded,
    an_interrupted_batch_continues,
    batches_are_cancelled_and_expire,
    responses_are_their_owners_and_go
);

const MUCH: i64 = 1 << 30;

fn file(id: &str, owner: &str, content: &str, created: Micros) -> StoredFile {
    StoredFile {
        id: format!("file-{id}"),
        owner: owner.into(),
        name: format!("{id}.jsonl"),
        purpose: FilePurpose::Batch,
        bytes: content.len() as i64,
        created,
    }
}

fn batch(id: &str, owner: &str, input: &StoredFile) -> Batch {
    Batch {
        id: format!("batch_{id}"),
        owner: owner.into(),
        input_file: input.id.clone(),
        endpoint: "/v1/completions".into(),
        state: BatchState::Queued,
        metadata: json!({"k": "v"}),
        faults: Vec::new(),
        total: 3,
        completed: 0,
        failed: 0,
        created: T0,
        began: None,
        cancelling: None,
        ended: None,
        expires: T0 + 1000,
        output_file: None,
        error_file: None,
    }
}

fn end(state: BatchState, id: &str) -> BatchEnd {
    let (output, errors) = (format!("file-{id}o"), format!("file-{id}e"));
    BatchEnd { state, faults: Vec::new(), output, errors, now: T0 + 7 }
}

fn result(line: i64, failed: bool, text: &str) -> BatchResult {
    BatchResult { line, failed, text: text.into() }
}

fn page(after: Option<&str>) -> Page {
    Page { after: after.map(str::to_owned), limit: 2 }
}

async fn files_are_their_owners_and_bounded(store: Arc<Store>) {
    for (i, text) in ["é\n", "two", "three"].into_iter().enumerate() {
        store.files().put(file(&i.to_string(), "a", text, T0 + i as i64), text.into(), MUCH).await.unwrap();
    }
    let first = file("0", "a", "é\n", T0);
    assert_eq!(store.files().get("file-0", "a").await.unwrap(), first);
    assert_eq!(store.files().content("file-0").await.unwrap(), "é\n");
    assert!(matches!(store.files().get("file-0", "b").await, Err(StoreError::NotFound { .. })));
    assert!(matches!(store.files().delete("file-0", "b").await, Err(StoreError::NotFound { .. })));
    let ids = |found: Vec<StoredFile>| found.into_iter().map(|f| f.id).collect::<Vec<_>>();
    let list = async |owner: &str, purpose: Option<FilePurpose>, after: Option<&str>| {
        ids(store.files().list(owner, purpose, page(after)).await.unwrap())
    };
    assert_eq!(list("a", None, None).await, ["file-2", "file-1"]);
    assert_eq!(list("a", Some(FilePurpose::Batch), Some("file-1")).await, ["file-0"]);
    assert_eq!(list("a", Some(FilePurpose::BatchOutput), None).await, [""; 0]);
    assert_eq!(list("b", None, None).await, [""; 0]);
    assert_eq!(store.files().bytes("a").await.unwrap(), 3 + 3 + 5);
    let more = store.files().put(file("3", "a", "xx", T0), "xx".into(), 12).await;
    assert!(matches!(more, Err(StoreError::Conflict(_))), "{more:?}");
    store.files().put(file("3", "a", "x", T0), "x".into(), 12).await.unwrap();
    store.files().put(file("4", "b", "xx", T0), "xx".into(), 12).await.unwrap();
    // Those before T0 + 1, of all owners.
    assert_eq!(store.files().expire(T0 + 1).await.unwrap(), 3);
    assert_eq!(
        (list("a", None, None).await, store.files().bytes("b").await.unwrap()),
        (vec!["file-2".into(), "file-1".into()], 0)
    );
}

async fn an_interrupted_batch_continues(store: Arc<Store>) {
    let input = file("in", "a", "1\n2\n3", T0);
    store.files().put(input.clone(), "1\n2\n3".into(), MUCH).await.unwrap();
    let made = batch("1", "a", &input);
    store.batches().put(made.clone(), 1).await.unwrap();
    let full = store.batches().put(batch("2", "a", &input), 1).await;
    assert!(matches!(full, Err(StoreError::Conflict(_))), "{full:?}");
    assert_eq!(store.batches().get("batch_1", "a").await.unwrap(), made);
    assert!(matches!(store.batches().get("batch_1", "b").await, Err(StoreError::NotFound { .. })));
    let claimed = store.batches().claim("one", T0, T0 + 10).await.unwrap().unwrap();
    assert_eq!((claimed.state, claimed.began), (BatchState::Running, Some(T0)));
    assert_eq!(store.batches().claim("two", T0 + 5, T0 + 15).await.unwrap(), None, "it is held");
    store.batches().put_results("batch_1", "one", vec![result(2, false, "two"), result(3, true, "bad")]).await.unwrap();
    let held = store.batches().hold("batch_1", "one", T0 + 20).await.unwrap();
    assert_eq!((held.completed, held.failed), (1, 1));
    assert!(matches!(store.files().delete("file-in", "a").await, Err(StoreError::Conflict(_))));
    // The first server is gone; the second one takes over, and the first one's late words count no more.
    let again = store.batches().claim("two", T0 + 20, T0 + 30).await.unwrap().unwrap();
    assert_eq!((again.state, again.began), (BatchState::Running, Some(T0)));
    assert_eq!(store.batches().answered_lines("batch_1").await.unwrap(), [2, 3]);
    let late = store.batches().put_results("batch_1", "one", vec![result(1, false, "late")]).await;
    assert!(matches!(late, Err(StoreError::LeaseLost(_))), "{late:?}");
    assert!(matches!(store.batches().hold("batch_1", "one", T0 + 40).await, Err(StoreError::LeaseLost(_))));
    assert!(matches!(
        store.batches().end("batch_1", "one", end(BatchState::Done, "x")).await,
        Err(StoreError::LeaseLost(_))
    ));
    // A line that is answered stays as it is.
    store
        .batches()
        .put_results("batch_1", "two", vec![result(1, false, "one"), result(2, false, "other")])
        .await
        .unwrap();
    let ended = store.batches().end("batch_1", "two", end(BatchState::Done, "")).await.unwrap();
    assert_eq!((ended.state, ended.completed, ended.failed, ended.ended), (BatchState::Done, 2, 1, Some(T0 + 7)));
    assert_eq!((ended.output_file.as_deref(), ended.error_file.as_deref()), (Some("file-o"), Some("file-e")));
    assert_eq!(store.batches().claim("two", T0 + 99, T0 + 109).await.unwrap(), None);
    assert_eq!(store.files().batch_of("file-e").await.unwrap(), ("batch_1".to_owned(), true));
    assert_eq!(store.files().batch_of("file-o").await.unwrap(), ("batch_1".to_owned(), false));
    let lines = async |failed, after, bytes| store.batches().results("batch_1", failed, after, bytes).await.unwrap();
    assert_eq!(lines(false, 0, 100).await, [(1, "one".to_owned()), (2, "two".to_owned())]);
    assert_eq!(lines(false, 0, 1).await, [(1, "one".to_owned())], "piece by piece");
    assert_eq!(lines(false, 1, 1).await, [(2, "two".to_owned())]);
    assert_eq!(lines(true, 0, 100).await, [(3, "bad".to_owned())]);
    assert_eq!(store.files().get("file-o", "a").await.unwrap().bytes, 8);
    assert_eq!(store.files().bytes("a").await.unwrap(), 5 + 8 + 4);
    store.files().delete("file-o", "a").await.unwrap();
    assert_eq!(lines(false, 0, 100).await, []);
    assert_eq!(lines(true, 0, 100).await.len(), 1, "the errors are another file");
    store.files().delete("file-in", "a").await.unwrap();
    assert_eq!(store.files().expire(T0 + 8).await.unwrap(), 1);
    assert!(matches!(store.batches().get("batch_1", "a").await, Err(StoreError::NotFound { .. })));
}

async fn batches_are_cancelled_and_expire(store: Arc<Store>) {
    let input = file("in", "a", "1", T0);
    store.files().put(input.clone(), "1".into(), MUCH).await.unwrap();
    for id in ["1", "2"] {
        store.batches().put(batch(id, "a", &input), 9).await.unwrap();
    }
    let waiting = store.batches().cancel("batch_2", "a", T0 + 1).await.unwrap();
    assert_eq!((waiting.state, waiting.cancelling, waiting.ended), (BatchState::Cancelled, Some(T0 + 1), Some(T0 + 1)));
    assert!(matches!(store.batches().cancel("batch_2", "a", T0 + 1).await, Err(StoreError::Conflict(_))));
    assert!(matches!(store.batches().cancel("batch_1", "b", T0 + 1).await, Err(StoreError::NotFound { .. })));
    store.batches().claim("one", T0, T0 + 10).await.unwrap().unwrap();
    assert_eq!(store.batches().cancel("batch_1", "a", T0 + 2).await.unwrap().state, BatchState::Cancelling);
    assert_eq!(store.batches().cancel("batch_1", "a", T0 + 3).await.unwrap().cancelling, Some(T0 + 2), "once");
    let ended = store.batches().end("batch_1", "one", end(BatchState::Cancelled, "")).await.unwrap();
    assert_eq!((ended.output_file, ended.error_file), (None, None), "nothing was written");
    let listed: Vec<_> = store.batches().list("a", page(None)).await.unwrap().into_iter().map(|b| b.id).collect();
    assert_eq!(listed, ["batch_2", "batch_1"]);
    assert_eq!(store.batches().list("a", page(Some("batch_2"))).await.unwrap().len(), 1);
    // What a batch that is not over reads stays, however old.
    store.batches().put(batch("3", "a", &input), 9).await.unwrap();
    assert_eq!(store.files().expire(T0 + 1_000_000).await.unwrap(), 0);
    assert_eq!(store.batches().list("a", page(None)).await.unwrap().len(), 1);
    store.batches().cancel("batch_3", "a", T0 + 4).await.unwrap();
    assert_eq!(store.files().expire(T0 + 1_000_000).await.unwrap(), 1);
}

async fn responses_are_their_owners_and_go(store: Arc<Store>) {
    let ada = labeler(&store, "Ada").await;
    let key = ApiKey {
        id: ApiKeyId::new(),
        name: "k".into(),
        key_hash: "h".into(),
        scopes: vec!["inference".into()],
        labeler_id: Some(ada.clone()),
        daily_tokens: None,
        origin: KeyOrigin::Created,
        revoked: false,
        created: T0,
    };
    store.api_keys().put(key.clone()).await.unwrap();
    let person = format!("person:{ada}");
    let kept = |id: &str, owner: Option<&str>, created| KeptResponse {
        id: id.into(),
        owner: owner.map(str::to_owned),
        messages: vec![json!({"role": "user", "content": id})],
        response: json!({"id": id}),
        created,
    };
    for (i, owner) in [None, Some("other"), Some(person.as_str()), Some(key.id.as_str())].into_iter().enumerate() {
        store.responses().put(kept(&i.to_string(), owner, T0 + i as i64), 10).await.unwrap();
    }
    let get =
        async |id: &str, owner: Option<&str>, since: Micros| store.responses().get(id, owner, since).await.unwrap();
    assert_eq!(get("0", None, T0).await, Some(kept("0", None, T0)));
    assert_eq!(get("0", None, T0 + 1).await, None, "too old");
    assert_eq!(get("1", Some("other"), T0).await, Some(kept("1", Some("other"), T0 + 1)));
    assert_eq!((get("1", None, T0).await, get("0", Some("other"), T0).await), (None, None));
    assert!(
        !store.responses().delete("1", None).await.unwrap()
            && store.responses().delete("1", Some("other")).await.unwrap()
    );
    // Of three, the newest two fit.
    assert_eq!(store.responses().expire(0, 25).await.unwrap(), 1);
    assert_eq!(get("0", None, T0).await, None);
    let input = file("in", &person, "1", T0);
    store.files().put(input.clone(), "1".into(), MUCH).await.unwrap();
    store.batches().put(batch("1", &person, &input), 9).await.unwrap();
    store.batches().claim("one", T0, T0 + 10).await.unwrap().unwrap();
    store.batches().put_results("batch_1", "one", vec![result(1, false, "x")]).await.unwrap();
    // What an erased person left goes, whichever way they came in.
    store.privacy().erase_labeler(&ada, Erase::Remove, "hash", T0 + 9).await.unwrap();
    assert_eq!((get("2", Some(&person), 0).await, get("3", Some(key.id.as_str()), 0).await), (None, None));
    assert_eq!(store.files().list(&person, None, page(None)).await.unwrap(), []);
    assert!(
        store.batches().get("batch_1", &person).await.is_err()
            && store.batches().answered_lines("batch_1").await.unwrap().is_empty()
    );
}

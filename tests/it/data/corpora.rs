//! From files to blocks: the same documents out of text, JSONL and Parquet, duplicates left out, a split that
//! no order moves; and tokenizers trained on them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use instructd::data::corpus::{Stream, TextFiles};
use instructd::data::dedup::{Dedup, Seen};
use instructd::data::documents::{Cut, documents};
use instructd::tokenizer::train::{Kind, TokenizerPlan, Training};
use instructd::tokenizer::{Specials, Tokenizer};
use parquet::data_type::{ByteArrayType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// Sentences in both languages, no two alike.
pub fn sentences(n: usize) -> Vec<String> {
    let (who, does) =
        (["a robot", "the king", "my friend", "她", "这个机器人"], ["must obey", "很喜欢", "walks to", "看见了"]);
    let what = ["the orders given it", "这个项链", "the old city", "一本好书", "the river, and the sea", "太阳"];
    (0..n).map(|i| format!("{} {} {} {i}.", who[i % 5], does[i / 5 % 4], what[i / 20 % 6])).collect()
}

fn read(path: &Path) -> Vec<String> {
    documents(&[path.to_owned()], Cut::Paragraph, "text").unwrap().map(Result::unwrap).collect()
}

fn write_parquet(path: &Path, texts: &[Option<&str>]) {
    let schema = parse_message_type("message m { required int64 id; optional binary text (UTF8); }").unwrap();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Default::default()).unwrap();
    // Two row groups: the reader must go on to the second.
    for part in texts.chunks(texts.len().div_ceil(2)) {
        let mut group = writer.next_row_group().unwrap();
        let mut ids = group.next_column().unwrap().unwrap();
        ids.typed::<Int64Type>().write_batch(&vec![7; part.len()], None, None).unwrap();
        ids.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<_> = part.iter().flatten().map(|t| t.as_bytes().to_vec().into()).collect();
        let levels: Vec<i16> = part.iter().map(|t| i16::from(t.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn text_jsonl_and_parquet_give_the_same_documents() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let want = sentences(41);
    std::fs::write(path("a.txt"), format!("\u{FEFF}\n{}\r\n\r\n \n", want.join("\n\n\n"))).unwrap();
    let lines: String = want.iter().map(|t| format!("{}\n", serde_json::json!({"text": t, "n": 1}))).collect();
    std::fs::write(path("b.jsonl"), format!("{lines}{}\n", r#"{"text":null}"#)).unwrap();
    let cells: Vec<Option<&str>> = want.iter().map(|t| Some(t.as_str())).chain([None]).collect();
    write_parquet(&path("c.parquet"), &cells);
    for name in ["a.txt", "b.jsonl", "c.parquet"] {
        assert_eq!(read(&path(name)), want, "{name}");
    }
    // A directory is its files by name; the second and third copies are duplicates.
    let files = TextFiles {
        paths: vec![dir.path().to_owned()],
        cut: Cut::Paragraph,
        field: "text".into(),
        dedup: Dedup::Exact,
        heldout_fraction: 0.3,
    };
    let mut kept = Vec::new();
    let keep = |text: &str, _| {
        kept.push(text.to_owned());
        Ok(())
    };
    let counts = files.each(keep).unwrap();
    assert_eq!((kept, counts.documents, counts.exact_duplicates), (want, 41, 82));
    assert!((4..=22).contains(&counts.heldout_documents), "{counts:?}");
}

#[test]
fn bad_files_are_named_with_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let error = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let all: Result<Vec<String>, _> = documents(&[path], Cut::Paragraph, "text").unwrap().collect();
        all.unwrap_err().to_string()
    };
    assert!(error("x.jsonl", b"{\"text\":\"a\"}\n{\"txt\":\"b\"}\n").contains("line 2: `text` must be a string"));
    assert!(error("x.jsonl", b"{\"text\":\n").contains("line 1: not JSON"));
    assert!(error("x.parquet", b"PAR1 no").contains("not a Parquet file"));
    let path = dir.path().join("y.parquet");
    write_parquet(&path, &[Some("a")]);
    let other: Result<Vec<String>, _> = documents(&[path], Cut::Paragraph, "body").unwrap().collect();
    assert!(other.unwrap_err().to_string().contains("no column `body`"));
    assert!(documents(&[dir.path().join("nowhere")], Cut::Line, "text").is_err());
}

#[test]
fn the_split_follows_the_document_not_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b): (PathBuf, PathBuf) = (dir.path().join("a.txt"), dir.path().join("b.txt"));
    let mut texts = sentences(60);
    std::fs::write(&a, texts.join("\n\n")).unwrap();
    texts.reverse();
    std::fs::write(&b, texts.join("\n\n")).unwrap();
    let heldout = |path: &Path| {
        let files = TextFiles {
            paths: vec![path.to_owned()],
            cut: Cut::Paragraph,
            field: "text".into(),
            dedup: Dedup::None,
            heldout_fraction: 0.4,
        };
        let mut found = Vec::new();
        let keep = |text: &str, side| {
            if side == instructd::domain::Split::Heldout {
                found.push(text.to_owned());
            }
            Ok(())
        };
        files.each(keep).unwrap();
        found.sort();
        found
    };
    assert!(!heldout(&a).is_empty());
    assert_eq!(heldout(&a), heldout(&b));
}

fn trained(plan: TokenizerPlan, texts: &[String]) -> Tokenizer {
    let mut training = Training::new(plan);
    texts.iter().for_each(|t| training.add(t).unwrap());
    training.finish().unwrap()
}

#[test]
fn byte_level_bpe_round_trips_everything_and_is_deterministic() {
    let plan = TokenizerPlan { vocab_size: 380, chat: true, ..TokenizerPlan::default() };
    let mut texts = sentences(200);
    let tokenizer = trained(plan, &texts);
    assert_eq!(tokenizer.vocab_size(), 380);
    assert_eq!(["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(|t| tokenizer.token_to_id(t)), [0, 1, 2].map(Some));
    for text in
        ["a robot must obey", "这个项链太好看了 😀", "  two  spaces\n\ttab", "naïve café — 「引号」", "\u{0}\u{7f}"]
    {
        let ids = tokenizer.encode(text, true, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }
    // Learned words are shorter than their bytes; special tokens in user text are text.
    assert!(tokenizer.encode(" the orders given it", false, false).unwrap().len() <= 6);
    assert!(tokenizer.encode("这个项链", false, false).unwrap().len() <= 4);
    assert!(!tokenizer.encode("<|im_end|>", false, false).unwrap().contains(&2));
    assert_eq!(tokenizer.encode_with("<|im_end|>", false, Specials::Everywhere).unwrap(), [2]);
    assert!(tokenizer.config().unwrap()["chat_template"].as_str().unwrap().contains("<|im_start|>"));
    // The same texts in another order, again: the same file.
    texts.reverse();
    assert_eq!(trained(plan, &texts).to_json().unwrap(), tokenizer.to_json().unwrap());
}

#[test]
fn word_piece_knows_characters_and_is_deterministic() {
    let plan = TokenizerPlan { kind: Kind::WordPiece, vocab_size: 220, ..TokenizerPlan::default() };
    let mut texts = sentences(200);
    let tokenizer = trained(plan, &texts);
    let names = |text: &str| -> Vec<String> {
        let ids = tokenizer.encode(text, true, false).unwrap();
        ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap()).collect()
    };
    assert_eq!(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(|t| tokenizer.token_to_id(t)),
        [0, 1, 2, 3, 4].map(Some)
    );
    assert_eq!(names("这个项链"), ["[CLS]", "这", "个", "项", "链", "[SEP]"]);
    assert_eq!(names("The ROBOT"), ["[CLS]", "the", "robot", "[SEP]"]);
    // Pieces of unseen words come from the alphabet; an unseen character makes its word unknown.
    assert!(names("thebot").iter().any(|name| name.starts_with("##")));
    assert_eq!(names("Ω"), ["[CLS]", "[UNK]", "[SEP]"]);
    let ids = tokenizer.encode("a robot must obey the orders", true, false).unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a robot must obey the orders");
    texts.reverse();
    assert_eq!(trained(plan, &texts).to_json().unwrap(), tokenizer.to_json().unwrap());
}

#[test]
fn tokenizers_need_text_and_room() {
    assert!(Training::new(TokenizerPlan::default()).finish().is_err());
    let mut training = Training::new(TokenizerPlan { vocab_size: 100, ..TokenizerPlan::default() });
    training.add("some text").unwrap();
    assert!(training.finish().unwrap_err().to_string().contains("too small"));
}

#[test]
fn exact_ignores_white_space_and_near_forgives_a_word() {
    let text = "In the beginning God created the heaven and the earth. And the earth was without form, and \
                void; and darkness was upon the face of the deep. And the Spirit of God moved upon the face of \
                the waters. And God said, Let there be light: and there was light.";
    let spaced = text.replace(' ', "\n ");
    let near = format!("{text} Amen.");
    let other = "The quick brown fox jumps over the lazy dog, and the dog does not care at all about it.";
    let mut exact = Seen::new(Dedup::Exact);
    assert_eq!([text, &spaced, &near, other].map(|t| exact.is_new(t)), [true, false, true, true]);
    let mut all = Seen::new(Dedup::Near);
    assert_eq!([text, &spaced, &near, other].map(|t| all.is_new(t)), [true, false, false, true]);
    assert_eq!((all.exact_duplicates, all.near_duplicates), (1, 1));
    let mut none = Seen::new(Dedup::None);
    assert!(none.is_new(text) && none.is_new(text));
}

#[test]
fn chinese_texts_are_compared_by_characters() {
    let text = "起初神创造天地。地是空虚混沌，渊面黑暗；神的灵运行在水面上。神说，要有光，就有了光。神看光是好的，就把光暗分开了。";
    let mut seen = Seen::new(Dedup::Near);
    assert!(seen.is_new(text));
    assert!(!seen.is_new(&format!("{text}阿们")));
    assert!(seen.is_new("给女朋友买了这个项链，她很喜欢，这个项链太好看了，下次还会再来买的，谢谢店家。"));
}

#[test]
fn blocks_hold_every_token_once_and_no_piece_crosses_a_document() {
    let stream = Stream { ids: (0..23).collect(), ends: vec![3, 4, 14, 23] };
    let mut all = Vec::new();
    for b in 0..stream.n_blocks(6) {
        let pieces = stream.block(b, 6);
        assert!(pieces.iter().map(|p| p.len()).sum::<usize>() <= 6);
        for piece in pieces {
            let (first, last) = (piece[0] as usize, *piece.last().unwrap() as usize);
            assert!(stream.ends.iter().all(|e| !(first < *e && last >= *e)), "{piece:?} crosses an end");
            all.extend_from_slice(piece);
        }
    }
    assert_eq!(all, stream.ids);
    // Windows predict every token but the first of each document, once.
    let mut predicted: Vec<u32> = stream.windows(4).iter().flat_map(|w| w[1..].to_vec()).collect();
    predicted.sort_unstable();
    assert_eq!(predicted, (0..23).filter(|i| ![0, 3, 4, 14].contains(i)).collect::<Vec<_>>());
}

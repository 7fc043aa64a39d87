//! Few-shot, cloze and instruction prompts.

use std::collections::BTreeMap;

use instructd::prompt::{Cloze, ClozeError, Example, FewShot, instruction};

#[test]
fn few_shot_prompts_end_where_the_answer_begins() {
    let examples = [Example { input: "2+2".into(), output: "4".into() }];
    let shots = FewShot { instruction: Some("Add.".into()), ..FewShot::default() };
    assert_eq!(shots.prompt(&examples, "1+2"), "Add.\n\nInput: 2+2\nOutput: 4\n\nInput: 1+2\nOutput:");
    assert_eq!(FewShot::default().prompt(&[], "x"), "Input: x\nOutput:");
}

#[test]
fn cloze_keeps_text_as_text() {
    let words = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    };
    let two = words(&[("neg", "bad"), ("pos", "good")]);
    let cloze = Cloze::new("{text} It was {mask}.", two.clone()).unwrap();
    assert_eq!(cloze.around("A {mask} [MASK] film."), ("A {mask} [MASK] film. It was ".into(), ".".into()));
    assert_eq!(cloze.words().collect::<Vec<_>>(), [("neg", "bad"), ("pos", "good")]);
    assert_eq!(Cloze::new("{text}", two.clone()), Err(ClozeError::Placeholder("{mask}")));
    assert_eq!(Cloze::new("{text}{text}{mask}", two), Err(ClozeError::Placeholder("{text}")));
    assert!(matches!(Cloze::new("{text}{mask}", words(&[("a", "x"), ("b", "x")])), Err(ClozeError::SameWord(..))));
    assert_eq!(Cloze::new("{text}{mask}", words(&[])), Err(ClozeError::NoClasses));
}

#[test]
fn instructions_name_their_input_only_when_there_is_one() {
    assert!(instruction("Sum up.", Some("Long text")).ends_with("### Input:\nLong text\n\n### Response:\n"));
    assert!(!instruction("Say hi.", Some("  ")).contains("### Input"));
    assert_eq!(instruction("Say hi.", None), instruction("Say hi.", Some("")));
}

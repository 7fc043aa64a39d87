//! The `final_answer` rule, row by row: the wanted answer is taken whole, the completion's is extracted, numbers
//! are compared by value.

use instructd::data::PromptInput;
use instructd::train::{args::RewardSpec, score_texts};

fn right(answer: &str, text: &str) -> bool {
    let spec: RewardSpec = serde_json::from_value(serde_json::json!({"kind": "final_answer"})).unwrap();
    score_texts(&spec, &PromptInput::Text("q".into()), Some(answer), &[text]).unwrap()[0] == 1.0
}

fn check(rows: &[(&str, &str, bool)]) {
    let wrong: Vec<_> = rows.iter().filter(|(answer, text, expected)| right(answer, text) != *expected).collect();
    assert!(wrong.is_empty(), "(wanted, completion, should be right): {wrong:#?}");
}

/// The published inputs that the rule once got wrong.
#[test]
fn rows_that_were_wrong() {
    check(&[
        ("\\frac{63}{400}", "\\boxed{\\frac{64}{400}}", false),
        ("3/4", "So it is 7/4", false),
        ("3/4", "The answer is 3/4", true),
        ("#### 70000", "200,000-130,000=70,000\n#### 70,000 dollars", true),
        ("#### 8", "5+3=8\n#### 8\n\nQ: next one\nA: 2+2=4\n#### 4", true),
        ("2^10", "10", false),
        ("2^10", "The answer is 2^10.", true),
        ("2^10", "2^10 = 1024", true),
        ("10", "2^10", false),
        ("-3", "\u{2212}3", true),
        ("3", "\u{2212}3", false),
        ("\u{2212}3", "x = -3", true),
        ("0.5", ".5", true),
        (".5", "It is 0.50.", true),
        ("5", ".5", false),
        ("5", "#### **5**", true),
        ("#### **5**", "5", true),
        ("10:30", "30", false),
        ("10:30", "It leaves at 10:30.", true),
        ("30", "It leaves at 10:30.", false),
    ]);
}

#[test]
fn numbers_by_value() {
    check(&[
        ("1250", "it costs $1,250.00", true),
        ("1,250", "1250", true),
        ("1250", "1 250", true),
        ("1250", "1\u{202f}250", true),
        ("1234567", "12,34,567", true),
        ("12", "1,2", false),
        ("1,2", "12", false),
        ("1250", "1'250", true),
        ("1000000", "\\boxed{1{,}000{,}000}", true),
        ("1000000", "1\\,000\\,000", true),
        ("-4", "minus four is -4.", true),
        ("-4", "negative 4", true),
        ("4", "negative 4", false),
        ("4", "10-6=4", true),
        ("6", "10-6", false),
        ("-6", "10-6", false),
        ("3", "5 + 3", false),
        ("0.1", "0.1000", true),
        ("0.1", "0.10000000000000000001", false),
        ("0.3333", "1/3", false),
        ("1/3", "0.333333333333333333", false),
        ("9007199254740993", "9007199254740992", false),
        ("0", "-0", true),
        ("+7", "7", true),
        ("007", "7", true),
        ("7", "é7", true),
        ("7", "７", true),
        ("1250", "１，２５０", true),
        ("42", "٤٢", true),
        ("8", "八", true),
        ("12", "答案是12。", true),
        ("12", "#### twelve", true),
        ("45", "forty-five", true),
        ("7", "no number here", false),
        ("7", "#### \n", false),
        ("7", "", false),
    ]);
}

#[test]
fn fractions_powers_and_mixed_numbers() {
    check(&[
        ("3/4", "0.75", true),
        ("0.75", "3/4", true),
        ("3/4", "6/8", true),
        ("3/4", "\\frac34", true),
        ("\\dfrac{3}{4}", "3/4", true),
        ("-\\frac{1}{2}", "\\boxed{\\frac{-1}{2}}", true),
        ("\\frac{1}{2}", "\\boxed{-\\frac{1}{2}}", false),
        ("1/2", "½", true),
        ("3/2", "1 1/2", true),
        ("3/2", "1½", true),
        ("1\\frac{1}{2}", "1.5", true),
        ("11/2", "1 1/2", false),
        ("3 1/2", "1/2", false),
        ("5", "10/2", true),
        ("4", "3/4", false),
        ("3", "3/4", false),
        ("1/0", "1/0", true),
        ("0", "1/0", false),
        ("1024", "2^{10}", true),
        ("1024", "2**10", true),
        ("1024", "2\u{b9}\u{2070}", true),
        ("2^{-3}", "0.125", true),
        ("2", "x^2", false),
        ("2", "x\u{b2}", false),
        ("3", "The answer is 3x", false),
        ("3x", "\\boxed{3x}", true),
        ("3", "\\boxed{3x}", false),
        ("1500", "1.5e3", true),
        ("1.5 \\times 10^3", "1500", true),
        ("1500", "1.5 \u{d7} 10\u{b3}", true),
        ("1.5e-3", "0.0015", true),
        ("10", "1.5 x 10^3", false),
        ("1e999999999", "1", false),
        ("70000", "70 thousand", true),
        ("1200000", "$1.2 million", true),
        ("16", "\\sqrt{16}", false),
        ("\\sqrt{2}", "\\boxed{\\sqrt{2}}", true),
        ("2", "\\boxed{\\sqrt{2}}", false),
    ]);
}

#[test]
fn units_percentages_times_and_ratios() {
    check(&[
        ("5 km", "5", true),
        ("5", "5 km", true),
        ("5 km", "5 kilometers", true),
        ("5 km", "5 m", false),
        ("$5", "5 dollars", true),
        ("$5", "\u{20ac}5", false),
        ("$5", "5 cents", false),
        ("-$5", "$-5", true),
        ("12 cm^2", "12 cm\u{b2}", true),
        ("12 cm^2", "12 square centimeters", true),
        ("12 cm^2", "12 cm", false),
        ("60 km/h", "60 km per hour", true),
        ("60 km/h", "60 mph", false),
        ("8 apples", "He has 8 apples.", true),
        ("5", "There are 5 in total", true),
        ("5 cm", "\\boxed{5\\text{ cm}}", true),
        ("90", "\\boxed{90^\\circ}", true),
        ("50%", "50", true),
        ("50%", "50 percent", true),
        ("50\\%", "\\boxed{50\\%}", true),
        ("50%", "0.5", true),
        ("0.5", "50%", true),
        ("50%", "5%", false),
        ("50%", "$50", false),
        ("10:30", "10.30", false),
        ("10:30 AM", "10:30 a.m.", true),
        ("10:30 AM", "10:30 PM", false),
        ("22:30", "10:30 PM", true),
        ("10 am", "10:00 AM", true),
        ("9:05", "09:05", true),
        ("3:4", "3:4", true),
        ("3:4", "6:8", true),
        ("3:4", "4:3", false),
        ("4", "3:4", false),
        ("1:2:3", "2:4:6", true),
        ("2020-10-05", "5", false),
        ("2020-10-05", "The answer is 2020-10-05", true),
        ("2nd", "He finished 2nd", true),
        ("(1, 2)", "\\boxed{(1,2)}", true),
        ("(1, 2)", "\\boxed{(2,1)}", false),
        ("2", "\\boxed{(1,2)}", false),
        ("\\{1, 2\\}", "\\boxed{\\{2, 1\\}}", true),
    ]);
}

#[test]
fn the_final_answer_of_a_completion() {
    check(&[
        ("8", "first 3, then 5, so 8", true),
        ("#### 12", "3 * 4 = 12\n#### 12", true),
        ("3 * 4 = 12\n#### 12", "first 8, then 12", true),
        ("12", "10 apples", false),
        ("8", "The answer is 8. I checked it 2 times.", true),
        ("2", "The answer is 8. I checked it 2 times.", false),
        ("6", "The answer is 5. No, the answer is 6.", true),
        ("8", "**Answer:** 8", true),
        ("8", "Answer: $8$", true),
        ("8", "\\boxed{8} because 3 + 5 = 8, and 2 are left", true),
        ("8", "So $x = 8$.", true),
        ("8", "\\(8\\)", true),
        ("8", "\\boxed{x = 8}", true),
        ("x = 8", "8", true),
        ("8", "#### Step 1\n3 + 5\n#### Step 2\nadd\n#### 8", true),
        ("8", "#### 8 (3 + 5)", true),
        ("8", "5+3=8\nQuestion: what is 2+2?\nAnswer: 4", true),
        ("4", "5+3=8\nQuestion: what is 2+2?\nAnswer: 4", false),
        ("8", "Question: what is 5+3?\nAnswer: 8", true),
        ("8", "the answer is 5 + 3 = 8", true),
        ("5", "the answer is 5 + 3", false),
        ("5 or 6", "5", false),
        ("5 or 6", "The answer is 5 or 6.", true),
        ("Paris", "\\boxed{\\text{Paris}}", true),
        ("Paris", "The answer is Paris.", true),
        ("paris.", "Paris", true),
        ("Paris", "The answer is London.", false),
        ("Paris", "Not Paris but\nLondon", false),
        ("B", "The answer is (B).", true),
        ("(B)", "B", true),
        ("B", "The answer is B) 12 apples", true),
        ("B", "The answer is (C).", false),
        ("x^2 + 1", "\\boxed{x^2+1}", true),
        ("x^2 + 1", "1", false),
        ("yes", "#### Yes", true),
    ]);
}

/// The same arithmetic behind a pattern of one's own.
#[test]
fn a_pattern_extracts_from_the_completion_only() {
    let spec = serde_json::json!({"kind": "final_answer", "pattern": "<a>(.*?)</a>", "otherwise": -0.5});
    let spec: RewardSpec = serde_json::from_value(spec).unwrap();
    let score = |answer: &str, text: &str| {
        score_texts(&spec, &PromptInput::Text("q".into()), Some(answer), &[text]).unwrap()[0]
    };
    assert_eq!(score("3/4", "<a>1</a> then <a>0.75</a>"), 1.0);
    assert_eq!(score("<a>3/4</a>", "<a>6/8</a>"), 1.0);
    assert_eq!(score("3/4", "0.75"), -0.5);
    assert_eq!(score("Paris", "<a> paris. </a>"), 1.0);
    assert_eq!(score("2^10", "<a>10</a>"), -0.5);
    let none = score_texts(&spec, &PromptInput::Text("q".into()), Some("  "), &["1"]);
    assert!(none.unwrap_err().to_string().contains("answer"));
}

proptest::proptest! {
    /// Whatever two texts say, comparing them ends, and the answer itself is right if it is a number.
    #[test]
    fn no_text_breaks_the_rule(answer in "\\PC{0,40}", text in "[-0-9^/.,:{}#a-z \\\\$%\n]{0,60}") {
        if !answer.trim().is_empty() {
            let spec: RewardSpec = serde_json::from_value(serde_json::json!({"kind": "final_answer"})).unwrap();
            let _ = score_texts(&spec, &PromptInput::Text("q".into()), Some(&answer), &[&text]);
            let _ = score_texts(&spec, &PromptInput::Text("q".into()), Some(&format!("#### {text}1")), &[&answer]);
        }
    }

    #[test]
    fn a_fraction_is_right_in_every_spelling(n in -9999i64..9999, d in 1i64..9999) {
        let answer = format!("{n}/{d}");
        for text in [format!("{n}/{d}"), format!("\\boxed{{\\frac{{{}}}{{{}}}}}", 3 * n, 3 * d), format!("so #### {n} / {d}")] {
            proptest::prop_assert!(right(&answer, &text), "{} by {}", answer, text);
        }
        let other = format!("{}/{d}", n + 1);
        proptest::prop_assert!(!right(&answer, &other), "{} by {}", answer, other);
    }
}

//! Whole numbers in words: English below a billion, Chinese numerals.

const ONES: &[&str] = &[
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: &[&str] = &["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// The number that the whole text spells.
pub fn number(text: &str) -> Option<i64> {
    english(text).or_else(|| chinese(text))
}

fn english(text: &str) -> Option<i64> {
    let lower = text.to_lowercase().replace('-', " ");
    let (mut total, mut group, mut any) = (0i64, 0i64, false);
    for word in lower.split_whitespace() {
        if word == "and" && any {
            continue;
        }
        if let Some(n) = ONES.iter().position(|w| *w == word) {
            group += n as i64;
        } else if let Some(n) = TENS.iter().position(|w| *w == word) {
            group += (n as i64 + 2) * 10;
        } else {
            match word {
                "hundred" if any => group *= 100,
                "thousand" if any => (total, group) = (total + group * 1000, 0),
                "million" if any => (total, group) = (total + group * 1_000_000, 0),
                _ => return None,
            }
        }
        any = true;
        if group > 1_000_000 {
            return None;
        }
    }
    any.then_some(total + group)
}

fn chinese(text: &str) -> Option<i64> {
    let digit = |c: char| "零一二三四五六七八九".chars().position(|d| d == c);
    let (mut total, mut section, mut last, mut any) = (0i64, 0i64, None::<i64>, false);
    for c in text.trim().chars() {
        any = true;
        if c == '两' {
            last = Some(2);
        } else if c == '〇' {
            last = Some(0);
        } else if let Some(d) = digit(c) {
            last = Some(d as i64);
        } else {
            match c {
                '十' => section += last.take().unwrap_or(1) * 10,
                '百' => section += last.take()? * 100,
                '千' => section += last.take()? * 1000,
                '万' => (total, section) = ((total + section + last.take().unwrap_or(0)) * 10_000, 0),
                _ => return None,
            }
        }
    }
    any.then_some(total + section + last.unwrap_or(0))
}

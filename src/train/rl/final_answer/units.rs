//! Words and signs after a number: scales, percent signs, units, and halves of the day.

use super::characters::THIN;
use super::rational::Rational;

/// A unit by its usual symbol, with its power: `cm^2`, `km/h`, `$`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit(String);

/// (symbol, spellings). Other words are not units and are not compared.
const UNITS: &[(&str, &[&str])] = &[
    ("$", &["$", "dollar", "dollars", "usd", "bucks"]),
    ("cent", &["¢", "cent", "cents"]),
    ("€", &["€", "euro", "euros", "eur"]),
    ("£", &["£", "gbp"]),
    ("¥", &["¥", "yen", "yuan", "rmb", "cny", "jpy", "元"]),
    ("₹", &["₹", "rupee", "rupees", "inr"]),
    ("mm", &["mm", "millimeter", "millimeters", "millimetre", "millimetres"]),
    ("cm", &["cm", "centimeter", "centimeters", "centimetre", "centimetres", "厘米"]),
    ("m", &["m", "meter", "meters", "metre", "metres", "米"]),
    ("km", &["km", "kilometer", "kilometers", "kilometre", "kilometres", "公里", "千米"]),
    ("in", &["in", "inch", "inches"]),
    ("ft", &["ft", "foot", "feet"]),
    ("yd", &["yd", "yard", "yards"]),
    ("mi", &["mi", "mile", "miles"]),
    ("mg", &["mg", "milligram", "milligrams"]),
    ("g", &["g", "gram", "grams", "克"]),
    ("kg", &["kg", "kgs", "kilogram", "kilograms", "千克", "公斤"]),
    ("t", &["ton", "tons", "tonne", "tonnes"]),
    ("lb", &["lb", "lbs"]),
    ("oz", &["oz", "ounce", "ounces"]),
    ("ms", &["ms", "millisecond", "milliseconds"]),
    ("s", &["s", "sec", "secs", "second", "seconds", "秒"]),
    ("min", &["min", "mins", "minute", "minutes", "分钟"]),
    ("h", &["h", "hr", "hrs", "hour", "hours", "小时"]),
    ("d", &["day", "days", "天"]),
    ("week", &["week", "weeks", "wk", "周"]),
    ("month", &["month", "months"]),
    ("year", &["year", "years", "yr", "yrs", "年"]),
    ("l", &["l", "liter", "liters", "litre", "litres", "升"]),
    ("ml", &["ml", "milliliter", "milliliters", "millilitre", "millilitres", "毫升"]),
    ("gal", &["gal", "gallon", "gallons"]),
    ("°", &["°", "degree", "degrees", "deg", "度"]),
    ("°C", &["°c", "celsius"]),
    ("°F", &["°f", "fahrenheit"]),
    ("rad", &["rad", "radian", "radians"]),
    ("mi/h", &["mph"]),
    ("km/h", &["kph", "kmh"]),
    ("W", &["w", "watt", "watts"]),
    ("kW", &["kw", "kilowatt", "kilowatts"]),
    ("V", &["v", "volt", "volts"]),
    ("J", &["j", "joule", "joules"]),
    ("N", &["n", "newton", "newtons"]),
    ("Hz", &["hz", "hertz"]),
    ("B", &["byte", "bytes"]),
    ("kB", &["kb", "kilobyte", "kilobytes"]),
    ("MB", &["mb", "megabyte", "megabytes"]),
    ("GB", &["gb", "gigabyte", "gigabytes"]),
];

/// Words and letters that are units only directly after digits, or if there is no other text.
const ALSO_WORDS: &[&str] = &["in", "second", "n", "v", "w", "j"];

fn named(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    UNITS.iter().find(|(_, spellings)| spellings.contains(&lower.as_str())).map(|(symbol, _)| *symbol)
}

fn skip_spaces(chars: &[char], from: usize) -> usize {
    (from..chars.len()).find(|i| !matches!(chars[*i], ' ' | THIN | '\t')).unwrap_or(chars.len())
}

/// The word at `i`, and its end. Signs of currencies and angles are words.
fn word(chars: &[char], i: usize) -> (String, usize) {
    match chars.get(i) {
        Some(c @ ('$' | '€' | '£' | '¥' | '₹' | '¢')) => (c.to_string(), i + 1),
        Some('°') => {
            let scale = chars.get(i + 1).filter(|c| matches!(c, 'C' | 'F' | 'c' | 'f'));
            let scale = scale.filter(|_| !chars.get(i + 2).is_some_and(|c| c.is_alphabetic()));
            (format!("°{}", scale.map(char::to_string).unwrap_or_default()), i + 1 + usize::from(scale.is_some()))
        }
        _ => {
            let text: String = chars.iter().skip(i).take_while(|c| c.is_alphabetic()).collect();
            let end = i + text.chars().count();
            (text, end)
        }
    }
}

/// The currency before a number, by a sign or a code (`$`, `US$`, `EUR `), and the start of the number.
pub fn currency_before(chars: &[char], i: usize) -> Option<(Unit, usize)> {
    let us = chars[i.min(chars.len())..].starts_with(&['U', 'S', '$']);
    let (name, end) = word(chars, if us { i + 2 } else { i });
    let sign = matches!(name.as_str(), "$" | "€" | "£" | "¥" | "₹" | "¢");
    let code = ["USD", "EUR", "GBP", "CNY", "RMB", "JPY", "INR"].contains(&name.as_str());
    if !sign && !code {
        return None;
    }
    Some((Unit(named(&name)?.to_owned()), skip_spaces(chars, end)))
}

/// A factor written as a word: `thousand`, `k`, `万`.
pub fn scale(chars: &[char], end: usize) -> Option<(Rational, usize)> {
    const WORDS: &[(&str, i64)] = &[
        ("hundred", 100),
        ("thousand", 1000),
        ("million", 1_000_000),
        ("billion", 1_000_000_000),
        ("trillion", 1_000_000_000_000),
        ("dozen", 12),
    ];
    const GLUED: &[(&str, i64)] = &[("k", 1000), ("K", 1000), ("bn", 1_000_000_000)];
    let at = skip_spaces(chars, end);
    let (name, after) = word(chars, at);
    let lower = name.to_lowercase();
    let glued = GLUED.iter().find(|(w, _)| at == end && *w == name);
    if let Some((_, factor)) = WORDS.iter().find(|(w, _)| *w == lower).or(glued) {
        return Some((Rational::whole(*factor), after));
    }
    let factor = match chars.get(end)? {
        '万' => 10_000,
        '亿' => 100_000_000,
        _ => return None,
    };
    Some((Rational::whole(factor), end + 1))
}

/// The end of a percent sign or word.
pub fn percent(chars: &[char], end: usize) -> Option<usize> {
    let at = skip_spaces(chars, end);
    if chars.get(at) == Some(&'%') {
        return Some(at + 1);
    }
    let (name, after) = word(chars, at);
    match name.to_lowercase().as_str() {
        "percent" | "percentage" | "pct" => Some(after),
        "per" => {
            let (next, after) = word(chars, skip_spaces(chars, after));
            (next.to_lowercase() == "cent").then_some(after)
        }
        _ => None,
    }
}

/// `am`, `p.m.`: whether it is the afternoon, and the end of the word.
pub fn half_of_day(chars: &[char], end: usize) -> Option<(bool, usize)> {
    let at = skip_spaces(chars, end);
    let afternoon = match chars.get(at)?.to_ascii_lowercase() {
        'a' => false,
        'p' => true,
        _ => return None,
    };
    let dotted = chars.get(at + 1) == Some(&'.');
    let m = at + 1 + usize::from(dotted);
    let is_m = chars.get(m).is_some_and(|c| c.eq_ignore_ascii_case(&'m'));
    let ends = !chars.get(m + 1).is_some_and(|c| c.is_alphanumeric());
    let end = m + 1 + usize::from(dotted && chars.get(m + 1) == Some(&'.'));
    (is_m && ends).then_some((afternoon, end))
}

/// The unit after a number that ends at `end`: `cm`, `square meters`, `km/h`, `miles per hour`.
pub fn unit(chars: &[char], end: usize, alone: bool) -> Option<(Unit, usize)> {
    let mut at = skip_spaces(chars, end);
    if chars.get(at) == Some(&'$') && chars.get(at + 1).is_some_and(|c| c.is_ascii_digit()) {
        return None;
    }
    let (mut name, mut after) = word(chars, at);
    let mut power = match name.to_lowercase().as_str() {
        "square" | "sq" => 2,
        "cubic" => 3,
        _ => 1,
    };
    if power > 1 {
        at = skip_spaces(chars, after);
        (name, after) = word(chars, at);
    }
    // A `$` after a number ends a formula.
    if name == "$" {
        return None;
    }
    if at > end && !alone && ALSO_WORDS.contains(&name.as_str()) {
        return None;
    }
    let mut symbol = named(&name)?.to_owned();
    if chars.get(after) == Some(&'^') {
        let braced = chars.get(after + 1) == Some(&'{');
        let digit = after + 1 + usize::from(braced);
        power = chars.get(digit)?.to_digit(10)?;
        after = digit + 1 + usize::from(braced);
    }
    if power > 1 {
        symbol = format!("{symbol}^{power}");
    }
    let slash = chars.get(after) == Some(&'/');
    let (per, per_end) = word(chars, skip_spaces(chars, after));
    if slash || per == "per" || per == "an" {
        let (below, below_end) = word(chars, skip_spaces(chars, if slash { after + 1 } else { per_end }));
        if let Some(below) = named(&below) {
            return Some((Unit(format!("{symbol}/{below}")), below_end));
        }
    }
    Some((Unit(symbol), after))
}

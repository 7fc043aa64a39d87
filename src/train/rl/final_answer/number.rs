//! Parses numbers: decimals with separators, fractions, mixed numbers, powers, percentages, amounts with a unit, times
//! of day and ratios. Values are exact.

use num_bigint::BigInt;

use super::characters::{FRACTION, THIN, group_end};
use super::rational::Rational;
use super::units::{self, Unit};

/// The value of a text.
#[derive(Clone, Debug)]
pub enum Value {
    Number {
        number: Rational,
        percent: bool,
        unit: Option<Unit>,
    },
    /// A time in seconds since midnight, and whether it is marked as before or after noon.
    Time {
        seconds: u32,
        afternoon: Option<bool>,
    },
    /// `3:4`, `1:2:3`.
    Ratio(Vec<Rational>),
    /// `(1, 2)`; sets have no order.
    List {
        items: Vec<Value>,
        is_set: bool,
    },
}

/// The result of parsing.
#[derive(Clone, Debug)]
pub enum Parsed {
    /// A value, and the index after it.
    Value(Value, usize),
    /// Text with digits that has no value (`1.2.3`, `2^n`, `3x`), and the index after it.
    Opaque(usize),
}

/// Parses values in normalised characters.
#[derive(Clone, Copy)]
pub struct NumberParser<'c> {
    pub chars: &'c [char],
    /// The characters are a single answer, so groups of digits may be separated by spaces.
    pub alone: bool,
}

/// A part of a number: a value and its end, an error and its end, or `None` if there is none.
type Part = Option<Result<(Rational, usize), usize>>;

impl NumberParser<'_> {
    fn at(&self, i: usize) -> char {
        self.chars.get(i).copied().unwrap_or('\0')
    }

    fn digit(&self, i: usize) -> bool {
        self.at(i).is_ascii_digit()
    }

    pub fn spaces(&self, mut i: usize) -> usize {
        while matches!(self.at(i), ' ' | THIN | '\t') {
            i += 1;
        }
        i
    }

    fn digits(&self, from: usize) -> usize {
        (from..).find(|i| !self.digit(*i)).unwrap_or(from)
    }

    fn whole(&self, from: usize, to: usize) -> Option<BigInt> {
        let text: String = self.chars[from..to].iter().collect();
        text.parse().ok()
    }

    /// The unsigned value that begins at `i` with a digit, a point before a digit, or a fraction.
    pub fn value(&self, i: usize) -> Option<Parsed> {
        if let Some(reading) = self.clock(i) {
            return Some(reading);
        }
        let (mut number, mut end) = match self.amount(i)? {
            Ok(found) => found,
            Err(end) => return Some(Parsed::Opaque(self.rest_of_word(end))),
        };
        if let Some((scale, after)) = units::scale(self.chars, end) {
            match number.times(&scale) {
                Some(scaled) => (number, end) = (scaled, after),
                None => return Some(Parsed::Opaque(after)),
            }
        }
        if self.at(end) == ':' && self.digit(end + 1) {
            return Some(self.ratio(number, end));
        }
        if self.alone && self.at(self.spaces(end)) == ':' && self.digit(self.spaces(self.spaces(end) + 1)) {
            return Some(self.ratio(number, end));
        }
        // An ordinal: 2nd, 21st.
        let word: String = self.chars[end..].iter().take_while(|c| c.is_alphabetic()).collect();
        if matches!(word.as_str(), "st" | "nd" | "rd" | "th") {
            return Some(Parsed::Value(Value::Number { number, percent: false, unit: None }, end + 2));
        }
        if let Some(after) = units::percent(self.chars, end) {
            return Some(Parsed::Value(Value::Number { number, percent: true, unit: None }, after));
        }
        let (unit, after) = match units::unit(self.chars, end, self.alone) {
            Some((unit, after)) => (Some(unit), after),
            None => (None, end),
        };
        let glued = self.at(after);
        let joined = |sign: char| glued == sign && (self.digit(after + 1) || self.at(after + 1) == FRACTION);
        if glued.is_ascii_alphabetic() || matches!(glued, 'π' | '√' | '^') || joined('-') || joined('/') || joined(':')
        {
            return Some(Parsed::Opaque(self.rest_of_word(after)));
        }
        Some(Parsed::Value(Value::Number { number, percent: false, unit }, after))
    }

    /// The end of the characters that are joined to digits.
    fn rest_of_word(&self, mut i: usize) -> usize {
        loop {
            let c = self.at(i);
            let joins = matches!(c, '-' | '/' | ':' | '.' | ',' | '^' | '_' | '{' | '}')
                && (self.at(i + 1).is_alphanumeric() || matches!(self.at(i + 1), '-' | '{' | '}'));
            if !(c.is_ascii_alphanumeric() || joins || matches!(c, 'π' | '√' | '}')) {
                return i;
            }
            i += 1;
        }
    }

    /// `10:30`, `9:05:30 pm`, `10 am`.
    fn clock(&self, i: usize) -> Option<Parsed> {
        let hour_end = self.digits(i);
        if !(1..=2).contains(&(hour_end - i)) {
            return None;
        }
        let number = |from: usize, to: usize| self.chars[from..to].iter().collect::<String>().parse::<u32>().ok();
        let two = |at: usize| {
            let fits = self.at(at) == ':' && self.digits(at + 1) == at + 3;
            fits.then(|| number(at + 1, at + 3)).flatten().filter(|n| *n < 60)
        };
        let hour = number(i, hour_end)?;
        let minutes = two(hour_end);
        let mut end = if minutes.is_some() { hour_end + 3 } else { hour_end };
        let mut seconds = 0;
        if let Some(s) = minutes.and_then(|_| two(end)) {
            (seconds, end) = (s, end + 3);
        }
        let half = units::half_of_day(self.chars, end);
        if hour > 24 || (minutes.is_none() && half.is_none()) || (minutes.is_some() && self.at(end) == ':') {
            return None;
        }
        let (afternoon, end) = half.map_or((None, end), |(afternoon, end)| (Some(afternoon), end));
        let hour = match afternoon {
            Some(_) if !(1..=12).contains(&hour) => return None,
            Some(true) => hour % 12 + 12,
            Some(false) => hour % 12,
            None => hour,
        };
        if self.at(end).is_ascii_alphabetic() {
            return None;
        }
        let seconds = hour * 3600 + minutes.unwrap_or(0) * 60 + seconds;
        Some(Parsed::Value(Value::Time { seconds, afternoon }, end))
    }

    fn ratio(&self, first: Rational, mut end: usize) -> Parsed {
        let mut terms = vec![first];
        loop {
            let colon = if self.alone { self.spaces(end) } else { end };
            let next = if self.alone { self.spaces(colon + 1) } else { colon + 1 };
            if self.at(colon) != ':' || !self.digit(next) {
                break;
            }
            match self.amount(next) {
                Some(Ok((term, after))) => {
                    terms.push(term);
                    end = after;
                }
                _ => return Parsed::Opaque(self.rest_of_word(next)),
            }
        }
        Parsed::Value(Value::Ratio(terms), end)
    }

    /// A number without unit: decimal, fraction, mixed number, power, times a power of ten.
    fn amount(&self, i: usize) -> Part {
        let (mut number, mut end) = match self.term(i)? {
            Ok(found) => found,
            Err(end) => return Some(Err(end)),
        };
        let whole = self.digits(i) == end;
        if let Some((fraction, after)) = whole.then(|| self.mixed(end)).flatten() {
            return Some(Ok((number.plus(&fraction), after)));
        }
        let slash = self.spaces(end);
        let below = self.spaces(slash + 1);
        if self.at(slash) == '/' && (self.digit(below) || self.at(below) == FRACTION) {
            let Some(Ok((divisor, after))) = self.term(below) else { return Some(Err(below)) };
            let again = self.at(after) == '/' && self.digit(after + 1);
            match number.over(&divisor).filter(|_| !again) {
                Some(quotient) => (number, end) = (quotient, after),
                None => return Some(Err(after)),
            }
        }
        // 1.5 × 10^3
        let sign = self.spaces(end);
        let ten = self.spaces(sign + 1);
        let power = self.at(ten) == '1' && self.at(ten + 1) == '0' && self.at(ten + 2) == '^';
        if matches!(self.at(sign), '×' | 'x' | 'X' | '*') && power {
            let Some(Ok((factor, after))) = self.term(ten) else { return Some(Err(ten)) };
            match number.times(&factor) {
                Some(product) => (number, end) = (product, after),
                None => return Some(Err(after)),
            }
        }
        Some(Ok((number, end)))
    }

    /// The proper fraction after the integer of a mixed number: ` 1/2`, ` and 1/2`, `\frac{1}{2}`.
    fn mixed(&self, end: usize) -> Option<(Rational, usize)> {
        let mut at = self.spaces(end);
        let and: String = self.chars[at.min(self.chars.len())..].iter().take(4).collect();
        if self.alone && at > end && and == "and " {
            at = self.spaces(at + 4);
        }
        if self.at(at) == FRACTION {
            return self.term(at)?.ok();
        }
        let above_end = self.digits(at);
        if at == end || above_end == at || self.at(above_end) != '/' {
            return None;
        }
        let below_end = self.digits(above_end + 1);
        let (above, below) = (self.whole(at, above_end)?, self.whole(above_end + 1, below_end)?);
        (above < below && self.at(below_end) != '/')
            .then_some((Rational { numerator: above, denominator: below }, below_end))
    }

    /// A decimal or a fraction in LaTeX, with its power.
    fn term(&self, i: usize) -> Part {
        let (base, end) = match if self.at(i) == FRACTION { self.fraction(i) } else { self.decimal(i) }? {
            Ok(found) => found,
            Err(end) => return Some(Err(end)),
        };
        if self.at(end) != '^' {
            return Some(Ok((base, end)));
        }
        let open = matches!(self.at(end + 1), '{' | '(');
        let mut at = end + 1 + usize::from(open);
        let below = self.at(at) == '-';
        at += usize::from(below || self.at(at) == '+');
        let after = self.digits(at);
        let exponent = self.chars[at.min(after)..after].iter().collect::<String>().parse::<i64>().ok();
        let close = after + usize::from(open);
        let closed = !open || matches!(self.at(after), '}' | ')');
        let raised = exponent.filter(|_| closed).and_then(|n| base.power(if below { -n } else { n }));
        Some(raised.map_or(Err(after.max(end + 1)), |number| Ok((number, close))))
    }

    /// `\frac` with two arguments, each in braces or of one digit.
    fn fraction(&self, i: usize) -> Part {
        let (above, at) = match self.argument(self.spaces(i + 1)) {
            Ok(found) => found,
            Err(end) => return Some(Err(end)),
        };
        let (below, end) = match self.argument(self.spaces(at)) {
            Ok(found) => found,
            Err(end) => return Some(Err(end)),
        };
        Some(above.over(&below).map(|number| (number, end)).ok_or(end))
    }

    fn argument(&self, i: usize) -> Result<(Rational, usize), usize> {
        if self.digit(i) {
            let number = self.whole(i, i + 1).ok_or(i + 1)?;
            return Ok((Rational { numerator: number, denominator: 1.into() }, i + 1));
        }
        if self.at(i) != '{' {
            return Err(i + 1);
        }
        let end = group_end(self.chars, i);
        let within = NumberParser { chars: &self.chars[..end.saturating_sub(1)], alone: self.alone };
        let sign = within.spaces(i + 1);
        let below = within.at(sign) == '-';
        let start = within.spaces(sign + usize::from(below || within.at(sign) == '+'));
        match within.amount(start) {
            Some(Ok((number, after))) if within.spaces(after) == end - 1 => {
                Ok((if below { number.negative() } else { number }, end))
            }
            _ => Err(end),
        }
    }

    /// Digits with separators between groups, a point and decimals, an exponent.
    fn decimal(&self, i: usize) -> Part {
        if !(self.digit(i) || self.at(i) == '.' && self.digit(i + 1)) {
            return None;
        }
        let mut end = self.digits(i);
        let mut digits: String = self.chars[i..end].iter().collect();
        if let Some(grouped) = self.groups(i, end) {
            match grouped {
                Ok((all, after)) => (digits, end) = (all, after),
                Err(after) => return Some(Err(after)),
            }
        }
        let mut places = 0i64;
        if self.at(end) == '.' && self.digit(end + 1) {
            let after = self.digits(end + 1);
            digits.extend(&self.chars[end + 1..after]);
            places = (after - end - 1) as i64;
            end = after;
            if matches!(self.at(end), '.' | ',') && self.digit(end + 1) {
                return Some(Err(end));
            }
        }
        let signed = end + 1 + usize::from(matches!(self.at(end + 1), '+' | '-'));
        if matches!(self.at(end), 'e' | 'E') && self.digit(signed) {
            let after = self.digits(signed);
            let exponent: Option<i64> = self.chars[signed..after].iter().collect::<String>().parse().ok();
            let exponent = exponent.map(|n| if self.at(signed - 1) == '-' { -n } else { n });
            match exponent {
                Some(n) => places -= n,
                None => return Some(Err(after)),
            }
            end = after;
        }
        let above: BigInt = digits.parse().ok()?;
        let number = Rational { numerator: above, denominator: 1.into() };
        let number = Rational::whole(10).power(-places).and_then(|scale| number.times(&scale));
        Some(number.map(|number| (number, end)).ok_or(end))
    }

    /// The digits of all groups, if a separator follows the first one; an error if they do not form a number.
    fn groups(&self, i: usize, first_end: usize) -> Option<Result<(String, usize), usize>> {
        let separator = self.at(first_end);
        let spaced = separator == ' ' && self.alone;
        if first_end == i || !(matches!(separator, ',' | '\'' | '_' | THIN) || spaced) || !self.digit(first_end + 1) {
            return None;
        }
        let mut lengths = vec![first_end - i];
        let mut digits: String = self.chars[i..first_end].iter().collect();
        let mut end = first_end;
        while self.at(end) == separator && self.digit(end + 1) {
            let after = self.digits(end + 1);
            lengths.push(after - end - 1);
            digits.extend(&self.chars[end + 1..after]);
            end = after;
        }
        let (last, before) = (lengths[lengths.len() - 1], &lengths[1..lengths.len() - 1]);
        let thousands = last == 3 && lengths[0] <= 3 && before.iter().all(|n| *n == 3);
        let lakhs = separator == ',' && last == 3 && lengths[0] <= 2 && before.iter().all(|n| *n == 2);
        if separator == '_' || thousands || lakhs {
            return Some(Ok((digits, end)));
        }
        // Another comma between digits may separate a list or be a decimal comma, so there is no number.
        (separator == ',').then_some(Err(end))
    }
}

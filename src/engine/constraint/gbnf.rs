//! Translates GBNF, the grammar notation of llama.cpp, to Lark for llguidance. Every character becomes a terminal,
//! because GBNF has no lexer: with longer terminals, longest match would change the language. Rules get numbered names.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Maximum nesting of parentheses.
const MAX_DEPTH: usize = 64;
/// Maximum of a repetition count.
const MAX_REPETITIONS: usize = 10_000;

/// Whether a grammar is GBNF, which defines rules by `::=`, and not Lark.
pub fn is_gbnf(text: &str) -> bool {
    text.lines().any(|line| {
        let rule = line.trim_start().split_once("::=").map(|(name, _)| name.trim_end());
        rule.is_some_and(|name| !name.is_empty() && name.chars().all(is_name))
    })
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// The Lark grammar that accepts the texts of a GBNF grammar.
///
/// # Errors
/// What is wrong, with the line.
pub fn to_lark(text: &str) -> Result<String, String> {
    let mut parser = Parser { chars: text.chars().collect(), at: 0, names: BTreeMap::new(), defined: Vec::new() };
    let mut lark = String::new();
    loop {
        parser.space(true);
        if parser.peek().is_none() {
            break;
        }
        let name = parser.name().ok_or_else(|| parser.error("a rule's name is expected"))?;
        parser.space(true);
        if !parser.eat("::=") {
            return Err(parser.error("::= is expected"));
        }
        let rule = parser.rule(&name);
        if parser.defined.contains(&rule) {
            return Err(parser.error(&format!("the rule {name} is defined twice")));
        }
        parser.defined.push(rule.clone());
        let body = parser.alternatives(0)?;
        // Writing to a String does not fail.
        let _ = writeln!(lark, "{rule}: {body}");
    }
    let missing = parser.names.iter().find(|(_, rule)| !parser.defined.contains(rule));
    match missing {
        Some((name, _)) => Err(format!("the rule {name} is not defined")),
        None if !parser.names.contains_key("root") => Err("the rule root is missing".into()),
        None => Ok(lark),
    }
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    /// Names of rules in GBNF and in Lark.
    names: BTreeMap<String, String>,
    defined: Vec<String>,
}

impl Parser {
    fn error(&self, what: &str) -> String {
        let line = 1 + self.chars[..self.at.min(self.chars.len())].iter().filter(|c| **c == '\n').count();
        format!("line {line} of the grammar: {what}")
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    fn eat(&mut self, text: &str) -> bool {
        let here = text.chars().enumerate().all(|(i, c)| self.chars.get(self.at + i) == Some(&c));
        if here {
            self.at += text.chars().count();
        }
        here
    }

    /// Skips white space and comments; with `lines`, also line ends.
    fn space(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                '#' => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                '\n' | '\r' if lines => self.at += 1,
                ' ' | '\t' => self.at += 1,
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Option<String> {
        let start = self.at;
        while self.peek().is_some_and(is_name) {
            self.at += 1;
        }
        (self.at > start).then(|| self.chars[start..self.at].iter().collect())
    }

    fn rule(&mut self, name: &str) -> String {
        if name == "root" {
            return self.names.entry(name.into()).or_insert_with(|| "start".into()).clone();
        }
        let next = format!("r{}", self.names.len());
        self.names.entry(name.into()).or_insert(next).clone()
    }

    fn alternatives(&mut self, depth: usize) -> Result<String, String> {
        if depth > MAX_DEPTH {
            return Err(self.error("parentheses are nested too deeply"));
        }
        let mut all = vec![self.sequence(depth)?];
        loop {
            let before = self.at;
            self.space(true);
            if !self.eat("|") {
                // The end of the line is the end of the rule.
                self.at = before;
                return Ok(all.join(" | "));
            }
            self.space(true);
            all.push(self.sequence(depth)?);
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<String, String> {
        let mut parts: Vec<String> = Vec::new();
        loop {
            self.space(depth > 0);
            if parts.is_empty() && depth == 0 {
                self.first_line();
            }
            let part = match self.peek() {
                Some('"') => self.literal()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.at += 1;
                    "/(?s:.)/".to_owned()
                }
                Some('(') => {
                    self.at += 1;
                    let inner = self.alternatives(depth + 1)?;
                    self.space(true);
                    if !self.eat(")") {
                        return Err(self.error(") is expected"));
                    }
                    format!("({inner})")
                }
                Some(c) if is_name(c) => {
                    let name = self.name().unwrap_or_default();
                    self.rule(&name)
                }
                _ => break,
            };
            parts.push(self.repeated(part)?);
        }
        Ok(if parts.is_empty() { "\"\"".to_owned() } else { parts.join(" ") })
    }

    /// Skips to the next line if the rule continues there: its first part may be on the line after `::=`, unless that
    /// line begins another rule.
    fn first_line(&mut self) {
        let before = self.at;
        self.space(true);
        let start = self.at;
        if self.name().is_some() {
            self.space(false);
            if self.eat("::=") {
                self.at = before;
                return;
            }
        }
        self.at = start;
    }

    fn repeated(&mut self, part: String) -> Result<String, String> {
        let mut part = part;
        loop {
            match self.peek() {
                Some(sign @ ('*' | '+' | '?')) => {
                    self.at += 1;
                    part = format!("({part}){sign}");
                }
                Some('{') => {
                    self.at += 1;
                    let times = self.times()?;
                    part = format!("({part}){times}");
                }
                _ => return Ok(part),
            }
        }
    }

    fn times(&mut self) -> Result<String, String> {
        let low = self.number()?;
        self.space(false);
        let (low, high) = match self.eat(",") {
            false => (low, low),
            true => {
                self.space(false);
                (Some(low.unwrap_or(0)), self.number()?)
            }
        };
        self.space(false);
        let Some(low) = low.filter(|_| self.eat("}")) else {
            return Err(self.error("a repetition is written {n}, {n,} or {n,m}"));
        };
        if high.is_some_and(|high| high < low) || low.max(high.unwrap_or(0)) > MAX_REPETITIONS {
            return Err(self.error(&format!(
                "a repetition is at most {MAX_REPETITIONS}, and its maximum is not below its minimum"
            )));
        }
        Ok(format!("{{{low},{}}}", high.map(|h| h.to_string()).unwrap_or_default()))
    }

    fn number(&mut self) -> Result<Option<usize>, String> {
        self.space(false);
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        let digits: String = self.chars[start..self.at].iter().collect();
        match digits.is_empty() {
            true => Ok(None),
            false => digits.parse().map(Some).map_err(|_| self.error("the number is too large")),
        }
    }

    /// A literal: `"abc"` becomes three terminals.
    fn literal(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut parts = Vec::new();
        loop {
            match self.peek() {
                Some('"') => {
                    self.at += 1;
                    break;
                }
                None | Some('\n') => return Err(self.error("a literal has no closing quotation mark")),
                Some(_) => {
                    let c = self.character()?;
                    parts.push(format!("/{}/", escaped(c)));
                }
            }
        }
        Ok(match parts.len() {
            0 => "\"\"".to_owned(),
            1 => parts.remove(0),
            _ => format!("({})", parts.join(" ")),
        })
    }

    fn class(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut class = String::from("/[");
        if self.eat("^") {
            class.push('^');
        }
        let mut any = false;
        loop {
            match self.peek() {
                None | Some('\n') => return Err(self.error("a character class has no closing bracket")),
                Some(']') => {
                    self.at += 1;
                    break;
                }
                Some(_) => {}
            }
            any = true;
            let low = self.character()?;
            class.push_str(&escaped(low));
            let range = self.peek() == Some('-') && self.chars.get(self.at + 1).is_some_and(|c| *c != ']');
            if range {
                self.at += 1;
                let high = self.character()?;
                if high < low {
                    return Err(self.error("a range in a character class ends before it begins"));
                }
                class.push('-');
                class.push_str(&escaped(high));
            }
        }
        if !any {
            return Err(self.error("a character class is empty"));
        }
        class.push_str("]/");
        Ok(class)
    }

    /// One character of a literal or class, unescaped.
    fn character(&mut self) -> Result<char, String> {
        let c = self.next().ok_or_else(|| self.error("the grammar ends in a literal"))?;
        if c != '\\' {
            return Ok(c);
        }
        let escape = self.next().ok_or_else(|| self.error("the grammar ends in an escape"))?;
        let digits = match escape {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            'n' => return Ok('\n'),
            '\\' | '"' | '[' | ']' | '-' | '^' | '/' => return Ok(escape),
            other => return Err(self.error(&format!("\\{other} is not an escape sequence"))),
        };
        let end = self.at + digits;
        let text: String = self.chars.get(self.at..end).unwrap_or_default().iter().collect();
        let found = u32::from_str_radix(&text, 16).ok().and_then(char::from_u32);
        let found =
            found.ok_or_else(|| self.error(&format!("\\{escape} needs {digits} hexadecimal digits of a character")))?;
        self.at = end;
        Ok(found)
    }
}

/// The character, escaped for a regular expression.
fn escaped(c: char) -> String {
    if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\x{{{:x}}}", u32::from(c)) }
}

#[cfg(test)]
mod tests {
    use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities};
    use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar};

    use super::*;

    /// Whether the grammar accepts the text as a whole; tokens are bytes.
    fn accepts(grammar: &str, text: &str) -> bool {
        let environment = ApproximateTokEnv::single_byte_env();
        let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &[]).unwrap();
        let lark = to_lark(grammar).unwrap();
        let mut matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(lark.clone())));
        assert!(!matcher.is_error(), "{:?} of\n{lark}", matcher.get_error());
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        matcher.validate_tokens(&tokens).unwrap() == tokens.len()
            && matcher.consume_tokens(&tokens).is_ok()
            && matcher.is_accepting().unwrap()
    }

    #[test]
    fn translated_grammars_accept_the_same_texts() {
        let arithmetic = "# llama.cpp's example\nroot  ::= (expr \"=\" ws term \"\\n\")+\nexpr  ::= term ([-+*/] term)*\n\
                          term  ::= ident | num | \"(\" ws expr \")\" ws\nident ::= [a-z] [a-z0-9_]* ws\n\
                          num   ::= [0-9]+ ws\nws    ::= [ \\t\\n]*";
        // A lexer with longest match would refuse these texts.
        let overlap = "root ::= [a-z]* \"begin\" [a-z]*";
        let nested = "root ::=\n  pair |\n  \"x\"{2,3} # a comment\npair ::= \"<\" root? \">\" | \"\\u4e2d\" [^\\x00-\\x1F\"]{1,}";
        for (grammar, yes, no) in [
            (arithmetic, vec!["1=1\n", "(a+b)*2 = c\n", "x=y\nz=1\n"], vec!["", "1=\n", "1=1", "A=1\n", "(1=1\n"]),
            (overlap, vec!["begin", "xbeginy", "bbegin", "beginbegin"], vec!["begi", "beg1n", ""]),
            (nested, vec!["<>", "<<xx>>", "xxx", "中é"], vec!["<x>", "x", "xxxx", "中", "中\"", "<"]),
            ("root ::= | \"a\" root \"b\"", vec!["", "ab", "aabb"], vec!["a", "abb"]),
            ("root ::= \"\" | .", vec!["", "\n", "é"], vec!["ab"]),
        ] {
            for text in yes {
                assert!(accepts(grammar, text), "{text:?} by {grammar}");
            }
            for text in no {
                assert!(!accepts(grammar, text), "{text:?} by {grammar}");
            }
        }
    }

    #[test]
    fn errors_name_the_problem() {
        for (grammar, part) in [
            ("a ::= \"x\"", "root is missing"),
            ("root ::= b", "rule b is not defined"),
            ("root ::= \"x", "no closing quotation"),
            ("root ::= [a", "no closing bracket"),
            ("root ::= []", "is empty"),
            ("root ::= (\"x\"", ") is expected"),
            ("root ::= \"x\"{3,2}", "repetition"),
            ("root ::= \"x\"{99999}", "repetition"),
            ("root ::= \"\\q\"", "not an escape"),
            ("root ::= [b-a]", "ends before"),
            ("root ::= \"x\"\nroot ::= \"y\"", "line 2 of the grammar: the rule root is defined twice"),
            ("root ::= \"x\"\n%", "a rule's name"),
            (&format!("root ::= {}", "(".repeat(200)), "nested too deeply"),
        ] {
            let error = to_lark(grammar).unwrap_err();
            assert!(error.contains(part), "{grammar}: {error}");
        }
        assert!(is_gbnf("# x\n root ::= \"a\"") && !is_gbnf("start: \"a ::= b\"") && !is_gbnf("start: /x/"));
    }
}

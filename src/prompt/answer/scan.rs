//! Finds the end of a JSON value that arrives in pieces.

/// Scans for the end of the JSON value that begins at the first byte of a text: brackets are counted, strings skipped.
#[derive(Clone, Debug, Default)]
pub struct Balance {
    depth: usize,
    in_string: bool,
    escaped: bool,
    read: usize,
}

impl Balance {
    /// Continues in `text`, of which an earlier call has read the beginning. `Some(end)` when the object or list that
    /// it begins with is complete.
    pub fn end(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate().skip(self.read) {
            self.read = at + 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// The head of a call, `{"name": "…", "arguments": {`: its name and where the arguments begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// The text may still become a head.
    Open,
    /// The fields are others or in another order.
    Other,
    Found {
        name: String,
        arguments: usize,
    },
}

/// Reads the head of a call.
pub fn head(text: &str, keys: &[&str]) -> Head {
    let mut rest = text;
    let mut take = |expected: &[&str]| -> Option<bool> {
        rest = rest.trim_start();
        if let Some(found) = expected.iter().find(|e| rest.starts_with(**e)) {
            rest = &rest[found.len()..];
            return Some(true);
        }
        if expected.iter().any(|e| e.starts_with(rest)) { None } else { Some(false) }
    };
    for expected in [&["{"][..], &["\"name\""], &[":"]] {
        match take(expected) {
            None => return Head::Open,
            Some(false) => return Head::Other,
            Some(true) => {}
        }
    }
    rest = rest.trim_start();
    let Some(quoted) = rest.strip_prefix('"') else {
        return if rest.is_empty() { Head::Open } else { Head::Other };
    };
    let mut escaped = false;
    let end = quoted.bytes().position(|b| {
        let ends = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        ends
    });
    let Some(end) = end else { return Head::Open };
    let Ok(name) = serde_json::from_str::<String>(&rest[..end + 2]) else { return Head::Other };
    rest = &rest[end + 2..];
    let keys: Vec<String> = keys.iter().map(|k| format!("\"{k}\"")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut take = |expected: &[&str]| -> Option<bool> {
        rest = rest.trim_start();
        if let Some(found) = expected.iter().find(|e| rest.starts_with(**e)) {
            rest = &rest[found.len()..];
            return Some(true);
        }
        if expected.iter().any(|e| e.starts_with(rest)) { None } else { Some(false) }
    };
    for expected in [&[","][..], &keys, &[":"]] {
        match take(expected) {
            None => return Head::Open,
            Some(false) => return Head::Other,
            Some(true) => {}
        }
    }
    let rest = rest.trim_start();
    match rest.chars().next() {
        None => Head::Open,
        Some('{') => Head::Found { name, arguments: text.len() - rest.len() },
        Some(_) => Head::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_ends() {
        let keys = ["arguments", "parameters"];
        let text = r#"{ "name" : "a\"b", "parameters":{"x": "}"}}"#;
        let at = text.find(r#"{"x""#).unwrap();
        let found = Head::Found { name: "a\"b".into(), arguments: at };
        for end in 0..text.len() {
            let want = if end > at { found.clone() } else { Head::Open };
            assert_eq!(head(&text[..end], &keys), want, "{}", &text[..end]);
        }
        for other in [
            "[",
            "{\"id\"",
            "{\"name\": 3",
            "{\"name\": \"a\", \"x\"",
            "{\"name\": \"a\", \"arguments\": 3",
            "{\"name\": \"a\"}",
        ] {
            assert_eq!(head(other, &keys), Head::Other, "{other}");
        }
        let mut balance = Balance::default();
        for end in 0..text.len() {
            assert_eq!(balance.end(&text[..end]), None);
        }
        assert_eq!(balance.end(text), Some(text.len()));
    }
}

//! Rewrites syntax that minijinja does not support, keeping line numbers: `{% generation %}` becomes a scope,
//! `left % right` a filter that formats strings. In `left + right`, a filter charges the right operand: minijinja adds
//! lists without counting them, so that `l + l` doubled a few dozen times fills the memory.

/// One token of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Word,
    Number,
    Text,
    /// An opening or closing bracket.
    Open,
    Close,
    Sign,
}

#[derive(Clone, Copy, Debug)]
struct Token<'s> {
    kind: Kind,
    text: &'s str,
    start: usize,
}

impl Token<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

/// Keywords that are operators.
const KEYWORDS: [&str; 12] = ["in", "not", "and", "or", "is", "if", "elif", "else", "set", "for", "recursive", "call"];

/// Operators of one expression, and branches of all conditions. minijinja's compiler calls itself once for each:
/// more would overrun its stack, which ends the process.
const MOST_OPERATORS: usize = 200;
const MOST_BRANCHES: usize = 256;

/// The rewritten source; text outside of tags, comments, raw blocks and string literals are unchanged.
///
/// # Errors
/// When an expression is longer than the limit.
pub(super) fn prepare(source: &str) -> Result<String, String> {
    let mut branches = 0;
    let mut edits: Vec<(usize, usize, String)> = Vec::new();
    let mut at = 0;
    while let Some(found) = source[at..].find('{') {
        let open = at + found;
        let rest = &source[open..];
        let closing = match rest.as_bytes().get(1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => {
                at = rest.find("#}").map_or(source.len(), |end| open + end + 2);
                continue;
            }
            _ => {
                at = open + 1;
                continue;
            }
        };
        let (tokens, end) = tag(source, open + 2, closing);
        at = end;
        branches += usize::from(tokens.iter().any(|t| t.text == "elif"));
        let operators = (0..tokens.len()).filter(|i| nests(&tokens, *i)).count();
        if operators > MOST_OPERATORS || branches > MOST_BRANCHES {
            let line = source[..open].matches('\n').count() + 1;
            let what = match operators > MOST_OPERATORS {
                true => format!("{operators} operators in one expression, at most {MOST_OPERATORS} are read"),
                false => format!("over {MOST_BRANCHES} branches"),
            };
            return Err(format!("{what} (line {line} of the template)"));
        }
        let words: Vec<&str> =
            tokens.iter().filter(|t| t.kind != Kind::Sign || t.text == "%").map(|t| t.text).collect();
        match words.as_slice() {
            ["raw"] if closing == "%}" => {
                at = end_of_raw(source, end);
                continue;
            }
            [word @ ("generation" | "endgeneration")] if closing == "%}" => {
                if let Some(token) = tokens.iter().find(|t| t.text == *word) {
                    let with = if *word == "generation" { "with" } else { "endwith" };
                    edits.push((token.start, token.end(), with.to_owned()));
                }
                continue;
            }
            _ => {}
        }
        let at_signs = |sign: &str| -> Vec<usize> {
            let found = tokens.iter().enumerate().filter(|(_, t)| t.text == sign && t.kind == Kind::Sign);
            found.map(|(i, _)| i).collect()
        };
        let (signs, sums) = (at_signs("%"), at_signs("+"));
        if signs.is_empty() && sums.is_empty() {
            continue;
        }
        let pairs = brackets(&tokens);
        for i in sums.into_iter().filter(|i| *i > 0 && is_operand(&tokens[i - 1])) {
            let literal = |t: &Token<'_>| matches!(t.kind, Kind::Number | Kind::Text);
            let after = right_operand(&tokens, &pairs, i);
            if let Some(after) = after.filter(|end| !tokens.get(i + 1).is_some_and(|t| literal(t) && t.end() == *end)) {
                edits.push((after, after, "|__charged__".to_owned()));
            }
        }
        let mut rewritten = vec![false; tokens.len()];
        for i in signs {
            if left_operand(&tokens, &pairs, &rewritten, i)
                && let Some(after) = right_operand(&tokens, &pairs, i)
            {
                rewritten[i] = true;
                edits.push((tokens[i].start, tokens[i].end(), "|__modulo__(".to_owned()));
                edits.push((after, after, ")".to_owned()));
            }
        }
    }
    // Stable: of two insertions at one place the later operand closes first, which is the same text.
    edits.sort_by_key(|(start, ..)| *start);
    let mut out = String::with_capacity(source.len() + 16 * edits.len());
    let mut done = 0;
    for (start, end, text) in edits {
        out.push_str(&source[done..start]);
        out.push_str(&text);
        done = end;
    }
    out.push_str(&source[done..]);
    Ok(out)
}

/// Whether the token makes the expression one level deeper.
fn nests(tokens: &[Token<'_>], i: usize) -> bool {
    match tokens[i].kind {
        Kind::Sign => !matches!(tokens[i].text, "," | ":" | "="),
        Kind::Open => i > 0 && is_operand(&tokens[i - 1]),
        Kind::Word => matches!(tokens[i].text, "and" | "or" | "not" | "is" | "in" | "if" | "else"),
        Kind::Number | Kind::Text | Kind::Close => false,
    }
}

/// The tokens of the tag that begins at `at`, and where it ends.
fn tag<'s>(source: &'s str, mut at: usize, closing: &str) -> (Vec<Token<'s>>, usize) {
    let mut tokens = Vec::new();
    let mut depth = 0usize;
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        if depth == 0 || closing == "%}" {
            let trimmed = rest.strip_prefix(['-', '+']).unwrap_or(rest);
            if trimmed.starts_with(closing) {
                return (tokens, at + (rest.len() - trimmed.len()) + closing.len());
            }
        }
        let token = |kind: Kind, length: usize| Token { kind, text: &rest[..length], start: at };
        let next = if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        } else if c == '\'' || c == '"' {
            token(Kind::Text, string_length(rest, c))
        } else if c.is_ascii_digit() {
            token(Kind::Number, rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len()))
        } else if c.is_alphanumeric() || c == '_' {
            token(Kind::Word, rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len()))
        } else if "([{".contains(c) {
            depth += 1;
            token(Kind::Open, 1)
        } else if ")]}".contains(c) {
            depth = depth.saturating_sub(1);
            token(Kind::Close, 1)
        } else if rest.starts_with("**") || rest.starts_with("//") {
            token(Kind::Sign, 2)
        } else {
            token(Kind::Sign, c.len_utf8())
        };
        at = next.end();
        tokens.push(next);
    }
    (tokens, source.len())
}

/// Bytes of the literal that begins `rest`, quotes included.
fn string_length(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (i, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return i + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The end of the tag that closes a raw block begun before `at`.
fn end_of_raw(source: &str, mut at: usize) -> usize {
    while let Some(found) = source[at..].find("{%") {
        at += found + 2;
        let inside = source[at..].trim_start_matches(['-', '+']).trim_start();
        if let Some(rest) = inside.strip_prefix("endraw") {
            let rest = rest.trim_start().trim_start_matches(['-', '+']);
            if rest.starts_with("%}") {
                return source.len() - rest.len() + 2;
            }
        }
    }
    source.len()
}

fn is_operand(token: &Token<'_>) -> bool {
    match token.kind {
        Kind::Word => !KEYWORDS.contains(&token.text),
        Kind::Number | Kind::Text | Kind::Close => true,
        Kind::Open | Kind::Sign => false,
    }
}

/// Whether the text before the sign at `i` is an operand that a filter would bind as `%` does: one with
/// filters, subscripts and calls, but no product or sign of its own before it. Numbers are left to minijinja.
fn left_operand(tokens: &[Token<'_>], pairs: &[usize], rewritten: &[bool], i: usize) -> bool {
    let mut at = i;
    loop {
        let Some(last) = at.checked_sub(1) else { return false };
        if !is_operand(&tokens[last]) || tokens[last].kind == Kind::Number {
            return false;
        }
        let mut start = last;
        if tokens[last].kind == Kind::Close {
            start = pairs[last];
            if start == last {
                return false;
            }
            if let Some(before) = start.checked_sub(1).filter(|b| is_operand(&tokens[*b])) {
                // A call or a subscript follows its operand.
                at = before + 1;
                continue;
            }
        }
        let Some(before) = start.checked_sub(1) else { return true };
        match tokens[before].text {
            "." | "|" => at = before,
            "*" | "/" | "//" | "**" | "%" => return rewritten[before],
            "-" | "+" => return before.checked_sub(1).is_some_and(|b| is_operand(&tokens[b])),
            _ => return true,
        }
    }
}

/// For each bracket the index of its partner, for everything else (and lone brackets) its own.
fn brackets(tokens: &[Token<'_>]) -> Vec<usize> {
    let mut pairs: Vec<usize> = (0..tokens.len()).collect();
    let mut open = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::Open => open.push(i),
            Kind::Close => {
                if let Some(partner) = open.pop() {
                    (pairs[partner], pairs[i]) = (i, partner);
                }
            }
            _ => {}
        }
    }
    pairs
}

/// The end of the operand after the sign at `i`.
fn right_operand(tokens: &[Token<'_>], pairs: &[usize], i: usize) -> Option<usize> {
    let mut at = i + 1;
    while tokens.get(at).is_some_and(|t| matches!(t.text, "-" | "+")) {
        at += 1;
    }
    let first = tokens.get(at)?;
    if first.kind == Kind::Open {
        at = Some(pairs[at]).filter(|close| *close != at)?;
    } else if !is_operand(first) {
        return None;
    }
    loop {
        let next = tokens.get(at + 1);
        match next.map(|t| (t.kind, t.text)) {
            Some((Kind::Open, "(" | "[")) => at = Some(pairs[at + 1]).filter(|close| *close != at + 1)?,
            Some((Kind::Sign, "." | "|")) => at += 2,
            _ => return tokens.get(at).map(Token::end),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_what_needs_it_is_rewritten() {
        let prepare = |source: &str| super::prepare(source).expect("a short one");
        assert_eq!(prepare("{{ '%d' % x }}"), "{{ '%d' |__modulo__( x) }}");
        assert_eq!(prepare("{{ '%d%%' % (a, b[1]) ~ c }}"), "{{ '%d%%' |__modulo__( (a, b[1])) ~ c }}");
        assert_eq!(prepare("{%- if loop.index0 % 2 == 0 -%}"), "{%- if loop.index0 |__modulo__( 2) == 0 -%}");
        assert_eq!(
            prepare("{{ 'a' + b + c[1]|d * 2 + 'e' }}"),
            "{{ 'a' + b|__charged__ + c[1]|d|__charged__ * 2 + 'e' }}"
        );
        assert_eq!(prepare("{{ a + b % c }}"), "{{ a + b|__charged__ |__modulo__( c) }}");
        assert_eq!(prepare("{%-generation-%}a{% endgeneration %}"), "{%-with-%}a{% endwith %}");
        for same in [
            "{{ 2 * n % 5 }}",
            "{{ -n % 5 }}",
            "{{ 7 % 3 }}",
            "{{ a + 'b' }}{%+ endif +%}{{ +a }}{{ -n + 5 }}",
            "5 % 2",
            "{# a % b #}",
            "{% raw %}{{ a % b }}{% endraw %}",
            "{{ 'a % b' }}",
            "{{ a }}% {% if b %}",
            "{{ a % }}",
            "{{ 'x",
        ] {
            assert_eq!(prepare(same), same);
        }
    }
}

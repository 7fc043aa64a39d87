//! Normalises characters: full-width characters, digits of other scripts, typographic signs, and LaTeX.

/// Represents `\frac`; two arguments follow.
pub const FRACTION: char = '\u{E000}';
/// Start of a `\boxed{…}`.
pub const BOX: char = '\u{E001}';
/// End of a `\boxed{…}`.
pub const BOX_END: char = '\u{E002}';
/// Represents spaces that separate groups of digits: thin, no-break, LaTeX's `\,`.
pub const THIN: char = '\u{2009}';

/// Code points of the digit zero of scripts with consecutive digits.
const ZEROS: &[u32] = &[0x660, 0x6F0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xE50];

const SUPERSCRIPTS: &[(char, char)] = &[
    ('⁰', '0'),
    ('¹', '1'),
    ('²', '2'),
    ('³', '3'),
    ('⁴', '4'),
    ('⁵', '5'),
    ('⁶', '6'),
    ('⁷', '7'),
    ('⁸', '8'),
    ('⁹', '9'),
    ('⁻', '-'),
];

const FRACTIONS: &[(char, &str)] = &[
    ('½', "1/2"),
    ('⅓', "1/3"),
    ('⅔', "2/3"),
    ('¼', "1/4"),
    ('¾', "3/4"),
    ('⅕', "1/5"),
    ('⅖', "2/5"),
    ('⅗', "3/5"),
    ('⅘', "4/5"),
    ('⅙', "1/6"),
    ('⅚', "5/6"),
    ('⅛', "1/8"),
    ('⅜', "3/8"),
    ('⅝', "5/8"),
    ('⅞', "7/8"),
];

/// The text with ASCII digits and signs, and LaTeX commands as characters.
pub fn plain(text: &str) -> Vec<char> {
    let chars: Vec<char> = text.chars().filter_map(one_spelling).collect();
    let mut out = Vec::with_capacity(chars.len());
    latex(&chars, &mut out);
    spell_out(&out)
}

fn one_spelling(c: char) -> Option<char> {
    let code = c as u32;
    Some(match c {
        '\u{200B}'..='\u{200F}' | '\u{2060}' | '\u{FEFF}' => return None,
        '\u{3000}' => ' ',
        '\u{FF01}'..='\u{FF5E}' => char::from_u32(code - 0xFEE0)?,
        '\u{FFE5}' => '¥',
        '−' | '–' | '‐' | '‑' | '﹣' => '-',
        '⁄' | '∕' => '/',
        '∶' => ':',
        '·' | '⋅' | '∙' | '✕' | '✖' => '×',
        '\u{A0}' | '\u{202F}' | '\u{2007}' | '\u{2009}' => THIN,
        '‘' | '’' | 'ʼ' => '\'',
        '“' | '”' => '"',
        '٫' => '.',
        '٬' => ',',
        '٪' => '%',
        '。' => '\n',
        _ => match ZEROS.iter().find(|zero| (**zero..**zero + 10).contains(&code)) {
            Some(zero) => char::from_digit(code - zero, 10)?,
            None => c,
        },
    })
}

/// The index after the group that opens at `at`, or the end of the text if it is not closed.
pub fn group_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0;
    for (i, c) in chars.iter().enumerate().skip(at) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    chars.len()
}

fn latex(chars: &[char], out: &mut Vec<char>) {
    let mut i = 0;
    while i < chars.len() {
        if chars[i..].starts_with(&['{', ',', '}']) {
            out.push(',');
            i += 3;
            continue;
        }
        if chars[i] != '\\' {
            out.push(chars[i]);
            i += 1;
            continue;
        }
        let name: String = chars[i + 1..].iter().take_while(|c| c.is_ascii_alphabetic()).collect();
        i += 1 + name.len();
        if name.is_empty() {
            match chars.get(i) {
                Some(',' | ';' | ':' | ' ') => out.push(THIN),
                Some('!') => {}
                Some('(' | ')' | '[' | ']') => out.push(' '),
                Some('\\') => out.push('\n'),
                Some(c) => out.push(*c),
                None => {}
            }
            i += 1;
            continue;
        }
        match name.as_str() {
            "frac" | "dfrac" | "tfrac" | "cfrac" => out.push(FRACTION),
            "left" | "right" | "displaystyle" | "big" | "Big" => {}
            "quad" | "qquad" => out.push(' '),
            "times" | "cdot" => out.push('×'),
            "div" => out.push('÷'),
            "circ" | "degree" => out.push('°'),
            "pi" => out.push('π'),
            "sqrt" => out.push('√'),
            "infty" => out.push('∞'),
            "approx" => out.push('≈'),
            "boxed" | "fbox" | "framebox" if chars.get(i) == Some(&'{') => {
                let end = group_end(chars, i);
                out.push(BOX);
                latex(inside(chars, i, end), out);
                out.push(BOX_END);
                i = end;
            }
            "text" | "textbf" | "textit" | "textrm" | "mathrm" | "mathbf" | "mathit" | "mbox" | "operatorname"
                if chars.get(i) == Some(&'{') =>
            {
                let end = group_end(chars, i);
                latex(inside(chars, i, end), out);
                i = end;
            }
            other => {
                out.push('\\');
                out.extend(other.chars());
            }
        }
    }
}

/// The characters between the braces at `open` and before `end`.
fn inside(chars: &[char], open: usize, end: usize) -> &[char] {
    let closed = end > open + 1 && chars[end - 1] == '}';
    &chars[open + 1..if closed { end - 1 } else { end }]
}

/// Replaces superscripts by powers, vulgar fractions by two numbers, raised degree signs by `°`, and `**` between
/// digits by a power; removes other `**`.
fn spell_out(chars: &[char]) -> Vec<char> {
    let mut out: Vec<char> = Vec::with_capacity(chars.len());
    let mut raised = false;
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        if let Some((_, digit)) = SUPERSCRIPTS.iter().find(|(s, _)| *s == c) {
            if !raised {
                out.push('^');
            }
            raised = true;
            out.push(*digit);
            i += 1;
            continue;
        }
        raised = false;
        if let Some((_, fraction)) = FRACTIONS.iter().find(|(f, _)| *f == c) {
            if out.last().is_some_and(char::is_ascii_digit) {
                out.push(' ');
            }
            out.extend(fraction.chars());
        } else if chars[i..].starts_with(&['^', '°']) {
            out.push('°');
            i += 1;
        } else if chars[i..].starts_with(&['^', '{', '°', '}']) {
            out.push('°');
            i += 3;
        } else if chars[i..].starts_with(&['*', '*']) {
            let digit = |c: Option<&char>| c.is_some_and(char::is_ascii_digit);
            if digit(out.last()) && digit(chars.get(i + 2)) {
                out.push('^');
            }
            i += 1;
        } else {
            out.push(c);
        }
        i += 1;
    }
    out
}

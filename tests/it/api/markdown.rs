//! Markdown of prompts and completions: mathematics, code, and texts made to keep the renderer busy.

use std::time::{Duration, Instant};

use crate::support::rendered as render;

#[test]
fn mathematics_in_every_notation_is_marked_with_its_source() {
    for (text, html) in [
        ("the sum $a_1 + b$ is", r#"<span class="math math-inline">a_1 + b</span>"#),
        ("$$\\sum_{i=1}^{n} 1 = n$$", r#"<span class="math math-display">\sum_{i=1}^{n} 1 = n</span>"#),
        ("so \\(x^2 < y\\) holds", r#"<span class="math math-inline">x^2 &lt; y</span>"#),
        ("\\[\n\\frac{a}{b} * c * d\n\\]", r#"<span class="math math-display">\frac{a}{b} * c * d</span>"#),
        ("- item \\(e\\)\n- \\[f\\]", r#"<span class="math math-display">f</span>"#),
    ] {
        let out = render(text);
        assert!(out.contains(html), "{text:?} became {out}");
    }
}

#[test]
fn text_that_resembles_mathematics_stays_text() {
    for (text, kept) in [
        ("It costs $5 and then $10.", "It costs $5 and then $10."),
        ("between $5-$10 a day", "between $5-$10 a day"),
        ("`\\(x\\)` and `$y$`", "<code>\\(x\\)</code> and <code>$y$</code>"),
        ("```\n\\[x\\]\n$y$\n```", "<pre><code>\\[x\\]\n$y$\n</code></pre>"),
        ("an open \\( only", "an open ( only"),
    ] {
        let out = render(text);
        assert!(out.contains(kept), "{text:?} became {out}");
        assert!(!out.contains("class=\"math"), "{text:?} became {out}");
    }
}

#[test]
fn code_keeps_the_name_of_its_language_and_nothing_else() {
    assert!(render("```rust,ignore\nfn main() {}\n```").contains("<code>fn main()"), "not one plain word");
    assert!(render("```rust ignore\nfn main() {}\n```").contains("<code class=\"language-rust\">"));
    assert!(render("```c++\nint a;\n```").contains("<code class=\"language-c++\">"));
    assert!(!render("```x\"y\nz\n```").contains("class"), "no plain name");
    assert!(!render("```rust math-inline\nz\n```").contains("math"), "one word only");
}

/// Texts whose rendering would take minutes, or whose nesting would fill the stack, are shown as they are.
#[test]
fn no_text_takes_long_to_render() {
    const N: usize = 120_000;
    let nested_list: String = (0..400).map(|i| format!("{}- x\n", "  ".repeat(i))).collect();
    let hostile = [
        ">".repeat(N),
        "> ".repeat(N / 2),
        ">\n".repeat(N / 2),
        "- ".repeat(N / 2),
        "1. ".repeat(N / 3),
        ">1. - ".repeat(N / 6),
        "[".repeat(N),
        "![".repeat(N / 2),
        "[a](".repeat(N / 4),
        "*a ".repeat(N / 3),
        "*a**b".repeat(N / 5),
        "_".repeat(N),
        "`".repeat(N),
        (0..490).map(|i| "`".repeat(i) + " ").collect(),
        "$".repeat(N),
        "$a ".repeat(N / 3),
        "$$a".repeat(N / 3),
        "\\(".repeat(N / 2),
        "\\[a\\]".repeat(N / 5),
        "`\\(` ".repeat(N / 5),
        "{".repeat(N) + "$" + &"{".repeat(100),
        "&lt".repeat(N / 3),
        "<a ".repeat(N / 3),
        "<!--".repeat(N / 4),
        "|".repeat(N / 2) + "\n" + &"-|".repeat(N / 4),
        "|a".repeat(500) + "\n" + &"|-".repeat(500) + "\n" + &"x\n".repeat(N / 2 - 2000),
        "[a]: b\n".repeat(N / 7),
        "[^1]".repeat(N / 4),
        "~~a".repeat(N / 3),
        "# ".repeat(N / 2),
        "a\n===\n".repeat(N / 6),
        nested_list,
        "\u{202e}\u{0}".repeat(N / 4),
    ];
    for text in hostile {
        let begun = Instant::now();
        let out = render(&text);
        let took = begun.elapsed();
        let start: String = text.chars().take(12).collect();
        // Such texts took from seconds to minutes; the bound leaves room for a busy machine.
        assert!(took < Duration::from_secs(5), "{start:?}… took {took:?}");
        assert!(out.len() < 64 * text.len() + 1024, "{start:?}… became {} bytes", out.len());
    }
}

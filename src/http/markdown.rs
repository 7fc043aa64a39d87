//! Renders untrusted Markdown as safe HTML: raw HTML stays visible text, there are no images, and links lead to https
//! only. There are two independent filters: ammonia cleans the output of pulldown-cmark.
//!
//! A text's size and nesting bound the work of one rendering. [`render_all`] is the only entry point: it renders on
//! blocking threads, at most `PERMITS` at once, and caches results by the text's hash.
//!
//! Mathematics (`$…$`, `$$…$$`, `\(…\)`, `\[…\]`) becomes `<span class="math math-inline">` or
//! `math-display` with its LaTeX source; the pages typeset it. Code keeps its language as a class.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use ammonia::Builder;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd, html};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::error::{ApiError, ApiResult};

/// Longer texts (bytes) are shown in one block without markup.
const MAX_BYTES: usize = 128 << 10;
/// Deepest nesting: the work for block quotes and lists grows with its square.
const MAX_NESTING: usize = 24;
/// The longest formula between LaTeX's own delimiters, in bytes.
const MAX_FORMULA: usize = 4096;
/// Renderings at once, in the whole process.
const PERMITS: usize = 2;
/// Requests that may wait for one of them; more get 429.
const MAX_WAITING: usize = 256;
/// Size of one of the cache's two generations, in bytes.
const GENERATION_BYTES: usize = 8 << 20;

static CLEANER: LazyLock<Builder<'static>> = LazyLock::new(|| {
    let mut builder = Builder::empty();
    builder
        .tags(
            [
                "p",
                "br",
                "hr",
                "strong",
                "em",
                "del",
                "code",
                "pre",
                "blockquote",
                "ul",
                "ol",
                "li",
                "h1",
                "h2",
                "h3",
                "h4",
                "h5",
                "h6",
                "table",
                "thead",
                "tbody",
                "tr",
                "th",
                "td",
                "a",
                "span",
            ]
            .into(),
        )
        .tag_attributes(
            [("a", ["href"].into()), ("ol", ["start"].into()), ("code", ["class"].into()), ("span", ["class"].into())]
                .into(),
        )
        .attribute_filter(|tag, name, value| match (tag, name) {
            ("span", "class") => MATH_CLASSES.contains(&value).then_some(Cow::Borrowed(value)),
            ("code", "class") => language_class(value).map(Cow::Owned),
            _ => Some(Cow::Borrowed(value)),
        })
        // Not even `title`, which ammonia allows everywhere by default.
        .generic_attributes([].into())
        .url_schemes(["https"].into())
        .url_relative(ammonia::UrlRelative::Deny)
        .link_rel(Some("noopener noreferrer nofollow"));
    builder
});

const MATH_CLASSES: [&str; 2] = ["math math-inline", "math math-display"];

/// `language-NAME` of the first word of a fence's info string, when it is a plain name.
fn language_class(value: &str) -> Option<String> {
    let name = value.split_ascii_whitespace().next()?.strip_prefix("language-")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'#' | b'-' | b'_' | b'.');
    ((1..=32).contains(&name.len()) && name.bytes().all(plain)).then(|| format!("language-{name}"))
}

/// Safe HTML of many texts, in order.
///
/// # Errors
/// 429 `overloaded` when too many requests wait for the renderer already.
pub async fn render_all(texts: &[&str]) -> ApiResult<Vec<Arc<str>>> {
    static RENDERER: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(PERMITS)));
    static QUEUE: Semaphore = Semaphore::const_new(MAX_WAITING);
    let mut out: Vec<Option<Arc<str>>> = texts.iter().map(|text| CACHE.get(&key(text))).collect();
    if out.iter().any(Option::is_none) {
        let busy = || ApiError::too_many("too many texts wait to be rendered; try again", "overloaded", 1);
        let _place = QUEUE.try_acquire().map_err(|_| busy())?;
        for (text, html) in texts.iter().zip(&mut out).filter(|(_, html)| html.is_none()) {
            // Waiting ends with the request, so that a disconnected client starts no further rendering.
            let permit = RENDERER.clone().acquire_owned().await.map_err(|_| busy())?;
            let text = (*text).to_owned();
            let rendered = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                cached(&text)
            });
            *html = Some(rendered.await.map_err(|e| ApiError::internal(&format!("rendering Markdown: {e}")))?);
        }
    }
    Ok(out.into_iter().flatten().collect())
}

fn key(text: &str) -> Key {
    Sha256::digest(text.as_bytes()).into()
}

fn cached(text: &str) -> Arc<str> {
    let key = key(text);
    CACHE.get(&key).unwrap_or_else(|| {
        let html: Arc<str> = render(text).into();
        CACHE.put(key, html.clone());
        html
    })
}

type Key = [u8; 32];

/// Cache of rendered texts: when the young generation is full it becomes the old one, and the old one is dropped.
#[derive(Default)]
struct Generations {
    younger: HashMap<Key, Arc<str>>,
    elder: HashMap<Key, Arc<str>>,
    younger_bytes: usize,
}

struct Cache(LazyLock<Mutex<Generations>>);

static CACHE: Cache = Cache(LazyLock::new(Mutex::default));

impl Cache {
    fn get(&self, key: &Key) -> Option<Arc<str>> {
        let generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        generations.younger.get(key).or_else(|| generations.elder.get(key)).cloned()
    }

    fn put(&self, key: Key, html: Arc<str>) {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        generations.younger_bytes += html.len() + size_of::<Key>();
        generations.younger.insert(key, html);
        if generations.younger_bytes > GENERATION_BYTES {
            generations.elder = std::mem::take(&mut generations.younger);
            generations.younger_bytes = 0;
        }
    }
}

/// Safe HTML of a prompt, completion or guideline. Blocks for at most some hundred milliseconds.
fn render(markdown: &str) -> String {
    if markdown.len() > MAX_BYTES || nesting(markdown) > MAX_NESTING {
        return plain(markdown);
    }
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
    let markdown = dollars(markdown, options);
    let parser = Parser::new_ext(&markdown, options | Options::ENABLE_MATH).into_offset_iter();
    let events = parser.filter_map(|(event, range)| match event {
        Event::Html(text) | Event::InlineHtml(text) => Some(Event::Text(text)),
        // An image becomes its alternative text.
        Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image) => None,
        // Line breaks are kept.
        Event::SoftBreak => Some(Event::HardBreak),
        // Two amounts of money are not a formula: "$5-$10".
        Event::InlineMath(_) if markdown[range.end..].starts_with(|c: char| c.is_ascii_digit()) => {
            Some(Event::Text(markdown[range].to_owned().into()))
        }
        other => Some(other),
    });
    let mut out = String::with_capacity(markdown.len() * 3 / 2);
    html::push_html(&mut out, events);
    CLEANER.clean(&out).to_string()
}

/// The text in one block, without markup.
fn plain(text: &str) -> String {
    format!("<pre>{}</pre>", text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"))
}

/// The deepest nesting of block quotes and lists that a line can begin, counted without parsing.
fn nesting(markdown: &str) -> usize {
    markdown.lines().map(line_nesting).max().unwrap_or(0)
}

fn line_nesting(line: &str) -> usize {
    let (mut depth, mut rest) = (0, line.trim_start());
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let marker = match rest.as_bytes().get(digits) {
            Some(b'>') if digits == 0 => 1,
            Some(b'-' | b'*' | b'+') if digits == 0 && rest[1..].starts_with([' ', '\t']) => 1,
            Some(b'.' | b')') if digits > 0 && rest[digits + 1..].starts_with([' ', '\t']) => digits + 1,
            // Indentation nests lists, but is only indentation before other text.
            _ if depth > 0 => return depth + (line.len() - line.trim_start().len()) / 2,
            _ => return 0,
        };
        depth += 1;
        rest = rest[marker..].trim_start();
    }
}

/// Rewrites LaTeX's own delimiters, `\(…\)` and `\[…\]`, to dollars, which the parser knows. Code stays as it is.
fn dollars(markdown: &str, options: Options) -> Cow<'_, str> {
    if !markdown.contains("\\(") && !markdown.contains("\\[") {
        return Cow::Borrowed(markdown);
    }
    let mut code: Vec<Range<usize>> = Vec::new();
    let mut block = None;
    for (event, range) in Parser::new_ext(markdown, options).into_offset_iter() {
        match event {
            Event::Code(_) => code.push(range),
            Event::Start(Tag::CodeBlock(_)) => block = Some(range.start),
            Event::End(TagEnd::CodeBlock) => code.extend(block.take().map(|start| start..range.end)),
            _ => {}
        }
    }
    let mut code = code.into_iter().peekable();
    let mut out = String::with_capacity(markdown.len());
    // Everything before `copied` is in `out`; the search continues at `at`.
    let (mut copied, mut at) = (0, 0);
    while let Some(offset) = markdown[at..].find('\\') {
        let open = at + offset;
        while code.next_if(|range| range.end <= open).is_some() {}
        if let Some(range) = code.peek().filter(|range| range.contains(&open)) {
            at = range.end;
            continue;
        }
        let (close, dollar) = match markdown.as_bytes().get(open + 1) {
            Some(b'(') => ("\\)", "$"),
            Some(b'[') => ("\\]", "$$"),
            // The next character is escaped, another backslash too.
            next => {
                at = open + 1 + usize::from(next == Some(&b'\\'));
                continue;
            }
        };
        at = open + 2;
        let body = &markdown[at..markdown.floor_char_boundary(at + MAX_FORMULA)];
        if let Some(body) = body.find(close).map(|end| &body[..end]).filter(|body| formula(body)) {
            out.extend([&markdown[copied..open], dollar, body.trim(), dollar]);
            at += body.len() + close.len();
            copied = at;
        }
    }
    out.push_str(&markdown[copied..]);
    Cow::Owned(out)
}

/// Whether the text between two delimiters can be a formula: it is within a paragraph and has no dollars.
fn formula(body: &str) -> bool {
    !body.trim().is_empty() && !body.contains("\n\n") && !body.contains('$')
}

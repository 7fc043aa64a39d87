// Typesets mathematics (KaTeX) and colours code (highlight.js) in rendered texts. Both libraries are loaded when
// a text first needs them; until then, and where they fail, the source stays readable.

/** Longer formulas and code blocks stay as they are, so that no text keeps the page busy. In characters. */
const MAX_FORMULA = 4000;
const MAX_CODE = 40_000;

const VENDOR = new URL('../vendor/', import.meta.url).href;

let katex;
function loadKatex() {
  katex ??= new Promise((done, fail) => {
    const style = document.createElement('link');
    style.rel = 'stylesheet';
    style.href = `${VENDOR}katex/katex.min.css`;
    const script = document.createElement('script');
    script.src = `${VENDOR}katex/katex.min.js`;
    script.addEventListener('load', () => done(/** @type {any} */ (window).katex));
    script.addEventListener('error', () => fail(new Error('KaTeX did not load')));
    document.head.append(style, script);
  });
  katex.catch(() => (katex = undefined)); // the next text tries again
  return katex;
}

let highlighter;
function loadHighlighter() {
  highlighter ??= import(`${VENDOR}highlight/highlight.min.js`).then((module) => module.default);
  highlighter.catch(() => (highlighter = undefined));
  return highlighter;
}

async function typesetFormula(el) {
  const source = el.textContent;
  const { render } = await loadKatex();
  const target = document.createElement('span');
  render(source, target, {
    displayMode: el.classList.contains('math-display'),
    throwOnError: true, // a formula that is none keeps its source
    trust: false,
    strict: 'ignore',
    maxExpand: 200,
    maxSize: 20,
  });
  el.title = source;
  el.replaceChildren(...target.childNodes);
  el.classList.add('typeset');
}

async function colourCode(el, language) {
  const hljs = await loadHighlighter();
  if (!hljs.getLanguage(language)) return;
  el.replaceChildren(...spans(hljs.highlight(el.textContent, { language, ignoreIllegals: true }).value));
  el.classList.add('coloured');
}

const ENTITIES = { amp: '&', lt: '<', gt: '>', quot: '"', '#x27': "'" };

/** Nodes of what highlight.js writes, which is escaped text in nested `<span class="hljs-…">`; no HTML is parsed. */
function spans(coloured) {
  const root = document.createElement('code');
  /** @type {ParentNode & Node} */
  let at = root;
  for (const [, classes, close, text] of coloured.matchAll(/<span class="([^"]*)">|(<\/span>)|([^<]+)/g)) {
    if (close) at = at.parentNode ?? root;
    else if (text !== undefined) at.append(text.replace(/&(amp|lt|gt|quot|#x27);/g, (_, name) => ENTITIES[name]));
    else {
      const span = document.createElement('span');
      span.className = classes;
      at.append(span);
      at = span;
    }
  }
  return root.childNodes;
}

/** Starts typesetting what `root` holds; returns `root` at once, so that texts appear without waiting. */
export function typeset(root) {
  for (const el of root.querySelectorAll('span.math:not(.typeset)')) {
    if (el.textContent.length <= MAX_FORMULA) typesetFormula(el).catch(() => el.classList.add('source'));
  }
  for (const el of root.querySelectorAll('pre > code[class*="language-"]:not(.coloured)')) {
    const language = /language-(\S+)/.exec(el.className)[1].toLowerCase();
    if (el.textContent.length <= MAX_CODE) colourCode(el, language).catch(() => {});
  }
  return root;
}

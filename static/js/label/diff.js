// Word diff between two texts: which words of `text` are not in `base`, in order.
import { h } from '../dom.js';

// Word segments also for scripts without spaces.
const segmenter = typeof Intl.Segmenter === 'function' ? new Intl.Segmenter(undefined, { granularity: 'word' }) : null;
const words = (text) =>
  segmenter ? Array.from(segmenter.segment(text), (s) => s.segment) : (text.match(/\s+|\w+|[^\s\w]/gu) ?? []);

// An LCS table of this many cells (words × words) still takes well under a second.
const MAX_CELLS = 6e6;

/** For each word of `b`: true when it belongs to the longest common subsequence with `a`. */
function common(a, b) {
  const shared = new Array(b.length).fill(false);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) shared[start++] = true;
  let ea = a.length;
  let eb = b.length;
  while (ea > start && eb > start && a[ea - 1] === b[eb - 1]) {
    ea--;
    shared[--eb] = true;
  }
  const n = ea - start;
  const m = eb - start;
  if (n === 0 || m === 0) return shared;
  if (n * m > MAX_CELLS) {
    const seen = new Set(a); // too long for the exact answer: words that occur nowhere in the other text
    for (let j = start; j < eb; j++) shared[j] = seen.has(b[j]);
    return shared;
  }
  const width = m + 1;
  const table = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      table[i * width + j] =
        a[start + i] === b[start + j]
          ? table[(i + 1) * width + j + 1] + 1
          : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < n && j < m;) {
    if (a[start + i] === b[start + j]) {
      shared[start + j] = true;
      i++;
      j++;
    } else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i++;
    else j++;
  }
  return shared;
}

/** `text` as an element in which words that differ from `base` are marked. */
export function diffText(text, base) {
  const el = h('div', { class: 'plain diff', dir: 'auto' });
  const own = words(text);
  const shared = common(words(base), own);
  let run = '';
  let marked = false;
  const flush = () => {
    if (run) el.append(marked ? h('mark', { text: run }) : run);
    run = '';
  };
  own.forEach((word, i) => {
    const differs = !shared[i] && word.trim() !== '';
    // blanks inside a marked run stay in it
    const mark = differs || (marked && word.trim() === '' && i + 1 < own.length && !shared[i + 1]);
    if (mark !== marked) {
      flush();
      marked = mark;
    }
    run += word;
  });
  flush();
  return el;
}

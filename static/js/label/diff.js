// What is different between two texts: whole sentences where they have little in common, words where they are
// alike. Marks are put into the rendered text, so that Markdown stays what it is.
import { h, plainText } from '../dom.js';

const segments = (granularity) => {
  const segmenter = typeof Intl.Segmenter === 'function' ? new Intl.Segmenter(undefined, { granularity }) : null;
  const plain = granularity === 'word' ? /\s+|\w+|[^\s\w]/gu : /[^.!?。！？\n]+[.!?。！？\n]*\s*|[.!?。！？\n]+/gu;
  return (text) => (segmenter ? Array.from(segmenter.segment(text), (s) => s.segment) : (text.match(plain) ?? []));
};
const words = segments('word');
const sentences = segments('sentence');

// An LCS table of this many cells (words × words) still takes well under a second.
const MAX_CELLS = 6e6;
/** Share of common words below which two texts are no versions of each other, and a sentence is marked whole. */
const ALIKE = 0.35;
const ALIKE_SENTENCE = 0.5;

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

/**
 * The way from one text to another, in words: parts that stay (`same`), that go (`gone`) and that come (`new`).
 * @returns {{kind: 'same' | 'gone' | 'new', text: string}[]}
 */
export function edits(from, to) {
  const [a, b] = [words(from), words(to)];
  const shared = common(a, b);
  const parts = [];
  const add = (kind, text) => {
    const last = parts.at(-1);
    if (last?.kind === kind) last.text += text;
    else if (text) parts.push({ kind, text });
  };
  let gone = '';
  let fresh = '';
  let same = '';
  const flush = () => {
    if (gone.trim() || !fresh) add('gone', gone);
    add('new', fresh);
    add('same', same);
    gone = fresh = same = '';
  };
  /** A blank between two changes is part of both, so that words that change together are one part. */
  const change = (from, to) => {
    if (same.trim()) flush();
    gone += same + from;
    fresh += same + to;
    same = '';
  };
  let i = 0;
  b.forEach((word, j) => {
    const at = shared[j] ? a.indexOf(word, i) : -1;
    if (at < 0) return change('', word);
    if (at > i) change(a.slice(i, at).join(''), '');
    same += word;
    i = at + 1;
  });
  if (i < a.length) change(a.slice(i).join(''), '');
  flush();
  return parts;
}

const isWord = (word) => /[\p{L}\p{N}]/u.test(word);

/** Ranges `[from, to)` of `text` to be marked against `base`; null when the two have too little in common. */
export function differences(text, base) {
  const own = words(text);
  const other = words(base);
  const shared = common(other, own);
  const count = own.filter(isWord).length;
  const kept = own.filter((word, i) => shared[i] && isWord(word)).length;
  if (kept < ALIKE * Math.min(count, other.filter(isWord).length)) return null;
  const ranges = [];
  const mark = (from, to) => {
    const last = ranges.at(-1);
    if (last && last[1] === from) last[1] = to;
    else ranges.push([from, to]);
  };
  let at = 0;
  let w = 0;
  for (const sentence of sentences(text)) {
    const end = at + sentence.length;
    const inside = [];
    let pos = at;
    while (w < own.length && pos < end) {
      inside.push({ from: pos, to: pos + own[w].length, word: own[w], shared: shared[w] });
      pos += own[w].length;
      w++;
    }
    const said = inside.filter((x) => isWord(x.word));
    const same = said.filter((x) => x.shared).length;
    if (said.length && same < ALIKE_SENTENCE * said.length) {
      const trimmed = sentence.trimEnd().length;
      mark(at, at + trimmed);
    } else {
      inside.forEach((x, i) => {
        const blank = x.word.trim() === '';
        const between = blank && ranges.at(-1)?.[1] === x.from && inside[i + 1] && !inside[i + 1].shared;
        if ((!x.shared && !blank) || between) mark(x.from, x.to);
      });
    }
    at = end;
  }
  return ranges;
}

/** Marks in the rendered text `el` what differs from the text `base`; false when they have too little in common. */
export function markDifferences(el, base) {
  const ranges = differences(el.textContent, base);
  if (!ranges) return false;
  const nodes = [];
  const walker = document.createTreeWalker(el, NodeFilter.SHOW_TEXT);
  for (let at = 0; walker.nextNode(); at += walker.currentNode.textContent.length) nodes.push([walker.currentNode, at]);
  for (const [node, at] of nodes) {
    const text = node.data;
    const parts = [];
    let done = 0;
    for (const [from, to] of ranges) {
      const [a, b] = [Math.max(from - at, 0), Math.min(to - at, text.length)];
      if (a >= b) continue;
      if (a > done) parts.push(text.slice(done, a));
      const piece = text.slice(a, b);
      parts.push(piece.trim() === '' ? piece : h('mark', { text: piece }));
      done = b;
    }
    if (parts.length) node.replaceWith(...parts, text.slice(done));
  }
  return true;
}

/** `text` as plain text with the marks. */
export function diffText(text, base) {
  const el = plainText(text, { class: 'diff' });
  markDifferences(el, base);
  return el;
}

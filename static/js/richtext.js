// A little Markdown as DOM nodes, for text that streams in: fences, headings, lists, quotes, inline code, bold,
// italics, https links, mathematics; the rest stays as it is. No HTML is ever parsed, so any text is safe.
import { h } from './dom.js';
import { typeset } from './typeset.js';

const INLINE = new RegExp(
  [
    /`([^`\n]+)`/,
    /\*\*([^*\n]+)\*\*/,
    /\*([^*\s][^*\n]*)\*/,
    /\[([^\]\n]+)\]\((https:\/\/[^\s)]+)\)/,
    /\$\$([^$]{1,4000})\$\$/,
    /\\\[([^$]{1,4000}?)\\\]/,
    /\\\(([^$]{1,4000}?)\\\)/,
    /\$([^\s$](?:[^$\n]{0,998}[^\s$])?)\$(?!\d)/, // not "$5 and $10"
  ]
    .map((part) => part.source)
    .join('|'),
);

const math = (source, kind) => h('span', { class: `math math-${kind}`, text: source.trim() });

/** Inline marks of one line → nodes and strings. */
export function inline(text) {
  const out = [];
  let rest = text;
  for (let m; (m = INLINE.exec(rest)); rest = rest.slice(m.index + m[0].length)) {
    if (m.index) out.push(rest.slice(0, m.index));
    if (m[1] !== undefined) out.push(h('code', { text: m[1] }));
    else if (m[2] !== undefined) out.push(h('strong', null, inline(m[2])));
    else if (m[3] !== undefined) out.push(h('em', null, inline(m[3])));
    else if (m[4] !== undefined)
      out.push(h('a', { href: m[5], rel: 'noopener noreferrer nofollow', target: '_blank', text: m[4] }));
    else if (m[6] !== undefined || m[7] !== undefined) out.push(math(m[6] ?? m[7], 'display'));
    else out.push(math(m[8] ?? m[9], 'inline'));
  }
  if (rest) out.push(rest);
  return out;
}

const BULLET = /^\s{0,3}[-*+] +/;
const NUMBER = /^\s{0,3}\d{1,9}[.)] +/;

/** Lines of one paragraph-like block → an element. */
function block(lines) {
  const heading = /^(#{1,6}) +(.*)$/.exec(lines[0]);
  if (heading && lines.length === 1) return h('p', { class: 'heading', dir: 'auto' }, inline(heading[2]));
  if (lines.every((l) => l.startsWith('>')))
    return h('blockquote', { dir: 'auto' }, inline(lines.map((l) => l.replace(/^> ?/, '')).join('\n')));
  /** @type {[RegExp, string][]} */
  const lists = [
    [BULLET, 'ul'],
    [NUMBER, 'ol'],
  ];
  for (const [mark, tag] of lists) {
    if (!mark.test(lines[0])) continue;
    const items = [];
    for (const line of lines) {
      if (mark.test(line)) items.push(line.replace(mark, ''));
      else items[items.length - 1] += `\n${line.trim()}`;
    }
    const start = tag === 'ol' ? Number(/\d+/.exec(lines[0])[0]) : 1;
    return h(
      tag,
      start === 1 ? null : { start },
      items.map((x) => h('li', { dir: 'auto' }, inline(x))),
    );
  }
  return h('p', { dir: 'auto' }, inline(lines.join('\n')));
}

/** Splits lines into blocks: blank lines end one, and so do headings and the beginning of a list. */
function* blocks(text) {
  let lines = [];
  for (const line of text.split('\n')) {
    const heading = /^#{1,6} +/.test(line);
    const list = BULLET.test(line) || NUMBER.test(line);
    const inList = lines.length > 0 && (BULLET.test(lines[0]) || NUMBER.test(lines[0]));
    if ((line.trim() === '' || heading || (list && !inList)) && lines.length) {
      yield lines;
      lines = [];
    }
    if (heading) yield [line];
    else if (line.trim() !== '') lines.push(line);
  }
  if (lines.length) yield lines;
}

export function richText(text) {
  const el = h('div', { class: 'plain rich', dir: 'auto' });
  text.split(/^```/m).forEach((part, i) => {
    if (i % 2 === 1) {
      const newline = part.indexOf('\n');
      const code = newline < 0 ? '' : part.slice(newline + 1);
      const language = /^[\w+#.-]{1,32}/.exec(part)?.[0];
      const text = code.replace(/\n$/, '');
      el.append(h('pre', { class: 'code-block', tabindex: '0' }, h('code', { class: language && `language-${language}`, text })));
      return;
    }
    for (const lines of blocks(part)) el.append(block(lines));
  });
  return typeset(el);
}

// A little Markdown as DOM nodes, for text that streams in: fences, inline code, bold, the rest as it is.
// No HTML is ever parsed, so any text is safe.
import { h } from './dom.js';

function inline(text) {
  const out = [];
  let rest = text;
  const pattern = /`([^`\n]+)`|\*\*([^*\n]+)\*\*/;
  for (let m; (m = pattern.exec(rest)); rest = rest.slice(m.index + m[0].length)) {
    if (m.index) out.push(rest.slice(0, m.index));
    out.push(m[1] !== undefined ? h('code', { text: m[1] }) : h('strong', { text: m[2] }));
  }
  if (rest) out.push(rest);
  return out;
}

export function richText(text) {
  const el = h('div', { class: 'plain rich', dir: 'auto' });
  text.split(/^```/m).forEach((part, i) => {
    if (i % 2 === 1) {
      const newline = part.indexOf('\n');
      const code = newline < 0 ? '' : part.slice(newline + 1);
      el.append(h('pre', { class: 'code-block', tabindex: '0', text: code.replace(/\n$/, '') }));
      return;
    }
    for (const paragraph of part.split(/\n{2,}/)) {
      const clean = paragraph.replace(/^\n+|\s+$/g, '');
      if (clean) el.append(h('p', { dir: 'auto' }, inline(clean)));
    }
  });
  return el;
}

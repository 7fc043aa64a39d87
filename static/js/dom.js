// DOM building without HTML strings. Everything a user or model wrote goes through textContent.
import { t } from './i18n.js';
import { typeset } from './typeset.js';

/**
 * Makes an element. `props`: `class`, `text`, `on` (event → handler), `data` (dataset), any other key is an
 * attribute (false/null/undefined leave it out, true sets it empty). Children: nodes, strings, arrays, null.
 */
export function h(tag, props, ...children) {
  const el = document.createElement(tag);
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key === 'class') el.className = value;
    else if (key === 'text') el.textContent = value;
    else if (key === 'on') for (const [type, fn] of Object.entries(value)) el.addEventListener(type, fn);
    else if (key === 'data') Object.assign(el.dataset, value);
    else if (key === 'value' || key === 'checked' || key === 'selected' || key === 'disabled') el[key] = value;
    else el.setAttribute(key, value === true ? '' : String(value));
  }
  append(el, children);
  return el;
}

function append(el, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) append(el, child);
    else el.append(child);
  }
}

/** Empties `el` and fills it with `children`. */
export function fill(el, ...children) {
  el.replaceChildren();
  append(el, children);
  return el;
}

const SVG = 'http://www.w3.org/2000/svg';

export function svg(tag, attrs, ...children) {
  const el = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attrs ?? {})) el.setAttribute(key, String(value));
  el.append(...children);
  return el;
}

// 24×24 outlines, stroke = currentColor.
const ICONS = {
  sun: 'M12 4V2M12 22v-2M4 12H2M22 12h-2M6.3 6.3 4.9 4.9M19.1 19.1l-1.4-1.4M6.3 17.7l-1.4 1.4M19.1 4.9l-1.4 1.4M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8Z',
  moon: 'M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5Z',
  auto: 'M12 3a9 9 0 1 0 0 18ZM12 3a9 9 0 0 1 0 18',
  up: 'M7 11v9H4v-9Zm0 0 4-8c1.5 0 2.5 1 2.5 2.5V9H19a1.8 1.8 0 0 1 1.8 2.1l-1.2 7A2.2 2.2 0 0 1 17.4 20H7',
  down: 'M17 13V4h3v9Zm0 0-4 8c-1.5 0-2.5-1-2.5-2.5V15H5a1.8 1.8 0 0 1-1.8-2.1l1.2-7A2.2 2.2 0 0 1 6.6 4H17',
  menu: 'M4 7h16M4 12h16M4 17h16',
  close: 'M6 6l12 12M18 6 6 18',
  book: 'M5 4h11a3 3 0 0 1 3 3v13H8a3 3 0 0 1-3-3ZM5 17a3 3 0 0 1 3-3h11',
  copy: 'M9 9h10v11H9ZM5 15V4h10',
  clock: 'M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18ZM12 7v5l3.5 2',
};

export function icon(name) {
  return svg(
    'svg',
    { viewBox: '0 0 24 24', class: 'icon', 'aria-hidden': 'true', focusable: 'false' },
    svg('path', { d: ICONS[name] ?? ICONS.menu }),
  );
}

/** What the server's Markdown may hold; the Sanitizer API keeps no more. */
const SANITIZER = {
  elements: [
    ...['p', 'br', 'hr', 'strong', 'em', 'del', 'code', 'pre', 'blockquote', 'ul', 'ol', 'li', 'a', 'span'],
    ...['h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'table', 'thead', 'tbody', 'tr', 'th', 'td'],
  ],
  attributes: ['href', 'start', 'class'],
};

/**
 * THE ONLY PLACE THAT PARSES HTML. `html` must be a field the server rendered from Markdown and cleaned
 * with an allow-list (`html` of messages, completions and guidelines). Never pass anything else.
 * Where the browser has the Sanitizer API it cleans a second time.
 */
export function serverHtml(html, props) {
  const el = h('div', { dir: 'auto', ...props, class: `prose ${props?.class ?? ''}`.trim() });
  if (typeof el.setHTML === 'function') el.setHTML(html, { sanitizer: SANITIZER });
  else el.innerHTML = html;
  for (const a of el.querySelectorAll('a')) {
    a.rel = 'noopener noreferrer nofollow';
    a.target = '_blank';
  }
  for (const block of el.querySelectorAll('p,li,blockquote,h1,h2,h3,h4,td,th')) block.dir = 'auto';
  for (const pre of el.querySelectorAll('pre, table')) pre.tabIndex = 0; // scrollable by keyboard
  return typeset(el);
}

/** Cleaned HTML when the server sent it, else the bare text. A text of several kinds of parts is shown part by part. */
export function userText(item, props) {
  const text = item.text ?? item.content ?? '';
  if (text.trim() === '') return h('p', { ...props, class: `empty-text ${props?.class ?? ''}`, text: '∅' });
  if (item.parts?.length) return h('div', { ...props, class: `text-parts ${props?.class ?? ''}`.trim() }, item.parts.map(textPart));
  return item.html ? serverHtml(item.html, props) : plainText(text, props);
}

/** A message of a conversation as an item of a list. What a tool has returned is stored as a message of the user. */
export function turnItem(message) {
  const role = message.parts?.[0]?.kind === 'tool_result' ? 'tool' : message.role;
  const known = ['user', 'assistant', 'system', 'tool'].includes(role) ? role : 'other';
  return h('li', { class: `turn ${known}` }, h('span', { class: 'who', text: t(`role.${role}`) }), userText(message));
}

/** Long JSON over several lines; another text as it is. */
function laidOut(text) {
  if (text.length <= 60 || !/^\s*[[{]/.test(text)) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

const block = (text) => h('pre', { tabindex: 0, dir: 'auto', text: laidOut(text) });

/** Reasoning, a tool call, its result, or a list of tools; anything else is text. */
function textPart(part) {
  switch (part.kind) {
    case 'reasoning':
      return h('details', { class: 'text-part reasoning', open: true }, h('summary', { text: t('part.reasoning') }), serverHtml(part.html));
    case 'tool_call':
      return h(
        'section',
        { class: 'text-part tool-call' },
        h('p', { class: 'part-head' }, t('part.tool_call'), ' ', h('code', { text: part.name })),
        part.arguments.length > 0 &&
          h('dl', null, part.arguments.map((a) => [h('dt', null, a.name && h('code', { text: a.name })), h('dd', null, block(a.value))])),
      );
    case 'tool_result':
      return h('section', { class: 'text-part tool-result' }, h('p', { class: 'part-head', text: t('part.tool_result') }), block(part.text));
    case 'tools':
      return h(
        'details',
        { class: 'text-part tools' },
        h('summary', { text: t('part.tools', { n: part.tools.length }) }),
        h('ul', null, part.tools.map((tool) => h('li', null, h('code', { text: tool.name }), tool.description && ` – ${tool.description}`))),
      );
    default:
      return serverHtml(part.html);
  }
}

/** Text with code between backticks, as messages of the server have it. */
export const coded = (text) => String(text).split('`').map((piece, i, all) => (i % 2 && i < all.length - 1 ? h('code', { text: piece }) : piece));

export function plainText(text, props) {
  return h('div', { dir: 'auto', ...props, class: `plain ${props?.class ?? ''}`.trim(), text });
}

/** Copies `text`; `button` says for a moment how that went. */
export async function copyText(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = t('copied');
  } catch {
    button.textContent = t('copy_by_hand'); // no clipboard outside https
  }
  setTimeout(() => (button.textContent = label), 2500);
}

let toasts;
/**
 * A quiet message at the lower edge. Returns a function that removes it.
 * @param {any} content
 * @param {{kind?: 'info' | 'good' | 'bad', seconds?: number, action?: {label: string, run: () => void}}} [options]
 */
export function toast(content, { kind = 'info', seconds = 6, action } = {}) {
  if (!toasts?.isConnected) {
    toasts = h('div', { class: 'toasts', role: 'status', 'aria-live': 'polite' });
    document.body.append(toasts);
  }
  const close = () => el.remove();
  const el = h('div', { class: `toast ${kind}` }, h('div', { class: 'toast-text' }, content));
  if (action) {
    el.append(h('button', { class: 'link', type: 'button', text: action.label, on: { click: () => (close(), action.run()) } }));
  }
  toasts.append(el);
  while (toasts.children.length > 3) toasts.firstChild.remove();
  if (seconds) setTimeout(close, seconds * 1000);
  return close;
}

/**
 * A modal <dialog>. `build(close)` returns the content; resolves with what `close` was given (null on Escape).
 */
export function dialog(title, build, { wide = false, closeLabel = 'Close' } = {}) {
  return new Promise((resolve) => {
    let result = null;
    const close = (value = null) => {
      result = value;
      el.close();
    };
    const id = `d${Math.random().toString(36).slice(2)}`;
    const el = h(
      'dialog',
      { class: wide ? 'wide' : '', 'aria-labelledby': id },
      h(
        'header',
        { class: 'dialog-head' },
        h('h2', { id, text: title }),
        h(
          'button',
          { class: 'icon-button', type: 'button', 'aria-label': closeLabel, on: { click: () => close() } },
          icon('close'),
        ),
      ),
      h('div', { class: 'dialog-body' }, build(close)),
    );
    el.addEventListener('close', () => {
      el.remove();
      resolve(result);
    });
    el.addEventListener('click', (e) => e.target === el && close());
    document.body.append(el);
    el.showModal();
  });
}

/** Reads and writes JSON in a web storage; a blocked or full storage behaves like an empty one. */
export const keep = {
  get(key, store = localStorage) {
    try {
      return JSON.parse(store.getItem(key));
    } catch {
      return null;
    }
  },
  set(key, value, store = localStorage) {
    try {
      if (value === null || value === undefined) store.removeItem(key);
      else store.setItem(key, JSON.stringify(value));
    } catch {
      /* private mode: nothing is remembered */
    }
  },
};

// Long texts: folded to a part of the screen, with a map of what is in them.
import { fill, h } from '../dom.js';
import { num, t } from '../i18n.js';

/** A text with more characters or lines than these is long. */
const LONG_TEXT = 2400;
const LONG_LINES = 40;
/** Fewer parts need no map; of more, the first are in it. */
const MAP_FROM = 4;
const MAP_PARTS = 40;
const PART_WORDS = 60;

/** Whether a text is long. */
export const isLong = (text) => text.length > LONG_TEXT || text.split('\n', LONG_LINES + 1).length > LONG_LINES;

/** The parts of a rendered text by which one finds the way: its headings, or its blocks where it has fewer than three. */
function partsOf(el) {
  const headings = [...el.querySelectorAll('h1,h2,h3,h4,h5,h6,.heading')];
  if (headings.length >= 3) return headings;
  const prose = [...(el.matches('.prose') ? [el] : el.querySelectorAll('.prose'))];
  return prose.flatMap((one) => [...one.children]).filter((part) => part.textContent.trim() !== '');
}

const KINDS = { PRE: 'long.code', TABLE: 'long.table', OL: 'long.list', UL: 'long.list' };

/** A part's first words, with its kind where it is no paragraph. */
function nameOf(part) {
  const text = part.textContent.replace(/\s+/g, ' ').trim();
  const short = text.length > PART_WORDS ? `${text.slice(0, PART_WORDS).trimEnd()}…` : text;
  const kind = KINDS[part.tagName] ?? (part.querySelector?.('table') ? 'long.table' : null);
  return kind ? [h('span', { class: 'tag', text: t(kind) }), ' ', short] : short;
}

/**
 * A rendered text, which can be folded if it is long. A map of its parts stands before it; a part of the map unfolds the text and shows
 * the part. `isOpen` is how it begins, `change(isOpen)` is told when the reader folds or unfolds it.
 * @param {HTMLElement} rendered
 * @param {{x: string, text: string, isOpen: boolean, change: (isOpen: boolean) => void}} options
 */
export function foldable(rendered, { x, text: source, isOpen, change }) {
  if (!isLong(source)) return rendered;
  const text = h('div', { class: 'long-text' }, rendered);
  const button = h('button', { type: 'button', class: 'long-toggle' });
  const el = h('div', { class: 'long' });
  const set = (open) => {
    el.classList.toggle('folded', !open);
    button.setAttribute('aria-expanded', String(open));
    button.textContent = open ? t('long.fold', { x }) : t('long.unfold', { x, n: num(source.length) });
  };
  const turn = (open) => {
    set(open);
    change(open);
  };
  button.addEventListener('click', () => turn(el.classList.contains('folded')));
  // what is reached by the Tab key must be seen
  text.addEventListener('focusin', () => el.classList.contains('folded') && turn(true));
  const parts = partsOf(rendered);
  const show = (part) => {
    turn(true);
    part.scrollIntoView({ block: 'center' });
    part.classList.add('found');
    setTimeout(() => part.classList.remove('found'), 1500);
  };
  const entry = (part) => h('li', null, h('button', { type: 'button', class: 'link', dir: 'auto', on: { click: () => show(part) } }, nameOf(part)));
  const map =
    parts.length < MAP_FROM
      ? null
      : h(
          'details',
          { class: 'long-map', open: true },
          h('summary', { text: t('long.map', { n: parts.length }) }),
          h('ol', null, parts.slice(0, MAP_PARTS).map(entry)),
        );
  fill(el, map, text, button);
  set(isOpen);
  return el;
}

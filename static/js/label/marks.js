// What is wrong with an answer: spans of its text that are marked.
import { dialog, fill, h } from '../dom.js';
import { t } from '../i18n.js';
import { keyOf } from '../keys.js';

/** A marked span: positions in code points of the stored text. @typedef {{start: number, end: number, note?: string}} Mark */

const MAX_QUOTE = 120;

/** The part of a text between two positions in code points, shortened in its middle. */
export function quote(text, start, end) {
  const part = [...text].slice(start, end);
  if (part.length <= MAX_QUOTE) return part.join('');
  return `${part.slice(0, MAX_QUOTE / 2).join('')} … ${part.slice(-MAX_QUOTE / 2).join('')}`;
}

/**
 * The text as a text area holds it, with line feeds alone, and for each of its indices the position in code points of the
 * original.
 */
export function laidOut(text) {
  let shown = '';
  const at = [];
  let n = 0;
  const points = [...text];
  for (const [i, c] of points.entries()) {
    if (c === '\r' && points[i + 1] === '\n') {
      n += 1;
      continue;
    }
    const kept = c === '\r' ? '\n' : c;
    for (let k = 0; k < kept.length; k++) at.push(n);
    shown += kept;
    n += 1;
  }
  at.push(n);
  return { shown, at };
}

/** The marks of an answer, below its text; nothing without them. */
export function marksSummary(completion, ballot) {
  const marks = ballot.spans[completion.id] ?? [];
  return marks.length ? h('ul', { class: 'marks-list' }, marks.map((mark) => h('li', null, markText(completion, mark)))) : null;
}

const markText = (completion, { start, end, note }) => [
  h('q', { class: 'marked', dir: 'auto', text: quote(completion.text, start - completion.text_start, end - completion.text_start) }),
  note ? h('span', { class: 'mark-note', dir: 'auto', text: note }) : null,
];

/** The words that are selected on the page, as indices of `shown`; null when they are not in it. */
function selectedWords(shown) {
  const words = String(window.getSelection() ?? '').trim();
  const from = words === '' ? -1 : shown.indexOf(words);
  return from < 0 ? null : [from, from + words.length];
}

/**
 * Lets the labeler mark spans of the answer named `x`; resolves when they are done. `change(marks)` is told every change.
 * @param {any} completion
 * @param {{x: string, marks: Mark[], change: (marks: Mark[]) => void}} options
 */
export function marksDialog(completion, { x, marks: given, change }) {
  const { shown, at } = laidOut(completion.text);
  const words = selectedWords(shown);
  let marks = [...given];
  const rows = String(Math.min(12, 3 + shown.split('\n').length));
  const text = h('textarea', { id: 'mark-text', rows, dir: 'auto', inputmode: 'none', spellcheck: 'false', value: shown });
  const note = h('input', { id: 'mark-note', autocomplete: 'off', dir: 'auto', maxlength: '500' });
  const list = h('ul', { class: 'marks-list' });
  const said = h('p', { class: 'help', role: 'status', 'aria-live': 'polite' });

  function draw() {
    const item = (mark) =>
      h(
        'li',
        null,
        markText(completion, mark),
        h('button', {
          type: 'button',
          class: 'quiet',
          text: t('marks.remove'),
          on: {
            click: () => {
              marks = marks.filter((m) => m !== mark);
              change(marks);
              draw();
              text.focus();
            },
          },
        }),
      );
    fill(list, marks.map(item));
  }

  function mark() {
    const from = text.selectionStart;
    const to = text.selectionEnd;
    if (shown.slice(from, to).trim() === '') return void ((said.textContent = t('marks.select_first')), text.focus());
    const start = completion.text_start + at[from];
    const end = completion.text_start + at[to];
    if (marks.some((m) => start < m.end && m.start < end)) return void (said.textContent = t('marks.overlaps'));
    const why = note.value.trim();
    marks = [...marks, { start, end, ...(why ? { note: why } : {}) }].sort((a, b) => a.start - b.start);
    note.value = '';
    said.textContent = t('marks.marked', { n: marks.length });
    change(marks);
    draw();
    text.setSelectionRange(to, to);
    text.focus();
  }

  // the text is selected here, not written; a caret that can move needs an editable field
  text.addEventListener('beforeinput', (e) => e.preventDefault());
  for (const el of [text, note])
    el.addEventListener('keydown', (e) => {
      if (keyOf(e) !== 'Enter' || e.isComposing) return;
      e.preventDefault();
      e.stopPropagation();
      mark();
    });
  draw();

  return dialog(
    t('marks.title', { x }),
    (close) => {
      requestAnimationFrame(() => {
        text.focus();
        text.setSelectionRange(...(words ?? [0, 0]));
      });
      return [
        h(
          'section',
          { class: 'mark' },
          h('div', { class: 'field' }, h('label', { for: 'mark-text', text: t('marks.text') }), text, h('p', { class: 'help', text: t('marks.help') })),
          h('div', { class: 'field' }, h('label', { for: 'mark-note', text: t('marks.note') }), note),
          h('button', { type: 'button', text: t('marks.mark'), data: { act: 'mark-selection' }, on: { click: mark } }),
          said,
          list,
        ),
        h(
          'div',
          { class: 'actions' },
          h('button', { type: 'button', class: 'primary', text: t('marks.done'), on: { click: () => close() } }),
        ),
      ];
    },
    { wide: true, closeLabel: t('close') },
  );
}

// The text of an answer as the labeler would have it, written in the place of the answer.
import { h } from '../dom.js';
import { t } from '../i18n.js';
import { edits } from './diff.js';
import { laidOut } from './marks.js';

/** A text with its changes: what is gone is struck out, what is new is underlined. */
export function trackedText(text, corrected) {
  const tags = { gone: 'del', new: 'ins' };
  return h(
    'div',
    { class: 'tracked', dir: 'auto' },
    edits(laidOut(text).shown, corrected).map(({ kind, text: part }) => (kind === 'same' ? part : h(tags[kind], { text: part }))),
  );
}

/**
 * A field with the text of an answer, in its place. `change(text)` is told every change; the text is undefined while it is
 * that of the answer. `done()` closes the field.
 * @param {{text: string}} completion
 * @param {{x: string, former?: string, change: (text?: string) => void, done: () => void}} options
 */
export function correctionField({ text }, { x, former, change, done }) {
  const { shown } = laidOut(text);
  const field = h('textarea', {
    dir: 'auto',
    rows: String(Math.min(24, 2 + shown.split('\n').length)),
    'aria-label': t('correct.title', { x }),
    value: former ?? shown,
  });
  const changed = () => change(field.value.trim() === '' || field.value === shown ? undefined : field.value);
  field.addEventListener('input', changed);
  field.addEventListener('keydown', (e) => {
    if (e.key !== 'Escape' || e.isComposing) return;
    e.preventDefault();
    e.stopPropagation();
    done();
  });
  const restore = () => {
    field.value = shown;
    changed();
    field.focus();
  };
  return h(
    'div',
    { class: 'correct-field' },
    field,
    h('p', { class: 'help', text: t('correct.help') }),
    h(
      'div',
      { class: 'actions' },
      h('button', { type: 'button', class: 'quiet', text: t('marks.restore'), on: { click: restore } }),
      h('button', { type: 'button', class: 'primary', text: t('marks.done'), on: { click: done } }),
    ),
  );
}

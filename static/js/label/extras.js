// The rating from 1 to 7 and the flags that every answer has where no rubric is active.
import { FLAGS } from './ballot.js';
import { h } from '../dom.js';
import { t } from '../i18n.js';

const POINTS = [1, 2, 3, 4, 5, 6, 7];

/**
 * The controls of the answer with this id, named `x`.
 * @param {any} ballot
 * @param {string} id
 * @param {string} x
 * @param {(name: string, value?: any) => void} act
 */
export function ratingAndFlags(ballot, id, x, act) {
  const ratings = h(
    'div',
    { class: 'rating', role: 'group', 'aria-label': t('more.rating_of', { x }) },
    h('span', { class: 'extra-label', text: t('more.rating') }),
    h('span', { class: 'anchor', text: t('more.worst') }),
    POINTS.map((n) =>
      h('button', {
        type: 'button',
        'aria-pressed': String(ballot.ratings[id] === n),
        text: n,
        on: { click: () => act('rate', { id, value: n }) },
      }),
    ),
    h('span', { class: 'anchor', text: t('more.best') }),
  );
  const flags = h(
    'div',
    { class: 'flags', role: 'group', 'aria-label': t('more.flags_of', { x }) },
    FLAGS.map((code, n) =>
      h(
        'button',
        {
          type: 'button',
          class: 'chip',
          'aria-pressed': String((ballot.flags[id] ?? []).includes(code)),
          on: { click: () => act('flag', { id, code }) },
        },
        t(`flag.${code}`),
        h('kbd', { 'aria-hidden': 'true', text: n + 1 }),
      ),
    ),
  );
  return [ratings, flags];
}

/** Brings the controls in `el` in line with the ballot. */
export function refreshRatingAndFlags(el, ballot, id) {
  const press = (button, on) => button.setAttribute('aria-pressed', String(on));
  el.querySelectorAll('.rating button').forEach((button, n) => press(button, ballot.ratings[id] === n + 1));
  el.querySelectorAll('.flags button').forEach((button, n) => press(button, (ballot.flags[id] ?? []).includes(FLAGS[n])));
}

// Figures of the ratings: each version of a rubric with its dimensions.
import { get } from '../api.js';
import { fill, h } from '../dom.js';
import { figureText, percent } from '../figures.js';
import { num, t, when } from '../i18n.js';
import { textOf } from '../label/rubric.js';
import { table } from './parts.js';
import { projectId } from './project.js';

/** @import { DimensionFigures, RubricFigures } from '../contract.d.ts' */

/** Bars of how often each value was given, with the numbers in words. */
function spread(/** @type {DimensionFigures} */ d) {
  if (d.kind === 'tags') return h('span', { class: 'wrap', dir: 'auto', text: d.tags.map((x) => t('ratings.spread_of', { value: x.tag, n: x.n })).join(t('rubric.semicolon')) });
  const names = d.kind === 'flag' ? [t('rubric.no'), t('rubric.yes')] : d.counts.map((_, i) => String(i + 1));
  const most = Math.max(1, ...d.counts);
  const words = d.counts.map((n, i) => t('ratings.spread_of', { value: names[i], n })).join(t('rubric.semicolon'));
  return h(
    'div',
    { class: 'spread', role: 'img', 'aria-label': words, title: words },
    d.counts.map((n, i) => {
      const bar = h('span', { class: 'spread-bar' });
      bar.style.setProperty('--share', String(n / most));
      return h('span', { class: 'spread-value' }, bar, h('span', { class: 'sub', text: names[i] }));
    }),
  );
}

const dimensionRow = (/** @type {DimensionFigures} */ d) =>
  h(
    'tr',
    null,
    h('td', { class: 'wrap', dir: 'auto' }, textOf(d.label), h('div', { class: 'sub', text: t(`rubrics.kind.${d.kind}`) })),
    h(
      'td',
      { class: 'nowrap' },
      num(d.ratings),
      h('div', { class: 'sub', text: t('ratings.answers', { n: d.completions, people: num(d.labelers) }) }),
    ),
    h('td', { class: 'nowrap', text: figureText(d.mean, { share: d.kind === 'flag' }) }),
    h('td', null, d.ratings ? spread(d) : null),
    h('td', { class: 'nowrap', text: figureText(d.alpha) }),
    h('td', { class: 'nowrap', text: d.same ? percent(d.same.value) : '–' }),
  );

const rubric = (/** @type {RubricFigures} */ r) => [
  h(
    'h3',
    { dir: 'auto' },
    `${r.name} `,
    r.active ? h('span', { class: 'tag good', text: t('rubrics.active') }) : null,
    h('span', { class: 'sub', text: ` ${t('ratings.version', { v: r.version, when: when(r.created) })}` }),
  ),
  table(
    `${r.name} ${r.version}`,
    [
      [t('ratings.dimension')],
      [t('ratings.n')],
      [t('ratings.mean')],
      [t('ratings.spread')],
      [t('ratings.alpha')],
      [t('ratings.same')],
    ],
    r.dimensions.map(dimensionRow),
    t('ratings.none'),
  ),
];

/** Loads the figures of the last `days` (all when 0) into `el`. */
export async function ratingFigures(el, days, signal) {
  const { rubrics } = await get('/admin/api/quality/ratings', { days: days || null, project: projectId() }, { signal });
  fill(el, rubrics.length ? rubrics.map(rubric) : h('p', { class: 'muted pad', text: t('ratings.none') }));
}

// Language models that rank sets as labelers: how far each agrees with people, and the way to let one rank more.
import { get } from '../api.js';
import { fill, h } from '../dom.js';
import { HUMAN_CEILING, figureText, percent, whisker } from '../figures.js';
import { num, t } from '../i18n.js';
import { textOf } from '../label/rubric.js';
import { table } from './parts.js';
import { projectId } from './project.js';

/** @import { JudgeFigures, JudgesReport } from '../contract.d.ts' */
/** @typedef {Pick<JudgeFigures, 'kappa' | 'same' | 'same_without_ties' | 'pairs' | 'shared_sets'>} Agreement */

const counted = (f, text) => h('div', { class: 'sub nowrap', text: f ? `${text} · ${t('quality.n_sets', { n: f.n })}` : '–' });

/** κ, the shares of equal answers, and how much they rest on. */
const cells = (/** @type {Agreement} */ a) => [
  h('td', null, whisker(a.kappa, { min: -1, middle: 0 }), counted(a.kappa, figureText(a.kappa))),
  h(
    'td',
    null,
    whisker(a.same_without_ties, { band: HUMAN_CEILING, middle: 0.5 }),
    counted(a.same_without_ties, figureText(a.same_without_ties, { share: true })),
  ),
  h('td', { class: 'nowrap', text: figureText(a.same, { share: true }) }),
  h('td', { class: 'right' }, num(a.pairs), h('div', { class: 'sub nowrap', text: t('quality.n_sets', { n: a.shared_sets }) })),
];

const HEAD = () => [['κ'], [t('quality.pairwise')], [t('quality.pairwise_ties')], [t('judges.pairs'), 'right']];

function judge(/** @type {JudgeFigures} */ j) {
  return h(
    'tr',
    null,
    h('td', { class: 'wrap' }, h('span', { class: 'strong', dir: 'auto', text: j.name }), h('div', { class: 'sub', dir: 'auto', text: j.criteria })),
    cells(j),
    h('td', { class: 'right' }, percent(j.doubt), h('div', { class: 'sub nowrap', text: t('quality.n_sets', { n: j.sets }) })),
  );
}

function versions(/** @type {JudgesReport} */ report) {
  const rows = report.judges.flatMap((j) =>
    j.versions.map((v) =>
      h(
        'tr',
        null,
        h('td', { class: 'wrap', dir: 'auto', text: j.name }, h('div', { class: 'sub', dir: 'auto', text: j.criteria })),
        h('td', { class: 'mono', text: report.versions[v.model_version_id] ?? v.model_version_id }),
        cells(v),
      ),
    ),
  );
  if (rows.length === 0) return null;
  const title = t('judges.by_version');
  return h('details', null, h('summary', { text: title }), table(title, [[t('judges.judge')], [t('judges.version')], ...HEAD()], rows, ''));
}

function dimensions(/** @type {JudgesReport} */ report) {
  const rows = report.judges.flatMap((j) =>
    j.dimensions.map((d) =>
      h(
        'tr',
        null,
        h('td', { class: 'wrap', dir: 'auto', text: j.name }, h('div', { class: 'sub', dir: 'auto', text: j.criteria })),
        h('td', { class: 'wrap' }, h('span', { dir: 'auto', text: textOf(d.label) || d.dimension }), h('div', { class: 'sub mono', text: d.rubric })),
        cells(d),
      ),
    ),
  );
  if (rows.length === 0) return null;
  const title = t('judges.by_dimension');
  return h(
    'details',
    null,
    h('summary', { text: title }),
    h('p', { class: 'muted', text: t('judges.by_dimension_help') }),
    table(title, [[t('judges.judge')], [t('judges.dimension')], ...HEAD()], rows, ''),
  );
}

/** Loads the agreement of judges with people's judgments of the last `days` (all when 0) into `el`. */
export async function judgeFigures(el, days, signal) {
  const report = await get('/admin/api/quality/judges', { days: days || null, project: projectId() }, { signal });
  fill(
    el,
    table(
      t('judges.title'),
      [[t('judges.judge')], ...HEAD(), [t('judges.doubt'), 'right']],
      report.judges.map(judge),
      t('judges.none'),
    ),
    versions(report),
    dimensions(report),
  );
}

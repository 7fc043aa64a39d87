// A sweep's result: one row for each combination of arguments, figures as mean ± standard deviation over its seeds, and
// a picture of the figure that decides.
import { h } from '../dom.js';
import { whisker } from '../figures.js';
import { t } from '../i18n.js';
import { metricTitle, show } from './metrics.js';
import { section, table } from './parts.js';

/** Figures beside the one that decides. */
const MOST = 5;

/** The metric that a figure is the last or the held-out value of. */
const metricOf = (name) => name.replace(/^last\./, '');

/** "0.71 ± 0.02"; without a deviation where there is one seed. */
export const spread = (name, figure) =>
  figure ? (figure.sd === null ? show(name, figure.mean) : `${show(name, figure.mean)} ± ${show(name, figure.sd)}`) : '–';

/** The scale on which all rows fit, with a margin; of equal values around them. */
export function scaleOf(figures) {
  const ends = figures.flatMap((f) => [f.mean - (f.sd ?? 0), f.mean + (f.sd ?? 0)]);
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const margin = (high - low || Math.abs(high) || 1) * 0.05;
  return { min: low - margin, max: high + margin };
}

/** The part of the run's page; null where the run was no sweep. */
export function sweepPart(job) {
  const sweep = (job.result?.metrics ?? job.result)?.sweep;
  if (!sweep?.cells?.length) return null;
  const names = Object.keys(sweep.cells[0].args);
  const others = Object.keys(sweep.cells[0].figures).filter((name) => name !== sweep.by);
  const shown = [sweep.by, ...others.slice(0, MOST)];
  const scale = scaleOf(sweep.cells.map((cell) => cell.figures[sweep.by]).filter(Boolean));
  const picture = ({ figures }) => {
    const f = figures[sweep.by];
    if (!f) return null;
    const ends = f.sd === null ? { low: null, high: null } : { low: f.mean - f.sd, high: f.mean + f.sd };
    return whisker({ value: f.mean, n: f.values.length, ...ends }, { ...scale, label: spread(metricOf(sweep.by), f) });
  };
  const columns = [
    ...names.map((name) => [name, 'mono']),
    [metricTitle(metricOf(sweep.by)), 'num'],
    ['', '', t('sweep.picture')],
    ...shown.slice(1).map((name) => [metricTitle(metricOf(name)), 'num']),
  ];
  const rows = sweep.cells.map((cell, i) =>
    h(
      'tr',
      null,
      names.map((name) => h('td', { class: 'mono', text: JSON.stringify(cell.args[name]) })),
      h(
        'td',
        { class: 'num' },
        h('span', { text: spread(metricOf(sweep.by), cell.figures[sweep.by]) }),
        i === sweep.best ? [' ', h('span', { class: 'tag good', text: t('sweep.best') })] : null,
      ),
      h('td', null, picture(cell)),
      shown.slice(1).map((name) => h('td', { class: 'num', text: spread(metricOf(name), cell.figures[name]) })),
    ),
  );
  return section(
    t('sweep.title'),
    null,
    h('p', { class: 'help', text: t('sweep.about', { n: sweep.seeds }) }),
    table(t('sweep.title'), columns, rows, ''),
  );
}

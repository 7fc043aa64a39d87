// Figures with their 95 % intervals: as text, and as a dot with whiskers on a common scale.
import { h, svg } from './dom.js';
import { fig, lang, num, t } from './i18n.js';

/** @import { Figure } from './contract.d.ts' */

/** How often labelers agree with each other in the InstructGPT and summarisation papers. */
export const HUMAN_CEILING = [0.72, 0.77];

/** Chinese writes the sign without a space. */
const PERCENT = lang === 'zh' ? '%' : '\u00a0%';
export const percent = (x, digits = 0) => (Number.isFinite(x) ? `${(100 * x).toFixed(digits)}${PERCENT}` : '–');

/** "0.74 (0.68 – 0.80)", as shares where `share`. */
export function figureText(f, { share = false, digits = 2 } = {}) {
  if (!f) return '–';
  const show = share ? (x) => percent(x) : (x) => x.toFixed(digits);
  return f.low === null || f.high === null ? show(f.value) : `${show(f.value)} (${show(f.low)} – ${show(f.high)})`;
}

const W = 160;
const H = 18;

/**
 * A dot with its interval on a scale from `min` to `max`. `band` shades a range, `middle` marks a value.
 * The words are in `label`; the picture adds nothing for those who do not see it.
 * @param {Figure | null | undefined} f
 * @param {{min?: number, max?: number, band?: number[], middle?: number, label?: string}} [options]
 */
export function whisker(f, { min = 0, max = 1, band, middle, label = '' } = {}) {
  const x = (v) => 4 + ((Math.min(max, Math.max(min, v)) - min) / (max - min)) * (W - 8);
  const parts = [svg('line', { class: 'w-axis', x1: 4, x2: W - 4, y1: H / 2, y2: H / 2 })];
  if (band)
    parts.push(svg('rect', { class: 'w-band', x: x(band[0]), width: x(band[1]) - x(band[0]), y: 1, height: H - 2, rx: 2 }));
  if (middle !== undefined) parts.push(svg('line', { class: 'w-middle', x1: x(middle), x2: x(middle), y1: 2, y2: H - 2 }));
  if (f) {
    if (f.low !== null && f.high !== null)
      parts.push(svg('line', { class: 'w-interval', x1: x(f.low), x2: x(f.high), y1: H / 2, y2: H / 2 }));
    parts.push(svg('circle', { class: 'w-dot', cx: x(f.value), cy: H / 2, r: 4 }));
  }
  return svg('svg', { class: 'whisker', viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': label || figureText(f) }, ...parts);
}

/** Fewer than this many independent things are no figure yet. */
const FEW = 3;

/**
 * Name, picture and numbers of one figure; `counted` is the word for what it rests on (`{n}`).
 * @param {string} name
 * @param {Figure | null | undefined} f
 * @param {{help?: string, share?: boolean, counted?: string, min?: number, max?: number, band?: number[], middle?: number}} [options]
 */
export function figureRow(name, f, { help, share = true, counted = 'quality.n', ...scale } = {}) {
  const few = f && f.n < FEW;
  const text = few ? t('quality.few', { n: f.n }) : figureText(f, { share });
  return h(
    'div',
    { class: 'figure-row' },
    h('div', { class: 'figure-name' }, h('span', { text: name }), help ? h('p', { class: 'help', text: help }) : null),
    whisker(f, { ...scale, label: `${name}: ${text}` }),
    h(
      'div',
      { class: 'figure-text' },
      h('strong', { text: f && !few ? (share ? percent(f.value) : f.value.toFixed(2)) : '–' }),
      h('span', {
        class: 'help',
        text:
          f && f.low !== null && f.high !== null
            ? share
              ? `${percent(f.low)} – ${percent(f.high)}`
              : `${f.low.toFixed(2)} – ${f.high.toFixed(2)}`
            : '',
      }),
      h('span', { class: 'help', text: few ? text : f ? t(counted, { n: f.n }) : t('quality.too_few') }),
    ),
  );
}

/** A number with what it counts. */
export const tile = (value, label, help) =>
  h(
    'div',
    { class: 'figure' },
    h('strong', { text: typeof value === 'number' ? (Number.isInteger(value) ? num(value) : fig(value)) : value }),
    h('span', { text: label }),
    help ? h('span', { class: 'help' }, help) : null,
  );

/** Bars of a small count per day; `days`: `[{label, value, title}]`. */
export function bars(days, label) {
  const most = Math.max(1, ...days.map((d) => d.value));
  const step = 100 / days.length;
  return h(
    'figure',
    { class: 'bars' },
    svg(
      'svg',
      {
        viewBox: '0 0 100 30',
        preserveAspectRatio: 'none',
        role: 'img',
        'aria-label': `${label}: ${days.map((d) => `${d.label} ${d.value}`).join(', ')}`,
      },
      ...days.map((d, i) => {
        const height = (d.value / most) * 28;
        const bar = svg('rect', {
          class: 'b-bar',
          x: i * step + step * 0.12,
          width: step * 0.76,
          y: 30 - Math.max(height, 0.4),
          height: Math.max(height, 0.4),
        });
        bar.append(svg('title', {}, `${d.label}: ${num(d.value)}`));
        return bar;
      }),
    ),
    h(
      'figcaption',
      { class: 'help' },
      h('span', { text: days[0]?.label ?? '' }),
      h('span', { text: label }),
      h('span', { text: days.at(-1)?.label ?? '' }),
    ),
  );
}

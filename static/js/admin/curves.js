// Training curves with uPlot: smoothing, synced hover, several runs in one chart.
import uPlot from '../../vendor/uplot/uPlot.esm.js';
import { fill, h } from '../dom.js';
import { fig, has, t } from '../i18n.js';

export const metricTitle = (name) => (has(`metric.${name}`) ? t(`metric.${name}`) : name);

/** The first name that fits one of `patterns`, tried in order. */
function pick(names, patterns) {
  for (const p of patterns) {
    const found = names.find((n) => p.test(n));
    if (found) return found;
  }
  return null;
}

/** The two curves that tell most: reward and KL, or loss and accuracy where there is no reward. */
export function leadMetrics(names) {
  const plain = names.filter((n) => !/(std|min|max|coef|target|time|per_second)/.test(n));
  const kl = pick(plain, [/^kl$/, /^(objective\/)?kl/, /kl_(mean|ref|sequence)/, /(^|[_/])kl($|[_/])/]);
  const reward = pick(plain, [
    /^reward$/,
    /^(mean_reward|reward_mean|reward\/mean)$/,
    /^(objective\/)?(score|scores|rlhf_reward)/,
    /reward/,
    /score/,
  ]);
  if (reward && kl) return [reward, kl];
  const loss = pick(plain, [/^loss$/, /^(train_)?loss/, /loss/]);
  const accuracy = pick(plain, [/held.?out.*acc/, /eval.*acc/, /accuracy/, /^eval_loss$/, /held.?out.*loss/]);
  return [reward ?? loss, kl ?? accuracy].filter(Boolean);
}

/** What tells most comes first; names that are not here follow as they came. */
const ORDER = [
  /win_?rate/,
  /accuracy/,
  /ece|calibration/,
  /loss/,
  /margin/,
  /entropy/,
  /^clip_fraction/,
  /^ratio/,
  /kl/,
  /explained_variance/,
  /value/,
  /length/,
  /no_eos|truncat/,
  /reward/,
  /grad_norm/,
];

export function inOrder(names) {
  const place = (n) => (ORDER.findIndex((p) => p.test(n)) + ORDER.length + 1) % (ORDER.length + 1);
  return names
    .map((n, i) => [place(n), i, n])
    .sort((a, b) => a[0] - b[0] || a[1] - b[1])
    .map(([, , n]) => n);
}

/** A curve that says the same at every step of every run tells nothing by its shape. */
export const isStill = (tables, name) => {
  const lines = [...tables.values()].map((table) => table.get(name)).filter(Boolean);
  return lines.every((l) => l.values.length > 2 && l.values.every((v) => v === l.values[0]));
};

/** Exponential moving average without start bias; `weight` 0 … 0.99. Nulls stay null. */
export function smooth(values, weight) {
  if (weight === 0) return values;
  let average = 0;
  let norm = 0;
  return values.map((v) => {
    if (v === null || v === undefined || !Number.isFinite(v)) return v;
    average = weight * average + (1 - weight) * v;
    norm = weight * norm + (1 - weight);
    return average / norm;
  });
}

/** Steps are whole: 1, 2, 5, 10, 20 … */
const WHOLE = Array.from({ length: 24 }, (_, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3));

const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];
const colour = (i) =>
  getComputedStyle(document.documentElement)
    .getPropertyValue(`--c${(i % 5) + 1}`)
    .trim();
const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/**
 * One chart. `lines`: `{name, label, steps, values, axis: 0|1, colour, dash}`. The legend above it shows the
 * values under the pointer, else the last ones.
 */
export class Chart {
  constructor({ title, note, height = 190 }) {
    this.height = height;
    this.legend = h('div', { class: 'chart-legend', 'aria-hidden': 'true' });
    this.plot = h('div', { class: 'chart-plot', role: 'img' });
    this.step = h('span', { class: 'help', 'aria-hidden': 'true' });
    this.el = h(
      'figure',
      { class: 'chart panel' },
      h('figcaption', null, h('span', { class: 'chart-title', text: title }), this.step),
      this.legend,
      this.plot,
      note ? h('p', { class: 'help', text: note }) : null,
    );
    this.title = title;
    this.observer = new ResizeObserver(() => this.u?.setSize({ width: this.plot.clientWidth, height: this.height }));
    this.observer.observe(this.plot);
  }

  destroy() {
    this.observer.disconnect();
    this.u?.destroy();
  }

  draw(lines, smoothing) {
    this.lines = lines;
    const series = [{}];
    const tables = [];
    const shape = [];
    for (const line of lines) {
      const stroke = colour(line.colour);
      const scale = line.axis ? 'right' : 'y';
      const points = { show: line.steps.length < 2 };
      const base = { scale, stroke, dash: DASHES[line.dash % DASHES.length], spanGaps: true, points };
      if (smoothing > 0) {
        series.push({ ...base, width: 1, alpha: 0.28 }, { ...base, width: 2 });
        tables.push([line.steps, line.values, smooth(line.values, smoothing)]);
      } else {
        series.push({ ...base, width: 1.6 });
        tables.push([line.steps, line.values]);
      }
      shape.push(series.length - 1);
    }
    const data = tables.length > 1 ? uPlot.join(tables) : (tables[0] ?? [[]]);
    this.shown = shape;
    const key = JSON.stringify([lines.map((l) => [l.name, l.label, l.axis, l.colour, l.dash]), smoothing > 0, token('--ink')]);
    if (this.u && this.key === key) this.u.setData(data);
    else
      this.#build(
        series,
        data,
        lines.some((l) => l.axis === 1),
      );
    this.key = key;
    this.#readout(null);
    const last = lines.map((l) => `${l.label} ${fig(l.values.at(-1))}`.trim()).join(', ');
    this.plot.setAttribute('aria-label', t('chart.label', { title: this.title, last }));
  }

  #build(series, data, right) {
    this.u?.destroy();
    const axis = {
      stroke: token('--muted'),
      grid: { stroke: token('--line'), width: 1 },
      ticks: { stroke: token('--line'), width: 1, size: 4 },
      font: '11px system-ui, sans-serif',
    };
    const values = (_, ticks) => ticks.map((v) => (v === null ? '' : fig(v)));
    this.u = new uPlot(
      {
        width: this.plot.clientWidth || 400,
        height: this.height,
        series,
        legend: { show: false },
        cursor: { sync: { key: 'runs' }, points: { size: 6 }, drag: { x: true, y: false } },
        scales: { x: { time: false }, y: {}, ...(right ? { right: {} } : {}) },
        axes: [
          { ...axis, size: 26, values, incrs: WHOLE },
          { ...axis, size: 52, values },
          ...(right ? [{ ...axis, scale: 'right', side: 1, size: 52, values, grid: { show: false } }] : []),
        ],
        hooks: { setCursor: [(u) => this.#readout(u.cursor.idx)] },
      },
      data,
      this.plot,
    );
  }

  #readout(idx) {
    const { u, lines } = this;
    const at = (column) => {
      if (idx === null || idx === undefined) return column.findLast?.((v) => v !== null && v !== undefined) ?? null;
      for (let i = idx; i >= 0; i--) if (column[i] !== null && column[i] !== undefined) return column[i];
      return null;
    };
    const step = u.data[0]?.[idx ?? u.data[0].length - 1];
    fill(
      this.legend,
      lines.map((line, i) =>
        h(
          'span',
          { class: `key k${(line.colour % 5) + 1} d${line.dash % 4}` },
          h('i'),
          h('span', { text: line.label }),
          h('b', { text: fig(at(u.data[this.shown[i]] ?? [])) }),
        ),
      ),
    );
    this.step.textContent = step === undefined ? '' : t('chart.step', { n: step });
  }
}

/** `[{step, name, value}]` → Map name → {steps, values}, steps ascending. */
export function byName(metrics) {
  const map = new Map();
  for (const { step, name, value } of [...metrics].sort((a, b) => a.step - b.step)) {
    if (!map.has(name)) map.set(name, { steps: [], values: [] });
    const line = map.get(name);
    if (line.steps.at(-1) === step)
      line.values[line.values.length - 1] = value; // a resumed run writes a step again
    else {
      line.steps.push(step);
      line.values.push(value);
    }
  }
  return map;
}

/** One row per step, one column per metric. */
export function toCsv(metrics) {
  const names = [...new Set(metrics.map((m) => m.name))];
  const rows = new Map();
  for (const { step, name, value } of metrics) {
    if (!rows.has(step)) rows.set(step, {});
    rows.get(step)[name] = value;
  }
  const quote = (s) => (/[",\n]/.test(s) ? `"${s.replaceAll('"', '""')}"` : s);
  const lines = [...rows].sort(([a], [b]) => a - b).map(([step, row]) => [step, ...names.map((n) => row[n] ?? '')].join(','));
  return `${['step', ...names].map(quote).join(',')}\n${lines.join('\n')}\n`;
}

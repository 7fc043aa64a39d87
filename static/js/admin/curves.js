// Training curves with uPlot: raw values, smoothing on demand, synced hover, several runs in one chart.
import uPlot from '../../vendor/uplot/uPlot.esm.js';
import { fill, h } from '../dom.js';
import { GAP, duration, t } from '../i18n.js';
import { metricTitle, onAxis, show, tickTexts, unitOf } from './metrics.js';

/** A curve that says the same at every step of every run, or was counted once before the first, has no shape. */
export const isStill = (tables, name) => {
  const lines = [...tables.values()].map((table) => table.get(name)).filter(Boolean);
  const once = (l) => l.values.length === 1 && l.steps[0] === 0;
  return lines.every((l) => once(l) || (l.values.length > 2 && l.values.every((v) => v === l.values[0])));
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

/**
 * Step → seconds of work from the curve `elapsed_seconds` of a run; null where the run has none. A resumed run counts
 * from 0 again, so its seconds go on after those before.
 */
export function timeOf(line) {
  if (!line?.steps.length) return null;
  const seconds = [];
  let before = 0;
  line.values.forEach((v, i) => {
    if (i && v < line.values[i - 1]) before += line.values[i - 1];
    seconds.push(before + v);
  });
  const [xs, ys] = [[0, ...line.steps], [0, ...seconds]];
  return (step) => {
    let i = xs.findIndex((x) => x >= step);
    if (i < 0) i = xs.length - 1; // measured after the last step: at the speed of the last one
    if (i === 0) return 0;
    return ys[i - 1] + ((ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])) * (step - xs[i - 1]);
  };
}

/** Seconds between ticks of a time axis. */
const SPANS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800];

const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];
/** The colour that a custom property has in the theme of the page: a canvas does not know `light-dark()`. */
function token(name) {
  const probe = document.createElement('span');
  probe.style.color = `var(${name})`;
  document.documentElement.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}
const colour = (i) => token(`--c${(i % 5) + 1}`);

/** Lines with so few points show each of them: a single point would be invisible. */
const FEW_POINTS = 24;

/** Limits of an axis: a flat line lies in the middle, shares end at 0 and 1, what cannot be negative starts at 0. */
export function limits(name, min, max, fixed) {
  if (fixed) return fixed;
  if (min === null || max === null || !Number.isFinite(min) || !Number.isFinite(max)) return [0, 1];
  // equal but for rounding: an axis of such a range has ticks that no number tells apart
  if (max - min <= 1e-9 * Math.max(Math.abs(min), Math.abs(max))) {
    const pad = Math.abs(min) * 0.1 || (/kl|seconds|bytes/.test(name) ? 0.1 : 1);
    return [min >= 0 && min - pad < 0 ? 0 : min - pad, max + pad];
  }
  const pad = (max - min) * 0.08;
  return [min >= 0 && min - pad < 0 ? 0 : min - pad, max + pad];
}

/**
 * One chart of one metric. `lines`: `{name, label, steps, values, colour, dash}`. The legend above it shows the raw
 * values under the pointer, else the last ones; the smoothed value only beside them.
 */
export class Chart {
  /**
   * `pin(name)` is called by the pin button, `reset()` by the zoom's; `fixed` are the limits of the y-axis.
   * @param {{name: string, note?: string, height?: number, fixed?: number[], pin?: (name: string) => void, reset?: () => void}} options
   */
  constructor({ name, note, height = 190, fixed, pin, reset }) {
    this.name = name;
    this.height = height;
    this.fixed = fixed;
    this.legend = h('div', { class: 'chart-legend', 'aria-hidden': 'true' });
    this.plot = h('div', { class: 'chart-plot', role: 'img' });
    this.step = h('span', { class: 'help', 'aria-hidden': 'true' });
    this.figure = h('p', { class: 'help chart-figure' });
    this.note = h('p', { class: 'help chart-note', text: note ?? '' });
    this.reset = h('button', { type: 'button', class: 'quiet small', hidden: true, text: t('chart.reset') });
    this.reset.addEventListener('click', () => (reset ? reset() : this.resetZoom()));
    const unit = unitOf(name);
    this.title = metricTitle(name);
    this.pin = pin ? h('button', { type: 'button', class: 'quiet small pin', on: { click: () => pin(name) } }) : null;
    this.el = h(
      'figure',
      { class: 'chart panel', data: { metric: name } },
      h(
        'figcaption',
        null,
        h('span', { class: 'chart-title' }, this.title, unit ? h('span', { class: 'chart-unit', text: ` ${unit}` }) : null),
        h('span', { class: 'row' }, this.step, this.reset, this.pin),
      ),
      this.legend,
      this.plot,
      this.figure,
      this.note,
    );
    // in a closed section there is no width, and an axis without room has no end of ticks
    this.observer = new ResizeObserver(() => {
      if (this.plot.clientWidth > 0) this.u?.setSize({ width: this.plot.clientWidth, height: this.height });
    });
    this.observer.observe(this.plot);
  }

  destroy() {
    this.observer.disconnect();
    this.u?.destroy();
  }

  /** The pin button tells what it would do. */
  setPinned(pinned) {
    if (!this.pin) return;
    const label = t(pinned ? 'chart.unpin' : 'chart.pin');
    this.pin.textContent = label;
    this.pin.setAttribute('aria-label', `${label}: ${this.title}`);
  }

  resetZoom() {
    const xs = this.u?.data[0] ?? [];
    if (xs.length) this.u.setScale('x', { min: this.xLimits()[0], max: this.xLimits()[1] });
  }

  xLimits(u = this.u) {
    const xs = u.data[0];
    const [min, max] = [xs[0], xs.at(-1)];
    return min === max ? [Math.max(0, min - 1), max + 1] : [min, max];
  }

  /**
   * `smoothing` 0 … 0.98. `log`: logarithmic axis where all values are above 0. `total`: steps of the run; a point
   * after them was measured when training had ended. `time`: the x-values are seconds. `figure`: one sentence about the last value. `bands`:
   * `[{low, high, label}]` shaded, `marks`: `[{value, label}]` dashed.
   * @param {any[]} lines
   * @param {{smoothing?: number, log?: boolean, time?: boolean, total?: number, figure?: string, bands?: any[],
   *   marks?: any[]}} [options]
   */
  draw(lines, { smoothing = 0, log = false, time = false, total, figure = '', bands = [], marks = [] } = {}) {
    this.lines = lines;
    this.time = time;
    this.total = total;
    this.bands = bands;
    this.marks = marks;
    this.figure.textContent = figure;
    this.figure.hidden = figure === '';
    const words = [...marks, ...bands].map((x) => x.label).join(GAP);
    if (words) this.note.textContent = words;
    this.note.hidden = this.note.textContent === '';
    const logs = log && lines.every((l) => l.values.every((v) => v === null || v > 0));
    const series = [{}];
    const tables = [];
    this.raw = [];
    this.smoothed = [];
    for (const line of lines) {
      const stroke = colour(line.colour);
      const few = line.steps.length <= FEW_POINTS;
      const base = { scale: 'y', stroke, dash: DASHES[line.dash % DASHES.length], spanGaps: true };
      series.push({ ...base, width: smoothing > 0 ? 1 : 1.6, alpha: smoothing > 0 ? 0.35 : 1, points: { show: few, size: 5, fill: stroke } });
      tables.push([line.steps, line.values]);
      this.raw.push(series.length - 1);
      if (smoothing > 0) {
        series.push({ ...base, width: 2.2, points: { show: false } });
        tables.at(-1).push(smooth(line.values, smoothing));
        this.smoothed.push(series.length - 1);
      }
    }
    const data = tables.length > 1 ? uPlot.join(tables) : (tables[0] ?? [[]]);
    const few = lines.map((l) => l.steps.length <= FEW_POINTS);
    const key = JSON.stringify([lines.map((l) => [l.name, l.label, l.colour, l.dash]), few, smoothing > 0, logs, time, token('--ink')]);
    if (this.u && this.key === key) this.u.setData(data, this.reset.hidden);
    else this.#build(series, data, logs);
    this.key = key;
    this.#readout(null);
    const last = lines.map((l) => `${l.label} ${show(this.name, l.values.at(-1))}`.trim()).join(', ');
    this.plot.setAttribute('aria-label', t('chart.label', { title: this.title, last }));
  }

  #build(series, data, logs) {
    this.u?.destroy();
    this.reset.hidden = true;
    const axis = {
      stroke: token('--muted'),
      grid: { stroke: token('--line'), width: 1 },
      ticks: { stroke: token('--line'), width: 1, size: 4 },
      font: '11px system-ui, sans-serif',
    };
    const range = (_, min, max) => {
      // chance and the band belong into the picture
      const more = [...(this.marks ?? []).map((m) => m.value), ...(this.bands ?? []).flatMap((b) => [b.low, b.high])];
      return limits(this.name, Math.min(min ?? Infinity, ...more), Math.max(max ?? -Infinity, ...more), this.fixed);
    };
    this.u = new uPlot(
      {
        width: this.plot.clientWidth || 400,
        height: this.height,
        series,
        legend: { show: false },
        cursor: {
          // a chart in a closed section has no size to map a drag to
          sync: { key: 'runs', filters: { pub: () => true, sub: () => this.plot.clientWidth > 0 } },
          points: { size: 6 },
          drag: { x: true, y: false },
        },
        scales: {
          // a single point has no range, and uPlot's own would be 0 to 100
          x: { time: false, range: (u, min, max) => (u.data[0]?.length === 1 ? this.xLimits(u) : [min, max]) },
          y: logs ? { distr: 3 } : { range },
        },
        axes: [
          this.time
            ? { ...axis, size: 26, space: 90, values: (_, ticks) => ticks.map((v) => (v === null ? '' : duration(v))), incrs: SPANS }
            : { ...axis, size: 26, values: (_, ticks) => ticks.map((v) => (v === null ? '' : onAxis('step', v))), incrs: WHOLE },
          { ...axis, size: 56, values: (_, ticks) => tickTexts(this.name, ticks) },
        ],
        hooks: {
          drawClear: [(u) => this.#background(u)],
          setCursor: [(u) => this.#readout(u.cursor.idx)],
          setScale: [
            (u, scale) => {
              if (scale !== 'x' || !u.data[0]?.length) return;
              const [min, max] = this.u === u ? this.xLimits() : [u.scales.x.min, u.scales.x.max];
              this.reset.hidden = u.scales.x.min <= min && u.scales.x.max >= max;
            },
          ],
        },
      },
      data,
      this.plot,
    );
  }

  /** The band of the labelers and the line of chance lie behind the curves. */
  #background(u) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    for (const b of this.bands ?? []) {
      const [top, bottom] = [u.valToPos(b.high, 'y', true), u.valToPos(b.low, 'y', true)];
      ctx.fillStyle = token('--good-soft');
      ctx.fillRect(bbox.left, top, bbox.width, Math.max(1, bottom - top));
    }
    ctx.strokeStyle = token('--muted');
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
    for (const m of this.marks ?? []) {
      const y = u.valToPos(m.value, 'y', true);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
    }
    ctx.restore();
  }

  #readout(idx) {
    const { u, lines } = this;
    if (!u?.data) return;
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
          line.label ? h('span', { text: line.label }) : null,
          h('b', { text: show(this.name, at(u.data[this.raw[i]] ?? [])) }),
          this.smoothed.length
            ? h('span', { class: 'smoothed', text: t('chart.smoothed', { v: show(this.name, at(u.data[this.smoothed[i]] ?? [])) }) })
            : null,
        ),
      ),
    );
    this.step.textContent =
      step === undefined || step === null
        ? ''
        : this.time
          ? duration(step)
          : this.total && step > this.total
            ? t('chart.after_last')
            : t('chart.step', { n: step });
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

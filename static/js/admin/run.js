// One run: what came of it, live curves by section, comparison with other runs, samples, log, settings.
import { follow, get, listOf, post } from '../api.js';
import { fill, h, keep, toast } from '../dom.js';
import { t, toMs, when } from '../i18n.js';
import { errorText } from '../plain.js';
import { Chart, byName, isStill, timeOf, toCsv } from './curves.js';
import { errorOf, jobActions, madeName, payload, recipeName, runName } from './jobs.js';
import { SECTIONS, bandOf, inOrder, isAccuracy, isPairAccuracy, isShare, pinsOf, sectionOf, shareText, wilson, withoutDoubles } from './metrics.js';
import { download, every, isOver, progressBar, progressText, stateTag } from './parts.js';
import { settingsPart } from './runsettings.js';
import { placePart, placeOf } from './place.js';
import { sampleTable } from './samples.js';
import { summaryOf } from './summary.js';
import { sweepPart } from './sweep.js';

/** Not the key of older pages, where smoothing was on without being asked for. */
const SMOOTH = 'instructd.admin.smoothing';
const LOG = 'instructd.admin.log-scale';
const TIME = 'instructd.admin.time-axis';
const PINNED = 'instructd.admin.pinned';
/** The curve that the time axis is made of. */
const CLOCK = 'elapsed_seconds';
const MOST_PINNED = 4;

export async function runView(el, { id, query, signal }) {
  const path = /** @type {const} */ (`/admin/jobs/${encodeURIComponent(id)}`);
  let job = await get(path, null, { signal });
  const [others, recipes] = await Promise.all([
    get('/admin/jobs', { limit: 100 }, { signal }).then((a) => listOf(a).filter((j) => j.id !== id && j.state !== 'queued')),
    get('/admin/recipes', null, { signal }).then(listOf),
  ]);
  const runs = new Map([[id, []]]); // job id → metrics
  const compared = new Set((query.get('with') ?? '').split(',').filter((x) => others.some((j) => j.id === x)));
  // the same recipe first: their curves have the same names
  const offered = others
    .filter((j) => compared.has(j.id) || j.kind === job.kind)
    .sort((a, b) => Number(compared.has(b.id)) - Number(compared.has(a.id)))
    .slice(0, 8);
  let smoothing = keep.get(SMOOTH) ?? 0;
  let log10 = keep.get(LOG) === true;
  let byTime = keep.get(TIME) === true;
  let pinned = keep.get(PINNED)?.[job.kind] ?? null; // null: those that a run of this kind is judged by
  let agreement = null; // how often two people agree, for the band behind accuracies
  let evidence = null;

  const title = h('h1', { dir: 'auto' });
  const head = h('div', { class: 'panel run-head' });
  const summary = h('p', { class: 'run-summary' });
  const sweep = h('div');
  const pins = h('div', { class: 'charts pinned' });
  const sections = new Map(
    SECTIONS.map((s) => {
      const charts = h('div', { class: 'charts' });
      return [s, { charts, el: h('details', { class: 'chart-section', open: s !== 'system', hidden: true, data: { section: s } }, h('summary', null, h('h2', { text: t(`section.${s}`) })), charts) }];
    }),
  );
  const constants = h('div', { class: 'charts' });
  const none = h('p', { class: 'muted pad', text: t('run.no_metrics') });
  const samples = sampleTable();
  const elsewhere = placePart(id, signal);
  const log = h('ol', { class: 'log', tabindex: '0', 'aria-label': t('run.log') });
  const smoothed = h('output', { for: 'smooth', class: 'smooth-value' });
  const slider = h('input', { id: 'smooth', type: 'range', min: '0', max: '0.98', step: '0.02', value: smoothing });
  const tellSmoothing = () => (smoothed.textContent = smoothing > 0 ? smoothing.toFixed(2) : t('run.smooth_off'));
  tellSmoothing();
  slider.addEventListener('input', () => {
    smoothing = slider.valueAsNumber;
    keep.set(SMOOTH, smoothing);
    tellSmoothing();
    drawCharts();
  });
  const logBox = h('input', { id: 'log-scale', type: 'checkbox', checked: log10 });
  logBox.addEventListener('change', () => {
    log10 = logBox.checked;
    keep.set(LOG, log10);
    drawCharts();
  });
  const timeBox = h('input', { id: 'time-axis', type: 'checkbox', checked: byTime });
  timeBox.addEventListener('change', () => {
    byTime = timeBox.checked;
    keep.set(TIME, byTime);
    drawCharts();
  });
  const timeChoice = h('label', { class: 'inline', for: 'time-axis', hidden: true }, timeBox, h('span', { text: t('run.time_axis') }));
  const chips = h(
    'div',
    { class: 'row compare', role: 'group', 'aria-label': t('run.compare') },
    offered.length ? h('span', { class: 'muted', text: t('run.compare') }) : null,
    offered.map((j) => {
      const chip = h('button', { type: 'button', class: 'chip', 'aria-pressed': String(compared.has(j.id)), text: runName(j) });
      chip.addEventListener('click', async () => {
        if (!compared.delete(j.id)) compared.add(j.id);
        chip.setAttribute('aria-pressed', String(compared.has(j.id)));
        history.replaceState(
          null,
          '',
          `#/jobs/${encodeURIComponent(id)}${compared.size ? `?with=${[...compared].join(',')}` : ''}`,
        );
        await loadMetrics(j.id);
        drawCharts();
      });
      return chip;
    }),
  );
  fill(
    el,
    h('header', { class: 'view-head' }, title, h('a', { href: '#/jobs', text: t('job.back') })),
    head,
    sweep,
    h(
      'div',
      { class: 'chart-tools row' },
      h('label', { class: 'inline', for: 'smooth' }, h('span', { text: t('run.smooth') }), slider, smoothed),
      h('label', { class: 'inline', for: 'log-scale' }, logBox, h('span', { text: t('run.log_scale') })),
      timeChoice,
      chips,
      h('span', { class: 'grow' }),
      h('button', {
        type: 'button',
        class: 'quiet',
        text: t('run.csv'),
        on: { click: () => download(`${job.kind}-${id}.csv`, toCsv(runs.get(id)), 'text/csv') },
      }),
      h('button', {
        type: 'button',
        class: 'quiet',
        text: t('run.jsonl'),
        on: {
          click: () =>
            download(
              `${job.kind}-${id}.jsonl`,
              runs
                .get(id)
                .map((m) => JSON.stringify(m))
                .join('\n') + '\n',
              'application/x-ndjson',
            ),
        },
      }),
    ),
    pins,
    [...sections.values()].map((s) => s.el),
    h('details', { class: 'chart-section constants', hidden: true }, h('summary', null, h('h2', { text: t('run.constants') })), constants),
    none,
    samples.el,
    h(
      'details',
      { class: 'panel block', open: job.state === 'failed' },
      h('summary', null, h('h2', { text: t('run.log') })),
      log,
    ),
    elsewhere.el,
    settingsPart(job, recipes.find((r) => r.name === job.kind)?.schema),
  );

  /** Name, note and tags; the form is open while somebody edits. */
  const editor = (() => {
    const name = h('input', { id: 'run-name', maxlength: '120', autocomplete: 'off' });
    const note = h('textarea', { id: 'run-note', rows: '2', maxlength: '4000' });
    const tags = h('input', { id: 'run-tags', autocomplete: 'off', placeholder: t('form.list') });
    const error = h('p', { class: 'form-error', role: 'alert' });
    const form = h(
      'form',
      {
        class: 'run-edit',
        hidden: true,
        on: {
          submit: async (e) => {
            e.preventDefault();
            error.textContent = '';
            const words = tags.value.split(/[,，]/).map((x) => x.trim()).filter(Boolean);
            try {
              job = { ...job, ...(await post(path, { name: name.value, note: note.value, tags: words })) };
              close();
              toast(t('run.saved'), { kind: 'good' });
            } catch (err) {
              error.textContent = errorText(err);
            }
          },
        },
      },
      h('div', { class: 'field' }, h('label', { for: 'run-name', text: t('job.name') }), name),
      h('div', { class: 'field' }, h('label', { for: 'run-tags', text: t('run.tags') }), tags),
      h('div', { class: 'field wide' }, h('label', { for: 'run-note', text: t('job.note') }), note),
      error,
      h(
        'div',
        { class: 'actions' },
        h('button', { type: 'button', class: 'quiet', text: t('run.discard'), on: { click: () => close() } }),
        h('button', { type: 'submit', class: 'primary', text: t('run.save') }),
      ),
    );
    const button = h('button', { type: 'button', class: 'quiet', 'aria-expanded': 'false', text: t('run.edit') });
    const close = () => {
      form.hidden = true;
      button.setAttribute('aria-expanded', 'false');
      drawHead();
      button.focus();
    };
    button.addEventListener('click', () => {
      if (!form.hidden) return close();
      [name.value, note.value, tags.value] = [job.name ?? '', job.note ?? '', (job.tags ?? []).join(', ')];
      form.hidden = false;
      button.setAttribute('aria-expanded', 'true');
      name.focus();
    });
    return { form, button };
  })();

  function drawHead() {
    title.textContent = job.name ?? t('run.title', { name: recipeName(job.kind), at: when(job.started ?? job.created) });
    const error = errorOf(job);
    const focused = head.contains(document.activeElement) ? document.activeElement : null;
    fill(summary, summaryOf(job, evidence));
    fill(sweep, sweepPart(job));
    summary.hidden = summary.childNodes.length === 0;
    fill(
      head,
      h(
        'div',
        { class: 'row' },
        stateTag(job.state),
        h('span', { class: 'muted', text: job.state === 'succeeded' ? '' : progressText(job) }),
        h('span', { class: 'grow' }),
        editor.button,
        jobActions(job, reload),
      ),
      isOver(job) || job.state === 'queued' ? null : progressBar(job),
      error ? h('p', { class: 'bad-text', dir: 'auto', text: error }) : null,
      summary,
      job.note ? h('p', { class: 'run-note', dir: 'auto', text: job.note }) : null,
      job.tags?.length ? h('div', { class: 'row tags' }, job.tags.map((x) => h('span', { class: 'tag', dir: 'auto', text: x }))) : null,
      editor.form,
      h('p', {
        class: 'help',
        text: [
          recipeName(job.kind),
          job.author ? t('run.by', { name: job.author }) : null,
          t('run.created', { at: when(job.created) }),
          job.started ? t('run.started', { at: when(job.started) }) : null,
          job.finished ? t('run.finished', { at: when(job.finished) }) : null,
          placeOf(job) ? t('run.place', { place: placeOf(job).place }) : null,
        ]
          .filter(Boolean)
          .join(' · '),
      }),
    );
    elsewhere.show(job);
    if (focused instanceof HTMLElement && head.contains(focused)) focused.focus({ preventScroll: true }); // filling anew takes the focus away
  }

  /** How many things the last value of a proportion was counted over. */
  function countOf(name, table) {
    const last = (n) => table.get(n)?.values.at(-1);
    const r = job.result?.metrics ?? job.result ?? {};
    const byLength = /^heldout_accuracy_(longer|shorter|same_length)$/.exec(name)?.[1];
    if (byLength) return r.by_length?.[byLength === 'same_length' ? 'same' : byLength]?.pairs;
    if (['heldout_accuracy', 'heldout_accuracy_of_length', 'heldout_accuracy_of_words'].includes(name)) return last('heldout_pairs') ?? r.heldout?.pairs;
    if (name === 'no_eos_share') {
      const episodes = table.get('episodes');
      return episodes ? Math.round((episodes.values.at(-1) / episodes.steps.at(-1)) * (last('turns') ?? 1)) : undefined;
    }
    return undefined;
  }

  /** One sentence about the last value of a proportion, with n and interval where they are known. */
  function figureOf(name, table) {
    const line = table.get(name);
    if (!line || !isShare(name)) return '';
    const value = line.values.at(-1);
    if (name === 'heldout_accuracy' && evidence?.accuracy && Math.abs(evidence.accuracy.value - value) < 1e-9)
      return t('chart.last', { v: shareText(evidence.accuracy) });
    const n = countOf(name, table);
    if (!n) return isPairAccuracy(name, job.kind) && name !== 'train_accuracy' ? t('chart.no_n') : '';
    const [low, high] = wilson(value, n);
    return t('chart.last', { v: shareText({ value, low, high, n }) });
  }

  const drawn = new Map(); // metric name → Chart
  function drawCharts() {
    const tables = new Map([[id, withoutDoubles(byName(runs.get(id)), job.kind)]]);
    for (const other of compared) {
      const kind = others.find((j) => j.id === other)?.kind;
      tables.set(other, withoutDoubles(byName(runs.get(other) ?? []), kind));
    }
    const mine = tables.get(id);
    const names = inOrder([...mine.keys()].filter((n) => n !== CLOCK));
    const clocks = new Map([...tables].map(([run, table]) => [run, timeOf(table.get(CLOCK))]));
    timeChoice.hidden = !clocks.get(id);
    const time = byTime && Boolean(clocks.get(id));
    none.hidden = names.length > 0;
    const top = (pinned ?? pinsOf(job.kind, names)).filter((n) => names.includes(n)).slice(0, MOST_PINNED);
    const total = job.progress?.total_steps;
    for (const name of names) {
      let chart = drawn.get(name);
      if (!chart) {
        const accuracy = isAccuracy(name);
        chart = new Chart({ name, fixed: accuracy ? [0, 1] : undefined, pin: togglePin, reset: resetZoom });
        drawn.set(name, chart);
      }
      const onTop = top.includes(name);
      const still = !onTop && isStill(tables, name);
      const home = onTop ? pins : still ? constants : sections.get(sectionOf(name)).charts;
      if (chart.el.parentElement !== home) home.append(chart.el);
      // shown before it is drawn: a chart takes its width from its place
      const part = home.closest('details');
      if (part) part.hidden = false;
      chart.setPinned(onTop);
      const lines = [...tables].flatMap(([run, table], r) => {
        const line = table.get(name);
        const clock = clocks.get(run);
        if (!line || (time && !clock)) return [];
        const x = time ? { steps: line.steps.map(clock) } : null;
        return [{ name, label: tables.size === 1 ? '' : nameOf(run), ...line, ...x, colour: r, dash: r }];
      });
      const pairs = isPairAccuracy(name, job.kind);
      const band = pairs ? bandOf(agreement) : undefined;
      chart.draw(lines, {
        smoothing,
        log: log10,
        time,
        total,
        figure: figureOf(name, mine),
        marks: pairs ? [{ value: 0.5, label: t('chart.chance') }] : [],
        bands: band ? [{ low: band[0], high: band[1], label: t('chart.band', { v: shareText(agreement) }) }] : [],
      });
    }
    // the pinned ones in their order
    for (const name of top) pins.append(drawn.get(name).el);
    for (const s of sections.values()) s.el.hidden = s.charts.children.length === 0;
    constants.parentElement.hidden = constants.children.length === 0;
  }

  /** Charts are zoomed together, so they return together. */
  function resetZoom() {
    for (const chart of drawn.values()) chart.resetZoom();
  }

  function togglePin(name) {
    const names = [...drawn.keys()];
    const now = (pinned ?? pinsOf(job.kind, names)).filter((n) => names.includes(n));
    // a fifth pin takes the place of the oldest
    pinned = now.includes(name) ? now.filter((n) => n !== name) : [...now, name].slice(-MOST_PINNED);
    keep.set(PINNED, { ...keep.get(PINNED), [job.kind]: pinned });
    drawCharts();
    drawn.get(name).pin.focus();
  }

  const nameOf = (run) => (run === id ? t('run.this') : runName(others.find((j) => j.id === run) ?? { kind: '', id: run }));

  async function loadMetrics(run) {
    runs.set(run, (await get(`/admin/jobs/${encodeURIComponent(run)}/metrics`, null, { signal })).metrics);
  }

  let loading = null;
  let again = false;
  /** Newest curves, at most one request at a time. */
  function refresh() {
    if (loading) {
      again = true;
      return loading;
    }
    loading = (async () => {
      do {
        again = false;
        await loadMetrics(id);
        drawCharts();
        await new Promise((r) => setTimeout(r, 1500));
      } while (again && !signal.aborted);
    })().finally(() => (loading = null));
    return loading;
  }

  /** What is known of the version that came out: intervals that the run itself does not have. */
  async function loadEvidence() {
    const made = madeName(job);
    if (!made || evidence) return;
    evidence = await get(`/admin/models/${encodeURIComponent(made)}/evidence`, null, { signal }).catch(() => null);
    if (evidence) {
      drawHead();
      drawCharts();
    }
  }

  async function reload() {
    job = await get(path, null, { signal });
    drawHead();
    await loadEvidence();
  }

  const opened = Date.now() - 2000;
  /** @param {{kind: string, data: any, created?: number}} event */
  function onEvent({ kind, data, created }) {
    const past = toMs(created) < opened; // the stream begins with what the first requests have shown already
    if (kind === 'progress') {
      if (past) return;
      job.progress = data;
      drawHead();
      refresh().catch(() => {});
    } else if (kind === 'metrics') {
      refresh().catch(() => {});
    } else if (kind === 'state') {
      if (!past) {
        reload().catch(() => {});
        refresh().catch(() => {});
      }
      addLog(kind, data, created);
    } else if (kind === 'sample') {
      samples.add(data);
    } else {
      addLog(kind, data, created);
    }
  }

  function addLog(kind, data, created) {
    const text = logText(kind, data);
    if (text === null) return;
    log.append(
      h(
        'li',
        { class: kind },
        h('span', { class: 'muted', text: created ? when(created) : '' }),
        h('span', { class: `tag ${kind === 'warning' ? 'warn' : ''}`, text: t(`event.${kind}`) === `event.${kind}` ? kind : t(`event.${kind}`) }),
        h('span', { dir: 'auto', text }),
      ),
    );
    while (log.children.length > 400) log.firstChild.remove();
    log.scrollTop = log.scrollHeight;
  }

  drawHead();
  await Promise.all([...runs.keys(), ...compared].map(loadMetrics));
  drawCharts();
  loadEvidence().catch(() => {});
  if (['reward', 'dpo', 'simpo', 'orpo'].includes(job.kind))
    get('/admin/api/quality', { kind: 'normal', replicates: 200 }, { signal })
      .then((q) => {
        agreement = q.agreement?.pairwise_without_ties ?? null;
        drawCharts();
      })
      .catch(() => {}); // the curves stand without the band
  const redraw = () => drawCharts(); // colours come from the theme
  window.addEventListener('instructd:theme', redraw);
  signal.addEventListener('abort', () => {
    window.removeEventListener('instructd:theme', redraw);
    for (const chart of drawn.values()) chart.destroy();
  });
  follow(`${path}/events`, (e) => onEvent(payload(e)), {
    signal,
    onEnd: async () => {
      await reload();
      refresh().catch(() => {});
      return isOver(job);
    },
  });
  every(15, signal, async () => {
    if (!isOver(job)) await reload();
  });
}

/** Sentences that recipes write into their log, and the page's words for them. */
/** @type {[RegExp, string][]} */
const SENTENCES = [
  [/^(\d+) sets? in which all completions tie (?:are|is) left out$/, 'log.ties'],
  [/^no prompt is held out: there is no held-out accuracy$/, 'log.nothing_held_out'],
  [/^resumed after step (\d+)$/, 'log.resumed'],
];

/** One event as a sentence; null where it says nothing that the page does not show already. */
export function logText(kind, data) {
  if (kind === 'state') {
    const state = data?.state;
    const why = data?.error && data.error !== state ? data.error : null;
    if (state === 'running' && data.attempt > 1) return t('log.attempt', { n: data.attempt });
    return why ? t('log.state_why', { state: t(`log.${state}`), why }) : t(`log.${state}`);
  }
  if (kind === 'checkpoint') return Number.isFinite(data?.step) ? t('log.checkpoint', { n: data.step }) : t('log.checkpoint_any');
  const message = typeof data === 'string' ? data : data?.message;
  if (typeof message !== 'string')
    return Object.entries(data ?? {})
      .map(([k, v]) => `${k.replaceAll('_', ' ')}: ${typeof v === 'object' ? JSON.stringify(v) : v}`)
      .join(', ');
  for (const [pattern, key] of SENTENCES) {
    const found = pattern.exec(message);
    if (found) return t(key, { n: Number(found[1] ?? 0) });
  }
  return message;
}

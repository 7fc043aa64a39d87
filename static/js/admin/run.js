// One run: progress, live curves, comparison with other runs, samples, log, arguments.
import { follow, get, listOf } from '../api.js';
import { fill, h, keep, plainText } from '../dom.js';
import { t, toMs, when } from '../i18n.js';
import { Chart, byName, inOrder, isStill, leadMetrics, metricTitle, toCsv } from './curves.js';
import { jobActions, payload } from './jobs.js';
import { download, every, isOver, metricsText, progressBar, progressText, stateTag } from './parts.js';

const SMOOTH = 'instructd.admin.smooth';

/** How often labelers agree with each other: the ceiling of any reward model's accuracy. */
const CEILING = /acc/i;

export async function runView(el, { id, query, signal }) {
  const path = `/admin/jobs/${encodeURIComponent(id)}`;
  let job = await get(path, null, { signal });
  job = job.job ?? job;
  const others = listOf(await get('/admin/jobs', null, { signal })).filter((j) => j.id !== id && j.state !== 'queued');
  const runs = new Map([[id, []]]); // job id → metrics
  const compared = new Set((query.get('with') ?? '').split(',').filter((x) => others.some((j) => j.id === x)));
  // the same recipe first: their curves have the same names
  const offered = others
    .filter((j) => compared.has(j.id) || j.kind === job.kind)
    .sort((a, b) => compared.has(b.id) - compared.has(a.id))
    .slice(0, 8);
  let smoothing = keep.get(SMOOTH) ?? 0.6;

  const head = h('div', { class: 'panel run-head' });
  const charts = h('div', { class: 'charts' });
  const constants = h('div', { class: 'charts' });
  const lead = h('div', { class: 'lead-chart' });
  const none = h('p', { class: 'muted pad', text: t('run.no_metrics') });
  const samples = h('div', { class: 'samples' });
  const log = h('ol', { class: 'log mono', tabindex: '0', 'aria-label': t('run.log') });
  const slider = h('input', { id: 'smooth', type: 'range', min: '0', max: '0.98', step: '0.02', value: smoothing });
  slider.addEventListener('input', () => {
    smoothing = slider.valueAsNumber;
    keep.set(SMOOTH, smoothing);
    drawCharts();
  });
  const chips = h(
    'div',
    { class: 'row compare', role: 'group', 'aria-label': t('run.compare') },
    others.length ? h('span', { class: 'muted', text: t('run.compare') }) : null,
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
    h(
      'header',
      { class: 'view-head' },
      h('h1', null, t('run.title', { name: job.kind })),
      h('a', { href: '#/jobs', text: t('job.back') }),
    ),
    head,
    h(
      'div',
      { class: 'chart-tools row' },
      h('label', { class: 'inline', for: 'smooth' }, h('span', { text: t('run.smooth') }), slider),
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
    lead,
    charts,
    h('details', { class: 'constants', hidden: true }, h('summary', { text: t('run.constants') }), constants),
    none,
    h('section', { class: 'panel block', hidden: true, data: { part: 'samples' } }, h('h2', { text: t('run.samples') }), samples),
    h(
      'details',
      { class: 'panel block', open: job.state === 'failed' },
      h('summary', null, h('h2', { text: t('run.log') })),
      log,
    ),
    h(
      'details',
      { class: 'panel block' },
      h('summary', null, h('h2', { text: t('run.args') })),
      h(
        'dl',
        { class: 'args mono' },
        Object.entries(job.args ?? {}).map(([k, v]) =>
          h('div', null, h('dt', { text: k }), h('dd', { dir: 'auto', text: typeof v === 'string' ? v : JSON.stringify(v) })),
        ),
      ),
    ),
  );

  function drawHead() {
    const made = job.result?.model ?? job.result?.version ?? job.result?.model_name ?? job.result?.published;
    const madeName = typeof made === 'string' ? made : made?.name;
    fill(
      head,
      h(
        'div',
        { class: 'row' },
        stateTag(job.state),
        h('span', { class: 'muted', text: progressText(job) }),
        h('span', { class: 'grow' }),
        jobActions(job, reload),
      ),
      job.state === 'queued' || (isOver(job) && !job.progress) ? null : progressBar(job),
      job.error ? h('p', { class: 'bad-text', dir: 'auto', text: job.error }) : null,
      job.state === 'succeeded'
        ? h(
            'p',
            null,
            madeName ? h('a', { href: '#/models', class: 'mono', text: madeName }) : null,
            madeName ? ' ' : null,
            h('span', { class: 'muted', text: metricsText(job.result?.metrics ?? job.result, 6) }),
          )
        : null,
      h('p', {
        class: 'help',
        text: [
          t('run.created', { at: when(job.created) }),
          job.started ? t('run.started', { at: when(job.started) }) : null,
          job.finished ? t('run.finished', { at: when(job.finished) }) : null,
        ]
          .filter(Boolean)
          .join(' · '),
      }),
    );
  }

  const drawn = new Map(); // metric name → Chart
  function drawCharts() {
    const tables = new Map([[id, byName(runs.get(id))]]);
    for (const other of compared) tables.set(other, byName(runs.get(other) ?? []));
    const all = [...tables.get(id).keys()];
    // names with a slash repeat ours under TRL's names: they belong into the download, not on the page
    const plain = all.filter((n) => !n.includes('/'));
    const names = plain.length ? plain : all;
    none.hidden = names.length > 0;
    const leads = leadMetrics(names);
    const linesOf = (metrics, colourByMetric) =>
      metrics.flatMap((name, axis) =>
        [...tables].flatMap(([run, table], r) => {
          const line = table.get(name);
          if (!line) return [];
          const label =
            tables.size === 1
              ? colourByMetric
                ? metricTitle(name)
                : ''
              : colourByMetric
                ? `${metricTitle(name)} · ${nameOf(run)}`
                : nameOf(run);
          return [
            {
              name,
              label,
              ...line,
              axis: colourByMetric ? axis : 0,
              colour: colourByMetric ? axis : r,
              dash: colourByMetric ? r : 0,
            },
          ];
        }),
      );
    const put = (host, key, options, lines) => {
      let chart = drawn.get(key);
      if (!chart) {
        chart = new Chart(options);
        drawn.set(key, chart);
        host.append(chart.el);
      }
      chart.draw(lines, smoothing);
    };
    const leadKey = `lead:${leads.join('+')}`;
    for (const [key, chart] of drawn) {
      if ((key.startsWith('lead:') && key !== leadKey) || leads.includes(key)) {
        chart.destroy();
        chart.el.remove();
        drawn.delete(key);
      }
    }
    if (leads.length)
      put(
        lead,
        leadKey,
        {
          title: leads.map(metricTitle).join(t('run.and')),
          note: leads.some((n) => CEILING.test(n)) ? t('run.ceiling') : null,
          height: 300,
        },
        linesOf(leads, true),
      );
    const rest = inOrder(names.filter((n) => !leads.includes(n)));
    for (const name of rest) {
      const still = isStill(tables, name);
      put(
        still ? constants : charts,
        name,
        { title: metricTitle(name), note: CEILING.test(name) ? t('run.ceiling') : null },
        linesOf([name], false),
      );
      // a curve that begins to move leaves the folded part
      const el = drawn.get(name).el;
      if (el.parentElement !== (still ? constants : charts)) (still ? constants : charts).append(el);
    }
    constants.closest('details').hidden = constants.children.length === 0;
  }

  const nameOf = (run) => (run === id ? t('run.this') : runName(others.find((j) => j.id === run) ?? { kind: '', id: run }));

  async function loadMetrics(run) {
    runs.set(run, listOf(await get(`/admin/jobs/${encodeURIComponent(run)}/metrics`, null, { signal })));
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

  async function reload() {
    const answer = await get(path, null, { signal });
    job = answer.job ?? answer;
    drawHead();
  }

  const opened = Date.now() - 2000;
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
      addSample(data);
    } else {
      addLog(kind, data, created);
    }
  }

  function addLog(kind, data, created) {
    const text = typeof data === 'string' ? data : (data?.message ?? JSON.stringify(data));
    log.append(
      h(
        'li',
        { class: kind },
        h('span', { class: 'muted', text: created ? when(created) : '' }),
        h('span', { class: 'tag', text: kind }),
        h('span', { dir: 'auto', text }),
      ),
    );
    while (log.children.length > 400) log.firstChild.remove();
    log.scrollTop = log.scrollHeight;
  }

  /** A sample event: one text, or a list of them at fixed prompts. */
  function addSample(data) {
    const list = Array.isArray(data) ? data : Array.isArray(data?.samples) ? data.samples : [data];
    samples.closest('section').hidden = false;
    for (const s of list) {
      const prompt = typeof s?.prompt === 'string' ? s.prompt : Array.isArray(s?.prompt) ? (s.prompt.at(-1)?.content ?? '') : '';
      const text = s?.text ?? s?.completion ?? s?.response ?? (typeof s === 'string' ? s : JSON.stringify(s));
      const facts = [s?.step ?? data?.step, s?.reward ?? s?.score];
      samples.prepend(
        h(
          'article',
          { class: 'sample' },
          h('p', { class: 'help', dir: 'auto', text: prompt }),
          plainText(text),
          h(
            'p',
            { class: 'help' },
            Number.isFinite(facts[0]) ? t('chart.step', { n: facts[0] }) : '',
            Number.isFinite(facts[1]) ? ` · ${t('metric.reward')} ${facts[1].toFixed(3)}` : '',
          ),
        ),
      );
    }
    while (samples.children.length > 40) samples.lastChild.remove();
  }

  drawHead();
  await Promise.all([...runs.keys(), ...compared].map(loadMetrics));
  drawCharts();
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

function runName(job) {
  const made = job.result?.model ?? job.result?.version;
  if (typeof made === 'string') return made;
  return made?.name ?? `${job.kind} · ${when(job.started ?? job.created)}`;
}

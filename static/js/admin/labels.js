// Labels: how fast they come, how well people agree, who can be trusted, which version people prefer.
import { get, listOf } from '../api.js';
import { fill, h } from '../dom.js';
import { duration, lang, num, t, when } from '../i18n.js';
import { HUMAN_CEILING, bars, figureRow, figureText, percent, tile, whisker } from '../figures.js';
import { failure } from '../shell.js';
import { every, section, table } from './parts.js';
import { versionsPanel } from './versions.js';

const SPANS = [7, 30, 90, 0]; // days; 0 = all

function throughput(answer) {
  const short = new Intl.DateTimeFormat(lang === 'zh' ? 'zh-CN' : 'en', { month: 'short', day: 'numeric', timeZone: 'UTC' });
  const days = answer.days.map((d) => ({ label: short.format(new Date(d.day * 86400e3)), value: d.judgments }));
  const week = answer.days.slice(-7).reduce((sum, d) => sum + d.judgments, 0);
  return h(
    'div',
    { class: 'throughput' },
    h(
      'div',
      { class: 'figures wide' },
      tile(answer.days.at(-1)?.judgments ?? 0, t('progress.today')),
      tile(week, t('quality.week')),
      tile(answer.median_active_ms ? duration(answer.median_active_ms / 1000) : '–', t('quality.median_time')),
      tile(answer.sets_open, t('quality.queue')),
      tile(answer.leases, t('quality.leases')),
    ),
    bars(days, t('quality.per_day')),
  );
}

function agreement(report) {
  const a = report.agreement;
  if (!a.units) return h('p', { class: 'muted pad', text: t('quality.no_overlap') });
  return [
    figureRow(t('quality.pairwise'), a.pairwise_without_ties, { help: t('quality.pairwise_help'), band: HUMAN_CEILING }),
    figureRow(t('quality.pairwise_ties'), a.pairwise, { help: t('quality.pairwise_ties_help') }),
    figureRow(t('quality.alpha'), a.alpha_ordinal, { share: false, min: -0.2, middle: 0, help: t('quality.alpha_help') }),
    a.fleiss_kappa
      ? figureRow(t('quality.fleiss', { n: a.fleiss_raters }), a.fleiss_kappa, { share: false, min: -0.2, middle: 0 })
      : null,
    h('p', {
      class: 'help',
      text: t('quality.counted', { units: a.units, sets: a.sets, labelers: a.labelers }),
    }),
    report.cohen_pairs.length
      ? h(
          'details',
          null,
          h('summary', { text: t('quality.cohen', { n: report.cohen_pairs.length }) }),
          table(
            t('quality.cohen', { n: report.cohen_pairs.length }),
            [[t('quality.two_people')], ['κ'], [t('quality.weighted'), 'right']],
            report.cohen_pairs.map(([one, two], i) => {
              const c = a.cohen[i];
              return h(
                'tr',
                null,
                h('td', { dir: 'auto', class: 'wrap', text: `${one[1]} · ${two[1]}` }),
                h('td', { text: figureText(c.kappa) }),
                h('td', { class: 'right', text: c.weighted_kappa === null ? '–' : c.weighted_kappa.toFixed(2) }),
              );
            }),
            '',
          ),
        )
      : null,
  ];
}

function labelers(report) {
  const cell = (f, scale) =>
    h(
      'td',
      null,
      whisker(f, scale),
      h('div', { class: 'sub nowrap', text: f ? `${figureText(f, { share: true })} · ${num(f.n)}` : '–' }),
    );
  return table(
    t('quality.labelers'),
    [
      [t('labels.name')],
      [t('quality.judgments'), 'right'],
      [t('quality.median_time'), 'right'],
      [t('quality.gold')],
      [t('quality.with_others')],
      [t('quality.left')],
      [t('quality.ties'), 'right'],
      [t('quality.skips'), 'right'],
      [t('quality.weight'), 'right'],
    ],
    report.labelers.map((l) =>
      h(
        'tr',
        null,
        h(
          'td',
          { class: 'wrap' },
          h('span', { class: 'strong', dir: 'auto', text: l.name }),
          l.active ? null : h('span', { class: 'tag warn', text: t('labels.inactive') }),
        ),
        h('td', { class: 'right', text: num(l.judgments) }),
        h('td', { class: 'right nowrap', text: l.median_active_ms ? duration(l.median_active_ms / 1000) : '–' }),
        cell(l.gold_accuracy, { min: 0.3 }),
        cell(l.agreement_with_others, { min: 0.3, band: HUMAN_CEILING }),
        cell(l.left_bias, { middle: 0.5 }),
        h('td', { class: 'right', text: l.tie_rate ? percent(l.tie_rate.value) : '–' }),
        h('td', { class: 'right', text: l.skip_rate ? percent(l.skip_rate.value) : '–' }),
        h('td', { class: 'right', text: Number.isFinite(l.attention) ? l.attention.toFixed(2) : '–' }),
      ),
    ),
    t('quality.no_labelers'),
  );
}

function lengthBias(report) {
  const l = report.length;
  if (!l.longer_wins) return h('p', { class: 'muted pad', text: t('quality.too_few') });
  return [
    figureRow(t('quality.longer'), l.longer_wins, { middle: 0.5, help: t('quality.longer_help') }),
    h('p', {
      class: 'help',
      text: t('quality.lengths', { a: Math.round(l.mean_preferred ?? 0), b: Math.round(l.mean_other ?? 0) }),
    }),
  ];
}

export async function labelsView(el, { signal, who: person }) {
  const flow = h('div');
  const agree = h('div', { class: 'stack' });
  const who = h('div');
  const length = h('div', { class: 'stack' });
  const disputed = h('div');
  const judgments = h('div');
  const names = new Map([['admin', 'admin']]);
  const versions = versionsPanel(signal);
  let days = 0;

  const spans = h(
    'div',
    { class: 'segmented', role: 'group', 'aria-label': t('quality.span') },
    SPANS.map((d) =>
      h('button', {
        type: 'button',
        'aria-pressed': String(d === days),
        text: d ? t('quality.days', { n: d }) : t('quality.all_time'),
        on: {
          click: (e) => {
            days = d;
            for (const b of spans.children) b.setAttribute('aria-pressed', String(b === e.currentTarget));
            loadQuality().catch((err) => fill(who, failure(err)));
          },
        },
      }),
    ),
  );

  const loadFlow = async () => fill(flow, throughput(await get('/admin/api/throughput', { days: 30 }, { signal })));
  const loadQuality = async () => {
    const report = await get('/admin/api/quality', { days: days || null }, { signal });
    for (const l of report.labelers) names.set(l.labeler_id, l.name);
    fill(agree, agreement(report));
    fill(who, labelers(report));
    fill(length, lengthBias(report));
  };
  const loadDisputed = async () => {
    const { data } = await get('/admin/api/quality/consensus', { limit: 50 }, { signal });
    const list = data.filter((s) => s.disagreement > 0).slice(0, 10);
    fill(
      disputed,
      table(
        t('quality.disputed'),
        [[t('queue.set')], [t('quality.disagreement')], [t('quality.judgments'), 'right'], ['', 'right']],
        list.map((s) =>
          h(
            'tr',
            null,
            h('td', { class: 'mono nowrap', text: s.set_id.slice(-8) }),
            h(
              'td',
              null,
              h('progress', { class: 'meter', max: 1, value: s.disagreement, 'aria-label': t('quality.disagreement') }),
              h('div', { class: 'sub', text: percent(s.disagreement) }),
            ),
            h('td', { class: 'right', text: num(s.judgments) }),
            h(
              'td',
              { class: 'right' },
              h('a', { class: 'button quiet', href: `#/sets/${encodeURIComponent(s.set_id)}`, text: t('review.open') }),
            ),
          ),
        ),
        t('quality.no_disputes'),
      ),
    );
  };
  const loadNames = async () => {
    if (person?.role !== 'admin') return;
    for (const l of listOf(await get('/admin/labelers', null, { signal }))) names.set(l.id, l.name);
  };
  const loadJudgments = async () => {
    const list = listOf(await get('/v1/judgments', { limit: 20 }, { signal }));
    const order = (j) =>
      [...(j.items ?? [])]
        .sort((a, b) => a.tier - b.tier)
        .map(
          (i) =>
            (i.shown_position === undefined || i.shown_position === null ? '•' : String.fromCharCode(65 + i.shown_position)) +
            (i.tier + 1),
        )
        .join(' ');
    fill(
      judgments,
      table(
        t('labels.judgments'),
        [
          [t('labels.when')],
          [t('role.labeler')],
          [t('labels.outcome')],
          [t('labels.order')],
          [t('labels.why')],
          [t('labels.time'), 'right'],
        ],
        list.map((j) =>
          h(
            'tr',
            null,
            h('td', { class: 'nowrap', text: when(j.created) }),
            h('td', { dir: 'auto', class: 'wrap', text: names.get(j.labeler_id) ?? j.labeler_id }),
            h(
              'td',
              null,
              h('span', { class: 'tag', text: t(`outcome.${j.outcome}`) }),
              j.strength ? h('span', { class: 'sub', text: ` ${t(`strength.${j.strength}`)}` }) : null,
            ),
            h('td', { class: 'mono nowrap', title: t('labels.order_help'), text: order(j) }),
            h('td', { class: 'wrap sub', dir: 'auto', text: j.rationale ?? '' }),
            h('td', { class: 'right nowrap', text: j.active_ms ? duration(j.active_ms / 1000) : '–' }),
          ),
        ),
        t('labels.no_judgments'),
      ),
    );
  };

  fill(
    el,
    h(
      'header',
      { class: 'view-head' },
      h('h1', { text: t('admin.labels') }),
      h('a', { class: 'button primary', href: '/label', text: t('next.rank') }),
    ),
    flow,
    h('div', { class: 'view-head sub-head' }, h('h2', { text: t('quality.title') }), spans),
    h(
      'div',
      { class: 'two-columns' },
      section(t('quality.agreement'), null, h('p', { class: 'muted', text: t('quality.ceiling') }), agree),
      section(t('quality.length'), null, length),
    ),
    section(t('quality.labelers'), null, h('p', { class: 'muted', text: t('quality.labelers_help') }), who),
    section(t('quality.disputed'), null, h('p', { class: 'muted', text: t('quality.disputed_help') }), disputed),
    versions.el,
    section(t('labels.judgments'), null, judgments),
  );
  // each part stands alone: one that fails says so in its place
  const part = async (host, load) => {
    try {
      await load();
    } catch (e) {
      if (e.name === 'AbortError' || signal.aborted) return;
      if (e.status === 401) throw e;
      fill(
        host,
        failure(e, () => part(host, load)),
      );
    }
  };
  await Promise.all([
    part(flow, loadFlow),
    // names of people come with the figures; administrators know those who have judged nothing, too
    part(who, loadQuality).then(() => part(judgments, () => loadNames().then(loadJudgments))),
    part(disputed, loadDisputed),
    part(versions.host, versions.draw),
  ]);
  every(10, signal, loadFlow);
}

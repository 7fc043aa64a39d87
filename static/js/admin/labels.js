// Labels: how fast they come, how well people agree, who can be trusted, which version people prefer.
import { get, listOf } from '../api.js';
import { fill, h } from '../dom.js';
import { duration, lang, num, t, when } from '../i18n.js';
import { HUMAN_CEILING, bars, figureRow, figureText, percent, tile, whisker } from '../figures.js';
import { failure } from '../shell.js';
import { judgeFigures } from './judges.js';
import { listing, promptCell } from './listing.js';
import { every, section, table } from './parts.js';
import { projectId } from './project.js';
import { ratingFigures } from './ratings.js';
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
      tile(answer.sets_open, t('quality.queue'), answer.sets_stuck ? h('a', { href: '#/queue?show=stuck', text: t('quality.stuck', { n: answer.sets_stuck }) }) : null),
      tile(answer.leases, t('quality.leases')),
    ),
    bars(days, t('quality.per_day')),
  );
}

function agreement(report) {
  const a = report.agreement;
  if (!a.units) return h('p', { class: 'muted pad', text: t('quality.no_overlap') });
  return [
    figureRow(t('quality.pairwise'), a.pairwise_without_ties, {
      help: t('quality.pairwise_help'),
      band: HUMAN_CEILING,
      middle: 0.5,
      counted: 'quality.n_sets',
    }),
    figureRow(t('quality.pairwise_ties'), a.pairwise, { help: t('quality.pairwise_ties_help'), counted: 'quality.n_sets' }),
    figureRow(t('quality.alpha'), a.alpha_ordinal, {
      share: false,
      min: -1,
      middle: 0,
      help: t('quality.alpha_help'),
      counted: 'quality.n_sets',
    }),
    a.fleiss_kappa
      ? figureRow(t('quality.fleiss', { n: a.fleiss_raters }), a.fleiss_kappa, {
          share: false,
          min: -1,
          middle: 0,
          counted: 'quality.n_sets',
        })
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
                h('td', { text: c.kappa ? `${figureText(c.kappa)} · ${t('quality.n_sets', { n: c.kappa.n })}` : '–' }),
                h('td', { class: 'right', text: c.weighted_kappa === null ? '–' : c.weighted_kappa.toFixed(2) }),
              );
            }),
            '',
          ),
        )
      : null,
  ];
}

/** A share with its interval and what it rests on; too few say nothing. */
const shareCell = (f, counted, scale) =>
  h(
    'td',
    null,
    whisker(f, scale),
    h('div', { class: 'sub nowrap', text: f ? `${figureText(f, { share: true })} · ${t(counted, { n: f.n })}` : '–' }),
  );

const rate = (f) =>
  h('td', { class: 'right nowrap' }, f ? percent(f.value) : '–', f ? h('div', { class: 'sub', text: t('quality.n', { n: f.n }) }) : null);

/** Rankings that came in files have an author, but nobody sat at a page. */
const IMPORT = 'import';

function imported(report) {
  const row = report.labelers.find((l) => l.labeler_id === IMPORT);
  if (!row) return null;
  return h(
    'div',
    { class: 'figures wide' },
    tile(row.judgments, t('quality.judgments')),
    tile(
      row.agreement_with_others ? figureText(row.agreement_with_others, { share: true }) : '–',
      t('quality.with_others'),
      row.agreement_with_others ? t('quality.n_sets', { n: row.agreement_with_others.n }) : t('quality.too_few'),
    ),
    tile(row.tie_rate ? percent(row.tie_rate.value) : '–', t('quality.ties'), row.tie_rate ? t('quality.n_judgments', { n: row.tie_rate.n }) : null),
    tile(Number.isFinite(row.attention) ? row.attention.toFixed(2) : '–', t('quality.weight')),
  );
}

function labelers(report) {
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
    report.labelers.filter((l) => l.labeler_id !== IMPORT).map((l) =>
      h(
        'tr',
        null,
        h(
          'td',
          { class: 'wrap' },
          h('a', { class: 'strong', dir: 'auto', href: `#/labels?labeler=${encodeURIComponent(l.labeler_id)}`, title: t('quality.see_judgments'), text: l.name }),
          l.active ? null : h('span', { class: 'tag warn', text: t('labels.inactive') }),
        ),
        h('td', { class: 'right', text: num(l.judgments) }),
        h('td', { class: 'right nowrap', text: l.median_active_ms ? duration(l.median_active_ms / 1000) : '–' }),
        shareCell(l.gold_accuracy, 'quality.n_sets', { middle: 0.5 }),
        shareCell(l.agreement_with_others, 'quality.n_sets', { band: HUMAN_CEILING, middle: 0.5 }),
        shareCell(l.left_bias, 'quality.n_judgments', { middle: 0.5 }),
        rate(l.tie_rate),
        rate(l.skip_rate),
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
    figureRow(t('quality.longer'), l.longer_wins, {
      middle: 0.5,
      help: t('quality.longer_help'),
      counted: 'quality.n_preferences',
    }),
    h('p', {
      class: 'help',
      text: t('quality.lengths', { a: Math.round(l.mean_preferred ?? 0), b: Math.round(l.mean_other ?? 0), prompts: l.prompts ?? 0 }),
    }),
  ];
}

export async function labelsView(el, { signal, who: person, query }) {
  const flow = h('div');
  const agree = h('div', { class: 'stack' });
  const who = h('div');
  const length = h('div', { class: 'stack' });
  const ratings = h('div', { class: 'stack' });
  const judges = h('div', { class: 'stack' });
  const disputed = h('div');
  const files = h('div');
  const names = new Map();
  const chosen = query.get('labeler');
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
            part(ratings, loadRatings);
            part(judges, loadJudges);
          },
        },
      }),
    ),
  );

  const loadFlow = async () => fill(flow, throughput(await get('/admin/api/throughput', { days: 30, project: projectId() }, { signal })));
  const loadQuality = async () => {
    const report = await get('/admin/api/quality', { days: days || null, project: projectId() }, { signal });
    for (const l of report.labelers) names.set(l.labeler_id, l.name);
    fill(agree, agreement(report));
    fill(who, labelers(report));
    const rankings = imported(report);
    fill(files, rankings ? section(t('quality.imported'), null, h('p', { class: 'muted', text: t('quality.imported_help') }), rankings) : null);
    fill(length, lengthBias(report));
  };
  const loadRatings = () => ratingFigures(ratings, days, signal);
  const loadJudges = () => judgeFigures(judges, days, signal);
  const loadDisputed = async () => {
    const { data } = await get('/admin/api/quality/consensus', { limit: 50, project: projectId() }, { signal });
    const list = data.filter((s) => s.disagreement > 0).slice(0, 10);
    fill(
      disputed,
      table(
        t('quality.disputed'),
        [[t('queue.prompt')], [t('quality.disagreement')], [t('quality.judgments'), 'right']],
        list.map((s) =>
          h(
            'tr',
            null,
            promptCell(s.set_id, s.prompt),
            h(
              'td',
              null,
              h('progress', { class: 'meter', max: 1, value: s.disagreement, 'aria-label': t('quality.disagreement') }),
              h('div', { class: 'sub', text: percent(s.disagreement) }),
            ),
            h('td', { class: 'right', text: num(s.judgments) }),
          ),
        ),
        t('quality.no_disputes'),
      ),
    );
  };
  /** "B > A = C": the letters are the places on the page, best first. */
  const order = (j) =>
    [...j.items]
      .sort((x, y) => x.tier - y.tier)
      .map((i, k, all) => (k ? (all[k - 1].tier === i.tier ? ' = ' : ' > ') : '') + String.fromCharCode(65 + i.shown_position))
      .join('');
  const option = (prefix, values) => values.map((v) => [v, t(`${prefix}.${v}`)]);
  const judgments = (people) =>
    listing({
      id: 'judgments',
      label: t('labels.judgments'),
      load: (asked) => get('/admin/api/judgments', { ...asked, project: projectId() }, { signal }),
      filters: [
        { name: 'labeler', label: t('role.labeler'), options: [['', t('labels.anybody')], ...people], value: chosen ?? '' },
        { name: 'kind', label: t('queue.kind'), options: [['', t('kind.any')], ...option('kind', ['normal', 'gold', 'calibration'])] },
        {
          name: 'outcome',
          label: t('labels.outcome'),
          options: [['', t('outcome.any')], ...option('outcome', ['ranked', 'all_bad', 'unrankable', 'skip'])],
        },
      ],
      empty: t('labels.no_judgments'),
      columns: [
        [t('queue.prompt')],
        [t('role.labeler')],
        [t('labels.outcome')],
        [t('labels.order')],
        [t('labels.why')],
        [t('labels.time'), 'right'],
        [t('labels.when')],
      ],
      row: (j) => [
        promptCell(j.set_id, j.prompt),
        h('td', { dir: 'auto', class: 'wrap', text: j.labeler.id === IMPORT ? t('quality.imported') : j.labeler.name }),
        h(
          'td',
          null,
          h('span', { class: 'tag', text: t(`outcome.${j.outcome}`) }),
          j.kind === 'normal' ? null : h('span', { class: 'tag accent', text: t(`kind.${j.kind}`) }),
          j.strength ? h('span', { class: 'sub', text: ` ${t(`strength.${j.strength}`)}` }) : null,
          j.revision > 1 ? h('div', { class: 'sub', text: t('labels.revised', { n: j.revision - 1 }) }) : null,
        ),
        h('td', { class: 'mono nowrap', title: t('labels.order_help'), text: order(j) }),
        h('td', { class: 'wrap sub', dir: 'auto', text: j.rationale ?? '' }),
        h('td', { class: 'right nowrap', text: j.active_ms ? duration(j.active_ms / 1000) : '–' }),
        h('td', { class: 'nowrap', text: when(j.created) }),
      ],
    });
  const list = h('div');
  const loadJudgments = async () => {
    // Figures name those who have judged something; administrators also choose among the others.
    if (person?.role === 'admin') for (const l of listOf(await get('/admin/labelers', null, { signal }))) names.set(l.id, l.name);
    if (chosen && !names.has(chosen)) names.set(chosen, chosen);
    const people = [...names].map(([id, name]) => [id, id === IMPORT ? t('quality.imported') : name]);
    people.sort((x, y) => x[1].localeCompare(y[1]));
    const table = judgments(people);
    fill(list, table.el);
    await table.restart();
    if (chosen) list.closest('section').scrollIntoView({ block: 'start' });
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
    section(t('ratings.title'), null, h('p', { class: 'muted', text: t('ratings.help') }), ratings),
    section(
      t('judges.title'),
      person?.role === 'admin' ? h('a', { class: 'button', href: '#/jobs/new/judge', text: t('judges.start') }) : null,
      h('p', { class: 'muted', text: t('judges.help') }),
      judges,
    ),
    section(t('quality.disputed'), null, h('p', { class: 'muted', text: t('quality.disputed_help') }), disputed),
    versions.el,
    files,
    section(t('labels.judgments'), null, list),
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
    part(who, loadQuality).then(() => part(list, loadJudgments)),
    part(ratings, loadRatings),
    part(judges, loadJudges),
    part(disputed, loadDisputed),
    part(versions.host, versions.draw),
  ]);
  every(10, signal, loadFlow);
}

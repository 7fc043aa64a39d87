// Which version people prefer: the Bradley–Terry table with intervals, and who beat whom.
import { get } from '../api.js';
import { fill, h } from '../dom.js';
import { num, t } from '../i18n.js';
import { percent, whisker } from '../figures.js';
import { section, table } from './parts.js';
import { projectId } from './project.js';

/** Elo points per unit of log-odds. */
const ELO = 400 / Math.LN10;

function standings(answer) {
  const elo = (f) => ({
    value: f.value * ELO,
    low: f.low === null ? null : f.low * ELO,
    high: f.high === null ? null : f.high * ELO,
  });
  const list = answer.versions.map((v) => ({ ...v, figure: elo(v.strength) }));
  const reach = Math.max(50, ...list.flatMap((v) => [v.figure.value, v.figure.low ?? 0, v.figure.high ?? 0]).map(Math.abs));
  const signed = (x) => `${x > 0 ? '+' : x < 0 ? '−' : '±'}${Math.abs(Math.round(x))}`;
  const interval = (f) => (f.low === null ? t('quality.too_few') : `${signed(f.low)} … ${signed(f.high)}`);
  return table(
    t('versions.title'),
    [
      [t('model.version')],
      [t('versions.elo'), 'right'],
      [t('versions.interval')],
      [t('versions.best'), 'right'],
      [t('versions.comparisons'), 'right'],
    ],
    list.map((v) =>
      h(
        'tr',
        null,
        h('td', { class: 'mono', text: v.model_version_id ? v.name : t('versions.human') }),
        h('td', { class: 'right', text: signed(v.figure.value) }),
        h(
          'td',
          null,
          whisker(v.figure, { min: -reach, max: reach, middle: 0, label: interval(v.figure) }),
          h('div', { class: 'sub', text: interval(v.figure) }),
        ),
        h('td', { class: 'right', text: percent(v.best) }),
        h('td', { class: 'right', text: num(v.strength.n) }),
      ),
    ),
    t('versions.none'),
  );
}

function matrix(answer) {
  const name = (v) => (v.model_version_id ? v.name : t('versions.human'));
  return h(
    'div',
    { class: 'table-box', role: 'region', 'aria-label': t('versions.matrix'), tabindex: '0' },
    h(
      'table',
      { class: 'matrix' },
      h('caption', { text: t('versions.matrix_help') }),
      h(
        'thead',
        null,
        h(
          'tr',
          null,
          h('th', { scope: 'col', text: t('versions.row_beats') }),
          answer.versions.map((v) => h('th', { scope: 'col', class: 'mono', text: name(v) })),
        ),
      ),
      h(
        'tbody',
        null,
        answer.versions.map((v, i) =>
          h(
            'tr',
            null,
            h('th', { scope: 'row', class: 'mono', text: name(v) }),
            answer.wins[i].map((cell, j) => {
              if (i === j || cell.win_rate === null) return h('td', { class: 'none', text: i === j ? '' : '–' });
              // eleven shades: 0 = always lost, 10 = always won
              return h(
                'td',
                {
                  class: `win w${Math.round(cell.win_rate * 10)}`,
                  title: t('versions.cell', {
                    wins: cell.wins,
                    ties: cell.ties,
                    losses: cell.losses,
                    expected: percent(cell.expected),
                  }),
                },
                h('strong', { text: percent(cell.win_rate) }),
                h('span', { class: 'sub', text: ` ${cell.wins}–${cell.ties}–${cell.losses}` }),
              );
            }),
          ),
        ),
      ),
    ),
  );
}

export function versionsPanel(signal) {
  const host = h('div', { class: 'stack' });
  const controlled = h('input', { id: 'length-controlled', type: 'checkbox' });
  const draw = async () => {
    const answer = await get(
      '/admin/api/quality/versions',
      { length_controlled: controlled.checked || null, project: projectId() },
      { signal },
    );
    if (!answer.versions.length) return void fill(host, h('p', { class: 'muted pad', text: t('versions.none') }));
    fill(
      host,
      standings(answer),
      matrix(answer),
      h('p', {
        class: 'help',
        text: t('versions.counted', { n: answer.comparisons, prompts: answer.prompts, ties: percent(answer.tie_rate) }),
      }),
    );
  };
  controlled.addEventListener('change', () => draw().catch(() => {}));
  return {
    host,
    el: section(
      t('versions.title'),
      h('label', { class: 'inline', for: 'length-controlled' }, controlled, h('span', { text: t('versions.controlled') })),
      h('p', { class: 'muted', text: t('versions.help') }),
      host,
    ),
    draw,
  };
}

// What speaks for and against a version, as the promote and roll-back dialogs and the overview show it.
import { get } from '../api.js';
import { h } from '../dom.js';
import { GAP, fig, num, t, when } from '../i18n.js';
import { percent, whisker } from '../figures.js';
import { bandOf, meanText, shareText } from './metrics.js';
import { confirm } from './parts.js';
import { promptText, sampleSide } from './samples.js';

export const loadEvidence = (id, signal) => get(`/admin/models/${encodeURIComponent(id)}/evidence`, null, { signal });

const line = (name, text, picture, help) =>
  h(
    'div',
    { class: picture ? 'evidence-row' : 'evidence-row plain' },
    h('span', { class: 'evidence-name', text: name }),
    picture,
    h('span', { class: 'evidence-text' }, h('span', { text }), help ? h('span', { class: 'help', text: help }) : null),
  );

/** The figures as rows: accuracy with chance and the labelers' band, reward and KL, win rate. */
export function evidenceRows(e) {
  const rows = [];
  if (e.model.kind === 'reward') {
    const band = bandOf(e.labeler_agreement);
    rows.push(
      line(
        t('evidence.accuracy'),
        e.accuracy ? shareText(e.accuracy) : t('evidence.no_pairs'),
        e.accuracy ? whisker(e.accuracy, { middle: e.accuracy.chance, band, label: shareText(e.accuracy) }) : null,
        e.accuracy ? t(band ? 'evidence.chance_and_band' : 'evidence.chance_only') : t('evidence.no_pairs_help'),
      ),
    );
    const points = (x) => {
      const n = Math.round(100 * x);
      return n === 0 ? '0' : `${n < 0 ? '−' : '+'}${Math.abs(n)}`;
    };
    for (const b of e.baselines)
      rows.push(
        line(
          t(`evidence.baseline.${b.name}`),
          percent(b.accuracy),
          null,
          t('evidence.baseline_help', { gain: points(b.gain), low: points(b.low), high: points(b.high) }),
        ),
      );
    if (e.labeler_agreement) rows.push(line(t('evidence.agreement'), shareText(e.labeler_agreement)));
  }
  if (e.model.kind === 'policy') {
    if (e.reward)
      rows.push(
        line(
          t('evidence.reward'),
          e.reward.before ? `${meanText(e.reward.before, '', false)} → ${meanText(e.reward.after)}` : meanText(e.reward.after),
          null,
          t('evidence.reward_help'),
        ),
      );
    if (e.gold?.before) rows.push(line(t('evidence.gold'), `${fig(e.gold.before.value)} → ${fig(e.gold.after.value)}`));
    for (const [name, rate] of [
      ['evidence.reward_win_rate', e.reward_win_rate],
      ['evidence.gold_win_rate', e.gold_win_rate],
    ])
      if (rate)
        rows.push(
          line(
            t(name),
            shareText(rate),
            whisker(rate, { middle: 0.5, label: shareText(rate) }),
            t('evidence.run_win_rate_help'),
          ),
        );
    if (e.kl) rows.push(line(t('metric.kl'), meanText(e.kl, t('unit.nats')), null, t('evidence.kl_help')));
    if (e.against)
      rows.push(
        line(
          t('evidence.win_rate', { name: e.against.name }),
          e.win_rate ? shareText(e.win_rate) : t('evidence.no_win_rate'),
          e.win_rate ? whisker(e.win_rate, { middle: 0.5, label: shareText(e.win_rate) }) : null,
          e.win_rate ? t('evidence.win_rate_help') : null,
        ),
      );
  }
  rows.push(line(t('evidence.new_rankings'), num(e.new_rankings)));
  return rows;
}

const WARNING = ['chance', 'not_above_baseline', 'unmeasured', 'not_preferred', 'reward_fell', 'rolled_back'];

/** The verdict in a sentence; null where the figures need none. */
export function findingText(e) {
  const { code } = e.finding;
  if (code === 'unmeasured' && e.model.kind !== 'reward') return t('finding.unmeasured_policy', { other: e.against?.name ?? '–' });
  if (!['policy', 'reward'].includes(e.model.kind)) return null;
  return t(`finding.${code}`, {
    n: e.accuracy?.n ?? e.win_rate?.n ?? 0,
    other: e.against?.name ?? '',
    at: when(e.rolled_back),
  });
}

/** Figures, verdict and samples side by side. */
export function evidencePart(e) {
  const finding = findingText(e);
  return h(
    'div',
    { class: 'evidence' },
    finding ? h('p', { class: WARNING.includes(e.finding.code) ? 'notice warn' : 'notice', text: finding }) : null,
    h('div', { class: 'evidence-rows' }, evidenceRows(e)),
    e.samples.length
      ? h(
          'details',
          { class: 'evidence-samples', open: true },
          h('summary', { text: t('evidence.samples', { n: e.samples.length }) }),
          h(
            'div',
            { class: 'samples', tabindex: '0', role: 'region', 'aria-label': t('evidence.samples', { n: e.samples.length }) },
            e.samples.map((s) =>
              h(
                'article',
                { class: 'sample' },
                h('p', { class: 'sample-prompt', dir: 'auto', text: promptText(s.prompt) }),
                h(
                  'div',
                  { class: 'sample-pair' },
                  sampleSide(e.model.name, s.ours.text, s.ours.reward, { cut: s.ours.cut, than: s.theirs.reward }),
                  sampleSide(e.against?.name ?? '', s.theirs.text, s.theirs.reward, { cut: s.theirs.cut }),
                ),
              ),
            ),
          ),
        )
      : e.model.kind === 'policy'
        ? h('p', { class: 'help', text: t('evidence.no_samples') })
        : null,
  );
}

/** Asks whether to promote `model`, with the evidence before the eyes; true when it shall be. */
export async function askPromote(model, signal) {
  const e = await loadEvidence(model.id, signal);
  const replaces = e.active && e.active.id !== model.id ? e.active.name : null;
  const text = h(
    'div',
    { class: 'stack' },
    h('p', { text: [replaces ? t('model.replaces', { name: model.name, other: replaces }) : null, t(`model.promote_${model.kind}`, { name: model.name })].filter(Boolean).join(GAP) }),
    evidencePart(e),
  );
  const title = replaces ? t('model.promote_over', { name: model.name, other: replaces }) : t('model.promote_title', { name: model.name });
  // not a red button: what the evidence says stands above it in words
  return confirm(title, text, t('model.promote_name', { name: model.name }), false, { safe: replaces ? t('model.keep', { name: replaces }) : t('cancel'), wide: true });
}

/** Asks whether to return from `active` to `parent`. */
export async function askRollBack(active, parent, signal) {
  const e = await loadEvidence(active.id, signal);
  const text = h('div', { class: 'stack' }, h('p', { text: t('model.rollback_text', { name: active.name, parent: parent.name }) }), evidencePart(e));
  return confirm(
    t('model.rollback_title', { name: active.name, parent: parent.name }),
    text,
    t('model.rollback_to', { parent: parent.name }),
    true,
    { safe: t('model.keep', { name: active.name }), wide: true },
  );
}

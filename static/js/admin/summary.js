// What came of a run, in a sentence: figures with n and interval, and what was published.
import { h } from '../dom.js';
import { GAP, fig, num, t } from '../i18n.js';
import { meanText, shareText, show } from './metrics.js';
import { madeName } from './jobs.js';

const SAMPLING = ['ppo', 'reinforce', 'rloo', 'grpo', 'online_dpo', 'raft'];

/** What a finding about a reward model says in the sentence. */
const SUMMARY = { chance: 'summary.chance', not_above_baseline: 'summary.not_above_baseline' };

/** Two intervals share a part: the change may be chance. */
const overlap = (a, b) => [a.low, a.high, b.low, b.high].every(Number.isFinite) && a.low <= b.high && b.low <= a.high;

/** Nodes of the sentence; nothing while the run goes on. */
export function summaryOf(job, evidence) {
  if (job.state === 'cancelled') {
    const p = job.progress;
    return [p?.step ? t('summary.cancelled_at', { step: num(p.step), total: num(p.total_steps ?? p.step) }) : t('summary.cancelled')];
  }
  if (job.state !== 'succeeded') return [];
  const r = job.result?.metrics ?? job.result ?? {};
  const parts = [];
  if (SAMPLING.includes(job.kind) && r.last) {
    const change = evidence?.reward;
    if (change?.before)
      parts.push(
        t('summary.reward', {
          a: meanText(change.before, '', false),
          b: meanText(change.after),
          direction: t(change.after.value > change.before.value ? 'summary.rose' : 'summary.fell'),
        }),
        overlap(change.before, change.after) ? t('summary.overlap') : null,
      );
    else if (Number.isFinite(r.first?.reward))
      parts.push(
        t('summary.reward', {
          a: fig(r.first.reward),
          b: fig(r.last.reward),
          direction: t(r.last.reward > r.first.reward ? 'summary.rose' : 'summary.fell'),
        }),
      );
    const kl = evidence?.kl?.value ?? r.last.kl;
    if (Number.isFinite(kl)) parts.push(t('summary.kl', { v: show('kl', kl) }));
    if (r.stopped_because) parts.push(t('summary.stopped', { why: r.stopped_because }));
  } else if (evidence?.accuracy || r.heldout?.pairs) {
    const a = evidence?.accuracy;
    parts.push(t('summary.accuracy', { v: a ? shareText(a) : shareText({ value: r.heldout_accuracy ?? r.heldout.accuracy, n: r.heldout.pairs }) }));
    if (a) parts.push(t(SUMMARY[evidence.finding.code] ?? 'summary.above_chance'));
  } else if (job.kind === 'reward') {
    parts.push(t('summary.not_measured'));
  } else if (Number.isFinite(r.heldout_loss)) {
    parts.push(t('summary.heldout_loss', { v: show('heldout_loss', r.heldout_loss) }));
  } else if (Number.isFinite(r.heldout_accuracy)) {
    parts.push(t('summary.accuracy', { v: shareText({ value: r.heldout_accuracy }) }));
  }
  const made = madeName(job);
  return [
    parts.filter(Boolean).join(GAP),
    made ? [GAP, t('summary.published'), ' ', h('a', { href: '#/models', class: 'mono', text: made }), t('full_stop')] : null,
  ].flat();
}

// What each metric is: one name, its section on the page, its unit, its scale; figures of proportions.
import { fig, has, num, t } from '../i18n.js';
import { percent } from '../figures.js';

/** Names under which the same quantity is logged a second time (TRL's), and ours. */
const ALIASES = {
  'objective/scores': 'reward',
  'objective/kl': 'kl',
  'objective/entropy': 'entropy',
  'objective/rlhf_reward': 'rlhf_reward',
  'objective/non_score_reward': 'non_score_reward',
  'policy/approxkl_avg': 'approx_kl',
  'policy/clipfrac_avg': 'clip_fraction',
  'policy/entropy_avg': 'update_entropy',
  'loss/policy_avg': 'policy_loss',
  'loss/value_avg': 'value_loss',
  'val/clipfrac_avg': 'value_clip_fraction',
  'val/ratio': 'ratio',
  'val/num_eos_tokens': 'eos_count',
  'completions/mean_length': 'response_length',
  'completions/clipped_ratio': 'no_eos_share',
  'clip_ratio/region_mean': 'clip_fraction',
  'clip_ratio/low_mean': 'clip_fraction_low',
  'clip_ratio/high_mean': 'clip_fraction_high',
  'rewards/chosen': 'chosen_reward',
  'rewards/rejected': 'rejected_reward',
  'rewards/accuracies': 'train_accuracy',
  'rewards/margins': 'margin',
  'eval_rewards/accuracies': 'heldout_accuracy',
  eval_rewards_accuracies: 'heldout_accuracy',
  lr: 'learning_rate',
  episode: 'episodes',
  eval_accuracy: 'heldout_accuracy',
  eval_margin: 'heldout_margin',
  eval_loss: 'heldout_loss',
  length: 'response_length',
};
/** Aliases that mean something else in other recipes. */
const BY_KIND = { reward: { accuracy: 'train_accuracy' }, grpo: { loss: 'policy_loss' }, rloo: { loss: 'policy_loss' }, reinforce: { loss: 'policy_loss' } };

/** Map name → {steps, values} with every quantity once, under our name. */
export function withoutDoubles(table, kind) {
  const out = new Map();
  const ours = (name) => BY_KIND[kind]?.[name] ?? ALIASES[name] ?? name;
  for (const [name, line] of table) if (ours(name) === name) out.set(name, line);
  for (const [name, line] of table) if (!out.has(ours(name))) out.set(ours(name), line);
  return out;
}

export const SECTIONS = ['reward', 'loss', 'policy', 'timing', 'system'];

/** Order within sections; the first pattern that fits decides. @type {[RegExp, string][]} */
const PLACES = [
  [/^(reward|gold)$/, 'reward'],
  [/^kl$/, 'reward'],
  [/^(k3|rlhf_reward|non_score_reward|reward_std|kl_coef|kl_target|chosen_reward|rejected_reward|best_reward|worst_reward)$/, 'reward'],
  [/^judge_/, 'reward'],
  [/^seconds_|_seconds$|per_second/, 'timing'],
  [/memory|bytes$/, 'system'],
  [/^(heldout_accuracy|train_accuracy|accuracy)/, 'loss'],
  [/loss|perplexity|per_byte/, 'loss'],
  [/margin|ece|f1|win_rate|heldout/, 'loss'],
  [/entropy/, 'policy'],
  [/clip_fraction/, 'policy'],
  [/ratio|approx_kl/, 'policy'],
  [/explained_variance/, 'policy'],
  [/response_length|no_eos|eos_count|^turns$|conversations_cut/, 'policy'],
  [/grad_norm|learning_rate|spread|gap/, 'policy'],
  [/./, 'policy'],
];

export const sectionOf = (name) => (PLACES.find(([p]) => p.test(name)) ?? [null, 'policy'])[1];
export const inOrder = (names) => {
  const place = (n) => PLACES.findIndex(([p]) => p.test(n));
  return names
    .map((n, i) => [place(n), i, n])
    .sort((a, b) => a[0] - b[0] || a[1] - b[1])
    .map(([, , n]) => n);
};

/** The four curves that tell most, first those that a run of this kind is judged by. */
const PINS = {
  reward: ['heldout_accuracy', 'loss', 'train_accuracy', 'ece'],
  dpo: ['heldout_accuracy', 'loss', 'margin', 'heldout_loss'],
  simpo: ['heldout_accuracy', 'loss', 'margin', 'heldout_loss'],
  orpo: ['heldout_accuracy', 'loss', 'nll_loss', 'heldout_loss'],
  kto: ['heldout_accuracy', 'loss', 'margin', 'kl'],
  online_dpo: ['reward', 'kl', 'gold', 'margin', 'loss'],
  raft: ['reward', 'kl', 'gold', 'best_reward', 'loss'],
  default: ['reward', 'kl', 'gold', 'response_length', 'entropy', 'heldout_loss', 'loss', 'heldout_accuracy', 'accuracy', 'bits_per_byte', 'grad_norm', 'learning_rate'],
};
export const pinsOf = (kind, names) => (PINS[kind] ?? PINS.default).filter((n) => names.includes(n)).slice(0, 4);

/** A name in words, whatever the run calls it. */
export function metricTitle(name) {
  if (has(`metric.${name}`)) return t(`metric.${name}`);
  const plain = name.replace(/[_/]+/g, ' ').trim();
  return plain ? plain[0].toUpperCase() + plain.slice(1) : name;
}

const SHARE = /accuracy|no_eos_share|^judge_|clip_fraction|^frac_|win_rate|_f1$|^ece$|^importance_beyond_cap$/;
const NATS = /^(kl|k3|approx_kl|start_approx_kl|entropy|update_entropy|sampling_gap(_mean)?|(heldout_|ptx_)?loss)$/;
const SECONDS = /^seconds_|_seconds$/;

export const isShare = (name) => SHARE.test(name);
export const isAccuracy = (name) => /accuracy/.test(name);
/** Accuracy on pairs: a coin is right on half of them. */
export const isPairAccuracy = (name, kind) => isAccuracy(name) && ['reward', 'dpo', 'online_dpo', 'simpo', 'orpo'].includes(kind);

export function unitOf(name) {
  if (/bytes$/.test(name)) return 'GB';
  if (isShare(name)) return '%';
  if (NATS.test(name)) return t('unit.nats');
  if (SECONDS.test(name)) return 's';
  if (/per_second/.test(name)) return t('unit.per_second');
  if (name === 'response_length') return t('unit.tokens');
  return '';
}

/** A value as the page writes it, with its unit. */
export function show(name, v) {
  if (typeof v !== 'number' || !Number.isFinite(v)) return '–';
  if (/bytes$/.test(name)) return `${fig(v / 1e9)} GB`;
  if (isShare(name)) return percent(v, v !== 0 && Math.abs(v) < 0.0995 ? 1 : 0);
  const unit = unitOf(name);
  return unit ? `${fig(v)} ${unit}` : fig(v);
}

/** A value on an axis: the unit stands in the title. */
export function onAxis(name, v) {
  if (v === null || v === undefined) return '';
  if (/bytes$/.test(name)) return fig(v / 1e9);
  if (isShare(name)) return `${fig(100 * v)}`;
  return fig(v);
}

/** Values of the ticks of an axis, with as many decimals as tell them apart. */
export function tickTexts(name, ticks) {
  const shown = ticks.map((v) => (v === null ? null : onAxis(name, v)));
  if (new Set(shown).size === shown.length) return shown.map((text) => text ?? '');
  const scale = /bytes$/.test(name) ? 1e-9 : isShare(name) ? 100 : 1;
  const given = ticks.filter((v) => v !== null);
  const gap = Math.min(...given.slice(1).map((v, i) => Math.abs(v - given[i]) * scale));
  const digits = Math.min(12, Math.max(0, Math.ceil(-Math.log10(gap || 1))));
  return ticks.map((v) => (v === null ? '' : (v * scale).toFixed(digits)));
}

/** Wilson's 95 % interval of a share among `n`; `[null, null]` of nothing. */
export function wilson(share, n) {
  if (!(n > 0) || !Number.isFinite(share)) return [null, null];
  const z = 1.959964;
  const centre = share + (z * z) / (2 * n);
  const half = z * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
  const scale = 1 + (z * z) / n;
  return [Math.max(0, (centre - half) / scale), Math.min(1, (centre + half) / scale)];
}

/** The interval of a figure to be shaded; an interval over most of the scale shades nothing. */
export const bandOf = (f) => (f && Number.isFinite(f.low) && Number.isFinite(f.high) && f.high - f.low <= 0.5 ? [f.low, f.high] : undefined);

/** "53 % (36–70 %), n = 30" of a figure `{value, low, high, n}`. */
export function shareText(f) {
  if (!f) return '–';
  const body = f.low === null || f.low === undefined ? percent(f.value) : t('figure.interval', { v: percent(f.value), low: percent(f.low).replace(/\u00a0?%$/, ''), high: percent(f.high) });
  return f.n ? t('figure.of', { body, count: num(f.n) }) : body;
}

/** "0.58 (0.41 to 0.75), n = 64"; without the last part unless `count`. */
export function meanText(f, unit = '', count = true) {
  if (!f) return '–';
  const u = unit ? ` ${unit}` : '';
  const body = f.low === null || f.low === undefined ? `${fig(f.value)}${u}` : t('figure.range', { v: `${fig(f.value)}${u}`, low: fig(f.low), high: fig(f.high) });
  return f.n && count ? t('figure.of', { body, count: num(f.n) }) : body;
}

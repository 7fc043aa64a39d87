// Small pieces that several admin views share.
import { dialog, h, toast } from '../dom.js';
import { duration, fig, num, t, when } from '../i18n.js';
import { isShare, metricTitle, onAxis, show } from './metrics.js';
import { errorText } from '../plain.js';

const STATE_KIND = {
  queued: '',
  running: 'accent',
  succeeded: 'good',
  failed: 'bad',
  cancelled: 'warn',
  active: 'good',
  candidate: '',
  previous: '',
  rolled_back: 'warn',
  retired: 'warn',
};

export const stateTag = (state) => h('span', { class: `tag ${STATE_KIND[state] ?? ''}`, text: t(`state.${state}`) });

/** An event handler whose failure is told in plain words. */
export const caught = (work) => async (e) => {
  e?.preventDefault?.();
  try {
    await work(e);
  } catch (err) {
    toast(errorText(err), { kind: 'bad', seconds: 10 });
  }
};

export const isOver = (job) => ['succeeded', 'failed', 'cancelled'].includes(job.state);

/** Table in a box that scrolls sideways on its own. `columns`: [title, class?, hidden title?]. */
export function table(label, columns, rows, emptyText) {
  if (rows.length === 0) return h('p', { class: 'muted pad', text: emptyText });
  return h(
    'div',
    { class: 'table-box', role: 'region', 'aria-label': label, tabindex: '0' },
    h(
      'table',
      null,
      h(
        'thead',
        null,
        h(
          'tr',
          null,
          columns.map(([title, cls, hidden]) =>
            h(
              'th',
              { scope: 'col', class: cls },
              title === '' ? h('span', { class: 'hidden-label', text: hidden ?? t('actions') }) : title,
            ),
          ),
        ),
      ),
      h('tbody', null, rows),
    ),
  );
}

export const section = (title, tools, ...children) =>
  h(
    'section',
    { class: 'panel block' },
    h('header', { class: 'block-head' }, h('h2', { text: title }), h('div', { class: 'row' }, tools)),
    children,
  );

/**
 * Asks before an act. `action` names the act on its button; `safe` names the other one, which has the focus. `text`
 * may be nodes; `wide` gives them room.
 */
export async function confirm(title, text, action, danger = false, { safe = t('cancel'), wide = false } = {}) {
  return dialog(
    title,
    (close) => {
      // `autofocus` outranks the close button, which comes first
      const keep = h('button', { type: 'button', class: 'safe', autofocus: true, text: safe, on: { click: () => close(false) } });
      // the focus lies at the end; a long dialog is read from its beginning
      requestAnimationFrame(() => keep.closest('dialog')?.scrollTo(0, 0));
      return [
        typeof text === 'string' ? h('p', { text }) : text,
        h(
          'div',
          { class: 'actions confirm-actions' },
          keep,
          h('button', { type: 'button', class: danger ? 'danger' : 'primary', text: action, on: { click: () => close(true) } }),
        ),
      ];
    },
    { closeLabel: t('close'), wide },
  );
}

/** Shows a secret once, ready to copy. */
export function showSecret(title, text, note) {
  return dialog(
    title,
    () => {
      const field = h('input', { class: 'mono', readonly: true, value: text, 'aria-label': title });
      const copy = h('button', { type: 'button', class: 'primary', text: t('copy') });
      copy.addEventListener('click', async () => {
        field.select();
        try {
          await navigator.clipboard.writeText(text);
          copy.textContent = t('copied');
        } catch {
          copy.textContent = t('copy_by_hand'); // no clipboard outside https
        }
      });
      return [h('p', { class: 'muted', text: note }), h('div', { class: 'secret' }, field, copy)];
    },
    { closeLabel: t('close') },
  );
}

/** "rollout, 3 of 8 · 70 of 200 · 20 m left · 812 tokens/s". */
export function progressText(job) {
  const p = job.progress;
  if (!p) return '';
  const over = isOver(job);
  const total = p.total_steps;
  // a guarded run measures once more after its last step
  const step = total ? Math.min(p.step, total) : p.step;
  const inside = Number.isFinite(p.phase_total) && p.phase_total > 0 ? t('job.phase_of', { done: p.phase_done ?? 0, total: p.phase_total }) : null;
  const parts = [
    p.phase && !over ? [phaseName(p.phase), inside].filter(Boolean).join(' ') : null,
    total ? t('job.step_of', { step, total }) : step ? t('job.step', { step }) : null,
  ];
  if (!over) {
    if (Number.isFinite(p.eta_seconds)) parts.push(t('job.eta', { d: duration(p.eta_seconds) }));
    if (p.tokens_per_second) parts.push(t('job.speed', { n: fig(p.tokens_per_second) }));
    if (p.memory_bytes) parts.push(bytes(p.memory_bytes));
  }
  return parts.filter(Boolean).join(' · ');
}

const phaseName = (phase) => {
  const text = t(`phase.${phase}`);
  return text === `phase.${phase}` ? phase : text;
};

export function bytes(n) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let i = 0;
  while (n >= 1000 && i < units.length - 1) {
    n /= 1000;
    i++;
  }
  return `${fig(n)} ${units[i]}`;
}

export function progressBar(job) {
  const p = job.progress;
  const total = p?.total_steps;
  return h('progress', {
    max: total || 1,
    value: job.state === 'succeeded' ? total || 1 : total ? Math.min(p.step, total) : 0,
    'aria-label': t('job.progress_of', { name: job.kind }),
  });
}

/**
 * Metrics object → "Reward 0.84 · KL 5.1 nats" (numbers only). `first` and `last` inside it are the ends of a run:
 * "Reward 0.2 → 0.84". Accuracy on held-out pairs has its n.
 */
export function metricsText(metrics, most = 4) {
  if (!metrics || typeof metrics !== 'object') return '';
  const pairs = metrics.heldout?.pairs;
  const one = (k, v) =>
    `${metricTitle(k)} ${Number.isInteger(v) && !isShare(k) ? num(v) : show(k, v)}${k === 'heldout_accuracy' && pairs ? ` (n = ${num(pairs)})` : ''}`;
  const numbers = (o) => Object.entries(o ?? {}).filter(([k, v]) => typeof v === 'number' && !INNER.has(k));
  const ends = numbers(metrics.last).map(([k, v]) => {
    const from = metrics.first?.[k];
    return typeof from === 'number' ? `${metricTitle(k)} ${onAxis(k, from)} → ${show(k, v)}` : one(k, v);
  });
  return [...ends, ...numbers(metrics).map(([k, v]) => one(k, v))].slice(0, most).join(' · ');
}

/** Figures of a result that say nothing by themselves. */
const INNER = new Set(['heads', 'kl_coef', 'published_iteration', 'iterations', 'labeler_agreement', 'train_demonstrations']);

export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const a = h('a', { href: url, download: name });
  document.body.append(a);
  a.click();
  a.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Calls `fn` every `seconds` until the view is left; skips hidden tabs. */
/** When numbers were counted, if that is a while ago. */
export const countedNote = (counted) =>
  Date.now() - counted / 1000 > 15_000 ? h('p', { class: 'help', text: t('counted.at', { at: when(counted) }) }) : null;

export function every(seconds, signal, fn) {
  const timer = setInterval(() => !document.hidden && fn().catch(() => {}), seconds * 1000);
  signal.addEventListener('abort', () => clearInterval(timer));
}

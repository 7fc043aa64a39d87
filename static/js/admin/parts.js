// Small pieces that several admin views share.
import { dialog, h, toast } from '../dom.js';
import { duration, fig, has, num, t } from '../i18n.js';
import { errorText } from '../plain.js';

const STATE_KIND = {
  queued: '',
  running: 'accent',
  succeeded: 'good',
  failed: 'bad',
  cancelled: 'warn',
  active: 'good',
  candidate: '',
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

export async function confirm(title, text, action, danger = false) {
  return dialog(
    title,
    (close) => [
      h('p', { text }),
      h(
        'div',
        { class: 'actions' },
        h('button', { type: 'button', text: t('cancel'), on: { click: () => close(false) } }),
        h('button', { type: 'button', class: danger ? 'danger' : 'primary', text: action, on: { click: () => close(true) } }),
      ),
    ],
    { closeLabel: t('close') },
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

/** "rollout · 70 of 200 · 20 m left · 812 tokens/s". */
export function progressText(job) {
  const p = job.progress;
  if (!p) return '';
  const parts = [
    p.phase && !isOver(job) ? phaseName(p.phase) : null,
    p.total_steps ? t('job.step_of', { step: p.step, total: p.total_steps }) : p.step ? t('job.step', { step: p.step }) : null,
  ];
  if (!isOver(job)) {
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
 * Metrics object → "reward 0.84 · kl 5.1" (numbers only). `first` and `last` inside it are the ends of a run:
 * "reward 0.2 → 0.84".
 */
export function metricsText(metrics, most = 4) {
  if (!metrics || typeof metrics !== 'object') return '';
  const show = (v) => (Number.isInteger(v) ? num(v) : fig(v));
  const name = (k) => (has(`metric.${k}`) ? t(`metric.${k}`) : k);
  const numbers = (o) => Object.entries(o ?? {}).filter(([, v]) => typeof v === 'number');
  const ends = numbers(metrics.last).map(([k, v]) => {
    const from = metrics.first?.[k];
    return typeof from === 'number' ? `${name(k)} ${show(from)} → ${show(v)}` : `${name(k)} ${show(v)}`;
  });
  return [...ends, ...numbers(metrics).map(([k, v]) => `${name(k)} ${show(v)}`)].slice(0, most).join(' · ');
}

export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const a = h('a', { href: url, download: name });
  document.body.append(a);
  a.click();
  a.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Calls `fn` every `seconds` until the view is left; skips hidden tabs. */
export function every(seconds, signal, fn) {
  const timer = setInterval(() => !document.hidden && fn().catch(() => {}), seconds * 1000);
  signal.addEventListener('abort', () => clearInterval(timer));
}

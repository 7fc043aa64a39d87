// Who answers: the active version and, for a share of the requests, a candidate; how each is used.
import { del, get, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { percent } from '../figures.js';
import { num, t, when } from '../i18n.js';
import { errorText } from '../plain.js';
import { askPromote } from './evidence.js';
import { caught, countedNote, section, table } from './parts.js';

const SHARES = [0.01, 0.05, 0.1, 0.25, 0.5, 1];
/** With a decimal only where there is one. */
const inWords = (x) => percent(x, Number.isInteger(Number((100 * x).toFixed(1))) ? 0 : 1);
const ratio = (part, all) => (all ? inWords(part / all) : '–');

/** The panel; `changed` is called after a promotion or a change of the share. */
export function servingPanel(models, answer, changed) {
  const { canary, counted, versions: used, since } = answer;
  const active = models.find((m) => m.kind === 'policy' && m.state === 'active');
  const candidate = canary && models.find((m) => m.id === canary.model_version_id);
  const others = models.filter((m) => m.kind === 'policy' && m.state === 'candidate');
  const share = canary?.share ?? 0;
  const bar = h(
    'div',
    {
      class: 'share-bar',
      role: 'img',
      'aria-label': t('canary.bar', {
        active: active?.name ?? '–',
        a: inWords(1 - share),
        candidate: candidate?.name ?? '–',
        b: inWords(share),
      }),
    },
    h('span', { class: 'share-active' }),
    candidate ? h('span', { class: 'share-candidate' }) : null,
  );
  bar.firstChild.style.flexGrow = String(1 - share);
  if (candidate) bar.lastChild.style.flexGrow = String(share);

  const rows = used
    .map((u) => ({ u, m: models.find((m) => m.id === u.model_version_id) }))
    .filter((r) => r.m)
    .sort(
      (a, b) =>
        Number(b.m === active) - Number(a.m === active) ||
        Number(b.m === candidate) - Number(a.m === candidate) ||
        b.u.requests - a.u.requests,
    )
    .map(({ u, m }) =>
      h(
        'tr',
        null,
        h(
          'td',
          null,
          h('span', { class: `dot ${m === active ? 'active' : m === candidate ? 'candidate' : ''}`, 'aria-hidden': 'true' }),
          h('span', { class: 'mono', text: m.name }),
        ),
        h('td', { class: 'right', text: num(u.requests) }),
        h('td', { class: 'right', text: num(u.tokens) }),
        h('td', { class: 'right', text: u.completions ? num(Math.round(u.tokens / u.completions)) : '–' }),
        h('td', { class: 'right', text: ratio(u.cut, u.completions) }),
        h('td', {
          class: 'right nowrap',
          text: u.thumbs_up + u.thumbs_down ? `${num(u.thumbs_up)} / ${num(u.thumbs_down)}` : '–',
        }),
      ),
    );

  const select = h(
    'select',
    { id: 'canary-model' },
    others.map((m) => h('option', { value: m.name, selected: m === candidate, text: m.name })),
  );
  const shareSelect = h(
    'select',
    { id: 'canary-share' },
    [...new Set([...SHARES, ...(canary ? [share] : [])])]
      .sort((a, b) => a - b)
      .map((s) => h('option', { value: s, selected: s === (canary ? share : 0.1), text: inWords(s) })),
  );
  const error = h('p', { class: 'form-error', role: 'alert' });
  const form = h(
    'form',
    {
      class: 'inline-form canary-form',
      on: {
        submit: async (e) => {
          e.preventDefault();
          error.textContent = '';
          try {
            await post('/admin/canary', { model: select.value, share: Number(shareSelect.value) });
            toast(t('canary.started', { name: select.value, share: inWords(Number(shareSelect.value)) }), { kind: 'good' });
            await changed();
          } catch (err) {
            error.textContent = errorText(err);
          }
        },
      },
    },
    h('label', { class: 'inline', for: 'canary-share' }, h('span', { text: t('canary.share') }), shareSelect),
    h('label', { class: 'inline', for: 'canary-model' }, h('span', { text: t('canary.candidate') }), select),
    h('button', { type: 'submit', text: t(canary ? 'canary.change' : 'canary.start') }),
    canary
      ? h('button', {
          type: 'button',
          class: 'quiet',
          text: t('canary.end'),
          on: {
            click: caught(async () => {
              await del('/admin/canary');
              toast(t('canary.ended'), { kind: 'good' });
              await changed();
            }),
          },
        })
      : null,
    candidate
      ? h('button', {
          type: 'button',
          class: 'primary',
          text: t('canary.promote', { name: candidate.name }),
          on: {
            click: caught(async () => {
              if (!(await askPromote(candidate))) return;
              await post(`/admin/models/${encodeURIComponent(candidate.id)}/promote`);
              toast(t('model.promoted', { name: candidate.name }), { kind: 'good' });
              await changed();
            }),
          },
        })
      : null,
  );

  return section(
    t('canary.title'),
    null,
    h(
      'p',
      { class: 'serving-line' },
      h('span', { class: 'dot active', 'aria-hidden': 'true' }),
      h('strong', { class: 'mono', text: active?.name ?? t('loop.none') }),
      h('span', { class: 'muted', text: inWords(1 - share) }),
      candidate ? h('span', { class: 'dot candidate', 'aria-hidden': 'true' }) : null,
      candidate ? h('strong', { class: 'mono', text: candidate.name }) : null,
      candidate ? h('span', { class: 'muted', text: inWords(share) }) : null,
    ),
    bar,
    h('p', { class: 'help', text: t('canary.help') }),
    others.length ? form : h('p', { class: 'muted', text: t('canary.no_candidate') }),
    error,
    table(
      t('canary.use'),
      [
        [t('model.version')],
        [t('canary.requests'), 'right'],
        [t('canary.tokens'), 'right'],
        [t('canary.length'), 'right'],
        [t('canary.cut'), 'right'],
        [t('canary.thumbs'), 'right'],
      ],
      rows,
      t('canary.nothing'),
    ),
    h('p', { class: 'help', text: canary ? t('canary.since', { at: when(since) }) : t('canary.last_day') }),
    countedNote(counted),
  );
}

export const loadUsage = (signal) => get('/admin/usage', null, { signal });

/** Fills `host`; unless `force`d, leaves it alone while somebody uses it. */
export async function drawServing(host, models, signal, changed, force = false) {
  const answer = await loadUsage(signal);
  if (!force && host.contains(document.activeElement)) return;
  fill(host, servingPanel(models, answer, changed));
}

// The queue: sets drawn from stored prompts by a policy, what waits, and sets with a known answer.
import { get, listOf, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { num, t, when } from '../i18n.js';
import { errorText } from '../plain.js';
import { caught, confirm, every, section, table } from './parts.js';

const POLICIES = ['random', 'uncertainty', 'versus', 'stored', 'disagreement'];
const DRAW_STATES = { running: 'accent', done: 'good', failed: 'bad', cancelled: 'warn' };

function drawForm(models, started) {
  let policy = 'random';
  const policies = models.filter((m) => m.kind === 'policy' && m.state !== 'retired');
  const active = policies.find((m) => m.state === 'active');
  const select = (id, chosen) =>
    h(
      'select',
      { id },
      policies.map((m) => h('option', { value: m.name, selected: m === chosen, text: m.name })),
    );
  const input = (id, value, attrs) => h('input', { id, value, inputmode: 'numeric', autocomplete: 'off', ...attrs });
  const errors = new Map();
  const field = (name, label, control, help) => {
    const error = h('p', { class: 'form-error', id: `${control.id}-error` });
    errors.set(name, { error, control });
    control.setAttribute('aria-describedby', error.id);
    return h(
      'div',
      { class: 'field' },
      h('label', { for: control.id, text: label }),
      control,
      help ? h('p', { class: 'help', text: help }) : null,
      error,
    );
  };
  const count = input('draw-count', '20');
  const n = input('draw-n', '', { placeholder: t('queue.as_configured') });
  const overlap = input('draw-overlap', '', { placeholder: t('queue.as_configured') });
  const tag = h('input', { id: 'draw-tag', autocomplete: 'off', placeholder: t('queue.any') });
  const again = h('input', { id: 'draw-again', type: 'checkbox' });
  const candidates = input('draw-candidates', '4');
  const a = select('draw-a', active);
  const b = select('draw-b', policies.find((m) => m !== active) ?? active);
  const extra = h('div', { class: 'field-grid' });
  const message = h('p', { class: 'form-error', role: 'alert' });
  const choose = () =>
    fill(
      extra,
      field('count', t('queue.count'), count),
      policy === 'disagreement'
        ? null
        : [
            field('n', t('queue.n'), n, t('queue.n_help')),
            field('overlap', t('queue.overlap'), overlap, t('queue.overlap_help')),
            field('prompts.tag', t('queue.tag'), tag),
          ],
      policy === 'uncertainty' ? field('candidates', t('queue.candidates'), candidates, t('queue.candidates_help')) : null,
      policy === 'versus' ? [field('versions', t('chat.version_a'), a), field('versions[1]', t('chat.version_b'), b)] : null,
      policy === 'disagreement'
        ? null
        : h('label', { class: 'inline', for: 'draw-again' }, again, h('span', null, t('queue.again'))),
    );
  choose();
  const number = (control) => (control.value.trim() === '' ? undefined : Number(control.value));
  const go = h('button', { class: 'primary', type: 'submit', text: t('queue.draw') });
  return h(
    'form',
    {
      class: 'stack',
      novalidate: true,
      on: {
        submit: async (e) => {
          e.preventDefault();
          message.textContent = '';
          for (const { error, control } of errors.values()) {
            error.textContent = '';
            control.removeAttribute('aria-invalid');
          }
          const body = { policy, count: number(count) ?? 0 };
          if (policy !== 'disagreement')
            Object.assign(body, {
              n: number(n),
              overlap: number(overlap),
              prompts: { ...(tag.value.trim() ? { tag: tag.value.trim() } : {}), with_sets: again.checked },
            });
          if (policy === 'uncertainty') body.candidates = number(candidates);
          if (policy === 'versus') body.versions = [a.value, b.value];
          go.disabled = true;
          try {
            await post('/admin/sets/draw', body);
            await started();
          } catch (err) {
            const place = errors.get(err.param);
            if (place?.control.isConnected) {
              place.error.textContent = errorText(err);
              place.control.setAttribute('aria-invalid', 'true');
              place.control.focus();
            } else message.textContent = errorText(err);
          } finally {
            go.disabled = false;
          }
        },
      },
    },
    h(
      'fieldset',
      { class: 'policies' },
      h('legend', { class: 'hidden-label', text: t('queue.policy') }),
      POLICIES.map((p) =>
        h(
          'label',
          { class: 'policy' },
          h('input', {
            type: 'radio',
            name: 'policy',
            value: p,
            checked: p === policy,
            on: {
              change: () => {
                policy = p;
                choose();
              },
            },
          }),
          h('span', null, h('strong', { text: t(`policy.${p}`) }), h('span', { class: 'help', text: t(`policy.${p}_help`) })),
        ),
      ),
    ),
    extra,
    message,
    h('div', { class: 'actions' }, go),
  );
}

export async function queueView(el, { signal }) {
  const draws = h('div');
  const sets = h('div');
  let status = 'open';
  const models = listOf(await get('/admin/models', null, { signal }));

  const loadDraws = async () => {
    const list = listOf(await get('/admin/sets/draws', { limit: 8 }, { signal }));
    if (draws.contains(document.activeElement)) return list;
    fill(
      draws,
      list.length
        ? h(
            'ul',
            { class: 'running' },
            list.map((d) =>
              h(
                'li',
                null,
                h('span', { class: 'strong', text: t(`policy.${d.request.policy}`) }),
                h('span', { class: `tag ${DRAW_STATES[d.state] ?? ''}`, text: t(`draw.${d.state}`) }),
                h(
                  'div',
                  { class: 'grow' },
                  h('progress', { max: d.wanted, value: d.made, 'aria-label': t('queue.progress') }),
                  d.error ? h('div', { class: 'sub bad-text', dir: 'auto', text: d.error }) : null,
                ),
                h('span', { class: 'muted nowrap', text: t('queue.made', { made: d.made, wanted: d.wanted }) }),
                h('span', { class: 'muted nowrap', text: when(d.created) }),
                d.state === 'running'
                  ? h('button', {
                      type: 'button',
                      text: t('job.cancel'),
                      on: {
                        click: caught(async (e) => {
                          e.currentTarget.blur();
                          await post(`/admin/sets/draws/${encodeURIComponent(d.id)}/cancel`);
                          await loadDraws();
                        }),
                      },
                    })
                  : null,
              ),
            ),
          )
        : h('p', { class: 'muted pad', text: t('queue.no_draws') }),
    );
    return list;
  };
  const loadSets = async () => {
    const list = listOf(await get('/admin/sets', { status, limit: 50 }, { signal }));
    fill(
      sets,
      table(
        t('queue.sets'),
        [
          [t('labels.when')],
          [t('queue.kind')],
          [t('queue.policy')],
          [t('queue.answers'), 'right'],
          [t('queue.people'), 'right'],
          ['', 'right'],
        ],
        list.map((s) =>
          h(
            'tr',
            null,
            h('td', { class: 'nowrap', text: when(s.created) }),
            h('td', null, h('span', { class: `tag ${s.kind === 'normal' ? '' : 'accent'}`, text: t(`kind.${s.kind}`) })),
            h(
              'td',
              { class: 'nowrap' },
              t(`policy.${s.selection_policy}`) === `policy.${s.selection_policy}`
                ? s.selection_policy
                : t(`policy.${s.selection_policy}`),
              Number.isFinite(s.selection_score) ? h('span', { class: 'sub', text: ` ${s.selection_score.toFixed(2)}` }) : null,
            ),
            h('td', { class: 'right', text: num(s.completion_ids.length) }),
            h('td', { class: 'right', text: num(s.target_overlap) }),
            h(
              'td',
              { class: 'right nowrap' },
              h('a', { class: 'button quiet', href: `#/sets/${encodeURIComponent(s.id)}`, text: t('queue.open') }),
              s.status === 'open'
                ? h('button', {
                    type: 'button',
                    class: 'quiet',
                    text: t('queue.retire'),
                    on: {
                      click: caught(async () => {
                        if (!(await confirm(t('queue.retire'), t('queue.retire_text'), t('queue.retire'), true))) return;
                        await post(`/admin/sets/${encodeURIComponent(s.id)}/retire`);
                        toast(t('queue.retired'), { kind: 'good' });
                        await loadSets();
                      }),
                    },
                  })
                : null,
            ),
          ),
        ),
        t('queue.no_sets'),
      ),
    );
  };
  const statuses = h(
    'div',
    { class: 'segmented', role: 'group', 'aria-label': t('job.state') },
    ['open', 'done', 'retired'].map((s) =>
      h('button', {
        type: 'button',
        'aria-pressed': String(s === status),
        text: t(`set.${s}`),
        on: {
          click: (e) => {
            status = s;
            for (const button of statuses.children) button.setAttribute('aria-pressed', String(button === e.currentTarget));
            loadSets().catch((err) => toast(errorText(err), { kind: 'bad' }));
          },
        },
      }),
    ),
  );
  fill(
    el,
    h(
      'header',
      { class: 'view-head' },
      h('h1', { text: t('admin.queue') }),
      h('a', { class: 'button primary', href: '/label', text: t('next.rank') }),
    ),
    section(t('queue.draw_title'), null, h('p', { class: 'muted', text: t('queue.draw_help') }), drawForm(models, loadDraws)),
    section(t('queue.draws'), null, draws),
    section(t('queue.sets'), statuses, sets),
  );
  const [first] = await Promise.all([loadDraws(), loadSets()]);
  let seen = first.map((d) => `${d.id} ${d.state} ${d.made}`).join();
  every(2, signal, async () => {
    // a draw may be over before anybody has seen it run: what was made tells
    const made = (await loadDraws()).map((d) => `${d.id} ${d.state} ${d.made}`).join();
    if (made !== seen) await loadSets();
    seen = made;
  });
}

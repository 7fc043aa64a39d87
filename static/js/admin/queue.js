// The queue: sets drawn from stored prompts by a policy, why a draw made fewer than wanted, and all sets.
import { get, listOf, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { GAP, has, num, t, when } from '../i18n.js';
import { errorText } from '../plain.js';
import { drawNotes } from './draws.js';
import { listing, promptCell } from './listing.js';
import { caught, confirm, every, section } from './parts.js';
import { projectId } from './project.js';

/** @import { PostBody, SelectionPolicy } from '../contract.d.ts' */

const POLICIES = ['random', 'uncertainty', 'versus', 'tournament', 'stored', 'disagreement', 'judge'];
/** Policies whose answers are written for the draw. */
const WRITTEN = ['random', 'uncertainty', 'versus', 'tournament'];
/** Policies that choose among sets that exist, instead of making new ones. */
const OF_SETS = ['disagreement', 'judge'];
const DRAW_STATES = { running: 'accent', done: 'good', failed: 'bad', cancelled: 'warn' };

const policyName = (policy) => (has(`policy.${policy}`) ? t(`policy.${policy}`) : policy);

/** Why a policy cannot be used now; null where it can. */
function obstacle(policy, models) {
  if (policy === 'uncertainty' && !models.some((m) => m.kind === 'reward' && m.state === 'active')) return t('queue.needs_reward');
  if (['versus', 'tournament'].includes(policy) && models.filter((m) => m.kind === 'policy' && m.state !== 'retired').length < 2)
    return t('queue.needs_versions');
  return null;
}

/** `configured`: the settings of labeling by name, for what an empty field means. */
function drawForm(models, configured, started) {
  /** @type {SelectionPolicy} */
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
  const standard = (name) => {
    const value = configured.get(`labeling.${name}`);
    return value === undefined ? t('queue.as_configured') : t('queue.standard', { v: String(value) });
  };
  const count = input('draw-count', '20');
  const n = input('draw-n', '', { placeholder: standard('completions_per_set') });
  const overlap = input('draw-overlap', '', { placeholder: standard('overlap') });
  const temperature = input('draw-temperature', '', { placeholder: standard('temperature'), inputmode: 'decimal' });
  const topP = input('draw-top-p', '', { placeholder: standard('top_p'), inputmode: 'decimal' });
  const maxTokens = input('draw-max-tokens', '', { placeholder: standard('max_tokens') });
  const tag = h('input', { id: 'draw-tag', autocomplete: 'off', placeholder: t('queue.any') });
  const again = h('input', { id: 'draw-again', type: 'checkbox' });
  const candidates = input('draw-candidates', '4');
  const a = select('draw-a', active);
  const b = select('draw-b', policies.find((m) => m !== active) ?? active);
  const entrants = policies.slice(0, 40).map((m) => ({ name: m.name, box: h('input', { type: 'checkbox', value: m.name }) }));
  const entered = h(
    'fieldset',
    { id: 'draw-versions', class: 'checks', tabindex: '-1' },
    h('legend', { class: 'hidden-label', text: t('queue.entrants') }),
    entrants.map(({ name, box }) => h('label', { class: 'inline' }, box, h('span', { class: 'mono', text: name }))),
  );
  const certainty = input('draw-certainty', '0.95', { inputmode: 'decimal' });
  const extra = h('div', { class: 'field-grid' });
  const message = h('p', { class: 'form-error', role: 'alert' });
  const choose = () =>
    fill(
      extra,
      field('count', t(policy === 'tournament' ? 'queue.count_most' : 'queue.count'), count),
      policy === 'tournament'
        ? [
            field('versions', t('queue.entrants'), entered, t('queue.entrants_help')),
            field('certainty', t('queue.certainty'), certainty, t('queue.certainty_help')),
          ]
        : null,
      OF_SETS.includes(policy)
        ? null
        : [
            field('n', t(policy === 'stored' ? 'queue.n_most' : 'queue.n'), n, t(policy === 'stored' ? 'queue.n_most_help' : 'queue.n_help')),
            field('overlap', t('queue.overlap'), overlap, t('queue.overlap_help')),
            field('prompts.tag', t('queue.tag'), tag),
          ],
      policy === 'uncertainty' ? field('candidates', t('queue.candidates'), candidates, t('queue.candidates_help')) : null,
      policy === 'versus' ? [field('versions', t('chat.version_a'), a), field('versions[1]', t('chat.version_b'), b)] : null,
      WRITTEN.includes(policy)
        ? [
            field('temperature', t('queue.temperature'), temperature, t('queue.temperature_help')),
            field('top_p', t('queue.top_p'), topP, t('queue.top_p_help')),
            field('max_tokens', t('queue.max_tokens'), maxTokens, t('queue.max_tokens_help')),
          ]
        : null,
      OF_SETS.includes(policy)
        ? null
        : h('label', { class: 'inline', for: 'draw-again' }, again, h('span', null, t('queue.again'))),
    );
  choose();
  const number = (control) => (control.value.trim() === '' ? undefined : Number(control.value));
  const go = h('button', { class: 'primary', type: 'submit', text: t('queue.draw') });
  const form = h(
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
          /** @type {PostBody<'/admin/sets/draw'>} */
          const body = { policy, count: number(count) ?? 0, prompts: { project: projectId() } };
          if (!OF_SETS.includes(policy))
            Object.assign(body, {
              n: number(n),
              overlap: number(overlap),
              prompts: { ...body.prompts, ...(tag.value.trim() ? { tag: tag.value.trim() } : {}), with_sets: again.checked },
            });
          if (WRITTEN.includes(policy))
            Object.assign(body, { temperature: number(temperature), top_p: number(topP), max_tokens: number(maxTokens) });
          if (policy === 'uncertainty') body.candidates = number(candidates);
          if (policy === 'versus') body.versions = [a.value, b.value];
          if (policy === 'tournament')
            Object.assign(body, {
              versions: entrants.filter(({ box }) => box.checked).map(({ name }) => name),
              certainty: number(certainty),
            });
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
      POLICIES.map((p) => {
        const why = obstacle(p, models);
        return h(
          'label',
          { class: `policy${why ? ' off' : ''}` },
          h('input', {
            type: 'radio',
            name: 'policy',
            value: p,
            checked: p === policy,
            disabled: why !== null,
            'aria-describedby': why ? `policy-${p}-why` : null,
            on: {
              change: () => {
                policy = /** @type {SelectionPolicy} */ (p);
                choose();
              },
            },
          }),
          h(
            'span',
            null,
            h('strong', { text: t(`policy.${p}`) }),
            h('span', { class: 'help', text: t(`policy.${p}_help`) }),
            why ? h('span', { class: 'help warn-text', id: `policy-${p}-why`, text: why }) : null,
          ),
        );
      }),
    ),
    extra,
    message,
    h('div', { class: 'actions' }, go),
  );
  return {
    el: form,
    /** Puts a length into the form and shows it. */
    lengthen(tokens) {
      maxTokens.value = String(tokens);
      (maxTokens.isConnected ? maxTokens : form).scrollIntoView({ block: 'center' });
      if (maxTokens.isConnected) maxTokens.focus();
    },
  };
}

/** Sets that wait, those being ranked, and those that nobody is left for; `list` shows the last. */
function waiting(flow, list) {
  return [
    h(
      'p',
      { class: 'muted' },
      t('queue.waiting', { n: flow.sets_open }),
      GAP,
      flow.sets_open ? t('queue.of_these_ranked', { n: flow.leases }) : null,
    ),
    flow.sets_stuck
      ? h(
          'div',
          { class: 'notice', role: 'status' },
          h('p', { text: t('queue.stuck', { n: flow.sets_stuck }) }),
          h('button', { type: 'button', text: t('queue.show_stuck'), on: { click: list } }),
        )
      : null,
  ];
}

/** How far people are with a set: "1 of 2"; sets with a known answer go to everybody. */
const ranked = (s) =>
  s.kind === 'normal' ? t('queue.ranked_of', { done: s.judged, wanted: s.target_overlap }) : t('queue.ranked_no_limit', { n: s.judged });

export async function queueView(el, { signal, query }) {
  const draws = h('div');
  const state = h('div');
  const [models, settings] = await Promise.all([
    get('/admin/models', null, { signal }).then(listOf),
    get('/admin/settings', null, { signal }).then(listOf),
  ]);
  const configured = new Map(settings.map((s) => [s.name, s.value]));

  const again = async (request) => {
    await post('/admin/sets/draw', request);
    await loadDraws();
  };
  const form = drawForm(models, configured, () => loadDraws());
  const one = (d) =>
    h(
      'li',
      null,
      h('span', { class: 'strong', text: policyName(d.request.policy) }),
      h('span', { class: `tag ${d.state === 'done' && d.made < d.wanted ? 'warn' : (DRAW_STATES[d.state] ?? '')}`, text: t(`draw.${d.state}`) }),
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
      drawNotes(d, { again, lengthen: form.lengthen }),
    );
  const loadDraws = async () => {
    const list = listOf(await get('/admin/sets/draws', { limit: 8 }, { signal }));
    if (draws.contains(document.activeElement)) return list;
    fill(
      draws,
      list.length ? h('ul', { class: 'running draws' }, list.map(one)) : h('p', { class: 'muted pad', text: t('queue.no_draws') }),
    );
    return list;
  };
  const remove = async (ids) => {
    if (!(await confirm(t('queue.retire_many', { n: ids.length }), t('queue.retire_text', { n: ids.length }), t('queue.retire'), true)))
      return false;
    await post('/admin/sets/retire', { ids });
    toast(t('queue.retired', { n: ids.length }), { kind: 'good' });
    await loadState();
    return true;
  };
  const option = (prefix, values) => values.map((v) => [v, t(`${prefix}.${v}`)]);
  const sets = listing({
    id: 'sets',
    label: t('queue.sets'),
    load: ({ show, ...asked }) =>
      get('/admin/sets', { ...asked, project: projectId(), disputed: show === 'disputed' ? true : null, stuck: show === 'stuck' ? true : null }, { signal }),
    filters: [
      { name: 'status', label: t('job.state'), options: [['', t('set.any')], ...option('set', ['open', 'done', 'retired'])], value: 'open' },
      { name: 'kind', label: t('queue.kind'), options: [['', t('kind.any')], ...option('kind', ['normal', 'gold', 'calibration'])] },
      { name: 'policy', label: t('queue.policy'), options: [['', t('policy.any')], ...option('policy', [...POLICIES, 'ask', 'versions', 'import'])] },
      { name: 'show', label: t('quality.disagreement'), options: [['', t('queue.all_or_disputed')], ['disputed', t('queue.only_disputed')], ['stuck', t('queue.only_stuck')]] },
    ],
    empty: t('queue.no_sets'),
    columns: [
      [t('queue.prompt')],
      [t('queue.kind')],
      [t('queue.policy')],
      [t('queue.answers'), 'right'],
      [t('queue.ranked'), 'right'],
      [t('job.state')],
      [t('queue.made_at')],
    ],
    row: (s) => [
      promptCell(s.id, s.prompt),
      h('td', null, h('span', { class: `tag ${s.kind === 'normal' ? '' : 'accent'}`, text: t(`kind.${s.kind}`) })),
      h(
        'td',
        { class: 'nowrap' },
        policyName(s.selection_policy),
        Number.isFinite(s.selection_score)
          ? h('span', { class: 'sub', title: t('queue.score'), text: ` ${s.selection_score.toFixed(2)}` })
          : null,
      ),
      h(
        'td',
        { class: 'right nowrap' },
        num(s.completion_ids.length),
        s.cut_off ? h('div', { class: 'sub warn-text', text: t('queue.cut_off', { n: s.cut_off }) }) : null,
      ),
      h(
        'td',
        { class: 'right nowrap' },
        ranked(s),
        s.skipped ? h('div', { class: 'sub', text: t('queue.skipped', { n: s.skipped }) }) : null,
      ),
      h(
        'td',
        { class: 'nowrap' },
        h('span', { class: 'tag', text: t(`set.${s.status}`) }),
        s.held ? h('span', { class: 'tag accent', text: t('queue.held', { n: s.held }) }) : null,
      ),
      h('td', { class: 'nowrap', text: when(s.created) }),
    ],
    bulk: { label: (n) => t('queue.retire_many', { n }), fits: (s) => s.status === 'open', run: remove },
  });
  const listStuck = async () => {
    sets.el.closest('section').scrollIntoView({ block: 'start' });
    await sets.choose({ status: 'open', kind: '', policy: '', show: 'stuck' });
  };
  const loadState = async () => {
    const flow = await get('/admin/api/throughput', { days: 1, project: projectId() }, { signal });
    if (!state.contains(document.activeElement)) fill(state, waiting(flow, listStuck));
  };
  fill(
    el,
    h(
      'header',
      { class: 'view-head' },
      h('h1', { text: t('admin.queue') }),
      h('a', { class: 'button primary', href: '/label', text: t('next.rank') }),
    ),
    state,
    section(t('queue.draw_title'), null, h('p', { class: 'muted', text: t('queue.draw_help') }), form.el),
    section(t('queue.draws'), null, draws),
    section(t('queue.sets'), null, sets.el),
  );
  const [first] = await Promise.all([loadDraws(), query.get('show') === 'stuck' ? listStuck() : sets.restart(), loadState()]);
  const running = (list) => list.some((d) => d.state === 'running');
  const trace = (list) => list.map((d) => `${d.id} ${d.state} ${d.made}`).join();
  let busy = running(first);
  let seen = trace(first);
  let tick = 0;
  // A running draw is looked at every second, so that it is seen to move.
  every(1, signal, async () => {
    tick += 1;
    if (!busy && tick % 3) return;
    const list = await loadDraws();
    busy = running(list);
    // A draw may be over before anybody has seen it run: what was made tells.
    if (trace(list) !== seen) await Promise.all([sets.refresh(), loadState()]);
    else if (tick % 15 === 0) await loadState();
    seen = trace(list);
  });
}

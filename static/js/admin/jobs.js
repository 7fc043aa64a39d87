// Jobs: the list with live progress, search and paging. The form that starts one is in newjob.js.
import { follow, get, listOf, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { duration, has, t, toMs, when } from '../i18n.js';
import { errorText } from '../plain.js';
import { caught, confirm, every, isOver, metricsText, progressBar, progressText, stateTag, table } from './parts.js';

/** @import { JobEventData } from '../contract.d.ts' */

export function jobActions(job, changed) {
  const act = async (path, ask) => {
    if (ask && !(await confirm(...ask))) return;
    try {
      await post(`/admin/jobs/${encodeURIComponent(job.id)}/${path}`);
      await changed();
    } catch (e) {
      toast(errorText(e), { kind: 'bad' });
    }
  };
  if (!isOver(job)) {
    return h('button', {
      type: 'button',
      disabled: job.cancel_requested,
      text: job.cancel_requested ? t('job.stopping') : t('job.cancel'),
      on: {
        click: () =>
          act('cancel', [
            t('job.cancel_title', { name: runName(job) }),
            t(job.state === 'queued' ? 'job.cancel_queued' : 'job.cancel_text'),
            t('job.cancel'),
            true,
            { safe: t(job.state === 'queued' ? 'job.keep_queued' : 'job.keep_running') },
          ]),
      },
    });
  }
  if (job.state === 'failed' || job.state === 'cancelled')
    return h('button', { type: 'button', text: t('job.resume'), on: { click: () => act('resume') } });
  return null;
}

const took = (job) => (job.started && job.finished ? duration((toMs(job.finished) - toMs(job.started)) / 1000) : '');

/** Name of the version that a run published, or null. */
export function madeName(job) {
  const made = job.result?.model ?? job.result?.version ?? job.result?.model_name ?? job.result?.published;
  return (typeof made === 'string' ? made : made?.name) ?? null;
}

/** What a run is called: its name, else what it published, else its recipe and when it began. */
export const runName = (job) => job.name ?? madeName(job) ?? `${recipeName(job.kind)} · ${when(job.started ?? job.created)}`;

/** A recipe's short name in words. */
export const recipeName = (kind) => (has(`recipe_name.${kind}`) ? t(`recipe_name.${kind}`) : kind);

/** Why a run ended badly; cancelling is a state, not an error. */
export const errorOf = (job) => (job.error && job.error !== job.state && job.state !== 'cancelled' ? job.error : null);

function row(job, changed, picked) {
  const args = job.args ?? {};
  const model = [args.model, args.reward_model].filter((x) => typeof x === 'string').join(' + ');
  const made = madeName(job);
  const error = errorOf(job);
  return h(
    'tr',
    null,
    h('td', { class: 'pick' }, job.state === 'queued' ? null : picked.box(job)),
    h(
      'td',
      { class: 'job-name' },
      h('a', { class: 'strong', dir: 'auto', href: `#/jobs/${encodeURIComponent(job.id)}`, text: runName(job) }),
      h('div', { class: 'sub' }, recipeName(job.kind), model ? ' · ' : null, h('span', { class: 'mono', text: model })),
      job.note ? h('div', { class: 'sub note', dir: 'auto', text: job.note }) : null,
      job.tags?.length ? h('div', { class: 'row tags' }, job.tags.map((x) => h('span', { class: 'tag', dir: 'auto', text: x }))) : null,
    ),
    h('td', { class: 'job-state' }, stateTag(job.state)),
    h(
      'td',
      { class: 'job-result' },
      job.state === 'succeeded'
        ? [
            made ? h('a', { href: '#/models', class: 'mono', text: made }) : null,
            h('div', { class: 'sub', text: metricsText(job.result?.metrics ?? job.result, 3) }),
          ]
        : [
            job.state === 'queued' || isOver(job) ? null : progressBar(job),
            h('div', { class: 'sub', text: progressText(job) }),
            error ? h('div', { class: 'sub bad-text job-error', dir: 'auto', text: error }) : null,
          ],
    ),
    h(
      'td',
      { class: 'job-when' },
      h('div', { class: 'nowrap', text: when(job.started ?? job.created) }),
      h('div', { class: 'sub', text: [job.author, took(job)].filter(Boolean).join(' · ') }),
    ),
    h('td', { class: 'right job-act' }, jobActions(job, changed)),
  );
}

/** Runs that are ticked for comparison; their curves are laid over each other. */
function pickedRuns() {
  const ids = new Set();
  const link = h('a', { class: 'button', hidden: true });
  const show = () => {
    link.hidden = ids.size < 2;
    const [first, ...rest] = ids;
    link.href = `#/jobs/${encodeURIComponent(first)}?with=${rest.map(encodeURIComponent).join(',')}`;
    link.textContent = t('job.compare', { n: ids.size });
  };
  return {
    link,
    box(job) {
      const input = h('input', {
        type: 'checkbox',
        checked: ids.has(job.id),
        'aria-label': t('job.pick_name', { name: runName(job), at: when(job.started ?? job.created) }),
      });
      input.addEventListener('change', () => {
        if (input.checked) ids.add(job.id);
        else ids.delete(job.id);
        show();
      });
      return input;
    },
  };
}

/** Rows of one page. */
const PAGE = 25;
const STATES = ['queued', 'running', 'succeeded', 'failed', 'cancelled'];

export async function jobsView(el, { signal }) {
  const list = h('div');
  const compare = h('div', { class: 'row' });
  const picked = pickedRuns();
  fill(compare, picked.link);
  const search = h('input', { id: 'jobs-search', type: 'search', autocomplete: 'off', placeholder: t('job.search_hint') });
  const kind = h('select', { id: 'jobs-kind' }, h('option', { value: '', text: t('job.any_kind') }));
  const state = h(
    'select',
    { id: 'jobs-state' },
    h('option', { value: '', text: t('job.any_state') }),
    STATES.map((s) => h('option', { value: s, text: t(`state.${s}`) })),
  );
  const more = h('button', { type: 'button', hidden: true, text: t('job.more') });
  const extent = h('span', { class: 'muted', role: 'status' });
  fill(
    el,
    h(
      'header',
      { class: 'view-head' },
      h('h1', { text: t('admin.jobs') }),
      h('div', { class: 'row' }, compare, h('a', { class: 'button primary', href: '#/jobs/new', text: t('job.new_one') })),
    ),
    h(
      'form',
      { class: 'filters row', role: 'search', on: { submit: (e) => e.preventDefault() } },
      h('label', { class: 'grow', for: 'jobs-search' }, h('span', { class: 'hidden-label', text: t('job.search') }), search),
      h('label', { for: 'jobs-kind' }, h('span', { class: 'hidden-label', text: t('job.any_kind') }), kind),
      h('label', { for: 'jobs-state' }, h('span', { class: 'hidden-label', text: t('job.any_state') }), state),
    ),
    list,
    h('div', { class: 'row' }, extent, more),
  );
  const opened = Date.now() - 2000;
  const live = new Map(); // job id → AbortController of its event stream
  let jobs = [];
  let shown = PAGE;
  let from = null; // where the list begins, after a search was continued
  let next = null;
  const draw = () => {
    if (document.activeElement?.closest?.('.table-box tr')) return; // leave a focused row alone
    fill(
      list,
      table(
        t('admin.jobs'),
        [
          ['', 'pick', t('job.pick')],
          [t('job.run')],
          [t('job.state')],
          [t('job.result')],
          [t('job.started')],
          ['', 'right'],
        ],
        jobs.map((j) => row(j, load, picked)),
        t(search.value || kind.value || state.value ? 'job.none_found' : 'job.none'),
      ),
    );
  };
  const load = async () => {
    const query = { q: search.value.trim() || null, kind: kind.value || null, state: state.value || null, after: from, limit: shown + 1 };
    const answer = await get('/admin/jobs', query, { signal });
    const found = listOf(answer);
    // A search that ran out of time is continued where it has stopped.
    next = answer.searched_to === null ? null : answer.after;
    extent.textContent = next ? t('list.searched_to', { at: when(answer.searched_to) }) : '';
    more.textContent = t(next ? 'list.search_on' : 'job.more');
    more.hidden = found.length <= shown && !next;
    jobs = found.slice(0, shown);
    draw();
    // a browser keeps few connections per host: stream the first three running jobs, poll the rest
    for (const job of jobs.filter((j) => j.state === 'running').slice(0, 3)) {
      if (live.has(job.id)) continue;
      const stop = new AbortController();
      live.set(job.id, stop);
      signal.addEventListener('abort', () => stop.abort());
      follow(
        `/admin/jobs/${encodeURIComponent(job.id)}/events`,
        (e) => {
          const data = payload(e);
          if (toMs(data.created) < opened) return; // the stream begins with the past, which the list knows
          if (data.kind === 'progress') {
            const known = jobs.find((j) => j.id === job.id);
            if (known && !isOver(known)) {
              known.progress = data.data;
              draw();
            }
          } else if (data.kind === 'state') {
            load().catch(() => {});
          }
        },
        {
          signal: stop.signal,
          onEnd: async () => {
            live.delete(job.id); // the job is over, or `load` finds it running and follows it again
            await load();
            return true;
          },
        },
      );
    }
  };
  const again = caught(async () => {
    shown = PAGE;
    from = null;
    await load();
  });
  let typing;
  search.addEventListener('input', () => {
    clearTimeout(typing);
    typing = setTimeout(again, 250);
  });
  for (const control of [kind, state]) control.addEventListener('change', again);
  more.addEventListener(
    'click',
    caught(async () => {
      if (next) from = next;
      else shown += PAGE;
      more.blur();
      await load();
    }),
  );
  const recipes = listOf(await get('/admin/recipes', null, { signal }));
  kind.append(...recipes.map((r) => h('option', { value: r.name, text: recipeName(r.name) })));
  await load();
  every(8, signal, load);
}

/**
 * A job event's kind and data; an error has no kind of its own.
 * @param {{event: string, data: string}} e
 * @returns {{kind: string, data: any, created?: number}}
 */
export function payload(e) {
  /** @type {JobEventData} */
  let body;
  try {
    body = JSON.parse(e.data);
  } catch {
    return { kind: e.event, data: {} };
  }
  if ('seq' in body) return { kind: body.kind, data: body.data, created: body.created };
  return { kind: e.event, data: body };
}

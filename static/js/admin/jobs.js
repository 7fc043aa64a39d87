// Jobs: the list with live progress, and the form that starts one.
import { follow, get, listOf, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { duration, t, toMs, when } from '../i18n.js';
import { schemaForm } from './form.js';
import { confirm, every, isOver, progressBar, progressText, stateTag, table } from './parts.js';

export function jobActions(job, changed) {
  const act = async (path, ask) => {
    if (ask && !(await confirm(...ask))) return;
    try {
      await post(`/admin/jobs/${encodeURIComponent(job.id)}/${path}`);
      await changed();
    } catch (e) {
      toast(e.message, { kind: 'bad' });
    }
  };
  if (!isOver(job)) {
    return h('button', {
      type: 'button',
      disabled: job.cancel_requested,
      text: job.cancel_requested ? t('job.stopping') : t('job.cancel'),
      on: { click: () => act('cancel', [t('job.cancel_title'), t('job.cancel_text'), t('job.cancel'), true]) },
    });
  }
  if (job.state === 'failed' || job.state === 'cancelled')
    return h('button', { type: 'button', text: t('job.resume'), on: { click: () => act('resume') } });
  return null;
}

const took = (job) => (job.started && job.finished ? duration((toMs(job.finished) - toMs(job.started)) / 1000) : '');

function row(job, changed) {
  const args = job.args ?? {};
  const model = [args.model, args.reward_model].filter((x) => typeof x === 'string').join(' + ');
  return h(
    'tr',
    null,
    h(
      'td',
      null,
      h('a', { class: 'strong', href: `#/jobs/${encodeURIComponent(job.id)}`, text: job.kind }),
      h('div', { class: 'sub mono', text: model }),
    ),
    h(
      'td',
      null,
      stateTag(job.state),
      job.error ? h('div', { class: 'sub bad-text clip', dir: 'auto', title: job.error, text: job.error }) : null,
    ),
    h(
      'td',
      { class: 'job-progress' },
      job.state === 'queued' || (isOver(job) && !job.progress) ? null : progressBar(job),
      h('div', { class: 'sub', text: progressText(job) }),
    ),
    h('td', { class: 'nowrap' }, when(job.started ?? job.created), h('div', { class: 'sub', text: took(job) })),
    h('td', { class: 'right' }, jobActions(job, changed)),
  );
}

export async function jobsView(el, { signal }) {
  const list = h('div');
  const recipes = h('div', { class: 'row' });
  fill(el, h('header', { class: 'view-head' }, h('h1', { text: t('admin.jobs') }), recipes), list);
  const opened = Date.now() - 2000;
  const live = new Map(); // job id → AbortController of its event stream
  let jobs = [];
  const draw = () => {
    const label = document.activeElement?.closest?.('tr') ? null : true; // leave a focused row alone
    if (label)
      fill(
        list,
        table(
          t('admin.jobs'),
          [[t('job.kind')], [t('job.state')], [t('job.progress')], [t('job.started')], ['', 'right']],
          jobs.map((j) => row(j, load)),
          t('job.none'),
        ),
      );
  };
  const load = async () => {
    jobs = listOf(await get('/admin/jobs', null, { signal }));
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
  await load();
  every(8, signal, load);
  const known = listOf(await get('/admin/recipes', null, { signal }));
  fill(
    recipes,
    known.map((r) =>
      h('a', {
        class: 'button',
        href: `#/jobs/new/${encodeURIComponent(r.name)}`,
        title: r.about,
        text: t('job.new', { name: r.name }),
      }),
    ),
  );
}

/** A job event's kind and data, whether the stream sends the whole event or only its data. */
export function payload(e) {
  let body = {};
  try {
    body = JSON.parse(e.data);
  } catch {
    return { kind: e.event, data: {} };
  }
  if (body && typeof body === 'object' && 'data' in body && ('kind' in body || 'seq' in body))
    return { kind: body.kind ?? e.event, data: body.data, created: body.created };
  return { kind: e.event, data: body };
}

/** Fields worth seeing before all others, in this order. */
const FIRST = [
  'model',
  'reward_model',
  'iterations',
  'epochs',
  'max_steps',
  'learning_rate',
  'rollout_batch_size',
  'batch_size',
  'response_length',
  'kl_coef',
  'beta',
  'lora',
  'seed',
];
/** Filled in by the server from the store. */
const HIDDEN = ['output_dir', 'checkpoint_dir', 'resume', 'comparisons', 'demonstrations', 'prompts', 'ptx_demonstrations'];

export async function newJobView(el, { id, signal }) {
  const [recipes, models] = (
    await Promise.all([get('/admin/recipes', null, { signal }), get('/admin/models', null, { signal })])
  ).map(listOf);
  const recipe = recipes.find((r) => r.name === id) ?? recipes[0];
  const usable = models.filter((m) => m.state !== 'retired');
  const active = (kind) => usable.find((m) => m.kind === kind && m.state === 'active');
  const options = (name) => {
    if (name !== 'model' && !/(^|_)model$/.test(name)) return null;
    const kind = name.includes('reward') ? 'reward' : 'policy';
    return usable
      .filter((m) => m.kind === kind)
      .map((m) => ({
        value: m.name,
        text: m.state === 'active' ? `${m.name} (${t('state.active')})` : m.name,
        selected: m === active(kind),
      }));
  };
  const form = schemaForm(recipe.schema, { first: FIRST, hidden: HIDDEN, models: options });
  const message = h('p', { class: 'form-error', role: 'alert' });
  const start = h('button', { class: 'primary', type: 'submit', text: t('job.start', { name: recipe.name }) });
  fill(
    el,
    h(
      'header',
      { class: 'view-head' },
      h('h1', { text: t('job.new', { name: recipe.name }) }),
      h('a', { href: '#/jobs', text: t('job.back') }),
    ),
    h(
      'nav',
      { class: 'segmented recipes', 'aria-label': t('job.recipes') },
      recipes.map((r) =>
        h('a', {
          class: 'button',
          href: `#/jobs/new/${encodeURIComponent(r.name)}`,
          'aria-current': r === recipe ? 'page' : null,
          text: r.name,
        }),
      ),
    ),
    h('p', { class: 'lead', text: recipe.about }),
    h(
      'form',
      {
        class: 'panel job-form',
        novalidate: true,
        on: {
          submit: async (e) => {
            e.preventDefault();
            message.textContent = '';
            let args;
            try {
              args = form.read();
            } catch {
              message.textContent = t('form.fix');
              return;
            }
            start.disabled = true;
            try {
              const answer = await post('/admin/jobs', { kind: recipe.name, args });
              location.hash = `#/jobs/${encodeURIComponent((answer.job ?? answer).id)}`;
            } catch (err) {
              if (form.showError(err.param, err.message)) message.textContent = t('form.fix');
              else message.textContent = err.message;
            } finally {
              start.disabled = false;
            }
          },
        },
      },
      form.el,
      message,
      h('div', { class: 'actions' }, start),
    ),
  );
}

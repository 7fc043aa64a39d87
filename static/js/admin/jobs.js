// Jobs: the list with live progress, and the form that starts one.
import { follow, get, listOf, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { duration, has, t, toMs, when } from '../i18n.js';
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

function row(job, changed, picked) {
  const args = job.args ?? {};
  const model = [args.model, args.reward_model].filter((x) => typeof x === 'string').join(' + ');
  return h(
    'tr',
    null,
    h('td', { class: 'pick' }, job.state === 'queued' ? null : picked.box(job)),
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
        'aria-label': t('job.pick_name', { name: job.kind, at: when(job.started ?? job.created) }),
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

export async function jobsView(el, { signal }) {
  const list = h('div');
  const compare = h('div', { class: 'row' });
  fill(
    el,
    h(
      'header',
      { class: 'view-head' },
      h('h1', { text: t('admin.jobs') }),
      h('div', { class: 'row' }, compare, h('a', { class: 'button primary', href: '#/jobs/new', text: t('job.new_one') })),
    ),
    list,
  );
  const opened = Date.now() - 2000;
  const picked = pickedRuns();
  fill(compare, picked.link);
  const live = new Map(); // job id → AbortController of its event stream
  let jobs = [];
  const draw = () => {
    const label = document.activeElement?.closest?.('tr') ? null : true; // leave a focused row alone
    if (label)
      fill(
        list,
        table(
          t('admin.jobs'),
          [
            ['', 'pick', t('job.pick')],
            [t('job.kind')],
            [t('job.state')],
            [t('job.progress')],
            [t('job.started')],
            ['', 'right'],
          ],
          jobs.map((j) => row(j, load, picked)),
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
    h('p', { class: 'lead', text: has(`recipe.${recipe.name}`) ? t(`recipe.${recipe.name}`) : recipe.about }),
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

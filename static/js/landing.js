// Front page: what this server is, the first walk through the loop as live steps, and where everything is.
import { get, listOf, post } from './api.js';
import { copyText, fill, h, toast } from './dom.js';
import { num, t } from './i18n.js';
import { errorText } from './plain.js';
import { currentSession, shell } from './shell.js';

/** Judgments of one's own that the walk asks for. */
const TO_RANK = 10;
const EVERY_SECONDS = 4;

const page = shell('home');
const status = h('p', { class: 'landing-status', role: 'status' });
const steps = h('ol', { class: 'steps', 'aria-label': t('home.steps') });

const door = (href, key) =>
  h(
    'a',
    { class: 'door', href },
    h('strong', { text: t(`home.${key}`) }),
    h('span', { class: 'muted', text: t(`home.${key}_text`) }),
  );

function example(name) {
  const body = JSON.stringify({ model: name, messages: [{ role: 'user', content: 'Hello!' }] });
  return `curl ${location.origin}/v1/chat/completions \\\n  -H 'content-type: application/json' \\\n  -d '${body}'`;
}

const code = h('pre', { class: 'code-block', tabindex: '0', 'aria-label': t('home.example') });
const copy = h('button', { type: 'button', text: t('copy'), on: { click: () => copyText(code.textContent, copy) } });

fill(
  page.main,
  h(
    'div',
    { class: 'landing' },
    h(
      'div',
      { class: 'landing-head' },
      h('h1', { text: t('home.title') }),
      h('p', { class: 'lead', text: t('home.lead') }),
      status,
    ),
    h('section', { class: 'panel walk' }, h('h2', { text: t('home.steps') }), steps),
    h('div', { class: 'doors' }, door('/label', 'label'), door('/chat', 'chat'), door('/admin', 'admin'), door('/explore', 'explore')),
    h(
      'section',
      { class: 'landing-api' },
      h('div', { class: 'block-head' }, h('h2', { text: t('home.api') }), copy),
      code,
      h(
        'p',
        { class: 'landing-status' },
        h('a', { href: '/docs', text: t('home.docs') }),
        h('a', { href: '/openapi.json', text: 'OpenAPI' }),
      ),
    ),
  ),
);
code.textContent = example('MODEL');

/** What the server knows about the walk; what this person may not see stays undefined. */
async function progress() {
  const me = await currentSession();
  if (!me) return { me: null };
  const admin = me.role === 'admin';
  const [own, overview, models, draws] = await Promise.all([
    get('/v1/label/me').catch(() => undefined),
    admin ? get('/admin/api/overview').catch(() => undefined) : undefined,
    admin ? get('/admin/models').catch(() => undefined) : undefined,
    admin ? get('/admin/sets/draws', { limit: 1 }).catch(() => undefined) : undefined,
  ]);
  const drawing = Boolean(draws && listOf(draws)[0]?.state === 'running');
  return { me, admin, own, overview, models: models && listOf(models), drawing };
}

/**
 * One step: [key, done, detail, action or link]. `action` is an element or null.
 * @param {any} known what `progress` found
 */
function stepsOf({ me, admin, own, overview, models, drawing }) {
  const link = (href, key) => h('a', { class: 'button', href, text: t(`home.step_${key}_go`) });
  const ranked = Math.min(own?.done_total ?? 0, TO_RANK);
  const trained = (models ?? []).filter((m) => m.job_id);
  const running = (overview?.running_jobs ?? [])[0];
  const reward = trained.find((m) => m.kind === 'reward');
  const better = trained.find((m) => m.kind === 'policy');
  const waiting = (what) => (running?.kind === 'reward') === (what === 'reward') && running;
  const job = (what) =>
    waiting(what) && h('a', { class: 'button', href: `/admin#/jobs/${running.id}`, text: t('home.step_running_go') });
  const list = [['sign_in', Boolean(me), me ? t('home.step_signed_in', { name: me.name }) : null, link('/label', 'sign_in')]];
  if (!me || admin) list.push(['sample', (overview?.counts?.prompts ?? 0) > 0, null, me ? sampleButton() : null]);
  const idle = ranked < TO_RANK && own ? nothingToRank({ admin, own, overview, drawing }) : null;
  const count = me ? t('home.step_ranked', { n: ranked, of: TO_RANK }) : null;
  const draw = idle === 'draw' ? link('/admin#/queue', 'rank_draw') : null;
  list.push(['rank', ranked >= TO_RANK, idle ? `${count} ${t(`home.rank_${idle}`)}` : count, idle ? draw : me && link('/label', 'rank')]);
  if (!me || admin) {
    list.push(['train', Boolean(reward), reward?.name, me && (job('reward') || link('/admin#/jobs/new/reward', 'train'))]);
    list.push(['improve', Boolean(better), better?.name, me && (job('policy') || link('/admin#/jobs/new/ppo', 'improve'))]);
    list.push(['compare', false, null, better ? link('/admin#/models', 'compare') : null]);
  }
  return list;
}

/** Why this person has nothing to rank now: the end of a key of words; null while there is something. */
function nothingToRank({ admin, own, overview, drawing }) {
  if (own.queue_open > 0 || own.onboarding) return null;
  if (own.quota_left === 0) return 'quota';
  if (!admin) return 'wait';
  if (drawing) return 'drawing';
  return (overview?.counts?.prompts ?? 0) > 0 ? 'draw' : 'no_prompts';
}

function sampleButton() {
  const button = h('button', { type: 'button', text: t('home.step_sample_go') });
  button.addEventListener('click', async () => {
    button.disabled = true;
    try {
      const done = await post('/admin/sample-data', {});
      toast(t('home.sample_done', { n: num(done.imported) }), { kind: 'good' });
      await show();
    } catch (e) {
      toast(errorText(e), { kind: 'bad', seconds: 10 });
      button.disabled = false;
    }
  });
  return button;
}

async function show() {
  const known = await progress();
  page.setUser(known.me);
  const list = stepsOf(known);
  const next = list.findIndex(([, done]) => !done);
  fill(
    steps,
    list.map(([key, done, detail, action], i) =>
      h(
        'li',
        { class: `step ${done ? 'done' : i === next ? 'next' : ''}`, 'aria-current': i === next ? 'step' : null },
        h(
          'div',
          null,
          h('strong', { text: t(`home.step_${key}`) }),
          done ? h('span', { class: 'hidden-label', text: t('home.step_done') }) : null,
          h('p', { class: 'muted', text: t(`home.step_${key}_why`) }),
          detail ? h('p', { class: 'step-detail', dir: 'auto', text: detail }) : null,
        ),
        done ? null : action,
      ),
    ),
  );
}

show().catch((e) => fill(steps, h('li', { class: 'step', text: errorText(e) })));
setInterval(() => {
  // Never pulls a focused control away.
  if (!document.hidden && !steps.contains(document.activeElement)) show().catch(() => {});
}, EVERY_SECONDS * 1000);

get('/v1/models')
  .then((answer) => {
    const models = listOf(answer);
    const active = models.find((m) => m.instructd.state === 'active') ?? models[0];
    if (active) code.textContent = example(active.id);
    fill(
      status,
      h('span', { class: 'tag good', text: t('home.ready') }),
      active ? h('span', { class: 'mono', text: active.id }) : null,
    );
  })
  .catch((e) => fill(status, h('span', { class: 'tag warn', text: t('home.not_ready') }), h('span', { text: e.message })));

// Try-it page: streamed chat with any version, thumbs, and "two answers" that become a ranking.
import { ApiError, events, get, listOf, newKey, post } from './api.js';
import { fill, h, icon, keep, toast, userText } from './dom.js';
import { t } from './i18n.js';
import { richText } from './richtext.js';
import { currentSession, shell, signIn } from './shell.js';

const page = shell('chat');
document.body.classList.add('chat-page');

const kept = keep.get('instructd.chat.settings') ?? {};
const settings = { model: '', temperature: 0.8, max_tokens: 256, system: '', two: false, ...kept };
/** `{role, content}` plus, for answers, `{ids, model}`. */
let turns = [];
let running = null; // AbortController of the answer being written
let labeler = null;

const field = (id, label, input, help) =>
  h('div', { class: 'field' }, h('label', { for: id, text: label }), input, help ? h('p', { class: 'help', text: help }) : null);
const changed = (name, read) => ({
  change: (e) => ((settings[name] = read(e.target)), keep.set('instructd.chat.settings', settings)),
});

const model = h(
  'select',
  { id: 'chat-model', on: changed('model', (el) => el.value) },
  h('option', { value: '', text: t('chat.active') }),
);
const temperature = h('input', {
  id: 'chat-temperature',
  type: 'number',
  min: '0',
  max: '2',
  step: '0.1',
  value: settings.temperature,
  on: changed('temperature', (el) => el.valueAsNumber),
});
const maxTokens = h('input', {
  id: 'chat-max',
  type: 'number',
  min: '1',
  step: '1',
  value: settings.max_tokens,
  on: changed('max_tokens', (el) => el.valueAsNumber),
});
const system = h('textarea', {
  id: 'chat-system',
  rows: '3',
  dir: 'auto',
  value: settings.system,
  on: changed('system', (el) => el.value),
});
const two = h('input', { id: 'chat-two', type: 'checkbox', checked: settings.two, on: changed('two', (el) => el.checked) });

const thread = h('div', { class: 'thread', role: 'log', 'aria-live': 'polite', 'aria-label': t('chat.thread') });
const input = h('textarea', {
  id: 'chat-input',
  rows: '1',
  dir: 'auto',
  'aria-label': t('chat.input'),
  placeholder: t('chat.input'),
});
const send = h('button', { class: 'primary', type: 'submit', text: t('chat.send') });
const form = h('form', null, input, send);
const panel = h(
  'details',
  { class: 'settings', open: innerWidth > 900 },
  h('summary', { text: t('chat.settings') }),
  h(
    'div',
    { class: 'settings-body' },
    field('chat-model', t('chat.model'), model),
    h(
      'label',
      { class: 'inline', for: 'chat-two' },
      two,
      h('span', null, t('chat.two'), h('span', { class: 'help', text: ` ${t('chat.two_help')}` })),
    ),
    h(
      'div',
      { class: 'pair-fields' },
      field('chat-temperature', t('chat.temperature'), temperature),
      field('chat-max', t('chat.max'), maxTokens),
    ),
    field('chat-system', t('chat.system'), system),
    h('button', { type: 'button', text: t('chat.new'), on: { click: reset } }),
  ),
);
fill(
  page.main,
  h(
    'div',
    { class: 'talk' },
    thread,
    h('div', { class: 'composer' }, form, h('p', { class: 'help', text: t('chat.enter_help') })),
  ),
  panel,
);
const wide = matchMedia('(min-width: 901px)');
wide.addEventListener('change', () => (panel.open = wide.matches));

const hello = () => h('div', { class: 'hello' }, h('h1', { text: t('chat.hello') }), h('p', { text: t('chat.hello_text') }));

function reset() {
  running?.abort();
  turns = [];
  fill(thread, hello());
  input.focus();
}

const nearEnd = () => window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 120;
const toEnd = () => window.scrollTo(0, document.documentElement.scrollHeight);

function messages() {
  const list = turns.map(({ role, content }) => ({ role, content }));
  return settings.system.trim() ? [{ role: 'system', content: settings.system.trim() }, ...list] : list;
}

function busy(on) {
  send.textContent = on ? t('chat.stop') : t('chat.send');
  send.classList.toggle('primary', !on);
}

function showUser(content) {
  thread.querySelector('.hello')?.remove();
  thread.append(h('div', { class: 'msg user' }, userText({ content })));
  toEnd();
}

async function ask() {
  const content = input.value.trim();
  if (content === '') return;
  input.value = '';
  turns.push({ role: 'user', content });
  showUser(content);
  running = new AbortController();
  busy(true);
  try {
    await signedIn(settings.two ? duel : stream); // a server may want a key for inference, too
  } catch (e) {
    if (e.name !== 'AbortError') {
      turns.pop(); // the question can be sent again as it was
      thread.lastElementChild?.matches('.user') && thread.lastElementChild.remove();
      input.value = content;
      toast(e.message, { kind: 'bad', seconds: 10 });
    }
  } finally {
    running = null;
    busy(false);
    input.focus();
  }
}

async function stream() {
  const body = h('div', { class: 'waiting' });
  const meta = h('div', { class: 'meta' });
  const el = h('div', { class: 'msg assistant', 'aria-busy': 'true' }, body, meta);
  const answer = { role: 'assistant', content: '', ids: [], model: '' };
  const started = performance.now();
  let tokens = 0;
  let finish = null;
  let painted = true;
  const paint = () => {
    painted = true;
    const follow = nearEnd();
    fill(body, richText(answer.content));
    if (follow) toEnd();
  };
  thread.append(el);
  try {
    const request = {
      messages: messages(),
      stream: true,
      stream_options: { include_usage: true },
      ...(settings.model ? { model: settings.model } : {}),
      ...(Number.isFinite(settings.temperature) ? { temperature: settings.temperature } : {}),
      ...(settings.max_tokens >= 1 ? { max_tokens: settings.max_tokens } : {}),
    };
    for await (const e of events('POST', '/v1/chat/completions', { body: request, signal: running.signal })) {
      if (e.data === '[DONE]') break;
      const chunk = JSON.parse(e.data);
      if (chunk.error) throw new ApiError(500, chunk);
      if (chunk.model) answer.model = chunk.model;
      const ids = chunk.instructd?.completion_ids?.filter(Boolean) ?? []; // none for an empty text
      if (ids.length) answer.ids = ids;
      if (chunk.usage) tokens = chunk.usage.completion_tokens;
      const choice = chunk.choices?.[0];
      if (choice?.finish_reason) finish = choice.finish_reason;
      if (choice?.delta?.content) {
        answer.content += choice.delta.content;
        if (painted) {
          painted = false;
          requestAnimationFrame(paint); // many tokens, one paint
        }
      }
    }
  } catch (e) {
    if (e.name !== 'AbortError' || answer.content === '') {
      el.remove();
      throw e;
    }
    finish = 'abort';
  }
  paint();
  body.classList.remove('waiting');
  el.removeAttribute('aria-busy');
  turns.push(answer);
  const seconds = (performance.now() - started) / 1000;
  fill(
    meta,
    answer.ids.length ? thumbs(answer.ids[0]) : null,
    answer.model ? h('span', { class: 'mono', text: answer.model }) : null,
    tokens ? h('span', { text: t('chat.pace', { n: tokens, r: (tokens / seconds).toFixed(1) }) }) : null,
    finish === 'length' ? h('span', { class: 'tag warn', text: t('chat.cut') }) : null,
  );
  if (nearEnd()) toEnd();
}

/** Runs `fn`; on 401 asks to sign in first and runs it again. */
async function signedIn(fn) {
  try {
    return await fn();
  } catch (e) {
    if (e.status !== 401) throw e;
    const box = h('div');
    const overlay = h('dialog', { 'aria-label': t('sign.title') }, box);
    document.body.append(overlay);
    overlay.showModal();
    const done = signIn(box, { note: t('sign.why_label') });
    const closed = new Promise((resolve) => overlay.addEventListener('close', () => resolve(null)));
    labeler = await Promise.race([done, closed]);
    overlay.remove();
    if (!labeler) throw e;
    page.setUser(labeler);
    return fn();
  }
}

function thumbs(id) {
  const buttons = ['up', 'down'].map((name) =>
    h(
      'button',
      {
        class: 'icon-button',
        type: 'button',
        'aria-label': t(`chat.thumb_${name}`),
        title: t(`chat.thumb_${name}`),
        'aria-pressed': 'false',
        on: {
          click: async () => {
            try {
              await signedIn(() =>
                post('/v1/feedback', { completion_id: id, kind: 'thumb', value: name, idempotency_key: newKey() }),
              );
              buttons.forEach((b, i) => b.setAttribute('aria-pressed', String(['up', 'down'][i] === name)));
            } catch (e) {
              toast(e.message, { kind: 'bad' });
            }
          },
        },
      },
      icon(name),
    ),
  );
  return h('span', { class: 'row thumbs' }, buttons);
}

/** Two answers to the same question; the vote is stored and the better one carries the conversation on. */
async function duel() {
  const box = h('div', { class: 'duel' }, h('p', { class: 'muted waiting', text: t('ask.writing', { n: 2 }) }));
  thread.append(box);
  toEnd();
  let set;
  try {
    set = await signedIn(() =>
      post(
        '/v1/comparison-sets',
        {
          messages: messages(),
          n: 2,
          sampling: {
            ...(Number.isFinite(settings.temperature) ? { temperature: settings.temperature } : {}),
            ...(settings.max_tokens >= 1 ? { max_tokens: settings.max_tokens } : {}),
          },
        },
        { signal: running.signal },
      ),
    );
    set = set.set ?? set;
    // the shown order is drawn by the server when it hands the set out; texts may come only then
    if (!set.completions?.every?.((c) => typeof c.text === 'string'))
      set = { ...set, ...(await get('/v1/label/next', { set_id: set.id ?? set.set_id })) };
  } catch (e) {
    box.remove();
    throw e;
  }
  const shown = set.completions;
  const started = performance.now();
  await new Promise((resolve) => {
    const choose = async (tiers, winner) => {
      controls.querySelectorAll('button').forEach((b) => (b.disabled = true));
      try {
        const key = newKey();
        const answer = set.assignment_id
          ? await post(`/v1/label/${encodeURIComponent(set.assignment_id)}/judgment`, {
              lease_token: set.lease_token,
              outcome: tiers ? 'ranked' : 'all_bad',
              items: tiers ? shown.map((c, i) => ({ completion_id: c.id, tier: tiers[i] })) : [],
              active_ms: Math.round(performance.now() - started),
              wall_ms: Math.round(performance.now() - started),
              idempotency_key: key,
            })
          : await signedIn(() =>
              post('/v1/comparisons', {
                set_id: set.id ?? set.set_id,
                completions: shown.map((c, i) => ({ completion_id: c.id, tier: tiers ? tiers[i] : 0 })),
                ...(tiers ? {} : { outcome: 'all_bad' }),
                idempotency_key: key,
              }),
            );
        const models = (answer?.reveal ?? []).map((r) => (typeof r.model === 'string' ? r.model : r.model?.name)).filter(Boolean);
        const el = h(
          'div',
          { class: 'msg assistant' },
          richText(shown[winner].text),
          h(
            'div',
            { class: 'meta' },
            h('span', { class: 'tag good', text: t('chat.vote_stored') }),
            models.length ? h('span', { class: 'mono', text: [...new Set(models)].join(' · ') }) : null,
          ),
        );
        box.replaceWith(el);
        turns.push({ role: 'assistant', content: shown[winner].text, ids: [shown[winner].id] });
        resolve();
      } catch (e) {
        toast(e.message, { kind: 'bad' });
        controls.querySelectorAll('button').forEach((b) => (b.disabled = false));
      }
    };
    const button = (text, fn) => h('button', { type: 'button', text, on: { click: fn } });
    const controls = h(
      'div',
      { class: 'row', role: 'group', 'aria-label': t('label.verdict') },
      button(t('label.a_better'), () => choose([0, 1], 0)),
      button(t('label.tie'), () => choose([0, 0], 0)),
      button(t('label.b_better'), () => choose([1, 0], 1)),
      button(t('label.both_bad'), () => choose(null, 0)),
    );
    fill(
      box,
      h(
        'div',
        { class: 'duel-texts' },
        shown.map((c, i) => h('div', { class: 'duel-text' }, h('h2', { text: t('label.answer', { x: 'AB'[i] }) }), userText(c))),
      ),
      controls,
    );
    busy(true);
    toEnd();
    running?.signal.addEventListener('abort', () => {
      box.remove();
      turns.pop();
      resolve();
    });
  });
}

form.addEventListener('submit', (e) => {
  e.preventDefault();
  if (running) running.abort();
  else ask();
});
input.addEventListener('keydown', (e) => {
  if (e.key === 'Enter' && !e.shiftKey && !e.isComposing) {
    e.preventDefault();
    if (!running) ask();
  }
});

reset();
currentSession()
  .then((who) => page.setUser((labeler = who)))
  .catch(() => {});
get('/v1/models')
  .then((answer) => {
    for (const m of listOf(answer)) model.append(h('option', { value: m.id, text: m.id }));
    model.value = settings.model;
    if (model.value !== settings.model) model.value = settings.model = ''; // that version is gone
  })
  .catch((e) => toast(e.message, { kind: 'bad' }));

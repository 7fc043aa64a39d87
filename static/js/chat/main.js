// Try-it page: streamed chat with any version, thumbs, two answers that become a ranking, two versions side by side.
import { newKey, post } from '../api.js';
import { fill, h, icon, toast, userText } from '../dom.js';
import { keyOf } from '../keys.js';
import { t } from '../i18n.js';
import { errorText } from '../plain.js';
import { richText } from '../richtext.js';
import { currentSession, shell, signIn } from '../shell.js';
import { openDuel, rankedDuel } from './duel.js';
import { settingsPanel } from './settings.js';
import { forgetThread, keepThread, keptThread } from './kept.js';
import { showCode } from './code.js';
import { sampling, streamAnswer } from './talk.js';

const page = shell('chat');
document.body.classList.add('chat-page');

/** `{role, content}`, and for answers what stood below them. */
let turns = [];
/** The version that answered first, where the settings name none: a conversation has one speaker, canary or not. */
let speaker = null;
let running = null; // AbortController of what is being written
let choosing = null; // `{skip()}` while two finished answers wait to be ranked
let labeler = null;

const { settings, el: panel, load } = settingsPanel({
  onNew: reset,
  onCode: () => showCode({ messages: messages(), model: modelName(), sampling: sampling(settings) }),
});
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

function hello() {
  const tries = ['chat.try_1', 'chat.try_2', 'chat.try_3'].map((key) =>
    h('button', {
      type: 'button',
      class: 'chip',
      text: t(key),
      on: {
        click: () => {
          input.value = t(key);
          input.focus();
        },
      },
    }),
  );
  return h(
    'div',
    { class: 'hello' },
    h('h1', { text: t('chat.hello') }),
    h('p', { text: t('chat.hello_text') }),
    h('div', { class: 'row tries' }, tries),
  );
}

function reset() {
  running?.abort();
  choosing?.skip();
  turns = [];
  speaker = null;
  forgetThread();
  fill(thread, hello());
  input.focus();
}

/** Shows the conversation of before a reload. */
function restore() {
  const kept = keptThread();
  if (!kept) return;
  ({ turns, speaker } = kept);
  fill(
    thread,
    turns.map((turn) =>
      turn.role === 'user'
        ? question(turn)
        : h(
            'div',
            { class: 'answer-place' },
            h('div', { class: 'msg assistant' }, richText(turn.content), h('div', { class: 'meta' }, turn.said ? foot(turn.said) : null)),
          ),
    ),
  );
  toEnd();
}

const modelName = () => settings.model || speaker || undefined;

/** A question with a button that takes the conversation back to it. */
function question(turn) {
  const before = turns.indexOf(turn); // an empty answer takes the turn out of `turns` later
  const edit = h('button', {
    class: 'link edit',
    type: 'button',
    text: t('chat.edit'),
    on: {
      click: () => {
        if (running) return;
        choosing?.skip();
        turns.length = Math.min(turns.length, before);
        while (thread.lastElementChild !== el) thread.lastElementChild.remove();
        el.remove();
        keep();
        if (!thread.children.length) thread.append(hello());
        input.value = turn.content;
        input.focus();
      },
    },
  });
  const el = h('div', { class: 'msg user' }, userText({ content: turn.content }), edit);
  return el;
}

const keep = () => keepThread({ turns, speaker });

const nearEnd = () => window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 120;
const toEnd = () => window.scrollTo(0, document.documentElement.scrollHeight);

function messages() {
  const spoken = turns.map(({ role, content }) => ({ role, content }));
  return settings.system.trim() ? [{ role: 'system', content: settings.system.trim() }, ...spoken] : spoken;
}

function busy(on) {
  send.textContent = on ? t('chat.stop') : t('chat.send');
  send.classList.toggle('primary', !on);
}

async function ask() {
  const content = input.value.trim();
  if (content === '') return;
  input.value = '';
  // Asking on without a vote leaves the two answers unranked and goes on with the first.
  if (choosing) {
    choosing.skip();
    await choosing?.over;
  }
  turns.push({ role: 'user', content });
  thread.querySelector('.hello')?.remove();
  thread.append(question(turns.at(-1)));
  toEnd();
  await answer();
}

/** Nothing is being written any more. */
function stopped() {
  running = null;
  busy(false);
}

/** Answers the last question; what fails is told in its place, with a button that tries again. */
async function answer() {
  const place = h('div', { class: 'answer-place' });
  thread.append(place);
  running = new AbortController();
  const { signal } = running;
  busy(true);
  try {
    const how = { one: single, two: duel, versions }[settings.mode];
    const said = await signedIn(() => how(place, signal));
    if (said?.text) {
      turns.push({ role: 'assistant', content: said.text, said: said.ids ? said : undefined });
      speaker ??= settings.mode === 'one' && !settings.model ? (said.model ?? null) : null;
    } else if (said === null) takeBack(place);
    else turns.pop(); // an empty answer is shown as such, and the conversation goes on without it
    keep();
  } catch (e) {
    if (e.name === 'AbortError') takeBack(place);
    else
      fill(
        place,
        h(
          'div',
          { class: 'notice bad', role: 'alert' },
          h('p', { text: errorText(e) }),
          h('button', {
            type: 'button',
            text: t('retry'),
            on: {
              click: () => {
                place.remove();
                if (!running) answer();
              },
            },
          }),
        ),
      );
  } finally {
    if (running?.signal === signal) stopped();
    if (nearEnd()) toEnd();
  }
}

/** Nothing was answered: the question goes back into the field, to be changed and sent again. */
function takeBack(place) {
  place.remove();
  if (turns.at(-1)?.role !== 'user') return;
  const asked = turns.pop();
  if (thread.lastElementChild?.matches('.msg.user')) thread.lastElementChild.remove();
  if (input.value === '') input.value = asked.content;
  if (!thread.children.length) thread.append(hello());
}

async function single(place, signal) {
  const body = h('div', { class: 'waiting' });
  const meta = h('div', { class: 'meta' });
  const el = h('div', { class: 'msg assistant', 'aria-busy': 'true' }, body, meta);
  fill(place, el);
  let text = '';
  let painted = true;
  const paint = () => {
    painted = true;
    const follow = nearEnd();
    fill(body, richText(text));
    if (follow) toEnd();
  };
  const said = await streamAnswer({
    messages: messages(),
    model: modelName(),
    sampling: sampling(settings),
    signal,
    onText: (all) => {
      text = all;
      if (painted) {
        painted = false;
        requestAnimationFrame(paint); // many tokens, one paint
      }
    },
  });
  text = said.text;
  paint();
  body.classList.remove('waiting');
  el.removeAttribute('aria-busy');
  if (text.trim() === '') fill(body, h('p', { class: 'muted', text: t('chat.empty') }));
  fill(meta, foot(said), again(place, turns.at(-1)));
  return { ...said, text };
}

/** A button that draws the last answer again. `question` is the turn that it answers. */
function again(place, question) {
  return h('button', {
    class: 'link again',
    type: 'button',
    text: t('chat.again'),
    on: {
      click: () => {
        if (running || thread.lastElementChild !== place) return;
        if (turns.at(-1)?.role === 'assistant') turns.pop();
        else if (turns.at(-1) !== question) turns.push(question); // an empty answer took its question with it
        place.remove();
        answer();
      },
    },
  });
}

/** Below an answer: thumbs, copy, who wrote it, how fast, why it ended. */
function foot(said) {
  const copy = h(
    'button',
    { class: 'icon-button', type: 'button', 'aria-label': t('chat.copy'), title: t('chat.copy') },
    icon('copy'),
  );
  copy.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(said.text);
      toast(t('copied'), { seconds: 2 });
    } catch {
      toast(t('copy_by_hand'), { seconds: 4 }); // no clipboard outside https
    }
  });
  return [
    said.ids.length ? thumbs(said.ids[0]) : null,
    said.text ? copy : null,
    said.model ? h('span', { class: 'mono', text: said.model }) : null,
    said.tokens ? h('span', { text: t('chat.pace', { n: said.tokens, r: (said.tokens / said.seconds).toFixed(1) }) }) : null,
    said.finish === 'length' ? h('span', { class: 'tag warn', text: t('chat.cut') }) : null,
    said.finish === 'abort' ? h('span', { class: 'tag', text: t('chat.stopped') }) : null,
  ];
}

async function duel(place, signal) {
  return ranked(place, signal, { n: 2 });
}

async function versions(place, signal) {
  const models = [settings.a, settings.b];
  if (settings.blind) return ranked(place, signal, { models });
  const box = h('div', { class: 'duel' });
  fill(place, box);
  toEnd();
  const request = { messages: messages(), sampling: sampling(settings) };
  return { text: (await openDuel(box, { models, request, signal, foot })).text };
}

async function ranked(place, signal, which) {
  const box = h('div', { class: 'duel' }, h('p', { class: 'muted waiting', text: t('ask.writing', { n: 2 }) }));
  fill(place, box);
  toEnd();
  const request = { messages: messages(), sampling: sampling(settings), ...which };
  let settle;
  const over = new Promise((done) => (settle = done));
  try {
    return await rankedDuel(box, {
      request,
      signal,
      onWritten: (skip) => {
        choosing = { skip, over };
        stopped(); // both answers stand: there is nothing to stop, and no key deletes them
      },
    });
  } finally {
    choosing = null;
    setTimeout(settle); // after the turn has been taken into the conversation
  }
}

/** Runs `fn`; on 401 asks to sign in first and runs it again. */
async function signedIn(fn) {
  try {
    return await fn();
  } catch (e) {
    if (e.status !== 401) throw e;
    const box = h('div');
    const overlay = h(
      'dialog',
      { class: 'sign-dialog', 'aria-label': t('sign.title') },
      h(
        'button',
        { class: 'icon-button', type: 'button', 'aria-label': t('close'), on: { click: () => overlay.close() } },
        icon('close'),
      ),
      box,
    );
    document.body.append(overlay);
    overlay.showModal();
    const done = signIn(box, { note: t('sign.why_label') });
    const closed = new Promise((resolve) => overlay.addEventListener('close', () => resolve(null)));
    labeler = await Promise.race([done, closed]);
    overlay.remove();
    if (!labeler) throw e;
    page.setUser(labeler);
    await load();
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
              toast(errorText(e), { kind: 'bad' });
            }
          },
        },
      },
      icon(name),
    ),
  );
  return h('span', { class: 'row thumbs' }, buttons);
}

form.addEventListener('submit', (e) => {
  e.preventDefault();
  if (running) running.abort();
  else ask();
});
input.addEventListener('keydown', (e) => {
  if (keyOf(e) === 'Enter' && !e.shiftKey) {
    e.preventDefault();
    if (!running) ask();
  }
});
document.addEventListener('keydown', (e) => keyOf(e) === 'Escape' && running?.abort());

fill(thread, hello());
restore();
input.focus();
currentSession()
  .then((who) => page.setUser((labeler = who)))
  .catch(() => {});
load().catch((e) => toast(errorText(e), { kind: 'bad' }));

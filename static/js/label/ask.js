// "Ask anything, rank the answers": a question, answers that stream in side by side, then the set to rank.
import { streamSet } from '../chat/talk.js';
import { fill, h, plainText, turnItem } from '../dom.js';
import { t } from '../i18n.js';
import { keyOf } from '../keys.js';
import { errorText } from '../plain.js';
import { letter } from './ballot.js';

/**
 * The question form; `onAsk({content, n, sampling})`; `sampling` holds what was filled in.
 * @param {(asked: {content: string, n: number, sampling: any}) => void} onAsk
 * @param {{content?: string, n?: number, sampling?: {temperature?: number, max_tokens?: number}, problem?: string}} [options]
 */
export function askForm(onAsk, { content = '', n: chosen = 2, sampling: how = {}, problem = '' } = {}) {
  const text = h('textarea', { id: 'ask-text', rows: '4', dir: 'auto', placeholder: t('ask.placeholder'), value: content });
  const n = h(
    'select',
    { id: 'ask-n' },
    [2, 3, 4, 5, 6, 7, 8, 9].map((k) => h('option', { value: k, selected: k === chosen, text: k })),
  );
  const field = (id, value, mode) => h('input', { id, value: String(value ?? ''), inputmode: mode, autocomplete: 'off', size: '7', placeholder: t('ask.standard') });
  const temperature = field('ask-temperature', how.temperature, 'decimal');
  const length = field('ask-max-tokens', how.max_tokens, 'numeric');
  const error = h('p', { class: 'form-error', role: 'alert', text: problem });
  const form = h(
    'form',
    {
      class: 'panel ask',
      on: {
        submit: (e) => {
          e.preventDefault();
          const asked = text.value.trim();
          if (asked === '') return void ((error.textContent = t('ask.empty')), text.focus());
          const sampling = {};
          for (const [name, input] of Object.entries({ temperature, max_tokens: length })) {
            const value = Number(input.value);
            if (input.value.trim() === '') continue;
            const fits = name === 'temperature' ? value >= 0 && value <= 2 : Number.isInteger(value) && value >= 1;
            if (!fits) return void ((error.textContent = t(`ask.bad_${name}`)), input.focus());
            sampling[name] = value;
          }
          onAsk({ content: asked, n: Number(n.value), sampling });
        },
      },
    },
    h('div', { class: 'field' }, h('label', { for: 'ask-text', text: t('ask.label') }), text),
    h(
      'div',
      { class: 'row' },
      h('label', { class: 'inline', for: 'ask-n' }, h('span', { text: t('ask.n') }), n),
      h('label', { class: 'inline', for: 'ask-temperature' }, h('span', { text: t('queue.temperature') }), temperature),
      h('label', { class: 'inline', for: 'ask-max-tokens' }, h('span', { text: t('queue.max_tokens') }), length),
      h('span', { class: 'grow' }),
      h('button', { class: 'primary', type: 'submit', text: t('ask.go') }),
    ),
    error,
  );
  text.addEventListener('keydown', (e) => {
    if (keyOf(e) === 'Enter' && (e.ctrlKey || e.metaKey)) form.requestSubmit();
  });
  return form;
}

/**
 * Fills `host` with the answers as they are written. Resolves with the leased set, whose answers stand in the
 * places where they were written; null when stopped. In a conversation, `earlier` are the messages before the new one, and
 * `next` names the set and the answer that it goes on with.
 * @param {HTMLElement} host
 * @param {{content: string, n: number, sampling?: any, earlier?: any[], next?: {set_id: string, completion_id: string}}} asked
 */
export async function writeAnswers(host, { content, n, sampling, earlier = [], next }) {
  const stop = new AbortController();
  const bodies = Array.from({ length: n }, () => h('div', { class: 'answer-body waiting' }));
  const live = h('p', { class: 'bar-hint', role: 'status', text: t('ask.writing', { n }) });
  const waiting = new Map();
  const paint = () => {
    for (const [i, text] of waiting) fill(bodies[i], plainText(text));
    waiting.clear();
  };
  fill(
    host,
    h(
      'div',
      { class: 'work writing', 'aria-busy': 'true' },
      h(
        'section',
        { class: 'prompt', 'aria-label': t('label.prompt') },
        h('header', null, h('h1', { text: t('label.prompt') })),
        h(
          'ol',
          { class: 'turns' },
          earlier.map(turnItem),
          h('li', { class: 'turn user' }, h('span', { class: 'who', text: t('role.user') }), plainText(content)),
        ),
      ),
      h(
        'section',
        { class: `answers k${Math.min(n, 5)}`, 'aria-label': t('label.answers') },
        bodies.map((body, i) =>
          h('article', { class: 'answer' }, h('header', null, h('h2', { text: t('label.answer', { x: letter(i) }) })), body),
        ),
      ),
      h(
        'div',
        { class: 'bar' },
        h(
          'div',
          { class: 'bar-row main' },
          live,
          h('button', { type: 'button', text: t('chat.stop'), on: { click: () => stop.abort() } }),
        ),
      ),
    ),
  );
  try {
    return await streamSet({
      ...(next ? { next: { ...next, content } } : { messages: [{ role: 'user', content }] }),
      n,
      ...(sampling && Object.keys(sampling).length ? { sampling } : {}),
      signal: stop.signal,
      onText: (place, text) => {
        if (waiting.size === 0) requestAnimationFrame(paint);
        waiting.set(place, text);
      },
      onDone: (place) => bodies[place].classList.remove('waiting'),
    });
  } catch (e) {
    if (e.name === 'AbortError') return null;
    throw Object.assign(e, { plain: errorText(e) });
  }
}

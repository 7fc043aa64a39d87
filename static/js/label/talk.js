// A conversation: after the answers to a question are ranked, the labeler writes the next message to the better one.
import { get, listOf } from '../api.js';
import { h, turnItem, userText } from '../dom.js';
import { t } from '../i18n.js';
import { keyOf } from '../keys.js';
import { letter } from './ballot.js';

/**
 * A set that was judged and may be continued: `own` is how the question was asked, `content` and `chosen` what is filled in.
 * @typedef {{set: any, ballot: any, own: {n: number, sampling: any}, content?: string, chosen?: string, problem?: string}} Talk
 */

/** The answers that a conversation may go on with: the best ones of a ranking, else all. */
export function candidates({ set, ballot }) {
  if (ballot.outcome !== 'ranked') return set.completions;
  const best = Math.min(...set.completions.map((c) => ballot.tiers[c.id]));
  return set.completions.filter((c) => ballot.tiers[c.id] === best);
}

/** The messages before the next one, with the chosen answer as the last. */
export const earlierMessages = ({ set }, chosen) => [
  ...set.prompt.messages,
  { ...set.completions.find((c) => c.id === chosen), role: 'assistant' },
];

/** The set that continues this one on the server, or null. */
export async function nextSetOf(setId) {
  const [conversation] = listOf(await get('/v1/label/conversations', { set_id: setId }));
  const at = conversation?.turns.findIndex((turn) => turn.set_id === setId) ?? -1;
  return at < 0 ? null : (conversation.turns[at + 1]?.set_id ?? null);
}

/**
 * The conversation with a form for the next message. `onSend({content, chosen})`, `onChange({content, chosen})`, `onEnd()`.
 * @param {Talk} talk
 * @param {{onSend: (next: {content: string, chosen: string}) => void, onChange: (next: {content: string, chosen: string}) => void,
 *   onEnd: () => void}} handlers
 */
export function nextMessage(talk, { onSend, onChange, onEnd }) {
  const { set } = talk;
  const open = candidates(talk);
  let chosen = open.some((c) => c.id === talk.chosen) ? talk.chosen : open[0].id;
  const text = h('textarea', { id: 'next-text', rows: '3', dir: 'auto', value: talk.content ?? '' });
  const error = h('p', { class: 'form-error', role: 'alert', text: talk.problem ?? '' });
  const next = () => ({ content: text.value, chosen });
  const nameOf = (c) => t('label.answer', { x: letter(set.completions.indexOf(c)) });
  const choice = (c) =>
    h(
      'label',
      { class: 'choice' },
      h('input', {
        type: 'radio',
        name: 'chosen',
        value: c.id,
        checked: c.id === chosen,
        on: {
          change: () => {
            chosen = c.id;
            onChange(next());
          },
        },
      }),
      h('span', { class: 'choice-text' }, h('strong', { text: nameOf(c) }), userText(c)),
    );
  const turns = h('ol', { class: 'turns', tabindex: '0', 'aria-label': t('label.conversation') }, set.prompt.messages.map(turnItem));
  if (open.length === 1) turns.append(turnItem({ ...open[0], role: 'assistant' }));
  requestAnimationFrame(() => (turns.scrollTop = turns.scrollHeight));
  const form = h(
    'form',
    {
      class: 'panel talk',
      on: {
        submit: (e) => {
          e.preventDefault();
          if (text.value.trim() === '') return void ((error.textContent = t('talk.empty')), text.focus());
          onSend({ content: text.value.trim(), chosen });
        },
      },
    },
    h('h1', { text: t('talk.title') }),
    turns,
    open.length === 1
      ? null
      : h(
          'fieldset',
          { class: 'choices' },
          h('legend', { text: t(talk.ballot.outcome === 'ranked' ? 'talk.choose_tied' : 'talk.choose') }),
          open.map(choice),
        ),
    h('div', { class: 'field' }, h('label', { for: 'next-text', text: t('talk.label') }), text),
    error,
    h(
      'div',
      { class: 'actions' },
      h('button', { type: 'button', class: 'quiet', data: { act: 'end-talk' }, text: t('talk.end'), on: { click: onEnd } }),
      h('button', { type: 'submit', class: 'primary', text: t('talk.send') }),
    ),
  );
  text.addEventListener('input', () => {
    error.textContent = '';
    onChange(next());
  });
  text.addEventListener('keydown', (e) => {
    if (keyOf(e) === 'Enter' && (e.ctrlKey || e.metaKey)) form.requestSubmit();
  });
  requestAnimationFrame(() => text.focus());
  return form;
}

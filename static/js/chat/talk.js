// What the server does for the try-it page: one streamed answer, or several that become a ranking.
import { ApiError, events } from '../api.js';

/** @import { ChatMessage, LeasedSet, Sampling } from '../contract.d.ts' */

/** `{temperature, top_p, max_tokens}` of the settings that hold a number. */
export function sampling(settings) {
  const out = {};
  for (const name of ['temperature', 'top_p', 'max_tokens', 'seed'])
    if (Number.isFinite(settings[name])) out[name] = settings[name];
  if (!(out.max_tokens >= 1)) delete out.max_tokens;
  return out;
}

const failed = (data) => new ApiError(500, data);

/**
 * One answer. `onText(whole text so far)` as it grows; resolves with
 * `{text, ids, model, tokens, finish, seconds}`. An abort after the first word keeps what was written.
 */
export async function streamAnswer({ messages, model, sampling: how, signal, onText }) {
  const started = performance.now();
  const answer = { text: '', ids: [], model: model ?? '', tokens: 0, finish: null, seconds: 0 };
  const body = { messages, stream: true, stream_options: { include_usage: true }, ...(model ? { model } : {}), ...how };
  try {
    for await (const e of events('POST', '/v1/chat/completions', { body, signal })) {
      if (e.data === '[DONE]') break;
      const chunk = JSON.parse(e.data);
      if (chunk.error) throw failed(chunk);
      if (chunk.model) answer.model = chunk.model;
      const ids = chunk.instructd?.completion_ids?.filter(Boolean) ?? []; // none for an empty text
      if (ids.length) answer.ids = ids;
      if (chunk.usage) answer.tokens = chunk.usage.completion_tokens;
      const choice = chunk.choices?.[0];
      if (choice?.finish_reason) answer.finish = choice.finish_reason;
      if (choice?.delta?.content) {
        answer.text += choice.delta.content;
        onText(answer.text);
      }
    }
  } catch (e) {
    if (e.name !== 'AbortError' || answer.text === '') throw e;
    answer.finish = 'abort';
  }
  answer.seconds = (performance.now() - started) / 1000;
  return answer;
}

/**
 * Several answers, written side by side in the places where they will be ranked. `onStart(answers)`,
 * `onText(place, whole text)`, `onDone(place)`; resolves with the leased set. They answer `messages`, or the next message of a
 * conversation.
 * @param {{messages?: ChatMessage[], next?: {set_id: string, completion_id: string, content: string}, n?: number, models?: string[], sampling?: Sampling, project?: string, signal: AbortSignal,
 *   onStart?: (answers: number) => void, onText: (place: number, text: string) => void, onDone: (place: number, reason: string) => void}} asked
 * @returns {Promise<LeasedSet>}
 */
export async function streamSet({ messages, next, n, models, sampling: how, project, signal, onStart, onText, onDone }) {
  const body = { ...(next ?? { messages }), ...(models ? { models } : { n }), ...(how ? { sampling: how } : {}), ...(project && !next ? { project } : {}) };
  const texts = [];
  for await (const e of events('POST', next ? '/v1/label/continue' : '/v1/label/ask', { body, signal })) {
    const data = JSON.parse(e.data);
    if (e.event === 'error') throw failed(data);
    if (e.event === 'set') return data;
    if (e.event === 'start') onStart?.(data.answers);
    else if (e.event === 'text') onText?.(data.place, (texts[data.place] = (texts[data.place] ?? '') + data.text));
    else if (e.event === 'done') onDone?.(data.place, data.reason);
  }
  throw new ApiError(0, null);
}

// The server's routes as functions: JSON in and out, errors as ApiError, server-sent events as async iterators. What
// each route takes and answers stands in contract.d.ts, which is made from the server's own document.

/** @import { DeleteAnswer, GetAnswer, GetQuery, PostAnswer, PostBody } from './contract.d.ts' */

/**
 * @typedef {object} Options
 * @property {any} [body] sent as JSON
 * @property {BodyInit} [raw] sent as it is
 * @property {Record<string, any> | null} [query]
 * @property {AbortSignal} [signal]
 * @property {Record<string, string>} [headers]
 * @property {boolean} [keepalive]
 */

export class ApiError extends Error {
  /**
   * @param {number} status 0 where no answer came
   * @param {any} body
   */
  constructor(status, body) {
    const e = body?.error ?? {};
    const said = typeof e === 'string' ? e : (e.message ?? `HTTP ${status}`);
    // The page shows the message beside its field, or names the field itself.
    super(e.param && said.startsWith(`${e.param}: `) ? said.slice(e.param.length + 2) : said);
    this.status = status;
    /** @type {string | null} */
    this.type = e.type ?? null;
    /** @type {string | null} */
    this.param = e.param ?? null;
    /** @type {string | null} */
    this.code = e.code ?? null;
    /** Some routes answer a report beside the error. @type {any} */
    this.body = body;
    /** Seconds, where the server says when to come back. @type {number | null} */
    this.retryAfter = null;
  }
  /** Worth trying again with the same idempotency key. */
  get transient() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

const withQuery = (path, query) => {
  const q = new URLSearchParams();
  for (const [k, v] of Object.entries(query ?? {})) if (v !== undefined && v !== null && v !== '') q.set(k, v);
  const text = q.toString();
  return text ? `${path}?${text}` : path;
};

/**
 * @param {string} method
 * @param {string} path
 * @param {Options} [options]
 */
async function send(method, path, { body, raw, query, signal, headers, keepalive } = {}) {
  let response;
  try {
    response = await fetch(withQuery(path, query), {
      method,
      signal,
      keepalive,
      credentials: 'same-origin',
      headers: {
        ...(body !== undefined
          ? { 'content-type': 'application/json' }
          : raw !== undefined
            ? { 'content-type': 'application/x-ndjson' }
            : {}),
        accept: 'application/json',
        ...headers,
      },
      body: raw !== undefined ? raw : body !== undefined ? JSON.stringify(body) : undefined,
    });
  } catch (e) {
    if (e.name === 'AbortError') throw e;
    throw new ApiError(0, { error: { message: e.message, code: 'network' } });
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    if (response.status === 401) window.dispatchEvent(new CustomEvent('instructd:signed-out'));
    const error = new ApiError(response.status, body);
    error.retryAfter = Number(response.headers.get('retry-after')) || null;
    throw error;
  }
  return response;
}

/**
 * JSON of a 2xx answer; null for 204 and empty bodies.
 * @param {string} method
 * @param {string} path
 * @param {Options} [options]
 * @returns {Promise<any>}
 */
export async function call(method, path, options) {
  const response = await send(method, path, options);
  if (response.status === 204) return null;
  const text = await response.text();
  return text === '' ? null : JSON.parse(text);
}

/**
 * GET for an answer whose headers matter, too.
 * @template {string} P
 * @param {P} path
 * @param {GetQuery<P> | null} [query]
 * @param {Options} [options]
 * @returns {Promise<{body: GetAnswer<P>, headers: Headers}>}
 */
export async function withHeaders(path, query, options) {
  const response = await send('GET', path, { ...options, query });
  return { body: response.status === 204 ? null : await response.json(), headers: response.headers };
}

/**
 * @template {string} P
 * @param {P} path
 * @param {GetQuery<P> | null} [query] what is null or empty is left out
 * @param {Options} [options]
 * @returns {Promise<GetAnswer<P>>}
 */
export const get = (path, query, options) => call('GET', path, { ...options, query });

/**
 * @template {string} P
 * @param {P} path
 * @param {PostBody<P>} [body]
 * @param {Options} [options]
 * @returns {Promise<PostAnswer<P>>}
 */
export const post = (path, body, options) => call('POST', path, { ...options, body: body ?? {} });

/**
 * @template {string} P
 * @param {P} path
 * @returns {Promise<DeleteAnswer<P>>}
 */
export const del = (path) => call('DELETE', path);

/**
 * The rows of a list answer.
 * @template T
 * @param {{data: T[]} | null | undefined} answer
 * @returns {T[]}
 */
export const listOf = (answer) => answer?.data ?? [];

/**
 * Server-sent events of one request, as `{event, id, data}` with `data` still text. Ends when the server does.
 * fetch instead of EventSource: it can POST, and errors keep their JSON.
 * @param {string} method
 * @param {string} path
 * @param {Options} [options]
 * @returns {AsyncGenerator<{event: string, id: string | null, data: string}>}
 */
export async function* events(method, path, options = {}) {
  const response = await send(method, path, { ...options, headers: { accept: 'text/event-stream', ...options.headers } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  /** @type {{event: string, id: string | null, lines: string[]}} */
  let current = { event: 'message', id: null, lines: [] };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      // a CR at the very end may be half of a CRLF: wait for the rest
      for (;;) {
        const m = /\r\n|\n|\r(?!$)/.exec(buffer);
        if (!m) break;
        const line = buffer.slice(0, m.index);
        buffer = buffer.slice(m.index + m[0].length);
        if (line === '') {
          if (current.lines.length) yield { event: current.event, id: current.id, data: current.lines.join('\n') };
          current = { event: 'message', id: current.id, lines: [] };
        } else if (!line.startsWith(':')) {
          const colon = line.indexOf(':');
          const field = colon < 0 ? line : line.slice(0, colon);
          const text = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
          if (field === 'data') current.lines.push(text);
          else if (field === 'event') current.event = text;
          else if (field === 'id') current.id = text;
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Follows an event stream until `signal` aborts, `onEvent` returns false, or the server ends it and `onEnd` (async)
 * says true; else reconnects with Last-Event-ID.
 * @param {string} path
 * @param {(event: {event: string, id: string | null, data: string}) => boolean | void} onEvent
 * @param {{signal?: AbortSignal, lastId?: string | null, onEnd?: () => Promise<boolean>}} [options]
 */
export async function follow(path, onEvent, { signal, lastId, onEnd } = {}) {
  let wait = 1000;
  let id = lastId ?? null;
  while (!signal?.aborted) {
    try {
      for await (const e of events('GET', path, { signal, headers: id !== null ? { 'last-event-id': id } : {} })) {
        wait = 1000;
        if (e.id !== null) id = e.id;
        if (onEvent(e) === false) return;
      }
      if (await onEnd?.()) return;
    } catch (e) {
      if (e.name === 'AbortError' || (e instanceof ApiError && !e.transient)) return;
    }
    await new Promise((r) => setTimeout(r, wait));
    wait = Math.min(wait * 2, 15000);
  }
}

export const newKey = () =>
  crypto.randomUUID
    ? crypto.randomUUID()
    : Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, '0')).join('');

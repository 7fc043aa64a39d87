// The server's routes as functions: JSON in and out, errors as ApiError, server-sent events as async iterators.

export class ApiError extends Error {
  constructor(status, body) {
    const e = body?.error ?? {};
    super(typeof e === 'string' ? e : (e.message ?? `HTTP ${status}`));
    this.status = status;
    this.type = e.type ?? null;
    this.param = e.param ?? null;
    this.code = e.code ?? null;
    this.body = body; // some routes answer a report beside the error
    this.retryAfter = null; // seconds, where the server says when to come back
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

/** JSON of a 2xx answer; null for 204 and empty bodies. */
export async function call(method, path, options) {
  const response = await send(method, path, options);
  if (response.status === 204) return null;
  const text = await response.text();
  return text === '' ? null : JSON.parse(text);
}

/** Like [`call`] for an answer whose headers matter, too: `{body, headers}`. */
export async function withHeaders(method, path, options) {
  const response = await send(method, path, options);
  return { body: response.status === 204 ? null : await response.json(), headers: response.headers };
}

export const get = (path, query, options) => call('GET', path, { ...options, query });
export const post = (path, body, options) => call('POST', path, { ...options, body: body ?? {} });
export const del = (path) => call('DELETE', path);

/** The array in a list answer, however it is wrapped: `[…]`, `{data: […]}`, `{jobs: […]}`. */
export function listOf(answer) {
  if (Array.isArray(answer)) return answer;
  if (answer && typeof answer === 'object') {
    if (Array.isArray(answer.data)) return answer.data;
    for (const value of Object.values(answer)) if (Array.isArray(value)) return value;
  }
  return [];
}

/**
 * Server-sent events of one request, as `{event, id, data}` with `data` still text. Ends when the server does.
 * fetch instead of EventSource: it can POST, and errors keep their JSON.
 */
export async function* events(method, path, options = {}) {
  const response = await send(method, path, { ...options, headers: { accept: 'text/event-stream', ...options.headers } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
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

// The conversation survives a reload: kept in this tab's storage, gone with the tab or at sign-out.

const KEY = 'instructd.chat.thread';
/** Longer conversations are not kept. In characters of JSON. */
const MOST = 1_000_000;

export function keepThread(thread) {
  try {
    const json = JSON.stringify(thread);
    if (thread.turns.length && json.length <= MOST) sessionStorage.setItem(KEY, json);
    else sessionStorage.removeItem(KEY);
  } catch {
    /* storage is full or blocked: the conversation lives on this page only */
  }
}

export function forgetThread() {
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    /* storage is blocked */
  }
}

/** `{turns, speaker}`, or null. A question that was never answered is not part of it. */
export function keptThread() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEY));
    if (!Array.isArray(kept?.turns)) return null;
    if (kept.turns.at(-1)?.role === 'user') kept.turns.pop();
    return kept.turns.length ? kept : null;
  } catch {
    return null;
  }
}

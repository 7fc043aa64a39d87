// Leases of the sets in hand: renewed while somebody is at work, released for a prefetched set when the page closes.
import { post } from '../api.js';
import { t, toMs } from '../i18n.js';

/** @import { ActivityClock } from './clock.js' */
/** @import { LabelState } from './state.js' */

const CHECK_EVERY = 10e3;
/** Without a sign of life for this long (ms) leases are left to expire. */
const GONE_AFTER = 5 * 60e3;
/** By renewals the server knows who is at work. */
const RENEW_EVERY = 60e3;

/** Whether a lease is to be renewed: after a minute, or after half of its duration, which the server sets. */
function isDue(set) {
  if (!set.lease_token || set.judgment || !set.expires_at) return false;
  set.lease_ms ??= toMs(set.expires_at) - Date.now();
  set.renewed_at ??= Date.now();
  return Date.now() - set.renewed_at >= RENEW_EVERY || toMs(set.expires_at) - Date.now() < set.lease_ms / 2;
}

/**
 * @param {LabelState} state
 * @param {ActivityClock} clock
 */
async function renewDue(state, clock) {
  if (clock.idle() > GONE_AFTER || document.hidden) return;
  for (const set of (await state.heldSets()).filter(isDue)) {
    set.renewed_at = Date.now();
    post(`/v1/label/${encodeURIComponent(set.assignment_id)}/renew`, { lease_token: set.lease_token })
      .then((a) => a?.expires_at && (set.expires_at = a.expires_at))
      .catch((e) => {
        // a lost lease loses no work: the judgment is still accepted while nobody else has taken the set
        if (set === state.work?.set && [404, 409, 410].includes(e.status)) state.work.say(t('label.lease_lost'));
      });
  }
}

/**
 * Keeps the leases of the page's sets for as long as somebody is at work.
 * @param {LabelState} state
 * @param {ActivityClock} clock
 */
export function keepLeases(state, clock) {
  setInterval(() => renewDue(state, clock), CHECK_EVERY);
  // A set that was only prefetched goes back to the queue when the page closes.
  window.addEventListener('pagehide', () => {
    state.prefetched?.then(
      (set) =>
        set?.lease_token &&
        post(
          `/v1/label/${encodeURIComponent(set.assignment_id)}/release`,
          { lease_token: set.lease_token },
          { keepalive: true },
        ).catch(() => {}),
    );
  });
}

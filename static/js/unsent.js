// Judgments that were given in this browser and have not reached the server, by person.
import { keep } from './dom.js';

export const OUTBOX = 'instructd.outbox';

/** How many are waiting for `owner`. */
export const unsentOf = (owner) => (keep.get(OUTBOX) ?? []).filter((e) => e.owner === owner).length;

/** How many are waiting for other people, and who they are where that is known. */
export function unsentOfOthers(owner) {
  const entries = (keep.get(OUTBOX) ?? []).filter((e) => e.owner !== owner);
  return { n: entries.length, names: [...new Set(entries.map((e) => e.ownerName).filter(Boolean))] };
}

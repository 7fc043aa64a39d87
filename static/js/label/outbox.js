// Judgments on their way to the server. Kept in localStorage until the server has answered, so a closed lid
// or a lost network loses nothing; each is sent again with its own idempotency key.
import { ApiError, get, post } from '../api.js';
import { keep } from '../dom.js';
import { OUTBOX } from '../unsent.js';

/** @import { StoredJudgment } from '../contract.d.ts' */

const waits = [1, 2, 4, 8, 15, 30];

const keyOf = (entry) => entry.body.idempotency_key;

export class Outbox {
  /**
   * `owner` keeps one person's unsent work from going out under another's session; `ownerName` says whose it is.
   * @param {{owner: string, ownerName: string, onStored: (answer: StoredJudgment, entry: any) => void,
   *   onRefused: (error: ApiError, entry: any) => void, onState?: (state: {waiting: number, failing: boolean}) => void}} options
   */
  constructor({ owner, ownerName, onStored, onRefused, onState }) {
    this.owner = owner;
    this.ownerName = ownerName;
    this.onStored = onStored;
    this.onRefused = onRefused;
    this.onState = onState;
    // However old: what was judged is not thrown away before the server has said what it thinks of it.
    this.entries = keep.get(OUTBOX) ?? [];
    this.done = new Set();
    this.busy = false;
    this.failures = 0;
    window.addEventListener('online', () => this.pump());
  }

  get waiting() {
    return this.entries.filter((e) => e.owner === this.owner).length;
  }

  /** `context` comes back in the callbacks (the set and ballot, to reopen a refused one). */
  add(assignmentId, body, context) {
    this.entries.push({ at: Date.now(), owner: this.owner, ownerName: this.ownerName, assignmentId, body, context });
    this.save();
    return this.pump();
  }

  save() {
    // another tab may have put its own there since
    const known = new Set([...this.done, ...this.entries.map(keyOf)]);
    const all = [...(keep.get(OUTBOX) ?? []).filter((e) => !known.has(keyOf(e))), ...this.entries];
    keep.set(OUTBOX, all.length ? all : null);
    this.onState?.({ waiting: this.waiting, failing: this.failures > 0 });
  }

  async pump() {
    if (this.busy) return;
    this.busy = true;
    clearTimeout(this.timer);
    try {
      for (;;) {
        const entry = this.entries.find((e) => e.owner === this.owner);
        if (!entry) break;
        try {
          const answer = await post(`/v1/label/${encodeURIComponent(entry.assignmentId)}/judgment`, entry.body);
          this.failures = 0;
          this.remove(entry);
          this.onStored(answer, entry);
        } catch (e) {
          if (!(e instanceof ApiError)) throw e;
          if (e.transient || e.status === 401) {
            this.failures += 1;
            this.save();
            this.timer = setTimeout(() => this.pump(), waits[Math.min(this.failures, waits.length) - 1] * 1000);
            break;
          }
          // Signed in as somebody else in another tab: the refusal is not about this judgment.
          if (e.status === 403 && !(await this.isMine())) {
            this.failures += 1;
            this.save();
            this.timer = setTimeout(() => this.pump(), waits.at(-1) * 1000);
            break;
          }
          this.remove(entry);
          this.onRefused(e, entry);
        }
      }
    } finally {
      this.busy = false;
    }
  }

  /** Whether the session is still the owner's; unknown counts as no. */
  async isMine() {
    try {
      return (await get('/session')).labeler.id === this.owner;
    } catch {
      return false;
    }
  }

  remove(entry) {
    this.done.add(keyOf(entry));
    this.entries = this.entries.filter((e) => e !== entry);
    this.save();
  }
}

// Judgments on their way to the server. Kept in localStorage until the server has answered, so a closed lid
// or a lost network loses nothing; each is sent again with its own idempotency key.
import { ApiError, post } from '../api.js';
import { keep } from '../dom.js';

const KEY = 'instructd.outbox';
const waits = [1, 2, 4, 8, 15, 30];

export class Outbox {
  /** `owner` keeps one person's unsent work from going out under another's session. */
  constructor({ owner, onStored, onRefused, onState }) {
    Object.assign(this, { owner, onStored, onRefused, onState });
    this.entries = (keep.get(KEY) ?? []).filter((e) => Date.now() - e.at < 7 * 86400e3);
    this.busy = false;
    this.failures = 0;
    window.addEventListener('online', () => this.pump());
  }

  get waiting() {
    return this.entries.filter((e) => e.owner === this.owner).length;
  }

  /** `context` comes back in the callbacks (the set and ballot, to reopen a refused one). */
  add(assignmentId, body, context) {
    this.entries.push({ at: Date.now(), owner: this.owner, assignmentId, body, context });
    this.save();
    return this.pump();
  }

  save() {
    keep.set(KEY, this.entries.length ? this.entries : null);
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
          this.remove(entry);
          this.onRefused(e, entry);
        }
      }
    } finally {
      this.busy = false;
    }
  }

  remove(entry) {
    this.entries = this.entries.filter((e) => e !== entry);
    this.save();
  }
}

// A failure on the screen that is tried again by itself: after a while, when the network is back, on demand.
import { fill, h } from '../dom.js';
import { failure } from '../shell.js';

const MAX_WAIT_S = 20;

export class Retry {
  #host;
  #pending = null;

  /** `host` is the element that failures fill. */
  constructor(host) {
    this.#host = host;
    window.addEventListener('online', () => this.now());
  }

  /** Whether a failure is on the screen. */
  get pending() {
    return this.#pending !== null;
  }

  /** Shows `error` and calls `again` after 2, 4, 8, 16, 20, 20, … seconds. */
  show(error, again) {
    const tries = (this.#pending?.tries ?? 0) + 1;
    clearTimeout(this.#pending?.timer);
    const timer = setTimeout(() => this.now(), Math.min(2 ** tries, MAX_WAIT_S) * 1000);
    this.#pending = { again, tries, timer };
    fill(this.#host, h('div', { class: 'centre' }, failure(error, () => this.now())));
  }

  /** Tries at once what failed, if anything did. */
  now() {
    if (!this.#pending) return;
    clearTimeout(this.#pending.timer);
    this.#pending.again();
  }

  /** What failed has succeeded. */
  clear() {
    clearTimeout(this.#pending?.timer);
    this.#pending = null;
  }
}

// Times of a judgment: the time since the set was shown, and the part of it in which somebody was at work.

/** Without a sign of life for this long (ms) the active time stops. */
const IDLE_AFTER = 60e3;

export class ActivityClock {
  #shown = 0;
  #active = 0;
  #lastSign = 0;

  /** Pointer, key, scroll and touch events are signs of life. */
  constructor() {
    for (const type of ['pointermove', 'keydown', 'scroll', 'touchstart'])
      window.addEventListener(type, () => this.#sign(), { passive: true, capture: true });
    document.addEventListener('visibilitychange', () => (this.#lastSign = performance.now()));
  }

  #sign() {
    const now = performance.now();
    if (!document.hidden) this.#active += Math.min(now - this.#lastSign, IDLE_AFTER);
    this.#lastSign = now;
  }

  /** Starts both times for a new set. */
  restart() {
    const now = performance.now();
    this.#shown = now;
    this.#active = 0;
    this.#lastSign = now;
  }

  /** Milliseconds since the last sign of life. */
  idle() {
    return performance.now() - this.#lastSign;
  }

  /** Active time and time since the set was shown, in milliseconds, at least 1. */
  times() {
    this.#sign();
    return { activeMs: Math.max(1, this.#active), wallMs: Math.max(1, performance.now() - this.#shown) };
  }
}

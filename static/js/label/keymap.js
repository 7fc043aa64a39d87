// Which key does what on the label page. Each person can change keys. The server keeps them, so that they are the same on
// every machine; this browser has a copy by person, which is used until the server answers.
import { get, post } from '../api.js';
import { keep } from '../dom.js';

const STORE = 'instructd.keys.';
/** Set by person while the server does not have the keys of this browser. */
const UNSENT = 'instructd.keys_unsent.';

/** The keys that can be changed, by what they do. Digits, arrows, Enter and Esc are the same for everybody. */
const DEFAULTS = {
  tie: '=',
  hand_a: 'a',
  hand_b: 'b',
  all_bad: 'x',
  unrankable: 'c',
  skip: 's',
  undo: 'u',
  more: 'm',
  rate: 'r',
  flag: 'f',
  mark: 'w',
  correct: 'e',
  diff: 'd',
  plain: 'p',
  unfold: 'o',
  guidelines: 'g',
  sheet: '?',
};

/** A name of `DEFAULTS`. @typedef {keyof typeof DEFAULTS} Changeable */

/** Whether a key can take the place of another: a letter or one of the signs that name keys. */
export const isAssignable = (k) => /^[a-z=?]$/.test(k ?? '');

/** A key as it is shown. */
export const keyName = (k) => k.toUpperCase();

class KeyMap {
  #owner = null;
  #keys = { ...DEFAULTS };
  /** Requests that store keys, one after the other. */
  #sending = Promise.resolve();

  /** Takes the keys of the person with this id from this browser. */
  load(owner) {
    this.#owner = owner;
    this.#take(keep.get(STORE + owner) ?? {});
  }

  /**
   * Takes the person's keys from the server. Those of this browser are sent instead where the server has none yet, or
   * where they were changed without an answer of the server.
   */
  async follow() {
    const owner = this.#owner;
    const own = keep.get(STORE + owner);
    if (keep.get(UNSENT + owner)) return this.#send(owner, own ?? {});
    const { keys } = await get('/v1/label/keys');
    // changed meanwhile: the change is on its way
    if (owner !== this.#owner || keep.get(UNSENT + owner)) return;
    if (keys === null) return own && this.#send(owner, own);
    keep.set(STORE + owner, Object.keys(keys).length ? keys : null);
    this.#take(keys);
  }

  #take(stored) {
    const own = Object.fromEntries(Object.entries(stored).filter(([name, k]) => name in DEFAULTS && isAssignable(k)));
    const keys = { ...DEFAULTS, ...own };
    // a key that a later version of the page gave to something else must not do two things
    this.#keys = new Set(Object.values(keys)).size === Object.keys(keys).length ? keys : { ...DEFAULTS };
  }

  /** The key for an action. @param {Changeable} name */
  of(name) {
    return this.#keys[name];
  }

  /** What a key does, or null. @returns {Changeable | null} */
  action(k) {
    const found = Object.entries(this.#keys).find(([, own]) => own === k);
    return /** @type {Changeable | null} */ (found?.[0] ?? null);
  }

  /**
   * Gives a key to an action. What had the key before takes the action's former key; its name is returned, or null.
   * @param {Changeable} name
   */
  change(name, k) {
    const other = this.action(k);
    if (other === name) return null;
    if (other) this.#keys[other] = this.#keys[name];
    this.#keys[name] = k;
    this.#save();
    return other;
  }

  get isChanged() {
    return Object.entries(DEFAULTS).some(([name, k]) => this.#keys[name] !== k);
  }

  reset() {
    this.#keys = { ...DEFAULTS };
    this.#save();
  }

  #save() {
    const own = Object.entries(this.#keys).filter(([name, k]) => DEFAULTS[name] !== k);
    keep.set(STORE + this.#owner, own.length ? Object.fromEntries(own) : null);
    keep.set(UNSENT + this.#owner, true);
    // without an answer the keys are sent by the next visit
    this.#send(this.#owner, Object.fromEntries(own)).catch(() => {});
  }

  #send(owner, keys) {
    const sent = this.#sending.then(() => post('/v1/label/keys', { keys }));
    // a later change is still on its way when an earlier one is stored
    const last = (this.#sending = sent.then(
      () => this.#sending === last && keep.set(UNSENT + owner, null),
      () => {},
    ));
    return sent;
  }
}

export const keymap = new KeyMap();

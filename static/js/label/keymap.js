// Which key does what on the label page. Each person can change keys; this browser remembers them by person.
import { keep } from '../dom.js';

const STORE = 'instructd.keys.';

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
  diff: 'd',
  plain: 'p',
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

  /** Takes the keys of the person with this id. */
  load(owner) {
    this.#owner = owner;
    const stored = keep.get(STORE + owner) ?? {};
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
  }
}

export const keymap = new KeyMap();

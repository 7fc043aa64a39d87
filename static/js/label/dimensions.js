// The dimensions of a rubric beside each answer: controls, their keys, and what is still missing.
import { fill, h } from '../dom.js';
import { t } from '../i18n.js';
import { composing, keyOf } from '../keys.js';
import { lacking, lacksRationale, textOf, valuesOf } from './rubric.js';

/** @import { Dimension, RubricDefinition } from '../contract.d.ts' */

const MAX_TAGS = 16;
const MAX_TAG = 64;
/** Keys of flags, in their order. */
const FLAG_KEYS = [...'1234567890abcdefghijklmnopqrstuv'];

const hint = (text) => h('kbd', { 'aria-hidden': 'true', text });

/** The dimensions that are rated one after the other by digits. */
const inTurn = (/** @type {RubricDefinition} */ definition) =>
  definition.dimensions.filter((d) => d.kind === 'likert' || (d.kind === 'flag' && d.required));

const isToggle = (d) => d.kind === 'flag' && !d.required;

let nextId = 0;

/**
 * Controls for one answer, named `x`. `read()` gives its values by dimension; `change(key, value)` sets one, or takes it
 * back where the value is undefined.
 * @param {RubricDefinition} definition
 * @param {{x: string, read: () => Record<string, any>, change: (key: string, value: any) => void}} answer
 */
export function dimensionPanel(definition, { x, read, change }) {
  const id = `rubric-${nextId++}`;
  /** @type {(() => void)[]} */
  const updates = [];
  /** @type {Map<string, HTMLElement>} */
  const rows = new Map();
  const press = (el, on) => el.setAttribute('aria-pressed', String(on));

  const row = (/** @type {Dimension} */ d, ...controls) => {
    const label = `${id}-${d.key}`;
    const el = h(
      'div',
      { class: `dimension ${d.kind}`, role: 'group', 'aria-labelledby': label },
      h(
        'span',
        { class: 'dimension-name', id: label },
        textOf(d.label),
        d.required ? h('span', { class: 'dimension-required', text: t('rubric.required_mark') }) : null,
      ),
      controls,
    );
    rows.set(d.key, el);
    return el;
  };

  const likert = (/** @type {Dimension} */ d) => {
    const points = Array.from({ length: d.points ?? 0 }, (_, i) => i + 1);
    const buttons = points.map((n) =>
      h('button', {
        type: 'button',
        'aria-label': t('rubric.point', { n, of: points.length }),
        text: n,
        on: { click: () => change(d.key, read()[d.key] === n ? undefined : n) },
      }),
    );
    updates.push(() => buttons.forEach((b, i) => press(b, read()[d.key] === i + 1)));
    const end = (side, texts) => (textOf(texts) ? h('span', { class: `end ${side}`, text: textOf(texts) }) : null);
    const el = row(d, h('div', { class: 'points' }, buttons), h('div', { class: 'ends' }, end('low', d.low), end('high', d.high)));
    el.style.setProperty('--points', String(points.length));
    return el;
  };

  const yesNo = (/** @type {Dimension} */ d) => {
    const button = (value, text) => {
      const b = h('button', { type: 'button', text, on: { click: () => change(d.key, read()[d.key] === value ? undefined : value) } });
      updates.push(() => press(b, read()[d.key] === value));
      return b;
    };
    return row(d, h('div', { class: 'yes-no' }, button(true, t('rubric.yes')), button(false, t('rubric.no'))));
  };

  const toggles = (/** @type {Dimension[]} */ flags) =>
    h(
      'div',
      { class: 'flags', role: 'group', 'aria-label': t('more.flags_of', { x }) },
      flags.map((d, i) => {
        const b = h(
          'button',
          { type: 'button', class: 'chip', on: { click: () => change(d.key, read()[d.key] ? undefined : true) } },
          textOf(d.label),
          hint(FLAG_KEYS[i] ?? ''),
        );
        updates.push(() => press(b, read()[d.key] === true));
        return b;
      }),
    );

  const tags = (/** @type {Dimension} */ d) => {
    const chips = h('div', { class: 'tag-chips' });
    const given = () => read()[d.key] ?? [];
    const set = (tag, on) => change(d.key, on ? [...given(), tag] : given().filter((other) => other !== tag));
    const input = h('input', {
      id: `${id}-${d.key}-new`,
      dir: 'auto',
      maxlength: MAX_TAG,
      autocomplete: 'off',
      placeholder: t('rubric.tag_new'),
      'aria-label': t('rubric.tag_new_of', { name: textOf(d.label), x }),
    });
    const add = () => {
      const tag = input.value.trim();
      if (tag && !given().includes(tag) && given().length < MAX_TAGS) set(tag, true);
      input.value = '';
    };
    input.addEventListener('keydown', (e) => {
      if (composing(e) || keyOf(e) !== 'Enter' || e.ctrlKey || e.metaKey) return;
      e.preventDefault();
      e.stopPropagation();
      add();
    });
    // a tag that was typed and not confirmed is meant, too
    input.addEventListener('change', add);
    let shown = '';
    updates.push(() => {
      const all = [...new Set([...(d.suggestions ?? []), ...given()])];
      const now = JSON.stringify([all, given()]);
      if (now === shown) return;
      shown = now;
      const focused = chips.contains(document.activeElement) ? [...chips.children].indexOf(document.activeElement) : -1;
      fill(
        chips,
        all.map((tag) => {
          const on = given().includes(tag);
          return h('button', {
            type: 'button',
            class: 'chip',
            dir: 'auto',
            'aria-pressed': String(on),
            text: tag,
            on: { click: () => set(tag, !on) },
          });
        }),
      );
      if (focused >= 0) /** @type {HTMLElement} */ (chips.children[Math.min(focused, chips.children.length - 1)])?.focus();
    });
    return row(d, chips, input);
  };

  const { dimensions } = definition;
  const el = h(
    'div',
    { class: 'rubric', role: 'group', 'aria-label': t('rubric.of', { x }) },
    dimensions.map((d, i) => {
      if (d.kind === 'likert') return likert(d);
      if (d.kind === 'tags') return tags(d);
      if (d.required) return yesNo(d);
      // flags beside each other stand in one place, at the first of them
      return i === dimensions.findIndex(isToggle) ? toggles(dimensions.filter(isToggle)) : null;
    }),
  );
  const refresh = () => updates.forEach((update) => update());
  refresh();
  /** Marks the dimensions of these keys as missing, and the one that the next digit rates. */
  const mark = (missing, armed) => {
    for (const [key, rowEl] of rows) {
      rowEl.classList.toggle('lacking', missing.includes(key));
      rowEl.classList.toggle('armed', key === armed);
    }
    el.classList.toggle('arming-flags', armed === 'flags');
  };
  return { el, refresh, mark, row: (key) => rows.get(key) };
}

/** The rubric of the set on the screen: a panel for each answer, and keys. */
export class Dimensions {
  /** @type {{answer: number, key: string} | null} */
  #armed = null;
  /** Missing ratings are marked once somebody has tried to submit without them. */
  #tried = false;

  /**
   * @param {any} set
   * @param {any} ballot
   * @param {{letters: string[], change: (change: {id: string, key: string, value: any}) => void}} page
   */
  constructor(set, ballot, { letters, change }) {
    this.set = set;
    this.ballot = ballot;
    this.letters = letters;
    this.change = change;
    this.definition = set.rubric.definition;
    this.panels = set.completions.map((c, i) =>
      dimensionPanel(this.definition, {
        x: letters[i],
        read: () => valuesOf(ballot, c.id),
        change: (key, value) => change({ id: c.id, key, value }),
      }),
    );
  }

  refresh() {
    this.set.completions.forEach((c, i) => {
      this.panels[i].refresh();
      const missing = this.#tried ? lacking(this.ballot, this.set, c.id).map((d) => d.key) : [];
      this.panels[i].mark(missing, this.#armed?.answer === i ? this.#armed.key : null);
    });
  }

  /** What is missing, answer by answer: "A: Helpful, Honest; B: Honest". Empty when nothing is. */
  missingText() {
    const parts = this.set.completions.map((c, i) => {
      const names = lacking(this.ballot, this.set, c.id).map((d) => textOf(d.label));
      return names.length ? t('rubric.by_answer', { x: this.letters[i], names: names.join(t('rubric.comma')) }) : null;
    });
    return parts.filter(Boolean).join(t('rubric.semicolon'));
  }

  /** Ratings that are missing in all. */
  get missing() {
    return this.set.completions.reduce((n, c) => n + lacking(this.ballot, this.set, c.id).length, 0);
  }

  /** Marks what is missing and gives the first such row, or the field of the reasons; null when all is there. */
  showMissing() {
    this.#tried = true;
    this.refresh();
    for (const [i, c] of this.set.completions.entries()) {
      const [first] = lacking(this.ballot, this.set, c.id);
      if (first) return this.panels[i].row(first.key) ?? this.panels[i].el;
    }
    return lacksRationale(this.ballot, this.set) ? document.getElementById('more-rationale') : null;
  }

  /** The answer after `answer` that lacks a rating, in turn; null when none does. */
  nextLacking(answer) {
    const k = this.set.completions.length;
    for (let step = 1; step <= k; step++) {
      const i = (answer + step) % k;
      if (lacking(this.ballot, this.set, this.set.completions[i].id).length) return i;
    }
    return null;
  }

  // ---- keys

  /** Ends the waiting for a digit. */
  disarm() {
    this.#armed = null;
    this.refresh();
  }

  /** After R, digits rate the answer on one dimension after the other; after F, a key sets or unsets a flag. */
  arm(kind, answer) {
    const turn = inTurn(this.definition);
    if (kind === 'flag' && !this.definition.dimensions.some(isToggle)) return '';
    if (kind === 'rate' && turn.length === 0) return '';
    const open = lacking(this.ballot, this.set, this.set.completions[answer].id).find((d) => turn.includes(d));
    this.#armed = { answer, key: kind === 'flag' ? 'flags' : (open ?? turn[0]).key };
    this.refresh();
    return this.#prompt();
  }

  get isArmed() {
    return this.#armed !== null;
  }

  /** What the page waits for, in words. */
  #prompt() {
    const { answer, key } = this.#armed;
    const x = this.letters[answer];
    const d = this.definition.dimensions.find((other) => other.key === key);
    if (!d) return t('rubric.arm_flags', { x });
    const name = textOf(d.label);
    return d.kind === 'flag' ? t('rubric.arm_yes_no', { x, name }) : t('rubric.arm_points', { x, name, n: d.points });
  }

  /**
   * A key while a digit is awaited: `{done, say}`, or null where the key means nothing here. `done` is true once the answer is
   * rated on its last dimension.
   */
  key(k) {
    const { answer, key } = this.#armed;
    const { id } = this.set.completions[answer];
    if (key === 'flags') {
      const flag = this.definition.dimensions.filter(isToggle)[FLAG_KEYS.indexOf(k)];
      this.#armed = null;
      if (!flag) return null;
      this.change({ id, key: flag.key, value: valuesOf(this.ballot, id)[flag.key] ? undefined : true });
      return { done: false, say: '' };
    }
    const turn = inTurn(this.definition);
    const at = turn.findIndex((d) => d.key === key);
    if (k === 'ArrowUp' || k === 'ArrowDown') {
      this.#armed = { answer, key: turn[(at + (k === 'ArrowDown' ? 1 : -1) + turn.length) % turn.length].key };
      this.refresh();
      return { done: false, say: this.#prompt() };
    }
    const d = turn[at];
    const n = k === '0' ? 10 : Number(k);
    const value = d.kind === 'flag' ? { 1: true, 2: false }[n] : n >= 1 && n <= d.points ? n : undefined;
    if (!/^[0-9]$/.test(k)) {
      this.#armed = null;
      return null;
    }
    if (value === undefined) return { done: false, say: this.#prompt() };
    const following = turn[at + 1];
    this.#armed = following ? { answer, key: following.key } : null;
    this.change({ id, key, value });
    return following ? { done: false, say: this.#prompt() } : { done: true, say: '' };
  }
}

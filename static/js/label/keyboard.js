// Keys of the label page. They rest while a dialog is open or a control has the focus.
import { composing, keyOf } from '../keys.js';
import { FLAGS } from './ballot.js';
import { keymap } from './keymap.js';

/** @import { LabelState } from './state.js' */

/** What keys of the person's own choice do at any time. @type {Record<string, [string, string?]>} */
const SIMPLE = {
  all_bad: ['outcome', 'all_bad'],
  unrankable: ['outcome', 'unrankable'],
  skip: ['skip'],
  undo: ['undo'],
  more: ['more'],
  mark: ['mark'],
  correct: ['correct'],
  diff: ['diff'],
  plain: ['plain'],
  unfold: ['unfold'],
};

const dialogOpen = () => document.querySelector('dialog[open]') !== null;

const inControl = (target) =>
  target instanceof Element &&
  target.closest('button,a,input,textarea,select,summary,[contenteditable],[role=button]') !== null;

/**
 * Listens for keys and turns them into actions. `guide` and `sheet` are the buttons of the guidelines and of the list of keys.
 * @param {{state: LabelState, page: {main: HTMLElement, header: HTMLElement}, guide: HTMLElement,
 *   sheet: HTMLElement, act: (name: string, value?: any) => void}} options
 */
export function watchKeys({ state, page, guide, sheet, act }) {
  window.addEventListener('keydown', (e) => {
    const { work } = state;
    if (!work || composing(e) || e.repeat) return;
    const k = keyOf(e);
    if (k === 'Enter' && (e.ctrlKey || e.metaKey) && !dialogOpen()) {
      e.preventDefault();
      return work.over ? work.next() : act('submit');
    }
    if (k === 'Escape' && !dialogOpen()) {
      work.arm(null);
      if (!document.querySelector('.drawer')) page.main.focus({ preventScroll: true });
      return;
    }
    if (e.ctrlKey || e.metaKey || e.altKey || dialogOpen() || inControl(e.target)) return;
    if (k !== null && onKey(k)) e.preventDefault();
  });

  // A control used with the pointer gives the focus back, so that keys work again at once.
  document.addEventListener('click', (e) => {
    if (e.detail === 0 || dialogOpen()) return;
    const control = /** @type {Element} */ (e.target).closest?.('button');
    if (control === guide && document.querySelector('.drawer')) return; // the drawer has the focus
    if (control && state.work && (page.main.contains(control) || page.header.contains(control)))
      page.main.focus({ preventScroll: true });
  });

  /** Acts on a key; false when it has no meaning here. */
  function onKey(k) {
    const { work } = state;
    if (work.over) return k === 'Enter' && (work.next(), true);
    if (work.dimensions?.isArmed && work.rateByKey(k)) return true;
    // after R or F, a digit is a rating or a flag of the answer at hand
    if (work.armed && /^[1-9]$/.test(k)) {
      const { id } = work.set.completions[work.cursor];
      const kind = work.armed;
      work.arm(null);
      if (Number(k) <= 7) act(kind, kind === 'rate' ? { id, value: Number(k) } : { id, code: FLAGS[k - 1] });
      return true;
    }
    if (k === 'Enter') return (act('submit'), true);
    const name = keymap.action(k);
    if (name === 'rate' || name === 'flag') {
      if (!state.view.more && !work.dimensions) act('more');
      return (work.arm(name), true);
    }
    if (work.pair ? onPairKey(k, name) : onRankingKey(k)) return true;
    if (SIMPLE[name]) return (act(...SIMPLE[name]), true);
    if (name === 'guidelines') return (guide.click(), true);
    if (name === 'sheet') return (sheet.click(), true);
    return false;
  }

  function onPairKey(k, name) {
    if (k === '1' || k === 'ArrowLeft') return (act('pair', 'a'), true);
    if (k === '2' || k === 'ArrowRight') return (act('pair', 'b'), true);
    if (name === 'tie' || k === '0') return (act('pair', 'tie'), true);
    if (name === 'hand_a' || name === 'hand_b') return (state.work.moveTo(name === 'hand_a' ? 0 : 1), true);
    return false;
  }

  function onRankingKey(k) {
    const { work } = state;
    const c = work.set.completions[work.cursor];
    if (/^[1-9]$/.test(k)) {
      if (Number(k) > work.k) return true;
      act('tier', { id: c.id, tier: Number(k) });
      const free = work.nextUnranked();
      if (free !== null) work.moveTo(free);
      return true;
    }
    if (k === 'Backspace' || k === 'Delete') return (act('tier', { id: c.id, tier: 0 }), true);
    if (k === 'ArrowLeft' || k === 'ArrowRight') {
      work.moveTo(work.cursor + (k === 'ArrowRight' ? 1 : -1));
      return true;
    }
    return false;
  }
}

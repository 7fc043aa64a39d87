// What a labeler can do with the set on the screen, by name: `act(name, value)` of the controls and keys.
import { canSubmit, dropDraft, judgePair, letter, saveDraft, skipSubmission, submission, verdict } from './ballot.js';
import { marksDialog } from './marks.js';
import { skipDialog } from './panels.js';
import { setValue } from './rubric.js';

/** @import { ActivityClock } from './clock.js' */
/** @import { LabelState } from './state.js' */

/** Actions that remain while the verdict of a practice set is shown. */
const AFTER_SUBMISSION = ['more', 'diff', 'plain', 'unfold', 'undo'];

/**
 * The dispatcher `act(name, value)`. `send(body)` submits the ballot, `undo()` opens the latest judgment again, `advance()`
 * shows the next set.
 * @param {{state: LabelState, clock: ActivityClock, main: HTMLElement, send: (body: any) => void, undo: () => any,
 *   advance: () => any}} page
 * @returns {(name: string, value?: any) => void}
 */
export function createActions({ state, clock, main, send, undo, advance }) {
  const changed = () => {
    saveDraft(state.work.set.set_id, state.work.ballot);
    state.work.refresh();
  };

  /** A dialog gives the focus back to where it was before its `close` event runs; a key pressed in between must reach the page. */
  const focusPage = () => main.focus({ preventScroll: true });

  const switchView = (name) => {
    const { work, view } = state;
    state.toggleView(name);
    work.refresh();
    if (name !== 'more') work.renderTexts();
    else if (view.more && /** @type {HTMLElement | null} */ (document.activeElement)?.dataset?.act === 'more')
      work.more.querySelector('textarea').focus();
  };

  const actions = {
    /** A click on an answer prefers it. Unlike a key, a second click does not raise the strength. */
    choose(value) {
      const { ballot, set } = state.work;
      if (ballot.outcome === 'ranked' && verdict(ballot, set) === value) return;
      judgePair(ballot, set, value);
      changed();
    },
    /** A step of the scale: which answer is better and by how much. */
    scale({ value, strength }) {
      const { ballot, set } = state.work;
      if (verdict(ballot, set) !== value || ballot.outcome !== 'ranked') judgePair(ballot, set, value);
      ballot.strength = value === 'tie' || ballot.strength === strength ? null : strength;
      changed();
    },
    pair(value) {
      judgePair(state.work.ballot, state.work.set, value);
      changed();
    },
    tier({ id, tier, index }) {
      const { work } = state;
      const b = work.ballot;
      b.outcome = 'ranked';
      if (tier === 0 || (index !== undefined && b.tiers[id] === tier)) delete b.tiers[id];
      else b.tiers[id] = tier;
      if (index !== undefined) work.cursor = index;
      changed();
    },
    outcome(value) {
      const { ballot } = state.work;
      ballot.outcome = ballot.outcome === value ? 'ranked' : value;
      changed();
    },
    rate({ id, value }) {
      const { ratings } = state.work.ballot;
      if (ratings[id] === value) delete ratings[id];
      else ratings[id] = value;
      changed();
    },
    flag({ id, code }) {
      const { flags } = state.work.ballot;
      const codes = new Set(flags[id] ?? []);
      if (!codes.delete(code)) codes.add(code);
      if (codes.size) flags[id] = [...codes];
      else delete flags[id];
      changed();
    },
    /** A rating on a dimension of the rubric; an undefined value takes it back. */
    value({ id, key, value }) {
      setValue(state.work.ballot, id, key, value);
      changed();
    },
    /** Marks spans of the answer at this place, or of the one at hand. */
    async mark(place) {
      const { set, ballot, cursor } = state.work;
      const at = place ?? cursor;
      const { id } = set.completions[at];
      focusPage();
      await marksDialog(set.completions[at], {
        x: letter(at),
        marks: ballot.spans[id] ?? [],
        change(marks) {
          if (marks.length) ballot.spans[id] = marks;
          else delete ballot.spans[id];
          changed();
        },
      });
    },
    /** Opens the answer at this place, or the one at hand, to be corrected. */
    correct(place) {
      const { work } = state;
      work.correct(place ?? work.cursor, focusPage);
    },
    /** The corrected text of an answer; an undefined one takes it back. */
    corrected({ id, text }) {
      const { ballot } = state.work;
      if (text === undefined) delete ballot.corrections[id];
      else ballot.corrections[id] = text;
      changed();
    },
    write({ name, value }) {
      const { set, ballot } = state.work;
      ballot[name] = value;
      saveDraft(set.set_id, ballot);
      // a rubric may require the rationale
      if (set.rubric) state.work.refresh();
    },
    more: () => switchView('more'),
    diff: () => switchView('diff'),
    plain: () => switchView('plain'),
    unfold: () => state.work.turnLong(),
    submit() {
      const { work } = state;
      if (!canSubmit(work.ballot, work.set)) return work.missing();
      send(submission(work.ballot, work.set, clock.times()));
    },
    async skip() {
      focusPage();
      const answer = await skipDialog();
      const { work } = state;
      if (answer && work) send(skipSubmission(work.ballot, work.set, clock.times(), answer.reason, answer.note));
    },
    undo,
    stop_revising() {
      dropDraft(state.work.set.set_id);
      advance();
    },
  };

  return (name, value) => {
    if (state.work?.over && !AFTER_SUBMISSION.includes(name)) return;
    actions[name]?.(value);
  };
}

// State of the label page: the person's figures, the set on the screen, sets that wait, the view switches. Other modules
// of the page read it and change it by its methods alone.
import { keep } from '../dom.js';
import { claim } from './tabs.js';

/** @import { Outbox } from './outbox.js' */
/** @import { Work } from './work.js' */

const VIEW = 'instructd.label.view';
const CURRENT = 'instructd.current';
const LAST = 'instructd.last';
/** The server takes at most this many ids of sets that are not to be handed out. */
const MAX_EXCEPT = 60;

export class LabelState {
  #figures = null;
  /** @type {Outbox | null} */
  #outbox = null;
  /** @type {Work | null} */
  #work = null;
  #release = () => {};
  #paused = [];
  /** @type {Promise<any> | null} */
  #prefetched = null;
  #judged = [];
  #noSetReason = null;
  #introduction = null;
  #view = { diff: false, plain: false, more: false, ...keep.get(VIEW) };

  /** The person's own figures (`GET /v1/label/me`) and `open`, the number of sets left; null before sign-in. */
  get figures() {
    return this.#figures;
  }

  /** Judgments on their way to the server; null before sign-in. */
  get outbox() {
    return this.#outbox;
  }

  /** The set on the screen with its ballot; null on a page without a set. */
  get work() {
    return this.#work;
  }

  /** Whether sets wait while an older judgment is open. */
  get hasPaused() {
    return this.#paused.length > 0;
  }

  /** Why the server handed out no set: `empty`, `quota`, or for a named set `judged`, `taken`, `closed`. */
  get noSetReason() {
    return this.#noSetReason;
  }

  /** The guidelines that precede a newcomer's first set: `{el, read()}`, or null. */
  get introduction() {
    return this.#introduction;
  }

  /** View switches that hold for every set: `{diff, plain, more}`. */
  get view() {
    return this.#view;
  }

  /** Somebody has signed in. */
  signIn(outbox) {
    this.#outbox = outbox;
  }

  introduce(introduction) {
    this.#introduction = introduction;
  }

  /** The first judgment shows that the guidelines have been read. */
  endIntroduction() {
    this.#introduction?.read();
    this.#introduction = null;
  }

  toggleView(name) {
    this.#view[name] = !this.#view[name];
    keep.set(VIEW, this.#view);
  }

  // ---- figures

  /** The server has answered with a set, or with none and a reason. */
  receive(set, reason) {
    this.updateFigures({ ...set?.me, ...(set?.queue ? { open: set.queue.open } : {}) });
    this.#noSetReason = set ? null : reason;
  }

  /** Takes over figures of the server, unless they lack unsent judgments that are counted here already. */
  updateFigures(figures) {
    if (this.#outbox.waiting && this.#figures?.open !== undefined) return;
    if (Object.keys(figures).length) this.#figures = { ...this.#figures, ...figures };
  }

  // ---- sets

  /** Puts a set on the screen and claims it for this tab. */
  open(work) {
    this.#release();
    this.#release = claim(work.set.set_id);
    this.#work = work;
    const { set } = work;
    if (!set.judgment) keep.set(CURRENT, { set_id: set.set_id, project_id: set.project_id, asked: set.asked, own: set.own }, sessionStorage);
  }

  /** Takes the set off the screen; other tabs may show it again. */
  close() {
    this.#work = null;
    this.#release();
  }

  /** A reload shows the form for the next message of a conversation again. */
  rememberTalk(talk) {
    keep.set(CURRENT, { talk }, sessionStorage);
  }

  /** What was at hand before the page was loaded again: `{set_id, project_id, asked, own}` of a set, or `{talk}`; or null. */
  get current() {
    return keep.get(CURRENT, sessionStorage);
  }

  /** A reload will not show the set at hand again. */
  forgetCurrent() {
    keep.set(CURRENT, null, sessionStorage);
  }

  /** Puts the set on the screen aside while an older judgment is shown. An older judgment itself is not kept. */
  pause() {
    if (this.#work && !this.#work.ballot.revises) this.#paused.push({ set: this.#work.set, ballot: this.#work.ballot });
  }

  /** The set that was put aside last, as `{set, ballot}`; undefined when none waits. */
  resume() {
    return this.#paused.pop();
  }

  /** Fetches the next set ahead of time, unless that is under way. */
  prefetch(fetchSet) {
    const fetched = (this.#prefetched ??= fetchSet().then((set) =>
      set && set.assignment_id === this.#work?.set.assignment_id ? null : set,
    ));
    fetched.catch(() => {
      if (this.#prefetched === fetched) this.#prefetched = null;
    });
  }

  /** Resolves with the set that was fetched ahead, null when there is none; rejects when fetching it failed. */
  async takePrefetched() {
    try {
      return (await this.#prefetched) ?? null;
    } finally {
      this.#prefetched = null;
    }
  }

  /** The promise of the set that was fetched ahead, or null. */
  get prefetched() {
    return this.#prefetched;
  }

  /** Resolves with the sets whose leases this page holds. */
  async heldSets() {
    const prefetched = await this.#prefetched?.catch(() => null);
    return [this.#work?.set, ...this.#paused.map((p) => p.set), prefetched].filter(Boolean);
  }

  /** Ids of sets that must not be handed out again: shown here or in another tab, unsent, or judged. */
  exceptIds(inOtherTabs) {
    const here = [this.#work?.set, ...this.#paused.map((p) => p.set)].map((set) => set?.set_id);
    // until an unsent judgment arrives, the server takes its set for one in hand
    const unsent = this.#outbox.entries.map((e) => e.context?.set?.set_id);
    return [...new Set([...here, ...unsent, ...inOtherTabs, ...this.#judged])].filter(Boolean).slice(0, MAX_EXCEPT);
  }

  // ---- judgments

  /** Counts a judgment of the set on the screen, before the server has confirmed it. */
  countJudgment(outcome) {
    const { set, ballot } = this.#work;
    this.#judged.unshift(set.set_id);
    this.forgetCurrent();
    if (ballot.revises || !this.#figures) return;
    const me = this.#figures;
    const skipped = outcome === 'skip' ? 1 : 0;
    this.#figures = {
      ...me,
      done_today: (me.done_today ?? 0) + 1 - skipped,
      done_total: (me.done_total ?? 0) + 1 - skipped,
      skipped_today: (me.skipped_today ?? 0) + skipped,
      // a practice set is not part of what is left; the server's next figure corrects this one
      open: me.open === undefined || set.kind === 'calibration' ? me.open : Math.max(0, me.open - 1),
    };
  }

  /** Remembers the stored judgment that "undo" opens again. */
  rememberLast(judgmentId, { assignment_id, lease_token, own }) {
    keep.set(LAST, { id: judgmentId, set: { assignment_id, lease_token, own } }, sessionStorage);
  }

  /** The latest stored judgment of this tab: `{id, set}`, or null. */
  get last() {
    return keep.get(LAST, sessionStorage);
  }
}

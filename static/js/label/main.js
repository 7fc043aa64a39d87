// The label page: takes a set, watches keys, sends the judgment, has the next set ready.
import { ApiError, get, post, withHeaders } from '../api.js';
import { fill, h, icon, keep, toast } from '../dom.js';
import { lang, t, toMs } from '../i18n.js';
import { composing, keyOf } from '../keys.js';
import { failure, requireSession, shell } from '../shell.js';
import {
  FLAGS,
  ballotOf,
  canSubmit,
  dropDraft,
  emptyBallot,
  judgePair,
  letter,
  loadDraft,
  pruneDrafts,
  saveDraft,
  skipSubmission,
  submission,
  verdict,
} from './ballot.js';
import { Outbox } from './outbox.js';
import { claim, inOtherTabs } from './tabs.js';
import { guidelinesFirst, historyDialog, keySheet, skipDialog, toggleGuidelines } from './panels.js';
import { Work } from './work.js';
import { askForm, writeAnswers } from './ask.js';

const LOOK_AT_LEASES = 10e3;
const GONE_AFTER = 5 * 60e3; // without a sign of life a lease may run out
const RENEW_EVERY = 60e3; // signs of life by which the server knows who is at work
const LOOK_FOR_WORK = 15e3; // an empty queue is looked at again
const IDLE_AFTER = 60e3; // without a sign of life the active clock stands still
const MOST_OPEN = 1000; // the server counts no further
const CURRENT = 'instructd.current';
const LAST = 'instructd.last';

const progress = h('button', { class: 'quiet progress-button', type: 'button', title: t('progress.title') });
const saving = h('span', { class: 'saving', role: 'status', 'aria-live': 'polite' });
const guide = h(
  'button',
  { class: 'quiet', type: 'button', 'aria-expanded': 'false', 'aria-label': t('guidelines'), title: t('guidelines') },
  icon('book'),
  h('span', { class: 'tool-text', text: t('guidelines') }),
);
const sheet = h(
  'button',
  { class: 'icon-button help-button', type: 'button', 'aria-label': t('keys.title'), title: t('keys.title') },
  h('kbd', { text: '?' }),
);
const page = shell('label', {
  tools: [h('a', { class: 'button quiet', href: '/label?ask=1', text: t('ask.link') }), guide, sheet],
  status: [saving, progress],
});
document.body.classList.add('label-page');

const view = { ...{ diff: false, plain: false, more: false }, ...keep.get('instructd.label.view') };
let me = null;
let work = null; // what is on the screen
const paused = []; // sets put aside while an older judgment is reopened
let next = null; // promise of the prefetched set
let clock = { shown: 0, active: 0, last: 0 };
let outbox;
let hideReveal = null;
let nothing = null; // why there is no set: empty, quota, or (for a named one) judged, taken, closed
const judged = []; // sets judged on this page, the latest first
let newcomer = null; // the guidelines that stand before the first set
let letGo = null; // gives the claim on the shown set up
let retry = null; // a failure on the screen that goes away by itself

// ---- time and leases

function sign() {
  const now = performance.now();
  if (!document.hidden) clock.active += Math.min(now - clock.last, IDLE_AFTER);
  clock.last = now;
}
for (const type of ['pointermove', 'keydown', 'scroll', 'touchstart'])
  window.addEventListener(type, sign, { passive: true, capture: true });
document.addEventListener('visibilitychange', () => (clock.last = performance.now()));
const times = () => (sign(), { activeMs: Math.max(1, clock.active), wallMs: Math.max(1, performance.now() - clock.shown) });

/** A minute has passed, or half of the lease (the server says how long one lasts): time to renew it. */
function due(set) {
  if (!set?.lease_token || set.judgment || !set.expires_at) return false;
  set.lease_ms ??= toMs(set.expires_at) - Date.now();
  set.renewed_at ??= Date.now();
  return Date.now() - set.renewed_at >= RENEW_EVERY || toMs(set.expires_at) - Date.now() < set.lease_ms / 2;
}

setInterval(async () => {
  const idle = performance.now() - clock.last > GONE_AFTER || document.hidden;
  if (idle) return;
  const held = [work?.set, ...paused.map((p) => p.set), next ? await next.catch(() => null) : null];
  for (const set of held.filter(due)) {
    set.renewed_at = Date.now();
    post(`/v1/label/${encodeURIComponent(set.assignment_id)}/renew`, { lease_token: set.lease_token })
      .then((a) => a?.expires_at && (set.expires_at = a.expires_at))
      .catch((e) => {
        // a lost lease loses no work: the judgment is still taken if the place is free
        if (set === work?.set && [404, 409, 410].includes(e.status)) work.say(t('label.lease_lost'));
      });
  }
}, LOOK_AT_LEASES);

// ---- fetching and showing

async function fetchNext(setId) {
  const here = [work?.set, ...paused.map((p) => p.set)].map((x) => x?.set_id);
  // a judgment may still be on its way: until it arrives, its set looks like one in hand
  const unsent = (outbox.entries ?? []).map((e) => e.context?.set?.set_id);
  const others = setId ? [] : await inOtherTabs();
  const except = [...new Set([...here, ...unsent, ...others, ...judged])].filter(Boolean).slice(0, 60);
  const query = setId ? { set_id: setId, lang } : { resume: true, except: except.join(','), lang };
  const { body: set, headers } = await withHeaders('/v1/label/next', query);
  know(set);
  nothing = set ? null : (headers.get('x-queue') ?? 'empty');
  return set;
}

/** Takes the person's figures out of a set that was handed out. */
function know(set) {
  // what is still on its way is counted here already, and not yet by the server
  if (outbox.waiting && me?.open !== undefined) return;
  if (set?.me) me = { ...me, ...set.me };
  if (set?.queue) me = { ...me, open: set.queue.open };
}

/** The same without a set. */
async function knowOwn() {
  const own = await get('/v1/label/me');
  if (!outbox.waiting || me?.open === undefined) me = { ...me, ...own, open: own.queue_open };
  showProgress();
  return own;
}

function prefetch() {
  next ??= fetchNext().then((set) => (set && set.assignment_id === work?.set?.assignment_id ? null : set));
  next.catch(() => (next = null));
}

/** Shows a failure that is tried again by itself: after a while, when the network is back, when work was sent. */
function showFailure(error, again) {
  const tries = (retry?.tries ?? 0) + 1;
  clearTimeout(retry?.timer);
  retry = { again, tries, timer: setTimeout(tryAgain, Math.min(2 ** tries, 20) * 1000) };
  fill(page.main, h('div', { class: 'centre' }, failure(error, tryAgain)));
}

function tryAgain() {
  if (!retry) return;
  clearTimeout(retry.timer);
  retry.again();
}
window.addEventListener('online', () => tryAgain());

/** What was just judged has arrived; on a slow network the work goes on without waiting longer. */
async function arrived() {
  const until = performance.now() + 3000;
  await outbox.pump();
  while (outbox.busy && performance.now() < until) await new Promise((done) => setTimeout(done, 20));
}

async function advance() {
  work = null;
  letGo?.();
  keep.set(CURRENT, null, sessionStorage);
  if (paused.length) {
    const back = paused.pop();
    return show(back.set, back.ballot);
  }
  if (!retry) fill(page.main, h('p', { class: 'loading', text: t('loading') }));
  try {
    const ready = next ? await next : null;
    next = null;
    // nothing prefetched: let the last judgment arrive first, or the server may hand out the same place
    if (!ready) await arrived();
    const set = ready ?? (await fetchNext());
    if (!set) await knowOwn();
    clearTimeout(retry?.timer);
    retry = null;
    showProgress();
    if (set) show(set);
    else showEmpty();
  } catch (e) {
    next = null;
    if (e.status === 401) return start();
    showFailure(e, advance);
  }
}

function show(set, ballot) {
  const draft = ballot ?? (set.judgment ? ballotOf(set.judgment) : loadDraft(set.set_id)) ?? emptyBallot();
  letGo?.();
  letGo = claim(set.set_id);
  work = new Work(set, draft, view, act);
  clock = { shown: performance.now(), active: 0, last: performance.now() };
  if (!set.judgment) keep.set(CURRENT, { set_id: set.set_id, asked: set.asked }, sessionStorage);
  if (newcomer) work.el.prepend(newcomer.el);
  fill(page.main, work.el);
  showProgress();
  window.scrollTo(0, 0);
  page.main.focus({ preventScroll: true });
  if (!ballot && !set.judgment && loadDraft(set.set_id)) toast(t('label.draft_restored'));
  setTimeout(() => work?.set === set && !paused.length && !set.judgment && !set.asked && prefetch(), 1200);
}

function showEmpty(asking = false, form = {}) {
  work = null;
  letGo?.();
  const quota = nothing === 'quota';
  document.title = `${t(asking ? 'ask.title' : quota ? 'quota.title' : 'empty.title')} · instructd`;
  fill(
    page.main,
    h(
      'div',
      { class: 'centre empty' },
      h('h1', { text: t(asking ? 'ask.title' : quota ? 'quota.title' : 'empty.title') }),
      h('p', { class: 'muted', text: t(!asking && quota ? 'quota.text' : asking ? 'empty.text' : 'empty.waiting') }),
      askForm((question) => ask(question, asking), form),
      h(
        'p',
        null,
        h('button', {
          type: 'button',
          class: 'quiet',
          text: t(asking ? 'ask.to_queue' : 'empty.look_again'),
          on: { click: advance },
        }),
      ),
    ),
  );
  if (asking || form.problem) page.main.querySelector('textarea').focus();
  else lookForWork();
}

/** Looks for work while the queue is empty; what somebody is writing stays on the screen. */
function lookForWork() {
  const empty = page.main.querySelector('.empty');
  setTimeout(async () => {
    if (!empty?.isConnected) return;
    if (document.hidden) return lookForWork();
    const own = await knowOwn().catch(() => null);
    if (!empty.isConnected) return;
    if (!own || !(own.queue_open > 0 || own.onboarding)) return lookForWork();
    const writing = empty.querySelector('textarea');
    if (writing.value.trim() === '' && document.activeElement !== writing) return advance();
    if (!empty.querySelector('.work-there'))
      empty.prepend(
        h(
          'div',
          { class: 'notice work-there', role: 'status' },
          h('p', { text: t('empty.there', { n: own.queue_open }) }),
          h('button', { type: 'button', text: t('ask.to_queue'), on: { click: advance } }),
        ),
      );
    lookForWork();
  }, LOOK_FOR_WORK);
}

/** Answers stream in where they will be ranked; the set is already this person's when they are written. */
async function ask(question, asking) {
  try {
    const set = await writeAnswers(page.main, question);
    if (!set) return showEmpty(asking, question);
    know(set);
    show({ ...set, asked: true });
  } catch (e) {
    if (e.status === 401) return start();
    showEmpty(asking, { ...question, problem: e.plain ?? e.message });
  }
}

/** Takes over one set by its id: a link from elsewhere. */
async function take(setId) {
  const set = await fetchNext(setId);
  if (!set) {
    const reasons = ['judged', 'taken', 'closed', 'quota'];
    const why = reasons.includes(nothing) ? `named.${nothing}` : 'ask.not_handed_out';
    throw new ApiError(409, { error: { message: t(why) } });
  }
  show({ ...set, asked: true });
}

function showProgress() {
  const parts = [t('progress.short', { n: me?.done_today ?? 0 })];
  const open = me?.open;
  if (open !== undefined) parts.push(open >= MOST_OPEN ? t('progress.left_many', { n: MOST_OPEN }) : t('progress.left', { n: open }));
  fill(
    progress,
    parts.map((text, i) => h('span', { class: i ? 'open-count' : '', text })),
  );
  if (work) document.title = `${open === undefined ? '' : `${parts[1]} · `}${t('title.label')} · instructd`;
}

// ---- actions

const changed = () => {
  saveDraft(work.set.set_id, work.ballot);
  work.refresh();
};

const actions = {
  at(index) {
    work.moveTo(index, false);
  },
  /** A click on an answer chooses it, once; it does not grow stronger. */
  choose(value) {
    if (work.ballot.outcome === 'ranked' && verdict(work.ballot, work.set) === value) return;
    judgePair(work.ballot, work.set, value);
    changed();
  },
  /** A step of the scale: which is better and by how much at once. */
  scale({ value, strength }) {
    const b = work.ballot;
    if (verdict(b, work.set) !== value || b.outcome !== 'ranked') judgePair(b, work.set, value);
    b.strength = value === 'tie' || b.strength === strength ? null : strength;
    changed();
  },
  pair(value) {
    judgePair(work.ballot, work.set, value);
    changed();
  },
  strength(value) {
    work.ballot.strength = work.ballot.strength === value ? null : value;
    changed();
  },
  tier({ id, tier, index }) {
    const b = work.ballot;
    b.outcome = 'ranked';
    if (tier === 0 || (index !== undefined && b.tiers[id] === tier)) delete b.tiers[id];
    else b.tiers[id] = tier;
    if (index !== undefined) work.cursor = index;
    changed();
  },
  outcome(value) {
    work.ballot.outcome = work.ballot.outcome === value ? 'ranked' : value;
    changed();
  },
  rate({ id, value }) {
    if (work.ballot.ratings[id] === value) delete work.ballot.ratings[id];
    else work.ballot.ratings[id] = value;
    changed();
  },
  flag({ id, code }) {
    const codes = new Set(work.ballot.flags[id] ?? []);
    if (!codes.delete(code)) codes.add(code);
    if (codes.size) work.ballot.flags[id] = [...codes];
    else delete work.ballot.flags[id];
    changed();
  },
  write({ name, value }) {
    work.ballot[name] = value;
    saveDraft(work.set.set_id, work.ballot);
  },
  more: () => switchView('more'),
  diff: () => switchView('diff'),
  plain: () => switchView('plain'),
  submit() {
    if (!canSubmit(work.ballot, work.set)) return work.missing();
    send(submission(work.ballot, work.set, times()));
  },
  async skip() {
    const answer = await skipDialog();
    if (answer && work) send(skipSubmission(work.ballot, work.set, times(), answer.reason, answer.note));
    else page.main.focus({ preventScroll: true });
  },
  async undo() {
    await outbox.pump();
    const last = keep.get(LAST, sessionStorage);
    if (last) reopen(last.id, last);
    else toast(t('label.nothing_to_undo'));
  },
  stop_revising() {
    dropDraft(work.set.set_id);
    advance();
  },
};

function act(name, value) {
  if (work?.over && !['more', 'diff', 'plain', 'undo'].includes(name)) return;
  actions[name]?.(value);
}

function switchView(name) {
  view[name] = !view[name];
  keep.set('instructd.label.view', view);
  work.refresh();
  if (name !== 'more') work.renderTexts();
  else if (view.more && /** @type {HTMLElement | null} */ (document.activeElement)?.dataset?.act === 'more') work.more.querySelector('textarea').focus();
}

/** Shows an older judgment again; what is on the screen waits. */
async function reopen(id, known) {
  try {
    const answer = await get(`/v1/label/judgments/${encodeURIComponent(id)}`);
    const set = { ...known?.set, ...answer };
    set.lease_token ??= known?.set?.lease_token ?? '';
    if (work && !work.ballot.revises) paused.push({ set: work.set, ballot: work.ballot });
    show(set, ballotOf(set.judgment));
  } catch (e) {
    toast(e.message, { kind: 'bad' });
  }
}

function send(body) {
  const { set, ballot } = work;
  newcomer?.read();
  newcomer = null;
  judged.unshift(set.set_id);
  dropDraft(set.set_id);
  if (!ballot.revises && me) {
    const skipped = body.outcome === 'skip' ? 1 : 0;
    me = {
      ...me,
      done_today: (me.done_today ?? 0) + 1 - skipped,
      done_total: (me.done_total ?? 0) + 1 - skipped,
      skipped_today: (me.skipped_today ?? 0) + skipped,
      // practice is not part of what is left; the server's next figure puts this right
      open: me.open === undefined || set.kind === 'calibration' ? me.open : Math.max(0, me.open - 1),
    };
  }
  showProgress();
  keep.set(CURRENT, null, sessionStorage); // judged: a reload must not bring it back
  outbox.add(set.assignment_id, body, { set, ballot });
  // what is practised is answered at once; should the network be slow, the work goes on
  if (set.kind === 'calibration' && body.outcome !== 'skip') work.wait(() => work?.set === set && advance());
  else advance();
}

function stored(answer, entry) {
  tryAgain(); // what is sent again shows that the server is back
  const { set } = entry.context;
  const judgment = answer?.judgment;
  if (judgment)
    keep.set(LAST, { id: judgment.id, set: { assignment_id: set.assignment_id, lease_token: set.lease_token } }, sessionStorage);
  if (answer?.verdict && work?.set === set) return work.showVerdict(answer.verdict, advance);
  const reveal = answer?.reveal ?? [];
  const names = set.completions
    .map((c, i) => [letter(i), reveal.find((r) => r.completion_id === c.id)?.model])
    .filter(([, model]) => model);
  hideReveal?.();
  hideReveal = toast(
    names.length
      ? h(
          'dl',
          { class: `reveal ${names.length > 3 ? 'many' : ''}` },
          names.map(([x, model]) =>
            h('div', null, h('dt', { text: x }), h('dd', { text: typeof model === 'string' ? model : (model.name ?? '') })),
          ),
        )
      : t(entry.body?.outcome === 'skip' ? 'label.skipped' : 'label.stored'),
    { kind: 'good', seconds: names.length ? 8 : 3, action: { label: t('label.undo'), run: () => actions.undo() } },
  );
}

function refused(error, entry) {
  const { set, ballot } = entry.context;
  saveDraft(set.set_id, ballot);
  toast(t('label.refused', { why: error.message }), {
    kind: 'bad',
    seconds: 0,
    action: {
      label: t('label.look'),
      run: () => {
        if (work && !work.ballot.revises) paused.push({ set: work.set, ballot: work.ballot });
        show(set, ballot);
      },
    },
  });
}

// ---- keys

const asleep = (target) =>
  document.querySelector('dialog[open]') ||
  (target instanceof Element &&
    target.closest('button,a,input,textarea,select,summary,[contenteditable],[role=button]') !== null);

window.addEventListener('keydown', (e) => {
  if (!work || composing(e) || e.repeat) return;
  const k = keyOf(e);
  if (k === 'Enter' && (e.ctrlKey || e.metaKey) && !document.querySelector('dialog[open]')) {
    e.preventDefault();
    return work.over ? work.next() : act('submit');
  }
  if (k === 'Escape' && !document.querySelector('dialog[open]')) {
    work.arm(null);
    if (!document.querySelector('.drawer')) page.main.focus({ preventScroll: true });
    return;
  }
  if (e.ctrlKey || e.metaKey || e.altKey || asleep(e.target)) return;
  if (k !== null && onKey(k)) e.preventDefault();
});

function onKey(k) {
  const { pair } = work;
  if (work.over) return k === 'Enter' && (work.next(), true);
  // after R or F, a digit is a rating or a flag of the answer at hand
  if (work.armed && /^[1-9]$/.test(k)) {
    const { id } = work.set.completions[work.cursor];
    const kind = work.armed;
    work.arm(null);
    if (Number(k) <= 7) act(kind === 'rate' ? 'rate' : 'flag', kind === 'rate' ? { id, value: Number(k) } : { id, code: FLAGS[k - 1] });
    return true;
  }
  if (k === 'Enter') return (act('submit'), true);
  if (k === 'r' || k === 'f') {
    if (!view.more) switchView('more');
    return (work.arm(k === 'r' ? 'rate' : 'flag'), true);
  }
  if (pair) {
    if (k === '1' || k === 'ArrowLeft') return (act('pair', 'a'), true);
    if (k === '2' || k === 'ArrowRight') return (act('pair', 'b'), true);
    if (k === '=' || k === '0') return (act('pair', 'tie'), true);
    if (k === 'a' || k === 'b') return (work.moveTo(k === 'a' ? 0 : 1), true);
  } else {
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
  }
  const simple = {
    x: ['outcome', 'all_bad'],
    c: ['outcome', 'unrankable'],
    s: ['skip'],
    u: ['undo'],
    m: ['more'],
    d: ['diff'],
    p: ['plain'],
  };
  if (simple[k]) return (act(...simple[k]), true);
  if (k === 'g') return (guide.click(), true);
  if (k === '?') return (keySheet(), true);
  return false;
}

// A control used with the pointer gives the focus back, so the keys wake up at once.
document.addEventListener('click', (e) => {
  if (e.detail === 0 || document.querySelector('dialog[open]')) return;
  const control = /** @type {Element} */ (e.target).closest?.('button');
  if (control === guide && document.querySelector('.drawer')) return; // the drawer has the focus
  if (control && work && (page.main.contains(control) || page.header.contains(control))) page.main.focus({ preventScroll: true });
});

progress.addEventListener('click', async () => {
  try {
    const judgment = await historyDialog();
    if (judgment) reopen(judgment.id);
  } catch (e) {
    toast(e.message, { kind: 'bad' });
  }
});
guide.addEventListener('click', () => toggleGuidelines(document.body, guide));
sheet.addEventListener('click', () => keySheet());

// A set that was only prefetched goes back to the queue when the page closes.
window.addEventListener('pagehide', () => {
  next?.then(
    (set) =>
      set?.lease_token &&
      post(
        `/v1/label/${encodeURIComponent(set.assignment_id)}/release`,
        { lease_token: set.lease_token },
        { keepalive: true },
      ).catch(() => {}),
  );
});

// ---- start

async function start() {
  try {
    const labeler = await requireSession(page, { note: t('sign.why_label') });
    pruneDrafts();
    outbox = new Outbox({
      owner: labeler.id,
      ownerName: labeler.name,
      onStored: stored,
      onRefused: refused,
      onState: ({ waiting, failing }) => (saving.textContent = failing && waiting ? t('label.unsent', { n: waiting }) : ''),
    });
    outbox.pump();
    const own = await knowOwn();
    newcomer = await guidelinesFirst(labeler, own);
    clearTimeout(retry?.timer);
    retry = null;
    const asking = new URL(location.href).searchParams.has('ask');
    const current = keep.get(CURRENT, sessionStorage);
    const wanted = new URL(location.href).searchParams.get('set_id');
    history.replaceState(null, '', '/label');
    if (asking) return showEmpty(true);
    if (wanted && current?.set_id !== wanted) {
      return await take(wanted).catch((e) => {
        toast(e.message, { kind: 'bad' });
        return advance();
      });
    }
    // a reload shows the set at hand again, with figures of now; it may have gone in the meantime
    if (current?.set_id) {
      const set = await fetchNext(current.set_id).catch((e) => {
        if (e.status === 404) return null;
        throw e;
      });
      if (set) return show({ ...set, asked: current.asked });
    }
    await advance();
  } catch (e) {
    showFailure(e, start);
  }
}

start();

// The label page: takes a set, shows it, sends the judgment, and has the next set ready.
import { ApiError, get, withHeaders } from '../api.js';
import { fill, h, icon, toast } from '../dom.js';
import { lang, t } from '../i18n.js';
import { requireSession, shell } from '../shell.js';
import { createActions } from './actions.js';
import { writeAnswers } from './ask.js';
import { ballotOf, dropDraft, emptyBallot, loadDraft, pruneDrafts, saveDraft } from './ballot.js';
import { ActivityClock } from './clock.js';
import { showEmptyPage } from './empty.js';
import { watchKeys } from './keyboard.js';
import { keyName, keymap } from './keymap.js';
import { keySheet } from './keysheet.js';
import { keepLeases } from './leases.js';
import { Outbox } from './outbox.js';
import { guidelinesFirst, historyDialog, toggleGuidelines } from './panels.js';
import { ProjectChoice } from './project.js';
import { Retry } from './retry.js';
import { JudgmentNotice } from './reveal.js';
import { keepToRubric } from './rubric.js';
import { LabelState } from './state.js';
import { inOtherTabs } from './tabs.js';
import { earlierMessages, nextMessage, nextSetOf } from './talk.js';
import { Work } from './work.js';

/** @import { Talk } from './talk.js' */

const MOST_OPEN = 100; // the server counts no further
const PREFETCH_AFTER = 1200;
const ARRIVAL_TIMEOUT = 3000;

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
let isAdmin = false;
const project = new ProjectChoice();
const page = shell('label', {
  tools: [project.el, h('a', { class: 'button quiet', href: '/label?ask=1', text: t('ask.link') }), guide, sheet],
  status: [saving, progress],
});
document.body.classList.add('label-page');

const state = new LabelState();
const clock = new ActivityClock();
const retry = new Retry(page.main);
const notice = new JudgmentNotice();
const act = createActions({ state, clock, main: page.main, send, undo, advance });
keepLeases(state, clock);
watchKeys({ state, page, guide, sheet, act });

// ---- fetching

/** The next set, or the named one; null when the server hands out none. */
async function fetchSet(setId) {
  const except = setId ? [] : state.exceptIds(await inOtherTabs());
  const query = setId ? { set_id: setId, lang } : { resume: true, except: except.join(','), lang, project: project.id };
  const { body: set, headers } = await withHeaders('/v1/label/next', query);
  state.receive(set, headers.get('x-queue') ?? 'empty');
  return set;
}

/** The person's figures, also in the header. */
async function loadFigures() {
  const own = await get('/v1/label/me', { project: project.id });
  state.updateFigures({ ...own, open: own.queue_open });
  showProgress();
  return own;
}

/** Resolves once what was just judged has arrived, on a slow network after three seconds. */
async function arrived() {
  const until = performance.now() + ARRIVAL_TIMEOUT;
  await state.outbox.pump();
  while (state.outbox.busy && performance.now() < until) await new Promise((done) => setTimeout(done, 20));
}

// ---- showing

/** Shows the set that was put aside, or the next one, or that there is none. */
async function advance() {
  state.close();
  state.forgetCurrent();
  const paused = state.resume();
  if (paused) return show(paused.set, paused.ballot);
  if (!retry.pending) fill(page.main, h('p', { class: 'loading', text: t('loading') }));
  try {
    let set = await state.takePrefetched();
    if (!set) {
      // the last judgment arrives first, or the server may hand out its set again
      await arrived();
      set = await fetchSet();
    }
    if (!set) await loadFigures();
    retry.clear();
    showProgress();
    if (set) show(set);
    else showEmpty();
  } catch (e) {
    if (e.status === 401) return start();
    retry.show(e, advance);
  }
}

function show(set, ballot) {
  const draft = ballot ?? (set.judgment ? ballotOf(set.judgment) : loadDraft(set.set_id)) ?? emptyBallot();
  keepToRubric(draft, set);
  const work = new Work(set, draft, state.view, act);
  state.open(work);
  clock.restart();
  if (state.introduction) work.el.prepend(state.introduction.el);
  fill(page.main, work.el);
  showProgress();
  window.scrollTo(0, 0);
  page.main.focus({ preventScroll: true });
  if (!ballot && !set.judgment && loadDraft(set.set_id)) toast(t('label.draft_restored'));
  setTimeout(() => {
    if (state.work?.set === set && !state.hasPaused && !set.judgment && !set.asked) state.prefetch(fetchSet);
  }, PREFETCH_AFTER);
}

function showEmpty(asking = false, form = {}) {
  state.close();
  const quota = state.noSetReason === 'quota';
  showEmptyPage(page.main, { asking, draws: isAdmin, form, quota, onAsk: (question) => ask(question, asking), advance, loadFigures });
}

/** Streams answers to a question into the places where they will be ranked, then shows their set. */
async function ask(question, asking) {
  try {
    const set = await writeAnswers(page.main, { ...question, project: project.id });
    if (!set) return showEmpty(asking, question);
    state.receive(set);
    show({ ...set, asked: true, own: { n: question.n, sampling: question.sampling } });
  } catch (e) {
    if (e.status === 401) return start();
    showEmpty(asking, { ...question, problem: e.plain ?? e.message });
  }
}

/** The form for the next message of a conversation, behind a set that was just judged. @param {Talk} talk */
function goOn(talk) {
  state.close();
  state.rememberTalk(talk);
  document.title = `${t('talk.title')} · instructd`;
  const form = nextMessage(talk, {
    onChange: (next) => state.rememberTalk({ ...talk, ...next, problem: '' }),
    onSend: (next) => sendMessage({ ...talk, ...next, problem: '' }),
    onEnd: advance,
  });
  fill(page.main, form);
  showProgress();
  window.scrollTo(0, 0);
}

/** Streams answers to the next message, then shows their set. @param {Talk} talk */
async function sendMessage(talk) {
  const { set, own, chosen, content } = talk;
  state.rememberTalk(talk);
  try {
    await arrived(); // only a judged set is continued
    const next = { set_id: set.set_id, completion_id: chosen };
    const answers = await writeAnswers(page.main, { ...own, content, next, earlier: earlierMessages(talk, chosen) });
    if (!answers) return goOn(talk);
    state.receive(answers);
    show({ ...answers, asked: true, own });
  } catch (e) {
    if (e.status === 401) return start();
    // the answers may be stored although the connection was lost
    const later = await nextSetOf(set.set_id).catch(() => null);
    const problem = e.plain ?? e.message;
    if (later) return take(later, own).catch(() => goOn({ ...talk, problem }));
    goOn({ ...talk, problem });
  }
}

/** Takes over one set by its id: a link from elsewhere, or the next turn of a conversation. */
async function take(setId, own) {
  const set = await fetchSet(setId);
  if (!set) {
    const reason = state.noSetReason;
    const why = ['judged', 'taken', 'closed', 'quota'].includes(reason) ? `named.${reason}` : 'ask.not_handed_out';
    throw new ApiError(409, { error: { message: t(why) } });
  }
  show({ ...set, asked: true, own });
}

function showProgress() {
  const { figures } = state;
  const parts = [t('progress.short', { n: figures?.done_today ?? 0 })];
  const open = figures?.open;
  if (open !== undefined) parts.push(open >= MOST_OPEN ? t('progress.left_many', { n: MOST_OPEN }) : t('progress.left', { n: open }));
  fill(
    progress,
    parts.map((text, i) => h('span', { class: i ? 'open-count' : '', text })),
  );
  if (state.work) document.title = `${open === undefined ? '' : `${parts[1]} · `}${t('title.label')} · instructd`;
}

/** The person's keys on the buttons. */
function showKeys() {
  fill(sheet, h('kbd', { text: keyName(keymap.of('sheet')) }));
  state.work?.showKeys();
}

// ---- judgments

/** Hands the judgment of the set on the screen to the outbox and goes on. */
function send(body) {
  const { work } = state;
  const { set, ballot } = work;
  state.endIntroduction();
  dropDraft(set.set_id);
  state.countJudgment(body.outcome);
  showProgress();
  state.outbox.add(set.assignment_id, body, { set, ballot });
  // a practice set shows its verdict; on a slow network the work goes on without it
  if (set.own && body.outcome !== 'skip' && !state.hasPaused) goOn({ set, ballot, own: set.own });
  else if (set.kind === 'calibration' && body.outcome !== 'skip') work.wait(() => state.work?.set === set && advance());
  else advance();
}

function onStored(answer, entry) {
  retry.now(); // an answer shows that the server can be reached
  const { set } = entry.context;
  if (answer?.judgment) state.rememberLast(answer.judgment.id, set);
  if (answer?.verdict && state.work?.set === set) return state.work.showVerdict(answer.verdict, advance);
  notice.show(set, { reveal: answer?.reveal, skipped: entry.body?.outcome === 'skip', onUndo: undo });
}

async function onRefused(error, entry) {
  const { set, ballot } = entry.context;
  // a rubric was activated while the set was at hand: the set is rated by it
  if (error.param === 'rubric_version') set.rubric = (await get('/v1/rubric', { project: set.project_id }).catch(() => null))?.rubric ?? set.rubric;
  // This set was judged in another tab, under the same key: that judgment stays, and the history opens it.
  if (error.code === 'idempotency_key_reused') return void toast(t('label.refused', { why: t('named.judged') }), { kind: 'bad' });
  saveDraft(set.set_id, ballot);
  toast(t('label.refused', { why: error.message }), {
    kind: 'bad',
    seconds: 0,
    action: {
      label: t('label.look'),
      run: () => {
        state.pause();
        show(set, ballot);
      },
    },
  });
}

/** Opens the latest judgment of this tab again. */
async function undo() {
  await state.outbox.pump();
  const { last } = state;
  if (last) reopen(last.id, last);
  else toast(t('label.nothing_to_undo'));
}

/** Opens an older judgment; the set on the screen is put aside. */
async function reopen(id, known) {
  try {
    const answer = await get(`/v1/label/judgments/${encodeURIComponent(id)}`);
    const set = { ...known?.set, ...answer };
    set.lease_token ??= known?.set?.lease_token ?? '';
    state.pause();
    show(set, ballotOf(set.judgment));
  } catch (e) {
    toast(e.message, { kind: 'bad' });
  }
}

/** Goes on with an earlier conversation from the judgment of its last turn; the set on the screen is put aside. */
async function resume(id) {
  try {
    const set = await get(`/v1/label/judgments/${encodeURIComponent(id)}`);
    state.pause();
    goOn({ set, ballot: ballotOf(set.judgment), own: { n: set.completions.length, sampling: {} } });
  } catch (e) {
    toast(e.message, { kind: 'bad' });
  }
}

progress.addEventListener('click', async () => {
  try {
    const chosen = await historyDialog(project.id);
    if (chosen?.reopen) await reopen(chosen.reopen);
    if (chosen?.goOn) await resume(chosen.goOn);
  } catch (e) {
    toast(e.message, { kind: 'bad' });
  }
});
guide.addEventListener('click', () => toggleGuidelines(document.body, guide, project.id));
sheet.addEventListener('click', async (e) => {
  await keySheet();
  showKeys();
  // opened with the pointer: keys work again at once
  if (e.detail) page.main.focus({ preventScroll: true });
});

// ---- start

async function start() {
  try {
    const labeler = await requireSession(page, { note: t('sign.why_label') });
    isAdmin = labeler.role === 'admin';
    pruneDrafts();
    keymap.load(labeler.id);
    showKeys();
    // the keys of this browser work without an answer
    keymap.follow().then(showKeys, () => {});
    state.signIn(
      new Outbox({
        owner: labeler.id,
        ownerName: labeler.name,
        onStored,
        onRefused,
        onState: ({ waiting, failing }) => (saving.textContent = failing && waiting ? t('label.unsent', { n: waiting }) : ''),
      }),
    );
    state.outbox.pump();
    const wanted = new URL(location.href).searchParams.get('project');
    await project.load(labeler.id, wanted, changeProject);
    // An address that names another project than that of the set at hand puts the set aside.
    if (wanted && state.current?.project_id && state.current.project_id !== wanted) state.forgetCurrent();
    const own = await loadFigures();
    state.introduce(await guidelinesFirst(labeler, own, project.id));
    retry.clear();
    await showFirst();
  } catch (e) {
    retry.show(e, start);
  }
}

/** Begins again in the project that was just chosen. The set at hand stays leased and comes back with its project. */
function changeProject() {
  state.close();
  state.forgetCurrent();
  location.assign('/label');
}

/** Shows what the address names, the set that was at hand before a reload, or the next one. */
async function showFirst() {
  const address = new URL(location.href).searchParams;
  const { current } = state;
  history.replaceState(null, '', '/label');
  if (address.has('ask')) return showEmpty(true);
  const wanted = address.get('set_id');
  if (wanted && current?.set_id !== wanted) {
    return await take(wanted).catch((e) => {
      toast(e.message, { kind: 'bad' });
      return advance();
    });
  }
  if (current?.talk) return goOn(current.talk);
  // a reload shows the set at hand again with current figures; it may be gone by then
  if (current?.set_id) {
    const set = await fetchSet(current.set_id).catch((e) => {
      if (e.status === 404) return null;
      throw e;
    });
    if (set) return show({ ...set, asked: current.asked, own: current.own });
  }
  await advance();
}

start();

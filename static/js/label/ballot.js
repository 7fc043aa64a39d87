// What one person has decided about one set, without any DOM. Plain JSON inside, so a draft is a copy of it.
import { newKey } from '../api.js';
import { isComplete, ratingsOf, valuesOfJudgment } from './rubric.js';

/** Name of the answer at place `i`: A, B, … */
export const letter = (i) => String.fromCharCode(65 + i);

export const STRENGTHS = ['barely', 'slightly', 'clearly', 'significantly'];
export const FLAGS = ['ignores_instruction', 'untrue', 'harmful', 'private_data', 'wrong_language', 'repetitive', 'broken_text'];
export const SKIP_REASONS = ['too_long', 'not_my_language', 'needs_expert', 'uncomfortable', 'broken', 'other'];

/** A fresh ballot: nothing ranked, nothing said. */
export const emptyBallot = () => ({
  tiers: {}, // completion id → 1 (best) … K
  strength: null,
  outcome: 'ranked', // or all_bad, unrankable
  ratings: {}, // completion id → 1…7
  flags: {}, // completion id → [code]
  rubric: null, // version of the rubric that `values` are by
  values: {}, // completion id → dimension → value
  spans: {}, // completion id → [{start, end, note}] in code points of the stored text
  corrections: {}, // completion id → text
  rationale: '',
  ideal: '',
  revises: null,
  key: newKey(), // one idempotency key for every retry of this ballot
});

/** The stored judgment turned back into a ballot that will supersede it. */
export function ballotOf(judgment) {
  const b = emptyBallot();
  b.revises = judgment.id;
  b.outcome = judgment.outcome === 'skip' ? 'ranked' : judgment.outcome;
  b.strength = judgment.strength ?? null;
  b.rationale = judgment.outcome === 'skip' ? '' : (judgment.rationale ?? '');
  b.rubric = judgment.rubric_version ?? null;
  b.values = valuesOfJudgment(judgment);
  for (const item of judgment.items ?? []) {
    b.tiers[item.completion_id] = item.tier + 1;
    if (item.rating) b.ratings[item.completion_id] = item.rating;
  }
  for (const { completion_id, start, end, note } of judgment.spans ?? [])
    (b.spans[completion_id] ??= []).push({ start, end, ...(note ? { note } : {}) });
  for (const flag of judgment.flags ?? []) {
    if (flag.completion_id) (b.flags[flag.completion_id] ??= []).push(flag.code);
  }
  return b;
}

export const isRanked = (ballot, set) => set.completions.every((c) => ballot.tiers[c.id]);
export const canSubmit = (ballot, set) => ballot.outcome !== 'ranked' || (isRanked(ballot, set) && isComplete(ballot, set));
export const isTouched = (b) =>
  Object.keys(b.tiers).length > 0 ||
  b.outcome !== 'ranked' ||
  Object.keys(b.ratings).length > 0 ||
  Object.keys(b.flags).length > 0 ||
  Object.keys(b.values).length > 0 ||
  Object.keys(b.spans).length > 0 ||
  Object.keys(b.corrections).length > 0 ||
  b.rationale !== '' ||
  b.ideal !== '';

/** Pair verdict: 'a', 'b', 'tie' or null. */
export function verdict(ballot, set) {
  const [a, b] = set.completions.map((c) => ballot.tiers[c.id]);
  if (!a || !b) return null;
  return a === b ? 'tie' : a < b ? 'a' : 'b';
}

/** Sets the pair verdict. The same side again makes it stronger: none → barely → … → significantly → none. */
export function judgePair(ballot, set, value) {
  const before = ballot.outcome === 'ranked' ? verdict(ballot, set) : null;
  ballot.outcome = 'ranked';
  const [a, b] = set.completions;
  ballot.tiers = { [a.id]: value === 'b' ? 2 : 1, [b.id]: value === 'a' ? 2 : 1 };
  if (value === 'tie' || before !== value) ballot.strength = null;
  else ballot.strength = STRENGTHS[STRENGTHS.indexOf(ballot.strength) + 1] ?? null;
}

/** Tiers as stored: dense, 0 best. */
function denseItems(ballot, set) {
  const used = [...new Set(set.completions.map((c) => ballot.tiers[c.id]))].sort((x, y) => x - y);
  return set.completions.map((c) => ({
    completion_id: c.id,
    tier: used.indexOf(ballot.tiers[c.id]),
    ...(ballot.ratings[c.id] ? { rating: ballot.ratings[c.id] } : {}),
  }));
}

/** Body of POST /v1/label/{assignment}/judgment. */
export function submission(ballot, set, { activeMs, wallMs }) {
  const flags = Object.entries(ballot.flags).flatMap(([completion_id, codes]) => codes.map((code) => ({ completion_id, code })));
  const spans = Object.entries(ballot.spans).flatMap(([completion_id, marks]) => marks.map((mark) => ({ completion_id, ...mark })));
  const corrections = Object.entries(ballot.corrections).map(([completion_id, text]) => ({ completion_id, text }));
  return {
    lease_token: set.lease_token ?? '',
    outcome: ballot.outcome,
    items: ballot.outcome === 'ranked' && isRanked(ballot, set) ? denseItems(ballot, set) : [],
    ...(ballot.outcome === 'ranked' && ballot.strength && set.completions.length === 2 ? { strength: ballot.strength } : {}),
    ...(ballot.rationale.trim() ? { rationale: ballot.rationale.trim() } : {}),
    ...(flags.length ? { flags } : {}),
    ...(spans.length ? { spans } : {}),
    ...(corrections.length ? { corrections } : {}),
    ...(ballot.ideal.trim() ? { ideal_answer: ballot.ideal.trim() } : {}),
    ...(ballot.revises ? { revises: ballot.revises } : {}),
    active_ms: Math.round(activeMs),
    wall_ms: Math.round(wallMs),
    idempotency_key: ballot.key,
    ...(set.guideline_version ? { guideline_version: set.guideline_version } : {}),
    ...ratingsOf(ballot, set),
  };
}

/** A skip of the same set. */
export function skipSubmission(ballot, set, times, reason, note) {
  return {
    ...submission({ ...ballot, outcome: 'skip', rationale: note, ideal: '', flags: {}, spans: {}, corrections: {} }, set, times),
    flags: [{ code: `skip_${reason}` }],
  };
}

// ---- drafts, one per set, on this machine only

const PREFIX = 'instructd.draft.';

export function saveDraft(setId, ballot) {
  try {
    if (isTouched(ballot)) localStorage.setItem(PREFIX + setId, JSON.stringify({ at: Date.now(), ballot }));
    else localStorage.removeItem(PREFIX + setId);
  } catch {
    /* storage blocked */
  }
}

export function loadDraft(setId) {
  try {
    const d = JSON.parse(localStorage.getItem(PREFIX + setId));
    return d ? { ...emptyBallot(), ...d.ballot } : null;
  } catch {
    return null;
  }
}

export function dropDraft(setId) {
  try {
    localStorage.removeItem(PREFIX + setId);
  } catch {
    /* storage blocked */
  }
}

/** Drafts nobody came back to for two weeks go. */
export function pruneDrafts() {
  try {
    for (const key of Object.keys(localStorage)) {
      if (!key.startsWith(PREFIX)) continue;
      const at = JSON.parse(localStorage.getItem(key))?.at ?? 0;
      if (Date.now() - at > 14 * 86400e3) localStorage.removeItem(key);
    }
  } catch {
    /* storage blocked */
  }
}

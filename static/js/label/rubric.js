// Ratings of a ballot by the rubric of its set, without any DOM.
import { lang } from '../i18n.js';

/** @import { Dimension, Rubric } from '../contract.d.ts' */

/** A text of a rubric in the page's language, else in English, else in any language. */
export const textOf = (texts) => texts?.[lang] ?? texts?.en ?? Object.values(texts ?? {})[0] ?? '';

/** Whether a value rates anything. */
const isRated = (value) => value !== undefined && !(Array.isArray(value) && value.length === 0);

/** The ballot's values of one completion, by dimension. */
export const valuesOf = (ballot, id) => ballot.values[id] ?? {};

/** Sets a value; `undefined` takes it back. */
export function setValue(ballot, id, key, value) {
  const values = { ...valuesOf(ballot, id) };
  if (isRated(value)) values[key] = value;
  else delete values[key];
  if (Object.keys(values).length) ballot.values[id] = values;
  else delete ballot.values[id];
}

/** The values of a stored judgment, as a ballot has them. */
export function valuesOfJudgment(judgment) {
  const values = {};
  for (const r of judgment.ratings ?? []) (values[r.completion_id] ??= {})[r.dimension] = r.value;
  return values;
}

/** Values belong to one version of a rubric: those of another version are dropped. */
export function keepToRubric(ballot, set) {
  const version = set.rubric?.version ?? null;
  if (ballot.rubric !== version) ballot.values = {};
  ballot.rubric = version;
}

/**
 * The required dimensions on which a completion is not rated yet.
 * @returns {Dimension[]}
 */
export const lacking = (ballot, set, id) =>
  (set.rubric?.definition.dimensions ?? []).filter((d) => d.required && !isRated(valuesOf(ballot, id)[d.key]));

/** Whether the rubric requires reasons that are not written yet. */
export const lacksRationale = (ballot, set) =>
  set.rubric?.definition.rationale === 'required' && ballot.rationale.trim() === '';

/** Whether the ratings and the reasons that a ranking needs are all there. */
export const isComplete = (ballot, set) =>
  !lacksRationale(ballot, set) && set.completions.every((c) => lacking(ballot, set, c.id).length === 0);

/** `rubric_version` and `ratings` of a submission. Sets that are set aside or skipped are not rated. */
export function ratingsOf(ballot, set) {
  if (!set.rubric) return {};
  const rated = ballot.outcome === 'ranked' || ballot.outcome === 'all_bad';
  const ratings = Object.entries(rated ? ballot.values : {}).flatMap(([completion_id, values]) =>
    Object.entries(values).map(([dimension, value]) => ({ completion_id, dimension, value })),
  );
  return { rubric_version: set.rubric.version, ratings };
}

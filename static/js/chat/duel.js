// Two answers side by side: written together, then ranked (names hidden until then), or just shown with
// the names of the versions that wrote them.
import { newKey, post } from '../api.js';
import { fill, h, toast, userText } from '../dom.js';
import { t } from '../i18n.js';
import { keyOf } from '../keys.js';
import { errorText } from '../plain.js';
import { richText } from '../richtext.js';
import { letter } from '../label/ballot.js';
import { streamAnswer, streamSet } from './talk.js';

/** Panels that grow; `set(place, text)` paints at most once a frame. */
function panels(titles) {
  const bodies = titles.map(() => h('div', { class: 'duel-body waiting' }));
  const heads = titles.map((title) => h('h2', { text: title }));
  const feet = titles.map(() => h('div', { class: 'meta' }));
  const el = h(
    'div',
    { class: 'duel-texts' },
    titles.map((_, i) => h('div', { class: 'duel-text' }, heads[i], bodies[i], feet[i])),
  );
  const waiting = new Map();
  const paint = () => {
    for (const [i, text] of waiting) fill(bodies[i], richText(text));
    waiting.clear();
  };
  return {
    el,
    heads,
    bodies,
    feet,
    set(place, text) {
      if (waiting.size === 0) requestAnimationFrame(paint);
      waiting.set(place, text);
    },
    done(place, reason) {
      paint();
      bodies[place].classList.remove('waiting');
      if (reason === 'length') fill(feet[place], h('span', { class: 'tag warn', text: t('chat.cut') }));
    },
  };
}

/** What a key chooses, by what it types or, on other keyboard layouts, by its place. */
const KEYS = { 1: 0, a: 0, '=': 1, 2: 2, b: 2, x: 3 };
const HINTS = ['1', '=', '2', 'X'];

/**
 * Streams into `box` and asks which is better. `onWritten(skip)` is called when both answers stand; `skip()` ends the
 * choice without a ranking. Resolves with `{text}` of the answer that carries the conversation on, or null when it
 * was stopped before.
 */
export async function rankedDuel(box, { request, signal, onWritten }) {
  const view = panels([0, 1].map((i) => t('label.answer', { x: letter(i) })));
  fill(box, view.el);
  const set = await streamSet({
    ...request,
    signal,
    onText: (place, text) => view.set(place, text),
    onDone: (place, reason) => view.done(place, reason),
  });
  // the server's own rendering, in the order of the ranking: the same places as while they were written
  set.completions.forEach((c, i) => {
    fill(view.bodies[i], userText(c));
    view.bodies[i].classList.remove('waiting');
  });
  const shown = performance.now();
  const key = newKey();
  const note = h('p', { class: 'form-error', role: 'alert' });
  return new Promise((resolve) => {
    const choices = [
      [t('label.a_better'), [0, 1], 0],
      [t('label.tie'), [0, 0], 0],
      [t('label.b_better'), [1, 0], 1],
      [t('label.both_bad'), null, 0],
    ];
    const controls = h(
      'div',
      { class: 'row duel-choice', role: 'group', 'aria-label': t('label.verdict') },
      choices.map(([text, tiers, winner], i) =>
        h('button', { type: 'button', on: { click: () => choose(tiers, winner) } }, text, h('kbd', { text: HINTS[i] })),
      ),
    );
    const onKey = (e) => {
      if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest?.('input, textarea, select, dialog')) return;
      const i = KEYS[keyOf(e)];
      if (i === undefined || controls.children[i]?.disabled) return;
      e.preventDefault();
      choose(choices[i][1], choices[i][2]);
    };
    const over = (result) => {
      document.removeEventListener('keydown', onKey);
      resolve(result);
    };
    const release = () =>
      post(`/v1/label/${encodeURIComponent(set.assignment_id)}/release`, { lease_token: set.lease_token }).catch(() => {});
    let sent = null; // the choice that was sent last
    const choose = async (tiers, winner, explanation = '') => {
      note.textContent = explanation;
      for (const button of controls.children) button.disabled = true;
      const ms = Math.round(performance.now() - shown);
      const before = sent;
      sent = [tiers, winner];
      try {
        const answer = await post(`/v1/label/${encodeURIComponent(set.assignment_id)}/judgment`, {
          lease_token: set.lease_token,
          outcome: tiers ? 'ranked' : 'all_bad',
          items: tiers ? set.completions.map((c, i) => ({ completion_id: c.id, tier: tiers[i] })) : [],
          active_ms: ms,
          wall_ms: ms,
          idempotency_key: key,
        });
        const author = (c) => answer?.reveal?.find((r) => r.completion_id === c.id)?.model ?? '';
        const models = set.completions.map(author);
        models.forEach((m, i) => view.heads[i].append(h('span', { class: 'mono author', text: ` ${m}` })));
        if (tiers && tiers[0] !== tiers[1]) view.el.children[winner].classList.add('won');
        fill(
          controls,
          h('span', { class: 'tag good', text: t('chat.vote_stored') }),
          h('span', { class: 'muted', text: tiers ? t('chat.goes_on', { x: letter(winner) }) : t('chat.goes_on_bad') }),
        );
        over({ text: set.completions[winner].text });
      } catch (e) {
        // the choice before was stored although its answer was lost: it stays
        if (e.code === 'idempotency_key_reused' && before) return choose(before[0], before[1], t('chat.first_choice_stays'));
        note.textContent = errorText(e);
        for (const button of controls.children) button.disabled = false;
      }
    };
    box.append(controls, note);
    document.addEventListener('keydown', onKey);
    onWritten?.(() => {
      release(); // nobody ranked it here: it goes back to the queue for others
      fill(controls, h('span', { class: 'muted', text: t('chat.not_ranked') }));
      over({ text: set.completions[0].text });
    });
    // The keys are for the choice unless something is being written already.
    const input = document.activeElement;
    if (input instanceof HTMLTextAreaElement && input.id === 'chat-input' && input.value === '') controls.firstChild.focus();
  });
}

/** Two versions with their names; no ranking is stored. `foot(answer)` gives what stands below each. */
export async function openDuel(box, { models, request, signal, foot }) {
  const view = panels(models);
  fill(box, view.el);
  const answers = await Promise.allSettled(
    models.map(async (model, i) => {
      try {
        const answer = await streamAnswer({ ...request, model, signal, onText: (text) => view.set(i, text) });
        view.set(i, answer.text);
        view.done(i);
        fill(view.feet[i], foot(answer));
        return answer;
      } catch (e) {
        view.done(i);
        if (e.name !== 'AbortError') fill(view.bodies[i], h('p', { class: 'bad-text', role: 'alert', text: errorText(e) }));
        throw e;
      }
    }),
  );
  const written = answers.filter((r) => r.status === 'fulfilled').map((r) => r.value);
  if (written.length === 0) throw answers.find((r) => r.status === 'rejected').reason;
  if (written.length < models.length) toast(t('chat.one_failed'), { kind: 'bad' });
  return written[0];
}

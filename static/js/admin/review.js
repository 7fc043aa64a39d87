// One set with everybody's judgments: settle it, or give it a known answer (gold, practice).
import { get, listOf, newKey, post } from '../api.js';
import { fill, h, toast, turnItem, userText } from '../dom.js';
import { percent } from '../figures.js';
import { t, when } from '../i18n.js';
import { letter } from '../label/ballot.js';
import { trackedText } from '../label/correct.js';
import { foldable } from '../label/long.js';
import { quote } from '../label/marks.js';
import { errorText } from '../plain.js';
import { recipeName } from './jobs.js';
import { caught, section, table } from './parts.js';

/** Places 1 … K for each answer, as small selects; `read()` gives dense tiers or null while one is open. */
function placesForm(completions, given) {
  const selects = completions.map((c, i) =>
    h(
      'select',
      { id: `place-${i}` },
      h('option', { value: '', text: '–' }),
      completions.map((_, n) => h('option', { value: n, selected: given?.get(c.id) === n, text: n + 1 })),
    ),
  );
  return {
    el: h(
      'div',
      { class: 'row places' },
      completions.map((_, i) =>
        h('label', { class: 'inline', for: `place-${i}` }, h('span', { text: t('label.answer', { x: letter(i) }) }), selects[i]),
      ),
    ),
    read() {
      if (selects.some((s) => s.value === '')) return null;
      const used = [...new Set(selects.map((s) => Number(s.value)))].sort((a, b) => a - b);
      return completions.map((c, i) => ({ completion_id: c.id, tier: used.indexOf(Number(selects[i].value)) }));
    },
  };
}

/** The runs that learned from the set's judgments, with whose of them; nothing while there are none. */
async function runsPart(el, { id, signal, who, names, current }) {
  const runs = listOf(await get(/** @type {const} */ (`/v1/review/sets/${encodeURIComponent(id)}/runs`), null, { signal }));
  el.hidden = runs.length === 0;
  const whose = (r) =>
    r.judgments
      .map((j) => `${names.get(j.labeler_id) ?? j.labeler_id}${current.has(j.judgment_id) ? '' : ` (${t('review.earlier')})`}`)
      .join(t('rubric.comma'));
  const title = (r) => r.name || recipeName(r.kind);
  fill(
    el,
    h('header', { class: 'block-head' }, h('h2', { text: t('review.runs') })),
    table(
      t('review.runs'),
      [[t('review.run')], [t('review.made')], [t('review.learned')]],
      runs.map((r) =>
        h(
          'tr',
          null,
          h(
            'td',
            { class: 'wrap' },
            who?.role === 'admin' ? h('a', { href: `#/jobs/${encodeURIComponent(r.job_id)}`, dir: 'auto', text: title(r) }) : h('span', { dir: 'auto', text: title(r) }),
            h('div', { class: 'sub', text: r.through ? t('review.through', { model: r.through }) : recipeName(r.kind) }),
          ),
          h('td', { class: 'mono', text: r.model ?? '–' }),
          h('td', { class: 'wrap', dir: 'auto', text: whose(r) }),
        ),
      ),
    ),
  );
}

export async function reviewView(el, { id, signal, who }) {
  const path = /** @type {const} */ (`/v1/review/sets/${encodeURIComponent(id)}`);
  const answer = await get(path, null, { signal });
  const { set, prompt, completions, judgments, judges } = answer;
  const name = (cid) => letter(completions.findIndex((c) => c.id === cid));
  const order = (j) =>
    [...j.items]
      .sort((a, b) => a.tier - b.tier)
      .map((i, k, all) => (k && all[k - 1].tier === i.tier ? '= ' : k ? '> ' : '') + name(i.completion_id))
      .join(' ');
  const known = answer.known_answer;
  const last = judgments.find((j) => j.labeler.id === answer.settled_by) ?? judgments[0];
  const given = new Map((known?.tiers ?? last?.judgment.items ?? []).map((i) => [i.completion_id, i.tier]));
  const places = placesForm(completions, given);
  const message = h('p', { class: 'form-error', role: 'alert' });
  const why = h('textarea', { id: 'settle-why', rows: '2', dir: 'auto', value: known?.explanation ?? '' });
  const again = () => {
    fill(el);
    return reviewView(el, { id, signal, who });
  };
  const act = (send) =>
    caught(async () => {
      message.textContent = '';
      const items = places.read();
      if (!items) return void (message.textContent = t('label.rank_all_first'));
      try {
        await send(items);
        await again();
      } catch (e) {
        message.textContent = errorText(e);
      }
    });
  /** "A: helpful 6, unsafe" – a judgment's ratings by answer; flags that say no are left out. */
  const rated = (j) =>
    completions.flatMap((c, i) => {
      const own = j.ratings.filter((r) => r.completion_id === c.id && r.value !== false);
      const text = own.map((r) => (r.value === true ? r.dimension : `${r.dimension} ${[r.value].flat().join(' ')}`)).join(t('rubric.comma'));
      return text ? [h('div', { class: 'sub', dir: 'auto', text: t('rubric.by_answer', { x: letter(i), names: text }) })] : [];
    });
  /** The spans that a judgment marks as wrong, by answer. */
  const marked = (j) =>
    j.spans.map((s) => {
      const i = completions.findIndex((c) => c.id === s.completion_id);
      const words = quote(completions[i].text, s.start, s.end);
      return h(
        'div',
        { class: 'sub', dir: 'auto' },
        t('marks.by_answer', { x: letter(i) }),
        h('q', { class: 'marked', dir: 'auto', text: words }),
        s.note ? h('span', { class: 'mark-note', dir: 'auto', text: s.note }) : null,
      );
    });
  /** The texts with which a labeler corrected answers, with their changes. */
  const corrected = (corrections) =>
    corrections.map((c) => {
      const i = completions.findIndex((one) => one.id === c.completion_id);
      return h(
        'details',
        { class: 'corrected' },
        h('summary', { text: t('correct.by_answer', { x: letter(i) }) }),
        trackedText(completions[i].text, c.text),
      );
    });
  const settle = act(async (items) => {
    await post(`/v1/review/sets/${encodeURIComponent(id)}/settle`, {
      outcome: 'ranked',
      items,
      ...(why.value.trim() ? { rationale: why.value.trim() } : {}),
      idempotency_key: newKey(),
    });
    toast(t('review.settled'), { kind: 'good' });
  });
  const saveKnown = (kind) =>
    act(async (items) => {
      await post(`/admin/sets/${encodeURIComponent(id)}/known-answer`, {
        kind,
        tiers: items,
        ...(why.value.trim() ? { explanation: why.value.trim() } : {}),
      });
      toast(t(known ? 'review.known_saved' : `review.known_${kind}`), { kind: 'good' });
    });
  const runs = h('section', { class: 'panel block', hidden: true, data: { part: 'runs' } });
  const names = new Map([...judgments, ...judges].map((j) => [j.labeler.id, j.labeler.name]));
  const current = new Set([...judgments.map((j) => j.judgment.id), ...judges.map((j) => j.id)]);
  fill(
    el,
    h(
      'header',
      { class: 'view-head' },
      h('h1', { text: t('review.title') }),
      h('a', { href: who?.role === 'admin' ? '#/queue' : '#/labels', text: t('review.back') }),
    ),
    h(
      'ol',
      { class: 'turns' },
      prompt.messages.map(turnItem),
    ),
    h(
      'div',
      { class: `review-answers` },
      completions.map((c, i) =>
        h(
          'article',
          { class: 'panel' },
          h(
            'header',
            { class: 'block-head' },
            h('h2', { text: t('label.answer', { x: letter(i) }) }),
            h('span', { class: 'sub mono', dir: 'auto', text: c.author }),
            c.finish_reason === 'length' ? h('span', { class: 'tag warn', text: t('review.cut_off') }) : null,
          ),
          foldable(userText(c), { x: letter(i), text: c.text, isOpen: false, change: () => {} }),
        ),
      ),
    ),
    section(
      t('review.judgments'),
      answer.settled_by ? h('span', { class: 'tag good', text: t('review.is_settled') }) : null,
      table(
        t('review.judgments'),
        [[t('role.labeler')], [t('labels.outcome')], [t('labels.order')], [t('labels.why')], [t('labels.when')]],
        judgments.map(({ judgment: j, labeler, corrections }) =>
          h(
            'tr',
            null,
            h('td', { class: 'strong wrap', dir: 'auto', text: labeler.name }),
            h(
              'td',
              null,
              h('span', { class: 'tag', text: t(`outcome.${j.outcome}`) }),
              j.knowledge && j.knowledge !== 'blind'
                ? h('span', { class: 'tag', text: t(`knowledge.${j.knowledge}`), title: t('knowledge.help') })
                : null,
              j.strength ? h('span', { class: 'sub', text: ` ${t(`strength.${j.strength}`)}` }) : null,
            ),
            h('td', { class: 'wrap' }, h('span', { class: 'mono nowrap', text: order(j) }), rated(j), marked(j), corrected(corrections)),
            h('td', { class: 'wrap sub', dir: 'auto', text: j.rationale ?? '' }),
            h('td', { class: 'nowrap', text: when(j.created) }),
          ),
        ),
        t('labels.no_judgments'),
      ),
    ),
    judges.length
      ? section(
          t('judges.title'),
          table(
            t('judges.title'),
            [[t('judges.judge')], [t('labels.order')], [t('judges.doubt_of_set'), 'right'], [t('labels.when')]],
            judges.map((j) =>
              h(
                'tr',
                null,
                h(
                  'td',
                  { class: 'wrap' },
                  h('span', { class: 'strong', dir: 'auto', text: j.labeler.name }),
                  h('div', { class: 'sub', dir: 'auto', text: j.criteria }),
                ),
                h('td', { class: 'mono nowrap', text: order(j) }),
                h('td', { class: 'right', text: percent(j.doubt) }),
                h('td', { class: 'nowrap', text: when(j.created) }),
              ),
            ),
          ),
          h('p', { class: 'muted', text: t('review.judges_help') }),
        )
      : null,
    runs,
    section(
      t(known ? 'review.known' : 'review.decide'),
      known ? h('span', { class: 'tag accent', text: t(`kind.${set.kind}`) }) : null,
      h('p', { class: 'muted', text: t(known ? `review.known_help_${set.kind}` : 'review.decide_help') }),
      places.el,
      h('div', { class: 'field' }, h('label', { for: 'settle-why', text: t(known ? 'review.known_why' : 'review.why') }), why),
      message,
      h(
        'div',
        { class: 'actions' },
        who?.role === 'admin' && set.kind === 'normal'
          ? [
              h('button', {
                type: 'button',
                text: t('review.make_gold'),
                title: t('review.make_gold_help'),
                on: { click: saveKnown('gold') },
              }),
              h('button', {
                type: 'button',
                text: t('review.make_calibration'),
                title: t('review.make_calibration_help'),
                on: { click: saveKnown('calibration') },
              }),
            ]
          : null,
        set.kind === 'normal'
          ? h('button', { type: 'button', class: 'primary', text: t('review.settle'), on: { click: settle } })
          : who?.role === 'admin'
            ? h('button', { type: 'button', class: 'primary', text: t('review.save_known'), on: { click: saveKnown(set.kind) } })
            : h('p', { class: 'muted', text: t('review.known_by_admin') }),
      ),
    ),
  );
  await runsPart(runs, { id, signal, who, names, current });
}

// What a draw of sets did, in words: why it made fewer than wanted, what was cut off, and what helps.
import { percent } from '../figures.js';
import { h } from '../dom.js';
import { t } from '../i18n.js';
import { caught } from './parts.js';

/**
 * Why fewer sets than wanted were made: `[{text, cure}]`, `cure` one of `again` (draw again for prompts that have
 * sets) or null. Pure: tested in the modules' test.
 */
export function reasons(draw) {
  const r = draw.report ?? {};
  const n = (key, count) => (count ? { text: t(`draw.${key}`, { n: count, all: r.found ?? 0 }), cure: null } : null);
  if (['disagreement', 'judge'].includes(draw.request.policy)) {
    const found = [n('agreed', r.agreed), n('single', r.single), n('waiting', r.waiting), n('settled', r.settled)].filter(Boolean);
    return r.found ? found : [{ text: t(draw.request.policy === 'judge' ? 'draw.none_judged' : 'draw.none_ranked'), cure: null }];
  }
  if (!r.found) {
    const tag = draw.request.prompts?.tag;
    return [{ text: tag ? t('draw.no_prompts_tag', { tag }) : t('draw.no_prompts'), cure: null }];
  }
  const stored = draw.request.policy === 'stored';
  return [
    r.has_set ? { text: t(r.has_set === r.found ? 'draw.all_have_sets' : 'draw.has_set', { n: r.has_set, all: r.found }), cure: 'again' } : null,
    n('requests', r.requests),
    n('raw_text', r.raw_text),
    n(stored ? 'few_stored' : 'few_answers', r.few_answers),
    n('equal_answers', r.equal_answers),
    n('too_long', r.too_long),
  ].filter(Boolean);
}

/** The versions of a tournament, best first, and how sure the order of neighbours is. */
function standings(report, state) {
  const verdict = report.certain ? 'certain' : state === 'running' ? 'open' : 'uncertain';
  return [
    h('span', { text: t(`tournament.${verdict}`) }),
    h(
      'ol',
      { class: 'standings' },
      report.order.map((place) =>
        h(
          'li',
          null,
          h('strong', { class: 'mono', text: place.name }),
          ` ${t('tournament.place', { elo: Math.round(place.elo), n: place.comparisons })}`,
          place.better_than_next === null || place.better_than_next === undefined
            ? null
            : h('span', { class: 'muted', text: ` ${t('tournament.ahead', { share: percent(place.better_than_next) })}` }),
        ),
      ),
    ),
  ];
}

/** The notes below a draw. `again(request)` starts a draw, `lengthen(tokens)` puts a length into the form. */
export function drawNotes(draw, { again, lengthen }) {
  const r = draw.report ?? {};
  const notes = [];
  if (r.order?.length) notes.push(standings(r, draw.state));
  if (draw.state === 'running' && r.pieces && !r.order?.length) notes.push(t('draw.pieces', { n: r.pieces }));
  if (draw.state === 'done' && draw.made < draw.wanted && !r.certain) {
    const why = reasons(draw);
    if (why.length === 0) notes.push(t('draw.ran_out', { n: r.found }));
    for (const { text, cure } of why)
      notes.push([
        text,
        cure === 'again'
          ? h('button', {
              type: 'button',
              class: 'small',
              text: t('draw.again'),
              on: {
                click: caught(async (e) => {
                  e.currentTarget.blur();
                  const { request } = draw;
                  await again({ ...request, count: draw.wanted - draw.made, prompts: { ...request.prompts, with_sets: true } });
                }),
              },
            })
          : null,
      ]);
  }
  if (r.smaller) notes.push(t('draw.smaller', { n: r.smaller }));
  if (r.redrawn) notes.push(t('draw.redrawn', { n: r.redrawn }));
  if (r.cut_off && r.answers)
    notes.push([
      t('draw.cut_off', { n: r.cut_off, all: r.answers, share: percent(r.cut_off / r.answers), tokens: r.max_tokens ?? 0 }),
      r.max_tokens
        ? h('button', {
            type: 'button',
            class: 'small',
            text: t('draw.longer', { tokens: r.max_tokens * 2 }),
            on: { click: () => lengthen(r.max_tokens * 2) },
          })
        : null,
    ]);
  return notes.length ? h('ul', { class: 'draw-notes' }, notes.map((note) => h('li', null, note))) : null;
}

// Samples of a run: for each prompt what the policy wrote at one step beside another, with reward.
import { fill, h, plainText } from '../dom.js';
import { fig, has, t } from '../i18n.js';

/** The text of a prompt: its last message, or the raw prompt. */
export function promptText(prompt) {
  if (typeof prompt === 'string') return prompt;
  if (Array.isArray(prompt)) return prompt.at(-1)?.content ?? '';
  if (prompt && typeof prompt === 'object') return promptText(prompt.messages ?? prompt.Messages ?? prompt.prompt ?? prompt.Raw ?? '');
  return '';
}

/**
 * The messages of a conversation after its prompt, each with its role.
 * @param {{role: string, content: string}[]} turns
 */
function turnList(turns) {
  return h(
    'div',
    { class: 'sample-turns' },
    turns.map((m) => h('div', { class: `sample-turn ${m.role}` }, h('p', { class: 'help', text: has(`role.${m.role}`) ? t(`role.${m.role}`) : m.role }), plainText(m.content))),
  );
}

/**
 * One side of a comparison: who wrote it, the text, its reward, and by how much that is over the reward `than`. A
 * conversation is shown by its `turns`.
 * @param {string} title
 * @param {string} text
 * @param {number | null | undefined} reward
 * @param {{cut?: boolean | null, than?: number | null, turns?: {role: string, content: string}[]}} [options]
 */
export function sampleSide(title, text, reward, { cut = false, than, turns } = {}) {
  const facts = [
    Number.isFinite(reward) ? `${t('metric.reward')} ${fig(reward)}` : null,
    Number.isFinite(reward) && Number.isFinite(than) ? `(${reward - than >= 0 ? '+' : '−'}${fig(Math.abs(reward - than))})` : null,
    cut ? t('samples.cut') : null,
  ].filter(Boolean);
  return h(
    'div',
    { class: 'sample-side' },
    h('p', { class: 'help sample-head' }, h('strong', { text: title }), facts.length ? h('span', { text: facts.join(' ') }) : null),
    turns ? turnList(turns) : text === null || text === undefined ? h('p', { class: 'muted', text: t('samples.nothing') }) : text.trim() === '' ? h('p', { class: 'muted', text: t('samples.empty') }) : plainText(text),
  );
}

/** `{el, add(event)}`: a section that is hidden until the first sample comes. */
export function sampleTable() {
  const rows = new Map(); // prompt, or number of the conversation → {prompt, at: Map step → {text, reward, turns}}
  const steps = new Set();
  const from = h('select', { id: 'samples-from' });
  const to = h('select', { id: 'samples-to' });
  const list = h('div', { class: 'sample-list' });
  const chosen = [null, null]; // null: the first, the last
  const el = h(
    'section',
    { class: 'panel block', hidden: true, data: { part: 'samples' } },
    h(
      'header',
      { class: 'block-head' },
      h('h2', { text: t('run.samples') }),
      h(
        'div',
        { class: 'row' },
        h('label', { class: 'inline', for: 'samples-from' }, h('span', { text: t('samples.from') }), from),
        h('label', { class: 'inline', for: 'samples-to' }, h('span', { text: t('samples.to') }), to),
      ),
    ),
    list,
  );
  const stepName = (s) => (s === 0 ? t('samples.before') : t('chart.step', { n: s }));
  const draw = () => {
    const known = [...steps].sort((a, b) => a - b);
    const [a, b] = [chosen[0] ?? known[0], chosen[1] ?? known.at(-1)];
    for (const [select, value] of [
      [from, a],
      [to, b],
    ])
      fill(select, known.map((s) => h('option', { value: s, selected: s === value, text: stepName(s) })));
    from.closest('.row').hidden = known.length < 2;
    fill(
      list,
      [...rows.values()].map(({ prompt, at }) => {
        const [left, right] = [at.get(a), at.get(b)];
        return h(
          'article',
          { class: 'sample' },
          h('p', { class: 'sample-prompt', dir: 'auto', text: prompt }),
          h(
            'div',
            { class: 'sample-pair' },
            known.length > 1 ? sampleSide(stepName(a), left?.text, left?.reward, { turns: left?.turns }) : null,
            sampleSide(stepName(b), right?.text, right?.reward, { than: known.length > 1 ? left?.reward : undefined, turns: right?.turns }),
          ),
        );
      }),
    );
  };
  let waiting = false;
  /** The stream begins with all samples there are: they are drawn together. */
  const later = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
  from.addEventListener('change', () => {
    chosen[0] = Number(from.value);
    draw();
  });
  to.addEventListener('change', () => {
    chosen[1] = Number(to.value);
    draw();
  });
  return {
    el,
    add(data) {
      for (const s of Array.isArray(data) ? data : Array.isArray(data?.samples) ? data.samples : [data]) {
        const prompt = promptText(s?.prompt);
        const step = s?.step ?? data?.step ?? 0;
        const text = s?.text ?? s?.completion ?? s?.response ?? (typeof s === 'string' ? s : '');
        const key = s?.number ?? prompt;
        if (!rows.has(key)) rows.set(key, { prompt, at: new Map() });
        rows.get(key).at.set(step, { text, reward: s?.reward ?? s?.score, turns: s?.turns });
        steps.add(step);
      }
      el.hidden = false;
      later();
    },
  };
}

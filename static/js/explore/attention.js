// Which tokens each position attends to. Two panels ask /v1/attention for the same sentence: the policy
// (masked) and the encoder (full). A token is chosen by mouse, touch or arrow keys.
import { get, post } from '../api.js';
import { fill, h, svg } from '../dom.js';
import { percent } from '../figures.js';
import { t } from '../i18n.js';
import { errorText } from '../plain.js';

const SENTENCE = 'a robot must obey the orders given it';

const hex = (byte) => `0x${byte.toString(16).toUpperCase().padStart(2, '0')}`;

/**
 * How a token is written: its spaces are not seen, line breaks are. A token that is a part of a character has no
 * text of its own: its bytes are shown.
 */
export const shown = (token, bytes) =>
  bytes?.length && /^\uFFFD*$/.test(token.trim()) && bytes.some((b) => b > 0x20)
    ? bytes.map(hex).join(' ')
    : token.replaceAll('\n', '⏎').trim() || '␣';


/** The mean over heads, or one head: [queries][keys]. */
export function pick(heads, head) {
  if (head !== null) return heads[head];
  return heads[0].map((row, q) => row.map((_, k) => heads.reduce((sum, m) => sum + m[q][k], 0) / heads.length));
}

/** The `count` most attended keys of one query, most first: [{key, share}]. Unseen keys are left out. */
export function strongest(row, causal, from, count = 5) {
  return row
    .map((share, key) => ({ key, share }))
    .filter(({ key }) => !causal || key <= from)
    .sort((a, b) => b.share - a.share)
    .slice(0, count);
}

function panel(model) {
  const state = { answer: null, layer: null, head: null, from: null, text: '', request: null };
  const title = h('h3', { text: t(`explore.${model}`) });
  const note = h('p', { class: 'muted' });
  const layer = h('select', { 'aria-label': t('explore.layer_of', { model: t(`explore.${model}`) }) });
  const head = h('select', { 'aria-label': t('explore.head_of', { model: t(`explore.${model}`) }) });
  const tokens = h('div', { class: 'tokens', role: 'group', 'aria-label': t('explore.tokens') });
  const summary = h('p', { class: 'attends', 'aria-live': 'polite' });
  const map = h('div', { class: 'map' });
  const controls = h(
    'div',
    { class: 'row' },
    h('label', { class: 'inline' }, h('span', { text: t('explore.layer') }), layer),
    h('label', { class: 'inline' }, h('span', { text: t('explore.head') }), head),
  );
  const el = h('figure', { class: 'panel look' }, title, note, controls, tokens, summary, map);

  const options = (select, count, mean) => {
    const list = Array.from({ length: count }, (_, i) => h('option', { value: String(i), text: String(i + 1) }));
    if (mean) list.unshift(h('option', { value: '', text: t('explore.mean') }));
    fill(select, list);
  };

  layer.addEventListener('change', () => load(state.text, Number(layer.value)));
  head.addEventListener('change', () => {
    state.head = head.value === '' ? null : Number(head.value);
    draw();
  });

  function choose(from, focus) {
    state.from = from;
    draw();
    if (focus) tokens.children[from]?.focus();
  }

  tokens.addEventListener('keydown', (e) => {
    const last = state.answer.tokens.length - 1;
    const to = { ArrowRight: state.from + 1, ArrowLeft: state.from - 1, Home: 0, End: last }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    choose(Math.min(Math.max(to, 0), last), true);
  });

  function draw() {
    const { answer, head: one, from } = state;
    const rows = pick(answer.maps[0].heads, one);
    const hidden = (key) => answer.causal && key > from;
    const name = (key) => shown(answer.tokens[key], answer.bytes?.[key]);
    const buttons = answer.tokens.map((_, key) => {
      const share = rows[from][key];
      const label = hidden(key)
        ? t('explore.unseen', { token: name(key) })
        : t('explore.share', { token: name(key), share: percent(share, share < 0.0995 ? 1 : 0) });
      const button = h('button', {
        type: 'button',
        class: `token${key === from ? ' from' : ''}${hidden(key) ? ' unseen' : ''}`,
        'aria-pressed': String(key === from),
        'aria-label': label,
        title: label,
        tabindex: key === from ? '0' : '-1',
        text: name(key),
        on: { click: () => choose(key, true) },
      });
      if (!hidden(key)) button.style.setProperty('--share', Math.sqrt(share).toFixed(3));
      return button;
    });
    const kept = tokens.contains(document.activeElement);
    fill(tokens, buttons);
    if (kept) tokens.children[from]?.focus();
    const top = strongest(rows[from], answer.causal, from)
      .map(({ key, share }) => `${name(key)} ${percent(share, share < 0.0995 ? 1 : 0)}`)
      .join(', ');
    const ahead = answer.causal ? answer.tokens.length - 1 - from : 0;
    summary.textContent =
      t('explore.attends', { token: name(from), top }) + (ahead ? ` ${t('explore.masked', { n: ahead })}` : '');
    fill(map, grid(answer, rows, from));
  }

  function grid({ tokens, bytes, causal }, rows, from) {
    const names = tokens.map((token, i) => shown(token, bytes?.[i]));
    const n = names.length;
    const id = `hatch-${model}`;
    // Names beside the rows, as long as they can be read.
    const left = n <= 16 ? 2.7 : 0;
    const picture = svg('svg', { viewBox: `${-left} 0 ${n + left} ${n}`, class: 'grid', role: 'img', 'aria-label': t('explore.map', { n }) });
    picture.append(
      svg(
        'defs',
        null,
        svg(
          'pattern',
          { id, width: 0.25, height: 0.25, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
          svg('rect', { width: 0.25, height: 0.25, class: 'hatch-ground' }),
          svg('rect', { width: 0.08, height: 0.25, class: 'hatch-line' }),
        ),
      ),
    );
    for (let q = 0; q < n; q += 1) {
      if (left) picture.append(svg('text', { x: -0.2, y: q + 0.65, class: 'name' }, names[q].slice(0, 10)));
      for (let k = 0; k < n; k += 1) {
        const unseen = causal && k > q;
        const cell = svg('rect', { x: k, y: q, width: 1, height: 1, class: unseen ? 'cell masked' : 'cell' });
        if (unseen) cell.setAttribute('fill', `url(#${id})`);
        else cell.setAttribute('fill-opacity', Math.sqrt(rows[q][k]).toFixed(3));
        picture.append(cell);
      }
    }
    picture.append(svg('rect', { x: 0.03, y: from + 0.03, width: n - 0.06, height: 0.94, class: 'chosen' }));
    picture.addEventListener('click', (e) => {
      const box = picture.getBoundingClientRect();
      choose(Math.min(n - 1, Math.max(0, Math.floor(((e.clientY - box.top) / box.height) * n))), false);
    });
    return [picture, h('figcaption', { class: 'muted', text: t(causal ? 'explore.legend_masked' : 'explore.legend_full') })];
  }

  async function load(text, wanted) {
    state.request?.abort();
    state.request = new AbortController();
    const { signal } = state.request;
    el.setAttribute('aria-busy', 'true');
    try {
      const layers = [wanted ?? state.layer ?? 0];
      const answer = await post('/v1/attention', { model, text, layers }, { signal });
      const same = state.answer && state.text === text;
      Object.assign(state, { answer, text, layer: layers[0] });
      if (!same) state.from = Math.max(0, Math.ceil(answer.tokens.length / 2) - 1);
      if (layer.options.length !== answer.n_layers) options(layer, answer.n_layers, false);
      if (head.options.length !== answer.n_heads + 1) options(head, answer.n_heads, true);
      layer.value = String(state.layer);
      head.value = state.head === null ? '' : String(state.head);
      fill(title, t(`explore.${model}`), ' ', h('span', { class: 'mono muted', text: answer.model }));
      note.textContent = t(answer.causal ? 'explore.sees_before' : 'explore.sees_all');
      for (const part of [controls, tokens, summary, map]) part.hidden = false;
      draw();
    } catch (e) {
      if (e.name === 'AbortError') return;
      for (const part of [controls, tokens, summary, map]) part.hidden = true;
      note.textContent = errorText(e);
    } finally {
      if (state.request?.signal === signal) el.removeAttribute('aria-busy');
    }
  }

  for (const part of [controls, tokens, summary, map]) part.hidden = true;
  return { el, load };
}

export function attentionView(el) {
  // A link may bring its own sentence.
  const given = new URLSearchParams(location.search).get('text')?.slice(0, 400);
  const input = h('input', { type: 'text', id: 'sentence', value: given || SENTENCE, maxlength: '400', autocomplete: 'off' });
  const error = h('p', { class: 'form-error', id: 'sentence-error', role: 'alert' });
  input.setAttribute('aria-describedby', error.id);
  const policy = panel('policy');
  const panels = [policy];
  const looks = h('div', { class: 'looks' }, policy.el);
  const missing = h('p', { class: 'muted', hidden: true, text: t('explore.no_encoder') });
  const look = () => {
    const text = input.value.trim();
    error.textContent = text === '' ? t('explore.empty') : '';
    if (text === '') return void input.focus();
    return Promise.all(panels.map((p) => p.load(text)));
  };
  fill(
    el,
    h('h2', { id: 'attention-title', text: t('explore.attention') }),
    h('p', { class: 'lead', text: t('explore.attention_lead') }),
    h(
      'form',
      { class: 'sentence', novalidate: true, on: { submit: (e) => (e.preventDefault(), look()) } },
      h('label', { for: 'sentence', text: t('explore.sentence') }),
      input,
      h('button', { type: 'submit', class: 'primary', text: t('explore.look') }),
    ),
    error,
    looks,
    missing,
  );
  look();
  // A server without an encoder is not asked for its maps: nothing failed, there is just one model to see.
  get('/ready')
    .then(({ encoder }) => {
      if (!encoder) return void (missing.hidden = false);
      const full = panel('encoder');
      panels.push(full);
      looks.append(full.el);
      const text = input.value.trim();
      return text === '' ? null : full.load(text);
    })
    .catch((e) => ((missing.hidden = false), (missing.textContent = errorText(e))));
}

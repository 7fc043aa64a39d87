// What a published model size needs on a given machine; the arithmetic is the server's (/v1/plan).
import { get, listOf } from '../api.js';
import { fill, h } from '../dom.js';
import { t } from '../i18n.js';

const FIELDS = [
  ['memory_gib', 80],
  ['bandwidth_gb_s', 3350],
  ['tflops', 989],
  ['batch', 1],
  ['context', ''],
  ['lora_rank', 8],
];

const number = (n) => Number(n).toLocaleString('en-US').replaceAll(',', ' ');

/** Bytes as GiB with two digits, small ones as MiB. */
export function size(bytes) {
  const gib = bytes / 2 ** 30;
  return gib >= 0.1 ? `${gib.toFixed(2)} GiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

const rate = (n) => (n >= 100 ? number(Math.round(n)) : n.toPrecision(3));

function table(caption, heads, rows) {
  return h(
    'div',
    { class: 'table-scroll', tabindex: '0', role: 'region', 'aria-label': caption },
    h(
      'table',
      null,
      h('caption', { text: caption }),
      h('thead', null, h('tr', null, heads.map((text) => h('th', { scope: 'col', text })))),
      h('tbody', null, rows.map(([first, ...rest]) =>
        h('tr', null, h('th', { scope: 'row', text: first }), rest.map((text) => h('td', { class: 'num', text }))),
      )),
    ),
  );
}

export function planView(el) {
  const preset = h('select', { id: 'plan-preset' });
  const inputs = FIELDS.map(([name, value]) => [
    name,
    h('input', { id: `plan-${name}`, type: 'number', min: '0', step: 'any', inputmode: 'decimal', value: String(value) }),
  ]);
  const out = h('div', { class: 'plan-out', 'aria-live': 'polite' });
  const field = (name, input) => h('div', { class: 'field' }, h('label', { for: input.id, text: t(`plan.${name}`) }), input);
  const form = h('form', { class: 'plan-form' }, field('preset', preset), inputs.map(([name, input]) => field(name, input)));
  fill(
    el,
    h('h2', { id: 'plan-title', text: t('plan.title') }),
    h('p', { class: 'lead', text: t('plan.lead') }),
    form,
    out,
  );

  let request;
  async function draw() {
    request?.abort();
    request = new AbortController();
    const query = { preset: preset.value };
    for (const [name, input] of inputs) query[name] = input.value;
    try {
      const answer = await get('/v1/plan', query, { signal: request.signal });
      if (answer.object !== 'plan') return;
      const { preset: about, plan } = answer;
      const facts = t('plan.facts', {
        count: number(about.parameters),
        published: about.published,
        layers: about.n_layers,
        channels: number(about.hidden_size),
        heads: about.n_heads,
        context: number(plan.context),
      });
      fill(
        out,
        h('p', null, h('strong', { text: about.title }), ' ', facts),
        about.note ? h('p', { class: 'muted', lang: 'en', text: about.note }) : null,
        table(
          t('plan.serve'),
          ['dtype', 'weights', 'kv_token', 'kv', 'total', 'devices', 'speed'].map((k) => t(`plan.${k}`)),
          plan.serve.map((s) => [
            s.dtype,
            size(s.weights_bytes),
            number(s.kv_bytes_per_token),
            size(s.kv_bytes),
            size(s.total_bytes),
            number(s.devices),
            rate(s.tokens_per_second),
          ]),
        ),
        table(
          t('plan.train'),
          ['way', 'trained', 'weights', 'gradients', 'optimizer', 'activations', 'total', 'devices', 'speed'].map((k) =>
            t(`plan.${k}`),
          ),
          plan.train.map((w) => [
            t(`plan.${w.kind}`),
            number(w.trained_parameters),
            size(w.weights_bytes),
            size(w.gradients_bytes),
            size(w.optimizer_bytes),
            size(w.activations_bytes),
            size(w.total_bytes),
            number(w.devices),
            rate(w.tokens_per_second),
          ]),
        ),
        h('p', { class: 'muted', text: t('plan.bounds') }),
      );
    } catch (e) {
      if (e.name !== 'AbortError') fill(out, h('p', { class: 'bad-text', role: 'alert', text: e.message }));
    }
  }
  form.addEventListener('submit', (e) => e.preventDefault());
  form.addEventListener('change', draw);

  get('/v1/plan')
    .then((answer) => {
      fill(
        preset,
        listOf(answer.object === 'list' ? answer : null).map((p) => h('option', { value: p.name, text: `${p.title} (${p.published})` })),
      );
      preset.value = 'gpt2-xl';
      return draw();
    })
    .catch((e) => fill(out, h('p', { class: 'bad-text', role: 'alert', text: e.message })));
}

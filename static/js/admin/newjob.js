// The form that starts a job: models that fit, no trap in a preselection, what the run will cost beside the button.
import { get, listOf, post } from '../api.js';
import { fill, h } from '../dom.js';
import { duration, fig, has, t } from '../i18n.js';
import { errorText } from '../plain.js';
import { schemaForm } from './form.js';
import { recipeName } from './jobs.js';
import { textOf } from '../label/rubric.js';
import { bytes } from './parts.js';
import { projectId } from './project.js';

/** @import { PostBody } from '../contract.d.ts' */

/** Fields worth seeing before all others, in this order. */
const FIRST = [
  'model',
  'reward_model',
  'publish_as',
  'iterations',
  'epochs',
  'max_steps',
  'learning_rate',
  'rollout_batch_size',
  'batch_size',
  'response_length',
  'max_length',
  'kl_coef',
  'beta',
  'gold_reward_model',
  'host',
  'judge_model',
  'which',
  'max_sets',
  'criteria',
  'seed',
  'lora',
];
/** Filled in by the server from the store. */
const HIDDEN = ['output_dir', 'checkpoint_dir', 'resume', 'comparisons', 'demonstrations', 'feedback', 'prompts', 'sets', 'ptx_demonstrations'];

/** Recipes that make a new model unless they are given one. */
const FROM_NOTHING = ['pretrain', 'mlm'];
/** What `model` may be, by recipe; elsewhere a policy. */
const STARTS = {
  mlm: ['encoder'],
  finetune: ['policy', 'encoder', 'classifier'],
  reward: ['policy', 'reward', 'encoder'],
};
/** Recipes that learn from people: with adapters they fit a laptop. */
const WITH_ADAPTERS = ['reward', 'ppo', 'reinforce', 'rloo', 'grpo', 'online_dpo', 'raft', 'dpo', 'simpo', 'orpo', 'kto'];

/** Settings shown instead of the schema's defaults where those would train all parameters. */
function presets(recipe) {
  const lora = recipe.schema.properties?.lora;
  if (!lora || lora.default !== null || !WITH_ADAPTERS.includes(recipe.name)) return {};
  return { lora: {}, 'lora.rank': 8, 'lora.alpha': 16 };
}

/**
 * Options of a field that names a model version. Only the model to start from and the reward model are preselected:
 * every other one (a gold reward model, say) measures something only where a person chose it.
 */
export function modelChoices(name, recipe, models) {
  if (name !== 'model' && !/(^|_)model$/.test(name)) return null;
  const kinds = name === 'model' ? (STARTS[recipe] ?? ['policy']) : name.includes('reward') ? ['reward'] : ['policy'];
  const fitting = models.filter((m) => kinds.includes(m.kind) && m.state !== 'retired' && m.stage !== 'upstream');
  const active = fitting.find((m) => m.state === 'active' && m.kind === kinds[0]);
  const needed = name === 'model' && !FROM_NOTHING.includes(recipe);
  const preselects = needed || name === 'reward_model';
  // a reward model needs no promotion: the newest one is at hand right after its training
  const newest = name === 'reward_model' ? fitting.toSorted((a, b) => b.created - a.created)[0] : undefined;
  const selected = preselects ? (active ?? newest)?.name ?? null : null;
  const text = (m) =>
    [
      m.name,
      kinds.length > 1 ? t(`model.kind_${m.kind}`) : null,
      m.state === 'active' ? t('state.active') : null,
    ].filter(Boolean);
  return {
    options: fitting.map((m) => ({ value: m.name, text: text(m).length > 1 ? `${text(m)[0]} (${text(m).slice(1).join(', ')})` : m.name })),
    selected,
    // without an active one nothing would be started from: one must be chosen
    empty: needed ? (selected ? null : t('form.choose')) : name === 'model' ? t('form.new_model') : t('form.none'),
  };
}

/** "About 3 m to 6 m · 2.1 GB of 16 GB memory · 200 steps" of the server's estimate. */
export function estimateText(e) {
  const time = e.seconds
    ? Math.round(e.seconds.low) === Math.round(e.seconds.high)
      ? t('estimate.time', { d: duration(e.seconds.low) })
      : t('estimate.between', { low: duration(e.seconds.low), high: duration(e.seconds.high) })
    : t('estimate.no_time');
  const memory =
    Number.isFinite(e.memory_bytes) && e.memory_bytes > 0
      ? Number.isFinite(e.available_memory_bytes)
        ? t('estimate.memory_of', { m: bytes(e.memory_bytes), all: bytes(e.available_memory_bytes) })
        : t('estimate.memory', { m: bytes(e.memory_bytes) })
      : null;
  return [time, memory, Number.isFinite(e.steps) ? t('estimate.steps', { n: e.steps }) : null].filter(Boolean).join(' · ');
}

/** A number of parameters, in millions from one million on. */
const parameters = (n) => (n < 1e6 ? n : t('catalogue.millions', { n: fig(Math.round(n / 1e5) / 10) }));

/** One assumption of an estimate. */
function assumptionText(a) {
  const said = { ...a };
  for (const name of ['trained', 'parameters']) if (name in said) said[name] = parameters(said[name]);
  if ('runs' in said) said.n = said.runs;
  return t(`estimate.assume_${a.code}`, said);
}

/** The line beside the start button; follows the form. A server that has no estimate leaves it empty. */
function estimator(kind, form, signal) {
  const line = h('p', { class: 'estimate', 'aria-live': 'polite' });
  let asked = null;
  let missing = false;
  const ask = async () => {
    const args = form.peek();
    if (missing || args === null) return;
    asked?.abort();
    asked = new AbortController();
    signal.addEventListener('abort', () => asked.abort(), { once: true });
    try {
      const e = await post('/admin/jobs/estimate', { kind, args }, { signal: asked.signal });
      fill(
        line,
        h('span', { text: estimateText(e) }),
        e.fits === false ? h('span', { class: 'bad-text', text: t('estimate.too_much') }) : null,
        h('span', { class: 'help', text: e.assumptions.map(assumptionText).join(t('estimate.between_assumptions')) }),
      );
    } catch (err) {
      if (err.name === 'AbortError') return;
      missing = err.status === 404 || err.status === 405;
      fill(line); // a wrong field is told when the job is started
    }
  };
  let timer;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(ask, 400);
  };
  form.el.addEventListener('input', later);
  form.el.addEventListener('change', later);
  ask();
  return line;
}

/** What the fields say together; the first problem is marked and given back. */
export function checkTogether(form, args) {
  const blame = (name, message) => {
    const field = form.field(name);
    field?.mark(message);
    field?.el.closest('details')?.setAttribute('open', '');
    field?.el.querySelector('input,select,textarea')?.focus();
    return message;
  };
  const reward = form.field('reward_model');
  if (reward && args.reward_model === undefined && args.reward === undefined) return blame('reward_model', t('form.no_reward'));
  if (args.gold_reward_model !== undefined && args.gold_reward_model === args.reward_model)
    return blame('gold_reward_model', t('form.gold_is_reward', { name: args.gold_reward_model }));
  return null;
}

/** The reward model cannot be chosen as the gold one: its option is out of reach while it is the reward model. */
function keepApart(form) {
  const reward = form.field('reward_model')?.el.querySelector('select');
  const gold = form.field('gold_reward_model')?.el.querySelector('select');
  if (!reward || !gold) return;
  const apart = () => {
    for (const option of gold.options) {
      const same = option.value !== '' && option.value === reward.value;
      option.disabled = same;
      option.textContent = same ? t('form.is_reward', { name: option.value }) : option.value || t('form.none');
      if (same && option.selected) gold.value = '';
    }
  };
  reward.addEventListener('change', apart);
  apart();
}

/** The rubrics by which a field can be filled: versions to choose from, and dimensions to weigh. */
function rubricChoices({ active, versions }) {
  const dimensions = new Map([['ranking', t('form.ranking')]]);
  for (const { definition } of versions)
    for (const d of definition.dimensions) if (d.kind !== 'tags' && !dimensions.has(d.key)) dimensions.set(d.key, textOf(d.label));
  return {
    active,
    versions,
    weights: dimensions.size > 1 ? [...dimensions].map(([key, text]) => ({ key, text })) : [],
    options: versions.map(({ version, definition }) => ({ value: version, text: `${definition.name} (${version})` })),
  };
}

/** Shows the dimensions of the chosen rubric, of the active one while none is chosen, or of all. */
function keepToRubric(form, { active, versions }) {
  const select = form.field('rubric')?.el.querySelector('select');
  const field = form.field('dimensions')?.el;
  if (!select || !field) return;
  const keep = () => {
    const found = versions.find((one) => one.version === (select.value || active));
    for (const row of field.querySelectorAll('[data-key]')) {
      row.hidden = found !== undefined && row.dataset.key !== 'ranking' && !found.definition.dimensions.some((d) => d.key === row.dataset.key);
      if (row.hidden) row.querySelector('input').value = '';
    }
  };
  select.addEventListener('change', keep);
  keep();
}

export async function newJobView(el, { id, signal }) {
  const [recipes, models, rubrics] = await Promise.all([
    get('/admin/recipes', null, { signal }).then(listOf),
    get('/admin/models', null, { signal }).then(listOf),
    get('/admin/rubrics', { project: projectId() }, { signal }).then(rubricChoices),
  ]);
  const recipe = recipes.find((r) => r.name === id) ?? recipes.find((r) => r.name === 'sft') ?? recipes[0];
  const form = schemaForm(recipe.schema, {
    kind: recipe.name,
    first: rubrics.weights.length ? [...FIRST, 'dimensions', 'rubric'] : FIRST,
    hidden: HIDDEN,
    weights: rubrics.weights,
    presets: presets(recipe),
    models: (name) =>
      name === 'rubric' && rubrics.options.length
        ? { options: rubrics.options, selected: null, empty: t('form.none') }
        : modelChoices(name, recipe.name, models),
  });
  keepApart(form);
  keepToRubric(form, rubrics);
  const name = h('input', { id: 'job-name', autocomplete: 'off', maxlength: '120' });
  const note = h('textarea', { id: 'job-note', rows: '2', maxlength: '4000' });
  const message = h('p', { class: 'form-error', role: 'alert' });
  const start = h('button', { class: 'primary', type: 'submit', text: t('job.start', { name: recipeName(recipe.name) }) });
  const submit = async (e) => {
    e.preventDefault();
    message.textContent = '';
    let args;
    try {
      args = form.read();
    } catch {
      message.textContent = t('form.fix');
      return;
    }
    if (checkTogether(form, args)) {
      message.textContent = t('form.fix');
      return;
    }
    start.disabled = true;
    try {
      /** @type {PostBody<'/admin/jobs'>} */
      const body = { kind: recipe.name, args };
      if (name.value.trim()) body.name = name.value.trim();
      if (note.value.trim()) body.note = note.value.trim();
      const answer = await post('/admin/jobs', body);
      location.hash = `#/jobs/${encodeURIComponent(answer.id)}`;
    } catch (err) {
      if (form.showError(err.param, err.message)) message.textContent = t('form.fix');
      else message.textContent = errorText(err);
    } finally {
      start.disabled = false;
    }
  };
  fill(
    el,
    h(
      'header',
      { class: 'view-head' },
      h('h1', { text: t('job.new', { name: recipeName(recipe.name) }) }),
      h('a', { href: '#/jobs', text: t('job.back') }),
    ),
    h(
      'nav',
      { class: 'recipes', 'aria-label': t('job.recipes') },
      recipes.map((r) =>
        h('a', {
          class: 'button',
          href: `#/jobs/new/${encodeURIComponent(r.name)}`,
          'aria-current': r === recipe ? 'page' : null,
          text: recipeName(r.name),
        }),
      ),
    ),
    h('p', { class: 'lead', text: has(`recipe.${recipe.name}`) ? t(`recipe.${recipe.name}`) : recipe.about }),
    h(
      'form',
      { class: 'panel job-form', novalidate: true, on: { submit } },
      form.el,
      h(
        'div',
        { class: 'field-grid' },
        h('div', { class: 'field' }, h('label', { for: 'job-name', text: t('job.name') }), name, h('p', { class: 'help', text: t('job.name_help') })),
        h('div', { class: 'field' }, h('label', { for: 'job-note', text: t('job.note') }), note),
      ),
      message,
      h('div', { class: 'actions start-line' }, start, estimator(recipe.name, form, signal)),
    ),
  );
}

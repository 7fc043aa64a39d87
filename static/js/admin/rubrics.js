// Rubrics: the active one, a form that makes a new version, and the versions before.
import { get, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { LANGUAGES, t, when } from '../i18n.js';
import { textOf } from '../label/rubric.js';
import { dimensionPanel } from '../label/dimensions.js';
import { errorText } from '../plain.js';
import { caught, download, section, table } from './parts.js';
import { projectId } from './project.js';

/** @import { Dimension, RubricDefinition } from '../contract.d.ts' */

const KINDS = ['likert', 'flag', 'tags'];
const RATIONALE = ['off', 'optional', 'required'];
const langs = Object.entries(LANGUAGES);

/** @returns {RubricDefinition} */
const empty = () => ({ name: '', dimensions: [], rationale: 'optional' });

/** @returns {Dimension} */
const newDimension = () => ({ key: '', label: {}, kind: 'likert', required: true, points: 7, low: {}, high: {}, suggestions: [] });

/** The texts of a form's fields by language, without empty ones; texts in languages without a field stay. */
const withText = (texts, code, value) => {
  const all = { ...texts, [code]: value.trim() };
  if (!all[code]) delete all[code];
  return all;
};

/** What the server takes: each kind has only its own fields. */
const sent = (/** @type {RubricDefinition} */ definition) => ({
  name: definition.name.trim(),
  dimensions: definition.dimensions.map(({ key, label, kind, required, points, low, high, suggestions }) => ({
    key,
    label,
    kind,
    required,
    ...(kind === 'likert' ? { points, low, high } : {}),
    ...(kind === 'tags' ? { suggestions } : {}),
  })),
  rationale: definition.rationale,
});

/**
 * A field whose changes go to `set`; further options are attributes of its input.
 * @param {string} id
 * @param {string} label
 * @param {any} value
 * @param {(value: string) => void} set
 * @param {Record<string, any>} [options]
 */
function field(id, label, value, set, { type = 'text', help = '', ...props } = {}) {
  const input = h('input', { id, type, value: value ?? '', autocomplete: 'off', dir: 'auto', 'aria-describedby': help ? `${id}-help` : null, ...props });
  input.addEventListener('input', () => set(input.value));
  return h(
    'div',
    { class: 'field' },
    h('label', { for: id, text: label }),
    input,
    help ? h('p', { class: 'help', id: `${id}-help`, text: help }) : null,
  );
}

function choice(id, label, value, options, set) {
  const select = h(
    'select',
    { id },
    options.map(([v, text]) => h('option', { value: v, text, selected: v === value })),
  );
  select.addEventListener('change', () => set(select.value));
  return h('div', { class: 'field' }, h('label', { for: id, text: label }), select);
}

/** The form of a definition. `changed()` after every change; `redraw()` where fields come and go. */
function definitionForm(/** @type {RubricDefinition} */ definition, changed, redraw) {
  const dimension = (/** @type {Dimension} */ d, i) => {
    const id = `rubric-d${i}`;
    const keep = (name) => (value) => (((/** @type {any} */ (d))[name] = value), changed());
    const texts = (name, words) =>
      langs.map(([code, lang]) =>
        field(`${id}-${name}-${code}`, t(words, { lang }), d[name]?.[code], (v) => keep(name)(withText(d[name], code, v)), { lang: code, maxlength: 120 }),
      );
    const required = h('input', { type: 'checkbox', id: `${id}-required`, checked: d.required });
    required.addEventListener('change', () => keep('required')(required.checked));
    const move = () => {
      const all = definition.dimensions;
      [all[i - 1], all[i]] = [all[i], all[i - 1]];
      redraw(`rubric-d${i - 1}-key`);
    };
    const remove = () => {
      definition.dimensions.splice(i, 1);
      redraw('rubric-add');
    };
    return h(
      'fieldset',
      { class: 'rubric-dimension' },
      h('legend', { text: t('rubrics.dimension', { n: i + 1 }) }),
      h(
        'div',
        { class: 'field-grid' },
        texts('label', 'rubrics.label'),
        field(`${id}-key`, t('rubrics.key'), d.key, keep('key'), { help: t('rubrics.key_help'), maxlength: 64, spellcheck: 'false' }),
        choice(`${id}-kind`, t('rubrics.kind'), d.kind, KINDS.map((k) => [k, t(`rubrics.kind.${k}`)]), (v) => {
          d.kind = v;
          redraw(`${id}-kind`);
        }),
        d.kind === 'likert'
          ? [
              field(`${id}-points`, t('rubrics.points'), d.points ?? 7, (v) => keep('points')(Number(v)), { type: 'number', min: 2, max: 10 }),
              texts('low', 'rubrics.low'),
              texts('high', 'rubrics.high'),
            ]
          : null,
        d.kind === 'tags'
          ? field(`${id}-suggestions`, t('rubrics.suggestions'), (d.suggestions ?? []).join(', '), (v) =>
              keep('suggestions')(v.split(/[,，、]/).map((s) => s.trim()).filter(Boolean)),
            )
          : null,
      ),
      h(
        'div',
        { class: 'row' },
        h('label', { class: 'inline', for: required.id }, required, h('span', { text: t('rubrics.required') })),
        i > 0 ? h('button', { type: 'button', class: 'quiet', text: t('rubrics.up'), on: { click: move } }) : null,
        h('button', { type: 'button', class: 'quiet', text: t('rubrics.remove'), on: { click: remove } }),
      ),
    );
  };
  return [
    h(
      'div',
      { class: 'field-grid' },
      field('rubric-name', t('rubrics.name'), definition.name, (v) => ((definition.name = v), changed()), { maxlength: 120 }),
      choice('rubric-rationale', t('rubrics.rationale'), definition.rationale, RATIONALE.map((r) => [r, t(`rubrics.rationale.${r}`)]), (v) => {
        definition.rationale = v;
        changed();
      }),
    ),
    definition.dimensions.map(dimension),
    h('button', {
      type: 'button',
      id: 'rubric-add',
      text: t('rubrics.add'),
      on: {
        click: () => {
          definition.dimensions.push(newDimension());
          redraw(`rubric-d${definition.dimensions.length - 1}-label-${langs[0][0]}`);
        },
      },
    }),
  ];
}

/** The rubric as the labeling page shows it, to be tried; what is chosen goes nowhere. */
function preview(/** @type {RubricDefinition} */ definition) {
  if (!definition.dimensions.length) return h('p', { class: 'muted', text: t('rubrics.preview_empty') });
  const values = {};
  const panel = dimensionPanel(definition, {
    x: 'A',
    read: () => values,
    change: (key, value) => {
      values[key] = value;
      panel.refresh();
    },
  });
  return panel.el;
}

/** Draws the panel of rubrics into `el`, again after every change. */
export async function rubricsEditor(el, signal) {
  const { active, versions, presets } = await get('/admin/rubrics', { project: projectId() }, { signal });
  const activeVersion = versions.find((v) => v.version === active);
  let definition = empty();
  const error = h('p', { class: 'form-error', role: 'alert' });
  const form = h('div', { class: 'stack' });
  const shown = h('div', { class: 'rubric-preview' });
  const changed = () => fill(shown, h('h4', { text: t('rubrics.preview') }), preview(definition));
  const redraw = (focus) => {
    fill(form, definitionForm(definition, changed, redraw));
    changed();
    if (focus) document.getElementById(focus)?.focus();
  };
  const load = (from) => {
    definition = { ...empty(), ...structuredClone(from) };
    definition.dimensions = (Array.isArray(from.dimensions) ? from.dimensions : []).map((d) => ({ ...newDimension(), ...structuredClone(d) }));
    error.textContent = '';
    redraw(null);
  };
  const again = () => rubricsEditor(el, signal);

  const activate = (version, name) =>
    caught(async () => {
      await post('/admin/rubrics/active', { version, project: projectId() });
      toast(version ? t('rubrics.activated', { name }) : t('rubrics.deactivated'), { kind: 'good' });
      await again();
    });
  const save = async (put) => {
    error.textContent = '';
    try {
      const stored = await post('/admin/rubrics', { definition: sent(definition), activate: put, project: projectId() });
      toast(t('rubrics.saved', { name: stored.definition.name, v: stored.version }), { kind: 'good' });
      await again();
    } catch (e) {
      error.textContent = errorText(e);
      const at = /dimensions\[(\d+)\]\.(\w+)/.exec(e.param ?? '');
      const id = at ? `rubric-d${at[1]}-${['label', 'low', 'high'].includes(at[2]) ? `${at[2]}-${langs[0][0]}` : at[2]}` : 'rubric-name';
      document.getElementById(id)?.focus();
    }
  };

  const file = h('input', { type: 'file', id: 'rubric-file', accept: '.json,application/json' });
  file.addEventListener('change', async () => {
    try {
      const read = JSON.parse(await file.files[0].text());
      const found = read.definition ?? read;
      if (!Array.isArray(found?.dimensions)) throw new Error('dimensions');
      load(found);
    } catch (e) {
      error.textContent = t('rubrics.file_bad', { why: e.message });
    }
    file.value = '';
  });
  const sources = [
    ['', t('rubrics.from_empty'), empty()],
    ...presets.map((p) => [`preset-${p.id}`, t('rubrics.from_preset', { name: p.definition.name }), p.definition]),
    ...versions.map((v) => [`version-${v.version}`, t('rubrics.from_version', { v: v.version, name: v.definition.name }), v.definition]),
  ];
  const from = choice('rubric-from', t('rubrics.from'), '', sources.map(([v, text]) => [v, text]), (value) =>
    load(sources.find(([v]) => v === value)[2]),
  );
  const maker = h(
    'details',
    { class: 'rubric-maker' },
    h('summary', null, h('strong', { text: t('rubrics.new') })),
    h('p', { class: 'help', text: t('rubrics.from_help') }),
    h(
      'div',
      { class: 'field-grid' },
      from,
      h('div', { class: 'field' }, h('label', { for: file.id, text: t('rubrics.file') }), file),
    ),
    h(
      'form',
      {
        class: 'stack',
        novalidate: true,
        on: {
          submit: (e) => {
            e.preventDefault();
            save(true);
          },
        },
      },
      form,
      shown,
      error,
      h(
        'div',
        { class: 'actions' },
        h('button', { type: 'button', text: t('rubrics.save_only'), on: { click: () => save(false) } }),
        h('button', { type: 'submit', class: 'primary', text: t('rubrics.save') }),
      ),
    ),
  );
  const edit = (v) => {
    maker.open = true;
    /** @type {HTMLSelectElement} */ (from.querySelector('select')).value = `version-${v.version}`;
    load(v.definition);
    document.getElementById('rubric-name')?.focus();
  };
  const rows = versions.map((v) =>
    h(
      'tr',
      null,
      h('td', { class: 'wrap', dir: 'auto' }, v.definition.name, v.version === active ? h('span', { class: 'tag good', text: t('rubrics.active') }) : null),
      h('td', { class: 'mono nowrap', text: v.version }),
      h('td', { class: 'wrap', dir: 'auto' }, h('div', { class: 'rubric-labels', text: v.definition.dimensions.map((d) => textOf(d.label)).join(t('rubric.comma')) })),
      h('td', { class: 'nowrap', text: when(v.created) }),
      h(
        'td',
        { class: 'right' },
        h(
          'div',
          { class: 'row rubric-actions' },
          v.version === active
            ? h('button', { type: 'button', text: t('rubrics.deactivate'), on: { click: activate(null, '') } })
            : h('button', { type: 'button', text: t('rubrics.activate'), on: { click: activate(v.version, v.definition.name) } }),
          h('button', { type: 'button', class: 'quiet', text: t('rubrics.edit'), on: { click: () => edit(v) } }),
          h('button', {
            type: 'button',
            class: 'quiet',
            text: t('rubrics.export'),
            on: { click: () => download(`rubric-${v.version}.json`, `${JSON.stringify(v.definition, null, 2)}\n`, 'application/json') },
          }),
        ),
      ),
    ),
  );
  fill(
    el,
    section(
      t('rubrics.title'),
      null,
      h('p', { class: 'muted', text: t('rubrics.help') }),
      activeVersion ? h('div', { class: 'rubric-preview' }, h('h3', { text: activeVersion.definition.name }), preview(activeVersion.definition)) : h('p', { text: t('rubrics.none') }),
      table(
        t('rubrics.versions'),
        [[t('rubrics.name')], [t('rubrics.version')], [t('rubrics.dimensions')], [t('rubrics.created')], ['', 'right']],
        rows,
        t('rubrics.no_versions'),
      ),
      maker,
    ),
  );
  redraw(null);
}

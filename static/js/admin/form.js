// A form from a JSON Schema (schemars, draft 2020-12). Only what differs from the default is sent.
import { h } from '../dom.js';
import { has, t } from '../i18n.js';

/** The schema behind `$ref`, `anyOf [X, null]` and `type: [X, "null"]`. */
function resolve(node, defs) {
  let out = { ...node };
  let nullable = false;
  for (let i = 0; i < 8; i++) {
    if (out.$ref) {
      const target = defs[out.$ref.split('/').pop()] ?? {};
      const { $ref, ...own } = out;
      out = { ...target, ...own };
      continue;
    }
    const options = out.anyOf ?? (out.allOf?.length === 1 ? out.allOf : null);
    if (options) {
      const real = options.filter((o) => o.type !== 'null');
      nullable ||= real.length < options.length;
      if (real.length === 1) {
        const { anyOf, allOf, ...own } = out;
        out = { ...real[0], ...own };
        continue;
      }
    }
    break;
  }
  if (Array.isArray(out.type)) {
    nullable ||= out.type.includes('null');
    const real = out.type.filter((x) => x !== 'null');
    out.type = real.length === 1 ? real[0] : undefined;
  }
  const choices = [
    ...(out.enum ?? []).map((value) => ({ value })),
    ...(out.oneOf ?? []).flatMap((o) =>
      o.const !== undefined
        ? [{ value: o.const, about: o.description }]
        : (o.enum ?? []).map((value) => ({ value, about: o.description })),
    ),
  ].filter((c) => c.value !== null);
  const closed = out.enum || (out.oneOf && out.oneOf.every((o) => o.const !== undefined || o.enum || o.type === 'null'));
  return { ...out, nullable, choices: closed && choices.length ? choices : null };
}

/** Words for a value of the argument `name`: its own, else those of the value in any argument. */
const choiceWords = (kind, name, value) => [`${kind}.${name}.${value}`, `${kind}.${value}`].find(has);

/** What a choice means, in the page's language where it has words for it. */
const aboutChoice = (name, { value, about }) => {
  const key = choiceWords('choice', name, value);
  return key ? t(key) : about ? plainHelp(about) : '';
};

/** A choice in the list: short, so that nothing is cut; what it means stands below. */
const choiceName = (name, value) => {
  const key = choiceWords('choice_name', name, value);
  return key ? t(key) : (PROPER[value] ?? String(value));
};
const PROPER = { torch: 'PyTorch', tf: 'TensorFlow', cpu: 'CPU', cuda: 'GPU', ipo: 'IPO', gpt2: 'GPT-2', llama: 'Llama', bert: 'BERT' };

/** A schema's description as a person reads it in a form: no Markdown marks, an empty field instead of null. */
export const plainHelp = (text) =>
  (text ?? '')
    .replace(/`([^`]*)`/g, '“$1”')
    .replace(/\s*\n\s*/g, ' ')
    .replace(/\bnull = /g, 'empty: ')
    .replace(/\bnull\b/g, 'empty')
    .replace(/\bfalse = /g, 'off: ');

/** Label and help of an argument in the page's words; the recipe's own name can have words of its own. */
const words = (name, kind, suffix = '') => {
  for (const key of [`arg.${kind}.${name}${suffix}`, `arg.${name}${suffix}`]) if (has(key)) return t(key);
  return null;
};

const capital = (text) => (text ? text[0].toUpperCase() + text.slice(1) : text);

const shown = (value) =>
  value === null || value === undefined ? '' : typeof value === 'object' ? JSON.stringify(value) : String(value);

/**
 * One field. `read()` gives the JSON value, `undefined` where it is left at the default, or throws Error.
 * `path` names it in server errors (`lora.rank`).
 */
function makeField(path, name, raw, defs, context) {
  const s = resolve(raw, defs);
  const id = `arg-${path.replace(/\W/g, '-')}`;
  const label = words(name, context.kind) ?? capital(name.replaceAll('_', ' '));
  // the page's words first: the schema's are English, and written for the command line as well
  const help = words(name, context.kind, '_help') ?? plainHelp(s.description);
  /** Shown at first; a preset differs from the schema's default and is sent. */
  const initial = path in context.presets ? context.presets[path] : s.default;
  const error = h('p', { class: 'form-error', id: `${id}-error` });
  const describe = `${id}-help ${id}-error`;
  const models = context.models?.(name, s);
  const weights = s.type === 'object' && s.additionalProperties?.type === 'number' ? context.weights : null;
  const note =
    models || s.default === undefined || s.default === null || s.default === '' || typeof s.default === 'object' || s.type === 'boolean'
      ? ''
      : t('form.default', { v: s.choices ? choiceName(name, s.default) : String(s.default) });
  const helpLine = h(
    'p',
    { class: 'help', id: `${id}-help` },
    help,
    help && note ? ' ' : '',
    note ? h('span', { class: 'nowrap', text: note }) : null,
  );
  const mark = (message) => {
    error.textContent = message ?? '';
    const control = box.querySelector('input,select,textarea');
    if (message) control?.setAttribute('aria-invalid', 'true');
    else control?.removeAttribute('aria-invalid');
  };
  const isDefault = (value) => s.default !== undefined && JSON.stringify(value) === JSON.stringify(s.default);
  const title = [
    h('span', { text: label }),
    context.required.has(path) ? h('span', { class: 'required', text: t('form.required') }) : null,
    h('code', { class: 'arg-name', text: name }),
  ];
  let read;
  let children = [];
  let box;

  if (models) {
    const select = h(
      'select',
      { id, 'aria-describedby': describe },
      models.empty === null ? null : h('option', { value: '', text: models.empty }),
      models.options.map((m) => h('option', { value: m.value, text: m.text, selected: m.value === models.selected })),
    );
    if (models.empty !== null && !models.selected) select.value = '';
    read = () => (select.value === '' ? undefined : select.value);
    box = h('div', { class: 'field' }, h('label', { for: id }, title), select, helpLine, error);
  } else if (s.choices) {
    const select = h(
      'select',
      { id, 'aria-describedby': `${id}-choice ${describe}` },
      s.nullable || s.default === undefined ? h('option', { value: '', text: t('form.none') }) : null,
      s.choices.map((c) => h('option', { value: JSON.stringify(c.value), selected: c.value === initial, text: choiceName(name, c.value) })),
    );
    const meaning = h('p', { class: 'help choice', id: `${id}-choice` });
    const tell = () => {
      const chosen = s.choices.find((c) => JSON.stringify(c.value) === select.value);
      meaning.textContent = chosen ? aboutChoice(name, chosen) : '';
    };
    select.addEventListener('change', tell);
    tell();
    read = () => (select.value === '' ? (s.nullable ? null : undefined) : JSON.parse(select.value));
    box = h('div', { class: 'field' }, h('label', { for: id }, title), select, meaning, helpLine, error);
  } else if (s.type === 'boolean') {
    const input = h('input', { id, type: 'checkbox', checked: initial === true, 'aria-describedby': describe });
    read = () => input.checked;
    box = h(
      'div',
      { class: 'field check' },
      h('label', { class: 'inline', for: id }, input, h('span', null, title)),
      helpLine,
      error,
    );
  } else if (s.type === 'integer' || s.type === 'number') {
    // text, not number: 1e-5 and 0.00001 must both survive as typed
    const input = h('input', {
      id,
      inputmode: 'decimal',
      autocomplete: 'off',
      value: shown(initial),
      placeholder: s.nullable ? t('form.none') : null,
      'aria-describedby': describe,
    });
    read = () => {
      const text = input.value.trim();
      if (text === '') return s.nullable ? null : undefined;
      const value = Number(text);
      if (!Number.isFinite(value)) throw new Error(t('form.not_a_number'));
      if (s.type === 'integer' && !Number.isInteger(value)) throw new Error(t('form.not_an_integer'));
      if (s.minimum !== undefined && value < s.minimum) throw new Error(t('form.at_least', { v: s.minimum }));
      if (s.maximum !== undefined && value > s.maximum) throw new Error(t('form.at_most', { v: s.maximum }));
      return value;
    };
    box = h('div', { class: 'field' }, h('label', { for: id }, title), input, helpLine, error);
  } else if (s.type === 'object' && s.properties) {
    const on = h('input', {
      id,
      type: 'checkbox',
      checked: !s.nullable || (initial !== null && initial !== undefined),
      'aria-describedby': describe,
    });
    children = Object.entries(s.properties).map(([k, v]) =>
      makeField(
        `${path}.${k}`,
        k,
        s.default && typeof s.default === 'object' && k in s.default ? { ...v, default: s.default[k] } : v,
        defs,
        { ...context, required: new Set() },
      ),
    );
    const inner = h(
      'div',
      { class: 'nested' },
      children.map((c) => c.el),
    );
    const toggle = () => (inner.hidden = !on.checked);
    on.addEventListener('change', toggle);
    toggle();
    read = (quiet) => {
      if (s.nullable && !on.checked) return null;
      const value = {};
      for (const c of children) {
        const v = c.value(quiet);
        if (v !== undefined) value[c.name] = v;
      }
      // a default that is an object gives way as a whole: what is not said would come from elsewhere
      return s.default && typeof s.default === 'object' ? { ...s.default, ...value } : value;
    };
    box = s.nullable
      ? h(
          'div',
          { class: 'field check wide' },
          h('label', { class: 'inline', for: id }, on, h('span', null, title)),
          helpLine,
          inner,
          error,
        )
      : h('fieldset', { class: 'field wide' }, h('legend', null, title), helpLine, inner, error);
  } else if (weights?.length) {
    const rows = weights.map(({ key, text }) => {
      const at = `${id}-${key.replace(/\W/g, '-')}`;
      const input = h('input', {
        id: at,
        inputmode: 'decimal',
        autocomplete: 'off',
        value: shown(initial?.[key]),
        placeholder: t('form.no_weight'),
        'aria-describedby': describe,
      });
      return { key, input, el: h('div', { class: 'field', data: { key } }, h('label', { for: at }, h('span', { dir: 'auto', text }), h('code', { class: 'arg-name', text: key })), input) };
    });
    read = () => {
      const value = {};
      for (const { key, input } of rows) {
        const text = input.value.trim();
        if (text === '') continue;
        value[key] = Number(text);
        if (!Number.isFinite(value[key])) throw new Error(t('form.not_a_number'));
      }
      return Object.keys(value).length ? value : null;
    };
    const inner = h(
      'div',
      { class: 'nested' },
      rows.map((row) => row.el),
    );
    box = h('fieldset', { class: 'field wide' }, h('legend', null, title), helpLine, inner, error);
  } else if (s.type === 'array' && (s.items?.type === 'string' || s.items?.type === 'integer')) {
    const input = h('input', {
      id,
      autocomplete: 'off',
      value: (s.default ?? []).join(', '),
      placeholder: t('form.list'),
      'aria-describedby': describe,
    });
    read = () => {
      const parts = input.value
        .split(',')
        .map((x) => x.trim())
        .filter(Boolean);
      if (parts.length === 0) return s.nullable ? null : undefined;
      return s.items.type === 'integer' ? parts.map(Number) : parts;
    };
    box = h('div', { class: 'field' }, h('label', { for: id }, title), input, helpLine, error);
  } else if (s.type === 'string') {
    const input = h('input', { id, autocomplete: 'off', value: shown(s.default), 'aria-describedby': describe });
    read = () => (input.value === '' ? (s.nullable ? null : undefined) : input.value);
    box = h('div', { class: 'field' }, h('label', { for: id }, title), input, helpLine, error);
  } else {
    const input = h('textarea', {
      id,
      rows: '2',
      class: 'mono',
      spellcheck: 'false',
      value: shown(s.default),
      placeholder: 'JSON',
      'aria-describedby': describe,
    });
    read = () => {
      if (input.value.trim() === '') return s.nullable || s.default === null ? null : undefined;
      try {
        return JSON.parse(input.value);
      } catch (e) {
        throw new Error(t('form.not_json', { why: e.message }));
      }
    };
    box = h('div', { class: 'field wide' }, h('label', { for: id }, title), input, helpLine, error);
  }

  const fail = (error, quiet) => {
    if (!quiet) mark(error.message);
    throw Object.assign(error, { field: path, control: box.querySelector('input,select,textarea') });
  };
  /** The value to send, or undefined. Marks the field where it is wrong, unless `quiet`. */
  const value = (quiet = false) => {
    if (!quiet) mark(null);
    let v;
    try {
      v = read(quiet);
    } catch (e) {
      fail(e, quiet);
    }
    if (v === undefined && context.required.has(path)) fail(new Error(t('form.missing')), quiet);
    if (isDefault(v) || (v === null && s.default === undefined)) return undefined;
    if (v && typeof v === 'object' && !Array.isArray(v) && children.length && Object.keys(v).length === 0 && !s.nullable)
      return undefined;
    return v;
  };
  const peek = () => value(true);
  return { el: box, name, path, label, value, peek, mark, children };
}

/**
 * `schema` → `{el, read(), showError(param, message)}`. `first` names the fields shown at once, the rest folds
 * away; `hidden` are left out; `models(name, schema)` gives `{options, selected, empty}` of a model field or null,
 * where `empty` names the choice of no model (null: one must be chosen); `presets` are shown instead of defaults, by
 * path; `kind` is the recipe, whose fields may have words of their own. `weights` are the keys of fields of weights, with their
 * names.
 * @param {any} schema
 * @param {{kind?: string, first?: string[], hidden?: string[], models?: (name: string, schema: any) => any,
 *   weights?: {key: string, text: string}[], presets?: Record<string, any>}} [options]
 */
export function schemaForm(schema, { kind = '', first = [], hidden = [], models, weights, presets = {} } = {}) {
  const defs = schema.$defs ?? schema.definitions ?? {};
  const names = Object.keys(schema.properties ?? {}).filter((n) => !hidden.includes(n));
  const required = new Set((schema.required ?? []).filter((n) => !hidden.includes(n)));
  const context = { required, models, weights, kind, presets };
  const fields = new Map(names.map((n) => [n, makeField(n, n, schema.properties[n], defs, context)]));
  const front = [...required, ...first].filter((n, i, all) => fields.has(n) && all.indexOf(n) === i);
  const rest = names.filter((n) => !front.includes(n));
  const grid = (list) =>
    h(
      'div',
      { class: 'field-grid' },
      list.map((n) => fields.get(n).el),
    );
  const more = rest.length
    ? h('details', { class: 'more-fields' }, h('summary', { text: t('form.more', { n: rest.length }) }), grid(rest))
    : null;
  const el = h('div', { class: 'schema-form' }, grid(front), more);
  const flat = (list) => list.flatMap((f) => [f, ...flat(f.children)]);
  return {
    el,
    field: (name) => fields.get(name) ?? null,
    /** The arguments as they stand, or null while a field is wrong; marks nothing. */
    peek() {
      const args = {};
      try {
        for (const [name, f] of fields) {
          const v = f.peek();
          if (v !== undefined) args[name] = v;
        }
        return args;
      } catch {
        return null;
      }
    },
    read() {
      const args = {};
      let wrong = null;
      for (const [name, f] of fields) {
        try {
          const v = f.value();
          if (v !== undefined) args[name] = v;
        } catch (e) {
          wrong ??= e;
        }
      }
      if (wrong) {
        if (more?.contains(wrong.control)) more.open = true;
        wrong.control?.focus();
        throw wrong;
      }
      return args;
    },
    /** Puts a server's message at the field it names; false where no field has that name. */
    showError(param, message) {
      const path = (param ?? '').replace(/^args\./, '');
      const all = flat([...fields.values()]);
      const f = all.find((x) => x.path === path) ?? all.find((x) => x.path === path.split('.')[0]);
      if (!f) return false;
      f.mark(message);
      if (more?.contains(f.el)) more.open = true;
      f.el.querySelector('input,select,textarea')?.focus();
      return true;
    },
  };
}

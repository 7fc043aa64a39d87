// The settings of a run: what differs from the defaults first, everything below.
import { h } from '../dom.js';
import { has, t } from '../i18n.js';

const text = (v) => (v === undefined || v === null ? t('form.none') : typeof v === 'string' ? v || t('form.none') : JSON.stringify(v));
const label = (name) => (has(`arg.${name}`) ? t(`arg.${name}`) : name.replaceAll('_', ' ').replace(/^./, (c) => c.toUpperCase()));

/** `[[name, value, default]]` of the arguments that are not as the recipe's schema has them. */
export function differences(args, schema) {
  const properties = schema?.properties ?? {};
  return Object.entries(args ?? {})
    .filter(([name, value]) => JSON.stringify(value ?? null) !== JSON.stringify(properties[name]?.default ?? null))
    .map(([name, value]) => [name, value, properties[name]?.default]);
}

export function settingsPart(job, schema) {
  const changed = differences(job.args, schema);
  const all = Object.keys({ ...schema?.properties, ...job.args });
  const row = (name, value, before) =>
    h(
      'div',
      null,
      h('dt', { title: name, text: label(name) }),
      h(
        'dd',
        { dir: 'auto' },
        before === undefined || before === null || before === '' ? null : h('s', { class: 'muted', text: text(before) }),
        ' ',
        h('span', { class: 'mono', text: text(value) }),
      ),
    );
  return h(
    'section',
    { class: 'panel block', data: { part: 'settings' } },
    h('h2', { text: t('run.changed') }),
    changed.length ? h('dl', { class: 'args' }, changed.map(([n, v, d]) => row(n, v, d))) : h('p', { class: 'muted', text: t('run.all_defaults') }),
    h(
      'details',
      null,
      h('summary', { text: t('run.args_all', { n: all.length }) }),
      h('dl', { class: 'args' }, all.map((n) => row(n, job.args?.[n] ?? schema?.properties?.[n]?.default))),
    ),
  );
}

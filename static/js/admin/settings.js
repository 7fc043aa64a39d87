// Settings by their names in words: those that can be changed while running first, the others folded.
import { get, listOf, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { has, num, t, when } from '../i18n.js';
import { errorText } from '../plain.js';
import { inline } from '../richtext.js';
import { guidelinesEditor } from './guidelines.js';
import { bytes, section } from './parts.js';
import { retentionPanel } from './retention.js';
import { rubricsEditor } from './rubrics.js';
import { webhooksPanel } from './webhooks.js';

const show = (value) => (value === null || value === '' ? t('settings.unset') : String(value));
/** Sizes also in units that people read. */
const shown = (s) =>
  s.name.endsWith('_bytes') && typeof s.value === 'number' && s.value >= 10_000
    ? `${s.value} (${bytes(s.value)})`
    : show(s.value);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** A setting's name in words; the key of the configuration stays beside it. */
const title = (s) => {
  const words = `setting_name.${s.name}`;
  if (has(words)) return t(words);
  const plain = s.name.slice(s.name.indexOf('.') + 1).replaceAll('_', ' ');
  return plain.charAt(0).toUpperCase() + plain.slice(1);
};

/** Sections in the order of the file; what stands outside of one comes first. */
function grouped(all) {
  const groups = new Map([['', []]]);
  for (const s of all) {
    const dot = s.name.indexOf('.');
    const group = dot < 0 ? '' : s.name.slice(0, dot);
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push({ ...s, leaf: s.name.slice(dot + 1) });
  }
  return groups;
}

export async function settingsView(el, { signal }) {
  const body = h('div', { class: 'stack' });
  const guidelines = h('div', { class: 'stack' });
  const rubrics = h('div', { class: 'stack' });
  const retention = h('div', { class: 'stack' });
  const webhooks = h('div', { class: 'stack' });
  /** @type {() => Promise<unknown>} */
  let redrawRetention = async () => {};
  const filter = h('input', { type: 'search', id: 'settings-filter', placeholder: t('settings.filter'), autocomplete: 'off' });
  fill(
    el,
    h('header', { class: 'view-head' }, h('h1', { text: t('admin.settings') })),
    h('p', { class: 'lead', text: t('settings.lead') }),
    h(
      'div',
      { class: 'settings-tools' },
      h('label', { for: 'settings-filter', class: 'hidden-label', text: t('settings.filter') }),
      filter,
    ),
    body,
    retention,
    webhooks,
    guidelines,
    rubrics,
  );
  const failed = (host) => (e) => fill(host, h('p', { class: 'form-error', role: 'alert', text: errorText(e) }));
  retentionPanel(retention, signal).then((redraw) => (redrawRetention = redraw), failed(retention));
  webhooksPanel(webhooks, signal).catch(failed(webhooks));
  guidelinesEditor(guidelines, signal).catch(failed(guidelines));
  rubricsEditor(rubrics, signal).catch(failed(rubrics));

  const about = (s) => (has(`setting.${s.name}`) ? t(`setting.${s.name}`) : s.about);

  function liveControl(s, error) {
    const id = `set-${s.name.replaceAll('.', '-')}`;
    const onOff = typeof s.value === 'boolean';
    const options = onOff ? ['true', 'false'].map((v) => h('option', { value: v, selected: v === String(s.value), text: t(`settings.${v}`) })) : [];
    const input = h(onOff ? 'select' : 'input', {
      id,
      inputmode: typeof s.value === 'number' ? 'numeric' : null,
      autocomplete: 'off',
      value: String(s.value),
      'aria-labelledby': `${id}-name`,
      'aria-describedby': `${id}-error`,
    });
    if (onOff) {
      fill(input, options);
      input.value = String(s.value);
    }
    error.id = `${id}-error`;
    const save = async (value) => {
      error.textContent = '';
      input.removeAttribute('aria-invalid');
      try {
        await post('/admin/settings', { name: s.name, value });
        toast(t('settings.saved', { name: title(s) }), { kind: 'good' });
        await draw();
        if (s.name.startsWith('retention.')) await redrawRetention();
      } catch (e) {
        error.textContent = errorText(e);
        input.setAttribute('aria-invalid', 'true');
        input.focus();
      }
    };
    const go = h('button', { type: 'submit', text: t('settings.save'), disabled: true });
    input.addEventListener('input', () => (go.disabled = input.value === String(s.value)));
    return h(
      'form',
      {
        class: 'inline-form',
        novalidate: true,
        on: {
          submit: (e) => {
            e.preventDefault();
            const text = input.value.trim();
            if (onOff) return save(text === 'true');
            save(typeof s.value === 'number' && text !== '' && Number.isFinite(Number(text)) ? Number(text) : text);
          },
        },
      },
      input,
      go,
      s.changed
        ? h('button', {
            type: 'button',
            class: 'quiet',
            text: t('settings.reset', { v: show(s.configured) }),
            on: { click: () => save(null) },
          })
        : null,
    );
  }

  function row(s) {
    const error = h('p', { class: 'form-error', role: 'alert' });
    return h(
      'div',
      { class: 'setting', data: { name: s.name } },
      h(
        'div',
        { class: 'setting-about' },
        h('div', { class: 'setting-title' }, h('span', { class: 'setting-name', id: `set-${s.name.replaceAll('.', '-')}-name`, text: title(s) }), h('code', { class: 'sub', text: s.name })),
        h('p', { class: 'help' }, inline(about(s))),
        s.changed
          ? h('p', {
              class: 'help',
              dir: 'auto',
              text: t('settings.changed', { who: s.changed.updated_by, at: when(s.changed.updated) }),
            })
          : null,
      ),
      h(
        'div',
        { class: 'setting-value' },
        s.live ? liveControl(s, error) : h('span', { class: 'mono value', text: shown(s) }),
        s.affects
          ? h('p', {
              class: 'help',
              text: t('settings.affects', { n: num(s.affects.prompts), answers: num(s.affects.completions), feedback: num(s.affects.feedback_events) }),
            })
          : null,
        s.live ? error : null,
        same(s.value, s.default) ? null : h('span', { class: 'help', text: t('settings.default', { v: show(s.default) }) }),
      ),
    );
  }

  const heading = (name) =>
    name === '' ? t('settings.general') : has(`settings.section.${name}`) ? t(`settings.section.${name}`) : name;

  async function draw() {
    const all = listOf(await get('/admin/settings', null, { signal }));
    const paint = () => {
      const wanted = filter.value.trim().toLowerCase();
      const fits = (s) => !wanted || `${s.name} ${title(s)} ${about(s)}`.toLowerCase().includes(wanted);
      const found = all.filter(fits);
      const parts = (list) => [...grouped(list)].filter(([, some]) => some.length);
      const panel = ([name, list]) => section(heading(name), null, list.map(row));
      const live = parts(found.filter((s) => s.live));
      const fixed = parts(found.filter((s) => !s.live));
      const chosen = new Set([...body.querySelectorAll('details[open]')].map((d) => d.dataset.name));
      fill(
        body,
        live.length ? [h('h2', { text: t('settings.live') }), live.map(panel)] : null,
        fixed.length ? [h('h2', { text: t('settings.fixed') }), h('p', { class: 'muted', text: t('settings.fixed_help') })] : null,
        // Read-only values are folded, so that the page stays short; a search opens what it finds.
        fixed.map(([name, list]) =>
          h(
            'details',
            { class: 'panel block fold', open: wanted !== '' || chosen.has(name), data: { name } },
            h('summary', null, h('strong', { text: heading(name) }), ' ', h('span', { class: 'muted', text: t('settings.count', { n: list.length }) })),
            list.map(row),
          ),
        ),
        found.length ? null : h('p', { class: 'muted pad', text: t('settings.none') }),
      );
    };
    filter.oninput = paint;
    paint();
  }
  await draw();
}

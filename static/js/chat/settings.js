// The try-it page's settings: how many answers, which versions, how they are drawn. Remembered on this machine.
import { get, listOf } from '../api.js';
import { fill, h, keep } from '../dom.js';
import { t } from '../i18n.js';

const KEY = 'instructd.chat.settings';
export const MODES = ['one', 'two', 'versions'];

const DEFAULTS = {
  mode: 'one',
  model: '', // '' = whatever is served
  a: '',
  b: '',
  blind: true,
  temperature: 0.8,
  top_p: 1,
  max_tokens: null, // null = as many as the server's default and the model's context allow
  system: '',
  seed: null, // null = drawn anew for every answer
};

/** `{settings, el, load}`; `settings` is read anew for every question. */
export function settingsPanel({ onNew, onCode }) {
  const settings = { ...DEFAULTS, ...keep.get(KEY) };
  // `?compare=A,B` comes from the models page
  const compare = new URL(location.href).searchParams.get('compare')?.split(',');
  if (compare?.length === 2) Object.assign(settings, { mode: 'versions', a: compare[0], b: compare[1] });
  if (!MODES.includes(settings.mode)) settings.mode = 'one';
  const save = () => keep.set(KEY, settings);
  const field = (id, label, input, help) =>
    h(
      'div',
      { class: 'field' },
      h('label', { for: id, text: label }),
      input,
      help ? h('p', { class: 'help', text: help }) : null,
    );
  const bind = (name, read) => ({
    change: (e) => {
      settings[name] = read(e.target);
      save();
    },
  });
  const number = (name, id, attrs) =>
    h('input', {
      id,
      type: 'number',
      inputmode: 'decimal',
      value: settings[name],
      ...attrs,
      on: bind(name, (el) => el.valueAsNumber),
    });
  const versionSelect = (name, id) => h('select', { id, on: bind(name, (el) => el.value) });

  const one = versionSelect('model', 'chat-model');
  const a = versionSelect('a', 'chat-a');
  const b = versionSelect('b', 'chat-b');
  const blind = h('input', {
    id: 'chat-blind',
    type: 'checkbox',
    checked: settings.blind,
    on: bind('blind', (el) => el.checked),
  });
  const system = h('textarea', {
    id: 'chat-system',
    rows: '3',
    dir: 'auto',
    value: settings.system,
    placeholder: t('chat.system_hint'),
    on: bind('system', (el) => el.value),
  });

  const forMode = {
    one: [field('chat-model', t('chat.model'), one)],
    two: [h('p', { class: 'help', text: t('chat.two_help') })],
    versions: [
      field('chat-a', t('chat.version_a'), a),
      field('chat-b', t('chat.version_b'), b),
      h(
        'label',
        { class: 'inline check-line', for: 'chat-blind' },
        blind,
        h('span', null, t('chat.blind'), h('span', { class: 'help', text: t('chat.blind_help') })),
      ),
    ],
  };
  const modeBox = h('div', { class: 'stack' });
  const modes = h(
    'div',
    { class: 'segmented modes', role: 'group', 'aria-label': t('chat.mode') },
    MODES.map((m) =>
      h('button', { type: 'button', data: { mode: m }, text: t(`chat.mode_${m}`), on: { click: () => setMode(m) } }),
    ),
  );
  function setMode(mode) {
    settings.mode = mode;
    save();
    for (const button of modes.children) button.setAttribute('aria-pressed', String(button.dataset.mode === mode));
    fill(modeBox, forMode[mode]);
  }
  setMode(settings.mode);

  const el = h(
    'details',
    { class: 'settings', open: innerWidth > 900 },
    h('summary', { text: t('chat.settings') }),
    h(
      'div',
      { class: 'settings-body' },
      modes,
      modeBox,
      h(
        'div',
        { class: 'pair-fields' },
        field(
          'chat-temperature',
          t('chat.temperature'),
          number('temperature', 'chat-temperature', { min: 0, max: 2, step: 0.1 }),
        ),
        field('chat-top-p', t('chat.top_p'), number('top_p', 'chat-top-p', { min: 0.01, max: 1, step: 0.05 })),
      ),
      h('p', { class: 'help', text: t('chat.temperature_help') }),
      h(
        'div',
        { class: 'pair-fields' },
        field('chat-max', t('chat.max'), number('max_tokens', 'chat-max', { min: 1, step: 1, placeholder: t('ask.standard') })),
        field('chat-seed', t('chat.seed'), number('seed', 'chat-seed', { min: 0, step: 1, placeholder: t('chat.seed_random') })),
      ),
      h('p', { class: 'help', text: t('chat.max_help') }),
      field('chat-system', t('chat.system'), system),
      h(
        'div',
        { class: 'row' },
        h('button', { type: 'button', text: t('chat.new'), on: { click: onNew } }),
        h('button', { type: 'button', text: t('chat.code'), on: { click: onCode } }),
      ),
    ),
  );
  const wide = matchMedia('(min-width: 901px)');
  wide.addEventListener('change', () => (el.open = wide.matches));

  /** Names of the versions that can be chosen; those that are gone fall back to the active one. */
  async function load() {
    const models = listOf(await get('/v1/models'));
    const name = (m) => (m.instructd?.state === 'active' ? t('chat.is_active', { name: m.id }) : m.id);
    const offer = (select, key, first) => {
      fill(
        select,
        first ? h('option', { value: '', text: first }) : null,
        models.map((m) => h('option', { value: m.id, text: name(m) })),
      );
      if (!models.some((m) => m.id === settings[key])) settings[key] = '';
      select.value = settings[key];
    };
    offer(one, 'model', t('chat.active'));
    const active = models[0]?.id ?? '';
    const known = (key, other) => (models.some((m) => m.id === settings[key]) ? settings[key] : other);
    settings.a = known('a', active);
    settings.b = known('b', models.find((m) => m.id !== settings.a)?.id ?? active);
    offer(a, 'a');
    offer(b, 'b');
  }
  return { settings, el, load };
}

// The list of keys, in which each person can change them.
import { dialog, fill, h } from '../dom.js';
import { t } from '../i18n.js';
import { keyOf } from '../keys.js';
import { isAssignable, keyName, keymap } from './keymap.js';

/** @import { Changeable } from './keymap.js' */

/** Shows the keys; resolves when the list is closed. */
export function keySheet() {
  const body = h('div');
  const said = h('p', { class: 'help', role: 'status', 'aria-live': 'polite' });
  /** The action that waits for its new key. @type {Changeable | null} */
  let waiting = null;

  const fixed = (keys, text) =>
    h(
      'tr',
      null,
      h(
        'td',
        null,
        keys.map((k) => h('kbd', { text: k })),
      ),
      h('td', { text }),
    );
  const own = (/** @type {Changeable} */ name, text, more = []) => {
    const k = keyName(keymap.of(name));
    const button = h('button', {
      type: 'button',
      class: 'key-button',
      'aria-label': t('keys.change', { what: text, key: k }),
      title: t('keys.change', { what: text, key: k }),
      data: { key: name },
      text: waiting === name ? '…' : k,
      on: {
        click: () => {
          waiting = waiting === name ? null : name;
          said.textContent = waiting ? t('keys.press', { what: text }) : '';
          draw(name);
        },
      },
    });
    return h('tr', { class: waiting === name ? 'waiting' : '' }, h('td', null, button, more.map((m) => h('kbd', { text: m }))), h('td', { text }));
  };
  const group = (caption, rows) => h('table', { class: 'keys' }, h('caption', { text: caption }), h('tbody', null, rows));

  /** Draws the list anew; `focus` names the action whose button has the focus. */
  function draw(focus) {
    fill(
      body,
      group(t('keys.pair'), [
        fixed(['1', '←'], t('keys.a')),
        fixed(['2', '→'], t('keys.b')),
        own('tie', t('keys.tie'), ['0']),
        fixed(['1', '1'], t('keys.stronger')),
        own('hand_a', t('keys.hand_a')),
        own('hand_b', t('keys.hand_b')),
      ]),
      group(t('keys.many'), [fixed(['1', '…', '9'], t('keys.tier')), fixed(['←', '→'], t('keys.move')), fixed(['⌫'], t('keys.clear'))]),
      group(t('keys.always'), [
        fixed(['Enter'], t('keys.submit')),
        own('all_bad', t('keys.all_bad')),
        own('unrankable', t('keys.unrankable')),
        own('skip', t('keys.skip')),
        own('undo', t('keys.undo')),
        own('more', t('keys.more')),
        own('rate', t('keys.rate'), ['1 … 9']),
        own('flag', t('keys.flag'), ['1 … 9']),
        own('mark', t('keys.mark')),
        own('correct', t('keys.correct')),
        own('diff', t('keys.diff')),
        own('plain', t('keys.plain')),
        own('unfold', t('keys.unfold')),
        own('guidelines', t('keys.guidelines')),
        fixed(['Ctrl', 'Enter'], t('keys.ctrl_enter')),
        own('sheet', t('keys.sheet')),
      ]),
      said,
      h('p', { class: 'help', text: t('keys.sleep') }),
      h('p', { class: 'help', text: t('keys.own') }),
      keymap.isChanged
        ? h('button', {
            type: 'button',
            text: t('keys.reset'),
            on: {
              click: () => {
                keymap.reset();
                waiting = null;
                said.textContent = t('keys.reset_done');
                draw('tie');
              },
            },
          })
        : null,
    );
    if (focus) /** @type {HTMLElement | null} */ (body.querySelector(`[data-key=${focus}]`))?.focus();
  }

  body.addEventListener('keydown', (e) => {
    const k = keyOf(e);
    if (!waiting || k === null || k === 'Tab' || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    e.stopPropagation();
    const name = waiting;
    const what = t(`keys.${name}`);
    if (k === 'Escape') {
      waiting = null;
      said.textContent = '';
    } else if (isAssignable(k)) {
      const other = keymap.change(name, k);
      waiting = null;
      said.textContent = other
        ? t('keys.swapped', { what, key: keyName(k), other: t(`keys.${other}`), old: keyName(keymap.of(other)) })
        : t('keys.changed', { what, key: keyName(k) });
    } else {
      said.textContent = t('keys.not_free');
    }
    draw(name);
  });
  draw(null);
  return dialog(t('keys.title'), () => [body], { wide: true, closeLabel: t('close') });
}

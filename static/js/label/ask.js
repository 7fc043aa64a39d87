// "Ask anything, rank the answers": makes a fresh comparison set from a question.
import { post } from '../api.js';
import { h } from '../dom.js';
import { t } from '../i18n.js';

/** A form; `onSet(setId)` is called once the answers are written. */
export function askForm(onSet) {
  const text = h('textarea', { id: 'ask-text', rows: '4', dir: 'auto', placeholder: t('ask.placeholder') });
  const n = h(
    'select',
    { id: 'ask-n' },
    [2, 3, 4, 5, 6, 7, 8, 9].map((k) => h('option', { value: k, selected: k === 2, text: k })),
  );
  const error = h('p', { class: 'form-error', role: 'alert' });
  const go = h('button', { class: 'primary', type: 'submit', text: t('ask.go') });
  return h(
    'form',
    {
      class: 'panel ask',
      on: {
        submit: async (e) => {
          e.preventDefault();
          const content = text.value.trim();
          if (content === '') return void ((error.textContent = t('ask.empty')), text.focus());
          error.textContent = '';
          go.disabled = true;
          go.textContent = t('ask.writing', { n: Number(n.value) });
          try {
            const set = await post('/v1/comparison-sets', { messages: [{ role: 'user', content }], n: Number(n.value) });
            await onSet(set.id ?? set.set_id ?? set.set?.id);
          } catch (err) {
            error.textContent = err.message;
          } finally {
            go.disabled = false;
            go.textContent = t('ask.go');
          }
        },
      },
    },
    h('div', { class: 'field' }, h('label', { for: 'ask-text', text: t('ask.label') }), text),
    h(
      'div',
      { class: 'row' },
      h('label', { class: 'inline', for: 'ask-n' }, h('span', { text: t('ask.n') }), n),
      h('span', { class: 'grow' }),
      go,
    ),
    error,
  );
}

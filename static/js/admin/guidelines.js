// The labelers' guidelines: one text per language, changed while the server runs, with their former versions.
import { get, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { LANGUAGES, t, when } from '../i18n.js';
import { errorText } from '../plain.js';
import { section } from './parts.js';
import { projectId } from './project.js';

export async function guidelinesEditor(el, signal) {
  const { current, versions } = await get('/admin/guidelines', { project: projectId() }, { signal });
  const form = (g) => {
    const id = `guidelines-${g.lang}`;
    const text = h('textarea', { id, rows: '12', dir: 'auto', value: g.text, lang: g.lang });
    const error = h('p', { class: 'form-error', role: 'alert' });
    const go = h('button', { type: 'submit', class: 'primary', text: t('settings.save'), disabled: true });
    text.addEventListener('input', () => (go.disabled = text.value === g.text));
    const save = async (value) => {
      error.textContent = '';
      try {
        await post('/admin/guidelines', { lang: g.lang, text: value, project: projectId() });
        toast(t('guidelines.saved', { lang: LANGUAGES[g.lang] }), { kind: 'good' });
        await guidelinesEditor(el, signal);
      } catch (e) {
        error.textContent = errorText(e);
        text.focus();
      }
    };
    const former = versions.filter((v) => v.lang === g.lang && v.text !== '' && v.version !== g.version);
    return h(
      'form',
      {
        class: 'field',
        on: {
          submit: (e) => {
            e.preventDefault();
            save(text.value);
          },
        },
      },
      h('label', { for: id, text: LANGUAGES[g.lang] }),
      text,
      h('p', {
        class: 'help',
        text: g.since ? t('guidelines.since', { when: when(g.since), v: g.version }) : t('guidelines.version', { v: g.version }),
      }),
      error,
      h(
        'div',
        { class: 'actions' },
        g.since ? h('button', { type: 'button', text: t('guidelines.reset'), on: { click: () => save('') } }) : null,
        go,
      ),
      former.length
        ? h(
            'details',
            null,
            h('summary', { text: t('guidelines.former', { n: former.length }) }),
            h(
              'ul',
              { class: 'history' },
              former.map((v) =>
                h(
                  'li',
                  null,
                  h('span', { text: `${when(v.created)} · ${v.version}` }),
                  h('button', {
                    type: 'button',
                    class: 'quiet',
                    text: t('guidelines.take'),
                    on: {
                      click: () => {
                        text.value = v.text;
                        text.dispatchEvent(new Event('input'));
                        text.focus();
                      },
                    },
                  }),
                ),
              ),
            ),
          )
        : null,
    );
  };
  fill(el, section(t('guidelines'), null, h('p', { class: 'muted', text: t('guidelines.edit_help') }), current.map(form)));
}

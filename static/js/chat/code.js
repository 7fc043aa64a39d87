// "View code": the request that the page would send, for a program.
import { copyText, dialog, fill, h } from '../dom.js';
import { t } from '../i18n.js';

const LANGUAGES = ['curl', 'Python'];

/** The body of the next request; a placeholder stands for the question where nothing was asked yet. */
function requestBody({ messages, model, sampling }) {
  const asked = messages.some((m) => m.role === 'user') ? messages : [...messages, { role: 'user', content: 'Hello!' }];
  return { ...(model ? { model } : {}), messages: asked, ...sampling };
}

/** A shell word: quotes inside are closed, escaped and opened again. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function source(language, body) {
  const base = `${location.origin}/v1`;
  if (language === 'curl')
    return `curl ${base}/chat/completions \\\n  -H 'content-type: application/json' \\\n  -d ${quoted(JSON.stringify(body, null, 2))}`;
  const args = Object.entries({ model: 'active', ...body }).map(([k, v]) => `    ${k}=${JSON.stringify(v)},`);
  return [
    'from openai import OpenAI',
    '',
    `client = OpenAI(base_url="${base}", api_key="none")`,
    'answer = client.chat.completions.create(',
    ...args,
    ')',
    'print(answer.choices[0].message.content)',
  ].join('\n');
}

export function showCode(request) {
  return dialog(
    t('chat.code'),
    () => {
      const body = requestBody(request);
      const code = h('pre', { class: 'code-block', tabindex: '0', 'aria-label': t('chat.code') });
      const copy = h('button', { type: 'button', class: 'primary', text: t('copy') });
      copy.addEventListener('click', () => copyText(code.textContent, copy));
      const tabs = h('div', { class: 'segmented', role: 'group', 'aria-label': t('chat.code') });
      const show = (language) => {
        code.textContent = source(language, body);
        fill(
          tabs,
          LANGUAGES.map((name) =>
            h('button', { type: 'button', 'aria-pressed': String(name === language), text: name, on: { click: () => show(name) } }),
          ),
        );
      };
      show(LANGUAGES[0]);
      return [h('div', { class: 'row code-head' }, tabs, copy), code];
    },
    { wide: true, closeLabel: t('close') },
  );
}

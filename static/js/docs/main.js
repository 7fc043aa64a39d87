// The API page: the server has written every route; this adds the header, the language, a search and a way to try.
import { coded, fill, h } from '../dom.js';
import { t } from '../i18n.js';
import { currentSession, shell } from '../shell.js';

/** Characters of an answer that are shown. */
const SHOWN = 20000;

const content = document.getElementById('docs');
const page = shell('docs');
page.main.classList.add('docs');
page.main.append(...content.childNodes);

for (const el of page.main.querySelectorAll('[data-words]')) fill(el, coded(t(el.dataset.words)));
page.main.querySelector('.machine').before(`${t('docs.machine')} `);
for (const code of page.main.querySelectorAll('.example code'))
  code.textContent = code.textContent.replaceAll(content.dataset.origin, location.origin);
page.main.querySelector('.groups').setAttribute('aria-label', t('docs.groups'));

const routes = [...page.main.querySelectorAll('details.route')];
const groups = [...page.main.querySelectorAll('section.group')];

// ---- search ----
const found = h('p', { class: 'muted', role: 'status' });
const box = h('input', {
  id: 'docs-search',
  type: 'search',
  placeholder: t('docs.search_hint'),
  autocomplete: 'off',
  spellcheck: 'false',
  on: { input: () => search(box.value) },
});
const index = new Map(routes.map((r) => [r, r.textContent.toLowerCase()]));

function search(text) {
  const wanted = text.toLowerCase().split(/\s+/).filter(Boolean);
  let n = 0;
  for (const route of routes) {
    const fits = wanted.every((word) => index.get(route).includes(word));
    route.hidden = !fits;
    if (fits) n++;
  }
  for (const group of groups) group.hidden = !group.querySelector('details.route:not([hidden])');
  found.textContent = wanted.length ? t('docs.found', { n }) : '';
}
page.main
  .querySelector('.groups')
  .before(h('div', { class: 'field docs-search' }, h('label', { for: box.id, text: t('docs.search') }), box, found));

// ---- one route is open by its address ----
function openNamed() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (named instanceof HTMLDetailsElement && named.matches('.route')) {
    named.open = true;
    named.scrollIntoView();
  }
}
addEventListener('hashchange', openNamed);
openNamed();

// ---- copy, try ----
for (const route of routes) route.addEventListener('toggle', () => route.open && equip(route), { once: true });
for (const route of routes) if (route.open) equip(route);

function equip(route) {
  if (route.dataset.equipped) return;
  route.dataset.equipped = 'yes';
  for (const figure of route.querySelectorAll('.example')) {
    const copy = h('button', { class: 'quiet', type: 'button', text: t('docs.copy') });
    copy.addEventListener('click', async () => {
      await navigator.clipboard?.writeText(figure.querySelector('code').textContent).catch(() => {});
      copy.textContent = t('docs.copied');
    });
    figure.querySelector('figcaption').append(' ', copy);
  }
  if (route.dataset.path !== '/admin/import') route.append(trial(route));
}

function trial(route) {
  const { method, path } = route.dataset;
  const body = route.querySelector('template.body')?.content.textContent;
  const address = h('input', { id: `${route.id}-path`, value: path, spellcheck: 'false', autocomplete: 'off' });
  const area =
    body === undefined
      ? null
      : h('textarea', { id: `${route.id}-body`, rows: Math.min(14, body.split('\n').length + 1), spellcheck: 'false' });
  if (area) area.value = body;
  const answer = h('pre', { class: 'code-block', tabindex: '0', 'aria-label': t('docs.answer'), hidden: true });
  const state = h('p', { class: 'muted', role: 'status' });
  const send = h('button', { class: 'primary', type: 'submit', text: t('docs.send') });
  const stop = h('button', { type: 'button', text: t('docs.stop'), hidden: true });
  let running = null;
  stop.addEventListener('click', () => running?.abort());
  return h(
    'form',
    {
      class: 'trial stack',
      on: {
        submit: async (event) => {
          event.preventDefault();
          running = new AbortController();
          send.disabled = true;
          stop.hidden = false;
          answer.hidden = false;
          answer.textContent = '';
          state.textContent = t('docs.sending');
          try {
            const headers = { accept: 'application/json' };
            if (area) headers['content-type'] = 'application/json';
            const response = await fetch(address.value, {
              method,
              headers,
              credentials: 'same-origin',
              signal: running.signal,
              body: area ? area.value : undefined,
            });
            state.textContent = `${response.status} ${response.statusText}`;
            await show(response, answer);
          } catch (error) {
            state.textContent = error.name === 'AbortError' ? t('docs.stopped') : error.message;
          }
          send.disabled = false;
          stop.hidden = true;
        },
      },
    },
    h('h3', { text: t('docs.try') }),
    h('div', { class: 'field' }, h('label', { for: address.id, text: `${t('docs.address')} (${method})` }), address),
    area ? h('div', { class: 'field' }, h('label', { for: area.id, text: t('docs.body') }), area) : null,
    h('div', { class: 'actions' }, send, stop),
    state,
    answer,
  );
}

/** The answer as it comes; JSON is set out when it is whole. */
async function show(response, into) {
  const reader = response.body?.getReader();
  if (!reader) return;
  const decoder = new TextDecoder();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    text += decoder.decode(value, { stream: true });
    into.textContent = text.slice(0, SHOWN);
    if (text.length > SHOWN) {
      into.textContent += `\n… ${t('docs.cut')}`;
      await reader.cancel();
      return;
    }
  }
  try {
    into.textContent = JSON.stringify(JSON.parse(text), null, 2).slice(0, SHOWN);
  } catch {
    into.textContent = text; // lines, events, plain text
  }
}

currentSession()
  .then(page.setUser)
  .catch(() => {});

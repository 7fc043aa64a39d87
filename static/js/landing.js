// Front page: what this server is, where the doors are, what it serves right now.
import { get, listOf } from './api.js';
import { fill, h } from './dom.js';
import { t } from './i18n.js';
import { currentSession, shell } from './shell.js';

const page = shell('home');
const status = h('p', { class: 'landing-status', role: 'status' });

const door = (href, key) =>
  h(
    'a',
    { class: 'door', href },
    h('strong', { text: t(`home.${key}`) }),
    h('span', { class: 'muted', text: t(`home.${key}_text`) }),
  );

function example(name) {
  const body = JSON.stringify({ model: name, messages: [{ role: 'user', content: 'Hello!' }] });
  return `curl ${location.origin}/v1/chat/completions \\\n  -H 'content-type: application/json' \\\n  -d '${body}'`;
}

const code = h('pre', { class: 'code-block', tabindex: '0', 'aria-label': t('home.example') });

fill(
  page.main,
  h(
    'div',
    { class: 'landing' },
    h('h1', { text: t('home.title') }),
    h('p', { class: 'lead', text: t('home.lead') }),
    h('div', { class: 'doors' }, door('/label', 'label'), door('/chat', 'chat'), door('/admin', 'admin'), door('/explore', 'explore')),
    status,
    code,
    h(
      'p',
      { class: 'landing-status' },
      h('a', { href: '/docs', text: t('home.docs') }),
      h('a', { href: '/openapi.json', text: 'OpenAPI' }),
    ),
  ),
);
code.textContent = example('MODEL');

currentSession()
  .then(page.setUser)
  .catch(() => {});

get('/v1/models')
  .then((answer) => {
    const models = listOf(answer);
    const active = models.find((m) => m.active || m.instructd?.active || m.instructd?.state === 'active') ?? models[0];
    if (active) code.textContent = example(active.id);
    fill(
      status,
      h('span', { class: 'tag good', text: t('home.ready') }),
      active ? h('span', { class: 'mono', text: active.id }) : null,
    );
  })
  .catch((e) => fill(status, h('span', { class: 'tag warn', text: t('home.not_ready') }), h('span', { text: e.message })));

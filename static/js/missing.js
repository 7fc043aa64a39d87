// An address that is not there: says so, and where there is something.
import { fill, h } from './dom.js';
import { t } from './i18n.js';
import { currentSession, shell } from './shell.js';

const page = shell('missing');
fill(
  page.main,
  h(
    'div',
    { class: 'landing' },
    h('h1', { text: t('missing.title') }),
    h('p', { class: 'lead' }, t('missing.text'), ' ', h('code', { text: decoded(location.pathname) })),
    h(
      'p',
      { class: 'landing-status' },
      h('a', { href: '/', text: t('missing.home') }),
      h('a', { href: '/docs', text: t('home.docs') }),
    ),
  ),
);

function decoded(path) {
  try {
    return decodeURIComponent(path);
  } catch {
    return path; // a lone percent sign
  }
}

currentSession()
  .then(page.setUser)
  .catch(() => {});

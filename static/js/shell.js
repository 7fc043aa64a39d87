// What every page shares: header, language and theme, session, sign-in panel.
import { del } from './api.js';
import { LANGUAGES, lang, setLanguage, t } from './i18n.js';
import { dialog, fill, h, icon, toast } from './dom.js';
import { keyOf } from './keys.js';
import { errorText } from './plain.js';
import { currentSession, identify, secretIn, signIn } from './signin.js';
import { unsentOf, unsentOfOthers } from './unsent.js';

export { currentSession, signIn };

/** The pages of the navigation, in order: [key of its words, address]. */
const PAGES = [
  ['label', '/label'],
  ['chat', '/chat'],
  ['explore', '/explore'],
  ['admin', '/admin'],
];

const THEMES = ['auto', 'light', 'dark'];

function themeButton() {
  const root = document.documentElement;
  const button = h('button', { class: 'icon-button', type: 'button' });
  const show = () => {
    const theme = root.dataset.theme ?? 'auto';
    fill(
      button,
      icon({ auto: 'auto', light: 'sun', dark: 'moon' }[theme]),
      h('span', { class: 'menu-only', text: t(`theme.${theme}`) }),
    );
    button.setAttribute('aria-label', `${t('theme')}: ${t(`theme.${theme}`)}`);
    button.title = button.getAttribute('aria-label');
  };
  button.addEventListener('click', () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? 'auto') + 1) % THEMES.length];
    if (next === 'auto') delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem('instructd.theme', next);
    } catch {
      /* not remembered */
    }
    show();
    window.dispatchEvent(new CustomEvent('instructd:theme'));
  });
  show();
  return button;
}

function languageButton() {
  const other = lang === 'en' ? 'zh' : 'en';
  return h('button', {
    class: 'quiet lang-button',
    type: 'button',
    lang: other === 'zh' ? 'zh-Hans' : 'en',
    text: LANGUAGES[other],
    on: { click: () => setLanguage(other) },
  });
}

/**
 * Header + main. `page` marks the current link; `tools` go before the language switch (into the menu on
 * a phone), `status` nodes stay in sight; on a phone they take the place of the links, which go into the menu.
 * Returns `{main, setUser}`.
 */
export function shell(page, { tools = [], status = [] } = {}) {
  document.title = `${t(`title.${page}`)} · instructd`;
  const link = (name, href) =>
    h('a', { href, class: 'nav-link', 'aria-current': page === name ? 'page' : null, text: t(`nav.${name}`) });
  const user = h('div', { class: 'user' });
  const main = h('main', { id: 'main', tabindex: '-1' });
  const pages = () => PAGES.map(([name, href]) => link(name, href));
  // on a phone, where the row has no room for them, the pages are in the menu
  const menuPages = h('nav', { class: 'menu-pages', 'aria-label': t('nav.label_pages') }, pages());
  const toolbox = h('div', { class: 'top-tools', id: 'top-tools' }, menuPages, tools, languageButton(), themeButton(), user);
  const menu = h(
    'button',
    {
      class: 'icon-button menu-button',
      type: 'button',
      'aria-label': t('nav.menu'),
      'aria-expanded': 'false',
      'aria-controls': 'top-tools',
    },
    icon('menu'),
  );
  const openMenu = (open) => {
    toolbox.classList.toggle('open', open);
    menu.setAttribute('aria-expanded', String(open));
  };
  menu.addEventListener('click', () => openMenu(!toolbox.classList.contains('open')));
  document.addEventListener('click', (e) => !menu.contains(e.target) && openMenu(false));
  document.addEventListener('keydown', (e) => keyOf(e) === 'Escape' && openMenu(false));
  const header = h(
    'header',
    { class: `top ${status.length ? 'with-status' : ''}` },
    h('a', { class: 'skip-link', href: '#main', text: t('nav.skip') }),
    h(
      'a',
      { class: 'brand', href: '/', 'aria-label': 'instructd' },
      h('span', { class: 'brand-mark', 'aria-hidden': 'true' }),
      h('span', { class: 'brand-word', text: 'instructd' }),
    ),
    h(
      'nav',
      { class: 'nav', 'aria-label': t('nav.label_pages') },
      pages(),
    ),
    h('div', { class: 'top-status' }, status),
    toolbox,
    menu,
  );
  fill(document.body, header, main);
  // a link opened where this page is open already only changes the part behind the #
  window.addEventListener('hashchange', () => secretIn(location.hash) && location.reload());
  let told = false;
  const setUser = (labeler) => {
    if (labeler) tellOthers(labeler);
    if (labeler && !told) {
      // a session that ends under the work: say so, keep everything on the screen
      window.addEventListener('instructd:signed-out', () => {
        if (told) return;
        told = true;
        const n = unsentOf(labeler.id);
        const text = n ? t('sign.ended_unsent', { n, name: labeler.name }) : t('sign.ended');
        toast(text, { kind: 'bad', seconds: 0, action: { label: t('sign.in'), run: () => location.reload() } });
      });
    }
    fill(
      user,
      labeler
        ? [
            h('span', { class: 'user-name', dir: 'auto', text: labeler.name }),
            h('button', {
              class: 'quiet',
              type: 'button',
              text: t('sign.out'),
              on: { click: () => signOut(labeler) },
            }),
          ]
        : null,
    );
  };
  return { main, header, setUser };
}

let toldOthers = false;
/** Judgments of somebody else wait in this browser: they are not sent as this person's, and not lost. */
function tellOthers(labeler) {
  const { n, names } = unsentOfOthers(labeler.id);
  if (n === 0 || toldOthers) return;
  toldOthers = true;
  const text = names.length ? t('sign.others_unsent_of', { n, name: names.join(', ') }) : t('sign.others_unsent', { n });
  toast(text, { seconds: 0, action: { label: t('close'), run: () => {} } });
}

/** Ends the session; says first what was not sent. */
async function signOut(labeler) {
  const n = unsentOf(labeler.id);
  if (n > 0) {
    const go = await dialog(
      t('sign.out_title', { n }),
      (close) => [
        h('p', { text: t('sign.out_text', { name: labeler.name }) }),
        h(
          'div',
          { class: 'actions' },
          h('button', { type: 'button', class: 'primary', text: t('sign.stay'), on: { click: () => close(false) } }),
          h('button', { type: 'button', class: 'danger', text: t('sign.out_anyway'), on: { click: () => close(true) } }),
        ),
      ],
      { closeLabel: t('close') },
    );
    if (!go) return;
  }
  try {
    await del('/session');
  } catch (e) {
    if (e.status !== 401) return void toast(t('sign.out_failed', { why: errorText(e) }), { kind: 'bad', seconds: 10 });
  }
  sessionStorage.clear();
  location.reload();
}

/** Session or sign-in; fills the user corner. */
export async function requireSession(page, options) {
  const labeler = await identify(page.main, options, (text) => toast(text, { kind: 'bad', seconds: 0 }));
  page.setUser(labeler);
  fill(page.main);
  return labeler;
}

/** A box for "this failed", with a retry button where one is given. */
export function failure(error, retry) {
  return h(
    'div',
    { class: 'notice bad', role: 'alert' },
    h('p', { text: errorText(error) }),
    retry ? h('button', { type: 'button', text: t('retry'), on: { click: retry } }) : null,
  );
}

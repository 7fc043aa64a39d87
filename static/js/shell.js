// What every page shares: header, language and theme, session, sign-in panel.
import { ApiError, del, get, post } from './api.js';
import { LANGUAGES, lang, setLanguage, t } from './i18n.js';
import { fill, h, icon, toast } from './dom.js';
import { keyOf } from './keys.js';
import { errorText } from './plain.js';

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

/** The signed-in person, or null. */
export async function currentSession() {
  try {
    const answer = await get('/session');
    return answer?.labeler ?? null;
  } catch (e) {
    if (e instanceof ApiError && (e.status === 401 || e.status === 403 || e.status === 404)) return null;
    throw e;
  }
}

/**
 * Header + main. `page` marks the current link; `tools` go before the language switch (into the menu on
 * a phone), `status` nodes stay in sight.
 * Returns `{main, setUser}`.
 */
export function shell(page, { tools = [], status = [] } = {}) {
  document.title = `${t(`title.${page}`)} · instructd`;
  const link = (name, href) =>
    h('a', { href, class: 'nav-link', 'aria-current': page === name ? 'page' : null, text: t(`nav.${name}`) });
  const user = h('div', { class: 'user' });
  const main = h('main', { id: 'main', tabindex: '-1' });
  const toolbox = h('div', { class: 'top-tools', id: 'top-tools' }, tools, languageButton(), themeButton(), user);
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
    { class: 'top' },
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
      PAGES.map(([name, href]) => link(name, href)),
    ),
    h('div', { class: 'top-status' }, status),
    toolbox,
    menu,
  );
  fill(document.body, header, main);
  let told = false;
  const setUser = (labeler) => {
    if (labeler && !told) {
      // a session that ends under the work: say so, keep everything on the screen
      window.addEventListener('instructd:signed-out', () => {
        if (told) return;
        told = true;
        toast(t('sign.ended'), { kind: 'bad', seconds: 0, action: { label: t('sign.in'), run: () => location.reload() } });
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
              on: {
                click: async () => {
                  await del('/session').catch(() => {});
                  sessionStorage.clear();
                  location.reload();
                },
              },
            }),
          ]
        : null,
    );
  };
  return { main, header, setUser };
}

/**
 * Shows the sign-in panel in `into` and resolves with the labeler. A key, or an invite (also from `?invite=`)
 * plus a name.
 */
export function signIn(into, { note } = {}) {
  const url = new URL(location.href);
  const invited = url.searchParams.get('invite');
  let mode = invited ? 'invite' : 'key';
  return new Promise((resolve) => {
    const message = h('p', { class: 'form-error', role: 'alert' });
    const key = h('input', { id: 'sign-key', type: 'password', autocomplete: 'current-password', spellcheck: 'false' });
    const invite = h('input', { id: 'sign-invite', autocomplete: 'off', spellcheck: 'false', value: invited ?? '' });
    const name = h('input', { id: 'sign-name', autocomplete: 'nickname', maxlength: '80', dir: 'auto' });
    const fields = h('div', { class: 'stack' });
    const tabs = h('div', { class: 'segmented', role: 'group', 'aria-label': t('sign.how') });
    const go = h('button', { class: 'primary', type: 'submit', text: t('sign.in') });
    const field = (label, input, help) =>
      h(
        'div',
        { class: 'field' },
        h('label', { for: input.id, text: label }),
        input,
        help ? h('p', { class: 'help', text: help }) : null,
      );
    const show = () => {
      fill(
        tabs,
        ['key', 'invite'].map((m) =>
          h('button', {
            type: 'button',
            'aria-pressed': String(m === mode),
            text: t(`sign.with_${m}`),
            on: { click: () => ((mode = m), show()) },
          }),
        ),
      );
      fill(
        fields,
        mode === 'key'
          ? field(t('sign.key'), key, t('sign.key_help'))
          : [field(t('sign.invite'), invite, t('sign.invite_help')), field(t('sign.name'), name, t('sign.name_help'))],
      );
      (mode === 'key' ? key : invited ? name : invite).focus();
    };
    const form = h(
      'form',
      {
        class: 'panel sign-in',
        novalidate: true,
        on: {
          submit: async (e) => {
            e.preventDefault();
            const body =
              mode === 'key' ? { key: key.value.trim() } : { invite: inviteToken(invite.value), name: name.value.trim() };
            const missing = Object.values(body).some((v) => v === '');
            if (missing) return void (message.textContent = t('sign.missing'));
            go.disabled = true;
            message.textContent = '';
            try {
              const answer = await post('/session', body);
              if (invited) {
                url.searchParams.delete('invite'); // a used token has no business in the address bar
                history.replaceState(null, '', url);
              }
              resolve(answer?.labeler ?? (await currentSession()));
            } catch (err) {
              message.textContent = err.status === 401 || err.status === 403 ? t('sign.refused') : err.message;
              go.disabled = false;
              (mode === 'key' ? key : name).focus();
            }
          },
        },
      },
      h('h1', { text: t('sign.title') }),
      h('p', { class: 'muted', text: note ?? t('sign.why') }),
      tabs,
      fields,
      message,
      h('div', { class: 'actions' }, go),
    );
    fill(into, h('div', { class: 'sign-wrap' }, form));
    show();
  });
}

/** An invite may be pasted as the whole link. */
function inviteToken(text) {
  const m = /[?&]invite=([^&#\s]+)/.exec(text);
  return m ? decodeURIComponent(m[1]) : text.trim();
}

/** Session or sign-in; fills the user corner. */
export async function requireSession(page, options) {
  const labeler = (await currentSession()) ?? (await signIn(page.main, options));
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

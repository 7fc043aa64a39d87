// Signing in: a personal link, an invite, or a key. Links and invites come behind the `#` of the address, which
// browsers send to nobody, and leave the address bar at once.
import { ApiError, get, post } from './api.js';
import { fill, h } from './dom.js';
import { t } from './i18n.js';
import { errorText } from './plain.js';

/** @import { Person, SignedIn, SignInOptions } from './contract.d.ts' */

const INVITE = 'instructd.invite';
/** Pages that a sign-in at the provider returns to. */
const PAGES = ['label', 'admin', 'chat', 'explore'];

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

/** The secret in a pasted link or a bare token: `{link}`, `{invite}` or null. */
export function secretIn(text) {
  const found = /[#?&](link|invite)=([^&#\s]+)/.exec(text);
  if (found) return { [found[1]]: decodeURIComponent(found[2]) };
  const bare = text.trim();
  if (/^invite-/.test(bare)) return { invite: bare };
  if (/^link-/.test(bare)) return { link: bare };
  return null;
}

/** The code of a sign-in at the provider that failed: `{problem}` or null. */
function problemIn(text) {
  const found = /^#problem=([a-z_]{1,40})$/.exec(text);
  return found ? { problem: found[1] } : null;
}

/** What this page was opened with; taken out of the address bar. An invite outlives a reload until it is accepted. */
export function arrival() {
  const found = secretIn(location.hash) ?? secretIn(location.search) ?? problemIn(location.hash);
  if (found) {
    const url = new URL(location.href);
    url.searchParams.delete('invite');
    url.searchParams.delete('link');
    url.hash = '';
    history.replaceState(null, '', url.pathname + url.search);
    try {
      if (found.invite) sessionStorage.setItem(INVITE, found.invite);
    } catch {
      /* lost by a reload, then */
    }
    return found;
  }
  try {
    const kept = sessionStorage.getItem(INVITE);
    return kept ? { invite: kept } : null;
  } catch {
    return null;
  }
}

export function forgetInvite() {
  try {
    sessionStorage.removeItem(INVITE);
  } catch {
    /* nothing was kept */
  }
}

const REFUSALS = [
  'key_unknown',
  'key_opens_no_session',
  'invite_unknown',
  'invite_used',
  'invite_expired',
  'invite_revoked',
  'link_unknown',
  'link_replaced',
  'link_revoked',
  'link_expired',
  'person_locked_out',
  'oidc_denied',
  'oidc_unavailable',
  'oidc_state',
  'oidc_answer',
  'oidc_busy',
  'oidc_failed',
];

/** Why a sign-in failed and what to do. */
export const refusalText = (e) => (REFUSALS.includes(e?.code) ? t(`sign.${e.code}`) : errorText(e));

const field = (label, input, help) =>
  h(
    'div',
    { class: 'field' },
    h('label', { for: input.id, text: label }),
    input,
    help ? h('p', { class: 'help', id: `${input.id}-help`, text: help }) : null,
  );

const secretField = (id, label) =>
  h('input', { id, type: 'password', autocomplete: id === 'sign-key' ? 'current-password' : 'off', spellcheck: 'false', 'aria-describedby': `${id}-help`, 'aria-label': label });

/**
 * Shows the sign-in panel in `into` and resolves with the labeler. `keyFirst` is for pages of administrators;
 * `problem` says why something was tried and failed; `arrived` is what the page was opened with.
 * @param {Element} into
 * @param {{note?: string, keyFirst?: boolean, problem?: any, arrived?: any}} [options]
 * @returns {Promise<Person>}
 */
export function signIn(into, { note, keyFirst = false, problem = null, arrived = arrival() } = {}) {
  return new Promise((resolve) => {
    const start = (invite) => accept(into, invite, resolve, () => choose(null));
    const choose = (why) => fill(into, panel({ note, keyFirst, problem: why, start, resolve }));
    const failed = arrived?.problem ? refusalText({ code: arrived.problem }) : null;
    if (arrived?.invite && !problem) start(arrived.invite);
    else choose(problem ?? failed);
    into.querySelector('input')?.focus();
  });
}

function panel({ note, keyFirst, problem, start, resolve }) {
  const message = h('p', { class: 'form-error', role: 'alert', text: problem ?? '' });
  const link = secretField('sign-link', t('sign.link'));
  const key = secretField('sign-key', t('sign.key'));
  const go = h('button', { class: 'primary', type: 'submit', text: t('sign.in') });
  const byLink = field(t('sign.link'), link, t('sign.link_help'));
  const byKey = field(t('sign.key'), key, t('sign.key_help'));
  const submit = async (e) => {
    e.preventDefault();
    message.textContent = '';
    const used = link.value.trim() !== '' ? link : key;
    if (used.value.trim() === '') {
      message.textContent = t('sign.missing');
      return (keyFirst ? key : link).focus();
    }
    const secret = used === link ? secretIn(link.value) : { key: key.value.trim() };
    if (!secret) {
      message.textContent = t('sign.no_link');
      return link.focus();
    }
    if (secret.invite) return start(secret.invite);
    go.disabled = true;
    try {
      const answer = await post('/session', secret);
      resolve(answer.labeler);
    } catch (err) {
      message.textContent = refusalText(err);
      go.disabled = false;
      used.focus();
    }
  };
  return h(
    'div',
    { class: 'sign-wrap' },
    h(
      'form',
      { class: 'panel sign-in', novalidate: true, on: { submit } },
      h('h1', { text: t('sign.title') }),
      h('p', { class: 'muted', text: note ?? t('sign.why') }),
      message,
      keyFirst ? byKey : byLink,
      h('p', { class: 'sign-or', text: t('sign.or') }),
      keyFirst ? byLink : byKey,
      h('div', { class: 'actions' }, go),
      byProvider(),
    ),
  );
}

/** The way to the OpenID Connect provider; empty where none is configured. */
function byProvider() {
  const box = h('div', { class: 'sign-provider' });
  /** @param {SignInOptions} options */
  const show = ({ oidc }) => {
    if (!oidc) return;
    const own = location.pathname.slice(1);
    const page = PAGES.includes(own) ? own : 'label';
    const text = oidc.name ? t('sign.with', { name: oidc.name }) : t('sign.with_provider');
    fill(
      box,
      h('p', { class: 'sign-or', text: t('sign.or') }),
      h('a', { class: 'button', href: `${oidc.path}?page=${page}`, dir: 'auto', text }),
    );
  };
  // Links and keys work without this answer.
  get('/session/options').then(show, () => {});
  return box;
}

/** An invite: greets by name, takes a name, and shows the person's own link afterwards. */
async function accept(into, invite, resolve, back) {
  fill(into, h('div', { class: 'sign-wrap' }, h('p', { class: 'muted', role: 'status', text: t('sign.looking') })));
  let about;
  try {
    about = await post('/session/invite', { invite });
  } catch (e) {
    if (e.status !== 0 && e.status !== 429) forgetInvite();
    back();
    into.querySelector('.form-error').textContent = refusalText(e);
    return;
  }
  const message = h('p', { class: 'form-error', role: 'alert' });
  const name = h('input', { id: 'sign-name', autocomplete: 'nickname', maxlength: '80', dir: 'auto', value: about.name ?? '' });
  const go = h('button', { class: 'primary', type: 'submit', text: t('sign.join') });
  const submit = async (e) => {
    e.preventDefault();
    message.textContent = '';
    if (name.value.trim() === '') {
      message.textContent = t('sign.name_missing');
      return name.focus();
    }
    go.disabled = true;
    try {
      const answer = await post('/session', { invite, name: name.value.trim() });
      forgetInvite();
      await ownLink(into, answer);
      resolve(answer.labeler);
    } catch (err) {
      go.disabled = false;
      if (err.code?.startsWith('invite_')) {
        forgetInvite();
        back();
        into.querySelector('.form-error').textContent = refusalText(err);
        return;
      }
      message.textContent = err.status === 409 ? t('sign.name_taken', { name: name.value.trim() }) : refusalText(err);
      name.focus();
    }
  };
  fill(
    into,
    h(
      'div',
      { class: 'sign-wrap' },
      h(
        'form',
        { class: 'panel sign-in', novalidate: true, on: { submit } },
        h('h1', { dir: 'auto', text: about.name ? t('sign.welcome_name', { name: about.name }) : t('sign.welcome') }),
        h('p', { class: 'muted', text: t('sign.invited', { role: t(`role.${about.role}`) }) }),
        field(t('sign.name'), name, t('sign.name_help')),
        message,
        h('div', { class: 'actions' }, go),
      ),
    ),
  );
  name.focus();
}

/** The way back, shown once; resolves when the person goes on. */
/** @param {Element} into @param {SignedIn} answer */
function ownLink(into, { labeler, link }) {
  return new Promise((resolve) => {
    const text = location.origin + link.url;
    const own = h('input', { id: 'own-link', class: 'mono', readonly: true, value: text, 'aria-label': t('sign.own_link') });
    const copy = h('button', { type: 'button', text: t('copy') });
    copy.addEventListener('click', async () => {
      own.select();
      try {
        await navigator.clipboard.writeText(text);
        copy.textContent = t('copied');
      } catch {
        copy.textContent = t('copy_by_hand');
      }
    });
    const on = h('button', { class: 'primary', type: 'button', id: 'own-link-kept', text: t('sign.link_kept'), on: { click: resolve } });
    fill(
      into,
      h(
        'div',
        { class: 'sign-wrap' },
        h(
          'div',
          { class: 'panel sign-in' },
          h('h1', { dir: 'auto', text: t('sign.own_title', { name: labeler.name }) }),
          h('p', { text: t('sign.own_text') }),
          h('div', { class: 'secret' }, own, copy),
          h('div', { class: 'actions' }, on),
        ),
      ),
    );
    copy.focus();
  });
}

/**
 * Who is here: by the link that the page was opened with, else by cookie, else through the panel in `into`.
 * `say` shows a message where somebody is signed in and the link or invite was not used.
 */
export async function identify(into, options, say) {
  const arrived = arrival();
  if (arrived?.link) {
    try {
      return (await post('/session', { link: arrived.link })).labeler;
    } catch (e) {
      const here = await currentSession().catch(() => null);
      if (!here) return signIn(into, { ...options, arrived: null, problem: refusalText(e) });
      say(t('sign.still', { why: refusalText(e), name: here.name }));
      return here;
    }
  }
  const here = await currentSession();
  if (!here) return signIn(into, { ...options, arrived });
  if (arrived?.problem) say(t('sign.still', { why: refusalText({ code: arrived.problem }), name: here.name }));
  if (arrived?.invite) {
    forgetInvite();
    say(t('sign.invite_unused', { name: here.name }));
  }
  return here;
}

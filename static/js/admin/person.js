// One person: role, quota, in or out; the sign-in link; what is stored about them; erasing it on request.
import { del, get, post } from '../api.js';
import { dialog, h, toast } from '../dom.js';
import { GAP, t, when } from '../i18n.js';
import { errorText } from '../plain.js';
import { confirm, download, showSecret } from './parts.js';

export const ROLES = ['labeler', 'reviewer', 'admin'];

/** When the person's link was last used, in a few words. */
export function linkState({ link }) {
  if (!link) return t('people.link_none');
  if (link.expires && link.expires < Date.now() * 1000) return t('people.link_expired');
  return link.used ? t('people.link_used', { when: when(link.used) }) : t('people.link_unused');
}

/** The new link, ready to copy; it cannot be shown again. */
export const showLink = (person, link) =>
  showSecret(t('people.link_for', { name: person.name }), location.origin + link.url, t('people.link_once', { name: person.name }));

/** Makes a link in the place of the one there is, and shows it. */
export async function newLink(person, hours) {
  const link = await post(`/admin/labelers/${encodeURIComponent(person.id)}/link`, hours ? { expires_hours: hours } : {});
  await showLink(person, link);
}

/** Opens the dialog; `changed` is called after anything was changed. */
export async function personDialog(person, changed) {
  const done = await dialog(person.name, (close) => form(person, close), { closeLabel: t('close') });
  if (done === 'erase') return eraseDialog(person, changed);
  if (done?.link) {
    try {
      await relink(person, done);
    } catch (e) {
      toast(errorText(e), { kind: 'bad', seconds: 10 });
    }
  }
  if (done) await changed();
}

async function relink(person, { link, hours }) {
  const text = t(link === 'new' ? 'people.new_link_text' : 'people.revoke_link_text', { name: person.name });
  const action = t(link === 'new' ? 'people.new_link' : 'people.revoke_link');
  const sure = person.link ? await confirm(action, text, action, link !== 'new') : true;
  if (!sure) return;
  if (link === 'new') return newLink(person, hours);
  await del(`/admin/labelers/${encodeURIComponent(person.id)}/link`);
  toast(t('people.link_revoked', { name: person.name }), { kind: 'good' });
}

/** Hours that a link may last; none = until it is revoked or replaced. */
const LASTS = [null, 7 * 24, 30 * 24, 90 * 24];

function linkPart(person, close) {
  const lasts = h(
    'select',
    { id: 'link-lasts' },
    LASTS.map((hours) =>
      h('option', { value: hours ?? '', text: hours ? t('people.link_days', { n: hours / 24 }) : t('people.link_forever') }),
    ),
  );
  return h(
    'fieldset',
    { class: 'choices' },
    h('legend', { text: t('people.link') }),
    h('p', { class: 'help', text: `${linkState(person)}${GAP}${t('people.link_help')}` }),
    h(
      'div',
      { class: 'inline-form' },
      h('label', { for: 'link-lasts', class: 'hidden-label', text: t('people.link_lasts') }),
      lasts,
      h('button', {
        type: 'button',
        text: t('people.new_link'),
        disabled: !person.active,
        on: { click: () => close({ link: 'new', hours: Number(lasts.value) || null }) },
      }),
      person.link
        ? h('button', { type: 'button', class: 'quiet', text: t('people.revoke_link'), on: { click: () => close({ link: 'revoke' }) } })
        : null,
    ),
  );
}

/** The code that the person sees when they have done their quota. */
const codePart = (person) =>
  person.completion_code ? h('p', { class: 'help' }, `${t('people.completion_code')} `, h('span', { class: 'mono', text: person.completion_code })) : null;

function form(person, close) {
  const path = /** @type {const} */ (`/admin/labelers/${encodeURIComponent(person.id)}`);
  const role = h(
    'select',
    { id: 'edit-role' },
    ROLES.map((r) => h('option', { value: r, selected: r === person.role, text: t(`role.${r}`) })),
  );
  const quota = h('input', {
    id: 'edit-quota',
    inputmode: 'numeric',
    autocomplete: 'off',
    value: person.daily_quota ?? '',
    placeholder: t('queue.as_configured'),
  });
  const active = h('input', { id: 'edit-active', type: 'checkbox', checked: person.active });
  const error = h('p', { class: 'form-error', role: 'alert' });
  const save = async (e) => {
    e.preventDefault();
    error.textContent = '';
    const text = quota.value.trim();
    if (text !== '' && !/^\d+$/.test(text)) {
      error.textContent = t('form.not_an_integer');
      quota.setAttribute('aria-invalid', 'true');
      return quota.focus();
    }
    try {
      await post(path, { role: role.value, daily_quota: text === '' ? null : Number(text), active: active.checked });
      toast(t('people.saved', { name: person.name }), { kind: 'good' });
      close(true);
    } catch (err) {
      error.textContent = errorText(err);
    }
  };
  const get_data = async () => {
    try {
      const data = await get(`${path}/data`);
      download(`person-${person.id}.json`, `${JSON.stringify(data, null, 2)}\n`, 'application/json');
    } catch (err) {
      error.textContent = errorText(err);
    }
  };
  return h(
    'form',
    { on: { submit: save } },
    h(
      'div',
      { class: 'field' },
      h('label', { for: 'edit-role', text: t('labels.role') }),
      role,
      h('p', { class: 'help', text: t('people.roles_help') }),
    ),
    h(
      'div',
      { class: 'field' },
      h('label', { for: 'edit-quota', text: t('people.quota') }),
      quota,
      h('p', { class: 'help', text: t('people.quota_help') }),
    ),
    linkPart(person, close),
    codePart(person),
    h('label', { class: 'inline', for: 'edit-active' }, active, h('span', { text: t('people.may_sign_in') })),
    h('p', { class: 'help', text: t('people.lock_help') }),
    error,
    h(
      'div',
      { class: 'actions spread' },
      h('button', { type: 'button', class: 'quiet', text: t('people.get_data'), on: { click: get_data } }),
      h('button', { type: 'button', class: 'danger', text: t('people.erase'), on: { click: () => close('erase') } }),
      h('button', { type: 'submit', class: 'primary', text: t('settings.save') }),
    ),
  );
}

async function eraseDialog(person, changed) {
  const how = await dialog(
    t('people.erase_title', { name: person.name }),
    (close) => {
      const typed = h('input', { id: 'erase-name', autocomplete: 'off', dir: 'auto' });
      const go = h('button', { type: 'submit', class: 'danger', text: t('people.erase'), disabled: true });
      typed.addEventListener('input', () => (go.disabled = typed.value.trim() !== person.name));
      return h(
        'form',
        {
          on: {
            submit: (e) => {
              e.preventDefault();
              close(new FormData(e.target).get('how'));
            },
          },
        },
        h('p', { text: t('people.erase_text') }),
        h(
          'fieldset',
          { class: 'choices' },
          h('legend', { text: t('people.erase_what') }),
          ['anonymise', 'remove'].map((value, i) =>
            h(
              'label',
              { class: 'choice' },
              h('input', { type: 'radio', name: 'how', value, checked: i === 0 }),
              h(
                'span',
                null,
                h('strong', { text: t(`erase.${value}`) }),
                h('span', { class: 'help', text: ` ${t(`erase.${value}_help`)}` }),
              ),
            ),
          ),
        ),
        h(
          'div',
          { class: 'field' },
          h('label', { for: 'erase-name', text: t('people.type_name', { name: person.name }) }),
          typed,
        ),
        h('div', { class: 'actions' }, h('button', { type: 'button', text: t('cancel'), on: { click: () => close() } }), go),
      );
    },
    { closeLabel: t('close') },
  );
  if (!how) return;
  try {
    const path = /** @type {const} */ (`/admin/labelers/${encodeURIComponent(person.id)}/erase`);
    const done = await post(path, { judgments: how });
    const left = done.not_reached ?? [];
    toast(left.length ? t('people.erased_but', { what: left.join('; ') }) : t('people.erased'), { kind: 'good', seconds: 20 });
  } catch (e) {
    toast(errorText(e), { kind: 'bad', seconds: 10 });
  }
  await changed();
}

// People: labelers and their roles, invites by link, API keys.
import { del, get, listOf, post } from '../api.js';
import { fill, h } from '../dom.js';
import { t, when } from '../i18n.js';
import { caught, confirm, section, showSecret, table } from './parts.js';
import { ROLES, linkState, newLink, personDialog, showLink } from './person.js';
import { projectsPanel } from './projects.js';

const SCOPES = ['inference', 'feedback', 'admin'];

const roleSelect = (id) =>
  h(
    'select',
    { id },
    ROLES.map((r) => h('option', { value: r, text: t(`role.${r}`) })),
  );

export async function peopleView(el, { signal, projectsChanged }) {
  const projects = h('div', { class: 'stack' });
  const people = h('div');
  const invites = h('div');
  const keys = h('div');
  const names = new Map([['admin', 'admin']]);

  const loadPeople = async () => {
    const list = listOf(await get('/admin/labelers', null, { signal }));
    for (const l of list) names.set(l.id, l.name);
    fill(
      people,
      table(
        t('labels.people'),
        [
          [t('labels.name')],
          [t('labels.role')],
          [t('job.state')],
          [t('people.quota'), 'right'],
          [t('people.link')],
          [t('labels.since')],
          ['', 'right'],
        ],
        // `import` only signs what came in by file
        list
          .filter((l) => l.id !== 'import')
          .map((l) =>
            h(
              'tr',
              null,
              h('td', { dir: 'auto', class: 'strong wrap', text: l.name }),
              h('td', { text: t(`role.${l.role}`) }),
              h(
                'td',
                null,
                h('span', {
                  class: `tag ${l.active ? 'good' : 'warn'}`,
                  text: t(l.erased ? 'people.is_erased' : l.active ? 'labels.active' : 'labels.inactive'),
                }),
              ),
              h('td', { class: 'right', text: l.daily_quota ?? '–' }),
              h('td', { class: 'nowrap', text: l.id === 'admin' || l.erased ? '–' : linkState(l) }),
              h('td', { class: 'nowrap', text: when(l.created) }),
              h(
                'td',
                { class: 'right' },
                l.id === 'admin' || l.erased
                  ? null
                  : h('button', {
                      type: 'button',
                      class: 'quiet',
                      text: t('people.manage'),
                      'aria-label': t('people.manage_name', { name: l.name }),
                      on: { click: () => personDialog(l, () => loadPeople().then(loadInvites)) },
                    }),
              ),
            ),
          ),
        t('labels.no_people'),
      ),
    );
  };
  const loadInvites = async () => {
    const list = listOf(await get('/admin/invites', null, { signal }));
    fill(
      invites,
      table(
        t('labels.invites'),
        [[t('people.for_whom')], [t('labels.role')], [t('labels.expires')], [t('labels.used_by')], ['', 'right']],
        list.map((i) =>
          h(
            'tr',
            null,
            h('td', { dir: 'auto', class: 'wrap', text: [i.name, i.note].filter(Boolean).join(' · ') || '–' }),
            h('td', { text: t(`role.${i.role}`) }),
            h('td', { class: 'nowrap', text: i.revoked ? t('labels.revoked') : when(i.expires) }),
            h('td', { dir: 'auto', text: i.used_by ? (names.get(i.used_by) ?? i.used_by) : '–' }),
            h(
              'td',
              { class: 'right' },
              i.used_by || i.expires < Date.now() * 1000
                ? null
                : h('button', {
                    type: 'button',
                    class: 'quiet',
                    text: t('people.revoke_invite'),
                    on: {
                      click: caught(async () => {
                        await del(`/admin/invites/${encodeURIComponent(i.id)}`);
                        await loadInvites();
                      }),
                    },
                  }),
            ),
          ),
        ),
        t('labels.no_invites'),
      ),
    );
  };
  const loadKeys = async () => {
    const list = listOf(await get('/admin/keys', null, { signal }));
    fill(
      keys,
      table(
        t('labels.keys'),
        [[t('labels.name')], [t('labels.scopes')], [t('job.state')], [t('labels.since')], ['', 'right']],
        list.map((k) =>
          h(
            'tr',
            null,
            h('td', { dir: 'auto', class: 'strong wrap', text: k.origin === 'generated' ? t('people.key_generated') : k.name }),
            h('td', { text: (k.scopes ?? []).map((s) => t(`scope.${s}`)).join(', ') }),
            h(
              'td',
              null,
              h('span', { class: `tag ${k.revoked ? 'warn' : 'good'}`, text: t(k.revoked ? 'labels.revoked' : 'labels.active') }),
            ),
            h('td', { class: 'nowrap', text: when(k.created) }),
            h(
              'td',
              { class: 'right' },
              k.revoked
                ? null
                : h('button', {
                    type: 'button',
                    class: 'quiet',
                    text: t('labels.revoke'),
                    on: {
                      click: caught(async () => {
                        if (
                          !(await confirm(
                            t('labels.revoke'),
                            t('labels.revoke_text', { name: k.name }),
                            t('labels.revoke'),
                            true,
                          ))
                        )
                          return;
                        await del(`/admin/keys/${encodeURIComponent(k.id)}`);
                        await loadKeys();
                      }),
                    },
                  }),
            ),
          ),
        ),
        t('labels.no_keys'),
      ),
    );
  };
  /** Somebody of this name is here: the way back is a new link, not a second person. */
  const known = async (e, name) => {
    if (e.status !== 409 || !name) throw e;
    const person = listOf(await get('/admin/labelers')).find((l) => l.active && l.name.toLowerCase() === name.toLowerCase());
    if (!person) throw e;
    const text = t('people.known_text', { name: person.name });
    if (await confirm(t('people.known', { name: person.name }), text, t('people.new_link'))) await newLink(person);
    await loadPeople();
  };
  const inviteForm = () => {
    const role = roleSelect('invite-role');
    const name = h('input', { id: 'invite-note', dir: 'auto', maxlength: '80', placeholder: t('labels.note_for') });
    return h(
      'form',
      {
        class: 'inline-form',
        on: {
          submit: caught(async () => {
            const whom = name.value.trim();
            try {
              const answer = await post('/admin/invites', { role: role.value, ...(whom ? { name: whom } : {}) });
              name.value = '';
              await loadInvites();
              await showSecret(t('labels.invite_link'), location.origin + answer.url, t('labels.invite_once'));
            } catch (e) {
              await known(e, whom);
            }
          }),
        },
      },
      h('label', { for: 'invite-role', class: 'hidden-label', text: t('labels.role') }),
      role,
      h('label', { for: 'invite-note', class: 'hidden-label', text: t('labels.note_for') }),
      name,
      h('button', { type: 'submit', text: t('labels.invite') }),
    );
  };
  const personForm = () => {
    const role = roleSelect('person-role');
    const name = h('input', { id: 'person-name', dir: 'auto', maxlength: '80', placeholder: t('labels.name'), required: true });
    return h(
      'form',
      {
        class: 'inline-form',
        on: {
          submit: caught(async () => {
            const whom = name.value.trim();
            try {
              const answer = await post('/admin/labelers', { name: whom, role: role.value });
              name.value = '';
              await loadPeople();
              await showLink(answer, answer.link);
            } catch (e) {
              await known(e, whom);
            }
          }),
        },
      },
      h('label', { for: 'person-role', class: 'hidden-label', text: t('labels.role') }),
      role,
      h('label', { for: 'person-name', class: 'hidden-label', text: t('labels.name') }),
      name,
      h('button', { type: 'submit', text: t('labels.add') }),
    );
  };
  const keyForm = () => {
    const name = h('input', { id: 'key-name', dir: 'auto', maxlength: '80', placeholder: t('labels.key_for'), required: true });
    const boxes = SCOPES.map((s) => h('input', { type: 'checkbox', value: s, checked: s === 'inference' }));
    return h(
      'form',
      {
        class: 'inline-form',
        on: {
          submit: caught(async () => {
            const scopes = boxes.filter((b) => b.checked).map((b) => b.value);
            const answer = await post('/admin/keys', { name: name.value.trim(), scopes });
            name.value = '';
            await loadKeys();
            await showSecret(t('labels.new_key'), answer.key, t('labels.key_once'));
          }),
        },
      },
      h('label', { for: 'key-name', class: 'hidden-label', text: t('labels.name') }),
      name,
      boxes.map((b, i) => h('label', { class: 'inline' }, b, h('span', { text: t(`scope.${SCOPES[i]}`) }))),
      h('button', { type: 'submit', text: t('labels.make_key') }),
    );
  };

  fill(
    el,
    h('header', { class: 'view-head' }, h('h1', { text: t('admin.people') })),
    h('p', { class: 'lead', text: t('people.lead') }),
    section(t('labels.people'), null, people, personForm()),
    section(t('labels.invites'), null, h('p', { class: 'muted', text: t('people.invite_help') }), inviteForm(), invites),
    projects,
    section(t('labels.keys'), null, h('p', { class: 'muted', text: t('people.keys_help') }), keys, keyForm()),
  );
  await loadPeople();
  await Promise.all([loadInvites(), loadKeys(), projectsPanel(projects, signal, projectsChanged)]);
}

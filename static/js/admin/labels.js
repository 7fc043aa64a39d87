// People and data: labelers, invites, keys, judgments, import and export.
import { call, del, get, listOf, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { duration, t, when } from '../i18n.js';
import { confirm, section, showSecret, table } from './parts.js';

const ROLES = ['labeler', 'reviewer', 'admin'];
const SCOPES = ['inference', 'feedback', 'admin'];
const IMPORTS = ['comparisons', 'trl', 'hh', 'demonstrations', 'prompts'];
const EXPORTS = ['comparisons', 'trl', 'hh', 'demonstrations'];

const caught = (work) => async (e) => {
  e?.preventDefault?.();
  try {
    await work(e);
  } catch (err) {
    toast(err.message, { kind: 'bad', seconds: 10 });
  }
};

const roleSelect = (id) =>
  h(
    'select',
    { id },
    ROLES.map((r) => h('option', { value: r, text: t(`role.${r}`) })),
  );

export async function labelsView(el, { signal }) {
  const people = h('div');
  const invites = h('div');
  const keys = h('div');
  const judgments = h('div');
  const names = new Map([['admin', 'admin']]);

  const loadPeople = async () => {
    const list = listOf(await get('/admin/labelers', null, { signal }));
    for (const l of list) names.set(l.id, l.name);
    fill(
      people,
      table(
        t('labels.people'),
        [[t('labels.name')], [t('labels.role')], [t('job.state')], [t('labels.since')], ['', 'right']],
        list.map((l) =>
          h(
            'tr',
            null,
            h('td', { dir: 'auto', class: 'strong wrap', text: l.name }),
            h('td', { text: t(`role.${l.role}`) }),
            h(
              'td',
              null,
              h('span', { class: `tag ${l.active ? 'good' : 'warn'}`, text: t(l.active ? 'labels.active' : 'labels.inactive') }),
            ),
            h('td', { class: 'nowrap', text: when(l.created) }),
            h(
              'td',
              { class: 'right' },
              l.id === 'admin'
                ? null
                : h('button', {
                    type: 'button',
                    class: 'quiet',
                    text: t(l.active ? 'labels.keep_out' : 'labels.let_in'),
                    on: {
                      click: caught(async () => {
                        await post(`/admin/labelers/${encodeURIComponent(l.id)}/active`, { active: !l.active });
                        await loadPeople();
                      }),
                    },
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
        [[t('labels.note')], [t('labels.role')], [t('labels.expires')], [t('labels.used_by')]],
        list.map((i) =>
          h(
            'tr',
            null,
            h('td', { dir: 'auto', class: 'wrap', text: i.note ?? '–' }),
            h('td', { text: t(`role.${i.role}`) }),
            h('td', { class: 'nowrap', text: when(i.expires) }),
            h('td', { dir: 'auto', text: i.used_by ? (names.get(i.used_by) ?? i.used_by) : '–' }),
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
            h('td', { dir: 'auto', class: 'strong wrap', text: k.name }),
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
  const loadJudgments = async () => {
    const list = listOf(await get('/v1/judgments', { limit: 50 }, { signal }));
    const order = (j) =>
      [...(j.items ?? [])]
        .sort((a, b) => a.tier - b.tier)
        .map(
          (i) =>
            (i.shown_position === undefined || i.shown_position === null ? '•' : String.fromCharCode(65 + i.shown_position)) +
            (i.tier + 1),
        )
        .join(' ');
    fill(
      judgments,
      table(
        t('labels.judgments'),
        [[t('labels.when')], [t('role.labeler')], [t('labels.outcome')], [t('labels.order')], [t('labels.time'), 'right']],
        list.map((j) =>
          h(
            'tr',
            null,
            h('td', { class: 'nowrap', text: when(j.created) }),
            h('td', { dir: 'auto', class: 'wrap', text: names.get(j.labeler_id) ?? j.labeler_id }),
            h(
              'td',
              null,
              h('span', { class: 'tag', text: t(`outcome.${j.outcome}`) }),
              j.strength ? h('span', { class: 'sub', text: ` ${t(`strength.${j.strength}`)}` }) : null,
            ),
            h('td', { class: 'mono', title: t('labels.order_help'), text: order(j) }),
            h('td', { class: 'right', text: j.active_ms ? duration(j.active_ms / 1000) : '–' }),
          ),
        ),
        t('labels.no_judgments'),
      ),
    );
  };

  const inviteForm = () => {
    const role = roleSelect('invite-role');
    const note = h('input', { id: 'invite-note', dir: 'auto', maxlength: '200', placeholder: t('labels.note_for') });
    return h(
      'form',
      {
        class: 'inline-form',
        on: {
          submit: caught(async () => {
            const answer = await post('/admin/invites', {
              role: role.value,
              ...(note.value.trim() ? { note: note.value.trim() } : {}),
            });
            const token = answer.token ?? answer.secret ?? answer.code ?? answer.invite?.token;
            const link =
              answer.url ?? answer.link ?? (token ? `${location.origin}/label?invite=${encodeURIComponent(token)}` : '');
            note.value = '';
            await loadInvites();
            await showSecret(
              t('labels.invite_link'),
              link.startsWith('/') ? location.origin + link : link,
              t('labels.invite_once'),
            );
          }),
        },
      },
      h('label', { for: 'invite-role', class: 'hidden-label', text: t('labels.role') }),
      role,
      h('label', { for: 'invite-note', class: 'hidden-label', text: t('labels.note') }),
      note,
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
            const answer = await post('/admin/labelers', { name: name.value.trim(), role: role.value });
            name.value = '';
            await loadPeople();
            const key = answer.key ?? answer.token;
            if (typeof key === 'string') await showSecret(t('labels.new_key'), key, t('labels.key_once'));
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
            const key = [answer.key, answer.secret, answer.token, answer.api_key].find((x) => typeof x === 'string');
            if (key) await showSecret(t('labels.new_key'), key, t('labels.key_once'));
          }),
        },
      },
      h('label', { for: 'key-name', class: 'hidden-label', text: t('labels.name') }),
      name,
      boxes.map((b, i) => h('label', { class: 'inline' }, b, h('span', { text: t(`scope.${SCOPES[i]}`) }))),
      h('button', { type: 'submit', text: t('labels.make_key') }),
    );
  };
  const importForm = () => {
    const format = h(
      'select',
      { id: 'import-format' },
      IMPORTS.map((f) => h('option', { value: f, text: t(`format.${f}`) })),
    );
    const file = h('input', {
      id: 'import-file',
      type: 'file',
      accept: '.jsonl,.json,.ndjson,application/x-ndjson,application/json',
    });
    const report = h('div', { role: 'status' });
    const go = h('button', { type: 'submit', class: 'primary', text: t('labels.import') });
    return h(
      'form',
      {
        class: 'stack',
        on: {
          submit: caught(async () => {
            const chosen = file.files[0];
            if (!chosen) return void fill(report, h('p', { class: 'form-error', text: t('labels.no_file') }));
            go.disabled = true;
            fill(report, h('p', { class: 'muted', text: t('labels.importing') }));
            try {
              const r = await call('POST', '/admin/import', {
                raw: chosen,
                query: { format: format.value, name: chosen.name.replace(/[^A-Za-z0-9._-]+/g, '_').slice(0, 64) },
              });
              fill(
                report,
                h('p', {
                  class: r.errors?.length ? '' : 'good-text',
                  text: t('labels.imported', { n: r.imported ?? 0, skipped: r.skipped ?? 0 }),
                }),
                r.errors?.length
                  ? h(
                      'ul',
                      { class: 'errors' },
                      r.errors
                        .slice(0, 20)
                        .map((e) =>
                          h(
                            'li',
                            null,
                            h('b', { text: t('labels.line', { n: e.line }) }),
                            h('span', { dir: 'auto', text: e.message }),
                          ),
                        ),
                    )
                  : null,
              );
              await loadJudgments();
            } catch (e) {
              fill(report, h('p', { class: 'form-error', text: e.message }));
            } finally {
              go.disabled = false;
            }
          }),
        },
      },
      h('div', { class: 'field' }, h('label', { for: 'import-format', text: t('labels.format') }), format),
      h(
        'div',
        { class: 'field' },
        h('label', { for: 'import-file', text: t('labels.file') }),
        file,
        h('p', { class: 'help', text: t('labels.file_help') }),
      ),
      report,
      h('div', { class: 'actions' }, go),
    );
  };

  fill(
    el,
    h(
      'header',
      { class: 'view-head' },
      h('h1', { text: t('admin.labels') }),
      h('a', { class: 'button primary', href: '/label', text: t('next.rank') }),
    ),
    h(
      'div',
      { class: 'two-columns' },
      section(t('labels.people'), null, people, personForm()),
      section(t('labels.invites'), null, invites, inviteForm()),
    ),
    section(t('labels.judgments'), null, judgments),
    h(
      'div',
      { class: 'two-columns' },
      section(t('labels.import_title'), null, importForm()),
      section(
        t('labels.export_title'),
        null,
        h('p', { class: 'muted', text: t('labels.export_help') }),
        h(
          'div',
          { class: 'row' },
          EXPORTS.map((f) =>
            h('a', {
              class: 'button',
              href: `/admin/export?format=${f}`,
              download: `instructd-${f}.jsonl`,
              text: t(`format.${f}`),
            }),
          ),
        ),
      ),
    ),
    section(t('labels.keys'), null, keys, keyForm()),
  );
  await loadPeople();
  await Promise.all([loadInvites(), loadKeys(), loadJudgments()]);
}

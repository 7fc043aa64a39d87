// Labeling projects: made, renamed, archived, and who labels in each with which quota.
import { del, get, listOf, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { num, t } from '../i18n.js';
import { errorText } from '../plain.js';
import { caught, section, table } from './parts.js';

/** @import { CountedProject, Labeler, ProjectMember } from '../contract.d.ts' */

const FIRST = 'default';

const pathOf = (/** @type {CountedProject} */ p) => /** @type {const} */ (`/admin/projects/${encodeURIComponent(p.id)}`);
const membersOf = (/** @type {CountedProject} */ p) => /** @type {const} */ (`/admin/projects/${encodeURIComponent(p.id)}/members`);

/** A form of one line; `send(value)` gets what was written. */
function lineForm({ id, label, value = '', button, send }) {
  const input = h('input', { id, dir: 'auto', maxlength: '100', required: true, autocomplete: 'off', placeholder: value ? '' : label, value, 'aria-describedby': `${id}-error` });
  const error = h('p', { class: 'form-error', id: `${id}-error`, role: 'alert' });
  return h(
    'form',
    {
      class: 'inline-form',
      on: {
        submit: async (e) => {
          e.preventDefault();
          error.textContent = '';
          try {
            await send(input.value.trim());
          } catch (err) {
            error.textContent = errorText(err);
            input.focus();
          }
        },
      },
    },
    h('label', { for: id, class: 'hidden-label', text: label }),
    h('div', null, input, error),
    h('button', { type: 'submit', text: button }),
  );
}

/** The members of a project and a form that adds one. */
async function members(host, /** @type {CountedProject} */ project, changed) {
  const [list, people] = await Promise.all([get(membersOf(project)).then(listOf), get('/admin/labelers').then(listOf)]);
  const names = new Map(people.map((/** @type {Labeler} */ l) => [l.id, l.name]));
  const redraw = async () => {
    await members(host, project, changed);
    await changed();
  };
  const put = async (labeler_id, quota) => {
    await post(membersOf(project), { labeler_id, daily_quota: quota.trim() === '' ? null : Number(quota) });
    await redraw();
  };
  const row = (/** @type {ProjectMember} */ m) => {
    const name = names.get(m.labeler_id) ?? m.labeler_id;
    const quota = h('input', {
      type: 'number',
      min: '0',
      class: 'short',
      value: m.daily_quota === null ? '' : String(m.daily_quota),
      'aria-label': t('projects.quota_of', { name }),
    });
    quota.addEventListener(
      'change',
      caught(async () => {
        await put(m.labeler_id, quota.value);
        toast(t('projects.quota_saved', { name }), { kind: 'good' });
      }),
    );
    return h(
      'tr',
      null,
      h('td', { dir: 'auto', text: name }),
      h('td', null, quota),
      h(
        'td',
        { class: 'right' },
        h('button', {
          type: 'button',
          class: 'quiet',
          text: t('projects.remove'),
          'aria-label': t('projects.remove_of', { name }),
          on: {
            click: caught(async () => {
              await del(/** @type {const} */ (`/admin/projects/${encodeURIComponent(project.id)}/members/${encodeURIComponent(m.labeler_id)}`));
              await redraw();
            }),
          },
        }),
      ),
    );
  };
  const others = people.filter((l) => l.active && !list.some((m) => m.labeler_id === l.id) && !['admin', 'import'].includes(l.id));
  const who = h(
    'select',
    { id: `member-${project.id}` },
    others.map((l) => h('option', { value: l.id, text: l.name })),
  );
  const quota = h('input', { id: `quota-${project.id}`, type: 'number', min: '0', class: 'short' });
  fill(
    host,
    table(
      t('projects.members_of', { name: project.name }),
      [[t('labels.name')], [t('projects.quota')], ['']],
      list.map(row),
      t('projects.no_members'),
    ),
    others.length
      ? h(
          'form',
          {
            class: 'inline-form',
            on: {
              submit: caught(async (e) => {
                e.preventDefault();
                await put(who.value, quota.value);
              }),
            },
          },
          h('label', { for: who.id, text: t('projects.person') }),
          who,
          h('label', { for: quota.id, text: t('projects.quota') }),
          quota,
          h('button', { type: 'submit', text: t('projects.add_member') }),
        )
      : null,
  );
}

/** `changed()` is called after a project was made, renamed, archived or restored. */
export async function projectsPanel(el, signal, changed) {
  const list = h('div', { class: 'stack' });

  const card = (/** @type {CountedProject} */ p) => {
    const people = h('div', { class: 'stack' });
    const count = h('span', { text: t('projects.members', { n: p.counts.members }) });
    const recount = async () => {
      const all = listOf(await get('/admin/projects'));
      count.textContent = t('projects.members', { n: all.find((o) => o.id === p.id)?.counts.members ?? 0 });
    };
    const change = async (body) => {
      await post(pathOf(p), body);
      await draw();
      await changed();
    };
    const more = h('details', null, h('summary', null, count), people);
    more.addEventListener('toggle', () => more.open && caught(() => members(people, p, recount))());
    return h(
      'article',
      { class: 'panel block stack', 'aria-label': p.name, data: { project: p.id } },
      h(
        'div',
        { class: 'row' },
        h('h3', { dir: 'auto', text: p.name }),
        p.archived ? h('span', { class: 'tag', text: t('projects.archived') }) : null,
        h('span', {
          class: 'muted',
          text: t('projects.counts', {
            prompts: num(p.counts.prompts),
            open: num(p.counts.sets_open),
            done: num(p.counts.sets_done),
            judgments: num(p.counts.judgments),
          }),
        }),
      ),
      h(
        'div',
        { class: 'row' },
        lineForm({
          id: `rename-${p.id}`,
          label: t('projects.name_of', { name: p.name }),
          value: p.name,
          button: t('projects.rename'),
          send: (name) => change({ name }),
        }),
        p.id === FIRST
          ? null
          : h('button', {
              type: 'button',
              class: 'quiet',
              text: t(p.archived ? 'projects.restore' : 'projects.archive'),
              on: { click: caught(() => change({ archived: !p.archived })) },
            }),
      ),
      more,
    );
  };

  const draw = async () => {
    const all = listOf(await get('/admin/projects', null, { signal }));
    fill(list, all.map(card));
  };

  const make = () =>
    lineForm({
      id: 'new-project',
      label: t('projects.name'),
      button: t('projects.create'),
      send: async (name) => {
        const made = await post('/admin/projects', { name });
        await draw();
        await changed();
        fill(form, make());
        toast(t('projects.created', { name: made.name }), { kind: 'good' });
      },
    });
  const form = h('div');
  fill(form, make());
  fill(el, section(t('projects.title'), null, h('p', { class: 'help', text: t('projects.help') }), list, form));
  await draw();
}

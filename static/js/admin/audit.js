// The audit trail: who did what, when, to what, in words; filters by person and action, older lines on demand.
import { get, listOf } from '../api.js';
import { fill, h } from '../dom.js';
import { has, t, when } from '../i18n.js';
import { failure } from '../shell.js';
import { caught, section, table } from './parts.js';

const PAGE = 50;
/** Actions that the program writes. */
const ACTIONS = [
  'invite', 'revoke_invite', 'create_key', 'revoke_key', 'add_labeler', 'change_labeler', 'set_active', 'erase',
  'promote', 'roll_back', 'retire', 'canary', 'end_canary', 'set', 'import', 'export', 'create_dataset', 'enqueue',
  'cancel', 'resume', 'draw_sets', 'cancel_draw', 'known_answer', 'retire_set', 'settle_set', 'create_link',
  'revoke_link', 'export_person', 'describe_job', 'set_guidelines', 'retention',
  'put_rubric', 'activate_rubric',
]; // prettier-ignore

const words = (action) => (has(`audit.${action}`) ? t(`audit.${action}`) : action.replaceAll('_', ' '));

/** `{kind, name}` of what a line is about: "set “How do I …”", "job ppo"; ids that are gone stay ids, shortened. */
function targetText(id, named) {
  if (!named && has(`setting_name.${id}`)) return t(`setting_name.${id}`);
  if (!named) return /^[0-9A-HJKMNP-TV-Z]{26}$/.test(id) ? t('audit.gone', { id: id.slice(-6) }) : id;
  if (named.kind === 'labeler' || named.kind === 'model') return named.name;
  const kind = t(`audit.kind_${named.kind}`);
  const prefix = { draw: 'policy', job: 'recipe_name' }[named.kind];
  const name = has(`${prefix}.${named.name}`) ? t(`${prefix}.${named.name}`) : named.name;
  return name ? t('audit.named', { kind, name }) : kind;
}

/** Where a line's target can be looked at. */
const TARGETS = { set: (id) => `#/sets/${id}`, job: (id) => `#/jobs/${id}`, model: () => '#/models', labeler: () => '#/people' };

function plain(key, v) {
  if (v === null) return '–';
  if (typeof v === 'boolean') return t(v ? 'audit.yes' : 'audit.no');
  if (Array.isArray(v)) return v.map((one) => plain(key, one)).join(t('data.list_comma'));
  if (typeof v === 'object') return JSON.stringify(v);
  const prefixes = { policy: ['policy'], kind: ['kind', 'recipe_name'], role: ['role'], format: ['format'], scopes: ['scope'] }[key] ?? [];
  const known = prefixes.map((prefix) => `${prefix}.${v}`).find(has);
  return known ? t(known) : String(v);
}
const detailText = (detail) =>
  Object.entries(detail ?? {})
    .map(([k, v]) => t('audit.pair', { name: has(`audit.detail_${k}`) ? t(`audit.detail_${k}`) : k.replaceAll('_', ' '), value: plain(k, v) }))
    .join(t('audit.between'));

export async function auditView(el, { signal }) {
  const host = h('div');
  let entries = [];
  let names = {};
  let before = null;
  let last = null;
  const more = h('button', { type: 'button', text: t('audit.more'), hidden: true });
  const people = listOf(await get('/admin/labelers', null, { signal }));
  const select = (id, label, any, options) =>
    h(
      'select',
      { id, 'aria-label': label },
      [['', any], ...options].map(([value, text]) => h('option', { value, text })),
    );
  const actor = select('audit-actor', t('audit.who'), t('labels.anybody'), people.map((l) => [l.id, l.name]));
  const sorted = ACTIONS.map((a) => [a, words(a)]).sort((a, b) => a[1].localeCompare(b[1]));
  const action = select('audit-action', t('audit.what'), t('audit.any'), sorted);
  const row = (e) => {
    const named = names[e.target];
    const href = named && TARGETS[named.kind]?.(encodeURIComponent(e.target));
    const target = targetText(e.target, named);
    const [who, key] = e.actor.split('#');
    return h(
      'tr',
      null,
      h('td', { class: 'nowrap', text: when(e.created) }),
      h('td', { class: 'wrap', dir: 'auto', text: names[who]?.name ?? names[e.actor]?.name ?? who }, key ? h('div', { class: 'sub', text: key }) : null),
      h('td', { text: words(e.action) }),
      h('td', { class: 'prompt-cell', dir: 'auto', title: e.target }, href ? h('a', { href, text: target }) : h('span', { text: target })),
      h('td', { class: 'sub wrap', dir: 'auto', text: detailText(e.detail) }),
    );
  };
  const draw = async () => {
    const asked = (last = {});
    const answer = await get('/admin/audit', { limit: PAGE, before, actor: actor.value || null, action: action.value || null }, { signal });
    if (asked !== last) return;
    entries = [...entries, ...answer.data];
    names = { ...names, ...answer.names };
    before = answer.before;
    more.hidden = answer.data.length < PAGE;
    const filtered = actor.value || action.value;
    fill(
      host,
      table(
        t('audit.title'),
        [[t('labels.when')], [t('audit.who')], [t('audit.what')], [t('audit.target')], [t('audit.detail')]],
        entries.map(row),
        t(filtered ? 'list.nothing_fits' : 'audit.none'),
      ),
    );
  };
  const restart = async () => {
    entries = [];
    before = null;
    more.hidden = true;
    try {
      await draw();
    } catch (e) {
      if (e.name !== 'AbortError') fill(host, failure(e, restart));
    }
  };
  for (const control of [actor, action]) control.addEventListener('change', restart);
  more.addEventListener('click', caught(draw));
  fill(
    el,
    h('header', { class: 'view-head' }, h('h1', { text: t('audit.title') })),
    section(
      t('audit.lines'),
      null,
      h('p', { class: 'muted', text: t('audit.help') }),
      h('div', { class: 'list-tools' }, actor, action),
      host,
      h('div', { class: 'actions' }, more),
    ),
  );
  await restart();
}

// The project that the administrator's page is about: named in its address (`?project=ID`), chosen beside the tabs.
import { get, listOf } from '../api.js';
import { fill, h } from '../dom.js';
import { t } from '../i18n.js';

/** @import { CountedProject } from '../contract.d.ts' */

/** Id of the project in the page's address; null for all projects, or the first where something is made. */
export const projectId = () => new URL(location.href).searchParams.get('project') || null;

/** The page's address with another project. */
function addressOf(id) {
  const address = new URL(location.href);
  if (id) address.searchParams.set('project', id);
  else address.searchParams.delete('project');
  return address.href;
}

/** Shows the choice in `el`, where there are several projects. */
export async function projectChoice(el) {
  /** @type {CountedProject[]} */
  const all = listOf(await get('/admin/projects'));
  if (all.length < 2) return fill(el);
  const chosen = projectId();
  const select = h(
    'select',
    { id: 'admin-project', dir: 'auto' },
    h('option', { value: '', text: t('projects.all') }),
    all.map((p) =>
      h('option', { value: p.id, selected: p.id === chosen, text: p.archived ? t('projects.archived_name', { name: p.name }) : p.name }),
    ),
  );
  select.addEventListener('change', () => location.assign(addressOf(select.value)));
  fill(el, h('label', { class: 'inline', for: 'admin-project' }, h('span', { text: t('projects.one') }), select));
}

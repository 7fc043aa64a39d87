// The audit trail: who did what, when, to what; older lines on demand.
import { get } from '../api.js';
import { fill, h } from '../dom.js';
import { has, t, when } from '../i18n.js';
import { caught, section, table } from './parts.js';

const PAGE = 30;

export function auditPanel(signal, names) {
  const host = h('div');
  let entries = [];
  let before = null;
  const more = h('button', { type: 'button', text: t('audit.more') });
  const name = (id) => names.get(id) ?? id;
  const words = (action) => (has(`audit.${action}`) ? t(`audit.${action}`) : action.replaceAll('_', ' '));
  const detail = (d) =>
    Object.entries(d ?? {})
      .map(([k, v]) => `${k}: ${typeof v === 'string' ? v : JSON.stringify(v)}`)
      .join(', ');
  const draw = async () => {
    const answer = await get('/admin/audit', { limit: PAGE, before }, { signal });
    entries = [...entries, ...answer.data];
    before = answer.before;
    more.hidden = answer.data.length < PAGE;
    fill(
      host,
      table(
        t('audit.title'),
        [[t('labels.when')], [t('audit.who')], [t('audit.what')], [t('audit.target')], [t('audit.detail')]],
        entries.map((e) =>
          h(
            'tr',
            null,
            h('td', { class: 'nowrap', text: when(e.created) }),
            h('td', { class: 'wrap', dir: 'auto', text: name(e.actor) }),
            h('td', { text: words(e.action) }),
            h('td', { class: 'mono wrap', dir: 'auto', text: names.get(e.target) ?? e.target }),
            h('td', { class: 'sub wrap', dir: 'auto', text: detail(e.detail) }),
          ),
        ),
        t('audit.none'),
      ),
    );
  };
  more.addEventListener('click', caught(draw));
  return {
    el: section(
      t('audit.title'),
      null,
      h('p', { class: 'muted', text: t('audit.help') }),
      host,
      h('div', { class: 'actions' }, more),
    ),
    draw,
  };
}

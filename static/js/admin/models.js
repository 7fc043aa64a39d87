// Model versions as a family tree: promote, roll back, retire.
import { del, get, listOf, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { errorText } from '../plain.js';
import { t, when } from '../i18n.js';
import { drawServing } from './canary.js';
import { confirm, every, metricsText, section, stateTag } from './parts.js';

/** Roots first, children under their parents, oldest first; versions whose parent is gone are roots. */
export function tree(models) {
  const known = new Set(models.map((m) => m.id));
  const children = new Map();
  for (const m of [...models].sort((a, b) => a.created - b.created)) {
    const parent = m.parent_id && known.has(m.parent_id) && m.parent_id !== m.id ? m.parent_id : null;
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push(m);
  }
  const grow = (id, depth) =>
    depth > 64 ? [] : (children.get(id) ?? []).map((model) => ({ model, children: grow(model.id, depth + 1) }));
  return grow(null, 0);
}

export async function modelsView(el, { signal }) {
  const host = h('div', { class: 'lineage' });
  const serving = h('div');
  const back = h('button', { type: 'button', text: t('model.rollback') });
  fill(
    el,
    h(
      'header',
      { class: 'view-head' },
      h('h1', { text: t('admin.models') }),
      h('div', { class: 'row' }, h('a', { class: 'button', href: '/chat?compare=,', text: t('model.compare_two') }), back),
    ),
    serving,
    section(t('model.lineage'), null, h('p', { class: 'muted', text: t('model.lead') }), host),
  );

  const run = async (work, done) => {
    try {
      await work();
      toast(done, { kind: 'good' });
      await draw();
    } catch (e) {
      toast(errorText(e), { kind: 'bad', seconds: 10 });
    }
  };
  back.addEventListener('click', async () => {
    if (await confirm(t('model.rollback'), t('model.rollback_text'), t('model.rollback')))
      run(() => post('/admin/models/rollback'), t('model.rolled_back'));
  });

  const item = ({ model: m, children }) => {
    const where = encodeURIComponent(m.id);
    const promote =
      m.state === 'candidate' && (m.kind === 'policy' || m.kind === 'reward' || m.kind === 'encoder')
        ? h('button', {
            type: 'button',
            text: t('model.promote'),
            'aria-label': t('model.promote_name', { name: m.name }),
            on: {
              click: async () =>
                (await confirm(t('model.promote'), t(`model.promote_${m.kind}`, { name: m.name }), t('model.promote'))) &&
                run(() => post(`/admin/models/${where}/promote`), t('model.promoted', { name: m.name })),
            },
          })
        : null;
    const retire =
      m.state === 'candidate' && m.parent_id
        ? h('button', {
            type: 'button',
            class: 'quiet',
            text: t('model.retire'),
            'aria-label': t('model.retire_name', { name: m.name }),
            on: {
              click: async () =>
                (await confirm(t('model.retire'), t('model.retire_text', { name: m.name }), t('model.retire'), true)) &&
                run(() => del(`/admin/models/${where}`), t('model.retired', { name: m.name })),
            },
          })
        : null;
    const compare =
      m.kind === 'policy' && m.state === 'candidate'
        ? h('a', {
            class: 'button quiet',
            href: `/chat?compare=${encodeURIComponent(active?.name ?? '')},${encodeURIComponent(m.name)}`,
            text: t('model.compare'),
            'aria-label': t('model.compare_name', { name: m.name }),
          })
        : null;
    return h(
      'li',
      null,
      h(
        'div',
        { class: `version ${m.state} ${m.kind}` },
        h(
          'div',
          { class: 'version-main' },
          h(
            'div',
            { class: 'row' },
            h('strong', { class: 'mono', text: m.name }),
            h('span', { class: `tag ${m.kind === 'reward' ? 'warn' : 'accent'}`, text: t(`model.kind_${m.kind}`) }),
            h('span', { class: 'tag', text: m.stage }),
            stateTag(m.state),
          ),
          h(
            'p',
            { class: 'help' },
            [when(m.created), metricsText(m.metrics, 5)].filter(Boolean).join(' · '),
            m.job_id ? ' · ' : null,
            m.job_id ? h('a', { href: `#/jobs/${encodeURIComponent(m.job_id)}`, text: t('model.run') }) : null,
          ),
        ),
        h('div', { class: 'row' }, compare, retire, promote),
      ),
      children.length ? h('ul', null, children.map(item)) : null,
    );
  };

  let models = [];
  let active = null;
  async function draw() {
    models = listOf(await get('/admin/models', null, { signal }));
    active = models.find((m) => m.kind === 'policy' && m.state === 'active');
    await drawServing(serving, models, signal, draw, true);
    fill(
      host,
      models.length ? h('ul', { class: 'tree' }, tree(models).map(item)) : h('p', { class: 'muted', text: t('model.none') }),
    );
  }
  await draw();
  every(10, signal, () => drawServing(serving, models, signal, draw));
}

// Model versions as a family tree: promote, roll back, retire.
import { del, get, listOf, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { errorText } from '../plain.js';
import { t, when } from '../i18n.js';
import { drawServing } from './canary.js';
import { catalogueSection } from './catalogue.js';
import { askPromote, askRollBack } from './evidence.js';
import { recipeName } from './jobs.js';
import { caught, confirm, every, metricsText, section, stateTag } from './parts.js';

/** @import { ModelVersions } from '../contract.d.ts' */

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

/** What a version is to the others: active, previous (replaced by the last promotion), rolled back, candidate, retired. */
export function standingOf(m, answer) {
  if (m.state !== 'candidate') return m.state;
  if ((answer.rolled_back ?? []).includes(m.id)) return 'rolled_back';
  if (Object.values(answer.previous ?? {}).includes(m.id)) return 'previous';
  return 'candidate';
}

/** Why the active policy cannot be rolled back; null where it can. */
export function rollBackBarrier(models) {
  const active = models.find((m) => m.kind === 'policy' && m.state === 'active');
  if (!active) return t('model.rollback_none');
  if (!active.parent_id) return t('model.rollback_no_parent', { name: active.name });
  const parent = models.find((m) => m.id === active.parent_id);
  if (!parent || parent.kind !== 'policy') return t('model.rollback_no_parent', { name: active.name });
  if (parent.state === 'retired') return t('model.rollback_retired', { name: parent.name });
  return null;
}

export async function modelsView(el, { signal }) {
  const host = h('div', { class: 'lineage' });
  const serving = h('div');
  const back = h('button', { type: 'button', text: t('model.rollback'), 'aria-describedby': 'rollback-why' });
  const why = h('p', { class: 'help', id: 'rollback-why' });
  fill(
    el,
    h(
      'header',
      { class: 'view-head' },
      h('h1', { text: t('admin.models') }),
      h('div', { class: 'row' }, h('a', { class: 'button', href: '/chat?compare=,', text: t('model.compare_two') }), back),
      why,
    ),
    serving,
    section(t('model.lineage'), null, h('p', { class: 'muted', text: t('model.lead') }), host),
    catalogueSection(signal),
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
  back.addEventListener(
    'click',
    caught(async () => {
      const parent = models.find((m) => m.id === active?.parent_id);
      if (parent && (await askRollBack(active, parent, signal)))
        await run(() => post('/admin/models/rollback'), t('model.rolled_back', { name: parent.name }));
    }),
  );

  const item = ({ model: m, children }) => {
    const where = encodeURIComponent(m.id);
    const standing = standingOf(m, answer);
    const promote =
      m.state === 'candidate' && (m.kind === 'policy' || m.kind === 'reward' || m.kind === 'encoder')
        ? h('button', {
            type: 'button',
            text: t('model.promote'),
            'aria-label': t('model.promote_name', { name: m.name }),
            on: {
              click: caught(
                async () =>
                  (await askPromote(m, signal)) &&
                  run(() => post(`/admin/models/${where}/promote`), t('model.promoted', { name: m.name })),
              ),
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
                (await confirm(
                  t('model.retire_title', { name: m.name }),
                  t('model.retire_text', { name: m.name }),
                  t('model.retire_name', { name: m.name }),
                  true,
                )) && run(() => del(`/admin/models/${where}`), t('model.retired', { name: m.name })),
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
        { class: `version ${m.state} ${m.kind}`, data: { name: m.name } },
        h(
          'div',
          { class: 'version-main' },
          h(
            'div',
            { class: 'row' },
            h('strong', { class: 'mono', text: m.name }),
            h('span', { class: `tag ${m.kind === 'reward' ? 'warn' : 'accent'}`, text: t(`model.kind_${m.kind}`) }),
            m.stage === m.kind ? null : h('span', { class: 'tag', text: recipeName(m.stage) }),
            stateTag(standing),
          ),
          h(
            'p',
            { class: 'help' },
            [when(m.created), metricsText(m.metrics, 5)].filter(Boolean).join(' · '),
            m.job_id ? ' · ' : null,
            m.job_id ? h('a', { href: `#/jobs/${encodeURIComponent(m.job_id)}`, text: t('model.run') }) : null,
          ),
          formats.has(m.id) && h('p', { class: 'help', text: t('model.weights', { what: t(`weights.${formats.get(m.id)}`) }) }),
        ),
        h('div', { class: 'row' }, compare, retire, promote),
      ),
      children.length ? h('ul', null, children.map(item)) : null,
    );
  };

  /** @type {ModelVersions | undefined} */
  let answer;
  let models = [];
  let active = null;
  /** Formats of the weights in memory, by version. */
  let formats = new Map();
  async function draw() {
    const [versions, loaded] = await Promise.all([
      get('/admin/models', null, { signal }),
      get('/v1/models', null, { signal }),
    ]);
    answer = versions;
    formats = new Map();
    for (const { instructd } of listOf(loaded)) if (instructd.weights) formats.set(instructd.version, instructd.weights);
    models = listOf(answer);
    active = models.find((m) => m.kind === 'policy' && m.state === 'active');
    const barrier = rollBackBarrier(models);
    back.disabled = barrier !== null;
    why.textContent = barrier ?? '';
    why.hidden = barrier === null;
    await drawServing(serving, models, signal, draw, true);
    fill(
      host,
      models.length ? h('ul', { class: 'tree' }, tree(models).map(item)) : h('p', { class: 'muted', text: t('model.none') }),
    );
  }
  await draw();
  every(10, signal, () => drawServing(serving, models, signal, draw));
}

// Dataset versions: exactly these rankings, by hash, under a name; jobs and exports can name them.
import { get, listOf, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { num, t, when } from '../i18n.js';
import { errorText } from '../plain.js';
import { textOf } from '../label/rubric.js';
import { section, table } from './parts.js';
import { projectId } from './project.js';

/** "held out, gold" – what a version's filter says, in words. */
function filterText(filter) {
  const f = filter?.filter ?? filter ?? {};
  const parts = [
    f.split ? t(`split.${f.split}`) : null,
    f.set_kind ? t(`kind.${f.set_kind}`) : null,
    f.tag ? t('data.with_tag', { tag: f.tag }) : null,
    f.labelers ? t(`data.labelers.${f.labelers}`) : null,
    f.feedback ? t('data.with_feedback') : null,
    f.by_rating ? t('data.by_rating', { name: f.by_rating.dimension, v: f.by_rating.rubric }) + (f.by_rating.lower_is_better ? t('data.reversed') : '') : null,
  ].filter(Boolean);
  return parts.length ? parts.join(', ') : t('split.all');
}

export function datasetsPanel(signal) {
  const host = h('div');
  const name = h('input', { id: 'dataset-name', autocomplete: 'off', maxlength: '64', placeholder: t('data.dataset_name') });
  const split = h(
    'select',
    { id: 'dataset-split' },
    ['', 'train', 'heldout'].map((s) => h('option', { value: s, text: t(`split.${s || 'all'}`) })),
  );
  const tag = h('input', { id: 'dataset-tag', autocomplete: 'off', placeholder: t('queue.tag') });
  const labelers = h(
    'select',
    { id: 'dataset-labelers' },
    ['human', 'model', 'all'].map((who) => h('option', { value: who, text: t(`data.labelers.${who}`) })),
  );
  const feedback = h('input', { id: 'dataset-feedback', type: 'checkbox' });
  // shown once there is a rubric
  const by = h('select', { id: 'dataset-by', hidden: true, 'aria-label': t('data.by') });
  const orders = new Map();
  const drawOrders = async () => {
    const { versions } = await get('/admin/rubrics', null, { signal });
    for (const { version, definition } of versions) {
      for (const d of definition.dimensions.filter((x) => x.kind !== 'tags')) {
        const order = (lower) => ({ rubric: version, dimension: d.key, ...(lower ? { lower_is_better: true } : {}) });
        const name = { name: textOf(d.label), v: version };
        orders.set(`${version} ${d.key}`, [d.kind === 'flag' ? t('data.by_yes', name) : t('data.by_rating', name), order(false)]);
        if (d.kind === 'flag') orders.set(`${version} ${d.key} no`, [t('data.by_no', name), order(true)]);
      }
    }
    fill(by, h('option', { value: '', text: t('data.by_ranking') }), [...orders].map(([value, [text]]) => h('option', { value, text })));
    by.hidden = orders.size === 0;
  };
  const error = h('p', { class: 'form-error', role: 'alert' });
  const draw = async () => {
    const list = listOf(await get('/admin/datasets', null, { signal }));
    fill(
      host,
      table(
        t('data.datasets'),
        [
          [t('labels.name')],
          [t('data.what')],
          [t('quality.sets'), 'right'],
          [t('data.pairs'), 'right'],
          [t('data.as_of')],
          ['SHA-256'],
          ['', 'right'],
        ],
        list.map((d) =>
          h(
            'tr',
            null,
            h('td', { class: 'mono', text: d.name ?? d.id.slice(-8) }),
            h('td', { class: 'wrap', text: filterText(d.filter) }),
            h('td', { class: 'right', text: num(d.n_sets) }),
            h('td', { class: 'right', text: num(d.n_pairs) }),
            h('td', { class: 'nowrap', text: when(d.as_of) }),
            h('td', { class: 'mono', title: d.sha256, text: d.sha256.slice(0, 12) }),
            h(
              'td',
              { class: 'right' },
              h('a', {
                class: 'button quiet',
                href: `/admin/export?format=comparisons&dataset=${encodeURIComponent(d.name ?? d.id)}`,
                download: '',
                text: t('data.download'),
                'aria-label': t('data.download_name', { name: d.name ?? d.id }),
              }),
            ),
          ),
        ),
        t('data.no_datasets'),
      ),
    );
  };
  const form = h(
    'form',
    {
      class: 'inline-form',
      on: {
        submit: async (e) => {
          e.preventDefault();
          error.textContent = '';
          const filter = {
            ...(split.value ? { split: split.value } : {}),
            ...(tag.value.trim() ? { tag: tag.value.trim() } : {}),
            ...(projectId() ? { project: projectId() } : {}),
            ...(labelers.value === 'human' ? {} : { labelers: labelers.value }),
            ...(feedback.checked ? { feedback: true } : {}),
            ...(by.value ? { by_rating: orders.get(by.value)[1] } : {}),
          };
          try {
            await post('/admin/datasets', { ...(name.value.trim() ? { name: name.value.trim() } : {}), filter });
            toast(t('data.frozen'), { kind: 'good' });
            name.value = '';
            await draw();
          } catch (err) {
            error.textContent = errorText(err);
          }
        },
      },
    },
    h('label', { for: 'dataset-name', class: 'hidden-label', text: t('data.dataset_name') }),
    name,
    h('label', { for: 'dataset-split', class: 'hidden-label', text: t('data.split') }),
    split,
    h('label', { for: 'dataset-tag', class: 'hidden-label', text: t('queue.tag') }),
    tag,
    h('label', { for: 'dataset-labelers', class: 'hidden-label', text: t('data.labelers') }),
    labelers,
    by,
    h('label', { class: 'inline', for: 'dataset-feedback' }, feedback, h('span', { text: t('data.with_feedback') })),
    h('button', { type: 'submit', text: t('data.freeze') }),
  );
  return {
    el: section(t('data.datasets'), null, h('p', { class: 'muted', text: t('data.datasets_help') }), host, form, error),
    draw: () => Promise.all([draw(), drawOrders()]),
  };
}

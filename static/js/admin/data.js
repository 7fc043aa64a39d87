// Data in and out: import with help for each format and a report by line, export, dataset versions.
import { call } from '../api.js';
import { coded, fill, h } from '../dom.js';
import { t } from '../i18n.js';
import { errorText } from '../plain.js';
import { datasetsPanel } from './datasets.js';
import { bytes, caught, section } from './parts.js';
import { projectId } from './project.js';

/** Formats with a line as it looks in a file; `out` = can be exported, too. */
const FORMATS = [
  {
    name: 'comparisons',
    out: true,
    line: '{"prompt": [{"role": "user", "content": "…"}], "completions": [{"text": "best", "tier": 0}, {"text": "worse", "tier": 1}]}',
  },
  {
    name: 'trl',
    out: true,
    line: '{"prompt": [{"role": "user", "content": "…"}], "chosen": [{"role": "assistant", "content": "…"}], "rejected": [{"role": "assistant", "content": "…"}]}',
  },
  {
    name: 'hh',
    out: true,
    line: '{"chosen": "\\n\\nHuman: …\\n\\nAssistant: better", "rejected": "\\n\\nHuman: …\\n\\nAssistant: worse"}',
  },
  { name: 'demonstrations', out: true, line: '{"prompt": [{"role": "user", "content": "…"}], "completion": "the ideal answer"}' },
  {
    name: 'oasst',
    out: true,
    line: '{"message_tree_id": "…", "prompt": {"text": "…", "role": "prompter", "replies": [{"text": "…", "role": "assistant", "rank": 0}]}}',
  },
  { name: 'parquet', out: true, line: null },
  { name: 'prompts', out: false, line: '{"prompt": [{"role": "user", "content": "…"}], "tags": ["cooking"]}' },
];

/** Lines of a file with what is said of each; `n` counts those that are not listed, too. */
function lineList(key, n, lines) {
  if (!n || !lines?.length) return null;
  return [
    h('p', { class: key === 'data.bad_lines' ? 'bad-text' : 'muted', text: t(key, { n }) }),
    h(
      'ul',
      { class: 'errors', tabindex: '0', 'aria-label': t(key, { n }) },
      lines.map((e) =>
        h(
          'li',
          null,
          e.line ? h('b', { class: 'nowrap', text: t('labels.line', { n: e.line }) }) : null,
          h('span', { dir: 'auto' }, coded(e.message)),
        ),
      ),
      n > lines.length ? h('li', { class: 'muted', text: t('data.more_lines', { n: n - lines.length }) }) : null,
    ),
  ];
}

function importForm() {
  let chosen = FORMATS[0];
  const example = h('pre', { class: 'code-block', tabindex: '0', 'aria-label': t('data.example') });
  const help = h('p', { class: 'help' });
  const format = h(
    'select',
    { id: 'import-format' },
    FORMATS.map((f) => h('option', { value: f.name, text: t(`format.${f.name}`) })),
  );
  // rankings may be known answers instead of judgments: people are measured by them
  const known = h(
    'select',
    { id: 'import-known' },
    ['', 'gold', 'calibration'].map((k) => h('option', { value: k, text: t(`known.${k || 'none'}`) })),
  );
  const knownField = h(
    'div',
    { class: 'field' },
    h('label', { for: 'import-known', text: t('data.use_as') }),
    known,
    h('p', { class: 'help', text: t('data.use_as_help') }),
  );
  const explain = () => {
    chosen = FORMATS.find((f) => f.name === format.value);
    help.textContent = t(`format.${chosen.name}_help`);
    example.textContent = chosen.line ?? '';
    example.hidden = !chosen.line;
    knownField.hidden = ['demonstrations', 'prompts'].includes(chosen.name);
  };
  format.addEventListener('change', explain);
  explain();
  const file = h('input', {
    id: 'import-file',
    type: 'file',
    accept: '.jsonl,.json,.ndjson,.parquet,.gz,.zst,application/x-ndjson,application/json',
  });
  // the browser's own control speaks the browser's language, not the page's
  const picked = h('span', { class: 'muted', dir: 'auto', text: t('data.no_file_yet') });
  file.addEventListener('change', () => (picked.textContent = file.files[0]?.name ?? t('data.no_file_yet')));
  const report = h('div', { role: 'status' });
  const go = h('button', { type: 'submit', class: 'primary', text: t('labels.import') });
  const told = (r) => [
    h('p', {
      class: r.failed ? '' : 'good-text',
      text: t(r.updated ? 'data.imported_updated' : r.failed && !r.imported && !r.skipped ? 'data.nothing_imported' : 'labels.imported', {
        n: r.imported ?? 0,
        updated: r.updated ?? 0,
        skipped: r.skipped ?? 0,
      }),
    }),
    r.stopped ? h('p', { class: 'form-error', dir: 'auto', text: t('data.stopped', { why: r.stopped }) }) : null,
    lineList('data.bad_lines', r.failed, r.errors),
    lineList('data.warned_lines', r.warnings?.length, r.warnings),
    Object.keys(r.ignored_fields ?? {}).length
      ? h('p', {
          class: 'muted',
          dir: 'auto',
          text: t('data.ignored_fields', {
            fields: Object.entries(r.ignored_fields)
              .map(([name, n]) => t('data.ignored_field', { name, count: n }))
              .join(t('data.list_comma')),
          }),
        })
      : null,
    r.imported || r.updated || r.skipped ? nextStep() : null,
  ];
  // what a file of this kind is good for
  const nextStep = () => {
    const link = (href, key) => h('a', { class: 'button', href, text: t(key) });
    const steps = {
      prompts: [link('#/queue', 'data.next_draw')],
      demonstrations: [link('#/jobs/new/sft', 'data.next_sft')],
    }[chosen.name] ?? [
      known.value && !knownField.hidden ? link('/label', 'data.next_rank') : link('#/jobs/new/reward', 'data.next_reward'),
    ];
    return h('div', { class: 'row import-next' }, h('span', { text: t('data.next') }), steps);
  };
  return h(
    'form',
    {
      class: 'stack',
      on: {
        submit: caught(async () => {
          const chosenFile = file.files[0];
          if (!chosenFile) return void fill(report, h('p', { class: 'form-error', text: t('labels.no_file') }));
          go.disabled = true;
          fill(report, h('p', { class: 'muted', text: t('data.importing', { name: chosenFile.name, size: bytes(chosenFile.size) }) }));
          try {
            const r = await call('POST', '/admin/import', {
              raw: chosenFile,
              query: {
                format: chosen.name,
                project: projectId(),
                known_answer: knownField.hidden ? null : known.value,
                name: chosenFile.name.replace(/[^A-Za-z0-9._-]+/g, '_').slice(0, 64),
              },
            });
            fill(report, told(r));
          } catch (e) {
            // a file of which nothing could be used comes with its list of bad lines
            const r = Array.isArray(e.body?.errors) ? e.body : null;
            fill(report, r?.failed && !r.stopped ? told(r) : [h('p', { class: 'form-error', text: errorText(e) }), r ? told(r).slice(2) : null]);
          } finally {
            go.disabled = false;
          }
        }),
      },
    },
    h('div', { class: 'field' }, h('label', { for: 'import-format', text: t('labels.format') }), format, help),
    example,
    knownField,
    h(
      'div',
      { class: 'field' },
      h('label', { for: 'import-file', text: t('labels.file') }),
      h('div', { class: 'row file-pick' }, file, h('label', { class: 'button', for: 'import-file', text: t('data.choose_file') }), picked),
      h('p', { class: 'help', text: t('data.file_help') }),
    ),
    report,
    h('div', { class: 'actions' }, go),
  );
}

function exportTable() {
  const split = h(
    'select',
    { id: 'export-split' },
    ['', 'train', 'heldout'].map((s) => h('option', { value: s, text: t(`split.${s || 'all'}`) })),
  );
  const links = FORMATS.filter((f) => f.out).map((f) => ({
    f,
    a: h('a', {
      class: 'button',
      download: `instructd-${f.name}.${f.name === 'parquet' ? 'parquet' : 'jsonl'}`,
      text: t('data.download'),
      'aria-label': t('data.download_name', { name: t(`format.${f.name}`) }),
      on: { click: () => tellLeftOut(f) },
    }),
    note: h('p', { class: 'help', role: 'status' }),
  }));
  // the browser saves the file; the same request without a body says what the format cannot hold
  const tellLeftOut = async (f) => {
    const { a, note } = links.find((l) => l.f === f);
    const address = a.href;
    fill(note);
    try {
      const response = await fetch(address, { method: 'HEAD', credentials: 'same-origin' });
      const n = Number(response.headers.get('x-left-out') ?? NaN);
      if (!response.ok || !Number.isFinite(n)) return;
      note.className = n ? 'help warn-text' : 'help';
      note.textContent = n ? t('data.left_out', { n }) : t('data.nothing_left_out');
    } catch {
      // the download itself shows that the server is away
    }
  };
  const aim = () => {
    for (const { f, a } of links) {
      const query = new URLSearchParams({ format: f.name });
      if (split.value) query.set('split', split.value);
      const project = projectId();
      if (project) query.set('project', project);
      a.href = `/admin/export?${query}`;
    }
  };
  split.addEventListener('change', aim);
  aim();
  return [
    h('label', { class: 'inline', for: 'export-split' }, h('span', { text: t('data.split') }), split),
    h(
      'ul',
      { class: 'export-list' },
      links.map(({ f, a, note }) =>
        h(
          'li',
          null,
          h(
            'div',
            null,
            h('strong', { text: t(`format.${f.name}`) }),
            h('p', { class: 'help', text: t(`format.${f.name}_help`) }),
            note,
          ),
          a,
        ),
      ),
    ),
  ];
}

export async function dataView(el, { signal }) {
  const datasets = datasetsPanel(signal);
  fill(
    el,
    h('header', { class: 'view-head' }, h('h1', { text: t('admin.data') })),
    h(
      'div',
      { class: 'two-columns' },
      section(t('labels.import_title'), null, importForm()),
      section(t('labels.export_title'), null, h('p', { class: 'muted', text: t('labels.export_help') }), exportTable()),
    ),
    datasets.el,
  );
  await datasets.draw();
}

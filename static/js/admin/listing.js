// A table that is searched, filtered and paged by the server; rows can be picked for an action in bulk.
import { fill, h } from '../dom.js';
import { t, when } from '../i18n.js';
import { failure } from '../shell.js';
import { caught, table } from './parts.js';

/** The prompt of a row as a link to its set, at most two lines. */
export const promptCell = (setId, prompt) =>
  h(
    'td',
    { class: 'prompt-cell' },
    h('a', { href: `#/sets/${encodeURIComponent(setId)}`, dir: 'auto', text: prompt || t('list.no_text') }),
  );

/**
 * `load(query)` answers `{data, after, total, searched_to}`; a search that ran out of time says how far it came, and older
 * rows are searched on request. `filters`: `[{name, label, options: [[value, text]], value}]`.
 * `columns` as for `table`, `row(item)` gives the cells. `bulk`: `{label, fits(item), run(ids)}`.
 * Resolves the first `refresh()` once the first page is drawn. `choose({name: value})` sets filters and lists anew.
 */
export function listing({ id, label, load, columns, row, empty, filters = [], size = 25, bulk = null }) {
  const body = h('div');
  const picked = new Set();
  let before = []; // {after, rows} of the pages that lead here; a search can end before a page is full
  let after = null; // where this page begins
  let next = null;
  let last = null; // the latest request: a slow older answer must not overwrite it
  const search = h('input', { type: 'search', id: `${id}-q`, autocomplete: 'off', placeholder: t('list.search'), maxlength: '200' });
  const selects = filters.map((f) =>
    h(
      'select',
      { id: `${id}-${f.name}`, 'aria-label': f.label },
      f.options.map(([value, text]) => h('option', { value, text, selected: value === (f.value ?? '') })),
    ),
  );
  const many = h('button', {
    type: 'button',
    class: 'danger',
    hidden: true,
    on: {
      click: caught(async () => {
        if ((await bulk.run([...picked])) === false) return;
        picked.clear();
        await draw();
      }),
    },
  });
  const tools = h(
    'div',
    { class: 'list-tools', role: 'search', 'aria-label': label },
    h('label', { class: 'hidden-label', for: search.id, text: t('list.search') }),
    search,
    selects,
    many,
  );
  const mark = () => {
    many.hidden = picked.size === 0;
    many.textContent = bulk ? bulk.label(picked.size) : '';
  };

  async function draw() {
    const asked = (last = {});
    const query = { limit: size, after, q: search.value.trim() || null };
    filters.forEach((f, i) => (query[f.name] = selects[i].value || null));
    const answer = await load(query);
    if (asked !== last) return;
    const list = answer.data;
    const counted = answer.total !== null;
    // The rows of a page can all have been removed: go back to one that has some.
    if (list.length === 0 && before.length && counted) {
      ({ after } = before.pop());
      return draw();
    }
    next = answer.after;
    const first = before.reduce((n, page) => n + page.rows, 1);
    const shownTo = first + list.length - 1;
    const unfinished = answer.searched_to !== null;
    const more = unfinished || (counted ? answer.total > shownTo : list.length === size);
    const fits = (item) => bulk?.fits(item);
    for (const gone of [...picked]) if (!list.some((item) => item.id === gone && fits(item))) picked.delete(gone);
    const all = list.filter(fits);
    const everyone = h('input', {
      type: 'checkbox',
      'aria-label': t('list.pick_all'),
      checked: all.length > 0 && all.every((item) => picked.has(item.id)),
      disabled: all.length === 0,
      on: {
        change: (e) => {
          for (const item of all) e.currentTarget.checked ? picked.add(item.id) : picked.delete(item.id);
          for (const box of body.querySelectorAll('td.pick input')) box.checked = e.currentTarget.checked;
          mark();
        },
      },
    });
    const rows = list.map((item) =>
      h(
        'tr',
        null,
        bulk
          ? h(
              'td',
              { class: 'pick' },
              fits(item)
                ? h('input', {
                    type: 'checkbox',
                    'aria-label': t('list.pick', { name: item.prompt || item.id }),
                    checked: picked.has(item.id),
                    on: {
                      change: (e) => {
                        e.currentTarget.checked ? picked.add(item.id) : picked.delete(item.id);
                        everyone.checked = all.every((one) => picked.has(one.id));
                        mark();
                      },
                    },
                  })
                : null,
            )
          : null,
        row(item),
      ),
    );
    const filtered = query.q || selects.some((s) => s.value);
    const nothing = unfinished || before.length ? t('list.none_here') : filtered ? t('list.nothing_fits') : empty;
    const range = list.length ? t(counted ? 'list.range' : 'list.range_open', { first, last: shownTo, total: answer.total }) : null;
    const extent = unfinished ? t('list.searched_to', { at: when(answer.searched_to) }) : null;
    const box = table(label, bulk ? [['', 'pick', t('list.pick_all')], ...columns] : columns, rows, nothing);
    if (bulk && list.length) box.querySelector('th.pick').replaceChildren(everyone);
    fill(
      body,
      box,
      list.length || before.length || more
        ? h(
            'nav',
            { class: 'pager', 'aria-label': t('list.pages', { name: label }) },
            h('span', { class: 'muted', role: 'status', text: [range, extent].filter(Boolean).join(' · ') }),
            before.length || more
              ? [
                  h('button', {
                    type: 'button',
                    text: t('list.newer'),
                    disabled: before.length === 0,
                    on: { click: caught(() => (({ after } = before.pop()), draw())) },
                  }),
                  h('button', {
                    type: 'button',
                    text: t(unfinished ? 'list.search_on' : 'list.older'),
                    disabled: !more || !next,
                    on: { click: caught(() => (before.push({ after, rows: list.length }), (after = next), draw())) },
                  }),
                ]
              : null,
          )
        : null,
    );
    mark();
  }

  const restart = async () => {
    before = [];
    after = null;
    picked.clear();
    try {
      await draw();
    } catch (e) {
      if (e.name === 'AbortError') return;
      fill(body, failure(e, restart));
    }
  };
  let wait = 0;
  search.addEventListener('input', () => {
    clearTimeout(wait);
    wait = setTimeout(restart, 250);
  });
  for (const select of selects) select.addEventListener('change', restart);
  const choose = (values) => {
    filters.forEach((f, i) => f.name in values && (selects[i].value = values[f.name]));
    return restart();
  };
  return { el: h('div', { class: 'stack' }, tools, body), refresh: draw, restart, choose };
}

// The label page's side matters: skip dialog, guidelines, own history.
import { get, listOf } from '../api.js';
import { dialog, fill, h, keep, serverHtml } from '../dom.js';
import { HUMAN_CEILING, bars, figureRow, tile } from '../figures.js';
import { duration, lang, t, when } from '../i18n.js';
import { keyOf } from '../keys.js';
import { SKIP_REASONS } from './ballot.js';

/** Resolves with `{reason, note}` or null. */
export function skipDialog() {
  return dialog(
    t('skip.title'),
    (close) => {
      const note = h('textarea', { id: 'skip-note', rows: '2', dir: 'auto' });
      return h(
        'form',
        {
          on: {
            submit: (e) => {
              e.preventDefault();
              close({ reason: new FormData(e.target).get('reason') ?? 'other', note: note.value.trim() });
            },
          },
        },
        h(
          'fieldset',
          { class: 'choices' },
          h('legend', { text: t('skip.why') }),
          SKIP_REASONS.map((r, i) =>
            h(
              'label',
              { class: 'choice' },
              h('input', { type: 'radio', name: 'reason', value: r, required: true, autofocus: i === 0 }),
              h('span', { text: t(`skip.${r}`) }),
            ),
          ),
        ),
        h('div', { class: 'field' }, h('label', { for: 'skip-note', text: t('skip.note') }), note),
        h(
          'div',
          { class: 'actions' },
          h('button', { type: 'button', text: t('cancel'), on: { click: () => close() } }),
          h('button', { class: 'primary', type: 'submit', text: t('skip.do') }),
        ),
      );
    },
    { closeLabel: t('close') },
  );
}

const READ = 'instructd.guidelines.';

const fetchGuidelines = (project) => get('/v1/guidelines', { lang, project });

const versionLine = (g) =>
  h('p', {
    class: 'help',
    text: g.since ? t('guidelines.since', { when: when(g.since), v: g.version }) : t('guidelines.version', { v: g.version ?? '–' }),
  });

/**
 * The guidelines for a labeler who has not judged anything yet, to stand before the first set: `{el, read()}`, or
 * null. Reviewers and administrators write them and go straight to work.
 */
export async function guidelinesFirst(labeler, own, project) {
  const key = READ + labeler.id;
  if (labeler.role !== 'labeler' || own.done_total + own.skipped_total > 0 || keep.get(key)) return null;
  const g = await fetchGuidelines(project);
  const read = () => {
    keep.set(key, g.version);
    el.remove();
  };
  const go = h('button', { class: 'primary', type: 'button', text: t('guidelines.start'), on: { click: () => read() } });
  const el = h(
    'section',
    { class: 'panel guidelines-first', 'aria-label': t('guidelines') },
    serverHtml(g.html ?? ''),
    h('div', { class: 'actions' }, versionLine(g), go),
  );
  return { el, read };
}

/** The guidelines drawer beside the work, with the focus; a second call or Esc closes it. */
export async function toggleGuidelines(host, button, project) {
  const open = host.querySelector('.drawer');
  button.setAttribute('aria-expanded', String(!open));
  if (open) {
    open.remove();
    return;
  }
  // back to where the focus was: the work, when the drawer was opened by its key
  const before = document.activeElement;
  const shut = () => {
    button.setAttribute('aria-expanded', 'false');
    drawer.remove();
    (before?.isConnected && before !== document.body ? before : button).focus({ preventScroll: true });
  };
  const body = h('div', { class: 'drawer-body', tabindex: '0' }, h('p', { class: 'muted', text: t('loading') }));
  const drawer = h(
    'aside',
    { class: 'drawer', 'aria-label': t('guidelines'), tabindex: '-1' },
    h(
      'header',
      null,
      h('h2', { text: t('guidelines') }),
      h('button', { class: 'quiet', type: 'button', text: t('close'), on: { click: shut } }),
    ),
    body,
  );
  drawer.addEventListener('keydown', (e) => {
    if (keyOf(e) !== 'Escape') return;
    e.stopPropagation();
    shut();
  });
  host.append(drawer);
  drawer.focus({ preventScroll: true });
  try {
    const g = await fetchGuidelines(project);
    fill(body, serverHtml(g.html ?? ''), versionLine(g));
  } catch (e) {
    fill(body, h('p', { class: 'muted', text: e.status === 404 ? t('guidelines.none') : e.message }));
  }
}

/** The labeler's conversations, newest first; `goOn(judgmentId)` with the judgment of the last turn. */
function conversationsList(conversations, goOn) {
  const row = (c) => {
    const last = c.turns.at(-1).judgment_id;
    return h(
      'li',
      null,
      h('span', { class: 'history-prompt', dir: 'auto', text: c.prompt || t('list.no_text') }),
      h('span', { class: 'muted', text: when(c.turns.at(-1).created) }),
      h('span', { class: 'tag', text: t('talk.turns', { n: c.turns.length }) }),
      last ? h('button', { type: 'button', class: 'quiet', text: t('talk.go_on'), on: { click: () => goOn(last) } }) : null,
    );
  };
  return [h('h3', { text: t('talk.list') }), h('ul', { class: 'history' }, conversations.map(row))];
}

/**
 * Own progress, pace and agreement, latest judgments and conversations; resolves with what to open: a judgment to revise
 * (`reopen`) or to go on from (`goOn`), by id; or null.
 * @returns {Promise<{reopen?: string, goOn?: string} | null>}
 */
export async function historyDialog(project) {
  const [me, list, conversations] = await Promise.all([
    get('/v1/label/me', { project }),
    get('/v1/label/history', { limit: 20 }).then(listOf),
    get('/v1/label/conversations', { limit: 20 }).then(listOf),
  ]);
  const day = new Intl.DateTimeFormat(lang === 'zh' ? 'zh-CN' : 'en', { month: 'short', day: 'numeric', timeZone: 'UTC' });
  const pace = me.median_active_ms_today ?? me.median_active_ms;
  return dialog(
    t('progress.title'),
    (close) => [
      h(
        'div',
        { class: 'figures' },
        tile(me.done_today, me.quota ? t('progress.of_quota', { n: me.quota }) : t('progress.today')),
        tile(me.done_total, t('progress.total')),
        tile(me.skipped_total ?? 0, t('progress.skipped')),
        tile(pace ? duration(pace / 1000) : '–', t('progress.pace')),
      ),
      bars(
        me.days.map((d) => ({ label: day.format(new Date(d.start / 1000)), value: d.judgments })),
        t('quality.per_day'),
      ),
      figureRow(t('progress.agreement'), me.agreement_with_others, { band: HUMAN_CEILING, help: t('progress.agreement_help') }),
      figureRow(t('progress.calibration'), me.calibration_accuracy, { help: t('progress.calibration_help') }),
      h('h3', { text: t('progress.latest') }),
      list.length === 0
        ? h('p', { class: 'muted', text: t('history.none') })
        : h(
            'ul',
            { class: 'history' },
            list.map((j) =>
              h(
                'li',
                null,
                h('span', { class: 'history-prompt', dir: 'auto', text: j.prompt || t('list.no_text') }),
                h('span', { class: 'muted', text: when(j.created) }),
                h('span', { class: 'tag', text: t(`outcome.${j.outcome}`) }),
                h('span', { class: 'muted', text: j.revision > 1 ? t('history.revision', { n: j.revision }) : '' }),
                j.knowledge && j.knowledge !== 'blind'
                  ? h('span', { class: 'tag', text: t(`knowledge.${j.knowledge}`), title: t('knowledge.help') })
                  : null,
                h('button', { type: 'button', class: 'quiet', text: t('history.reopen'), on: { click: () => close({ reopen: j.id }) } }),
              ),
            ),
          ),
      conversations.length ? conversationsList(conversations, (id) => close({ goOn: id })) : null,
    ],
    { wide: true, closeLabel: t('close') },
  );
}

// The page without a set: the question form, and a look for new work every few seconds.
import { fill, h } from '../dom.js';
import { t } from '../i18n.js';
import { askForm } from './ask.js';

const LOOK_FOR_WORK = 15e3;

/**
 * Shows the page without a set. `asking` says that somebody came to ask, `draws` that they can draw sets; `form` restores the question form and its
 * `problem`. `onAsk(question)` has answers written, `advance()` shows the next set, `loadFigures()` resolves with the person's
 * figures.
 * @param {HTMLElement} main
 * @param {{asking: boolean, draws: boolean, form: any, quota: boolean, onAsk: (question: any) => void, advance: () => any,
 *   loadFigures: () => Promise<any>}} options
 */
export function showEmptyPage(main, { asking, draws, form, quota, onAsk, advance, loadFigures }) {
  const title = t(asking ? 'ask.title' : quota ? 'quota.title' : 'empty.title');
  document.title = `${title} · instructd`;
  const empty = h(
    'div',
    { class: 'centre empty' },
    h('h1', { text: title }),
    h('p', { class: 'muted', text: t(asking ? 'empty.text' : quota ? 'quota.text' : draws ? 'empty.draw' : 'empty.waiting') }),
    draws && !asking && !quota ? h('p', null, h('a', { class: 'button primary', href: '/admin#/queue', text: t('empty.draw_go') })) : null,
    askForm(onAsk, form),
    h(
      'p',
      null,
      h('button', {
        type: 'button',
        class: 'quiet',
        text: t(asking ? 'ask.to_queue' : 'empty.look_again'),
        on: { click: advance },
      }),
    ),
  );
  fill(main, empty);
  if (quota && !asking) showCompletionCode(empty, loadFigures);
  if (asking || form.problem) empty.querySelector('textarea').focus();
  else lookForWork(empty, { advance, loadFigures });
}

/** Shows the code for a crowd platform, where this server has codes. */
async function showCompletionCode(empty, loadFigures) {
  const own = await loadFigures().catch(() => null);
  if (!own?.completion_code || !empty.isConnected) return;
  empty
    .querySelector('h1')
    .after(h('p', { class: 'notice', role: 'status' }, `${t('quota.code')} `, h('strong', { class: 'mono completion-code', text: own.completion_code })));
}

/** Looks for work while `empty` is shown; a question that somebody is writing stays on the screen. */
function lookForWork(empty, { advance, loadFigures }) {
  setTimeout(async () => {
    const again = () => lookForWork(empty, { advance, loadFigures });
    if (!empty.isConnected) return;
    if (document.hidden) return again();
    const own = await loadFigures().catch(() => null);
    if (!empty.isConnected) return;
    if (!own || !(own.queue_open > 0 || own.onboarding)) return again();
    const writing = empty.querySelector('textarea');
    if (writing.value.trim() === '' && document.activeElement !== writing) return advance();
    if (!empty.querySelector('.work-there'))
      empty.prepend(
        h(
          'div',
          { class: 'notice work-there', role: 'status' },
          h('p', { text: t('empty.there', { n: own.queue_open }) }),
          h('button', { type: 'button', text: t('ask.to_queue'), on: { click: advance } }),
        ),
      );
    again();
  }, LOOK_FOR_WORK);
}

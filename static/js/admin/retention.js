// What is kept how long: what is stored, what goes by the limits of now, and removing it.
import { get, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { num, t, when } from '../i18n.js';
import { errorText } from '../plain.js';
import { bytes, caught, confirm, countedNote, every, section, table } from './parts.js';

const KINDS = ['completions', 'prompts', 'feedback_events', 'job_files'];
/** "12 (3.4 kB)". */
const amount = (a) => (a.records ? t('retention.amount', { n: num(a.records), size: bytes(a.bytes) }) : '0');

/** What went, in one sentence. */
const gone = (amounts) =>
  KINDS.filter((k) => amounts[k].records)
    .map((k) => `${t(`retention.${k}`)}: ${amount(amounts[k])}`)
    .join(t('data.list_comma'));

/** Returns a function that draws the panel anew, for when a limit was changed. */
export async function retentionPanel(el, signal) {
  let running = false;
  const draw = async () => {
    const { limits, outlook, progress } = await get('/admin/retention', null, { signal });
    if (!outlook) {
      fill(el, section(t('retention.title'), null, h('p', { class: 'help', text: t('retention.help') }), h('p', { role: 'status', text: t('counted.not_yet') })));
      return true;
    }
    const some = KINDS.some((k) => outlook.goes[k].records);
    const limited = Object.values(limits).some((v) => v > 0);
    const go = h('button', {
      type: 'button',
      class: 'danger',
      text: t('retention.go'),
      disabled: !some || progress.running,
      on: {
        click: caught(async () => {
          if (!(await confirm(t('retention.sure'), t('retention.sure_text', { what: gone(outlook.goes) }), t('retention.go'), true))) return;
          try {
            await post('/admin/retention');
          } catch (e) {
            toast(errorText(e), { kind: 'bad', seconds: 10 });
          }
          running = await draw();
        }),
      },
    });
    const cell = (text) => h('td', { class: 'num', text });
    const kept = [
      outlook.kept_feedback_until ? t('retention.kept_feedback', { at: when(outlook.kept_feedback_until) }) : null,
      outlook.kept_prompts_until ? t('retention.kept_prompts', { at: when(outlook.kept_prompts_until) }) : null,
    ].filter(Boolean);
    const last = progress.running
      ? t('retention.running', { what: gone(progress.removed) || '0' })
      : progress.error
        ? t('retention.failed', { error: progress.error })
        : progress.ended
          ? t('retention.last', { at: when(progress.ended), what: gone(progress.removed) || t('retention.nothing') })
          : null;
    fill(
      el,
      section(
        t('retention.title'),
        go,
        h('p', { class: 'help', text: t('retention.help') }),
        limited ? null : h('p', { class: 'help', text: t('retention.off') }),
        table(
          t('retention.title'),
          [[t('retention.what')], [t('retention.stored'), 'num'], [t('retention.goes'), 'num']],
          KINDS.map((k) =>
            h('tr', null, h('td', { text: t(`retention.${k}`) }), cell(amount(outlook.stored[k])), cell(amount(outlook.goes[k]))),
          ),
        ),
        countedNote(outlook.counted),
        kept.map((text) => h('p', { class: 'help', text })),
        h('p', { class: progress.error ? 'form-error' : 'help', role: 'status', text: last ?? '' }),
        h('p', { class: 'help' }, h('a', { href: '#/audit', text: t('retention.audit') })),
      ),
    );
    return progress.running;
  };
  running = await draw();
  every(2, signal, async () => {
    if (running) running = await draw();
  });
  return async () => (running = await draw());
}

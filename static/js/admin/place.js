// Where a job runs when it is no child process of a server or worker, and its log there.
import { get } from '../api.js';
import { h } from '../dom.js';
import { t } from '../i18n.js';
import { errorText } from '../plain.js';

/** {place, id} of a job's last attempt elsewhere; null on this machine. */
export function placeOf(job) {
  const [, place, id] = /^([^/]+)\/(.+)$/.exec(job.external_ref ?? '') ?? [];
  return place ? { place, id } : null;
}

/** A panel with the log, which is read when it is opened. `show(job)` says which job it is about. */
export function placePart(id, signal) {
  const title = h('h2');
  const name = h('p', { class: 'help', dir: 'auto' });
  const text = h('pre', { class: 'remote-log', tabindex: '0' });
  const again = h('button', { type: 'button', class: 'quiet', text: t('run.place_again'), on: { click: () => read() } });
  const el = h('details', { class: 'panel block', hidden: true }, h('summary', null, title), h('div', { class: 'row' }, name, again), text);
  el.addEventListener('toggle', () => el.open && read());

  async function read() {
    try {
      const answer = await get(`/admin/jobs/${encodeURIComponent(id)}/log`, null, { signal });
      text.textContent = answer.text ?? answer.message ?? '';
      if (!text.textContent.trim()) text.textContent = t('run.place_empty');
    } catch (err) {
      if (!signal.aborted) text.textContent = errorText(err);
    }
  }

  function show(job) {
    const at = placeOf(job);
    el.hidden = !at;
    if (!at) return;
    title.textContent = t('run.place_log', { place: at.place });
    text.setAttribute('aria-label', title.textContent);
    name.textContent = t('run.place_id', { id: at.id });
  }

  return { el, show };
}

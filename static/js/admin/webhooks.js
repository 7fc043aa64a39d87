// Webhooks: addresses that are told of events, and the deliveries to them.
import { del, get, listOf, post } from '../api.js';
import { fill, h, toast } from '../dom.js';
import { num, t, when } from '../i18n.js';
import { errorText } from '../plain.js';
import { caught, confirm, every, section, showSecret, table } from './parts.js';

/** @import { Webhook, WebhookEvent } from '../contract.d.ts' */

/** @type {WebhookEvent[]} */
const EVENTS = ['judgment.created', 'job.succeeded', 'job.failed', 'model.promoted', 'queue.empty', 'gold.drift'];
const STATE_KIND = { pending: '', delivered: 'good', failed: 'bad' };
const SHOWN = 20;

const eventName = (event) => t(`webhooks.event.${event}`);

export async function webhooksPanel(el, signal) {
  const hooks = h('div');
  const deliveries = h('div');

  /** @type {Webhook[]} */
  let all = [];

  const drawHooks = async () => {
    all = listOf(await get('/admin/webhooks', null, { signal }));
    fill(
      hooks,
      table(
        t('webhooks.title'),
        [[t('webhooks.url')], [t('webhooks.events')], [t('webhooks.since')], ['']],
        all.map((w) =>
          h(
            'tr',
            null,
            h('td', { class: 'wrap', dir: 'ltr', text: w.url }),
            h('td', { class: 'wrap', text: w.events.map(eventName).join(t('data.list_comma')) }),
            h('td', { text: when(w.created) }),
            h(
              'td',
              { class: 'actions' },
              h('button', {
                type: 'button',
                text: t('webhooks.test'),
                'aria-label': t('webhooks.test_of', { url: w.url }),
                on: {
                  click: caught(async () => {
                    await post(`/admin/webhooks/${encodeURIComponent(w.id)}/test`);
                    toast(t('webhooks.test_sent'), { kind: 'good' });
                    await drawDeliveries();
                  }),
                },
              }),
              h('button', {
                type: 'button',
                class: 'quiet',
                text: t('webhooks.delete'),
                'aria-label': t('webhooks.delete_of', { url: w.url }),
                on: {
                  click: caught(async () => {
                    if (!(await confirm(t('webhooks.sure'), t('webhooks.sure_text', { url: w.url }), t('webhooks.delete'), true))) return;
                    await del(`/admin/webhooks/${encodeURIComponent(w.id)}`);
                    await draw();
                  }),
                },
              }),
            ),
          ),
        ),
        t('webhooks.none'),
      ),
    );
  };

  // What is shown, so that a button keeps the focus while nothing changes.
  let shown = '';

  const drawDeliveries = async () => {
    const { data } = all.length ? await get('/admin/webhook-deliveries', { limit: SHOWN }, { signal }) : { data: [] };
    const now = JSON.stringify([all.length, data]);
    if (now === shown) return;
    shown = now;
    if (!all.length) return fill(deliveries);
    const urlOf = (id) => all.find((w) => w.id === id)?.url ?? id;
    const answer = (d) => (d.last_code ? String(d.last_code) : (d.last_error ?? '–'));
    fill(
      deliveries,
      h('h3', { text: t('webhooks.deliveries') }),
      table(
        t('webhooks.deliveries'),
        [[t('webhooks.event')], [t('webhooks.url')], [t('webhooks.state')], [t('webhooks.attempts'), 'num'], [t('webhooks.answer')], [t('webhooks.at')], ['']],
        data.map((d) =>
          h(
            'tr',
            { data: { delivery: d.id } },
            h('td', { text: eventName(d.event) }),
            h('td', { class: 'wrap', dir: 'ltr', text: urlOf(d.webhook_id) }),
            h('td', null, h('span', { class: `tag ${STATE_KIND[d.state]}`, text: t(`webhooks.state.${d.state}`) })),
            h('td', { class: 'num', text: num(d.attempts) }),
            h('td', { class: 'wrap', dir: 'auto', text: answer(d) }),
            h('td', {
              text: d.state === 'pending' && d.attempts > 0 ? t('webhooks.next', { at: when(d.next_attempt) }) : when(d.ended ?? d.created),
            }),
            h(
              'td',
              { class: 'actions' },
              d.state === 'pending'
                ? null
                : h('button', {
                    type: 'button',
                    class: 'quiet',
                    text: t('webhooks.resend'),
                    on: {
                      click: caught(async () => {
                        await post(`/admin/webhook-deliveries/${encodeURIComponent(d.id)}/resend`);
                        await drawDeliveries();
                      }),
                    },
                  }),
            ),
          ),
        ),
        t('webhooks.no_deliveries'),
      ),
    );
  };

  const draw = async () => {
    await drawHooks();
    await drawDeliveries();
  };

  const form = () => {
    const url = h('input', { id: 'webhook-url', type: 'url', dir: 'ltr', maxlength: '2048', required: true, autocomplete: 'off', placeholder: 'https://', 'aria-describedby': 'webhook-error' });
    const boxes = EVENTS.map((event) => h('input', { type: 'checkbox', value: event, checked: event.startsWith('job.') }));
    const error = h('p', { class: 'form-error', id: 'webhook-error', role: 'alert' });
    return h(
      'form',
      {
        class: 'stack',
        novalidate: true,
        on: {
          submit: async (e) => {
            e.preventDefault();
            error.textContent = '';
            url.removeAttribute('aria-invalid');
            try {
              const events = boxes.filter((b) => b.checked).map((b) => b.value);
              const made = await post('/admin/webhooks', { url: url.value.trim(), events });
              url.value = '';
              await draw();
              await showSecret(t('webhooks.secret'), made.secret, t('webhooks.secret_once'));
            } catch (e) {
              error.textContent = errorText(e);
              url.setAttribute('aria-invalid', 'true');
              url.focus();
            }
          },
        },
      },
      h('div', { class: 'field' }, h('label', { for: 'webhook-url', text: t('webhooks.new_url') }), url),
      h(
        'fieldset',
        { class: 'choices' },
        h('legend', { text: t('webhooks.events') }),
        boxes.map((b, i) => h('label', { class: 'inline' }, b, h('span', { text: eventName(EVENTS[i]) }))),
      ),
      error,
      h('div', { class: 'row' }, h('button', { type: 'submit', text: t('webhooks.add') })),
    );
  };

  fill(el, section(t('webhooks.title'), null, h('p', { class: 'help', text: t('webhooks.help') }), hooks, form(), deliveries));
  await draw();
  every(3, signal, drawDeliveries);
}

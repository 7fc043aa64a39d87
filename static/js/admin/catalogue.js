// Models that can be pulled by name: what they are and what of them this machine can hold.
import { get, listOf } from '../api.js';
import { fill, h } from '../dom.js';
import { num, t } from '../i18n.js';
import { bytes, section, table } from './parts.js';

/** Whether a use fits into the memory; null where the memory is not known. */
export const fits = (need, memory) => (memory == null ? null : need <= memory);

const size = (need, memory) =>
  h(
    'td',
    { class: 'num' },
    bytes(need),
    fits(need, memory) === false ? h('span', { class: 'tag warn', text: t('catalogue.too_large') }) : null,
  );

const languages = (codes) =>
  codes.map((code) => {
    if (code === 'multilingual') return t('catalogue.multilingual');
    return new Intl.DisplayNames([document.documentElement.lang], { type: 'language' }).of(code) ?? code;
  });

const parameters = (millions) =>
  millions < 1000 ? t('catalogue.millions', { n: num(millions) }) : t('catalogue.billions', { n: num(millions / 1000) });

/** A folded section that asks for the catalogue when it is opened. */
export function catalogueSection(signal) {
  const host = h('div');
  const box = h('details', { class: 'more-fields' }, h('summary', { text: t('catalogue.show') }), host);
  let asked = false;
  box.addEventListener('toggle', async () => {
    if (!box.open || asked) return;
    asked = true;
    const answer = await get('/admin/catalogue', null, { signal });
    const memory = answer.available_memory_bytes;
    const rows = listOf(answer).map((m) =>
      h(
        'tr',
        null,
        h(
          'td',
          null,
          h('span', { class: 'mono', text: m.name }),
          m.pulled ? h('span', { class: 'tag good', text: t('catalogue.pulled') }) : null,
        ),
        h('td', { class: 'num', text: parameters(m.millions) }),
        h('td', { text: m.gated ? t('catalogue.gated', { license: m.license }) : m.license }),
        h('td', { text: languages(m.languages).join(t('catalogue.comma')) }),
        size(m.needs.serve, memory),
        size(m.needs.lora, memory),
        size(m.needs.lora_q4, memory),
        size(m.needs.full, memory),
      ),
    );
    fill(
      host,
      h('p', { class: 'help', text: t('catalogue.how') }),
      h('pre', { class: 'mono', text: 'instructd models pull NAME' }),
      table(
        t('catalogue.title'),
        [
          [t('catalogue.name')],
          [t('catalogue.parameters'), 'num'],
          [t('catalogue.license')],
          [t('catalogue.languages')],
          [t('catalogue.serve'), 'num'],
          [t('catalogue.lora'), 'num'],
          [t('catalogue.lora_q4'), 'num'],
          [t('catalogue.full'), 'num'],
        ],
        rows,
        t('model.none'),
      ),
      h('p', { class: 'help', text: memory == null ? t('catalogue.basis') : t('catalogue.basis_memory', { memory: bytes(memory) }) }),
    );
  });
  return section(t('catalogue.title'), null, box);
}

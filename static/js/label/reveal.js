// The notice after a judgment: that it is stored, and which models wrote the answers where the server says so.
import { h, toast } from '../dom.js';
import { t } from '../i18n.js';
import { letter } from './ballot.js';

/** Shows one notice at a time. */
export class JudgmentNotice {
  #hide = () => {};

  /**
   * @param {any} set the judged set
   * @param {{reveal?: any[], skipped: boolean, onUndo: () => any}} result
   */
  show(set, { reveal = [], skipped, onUndo }) {
    const names = set.completions
      .map((c, i) => [letter(i), reveal.find((r) => r.completion_id === c.id)?.model])
      .filter(([, model]) => model);
    this.#hide();
    this.#hide = toast(names.length ? authors(names) : t(skipped ? 'label.skipped' : 'label.stored'), {
      kind: 'good',
      seconds: names.length ? 8 : 3,
      action: { label: t('label.undo'), run: onUndo },
    });
  }
}

const authors = (names) =>
  h(
    'dl',
    { class: `reveal ${names.length > 3 ? 'many' : ''}` },
    names.map(([x, model]) =>
      h('div', null, h('dt', { text: x }), h('dd', { text: typeof model === 'string' ? model : (model.name ?? '') })),
    ),
  );

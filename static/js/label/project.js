// The project whose sets a person labels: chosen where they label in several, and kept in this browser.
import { get, listOf } from '../api.js';
import { fill, h, keep } from '../dom.js';
import { t } from '../i18n.js';

/** @import { Project } from '../contract.d.ts' */

const CHOSEN = 'instructd.project.';
/** The project that every installation has. */
const FIRST = 'default';

export class ProjectChoice {
  /** Stays empty for a person who labels in one project. */
  el = h('div', { class: 'project-choice' });
  /** @type {string | null} */
  #id = null;

  /** Id of the project, as a parameter of requests; null for the first. */
  get id() {
    return this.#id === FIRST ? null : this.#id;
  }

  /**
   * Reads the person's projects and shows the choice. `wanted` is the id in the page's address, if there is one;
   * `onChange()` is called after another project was chosen.
   * @param {string} labelerId
   * @param {string | null} wanted
   * @param {() => void} onChange
   */
  async load(labelerId, wanted, onChange) {
    /** @type {Project[]} */
    const own = listOf(await get('/v1/projects'));
    const key = CHOSEN + labelerId;
    const has = (id) => own.some((p) => p.id === id);
    this.#id = [wanted, keep.get(key)].find(has) ?? own[0]?.id ?? null;
    if (has(wanted)) keep.set(key, wanted);
    if (own.length < 2) return fill(this.el);
    const select = h(
      'select',
      { 'aria-label': t('projects.one'), title: t('projects.one'), dir: 'auto' },
      own.map((p) => h('option', { value: p.id, text: p.name, selected: p.id === this.#id })),
    );
    select.addEventListener('change', () => {
      keep.set(key, select.value);
      onChange();
    });
    // a click elsewhere closes the menu of a phone, in which the choice is
    this.el.onclick = (e) => e.stopPropagation();
    fill(this.el, select);
  }
}

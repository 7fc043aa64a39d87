// One set on the screen: prompt, answers, controls. Tells the controller through `act(name, value)`.
import { markDifferences } from './diff.js';
import { correctionField, trackedText } from './correct.js';
import { STRENGTHS, canSubmit, isRanked, letter, verdict } from './ballot.js';
import { Dimensions } from './dimensions.js';
import { ratingAndFlags, refreshRatingAndFlags } from './extras.js';
import { keyName, keymap } from './keymap.js';
import { foldable, isLong } from './long.js';
import { marksSummary } from './marks.js';
import { fill, h, plainText, turnItem, userText } from '../dom.js';
import { t } from '../i18n.js';
import { richText } from '../richtext.js';

const key = (text) => h('kbd', { 'aria-hidden': 'true', text });

const SIGNS = { barely: '≥', slightly: '>', clearly: '≫', significantly: '⋙' };

export class Work {
  /**
   * `options`: `{diff, plain, more}` view switches that outlive a set.
   * @param {any} set a leased set, or a judgment that was opened again
   * @param {any} ballot
   * @param {any} options
   * @param {(name: string, value?: any) => any} act
   */
  constructor(set, ballot, options, act) {
    this.set = set;
    this.ballot = ballot;
    this.options = options;
    this.act = act;
    this.cursor = 0;
    this.k = set.completions.length;
    this.pair = this.k === 2;
    this.armed = null;
    /** Places of the long answers that are unfolded. */
    this.unfolded = new Set();
    /** Place of the answer that is being corrected, or null. @type {number | null} */
    this.correcting = null;
    /** Keys on buttons by action. @type {Map<any, HTMLElement>} */
    this.hints = new Map();
    // revising: the places that this person gave before
    this.former =
      set.judgment?.outcome === 'ranked' ? new Map(set.judgment.items.map((i) => [i.completion_id, i.tier])) : undefined;
    /** Controls of the set's rubric, or null. */
    this.dimensions = set.rubric
      ? new Dimensions(set, ballot, {
          letters: set.completions.map((_, i) => letter(i)),
          change: (change) => act('value', change),
        })
      : null;
    this.prompt = this.#prompt();
    this.cards = set.completions.map((c, i) => this.#card(c, i));
    this.answers = h(
      'section',
      { class: `answers k${Math.min(this.k, 5)} ${this.k > 4 ? 'many' : ''}`, 'aria-label': t('label.answers') },
      this.cards.map((c) => c.el),
    );
    this.more = h('section', { class: 'more-panel', 'aria-label': t('more') });
    this.bar = h('div', { class: `bar ${this.pair ? 'pair' : 'many'}`, role: 'group', 'aria-label': t('label.controls') });
    this.el = h(
      'div',
      { class: `work ${this.dimensions ? 'rated' : ''}` },
      ballot.revises
        ? h(
            'div',
            { class: 'revising' },
            h('span', { text: t('label.revising') }),
            (set.revealed ?? []).length
              ? h('strong', { text: t(set.revealed.includes('answer') ? 'label.revising_answer' : 'label.revising_authors') })
              : null,
            h('button', {
              class: 'link',
              type: 'button',
              text: t('label.revising_stop'),
              on: { click: () => act('stop_revising') },
            }),
          )
        : null,
      this.#practice(),
      this.prompt,
      this.answers,
      this.more,
      this.bar,
    );
    this.#more();
    this.#bar();
    this.showKeys();
    this.renderTexts();
    // answer headers stick right below the prompt, and the page ends above the controls, however tall they are
    const measure = new ResizeObserver(() => {
      if (!this.el.isConnected) return;
      const root = document.documentElement.style;
      root.setProperty('--prompt', getComputedStyle(this.prompt).position === 'sticky' ? `${this.prompt.offsetHeight}px` : '0px');
      root.setProperty('--bar', `${this.bar.offsetHeight}px`);
    });
    measure.observe(this.prompt);
    measure.observe(this.bar);
  }

  /** Practice comes first for the new, and now and then for all: said before the vote. */
  #practice() {
    const { onboarding, kind } = this.set;
    if (kind !== 'calibration') return null;
    return h(
      'div',
      { class: 'practice' },
      h('strong', {
        text: onboarding
          ? t('practice.of', { n: this.set.practice_number ?? onboarding.done + 1, needed: onboarding.needed })
          : t('practice.title'),
      }),
      h('span', { text: t('practice.text') }),
    );
  }

  /** The vote is on its way and its verdict is awaited; `goOn` when it does not come in time. */
  wait(goOn) {
    this.over = true;
    this.next = goOn;
    this.say(t('practice.checking'));
    this.timer = setTimeout(goOn, 4000);
  }

  /** Shows what was expected beside what was given; `goOn` brings the next set. */
  showVerdict({ met, expected, explanation }, goOn) {
    clearTimeout(this.timer);
    this.over = true;
    this.next = goOn;
    const places = [...new Set(expected.map((e) => e.tier))].sort((a, b) => a - b);
    this.cards.forEach((card) => {
      const e = expected.find((x) => x.completion_id === card.completion.id);
      if (!e) return;
      const n = places.indexOf(e.tier) + 1;
      card.el.append(
        h('p', {
          class: `expected ${n === 1 ? 'first' : ''}`,
          text: n === 1 ? t('practice.expected_best') : t('practice.expected', { n }),
        }),
      );
    });
    const kind = met === null ? 'none' : met >= 0.999 ? 'met' : met > 0.5 ? 'partly' : 'missed';
    const button = h('button', { type: 'button', class: 'primary submit', on: { click: goOn } }, t('practice.next'), key('⏎'));
    fill(
      this.bar,
      h(
        'div',
        { class: `verdict ${kind}`, role: 'status', 'aria-live': 'polite' },
        h(
          'div',
          { class: 'verdict-text' },
          h('strong', { text: t(`practice.${kind}`) }),
          explanation ? richText(explanation) : null,
        ),
        button,
      ),
    );
    this.el.scrollIntoView({ block: 'start' });
  }

  #prompt() {
    const messages = this.set.prompt.messages;
    const body = h(
      'ol',
      { class: 'turns', tabindex: '0', 'aria-label': t('label.conversation') },
      messages.map(turnItem),
    );
    // the last turn is what is being answered: show it first when the conversation is long
    requestAnimationFrame(() => (body.scrollTop = body.scrollHeight));
    const fold = h('button', { class: 'quiet fold', type: 'button', 'aria-expanded': 'true', text: t('label.fold') });
    const el = h(
      'section',
      { class: 'prompt', 'aria-label': t('label.prompt') },
      h(
        'header',
        null,
        h('h1', { text: t('label.prompt') }),
        h('span', { class: 'muted', text: t('label.turns', { n: messages.length }) }),
        fold,
      ),
      body,
    );
    fold.addEventListener('click', () => {
      const folded = el.classList.toggle('folded');
      fold.setAttribute('aria-expanded', String(!folded));
      fold.textContent = folded ? t('label.unfold') : t('label.fold');
    });
    return el;
  }

  #card(c, i) {
    const name = t('label.answer', { x: letter(i) });
    const head = h('h2', { id: `answer-${i}`, text: name });
    const badge = h('span', { class: 'badge' });
    const former = this.former?.get(c.id);
    const body = h('div', { class: 'answer-body' });
    const tierButtons = this.pair
      ? []
      : Array.from({ length: this.k }, (_, n) =>
          h('button', {
            type: 'button',
            class: 'tier',
            'aria-label': t('label.place_answer', { x: letter(i), n: n + 1 }),
            text: n + 1,
            on: { click: () => this.act('tier', { id: c.id, tier: n + 1, index: i }) },
          }),
        );
    const extra = h('div', { class: 'answer-extra' });
    const marks = h('div', { class: 'marks' });
    const el = h(
      'article',
      { class: 'answer', 'aria-labelledby': `answer-${i}` },
      h(
        'header',
        null,
        head,
        badge,
        former === undefined ? null : h('span', { class: 'tag former', text: t('label.former', { n: former + 1 }) }),
        this.pair
          ? null
          : h('div', { class: 'tiers', role: 'group', 'aria-label': t('label.place', { x: letter(i) }) }, tierButtons),
      ),
      this.dimensions ? null : extra,
      body,
      c.cut_off
        ? h('p', { class: 'cut-off', text: c.cut_off_at ? t('label.cut_off_at', { n: c.cut_off_at }) : t('label.cut_off') })
        : null,
      marks,
      h(
        'div',
        { class: 'answer-tools' },
        h('button', {
          type: 'button',
          class: 'quiet mark-button',
          'aria-label': t('marks.title', { x: letter(i) }),
          text: t('marks.open'),
          on: { click: () => this.act('mark', i) },
        }),
        h('button', {
          type: 'button',
          class: 'quiet correct-button',
          'aria-label': t('correct.title', { x: letter(i) }),
          text: t('correct.open'),
          on: { click: () => this.act('correct', i) },
        }),
      ),
      // an answer is read before it is rated
      this.dimensions ? extra : null,
    );
    el.addEventListener('pointerdown', () => this.moveTo(i, false));
    if (this.pair)
      body.addEventListener('click', (e) => {
        // a click chooses; marking text, links and scrolling inside the answer do not
        if (this.over || e.target.closest('a,button,summary,textarea') || !window.getSelection().isCollapsed) return;
        this.act('choose', 'ab'[i]);
      });
    return { el, badge, body, extra, marks, tierButtons, completion: c };
  }

  /** Answer texts, as the view switches ask for. */
  renderTexts() {
    const base = this.pair ? 0 : this.cursor;
    const rendered = this.cards.map((card) => (this.options.plain ? plainText(card.completion.text) : userText(card.completion)));
    const texts = rendered.map((el) => el.textContent);
    this.cards.forEach((card, i) => {
      if (i === this.correcting) return;
      const other = this.pair ? 1 - i : base;
      const alike = !this.options.diff || other === i || markDifferences(rendered[i], texts[other]);
      fill(
        card.body,
        alike ? null : h('p', { class: 'help', text: t('label.too_unlike', { x: letter(other) }) }),
        this.#folded(i, rendered[i]),
      );
    });
  }

  /** A long answer, folded until the labeler unfolds it. The view of differences shows all of them. */
  #folded(i, rendered) {
    if (this.options.diff) return rendered;
    return foldable(rendered, {
      x: letter(i),
      text: this.cards[i].completion.text,
      isOpen: this.unfolded.has(i),
      change: (isOpen) => (isOpen ? this.unfolded.add(i) : this.unfolded.delete(i)),
    });
  }

  /** Unfolds all long answers, or folds them when all are unfolded. */
  turnLong() {
    const long = this.cards.flatMap((card, i) => (isLong(card.completion.text) ? [i] : []));
    if (long.length === 0) return this.say(t('long.none'));
    const open = !long.every((i) => this.unfolded.has(i));
    this.unfolded = new Set(open ? long : []);
    this.renderTexts();
  }

  /** Opens the answer at a place to be corrected there; `then` runs when the labeler is done. */
  correct(i, then) {
    const { completion, body } = this.cards[i];
    const done = () => {
      this.correcting = null;
      this.renderTexts();
      then();
    };
    this.correcting = i;
    this.moveTo(i);
    this.renderTexts(); // another answer may have been open
    const field = correctionField(completion, {
      x: letter(i),
      former: this.ballot.corrections[completion.id],
      change: (text) => this.act('corrected', { id: completion.id, text }),
      done,
    });
    fill(body, field);
    // a click on a button gives the focus back to the page first
    requestAnimationFrame(() => field.querySelector('textarea')?.focus());
  }

  /** What the labeler noted below an answer. */
  #notes({ completion }) {
    const corrected = this.ballot.corrections[completion.id];
    return [
      marksSummary(completion, this.ballot),
      corrected === undefined
        ? null
        : h('section', { class: 'corrected' }, h('h3', { text: t('correct.yours') }), trackedText(completion.text, corrected)),
    ];
  }

  #more() {
    const b = this.ballot;
    const rationale = this.set.rubric?.definition.rationale ?? 'optional';
    this.cards.forEach((card, i) =>
      fill(card.extra, this.dimensions ? this.dimensions.panels[i].el : ratingAndFlags(b, card.completion.id, letter(i), this.act)),
    );
    const area = (name, rows, required = false) => {
      const el = h('textarea', { id: `more-${name}`, rows, dir: 'auto', value: b[name], required });
      el.addEventListener('input', () => this.act('write', { name, value: el.value }));
      return h(
        'div',
        { class: `field ${name}` },
        h('label', { for: el.id, text: t(required ? `more.${name}_required` : `more.${name}`) }),
        el,
        h('p', { class: 'help', text: t(`more.${name}_help`) }),
      );
    };
    this.more.classList.toggle('wanted', rationale === 'required');
    fill(this.more, rationale === 'off' ? null : area('rationale', 2, rationale === 'required'), area('ideal', 4));
  }

  /** The person's key for an action, on its button. */
  #hint(name) {
    const el = key('');
    this.hints.set(name, el);
    return el;
  }

  /** Brings the keys on the buttons in line with the person's own. */
  showKeys() {
    for (const [name, el] of this.hints) el.textContent = keyName(keymap.of(name));
    this.refresh();
  }

  #bar() {
    const act = this.act;
    const button = (name, text, k, handler, cls = '') =>
      h(
        'button',
        { type: 'button', class: cls, data: { act: name }, on: { click: handler } },
        h('span', { text }),
        k ? key(k) : this.#hint(name),
      );
    this.submit = button(
      'submit',
      this.ballot.revises ? t('label.submit_revision') : t('label.submit'),
      '⏎',
      () => act('submit'),
      'primary submit',
    );
    this.allBad = button('all_bad', t(this.pair ? 'label.both_bad' : 'label.all_bad'), null, () => act('outcome', 'all_bad'));
    this.unrankable = button('unrankable', t('label.unrankable'), null, () => act('outcome', 'unrankable'));
    this.moreButton = button('more', t('more'), null, () => act('more'), 'quiet');
    this.diffButton = button('diff', t('label.diff'), null, () => act('diff'), 'quiet');
    this.plainButton = button('plain', t('label.plain'), null, () => act('plain'), 'quiet');
    this.hint = h('p', { class: 'bar-hint', role: 'status', 'aria-live': 'polite' });
    this.alert = h('p', { class: 'bar-alert', role: 'alert' });
    const tools = h('button', {
      type: 'button',
      class: 'bar-tools',
      'aria-expanded': 'false',
      'aria-label': t('label.tools'),
      text: '⋯',
    });
    tools.addEventListener('click', () => tools.setAttribute('aria-expanded', String(this.bar.classList.toggle('tools-open'))));
    const side = [
      h('div', { class: 'bar-group views' }, this.diffButton, this.plainButton, this.moreButton),
      h(
        'div',
        { class: 'bar-group ways' },
        button('skip', t('label.skip'), null, () => act('skip'), 'quiet'),
        button('undo', t('label.undo'), null, () => act('undo'), 'quiet'),
      ),
    ];
    if (this.pair) {
      this.choice = {
        a: button('a', t('label.a_better'), '1', () => act('pair', 'a'), 'choice-a'),
        tie: button('tie', t('label.tie'), null, () => act('pair', 'tie'), 'choice-tie'),
        b: button('b', t('label.b_better'), '2', () => act('pair', 'b'), 'choice-b'),
      };
      // one scale from "A much better" over the tie to "B much better"
      const step = (value, strength) => {
        const sign = value === 'tie' ? '=' : SIGNS[strength];
        const name =
          value === 'tie' ? t('label.tie') : t('label.scale_step', { x: value.toUpperCase(), how: t(`strength.${strength}`) });
        const el = h('button', {
          type: 'button',
          class: 'step',
          'aria-pressed': 'false',
          'aria-label': name,
          title: name,
          text: value === 'a' ? `A${sign}` : value === 'b' ? `${sign}B` : sign,
          on: { click: () => act('scale', { value, strength }) },
        });
        return { el, value, strength };
      };
      this.steps = [
        ...[...STRENGTHS].reverse().map((s) => step('a', s)),
        step('tie', null),
        ...STRENGTHS.map((s) => step('b', s)),
      ];
      fill(
        this.bar,
        this.alert,
        h(
          'div',
          { class: 'choice', role: 'group', 'aria-label': t('label.verdict') },
          this.choice.a,
          this.choice.tie,
          this.choice.b,
        ),
        h(
          'div',
          { class: 'bar-row main' },
          h('div', { class: 'segmented scale', role: 'group', 'aria-label': t('strength') }, this.steps.map((s) => s.el)),
          h('div', { class: 'bar-group outs' }, this.allBad, this.unrankable, tools),
          this.submit,
        ),
        h('div', { class: 'bar-row minor' }, this.hint, side),
      );
    } else {
      this.strip = h('div', { class: 'strip', role: 'group', 'aria-label': t('label.order') });
      fill(
        this.bar,
        this.alert,
        h(
          'div',
          { class: 'bar-row main' },
          this.strip,
          h('div', { class: 'bar-group outs' }, this.allBad, this.unrankable, tools),
          this.submit,
        ),
        h('div', { class: 'bar-row minor' }, this.hint, side),
      );
    }
  }

  /** The ranking as lanes of letters; letters can be dragged between lanes. */
  #strip() {
    const lane = (tier, title) => {
      const inside = this.cards
        .map((c, i) => ({ i, id: c.completion.id }))
        .filter((x) => (this.ballot.tiers[x.id] ?? 0) === tier);
      const el = h(
        'div',
        { class: `lane ${tier === 0 ? 'unranked' : ''}` },
        h('span', { class: 'lane-name', text: title }),
        inside.map(({ i, id }) => {
          const chip = h('button', {
            type: 'button',
            draggable: 'true',
            class: `letter ${i === this.cursor ? 'here' : ''}`,
            'aria-label': t('label.go_to', { x: letter(i) }),
            text: letter(i),
            on: { click: () => this.moveTo(i) },
          });
          chip.addEventListener('dragstart', (e) => e.dataTransfer.setData('text/x-answer', id));
          return chip;
        }),
      );
      el.addEventListener('dragover', (e) => {
        e.preventDefault();
        el.classList.add('over');
      });
      el.addEventListener('dragleave', () => el.classList.remove('over'));
      el.addEventListener('drop', (e) => {
        e.preventDefault();
        const id = e.dataTransfer.getData('text/x-answer');
        if (this.cards.some((c) => c.completion.id === id)) this.act('tier', { id, tier });
      });
      return el;
    };
    fill(
      this.strip,
      Array.from({ length: this.k }, (_, n) => lane(n + 1, String(n + 1))),
      lane(0, t('label.unranked')),
    );
  }

  /** Moves the cursor of a K-wise set. */
  moveTo(i, scroll = true) {
    this.cursor = (i + this.k) % this.k;
    this.refresh();
    if (this.options.diff && !this.pair) this.renderTexts();
    if (scroll) this.#bringIntoView(this.cards[this.cursor].el);
  }

  /** Scrolls only when the answer's beginning is hidden under the prompt or below the controls. */
  #bringIntoView(el) {
    const top = Math.max(0, this.prompt.getBoundingClientRect().bottom);
    const box = el.getBoundingClientRect();
    if (box.bottom < top + 80 || box.top > this.bar.getBoundingClientRect().top - 80) window.scrollBy(0, box.top - top - 14);
  }

  nextUnranked() {
    for (let step = 1; step <= this.k; step++) {
      const i = (this.cursor + step) % this.k;
      if (!this.ballot.tiers[this.set.completions[i].id]) return i;
    }
    return null;
  }

  /** Brings every control in line with the ballot. */
  refresh() {
    const { ballot: b, set } = this;
    const press = (el, on) => el.setAttribute('aria-pressed', String(on));
    const ranked = b.outcome === 'ranked';
    press(this.allBad, b.outcome === 'all_bad');
    press(this.unrankable, b.outcome === 'unrankable');
    press(this.diffButton, this.options.diff);
    press(this.plainButton, this.options.plain);
    this.moreButton.setAttribute('aria-expanded', String(this.options.more));
    this.el.classList.toggle('show-more', this.options.more);
    this.el.classList.toggle('set-aside', !ranked);
    this.dimensions?.refresh();
    for (const card of this.cards) fill(card.marks, this.#notes(card));
    const ready = canSubmit(b, set);
    this.submit.setAttribute('aria-disabled', String(!ready));
    if (this.pair) {
      const v = ranked ? verdict(b, set) : null;
      for (const [name, el] of Object.entries(this.choice)) press(el, name === v);
      this.cards.forEach((card, i) => {
        const won = v === 'ab'[i];
        card.el.classList.toggle('won', won);
        card.el.classList.toggle('tied', v === 'tie');
        card.badge.textContent = won
          ? t('label.better') + (b.strength ? ` · ${t(`strength.${b.strength}`)}` : '')
          : v === 'tie'
            ? t('label.tie')
            : '';
      });
      this.steps.forEach((s) => press(s.el, v === s.value && (v === 'tie' || b.strength === s.strength)));
      const marked = this.options.more || this.dimensions !== null;
      this.cards.forEach((card, i) => card.el.classList.toggle('at-hand', marked && i === this.cursor));
    } else {
      this.cards.forEach((card, i) => {
        const tier = ranked ? b.tiers[card.completion.id] : undefined;
        card.el.classList.toggle('here', i === this.cursor);
        card.el.classList.toggle('won', tier === 1);
        card.badge.textContent = tier ? t('label.tier', { n: tier }) : '';
        card.tierButtons.forEach((el, n) => press(el, tier === n + 1));
      });
      this.#strip();
    }
    if (!this.dimensions) for (const card of this.cards) refreshRatingAndFlags(card.extra, b, card.completion.id);
    if (ready) {
      this.alert.textContent = '';
      this.bar.classList.remove('missing');
    }
    const left = set.completions.filter((c) => !b.tiers[c.id]).length;
    this.say(
      b.outcome !== 'ranked'
        ? t(`label.hint_${b.outcome}`)
        : ready
          ? t('label.hint_ready')
          : isRanked(b, set)
            ? this.#missingRatings()
            : this.pair
              ? t('label.hint_pair')
              : t('label.hint_left', { n: left }),
    );
  }

  /** What the rubric still asks for, once everything is ranked. */
  #missingRatings() {
    const { missing } = this.dimensions;
    return missing ? t('rubric.hint_missing', { n: missing, key: keyName(keymap.of('rate')) }) : t('rubric.hint_rationale');
  }

  /** A key while the rubric waits for one; false when it means nothing there. */
  rateByKey(k) {
    const answer = this.cursor;
    const found = this.dimensions.key(k);
    if (!found) {
      this.refresh();
      return false;
    }
    if (found.say) this.say(found.say);
    else this.refresh();
    // the next answer that lacks a rating comes to hand
    const next = found.done ? this.dimensions.nextLacking(answer) : null;
    if (next !== null) {
      this.moveTo(next);
      this.arm('rate');
    }
    return true;
  }

  /** The next digit rates (`rate`) or flags (`flag`) the answer at hand; null ends it. */
  arm(kind) {
    if (this.dimensions) {
      const prompt = kind ? this.dimensions.arm(kind, this.cursor) : '';
      if (!kind) this.dimensions.disarm();
      if (prompt) this.say(prompt);
      else this.refresh();
      return;
    }
    this.armed = kind;
    this.el.classList.toggle('arming', kind !== null);
    if (kind) this.say(t(`label.arm_${kind}`, { x: letter(this.cursor) }));
    else this.refresh();
  }

  /** Enter came too early: says what is missing where it is seen and heard, and shows where. */
  missing() {
    const open = this.set.completions.map((c, i) => (this.ballot.tiers[c.id] ? null : letter(i))).filter(Boolean);
    this.alert.textContent = '';
    requestAnimationFrame(() => {
      this.alert.textContent =
        open.length === 0
          ? this.#whatLacks()
          : this.pair
            ? t('label.choose_first', { tie: keyName(keymap.of('tie')) })
            : t('label.places_missing', { which: open.join(', ') });
    });
    if (open.length === 0) this.dimensions?.showMissing()?.scrollIntoView({ block: 'center' });
    this.bar.classList.remove('missing');
    void this.bar.offsetWidth; // starts the animation anew
    this.bar.classList.add('missing');
  }

  #whatLacks() {
    const which = this.dimensions.missingText();
    return which ? t('rubric.missing', { which }) : t('rubric.rationale_missing');
  }

  say(text) {
    if (this.hint.textContent !== text) this.hint.textContent = text;
  }
}

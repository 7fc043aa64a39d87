// The pages' own modules, run in the browser that will run them.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { openPage, startBrowser, startServer, visit } from './support.mjs';

let server;
let browser;
let opened;
before(async () => {
  server = await startServer();
  browser = await startBrowser();
  opened = await openPage(browser, server.url);
  await visit(opened.page, server.url, '/', '.doors');
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

test('ballots: tiers are dense, a pair grows stronger, an untouched one cannot be sent', async () => {
  const result = await opened.page.evaluate(async () => {
    const m = await import('/static/js/label/ballot.js');
    const set = { completions: [{ id: 'a' }, { id: 'b' }, { id: 'c' }], lease_token: 'l' };
    const b = m.emptyBallot();
    const before = m.canSubmit(b, set);
    b.tiers = { a: 3, b: 1, c: 3 };
    const sent = m.submission(b, set, { activeMs: 1.4, wallMs: 9.6 });
    const pair = { completions: [{ id: 'x' }, { id: 'y' }] };
    const p = m.emptyBallot();
    const steps = ['b', 'b', 'b', 'a', 'tie'].map((v) => (m.judgePair(p, pair, v), [m.verdict(p, pair), p.strength]));
    return {
      before,
      items: sent.items,
      times: [sent.active_ms, sent.wall_ms],
      steps,
      keys: [b.key !== p.key, b.key.length > 10],
    };
  });
  assert.equal(result.before, false);
  assert.deepEqual(result.items, [
    { completion_id: 'a', tier: 1 },
    { completion_id: 'b', tier: 0 },
    { completion_id: 'c', tier: 1 },
  ]);
  assert.deepEqual(result.times, [1, 10]);
  assert.deepEqual(result.steps, [
    ['b', null],
    ['b', 'barely'],
    ['b', 'slightly'],
    ['a', null],
    ['tie', null],
  ]);
  assert.deepEqual(result.keys, [true, true]);
});

test('label state: sets are put aside and resumed, judgments are counted once, unsent figures are kept', async () => {
  const result = await opened.page.evaluate(async () => {
    const { LabelState } = await import('/static/js/label/state.js');
    const state = new LabelState();
    const outbox = { waiting: 0, entries: [{ context: { set: { set_id: 'unsent' } } }] };
    state.signIn(/** @type {any} */ (outbox));
    const work = (id, revises = null, kind = 'pair') =>
      /** @type {any} */ ({ set: { set_id: id, assignment_id: `a-${id}`, kind }, ballot: { revises } });
    state.receive({ me: { done_today: 2, done_total: 9 }, queue: { open: 5 } });
    state.open(work('one'));
    const current = state.current.set_id;
    state.pause();
    state.open(work('older', 'judgment'));
    state.pause(); // an open older judgment is not put aside
    const except = state.exceptIds(['tab', 'one']);
    state.countJudgment('ranked'); // a revision
    const revised = { ...state.figures };
    state.close();
    const resumed = state.resume().set.set_id;
    const left = state.hasPaused;
    state.open(work('one'));
    state.countJudgment('ranked');
    const judged = { ...state.figures };
    const forgotten = state.current;
    state.open(work('two'));
    state.countJudgment('skip');
    state.open(work('practice', null, 'calibration'));
    state.countJudgment('ranked');
    const after = { ...state.figures };
    outbox.waiting = 1; // the server does not count the unsent judgment yet
    state.updateFigures({ open: 50 });
    const open = state.figures.open;
    outbox.waiting = 0;
    state.receive(null, 'quota');
    const reason = state.noSetReason;
    state.prefetch(async () => ({ set_id: 'next', assignment_id: 'a-next' }));
    const held = (await state.heldSets()).map((set) => set.set_id);
    const prefetched = (await state.takePrefetched()).set_id;
    const none = await state.takePrefetched();
    state.prefetch(async () => Promise.reject(new Error('offline')));
    const failed = await state.takePrefetched().catch((e) => e.message);
    return { current, except, revised, resumed, left, judged, forgotten, after, open, reason, held, prefetched, none, failed };
  });
  assert.deepEqual(result, {
    current: 'one',
    except: ['older', 'one', 'unsent', 'tab'],
    revised: { done_today: 2, done_total: 9, open: 5 },
    resumed: 'one',
    left: false,
    judged: { done_today: 3, done_total: 10, skipped_today: 0, open: 4 },
    forgotten: null,
    after: { done_today: 4, done_total: 11, skipped_today: 1, open: 3 },
    open: 3,
    reason: 'quota',
    held: ['practice', 'next'],
    prefetched: 'next',
    none: null,
    failed: 'offline',
  });
});

test('sweep: figures with and without a deviation, one scale for all rows', async () => {
  const result = await opened.page.evaluate(async () => {
    const m = await import('/static/js/admin/sweep.js');
    const wide = m.scaleOf([{ mean: 0.5, sd: 0.1 }, { mean: 0.9, sd: null }]);
    const equal = m.scaleOf([{ mean: 2, sd: null }, { mean: 2, sd: 0 }]);
    return {
      texts: [m.spread('heldout_accuracy', { mean: 0.71, sd: 0.02 }), m.spread('heldout_accuracy', { mean: 0.71, sd: null }), m.spread('kl', undefined)],
      wide: wide.min < 0.4 && wide.max > 0.9,
      equal: equal.min < 2 && equal.max > 2,
      none: [m.sweepPart({ result: { metrics: {} } }), m.sweepPart({ result: null })],
    };
  });
  assert.match(result.texts[0], /^71.*% ± 2.*%$/);
  assert.match(result.texts[1], /^71.*%$/);
  assert.equal(result.texts[2], '–');
  assert.deepEqual([result.wide, result.equal, result.none], [true, true, [null, null]]);
});

test('word diff marks what the other text does not have, also in Chinese', async () => {
  const marks = (text, base) =>
    opened.page.evaluate(
      async ([text, base]) => {
        const { diffText } = await import('/static/js/label/diff.js');
        const el = diffText(text, base);
        return [el.textContent, [...el.querySelectorAll('mark')].map((m) => m.textContent)];
      },
      [text, base],
    );
  assert.deepEqual(await marks('the quick red fox', 'the slow red fox'), ['the quick red fox', ['quick']]);
  assert.deepEqual(await marks('same', 'same'), ['same', []]);
  const [text, words] = await marks('我喜欢苹果', '我喜欢香蕉');
  assert.equal(text, '我喜欢苹果');
  assert.deepEqual(words, ['苹果']);
});

test('curves: smoothing starts without bias, CSV has one row a step, every quantity once, four are pinned', async () => {
  const result = await opened.page.evaluate(async () => {
    const m = await import('/static/js/admin/curves.js');
    const names = await import('/static/js/admin/metrics.js');
    const line = (v) => ({ steps: [1], values: [v] });
    const doubled = { lr: line(1), learning_rate: line(1), accuracy: line(0.6), 'objective/kl': line(2), kl: line(2), eval_loss: line(3) };
    const points = [
      { step: 2, name: 'kl', value: 0.5 },
      { step: 1, name: 'reward', value: 1 },
      { step: 2, name: 'reward', value: 2 },
      { step: 2, name: 'reward', value: 3 },
    ];
    return {
      flat: m.smooth([4, 4, 4], 0.9),
      csv: m.toCsv(points),
      line: m.byName(points).get('reward'),
      once: [...names.withoutDoubles(new Map(Object.entries(doubled)), 'reward').keys()].sort(),
      pins: [
        names.pinsOf('ppo', ['entropy', 'kl_coef', 'approx_kl', 'reward_std', 'reward', 'kl', 'response_length']),
        names.pinsOf('reward', ['grad_norm', 'loss', 'train_accuracy', 'heldout_accuracy']),
      ],
      shown: [names.show('memory_bytes', 3.47e9), names.show('seconds_reward', 0.5), names.show('kl', 2.5), names.show('heldout_accuracy', 0.125)],
      limits: [m.limits('kl', 0, 0), m.limits('kl', 2, 2), m.limits('reward', -1, -1), m.limits('loss', 1, 3), m.limits('ratio', 1, 1 + 2 ** -52)],
      wilson: names.wilson(0.5333333333333333, 30),
    };
  });
  for (const v of result.flat) assert.ok(Math.abs(v - 4) < 1e-9);
  assert.equal(result.csv, 'step,kl,reward\n1,,1\n2,0.5,3\n');
  assert.deepEqual(result.line, { steps: [1, 2], values: [1, 3] });
  assert.deepEqual(result.once, ['heldout_loss', 'kl', 'learning_rate', 'train_accuracy']);
  assert.deepEqual(result.pins, [
    ['reward', 'kl', 'response_length', 'entropy'],
    ['heldout_accuracy', 'loss', 'train_accuracy'],
  ]);
  assert.deepEqual(result.shown, ['3.47 GB', '0.5 s', '2.5 nats', '13\u00a0%']);
  // a flat line is no range of 0 … 100, and what is never negative begins at 0
  assert.deepEqual(result.limits[0], [0, 0.1]);
  assert.ok(result.limits[1][0] > 1.7 && result.limits[1][1] < 2.3);
  assert.ok(result.limits[2][0] < -1 && result.limits[2][1] > -1);
  assert.ok(result.limits[4][1] - result.limits[4][0] > 0.1, 'rounding is no range');
  assert.ok(result.limits[3][0] > 0 && result.limits[3][1] > 3);
  assert.ok(Math.abs(result.wilson[0] - 0.3614) < 1e-3 && Math.abs(result.wilson[1] - 0.6977) < 1e-3);
});

test('schema forms: only what differs from the default is sent, nested and nullable included', async () => {
  const schema = {
    $defs: {
      Lora: { type: 'object', properties: { rank: { type: 'integer', default: 16 }, alpha: { type: 'number', default: 32 } } },
      Decay: {
        oneOf: [
          { const: 'constant', description: 'Stays.' },
          { enum: ['linear', 'cosine'], type: 'string' },
        ],
      },
    },
    properties: {
      learning_rate: { type: 'number', default: 1e-5 },
      max_steps: { type: ['integer', 'null'], default: null, minimum: 1 },
      lora: { anyOf: [{ $ref: '#/$defs/Lora' }, { type: 'null' }], default: null },
      lr_schedule: { $ref: '#/$defs/Decay', default: 'constant' },
      normalize: { type: 'boolean', default: true },
      reward: { default: null, oneOf: [{ type: 'object' }] },
    },
    required: [],
  };
  const result = await opened.page.evaluate(async (schema) => {
    const { schemaForm } = await import('/static/js/admin/form.js');
    const form = schemaForm(schema, { first: ['learning_rate'] });
    document.querySelector('main').append(form.el);
    const get = (name) => form.el.querySelector(`#arg-${name}`);
    const untouched = form.read();
    get('learning_rate').value = '3e-4';
    get('max_steps').value = '20';
    get('lora').click();
    get('lora-rank').value = '8';
    get('lr_schedule').value = '"cosine"';
    get('normalize').checked = false;
    get('reward').value = '{"kind": "contains", "texts": ["x"]}';
    const changed = form.read();
    get('max_steps').value = '0';
    let refused = null;
    try {
      form.read();
    } catch (e) {
      refused = e.field;
    }
    const placed = [form.showError('args.lora.rank', 'too high'), form.showError('nothing', 'x')];
    const shown = form.el.querySelector('#arg-lora-rank-error').textContent;
    form.el.remove();
    return { untouched, changed, refused, placed, shown };
  }, schema);
  assert.deepEqual(result.untouched, {});
  assert.deepEqual(result.changed, {
    learning_rate: 3e-4,
    max_steps: 20,
    lora: { rank: 8 },
    lr_schedule: 'cosine',
    normalize: false,
    reward: { kind: 'contains', texts: ['x'] },
  });
  assert.equal(result.refused, 'max_steps');
  assert.deepEqual(result.placed, [true, false]);
  assert.equal(result.shown, 'too high');
});

test('lineage: children under parents, lost parents and rings do no harm', async () => {
  const shape = await opened.page.evaluate(async () => {
    const { tree } = await import('/static/js/admin/models.js');
    const m = (id, parent_id, created) => ({ id, parent_id, created });
    const show = (list) => list.map(({ model, children }) => [model.id, show(children)]);
    return show(tree([m('c', 'b', 3), m('b', 'a', 2), m('a', null, 1), m('x', 'gone', 4), m('s', 's', 5)]));
  });
  assert.deepEqual(shape, [
    ['a', [['b', [['c', []]]]]],
    ['x', []],
    ['s', []],
  ]);
});

test('server-sent events survive any cut', async () => {
  const got = await opened.page.evaluate(async () => {
    const { events } = await import('/static/js/api.js');
    const text = 'id: 7\r\nevent: progress\r\ndata: {"a":\r\ndata: "é好😀"}\r\n\r\n: ping\n\ndata: [DONE]\n\n';
    const bytes = new TextEncoder().encode(text);
    const real = window.fetch;
    const out = [];
    for (const size of [1, 3, 1000]) {
      window.fetch = async () =>
        new Response(
          new ReadableStream({
            start(c) {
              for (let i = 0; i < bytes.length; i += size) c.enqueue(bytes.slice(i, i + size));
              c.close();
            },
          }),
        );
      const list = [];
      for await (const e of events('GET', '/x')) list.push([e.event, e.id, e.data]);
      out.push(JSON.stringify(list));
    }
    window.fetch = real;
    return out;
  });
  const wanted = JSON.stringify([
    ['progress', '7', '{"a":\n"é好😀"}'],
    ['message', '7', '[DONE]'],
  ]);
  assert.deepEqual(got, [wanted, wanted, wanted]);
});

test('text that streams in: lists, headings, code, links only to https, nothing parsed as HTML', async () => {
  const shape = (text) =>
    opened.page.evaluate(async (text) => {
      const { richText } = await import('/static/js/richtext.js');
      const el = richText(text);
      const name = (n) =>
        n.nodeType === 3 ? JSON.stringify(n.data) : `${n.localName}(${[...n.childNodes].map(name).join(' ')})`;
      return { shape: [...el.childNodes].map(name).join(' '), links: [...el.querySelectorAll('a')].map((a) => a.href) };
    }, text);
  assert.equal(
    (await shape('# Head\nSome **bold** and *slanted* `x`')).shape,
    'p("Head") p("Some " strong("bold") " and " em("slanted") " " code("x"))',
  );
  assert.equal(
    (await shape('Intro\n- one\n- two\n\n3. three\n4. four')).shape,
    'p("Intro") ul(li("one") li("two")) ol(li("three") li("four"))',
  );
  assert.equal((await shape('```py\nprint(1)\n```\n> said')).shape, 'pre(code("print(1)")) blockquote("said")');
  assert.equal((await shape('```\nhalf a fen')).shape, 'pre(code("half a fen"))');
  const hostile = await shape(
    '[a](javascript:alert(1)) [b](https://example.org/x) <img src=x onerror=alert(1)> [c](data:text/html,x)',
  );
  assert.deepEqual(hostile.links, ['https://example.org/x']);
  assert.ok(!/img\(|script\(/.test(hostile.shape));
  assert.deepEqual(opened.trouble, []);
});

test('curves: what tells most comes first, and what never moves is set apart', async () => {
  const result = await opened.page.evaluate(async () => {
    const m = await import('/static/js/admin/curves.js');
    const names = await import('/static/js/admin/metrics.js');
    const run = (rows) =>
      m.byName(rows.flatMap((row, step) => Object.entries(row).map(([name, value]) => ({ step, name, value }))));
    const still = run([
      { kl_coef: 0.05, entropy: 3 },
      { kl_coef: 0.05, entropy: 2 },
      { kl_coef: 0.05, entropy: 1 },
    ]);
    const other = run([{ kl_coef: 0.05 }, { kl_coef: 0.06 }, { kl_coef: 0.07 }]);
    return {
      order: names.inOrder(['grad_norm', 'odd_one', 'response_length', 'entropy', 'heldout_accuracy']),
      alone: m.isStill(new Map([['a', still]]), 'kl_coef'),
      compared: m.isStill(
        new Map([
          ['a', still],
          ['b', other],
        ]),
        'kl_coef',
      ),
      moving: m.isStill(new Map([['a', still]]), 'entropy'),
    };
  });
  assert.deepEqual(result.order, ['heldout_accuracy', 'entropy', 'response_length', 'grad_norm', 'odd_one']);
  assert.deepEqual([result.alone, result.compared, result.moving], [true, false, false]);
});

test('curves: the clock of a resumed run goes on, ticks can be told apart, a wide interval shades nothing', async () => {
  const r = await opened.page.evaluate(async () => {
    const c = await import('/static/js/admin/curves.js');
    const m = await import('/static/js/admin/metrics.js');
    const clock = c.timeOf({ steps: [1, 2, 3, 5], values: [10, 20, 4, 12] });
    return {
      none: c.timeOf(undefined),
      at: [0, 1, 1.5, 2, 3, 4, 5, 6].map(clock),
      far: m.tickTexts('loss', [0, 0.5, 1]),
      near: m.tickTexts('loss', [1.0549, 1.05495, 1.055]),
      share: m.tickTexts('ece', [0.41031, 0.410315, 0.41032]),
      bands: [m.bandOf({ low: 0.6, high: 0.8 }), m.bandOf({ low: 0, high: 1 }), m.bandOf(null)],
      once: c.isStill(new Map([['a', new Map([['x', { steps: [0], values: [7] }]])]]), 'x'),
      curve: c.isStill(new Map([['a', new Map([['x', { steps: [1], values: [7] }]])]]), 'x'),
    };
  });
  assert.equal(r.none, null);
  assert.deepEqual(r.at, [0, 10, 15, 20, 24, 28, 32, 36], 'a restart counts from where the run was');
  assert.deepEqual(r.far, ['0', '0.5', '1']);
  for (const ticks of [r.near, r.share]) assert.equal(new Set(ticks).size, 3, `${ticks}`);
  assert.deepEqual(r.bands.map((b) => b ?? null), [[0.6, 0.8], null, null]);
  assert.deepEqual([r.once, r.curve], [true, false], 'counted once before the first step is no curve');
});

test('samples: a conversation shows its turns, beside those of another step and apart from other prompts', async () => {
  const samples = await opened.page.evaluate(async () => {
    const { sampleTable } = await import('/static/js/admin/samples.js');
    const table = sampleTable();
    document.body.append(table.el);
    const prompt = [{ role: 'user', content: 'first question' }];
    const conversation = (step, answer) => ({
      step,
      number: 2,
      prompt,
      completion: `first answer\n\n> and then?\n\n${answer}`,
      turns: [
        { role: 'assistant', content: 'first answer' },
        { role: 'user', content: 'and then?' },
        { role: 'assistant', content: answer },
      ],
      score: step,
    });
    table.add({ step: 0, prompt, completion: 'an answer alone', score: 0 });
    table.add(conversation(0, 'before'));
    table.add(conversation(3, 'after'));
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    const shown = [...table.el.querySelectorAll('.sample')].map((sample) => ({
      prompt: sample.querySelector('.sample-prompt').textContent,
      sides: [...sample.querySelectorAll('.sample-side')].map((side) =>
        [...side.querySelectorAll('.sample-turn')].map((turn) => [turn.classList[1], turn.lastElementChild.textContent]),
      ),
      text: sample.textContent,
    }));
    table.el.remove();
    return shown;
  });
  assert.equal(samples.length, 2);
  assert.match(samples[0].text, /an answer alone/);
  assert.deepEqual(samples[0].sides, [[], []], 'an answer alone has no turns');
  const turns = (answer) => [
    ['assistant', 'first answer'],
    ['user', 'and then?'],
    ['assistant', answer],
  ];
  assert.equal(samples[1].prompt, 'first question');
  assert.deepEqual(samples[1].sides, [turns('before'), turns('after')]);
});

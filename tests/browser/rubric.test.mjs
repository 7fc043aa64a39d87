// Rubrics on the pages: an administrator defines one, labelers rate by keys and by touch, drafts and revisions keep the
// values, figures show them.
import assert from 'node:assert/strict';
import { mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { api, judgmentsOf, makeSet, openPage, signedInPage, startBrowser, startServer, violations, visit } from './support.mjs';

let server;
let browser;
before(async () => {
  server = await startServer();
  browser = await startBrowser();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});
// what a failed test left active must not change the others
afterEach(() => api(server.url, 'POST', '/admin/rubrics/active', { version: null }));

const likert = (key, en, zh) => ({
  key,
  label: { en, zh },
  kind: 'likert',
  points: 7,
  required: true,
  low: { en: 'Poor', zh: '差' },
  high: { en: 'Excellent', zh: '很好' },
});

const RUBRIC = {
  name: 'Two scales',
  dimensions: [
    likert('helpful', 'Helpful', '有帮助'),
    likert('honest', 'Honest', '诚实'),
    { key: 'unsafe', label: { en: 'Unsafe', zh: '不安全' }, kind: 'flag', required: false },
    { key: 'vague', label: { en: 'Vague', zh: '含糊' }, kind: 'flag', required: false },
    { key: 'notes', label: { en: 'Notes', zh: '备注' }, kind: 'tags', required: false, suggestions: ['too long'] },
  ],
  rationale: 'required',
};

const activated = (definition = RUBRIC) => api(server.url, 'POST', '/admin/rubrics', { definition, activate: true });

async function stored(setId, n = 1) {
  for (let i = 0; i < 200; i++) {
    const list = await judgmentsOf(server.url, setId);
    if (list.length >= n) return list;
    await new Promise((r) => setTimeout(r, 50));
  }
  assert.fail(`no judgment of ${setId} arrived`);
}

/** The stored values of the answer at a shown position. */
const valuesAt = (judgment, position) => {
  const id = judgment.items.find((i) => i.shown_position === position).completion_id;
  return Object.fromEntries(judgment.ratings.filter((r) => r.completion_id === id).map((r) => [r.dimension, r.value]));
};

const pressed = (page, answer, text) =>
  page
    .locator('.answer')
    .nth(answer)
    .locator('.rubric button[aria-pressed=true]')
    .allTextContents()
    .then((all) => all.some((x) => x.startsWith(text)));

test('a pair is ranked and rated by keys alone; the page says what is missing; a reload keeps the draft', async () => {
  const { version } = await activated();
  const set = await makeSet(server.url, 'Which is the capital of Denmark?', ['Copenhagen.', 'Oslo.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.rubric');
  assert.equal(await page.locator('.rubric').count(), 2, 'the dimensions stand beside each answer');
  await page.keyboard.press('1');
  assert.match(await page.locator('.bar-hint').textContent(), /4 required ratings are missing/);
  assert.equal(await page.locator('.submit').getAttribute('aria-disabled'), 'true');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => /Not rated yet/.test(document.querySelector('.bar-alert').textContent));
  assert.equal(await page.locator('.bar-alert').textContent(), 'Not rated yet: A: Helpful, Honest; B: Helpful, Honest.');
  assert.equal(await page.locator('.dimension.lacking').count(), 4);
  assert.equal((await judgmentsOf(server.url, set)).length, 0);

  // R begins with answer A; the digits go on to the next dimension and the next answer
  await page.keyboard.press('r');
  assert.match(await page.locator('.bar-hint').textContent(), /Answer A, Helpful: press 1 to 7/);
  for (const key of ['6', '5', '2', '3']) await page.keyboard.press(key);
  assert.equal(await page.locator('.choice [aria-pressed=true]').getAttribute('data-act'), 'a', 'the ranking is untouched');
  assert.equal(await page.locator('.dimension.lacking').count(), 0);
  await page.keyboard.press('b');
  await page.keyboard.press('f');
  await page.keyboard.press('2');
  assert.ok(await pressed(page, 1, 'Vague'));
  const tag = page.locator('.answer').nth(1).locator('.dimension.tags input');
  await tag.fill('names no source');
  await tag.press('Enter');
  assert.ok(await pressed(page, 1, 'names no source'));
  assert.equal((await judgmentsOf(server.url, set)).length, 0, 'Enter in the field of tags submits nothing');
  await page.keyboard.press('Escape');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => /reasons/.test(document.querySelector('.bar-alert').textContent));

  await page.goto(`${server.url}/label`);
  await page.locator('.rubric').first().waitFor();
  for (const [answer, text] of [[0, '6'], [0, '5'], [1, '2'], [1, '3'], [1, 'Vague'], [1, 'names no source']])
    assert.ok(await pressed(page, answer, text), `${answer}: ${text} survives the reload`); // prettier-ignore
  await page.locator('#more-rationale').fill('Only one is right.');
  await page.locator('#more-rationale').press('Control+Enter');
  const [judgment] = await stored(set);
  assert.equal(judgment.rubric_version, version);
  assert.equal(judgment.rationale, 'Only one is right.');
  assert.deepEqual(valuesAt(judgment, 0), { helpful: 6, honest: 5, unsafe: false, vague: false });
  assert.deepEqual(valuesAt(judgment, 1), { helpful: 2, honest: 3, unsafe: false, vague: true, notes: ['names no source'] });
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a revision shows the former values by the former rubric, and takes a value back', async () => {
  const definition = { ...RUBRIC, rationale: 'off' };
  const { version } = await activated(definition);
  const set = await makeSet(server.url, 'Name a metal.', ['Iron.', 'Wood.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.rubric');
  assert.equal(await page.locator('#more-rationale').count(), 0, 'the rubric does not ask for reasons');
  for (const key of ['1', 'r', '7', '7', '1', '2', 'Enter']) await page.keyboard.press(key);
  const [first] = await stored(set);
  await activated({ ...definition, name: 'Another', dimensions: [likert('other', 'Other', '其他')] });
  await page.locator('.toast button').first().click();
  await page.locator('.revising').waitFor();
  assert.ok((await pressed(page, 0, '7')) && (await pressed(page, 1, '2')));
  assert.match(await page.locator('.rubric').first().textContent(), /Honest/, 'by the rubric of the judgment');
  const honest = page.locator('.answer').nth(1).locator('.dimension').nth(1);
  await honest.locator('button', { hasText: '2' }).click();
  assert.equal(await page.locator('.submit').getAttribute('aria-disabled'), 'true', 'a second press takes the value back');
  await honest.locator('button', { hasText: '4' }).click();
  await page.keyboard.press('Enter');
  const second = (await stored(set, 2)).find((j) => j.id !== first.id);
  assert.equal(second.rubric_version, version);
  assert.deepEqual([valuesAt(second, 1).honest, valuesAt(second, 1).helpful], [4, 1]);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a rubric activated while a set is at hand is asked for when the judgment is refused', async () => {
  const set = await makeSet(server.url, 'Name a bird.', ['A robin.', 'A trout.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  assert.equal(await page.locator('.rubric').count(), 0);
  await activated({ ...RUBRIC, rationale: 'optional' });
  await page.keyboard.press('1');
  await page.keyboard.press('Enter');
  await page.locator('.toast.bad button').click();
  await page.locator('.rubric').first().waitFor();
  assert.equal(await page.locator('[data-act=a]').getAttribute('aria-pressed'), 'true', 'the ranking is still there');
  for (const key of ['r', '4', '4', '1', '1', 'Enter']) await page.keyboard.press(key);
  const [judgment] = await stored(set);
  assert.equal(judgment.ratings.filter((r) => r.dimension === 'helpful').length, 2);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('on a phone, in Chinese, three answers are ranked and rated by touch', async () => {
  await activated({ ...RUBRIC, rationale: 'off' });
  const set = await makeSet(server.url, '说出一种水果。', ['苹果。', '梨。', '石头。']);
  const { page, context, trouble } = await signedInPage(browser, server.url, { phone: true, lang: 'zh', theme: 'dark' });
  await visit(page, server.url, `/label?set_id=${set}`, '.rubric');
  assert.match(await page.locator('.rubric').first().textContent(), /有帮助.*诚实/s);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(wide, 0, 'nothing sticks out');
  for (const i of [0, 1, 2]) {
    const card = page.locator('.answer').nth(i);
    await card.locator('.tiers button').nth(i).tap();
    for (const d of [0, 1]) await card.locator('.dimension').nth(d).locator('.points button').nth(6 - i).tap();
    const box = await card.locator('.points button').first().boundingBox();
    assert.ok(box.height >= 40 && box.width >= 24, `a thumb hits it: ${JSON.stringify(box)}`);
  }
  await page.locator('.answer').nth(2).locator('.flags button').first().tap();
  assert.deepEqual(await violations(page), []);
  await page.locator('.submit').tap();
  const [judgment] = await stored(set);
  assert.deepEqual(valuesAt(judgment, 2), { helpful: 5, honest: 5, unsafe: true, vague: false });
  assert.deepEqual(trouble, []);
  await context.close();
});

test('an administrator makes a rubric from a preset, a form and a file, and ends it', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/settings', '.rubric-maker');
  await page.locator('.rubric-maker > summary').click();
  await page.locator('#rubric-from').selectOption('preset-instructgpt');
  assert.equal(await page.locator('.rubric-dimension').count(), 12);
  assert.equal(await page.locator('.rubric-maker .rubric .flags button').count(), 11, 'the preview shows the flags');
  await page.locator('#rubric-name').fill('Ours');
  await page.locator('#rubric-d0-points').fill('5');
  assert.equal(await page.locator('.rubric-maker .points button').count(), 5, 'the preview follows');
  await page.locator('#rubric-add').click();
  await page.locator('.rubric-maker button[type=submit]').click();
  await page.locator('.form-error', { hasText: 'key' }).waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), 'rubric-d12-key', 'the field to mend has the focus');
  await page.locator('#rubric-d12-key').fill('topics');
  await page.locator('#rubric-d12-label-en').fill('Topics');
  await page.locator('#rubric-d12-label-zh').fill('主题');
  await page.locator('#rubric-d12-kind').selectOption('tags');
  await page.locator('#rubric-d12-suggestions').fill('law, physics');
  assert.deepEqual(await violations(page), []);
  await page.locator('.rubric-maker button[type=submit]').click();
  await page.locator('.rubric-preview h3', { hasText: 'Ours' }).waitFor();
  const { active, versions } = await api(server.url, 'GET', '/admin/rubrics');
  const ours = versions.find((v) => v.version === active);
  assert.deepEqual([ours.definition.name, ours.definition.dimensions[0].points], ['Ours', 5]);
  assert.deepEqual(ours.definition.dimensions[12].suggestions, ['law', 'physics']);
  assert.deepEqual(ours.definition.dimensions[12].label, { en: 'Topics', zh: '主题' });

  // what the page writes as a file it also reads
  const file = join(await mkdtemp(join(tmpdir(), 'rubric-')), 'rubric.json');
  await writeFile(file, JSON.stringify({ ...RUBRIC, name: 'From a file' }));
  await page.locator('.rubric-maker > summary').click();
  await page.locator('#rubric-file').setInputFiles(file);
  await page.waitForFunction(() => document.querySelector('#rubric-name').value === 'From a file');
  await page.locator('.rubric-maker button', { hasText: 'Save only' }).click();
  await page.locator('td', { hasText: 'From a file' }).waitFor();
  assert.equal((await api(server.url, 'GET', '/v1/rubric')).rubric.version, active, 'saved alone is not active');
  await page.locator('tr', { hasText: 'Ours' }).getByRole('button', { name: 'Deactivate' }).click();
  await page.locator('p', { hasText: 'No rubric is active' }).waitFor();
  assert.equal((await api(server.url, 'GET', '/v1/rubric')).rubric, null);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the quality page shows every dimension, by version', async () => {
  const { version } = await activated({ ...RUBRIC, name: 'Figures', rationale: 'off' });
  for (let n = 0; n < 6; n++) {
    const set = await api(server.url, 'POST', '/v1/comparison-sets', {
      messages: [{ role: 'user', content: `figures ${n}` }],
      completions: ['x', 'y'],
      overlap: 2,
    });
    for (const who of ['Ada', 'Bob']) {
      const key = await keyOf(who);
      const turn = await call(key, 'GET', `/v1/label/next?set_id=${set.id}`);
      await call(key, 'POST', `/v1/label/${turn.assignment_id}/judgment`, {
        lease_token: turn.lease_token,
        outcome: 'ranked',
        items: turn.completions.map((c, tier) => ({ completion_id: c.id, tier })),
        idempotency_key: `${who}${n}`,
        rubric_version: version,
        ratings: turn.completions.flatMap((c) => [
          { completion_id: c.id, dimension: 'helpful', value: c.text === 'x' ? 6 : 2 },
          { completion_id: c.id, dimension: 'honest', value: 1 + ((n + who.length + c.text.charCodeAt(0)) % 7) },
          { completion_id: c.id, dimension: 'notes', value: ['too long'] },
        ]),
      });
    }
  }
  for (const options of [{}, { theme: 'dark', lang: 'zh' }]) {
    const { page, context, trouble } = await signedInPage(browser, server.url, options);
    await visit(page, server.url, '/admin#/labels', '.spread');
    const table = page.locator(`[aria-label="Figures ${version}"]`);
    const rows = table.locator('tbody tr', { has: page.locator('.spread') });
    assert.equal(await rows.count(), 4, 'two scales and two flags; tags are named in words');
    const helpful = await rows.first().textContent();
    assert.match(helpful, /4\.00.*1\.00/s, helpful);
    assert.ok((await page.locator('main').textContent()).includes(version));
    assert.deepEqual(await violations(page), []);
    const set = (await api(server.url, 'GET', '/v1/judgments?limit=1')).data[0].set_id;
    await visit(page, server.url, `/admin#/sets/${set}`, '.review-answers');
    await page.locator('td .sub', { hasText: /helpful 6(, |、)honest \d(, |、)notes too long/ }).first().waitFor();
    assert.deepEqual(trouble, []);
    await context.close();
  }
});

const keys = new Map();
async function keyOf(name) {
  if (!keys.has(name)) keys.set(name, (await api(server.url, 'POST', '/admin/keys', { name, scopes: ['feedback'] })).key);
  return keys.get(name);
}

async function call(key, method, path, body) {
  const response = await fetch(server.url + path, {
    method,
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  assert.ok(response.ok, `${path}: ${response.status} ${await response.clone().text()}`);
  return response.json();
}

test('the form of a reward run lists the dimensions of the rubric with their weights', async () => {
  const { version } = await activated();
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/jobs/new/reward', '.schema-form');
  const field = page.locator('fieldset', { has: page.locator('#arg-dimensions-helpful') });
  const names = () => field.locator('.field:visible label > span').allTextContents();
  assert.deepEqual(await names(), ['The ranking', 'Helpful', 'Honest', 'Unsafe', 'Vague'], 'of the active rubric');
  // another rubric has other dimensions, and what is not among them is not sent
  const other = await api(server.url, 'POST', '/admin/rubrics', { definition: { ...RUBRIC, name: 'One', dimensions: [likert('kind', 'Kind', '友善')] } });
  await page.reload();
  await page.locator('#arg-dimensions-honest').fill('3');
  await page.locator('#arg-rubric').selectOption(other.version);
  assert.deepEqual(await names(), ['The ranking', 'Kind']);
  await page.locator('#arg-rubric').selectOption('');
  assert.equal(await page.locator('#arg-dimensions-honest').inputValue(), '');
  await page.locator('#arg-dimensions-helpful').fill('1');
  await page.locator('#arg-dimensions-unsafe').fill('-0.5');
  await page.locator('#arg-rubric').selectOption(version);
  assert.deepEqual(await violations(page), []);
  let sent;
  await page.route('**/admin/jobs', (route) => {
    sent = route.request().postDataJSON();
    return route.fulfill({ status: 400, json: { error: { message: 'not now', param: 'args.dimensions' } } });
  });
  await page.locator('.job-form button[type=submit]').click();
  await page.locator('#arg-dimensions-error', { hasText: 'not now' }).waitFor();
  assert.deepEqual([sent.args.dimensions, sent.args.rubric], [{ helpful: 1, unsafe: -0.5 }, version]);
  await page.locator('#arg-dimensions-helpful').fill('much');
  await page.locator('.job-form button[type=submit]').click();
  await page.locator('#arg-dimensions-error', { hasText: 'number' }).waitFor();
  assert.deepEqual(trouble.filter((line) => !line.includes('400')), []);
  await context.close();
});

test('a data set by a dimension of a rubric with a long name is chosen on a phone', async () => {
  const name = 'How well the answer follows what was asked for in the message';
  await activated({ ...RUBRIC, dimensions: [likert('helpful', name, name)] });
  const { page, context, trouble } = await signedInPage(browser, server.url, { phone: true });
  await visit(page, server.url, '/admin#/data', '#dataset-by:not([hidden])');
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(wide, 0, 'nothing sticks out');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('axe finds nothing serious on the label page with a rubric, light and dark, in both languages', async () => {
  await activated();
  const set = await makeSet(server.url, 'Name a tree.', ['An oak.', 'A chair.']);
  for (const options of [{ lang: 'en', theme: 'light' }, { lang: 'zh', theme: 'dark' }]) {
    const { page, context } = await openPage(browser, server.url, options);
    assert.ok((await context.request.post(`${server.url}/session`, { data: { key: 'browser-test-admin-key' } })).ok());
    await visit(page, server.url, `/label?set_id=${set}`, '.rubric');
    await page.keyboard.press('1');
    await page.keyboard.press('Enter');
    await page.locator('.dimension.lacking').first().waitFor();
    assert.deepEqual(await violations(page), []);
    await context.close();
  }
});

// Ranking by keyboard against the real binary: at most two keys a pair, drafts, retries, revisions, K-wise.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { judgmentsOf, makeSet, openPage, signIn, signedInPage, startBrowser, startServer, visit } from './support.mjs';

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

/** Judgments of a set once the page has sent `n` of them. */
async function stored(setId, n = 1) {
  for (let i = 0; i < 200; i++) {
    const list = await judgmentsOf(server.url, setId);
    if (list.length >= n) return list;
    await new Promise((r) => setTimeout(r, 50));
  }
  assert.fail(`no judgment of ${setId} arrived`);
}

/** Text of the answer cards, in shown order. */
const shownTexts = (page) => page.locator('.answer-body').allTextContents();

test('two key presses rank a pair; the judgment comes back through the API', async () => {
  const set = await makeSet(server.url, 'Which is the capital of France?', ['Paris is the capital.', 'It is Lyon.']);
  const { page, trouble } = await openPage(browser, server.url);
  await signIn(page, server.url, `/label?set_id=${set}`);
  await page.locator('.answer').first().waitFor();
  const texts = await shownTexts(page);
  const side = texts.findIndex((x) => x.includes('Paris'));
  assert.ok(side >= 0, `the answers are on the page: ${texts}`);
  assert.ok(!(await page.locator('main').textContent()).includes('llama-tied-tiny'), 'blind before the vote');

  const answer = page.waitForResponse((r) => r.url().endsWith('/judgment') && r.request().method() === 'POST');
  await page.keyboard.press(side === 0 ? '1' : '2');
  await page.keyboard.press('Enter');
  assert.equal((await answer).status(), 200);

  const [judgment, ...more] = await stored(set);
  assert.equal(more.length, 0);
  assert.equal(judgment.outcome, 'ranked');
  const best = judgment.items.find((i) => i.tier === 0);
  assert.equal(judgment.items.length, 2);
  assert.equal(best.shown_position, side);
  assert.equal(judgment.items.find((i) => i !== best).tier, 1);
  assert.ok(judgment.active_ms > 0 && judgment.wall_ms >= judgment.active_ms - 1);
  await page.locator('.toast').first().waitFor();
  assert.deepEqual(trouble, []);
  await page.context().close();
});

test('an untouched set cannot be submitted, keys sleep while typing, strength grows with the same key', async () => {
  const set = await makeSet(server.url, 'Say hello.', ['Hello there.', 'Hi.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  await page.keyboard.press('Enter');
  await page.keyboard.press('m');
  await page.locator('#more-rationale').fill('2 because it is short');
  await page.locator('#more-rationale').press('2');
  assert.equal(await page.locator('.choice [aria-pressed=true]').count(), 0, 'typing chooses nothing');
  assert.equal((await judgmentsOf(server.url, set)).length, 0, 'Enter on an untouched set submits nothing');
  await page.keyboard.press('Escape');
  for (let i = 0; i < 3; i++) await page.keyboard.press('2');
  assert.match(await page.locator('.answer').nth(1).locator('.badge').textContent(), /slightly/);
  await page.keyboard.press('Enter');
  const [judgment] = await stored(set);
  assert.equal(judgment.strength, 'slightly');
  assert.equal(judgment.rationale, '2 because it is short2');
  assert.equal(judgment.items.find((i) => i.tier === 0).shown_position, 1);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a draft survives a reload, and a lost connection sends once', async () => {
  const set = await makeSet(server.url, 'Count to three.', ['One two three.', 'Three two one.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  await page.keyboard.press('=');
  await page.keyboard.press('m');
  await page.locator('#more-ideal').fill('One, two, three!');
  await page.goto(`${server.url}/label`);
  await page.locator('.answer').first().waitFor();
  assert.equal(await page.locator('#more-ideal').inputValue(), 'One, two, three!');
  assert.equal(await page.locator('[data-act=tie]').getAttribute('aria-pressed'), 'true');

  // the first try reaches the server, but its answer is lost on the way back
  let tries = 0;
  await page.route('**/judgment', async (route) => {
    tries += 1;
    if (tries > 1) return route.continue();
    await route.fetch();
    return route.abort('connectionreset');
  });
  await page.locator('#more-ideal').press('Control+Enter');
  await page.waitForResponse((r) => r.url().endsWith('/judgment') && r.ok());
  const list = await stored(set);
  assert.equal(list.length, 1, 'one judgment, though it was sent twice');
  assert.equal(tries, 2);
  assert.deepEqual(new Set(list[0].items.map((i) => i.tier)), new Set([0]), 'a tie is one tier');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('undo reopens the last judgment and stores a revision', async () => {
  const set = await makeSet(server.url, 'Name a colour.', ['Blue.', 'Seven.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  await page.keyboard.press('1');
  await page.keyboard.press('Enter');
  const [first] = await stored(set);
  await page.locator('.toast .reveal, .toast').first().waitFor();
  await page.keyboard.press('Escape');
  if (await page.locator('.work').count()) await page.keyboard.press('u');
  else await page.locator('.toast button').first().click();
  await page.locator('.revising').waitFor();
  assert.equal(await page.locator('[data-act=a]').getAttribute('aria-pressed'), 'true', 'shown in the same order, with the vote');
  await page.keyboard.press('2');
  await page.keyboard.press('Enter');
  const list = await stored(set, 2);
  const second = list.find((j) => j.id !== first.id);
  assert.equal(second.supersedes_id, first.id);
  assert.equal(second.revision, 2);
  assert.equal(second.items.find((i) => i.tier === 0).shown_position, 1);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('four answers take places by number keys, with a tie; skip gives a reason', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  const set = await makeSet(server.url, 'Name an animal.', ['A dog.', 'A cat.', 'A stone.', 'A very old stone.']);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  for (const key of ['1', '1', '3', '2']) await page.keyboard.press(key);
  await page.keyboard.press('Enter');
  const [judgment] = await stored(set);
  const tiers = [...judgment.items].sort((a, b) => a.shown_position - b.shown_position).map((i) => i.tier);
  assert.deepEqual(tiers, [0, 0, 2, 1]);

  const other = await makeSet(server.url, 'Name a plant.', ['Moss.', 'Fern.', 'Oak.']);
  await visit(page, server.url, `/label?set_id=${other}`, '.answer');
  await page.keyboard.press('s');
  await page.locator('dialog input[value=needs_expert]').check();
  await page.locator('dialog button[type=submit]').click();
  const [skipped] = await stored(other);
  assert.equal(skipped.outcome, 'skip');
  assert.equal(skipped.flags[0].code, 'skip_needs_expert');

  const third = await makeSet(server.url, 'Name a metal.', ['Wood.', 'Cheese.']);
  await visit(page, server.url, `/label?set_id=${third}`, '.answer');
  await page.keyboard.press('x');
  await page.keyboard.press('Enter');
  assert.equal((await stored(third))[0].outcome, 'all_bad');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('three answers are placed by dragging their letters', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  const set = await makeSet(server.url, 'Name a fruit.', ['An apple.', 'A pear.', 'A hammer.']);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  const lane = (n) => page.locator('.lane').nth(n - 1);
  const letter = (x) => page.locator('.letter', { hasText: x });
  await letter('C').dragTo(lane(1));
  await letter('A').dragTo(lane(2));
  assert.equal(await page.locator('.submit').getAttribute('aria-disabled'), 'true', 'B is still open');
  await letter('B').dragTo(lane(2));
  await page.locator('.submit').click();
  const [judgment] = await stored(set);
  assert.deepEqual(
    [...judgment.items].sort((a, b) => a.shown_position - b.shown_position).map((i) => i.tier),
    [1, 1, 0],
  );
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the next set is fetched ahead, and a lease is renewed while somebody works', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  for (const q of ['ahead 1', 'ahead 2']) await makeSet(server.url, q, ['yes', 'no']);
  await page.clock.install();
  const leases = [];
  const renewals = [];
  page.on('request', (r) => {
    if (r.url().includes('/v1/label/next')) leases.push(r.url());
    if (r.url().endsWith('/renew')) renewals.push(r.url());
  });
  await visit(page, server.url, '/label', '.answer');
  const ahead = page.waitForResponse((r) => r.url().includes('/v1/label/next'));
  await page.clock.runFor(2000);
  await ahead;
  assert.equal(leases.length, 2, 'one on the screen, one ahead');
  const renewed = page.waitForResponse((r) => r.url().endsWith('/renew'));
  // a lease lasts ten minutes; after half of it the page asks for more, as long as there are signs of life
  for (let minute = 0; minute < 6; minute++) {
    await page.mouse.move(100 + minute, 200);
    await page.clock.runFor(60_000);
  }
  assert.equal((await renewed).status(), 200);
  assert.equal(new Set(renewals).size, 2, 'both leases');
  await page.keyboard.press('1');
  await page.keyboard.press('Enter');
  await page.locator('.prompt', { hasText: /ahead/ }).waitFor();
  assert.deepEqual(trouble, []);
  await context.close();
});

// Ranking by keyboard against the real binary: at most two keys a pair, drafts, retries, revisions, K-wise.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { api, judgmentsOf, makeSet, openPage, signIn, signedInPage, startBrowser, startServer, visit } from './support.mjs';

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

test('a set that another tab has judged keeps that judgment, and the second one is refused', async () => {
  const set = await makeSet(server.url, 'Judged in two tabs.', ['One.', 'Two.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  await page.keyboard.press('1'); // the draft with its key is kept in this browser
  const other = await context.newPage();
  await visit(other, server.url, `/label?set_id=${set}`, '.answer');
  assert.equal(await other.locator('[data-act=a]').getAttribute('aria-pressed'), 'true', 'the draft');
  await page.keyboard.press('Enter');
  const [first] = await stored(set);
  await other.keyboard.press('2');
  await other.keyboard.press('Enter');
  await other.locator('.toast', { hasText: 'You have already judged or skipped this set.' }).waitFor();
  assert.deepEqual(await stored(set), [first]);
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

/** Sends a key that types `key` from the place `code`, as other keyboards do. */
const typed = (page, key, code, more = {}) =>
  page.evaluate(
    ([key, code, more]) =>
      document.activeElement.dispatchEvent(
        new KeyboardEvent('keydown', { key, code, bubbles: true, cancelable: true, ...more }),
      ),
    [key, code, more],
  );

test('keys are known by their place too: Cyrillic letters, the French row of digits, an input method', async () => {
  const set = await makeSet(server.url, 'Name a river.', ['The Rhine.', 'A chair.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  const pressed = (name) => page.locator(`[data-act=${name}]`).getAttribute('aria-pressed');
  await typed(page, '&', 'Digit1');
  assert.equal(await pressed('a'), 'true', 'French: & is on the 1');
  await typed(page, 'é', 'Digit2');
  assert.equal(await pressed('b'), 'true', 'French: é is on the 2');
  await typed(page, '!', 'Digit1', { shiftKey: true });
  assert.equal(await pressed('b'), 'true', 'a shifted digit is not the digit');
  await typed(page, 'o', 'KeyS');
  assert.equal(await page.locator('dialog').count(), 0, 'a Latin letter counts as what it types (Dvorak)');
  await typed(page, 'Process', 'KeyX', { keyCode: 229 });
  assert.equal(await pressed('all_bad'), 'true', 'an input method took the key, and nothing is being written');
  await typed(page, 'ы', 'KeyS');
  await page.locator('dialog input[value=other]').waitFor();
  await page.keyboard.press('Escape');
  // the Enter that ends a composition in Safari is no Enter
  await page.keyboard.press('m');
  await page.locator('#more-rationale').focus();
  let sent = 0;
  page.on('request', (r) => r.url().endsWith('/judgment') && (sent += 1));
  await typed(page, 'Enter', 'Enter', { keyCode: 229, ctrlKey: true });
  await page.waitForTimeout(200);
  assert.equal(sent, 0);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('names stay hidden after the vote; what is revised after a reveal is marked', async () => {
  const set = await makeSet(server.url, 'Name a lake.', ['Como.', 'A fork.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  await page.keyboard.press('1');
  await page.keyboard.press('Enter');
  await page.locator('.toast', { hasText: 'Stored.' }).waitFor();
  assert.equal(await page.locator('.reveal').count(), 0);
  assert.equal((await stored(set))[0].knowledge, 'blind');

  await api(server.url, 'POST', '/admin/settings', { name: 'labeling.reveal', value: true });
  const other = await makeSet(server.url, 'Name a hill.', ['Everest.', 'A spoon.']);
  await visit(page, server.url, `/label?set_id=${other}`, '.answer');
  await page.keyboard.press('1');
  await page.keyboard.press('Enter');
  await page.locator('.reveal').waitFor();
  await page.locator('.toast button').last().click();
  await page.locator('.revising strong').waitFor();
  assert.equal(await page.locator('.former').count(), 2, 'the earlier order is shown');
  await page.keyboard.press('2');
  await page.keyboard.press('Enter');
  const list = await stored(other, 2);
  assert.deepEqual(list.map((j) => j.knowledge).sort(), ['authors', 'blind']);
  await api(server.url, 'POST', '/admin/settings', { name: 'labeling.reveal', value: false });
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a click on an answer chooses it, the scale says how much, and Enter too early says what is missing', async () => {
  const set = await makeSet(server.url, 'Name a bird.', ['A wren, **small**.', 'A table.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  await page.keyboard.press('Enter');
  await page.locator('.bar-alert', { hasText: 'Nothing chosen yet' }).waitFor();
  await page.locator('.answer-body').nth(1).click();
  assert.equal(await page.locator('[data-act=b]').getAttribute('aria-pressed'), 'true');
  assert.equal(await page.locator('.bar-alert').textContent(), '');
  await page.locator('.answer-body').nth(1).click();
  assert.equal(await page.locator('.step[aria-pressed=true]').count(), 0, 'a second click does not grow stronger');
  assert.equal(await page.locator('.step').count(), 9);
  await page.locator('.step').first().click();
  await page.keyboard.press('b');
  await page.keyboard.press('r');
  await page.keyboard.press('6');
  await page.keyboard.press('f');
  await page.keyboard.press('2');
  await page.keyboard.press('Enter');
  const [judgment] = await stored(set);
  assert.equal(judgment.strength, 'significantly');
  const first = judgment.items.find((i) => i.shown_position === 0);
  const second = judgment.items.find((i) => i.shown_position === 1);
  assert.deepEqual([first.tier, second.tier, second.rating], [0, 1, 6]);
  assert.deepEqual(judgment.flags.map((f) => [f.completion_id, f.code]), [[second.completion_id, 'untrue']]);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('differences keep Markdown, and unlike answers are not painted over', async () => {
  const set = await makeSet(server.url, 'Describe Paris.', [
    'Paris is **old**. It lies on the Seine. It is large.',
    'Paris is **old**. It lies on the Loire. It is large.',
  ]);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  await page.keyboard.press('d');
  assert.deepEqual((await page.locator('.answer-body mark').allTextContents()).sort(), ['Loire', 'Seine']);
  assert.equal(await page.locator('.answer-body strong').count(), 2, 'bold stays bold');
  const unlike = await makeSet(server.url, 'Describe Rome.', ['Seven hills stand there.', 'Nobody knows; ask my aunt instead.']);
  await visit(page, server.url, `/label?set_id=${unlike}`, '.answer');
  await page.locator('.answer-body .help').first().waitFor();
  assert.equal(await page.locator('.answer-body mark').count(), 0);
  await page.keyboard.press('d');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('figures stay right after a reload; skips are apart; an empty queue looks for work by itself', async () => {
  const { invite, token } = await api(server.url, 'POST', '/admin/invites', {});
  assert.ok(invite.id);
  const { page, context, trouble } = await openPage(browser, server.url);
  const login = await context.request.post(`${server.url}/session`, { data: { invite: token, name: 'Ida' } });
  assert.ok(login.ok());
  const { id } = (await login.json()).labeler;
  // everything that other tests left open is nothing for her
  const mine = await makeSet(server.url, 'Only for figures.', ['one', 'two']);
  await page.goto(`${server.url}/label?set_id=${mine}`);
  // guidelines come before the first set
  await page.locator('.guidelines-first h1', { hasText: 'How to rank' }).waitFor();
  const places = await page.evaluate(() => ['.guidelines-first', '.prompt'].map((x) => document.querySelector(x).offsetTop));
  assert.ok(places[0] < places[1], `${places}`);
  await page.getByRole('button', { name: 'Start ranking' }).click();
  assert.equal(await page.locator('.guidelines-first').count(), 0);
  await page.reload();
  await page.locator('.answer').first().waitFor();
  assert.equal(await page.locator('.guidelines-first').count(), 0, 'read once');
  const left = async () => Number(/(\d+) left/.exec(await page.locator('.progress-button').textContent())[1]);
  const before = await left();
  await page.keyboard.press('s');
  await page.locator('dialog input[value=other]').check();
  await page.locator('dialog button[type=submit]').click();
  await page.locator('.toast', { hasText: 'Skipped.' }).waitFor();
  assert.match(await page.locator('.progress-button').textContent(), /^0 today/, 'a skip is no judgment');
  assert.equal(await left(), before - 1);
  // she takes what is left, by API
  const headers = { 'content-type': 'application/json' };
  await page.clock.install();
  for (;;) {
    const response = await context.request.get(`${server.url}/v1/label/next?resume=true`);
    if (response.status() === 204) break;
    const turn = await response.json();
    await context.request.post(`${server.url}/v1/label/${turn.assignment_id}/judgment`, {
      headers,
      data: { lease_token: turn.lease_token, outcome: 'all_bad', idempotency_key: `ida ${turn.set_id}` },
    });
  }
  await page.goto(`${server.url}/label`);
  await page.locator('.empty').waitFor();
  assert.equal(await left(), 0);
  const own = await (await context.request.get(`${server.url}/v1/label/me`)).json();
  assert.equal(own.labeler_id, id);
  assert.match(await page.locator('.progress-button').textContent(), new RegExp(`^${own.done_today} today`));
  await makeSet(server.url, 'Fresh work.', ['yes', 'no']);
  await page.clock.runFor(16_000);
  await page.locator('.prompt', { hasText: 'Fresh work.' }).waitFor();
  assert.match(await page.title(), /left for you/);
  await page.reload();
  await page.locator('.prompt', { hasText: 'Fresh work.' }).waitFor();
  assert.match(await page.locator('.progress-button').textContent(), new RegExp(`^${own.done_today} today`));
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a browser that was killed gets its set back', async () => {
  const set = await makeSet(server.url, 'Held over a crash.', ['one', 'two']);
  const first = await openPage(browser, server.url);
  const { token } = await api(server.url, 'POST', '/admin/invites', {});
  await first.context.request.post(`${server.url}/session`, { data: { invite: token, name: 'Kai' } });
  await first.page.goto(`${server.url}/label?set_id=${set}`);
  await first.page.locator('.answer').first().waitFor();
  const texts = await shownTexts(first.page);
  const state = await first.context.storageState();
  await first.context.close(); // no farewell, no session storage afterwards
  const context = await browser.newContext({ storageState: state, viewport: { width: 1440, height: 900 } });
  if (process.env.INSTRUCTD_STATIC)
    await context.route('**/static/**', (route) =>
      route.fulfill({ path: process.env.INSTRUCTD_STATIC + new URL(route.request().url()).pathname.replace('/static', '') }),
    );
  const page = await context.newPage();
  await page.goto(`${server.url}/label`);
  await page.locator('.answer').first().waitFor();
  const shown = await page.locator('.prompt').textContent();
  assert.match(shown, /Held over a crash/);
  assert.deepEqual(await shownTexts(page), texts, 'in the same order');
  await context.close();
});

test('after an outage the page goes on by itself', async () => {
  const sets = [];
  for (const q of ['outage 1', 'outage 2', 'outage 3']) sets.push(await makeSet(server.url, q, ['yes', 'no']));
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${sets[0]}`, '.answer');
  await page.waitForTimeout(1500); // the next set is here
  let down = true;
  await page.route('**/v1/**', (route) => (down ? route.abort('connectionrefused') : route.continue()));
  for (let i = 0; i < 2; i++) {
    await page.keyboard.press('1');
    await page.keyboard.press('Enter');
    await page.waitForTimeout(100);
  }
  await page.locator('.notice.bad').waitFor();
  down = false;
  await page.locator('.answer, .empty').first().waitFor({ timeout: 15_000 });
  assert.equal(await page.locator('.notice.bad').count(), 0, 'without a click');
  await stored(sets[0]);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the guidelines drawer takes the focus, and Esc closes it', async () => {
  const set = await makeSet(server.url, 'Guided.', ['one', 'two']);
  const { page, context, trouble } = await signedInPage(browser, server.url, { lang: 'zh' });
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  await page.keyboard.press('g');
  await page.locator('.drawer h1', { hasText: '如何排序' }).waitFor();
  assert.ok(await page.evaluate(() => document.querySelector('.drawer').contains(document.activeElement)));
  await page.keyboard.press('Escape');
  await page.locator('.drawer').waitFor({ state: 'detached' });
  await page.keyboard.press('1');
  assert.equal(await page.locator('[data-act=a]').getAttribute('aria-pressed'), 'true', 'the keys are awake again');
  await page.locator('.top button', { hasText: '评判指南' }).click();
  await page.locator('.drawer h1').waitFor();
  assert.ok(await page.evaluate(() => document.querySelector('.drawer').contains(document.activeElement)));
  await page.keyboard.press('Escape');
  await page.locator('.drawer').waitFor({ state: 'detached' });
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the header fits at every width', async () => {
  const set = await makeSet(server.url, 'Wide and narrow.', ['one', 'two']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  for (const width of [320, 390, 600, 701, 760, 820, 1000, 1061, 1100, 1200, 1321, 1440, 2560]) {
    await page.setViewportSize({ width, height: 800 });
    await visit(page, server.url, `/label?set_id=${set}`, '.answer');
    const bad = await page.evaluate(() => {
      const top = document.querySelector('.top');
      const inside = [...top.querySelectorAll('a:not(.skip-link),button,.user-name')].filter((el) => el.offsetParent);
      const out = inside.filter((el) => {
        const r = el.getBoundingClientRect();
        const nav = el.closest('.nav');
        return !nav && (r.right > innerWidth + 1 || r.left < -1 || r.height > top.clientHeight);
      });
      return [...out.map((el) => el.textContent), ...(document.documentElement.scrollWidth > innerWidth ? ['page'] : [])];
    });
    assert.deepEqual(bad, [], `${width} px`);
  }
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the why of a practice set is saved on its review page and shown after the vote', async () => {
  const made = await api(server.url, 'POST', '/v1/comparison-sets', {
    messages: [{ role: 'user', content: 'Practise this.' }],
    completions: ['good', 'bad'],
  });
  const tier = (c) => ({ completion_id: c.id, tier: c.text === 'good' ? 0 : 1 });
  await api(server.url, 'POST', `/admin/sets/${made.id}/known-answer`, { kind: 'calibration', tiers: made.completions.map(tier) });
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/admin#/sets/${made.id}`, '#settle-why');
  assert.equal(await page.locator('#place-0').inputValue(), String(tier(made.completions[0]).tier), 'the reference is filled in');
  await page.locator('#settle-why').fill('Good is what was asked for.');
  await page.getByRole('button', { name: 'Save the known answer' }).click();
  await page.locator('.toast').first().waitFor();
  await visit(page, server.url, `/admin#/sets/${made.id}`, '#settle-why');
  assert.equal(await page.locator('#settle-why').inputValue(), 'Good is what was asked for.');

  await page.goto(`${server.url}/label?set_id=${made.id}`);
  await page.locator('.practice').waitFor();
  const good = (await shownTexts(page)).findIndex((x) => x.includes('good'));
  await page.keyboard.press(good === 0 ? '1' : '2');
  await page.keyboard.press('Enter');
  await page.locator('.verdict', { hasText: 'Matches the reference.' }).waitFor();
  assert.match(await page.locator('.verdict').textContent(), /Good is what was asked for/);
  // on a phone the button to the next set is within reach
  await page.setViewportSize({ width: 320, height: 640 });
  const box = await page.locator('.verdict .submit').boundingBox();
  assert.ok(box.x >= 0 && box.x + box.width <= 320 && box.y + box.height <= 640 && box.width > 250, JSON.stringify(box));
  await page.keyboard.press('Enter');
  await page.locator('.verdict').waitFor({ state: 'detached' });
  assert.deepEqual(trouble, []);
  await context.close();
});

test('an answer cut off by its length limit says so', async () => {
  const made = await api(server.url, 'POST', '/v1/comparison-sets', {
    messages: [{ role: 'user', content: 't1 t2 t3' }],
    n: 2,
    sampling: { max_tokens: 5, ignore_eos: true, seed: 3 },
  });
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${made.id}`, '.answer');
  const cut = made.completions.filter((c) => c.cut_off).length;
  assert.ok(cut > 0, JSON.stringify(made.completions));
  assert.deepEqual(await page.locator('.cut-off').allTextContents(), Array(cut).fill('Cut off at 5 tokens'));
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a set whose judgment is still on its way is not shown again', async () => {
  const set = await makeSet(server.url, 'Slow network.', ['one', 'two']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  let release;
  const held = new Promise((r) => (release = r));
  await page.route('**/judgment', async (route) => {
    await held;
    await route.continue();
  });
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  await page.keyboard.press('s');
  await page.locator('dialog input[value=other]').check();
  await page.locator('dialog button[type=submit]').click();
  // It goes while its judgment is still held.
  await page.waitForFunction(() => !document.querySelector('main').textContent.includes('Slow network'));
  await page.locator('.empty, .answer').first().waitFor();
  assert.doesNotMatch(await page.locator('main').textContent(), /Slow network/);
  release();
  await stored(set);
  assert.deepEqual(trouble, []);
  await context.close();
});

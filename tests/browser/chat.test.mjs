// The try-it page and "ask anything" against the real binary: streaming, thumbs, stop, rankings, errors.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { api, judgmentsOf, listOf, signedInPage, startBrowser, startServer, visit } from './support.mjs';

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

/** The page with short answers in one of its modes. */
async function chat(mode, max = '8') {
  const opened = await signedInPage(browser, server.url);
  await visit(opened.page, server.url, '/chat', '#chat-input');
  await opened.page.locator(`[data-mode=${mode}]`).click();
  await opened.page.locator('#chat-max').fill(max);
  await opened.page.locator('#chat-max').blur();
  return opened;
}

async function say(page, text) {
  await page.locator('#chat-input').fill(text);
  await page.keyboard.press('Enter');
}

test('a newcomer’s first message sets no length: the server and the model’s context do', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/chat', '#chat-input');
  const asked = page.waitForRequest((r) => r.url().endsWith('/v1/chat/completions'));
  await say(page, 't5 t6');
  assert.equal((await asked).postDataJSON().max_tokens, undefined);
  await page.getByRole('button', { name: 'Stop' }).click().catch(() => {}); // it may have ended
  assert.equal(await page.locator('.notice.bad').count(), 0);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('an answer streams in, takes a thumb, and the conversation goes on', async () => {
  const { page, context, trouble } = await chat('one');
  await say(page, 't5 t6 t7');
  await page.locator('.thumbs button').first().click();
  await page.locator('.thumbs button[aria-pressed=true]').waitFor();
  const [version] = (await api(server.url, 'GET', '/admin/usage')).versions;
  assert.equal(version.thumbs_up, 1, 'the thumb is counted for the version that wrote the answer');
  const second = page.waitForRequest((r) => r.url().endsWith('/v1/chat/completions'));
  await say(page, 't8');
  const { messages } = (await second).postDataJSON();
  assert.deepEqual(
    messages.map((m) => m.role),
    ['user', 'assistant', 'user'],
  );
  await page.locator('.msg.assistant').nth(1).locator('.meta > *').first().waitFor();
  assert.deepEqual(trouble, []);
  await context.close();
});

test('stop keeps what was written, and what is refused is told in plain words', async () => {
  const { page, context, trouble } = await chat('one', '60');
  // a slow stream: the first piece comes, the rest never does
  let finish;
  await page.route('**/v1/chat/completions', async (route) => {
    await new Promise((r) => (finish = r));
    await route.abort().catch(() => {});
  });
  await say(page, 't1 t2');
  await page.locator('.composer button', { hasText: 'Stop' }).click();
  await page.locator('.composer button', { hasText: 'Send' }).waitFor();
  assert.equal(await page.locator('#chat-input').inputValue(), 't1 t2', 'an unanswered question comes back');
  finish();
  await page.unroute('**/v1/chat/completions');

  await page.locator('#chat-max').fill('100000');
  await page.locator('#chat-max').blur();
  await page.locator('#chat-input').press('Enter');
  await page.locator('.answer-place [role=alert]').waitFor();
  assert.match(await page.locator('.answer-place [role=alert] p').textContent(), /exceed the model/);
  await page.locator('#chat-max').fill('8');
  await page.locator('#chat-max').blur();
  await page.locator('.answer-place [role=alert] button').click();
  await page.locator('.msg.assistant .meta > *').first().waitFor();

  await page.route('**/v1/chat/completions', (route) =>
    route.fulfill({ status: 429, headers: { 'retry-after': '7' }, json: { error: { message: 'overloaded' } } }),
  );
  await say(page, 't3');
  assert.match(await page.locator('.answer-place [role=alert] p').textContent(), /busy.*7 s/);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a choice that was stored although its answer was lost stays, and the page says so', async () => {
  const { page, context, trouble } = await chat('two');
  await say(page, 't8 t9');
  const choice = page.locator('.duel-choice button');
  await choice.first().waitFor();
  let tries = 0;
  const bodies = [];
  await page.route('**/judgment', async (route) => {
    bodies.push(route.request().postDataJSON());
    tries += 1;
    if (tries > 1) return route.continue();
    await route.fetch();
    return route.abort('connectionreset');
  });
  await choice.nth(2).click();
  await page.locator('.duel-choice button:not([disabled])').first().waitFor();
  await choice.nth(0).click();
  await page.getByText('Your choice before was stored already and stays.').waitFor();
  await page.locator('.tag.good').waitFor();
  assert.equal(tries, 3, 'the lost one, another choice, and the stored one again');
  assert.deepEqual(bodies[2].items, bodies[0].items);
  const key = bodies[0].idempotency_key;
  const stored = listOf(await api(server.url, 'GET', '/v1/judgments?limit=200')).filter((j) => j.idempotency_key === key);
  assert.deepEqual(stored.map((j) => j.items.map((i) => i.tier)), [bodies[0].items.map((i) => i.tier)]);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('two answers stream side by side and become a ranking', async () => {
  const { page, context, trouble } = await chat('two');
  await say(page, 't8 t9');
  const choice = page.locator('.duel-choice button');
  await choice.first().waitFor();
  const before = await page.locator('.duel-body').allTextContents();
  const answer = page.waitForResponse((r) => r.url().endsWith('/judgment') && r.request().method() === 'POST');
  await choice.nth(2).click();
  const sent = await answer;
  assert.equal(sent.status(), 200);
  await page.locator('.tag.good').waitFor();
  const { judgment } = await sent.json();
  assert.equal(judgment.items.find((i) => i.tier === 0).shown_position, 1);
  assert.deepEqual(await page.locator('.duel-body').allTextContents(), before, 'nothing moves after the vote');
  assert.match(await page.locator('.duel h2').first().textContent(), /tiny-chat/, 'who wrote it is told after the vote');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('ask anything: answers stream into the places where they are ranked', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/label?ask=1', '#ask-text');
  await page.locator('#ask-text').fill('t11 t12 t13');
  await page.locator('#ask-n').selectOption('3');
  // what the page showed while it was written, to compare with what it shows to be ranked
  await page.evaluate(() => {
    window.__written = [];
    new MutationObserver(() => {
      const bodies = [...document.querySelectorAll('.writing .answer-body')].map((b) => b.textContent);
      if (bodies.length) window.__written = bodies;
    }).observe(document.querySelector('main'), { subtree: true, childList: true, characterData: true });
  });
  await page.locator('.ask button[type=submit]').click();
  await page.locator('.work:not(.writing) .answer').first().waitFor();
  const shown = await page.locator('.answer-body').allTextContents();
  assert.equal(shown.length, 3);
  const written = await page.evaluate(() => window.__written);
  written.forEach((text, i) => assert.ok(shown[i].trim().startsWith(text.trim().slice(0, 4)), `${i}: ${text} / ${shown[i]}`));
  assert.match(await page.locator('.prompt').textContent(), /t11 t12 t13/);
  for (const key of ['1', '2', '2']) await page.keyboard.press(key);
  const sent = page.waitForResponse((r) => r.url().endsWith('/judgment'));
  await page.keyboard.press('Enter');
  const { judgment } = await (await sent).json();
  assert.equal((await judgmentsOf(server.url, judgment.set_id)).length, 1);
  assert.deepEqual(
    judgment.items.map((i) => [i.shown_position, i.tier]),
    [
      [0, 0],
      [1, 1],
      [2, 1],
    ],
  );
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the empty queue offers to ask; a stopped question comes back to be changed', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  const open = listOf(await api(server.url, 'GET', '/v1/comparison-sets?status=open'));
  assert.deepEqual(open, [], 'nothing waits');
  await visit(page, server.url, '/label', '#ask-text');
  await page.route('**/v1/label/ask', () => {}); // never answered
  await page.locator('#ask-text').fill('t4?');
  await page.locator('.ask button[type=submit]').click();
  await page.locator('.writing .bar button').click();
  await page.locator('#ask-text').waitFor();
  assert.equal(await page.locator('#ask-text').inputValue(), 't4?');
  await page.unroute('**/v1/label/ask');
  await page.locator('#ask-text').press('Control+Enter');
  await page.locator('.work:not(.writing) .answer').first().waitFor();
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a finished duel offers nothing to stop, is chosen by keys, and asking on leaves it unranked', async () => {
  const { page, context, trouble } = await chat('two');
  await say(page, 't8 t9 t10');
  await page.locator('.duel-choice button').first().waitFor();
  assert.equal(await page.locator('.composer button').textContent(), 'Send', 'nothing is being written any more');
  // A word is a token here: an answer of eight words was cut off by the limit, a shorter one ended by itself.
  const words = (await page.locator('.duel-body').allTextContents()).map((text) => text.trim().split(/\s+/).length);
  const marked = await page.locator('.duel-text').evaluateAll((all) => all.map((el) => el.querySelector('.tag.warn') !== null));
  assert.deepEqual(marked, words.map((n) => n >= 8), 'cut off answers are marked, others are not');
  await page.keyboard.press('Escape');
  assert.equal(await page.locator('.duel-text').count(), 2, 'Escape deletes no answers');
  const answer = page.waitForResponse((r) => r.url().endsWith('/judgment') && r.request().method() === 'POST');
  await page.keyboard.press('2');
  const { judgment } = await (await answer).json();
  assert.equal(judgment.items.find((i) => i.tier === 0).shown_position, 1);
  await page.locator('.tag.good').waitFor();

  await say(page, 't11');
  await page.locator('.duel-choice button').nth(3).waitFor();
  const released = page.waitForRequest((r) => r.url().endsWith('/release'));
  const next = page.waitForRequest((r) => r.url().endsWith('/v1/label/ask'));
  await say(page, 't12');
  await released;
  const { messages } = (await next).postDataJSON();
  assert.deepEqual(
    messages.map((m) => m.role),
    ['user', 'assistant', 'user', 'assistant', 'user'],
    'the unranked duel goes on with one of its answers',
  );
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a conversation survives a reload, keeps its speaker, and can be edited and regenerated', async () => {
  const { page, context, trouble } = await chat('one');
  await page.locator('#chat-temperature').fill('0'); // a sampled answer may be empty, and empty answers are not kept
  await page.locator('#chat-temperature').blur();
  await say(page, 't5 t6');
  await page.locator('.msg.assistant .again').waitFor();
  await page.reload();
  await page.locator('.msg.assistant').waitFor();
  assert.match(await page.locator('.msg.user').textContent(), /t5 t6/);
  const second = page.waitForRequest((r) => r.url().endsWith('/v1/chat/completions'));
  await say(page, 't7');
  const sent = (await second).postDataJSON();
  assert.equal(sent.model, 'tiny-chat', 'the version that answered first answers on');
  assert.deepEqual(sent.messages.map((m) => Object.keys(m).join()), ['role,content', 'role,content', 'role,content']);
  await page.locator('.msg.assistant').nth(1).locator('.again').click();
  await page.locator('.msg.assistant').nth(1).locator('.again').waitFor();
  assert.equal(await page.locator('.msg.assistant').count(), 2);
  await page.locator('.msg.user .edit').nth(1).click();
  assert.equal(await page.locator('#chat-input').inputValue(), 't7');
  assert.equal(await page.locator('.msg').count(), 2);
  await page.getByRole('button', { name: 'View code' }).click();
  assert.match(await page.locator('dialog pre').textContent(), /chat\/completions[^]*t5 t6/);
  await page.keyboard.press('Escape');
  await page.locator('#chat-temperature').fill('7');
  await page.locator('#chat-temperature').blur();
  await say(page, 't8');
  assert.match(await page.locator('.answer-place [role=alert] p').textContent(), /temperature/, 'the field is named');
  assert.deepEqual(trouble, []);
  await context.close();
});

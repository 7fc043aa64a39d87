// A real training run on the tiny model, watched from the page; then its version: lineage, comparison, canary.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { api, signedInPage, startBrowser, startServer, visit } from './support.mjs';

let server;
let browser;
before(async () => {
  server = await startServer();
  browser = await startBrowser();
  for (let i = 0; i < 8; i++)
    await api(server.url, 'POST', '/v1/demonstrations', {
      messages: [{ role: 'user', content: `t${i} t${i + 1}` }],
      completion: `t${i + 2} t${i + 3} t${i + 4}`,
    });
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

test('a run is started from its form, drawn live, and its figures can be downloaded', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/jobs/new/sft', '.schema-form');
  await page.locator('#arg-max_steps').fill('6');
  await page.locator('#arg-batch_size').fill('2');
  await page.locator('#arg-publish_as').fill('tiny-sft');
  await page.locator('.job-form button[type=submit]').click();
  await page.locator('.run-head .tag', { hasText: 'succeeded' }).waitFor({ timeout: 60_000 });
  await page.locator('.chart canvas').first().waitFor();
  const loss = page.locator('.chart[data-metric=loss]');
  const box = await loss.locator('canvas').boundingBox();
  const at = async (share) => {
    await page.mouse.move(box.x + box.width * share, box.y + box.height / 2);
    return loss.locator('figcaption .help').textContent();
  };
  assert.notEqual(await at(0.2), await at(0.95), 'hovering reads another step');
  for (const [name, extension, first] of [
    ['CSV', 'csv', /^step,/],
    ['JSONL', 'jsonl', /^\{"job_id|^\{.*"step"/],
  ]) {
    const wait = page.waitForEvent('download');
    await page.getByRole('button', { name, exact: true }).click();
    const download = await wait;
    assert.ok(download.suggestedFilename().endsWith(`.${extension}`));
    const text = await (await import('node:fs/promises')).readFile(await download.path(), 'utf8');
    assert.match(text, first);
  }
  // a second run, laid over the first
  const args = { model: 'tiny-chat', max_steps: 4, batch_size: 2, seed: 5, publish_as: 'tiny-sft-2' };
  const { id } = await api(server.url, 'POST', '/admin/jobs', { kind: 'sft', args });
  for (let i = 0; (await api(server.url, 'GET', `/admin/jobs/${id}`)).state !== 'succeeded'; i++) {
    assert.ok(i < 600, 'the second run ends');
    await new Promise((r) => setTimeout(r, 100));
  }
  await visit(page, server.url, '/admin#/jobs', '.pick input');
  for (const n of [0, 1]) await page.locator('.pick input').nth(n).check();
  await page.getByText('Compare 2 runs').click();
  await page.locator('.chart canvas').first().waitFor();
  assert.equal(await page.locator('.compare [aria-pressed=true]').count(), 1);
  assert.ok((await page.locator('.chart[data-metric=loss] .key').count()) === 2, 'two runs in one chart');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('lineage, a trial with a share of the requests, promotion and the way back', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/models', '.tree ul .version');
  assert.match(await page.locator('.tree > li > ul').first().textContent(), /tiny-sft/, 'children stand under their parent');
  await page.locator('#canary-model').selectOption('tiny-sft');
  await page.locator('#canary-share').selectOption('0.5');
  await page.locator('.canary-form button[type=submit]').click();
  await page.locator('.share-candidate').waitFor();
  const wrote = new Set();
  // the server draws who answers: sixteen by one version alone come up once in 32,768 runs
  for (let i = 0; i < 16; i++) {
    const answer = await fetch(`${server.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ prompt: 't1 t2', max_tokens: 2 }),
    });
    wrote.add((await answer.json()).model);
  }
  assert.deepEqual([...wrote].sort(), ['tiny-chat', 'tiny-sft']);
  await visit(page, server.url, '/admin#/models', '.share-candidate');
  const rows = page.locator('section', { has: page.locator('.share-bar') }).locator('tbody tr');
  assert.equal(await rows.count(), 2);
  for (const n of [0, 1])
    assert.ok(Number(await rows.nth(n).locator('td').nth(1).textContent()) >= 1, 'each version has answered some');
  await page.getByRole('button', { name: 'Promote tiny-sft', exact: true }).first().click();
  await page.locator('dialog .evidence').waitFor();
  assert.equal(await page.locator('dialog h2').textContent(), 'Promote tiny-sft over tiny-chat?');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Keep tiny-chat');
  assert.equal(await page.locator('dialog button.primary').textContent(), 'Promote tiny-sft');
  await page.locator('dialog button.primary').click();
  await page.locator('.version.active', { hasText: 'tiny-sft' }).waitFor();
  assert.match(await page.locator('.version[data-name=tiny-chat]').textContent(), /previous/, 'what was replaced is no candidate');
  assert.equal(await page.locator('.share-candidate').count(), 0, 'the trial is over');
  await page.getByRole('button', { name: 'Roll back' }).click();
  await page.locator('dialog .evidence').waitFor();
  assert.equal(await page.locator('dialog h2').textContent(), 'Roll back from tiny-sft to tiny-chat?');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Keep tiny-sft', 'the safe button has the focus');
  await page.getByRole('button', { name: 'Roll back to tiny-chat' }).click();
  await page.locator('.version.active', { hasText: 'tiny-chat' }).waitFor();
  assert.match(await page.locator('.version[data-name=tiny-sft]').textContent(), /rolled back/);
  assert.ok(await page.getByRole('button', { name: 'Roll back' }).isDisabled(), 'the base has nothing to return to');
  assert.match(await page.locator('#rollback-why').textContent(), /tiny-chat was not trained from an earlier policy/);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('two versions side by side: with names, or hidden and ranked', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/models', '.tree ul .version');
  await page.getByRole('link', { name: 'Compare tiny-sft with the active version' }).click();
  await page.locator('#chat-a').waitFor();
  await page.locator('#chat-b option[value=tiny-sft]').waitFor({ state: 'attached' });
  assert.deepEqual(
    [await page.locator('#chat-a').inputValue(), await page.locator('#chat-b').inputValue()],
    ['tiny-chat', 'tiny-sft'],
  );
  await page.locator('#chat-max').fill('6');
  await page.locator('#chat-max').blur();
  await page.locator('#chat-blind').check();
  await page.locator('#chat-input').fill('t1 t2');
  await page.keyboard.press('Enter');
  await page.locator('.duel-choice button').first().waitFor();
  assert.doesNotMatch(await page.locator('.duel').textContent(), /tiny-/, 'names are hidden until the choice');
  const sent = page.waitForResponse((r) => r.url().endsWith('/judgment'));
  await page.locator('.duel-choice button').first().click();
  const { reveal } = await (await sent).json();
  assert.deepEqual(reveal.map((r) => r.model).sort(), ['tiny-chat', 'tiny-sft']);
  await page.locator('.duel .author').first().waitFor();

  await page.locator('#chat-blind').uncheck();
  await page.locator('#chat-input').fill('t3');
  await page.keyboard.press('Enter');
  const open = page.locator('.duel').nth(1);
  await open.locator('.meta .mono').nth(1).waitFor();
  assert.deepEqual(await open.locator('h2').allTextContents(), ['tiny-chat', 'tiny-sft']);
  assert.deepEqual(trouble, []);
  await context.close();
});

for (const phone of [false, true])
  test(`a tournament is started from the queue, and shows the order so far (${phone ? 'phone, zh, dark' : 'desktop'})`, async () => {
    const look = phone ? { phone, lang: 'zh', theme: 'dark' } : {};
    const { page, context, trouble } = await signedInPage(browser, server.url, look);
    for (let i = 0; i < 12; i++)
      await api(server.url, 'POST', '/v1/prompts', { messages: [{ role: 'user', content: `t${i + 3} t${phone ? 6 : 5} t${i}` }], tags: [`cup-${phone}`] });
    await visit(page, server.url, '/admin#/models', '.version.active');
    assert.match(await page.locator('.version.active').first().textContent(), phone ? /内存中的权重：/ : /Weights in memory: .*f32/);
    await visit(page, server.url, '/admin#/queue', '#draw-count');
    await page.locator('input[name=policy][value=tournament]').check();
    const go = page.locator('form button[type=submit]');
    await page.locator('#draw-count').fill('4');
    await page.locator('#draw-n').fill('2');
    await page.locator('#draw-max-tokens').fill('8');
    await page.locator('#draw-tag').fill(`cup-${phone}`);
    await page.locator('#draw-versions input').nth(0).check();
    await go.click();
    await page.locator('#draw-versions-error:not(:empty)').waitFor(); // one version is no tournament
    await page.locator('#draw-versions input').nth(1).check();
    await go.click();
    const standings = page.locator('.draws > li', { has: page.locator('.tag.accent') }).locator('.standings'); // of the running one
    await standings.locator('li').nth(1).waitFor();
    assert.equal(await standings.locator('li').count(), 2);
    const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(over <= 0, `the page scrolls sideways by ${over} px`);
    if (process.env.INSTRUCTD_SHOTS)
      await page.screenshot({ path: `${process.env.INSTRUCTD_SHOTS}/tournament-${phone}.png`, fullPage: true });
    const [draw] = (await api(server.url, 'GET', '/admin/sets/draws?limit=1')).data;
    await api(server.url, 'POST', `/admin/sets/draws/${draw.id}/cancel`, {});
    assert.deepEqual(trouble, []);
    await context.close();
  });

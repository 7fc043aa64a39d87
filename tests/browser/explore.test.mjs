// The look into models: masked and full attention side by side, by keyboard; plans of model sizes.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { openPage, startBrowser, startServer, visit } from './support.mjs';

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

const LINK = '/explore?text=t5%20t9%20t2%20t40%20t7';

test('a decoder hides what comes later, an encoder nothing; arrow keys choose the token', async () => {
  const { page, context, trouble } = await openPage(browser, server.url);
  await visit(page, server.url, LINK, '.looks figure:nth-child(2) .token');
  const unseen = (figure) => page.locator(`.looks figure:nth-child(${figure}) .token.unseen`).count();
  // The third of five tokens is chosen at first.
  assert.deepEqual([await unseen(1), await unseen(2)], [2, 0]);
  assert.equal(await page.locator('.looks figure:nth-child(1) .masked').count(), 10);
  assert.equal(await page.locator('.looks figure:nth-child(2) .masked').count(), 0);
  await page.locator('.looks figure:nth-child(1) .token.from').focus();
  await page.keyboard.press('ArrowLeft');
  assert.equal(await unseen(1), 3);
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 't9');
  await page.keyboard.press('End');
  assert.equal(await unseen(1), 0);
  await page.keyboard.press('Home');
  assert.match(await page.locator('.looks figure:nth-child(1) .attends').textContent(), /t5 attends to: t5 100\s%\./);
  // Numbers are the API's.
  const answer = await page.request.post(`${server.url}/v1/attention`, { data: { text: 't5 t9 t2 t40 t7', layers: [1] } });
  const maps = (await answer.json()).maps[0].heads;
  await page.locator('.looks figure:nth-child(1) select').first().selectOption({ value: '1' });
  await page.locator('.looks figure:nth-child(1):not([aria-busy])').waitFor();
  await page.locator('.looks figure:nth-child(1) select').nth(1).selectOption({ value: '2' });
  await page.locator('.looks figure:nth-child(1) .token').nth(4).click();
  const label = await page.locator('.looks figure:nth-child(1) .token').nth(1).getAttribute('aria-label');
  const share = maps[2][4][1];
  assert.equal(label, `t9: ${(share * 100).toFixed(share < 0.0995 ? 1 : 0)}\u00a0%`);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a plan follows its fields', async () => {
  const { page, context, trouble } = await openPage(browser, server.url);
  await visit(page, server.url, LINK, '.plan-out table');
  await page.locator('#plan-preset').selectOption('gpt3-175b');
  await page.locator('.plan-out strong', { hasText: 'GPT-3 175B' }).waitFor();
  assert.match(await page.locator('.plan-out').textContent(), /174 604 259 328 parameters/);
  const devices = () => page.locator('.plan-out table').first().locator('tbody tr').nth(1).locator('td').nth(4).textContent();
  assert.equal(await devices(), '5');
  await page.locator('#plan-memory_gib').fill('24');
  await page.locator('#plan-memory_gib').blur();
  await page.waitForFunction(() => document.querySelectorAll('.plan-out tbody tr')[1].children[5].textContent === '16');
  assert.deepEqual(trouble, []);
  await context.close();
});

// A newcomer's first run from the home page: sign in, sample data, rank ten pairs; every width of the home page.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { ADMIN_KEY, api, listOf, openPage, startBrowser, startServer } from './support.mjs';

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

const step = (page, name) => page.locator('.step', { hasText: name });

test('the home page leads from the key to ten rankings and on to training', async () => {
  const { page, context, trouble } = await openPage(browser, server.url);
  await page.goto(server.url);
  await step(page, 'Sign in').getByRole('link').waitFor();
  assert.match(await step(page, 'Sign in').innerText(), /printed it once in its terminal/, 'where the key is');
  assert.equal(await step(page, 'Sign in').getAttribute('aria-current'), 'step');
  await step(page, 'Sign in').getByRole('link').click();
  await page.locator('#sign-key').fill(ADMIN_KEY);
  await page.locator('.sign-in button[type=submit]').click();
  await page.locator('.sign-in').waitFor({ state: 'detached' });

  await page.goto(server.url);
  await step(page, 'Load sample data').getByRole('button').click();
  await page.locator('.step.done', { hasText: 'Load sample data' }).waitFor();
  for (let i = 0; i < 50; i++) {
    const sets = listOf(await api(server.url, 'GET', '/v1/comparison-sets?limit=200'));
    if (sets.filter((s) => s.status === 'open').length >= 10) break;
    await new Promise((r) => setTimeout(r, 200));
  }
  await step(page, 'Rank ten pairs').getByRole('link').click();
  for (let i = 1; i <= 10; i++) {
    await page.locator('.prose, .plain').first().waitFor();
    const stored = page.waitForResponse((r) => r.url().endsWith('/judgment') && r.ok());
    await page.keyboard.press('1');
    await page.keyboard.press('Enter');
    await stored;
    await page.waitForTimeout(150); // the next set is drawn
  }
  await page.goto(server.url);
  await page.locator('.step.done', { hasText: 'Rank ten pairs' }).waitFor();
  await step(page, 'Train a reward model').getByRole('link').click();
  await page.waitForURL(/admin#\/jobs\/new\/reward/);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('sample data loaded twice is loaded once', async () => {
  const before = listOf(await api(server.url, 'GET', '/v1/comparison-sets?limit=500')).length;
  const again = await api(server.url, 'POST', '/admin/sample-data', {});
  assert.equal(again.imported, 0);
  assert.equal(again.draw, null);
  assert.equal(listOf(await api(server.url, 'GET', '/v1/comparison-sets?limit=500')).length, before);
});

test('the home page fits every width, and the command can be copied', async () => {
  const { page, context, trouble } = await openPage(browser, server.url);
  await context.grantPermissions(['clipboard-read', 'clipboard-write']);
  for (const width of [320, 390, 560, 820, 1100, 1440, 2560]) {
    await page.setViewportSize({ width, height: 900 });
    await page.goto(server.url);
    await page.locator('.step').first().waitFor();
    const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(over <= 0, `${width}: the page scrolls sideways by ${over} px`);
  }
  await page.getByRole('button', { name: 'Copy' }).click();
  assert.match(await page.evaluate(() => navigator.clipboard.readText()), /^curl http.*chat\/completions/);
  assert.deepEqual(trouble, []);
  await context.close();
});

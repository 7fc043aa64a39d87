// A newcomer's first run from the home page: sign in, sample data, rank ten pairs; every width of the home page.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { ADMIN_KEY, api, listOf, openPage, signedInPage, startBrowser, startServer } from './support.mjs';

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
  // nothing can be ranked yet: the step says what comes before, and leads nowhere
  await step(page, 'Rank ten pairs').getByText('There are no prompts yet').waitFor();
  assert.equal(await step(page, 'Rank ten pairs').getByRole('link').count(), 0);
  await step(page, 'Load sample data').getByRole('button').click();
  await page.locator('.step.done', { hasText: 'Load sample data' }).waitFor();
  for (let i = 0; i < 50; i++) {
    const sets = listOf(await api(server.url, 'GET', '/v1/comparison-sets?limit=200'));
    if (sets.filter((s) => s.status === 'open').length >= 10) break;
    await new Promise((r) => setTimeout(r, 200));
  }
  await step(page, 'Rank ten pairs').getByRole('link', { name: 'Rank', exact: true }).click();
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

test('without open pairs the home page and the label page say what to do: draw sets, or nothing', async () => {
  const fresh = await startServer({ withEncoder: false });
  try {
    await api(fresh.url, 'POST', '/v1/prompts', { messages: [{ role: 'user', content: 't5 t6' }] });
    const admin = await signedInPage(browser, fresh.url);
    await admin.page.goto(fresh.url);
    const rank = step(admin.page, 'Rank ten pairs');
    await rank.getByText('Draw sets from the stored prompts').waitFor();
    await admin.page.goto(`${fresh.url}/label`);
    await admin.page.locator('.empty').getByRole('link', { name: 'Draw sets' }).waitFor();
    await admin.page.goto(fresh.url);
    await rank.getByRole('link', { name: 'Draw sets' }).click();
    await admin.page.locator('.policies').waitFor();
    assert.match(admin.page.url(), /admin#\/queue$/);
    assert.deepEqual(admin.trouble, []);
    await admin.context.close();

    const labeler = await openPage(browser, fresh.url);
    const { token } = await api(fresh.url, 'POST', '/admin/invites', {});
    await labeler.context.request.post(`${fresh.url}/session`, { data: { invite: token, name: 'Kim' } });
    await labeler.page.goto(fresh.url);
    await step(labeler.page, 'Rank ten pairs').getByText('nothing for you to rank now').waitFor();
    assert.equal(await step(labeler.page, 'Rank ten pairs').getByRole('link').count(), 0);
    await labeler.page.goto(`${fresh.url}/label`);
    await labeler.page.locator('.empty').getByText('New sets appear here automatically').waitFor();
    assert.equal(await labeler.page.getByRole('link', { name: 'Draw sets' }).count(), 0);
    assert.deepEqual(labeler.trouble, []);
    await labeler.context.close();
  } finally {
    await fresh.stop();
  }
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

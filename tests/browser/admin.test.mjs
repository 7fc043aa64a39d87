// The admin and chat pages against the real binary: sign in, the loop, jobs, forms, people.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { api, openPage, signIn, signedInPage, startBrowser, startServer, visit } from './support.mjs';

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

test('a wrong key is refused, the right one shows the loop and the jobs', async () => {
  const { page, context, trouble } = await openPage(browser, server.url);
  await page.goto(`${server.url}/admin`);
  await page.locator('#sign-key').fill('not the key');
  await page.locator('.sign-in button[type=submit]').click();
  await page.locator('.sign-in .form-error:not(:empty)').waitFor();
  await signIn(page, server.url, '/admin');
  await page.locator('.loop').waitFor();
  const names = await page.locator('.node-name').allTextContents();
  assert.deepEqual(names, ['Prompts', 'Answers', 'Rankings', 'Reward model', 'PPO', 'Active model']);
  assert.ok((await page.locator('.node.active .node-value').textContent()).trim().length > 0);
  await page.locator('.next-step .button').waitFor();
  await page.locator('.tabs a', { hasText: 'Jobs' }).click();
  await page.locator('.view-head a.button', { hasText: 'New job' }).click();
  await page.locator('.recipes a').first().waitFor();
  const recipes = (await page.locator('.recipes a').allTextContents()).join(' ');
  for (const name of ['SFT', 'Reward model', 'PPO']) assert.match(recipes, new RegExp(name));
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a job form shows the schema, and a bad value is marked at its field', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/jobs/new/sft', '.schema-form');
  await page.locator('#arg-learning_rate').fill('much');
  await page.locator('.job-form button[type=submit]').click();
  assert.equal(await page.locator('#arg-learning_rate').getAttribute('aria-invalid'), 'true');
  await page.locator('#arg-learning_rate').fill('-1');
  await page.locator('.job-form button[type=submit]').click();
  await page.locator('#arg-learning_rate[aria-invalid=true]').waitFor();
  assert.match(await page.locator('#arg-learning_rate-error').textContent(), /\S/, "the server's words are at the field");
  assert.deepEqual(trouble, []);
  await context.close();
});

test('models and people pages work; an invite signs a labeler in', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/models', '.tree .version');
  await visit(page, server.url, '/admin#/people', '.inline-form');
  await page.locator('#invite-note').fill('Ada 王');
  await page
    .locator('.inline-form', { has: page.locator('#invite-note') })
    .locator('button')
    .click();
  const link = await page.locator('dialog .secret input').inputValue();
  assert.match(link, /\/label#invite=./);

  const guest = await openPage(browser, server.url);
  await guest.page.goto(link);
  assert.match(await guest.page.locator('.sign-in h1').textContent(), /Welcome, Ada 王/);
  assert.equal(await guest.page.locator('#sign-name').inputValue(), 'Ada 王');
  await guest.page.locator('.sign-in button[type=submit]').click();
  await guest.page.locator('#own-link-kept').click();
  await guest.page.locator('.sign-in').waitFor({ state: 'detached' });
  assert.equal(await guest.page.locator('.user-name').textContent(), 'Ada 王');
  assert.ok(!guest.page.url().includes('invite='), 'the token leaves the address bar');
  await guest.page.goto(`${server.url}/admin`);
  assert.match(await guest.page.locator('[role=alert]').textContent(), /signed in as Ada 王/);
  await guest.page.locator('[role=alert] a').click();
  await guest.page.waitForURL(/\/label/);
  assert.deepEqual(guest.trouble, []);
  await guest.context.close();
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a file import counts lines and names the bad one', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/data', '#import-file');
  const good = {
    prompt_id: 'p1',
    prompt: [{ role: 'user', content: 'Hi' }],
    completions: [
      { text: 'Hello', tier: 0 },
      { text: 'No', tier: 1 },
    ],
  };
  await page.locator('#import-file').setInputFiles({
    name: 'ranked.jsonl',
    mimeType: 'application/x-ndjson',
    buffer: Buffer.from(`${JSON.stringify(good)}\n{"prompt": 3}\n`),
  });
  await page
    .locator('form', { has: page.locator('#import-file') })
    .locator('button[type=submit]')
    .click();
  await page.locator('.errors li').waitFor();
  assert.match(await page.locator('.errors').textContent(), /2/, 'line 2 is named');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('settings: explained, found by words, changed while running, wrong values refused at the field', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/settings', '.setting');
  const all = await page.locator('.setting').count();
  assert.ok(all > 25, `${all} settings`);
  assert.equal(await page.locator('.setting .help:empty').count(), 0);
  assert.ok(!(await page.locator('main').textContent()).includes('browser-test-admin-key'), 'the admin key is not shown');
  await page.locator('#settings-filter').fill('overlap');
  const row = page.locator('.setting[data-name="labeling.overlap"]');
  await row.waitFor();
  assert.ok((await page.locator('.setting').count()) < all);
  await row.locator('input').fill('0');
  await row.locator('button[type=submit]').click();
  await row.locator('input[aria-invalid=true]').waitFor();
  assert.match(await row.locator('.form-error').textContent(), /\S/);
  await row.locator('input').fill('2');
  await row.locator('button[type=submit]').click();
  await row.getByText('Changed here').waitFor();
  const stored = await api(server.url, 'POST', '/v1/comparison-sets', {
    messages: [{ role: 'user', content: 'overlap?' }],
    completions: ['a', 'b'],
  });
  assert.equal(stored.overlap, 2, 'the change is in effect');
  await row.locator('button.quiet').click();
  await row.getByText('Changed here').waitFor({ state: 'detached' });
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a reviewer or labeler is kept out of the pages for administrators', async () => {
  const { page, context, trouble } = await openPage(browser, server.url);
  const { token } = await api(server.url, 'POST', '/admin/invites', { role: 'labeler' });
  await page.goto(`${server.url}/label#invite=${token}`);
  await page.locator('#sign-name').fill('Lu');
  await page.locator('.sign-in button[type=submit]').click();
  await page.locator('#own-link-kept').click();
  await page.locator('.sign-in').waitFor({ state: 'detached' });
  await page.goto(`${server.url}/admin#/settings`);
  await page.locator('[role=alert]').waitFor();
  assert.equal(await page.locator('.setting').count(), 0);
  assert.deepEqual(trouble, []);
  await context.close();
});

// The admin and chat pages against the real binary: sign in, the loop, jobs, forms, people.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { openPage, signIn, signedInPage, startBrowser, startServer, visit } from './support.mjs';

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
  assert.deepEqual(names, ['Prompts', 'Completions', 'Rankings', 'Reward model', 'PPO', 'Active model']);
  assert.ok((await page.locator('.node.active .node-value').textContent()).trim().length > 0);
  await page.locator('.next-step .button').waitFor();
  await page.locator('.tabs a', { hasText: 'Jobs' }).click();
  await page.locator('.view-head a.button').first().waitFor();
  const recipes = (await page.locator('.view-head a.button').allTextContents()).join(' ');
  for (const name of ['sft', 'reward', 'ppo']) assert.match(recipes, new RegExp(name));
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

test('models and labels pages work; an invite signs a labeler in', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/models', '.tree .version');
  await visit(page, server.url, '/admin#/labels', '.inline-form');
  await page.locator('#invite-note').fill('for Ada');
  await page
    .locator('.inline-form', { has: page.locator('#invite-note') })
    .locator('button')
    .click();
  const link = await page.locator('dialog .secret input').inputValue();
  assert.match(link, /\/label\?invite=./);

  const guest = await openPage(browser, server.url);
  await guest.page.goto(link);
  await guest.page.locator('#sign-name').fill('Ada 王');
  await guest.page.locator('.sign-in button[type=submit]').click();
  await guest.page.locator('.sign-in').waitFor({ state: 'detached' });
  assert.equal(await guest.page.locator('.user-name').textContent(), 'Ada 王');
  assert.ok(!guest.page.url().includes('invite='), 'the token leaves the address bar');
  await guest.page.goto(`${server.url}/admin`);
  await guest.page.locator('[role=alert]').waitFor();
  assert.deepEqual(guest.trouble, []);
  await guest.context.close();
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a file import counts lines and names the bad one', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/labels', '#import-file');
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

test('chat streams an answer and takes a thumb', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/chat', '#chat-input');
  await page.locator('#chat-max').fill('8');
  await page.locator('#chat-max').blur();
  await page.locator('#chat-input').fill('t5 t6 t7');
  await page.keyboard.press('Enter');
  await page.locator('.thumbs button').first().click();
  await page.locator('.thumbs button[aria-pressed=true]').waitFor();
  assert.deepEqual(trouble, []);
  await context.close();
});

test('chat: two answers become a ranking', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/chat', '#chat-input');
  await page.locator('#chat-max').fill('8');
  await page.locator('#chat-two').check();
  await page.locator('#chat-input').fill('t8 t9');
  await page.keyboard.press('Enter');
  const answer = page.waitForResponse(
    (r) => /comparisons$|judgment$/.test(new URL(r.url()).pathname) && r.request().method() === 'POST',
  );
  await page.locator('.duel button').nth(2).click();
  const sent = await answer;
  assert.ok(sent.ok(), `${sent.status()} ${await sent.text()}`);
  await page.locator('.tag.good').waitFor();
  assert.deepEqual(trouble, []);
  await context.close();
});

test('ask anything: fresh answers come back to be ranked', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/label?ask=1', '#ask-text');
  await page.locator('#ask-text').fill('t11 t12 t13');
  await page.locator('#ask-n').selectOption('3');
  await page.locator('.ask button[type=submit]').click();
  await page.locator('.answer').first().waitFor();
  assert.equal(await page.locator('.answer').count(), 3);
  assert.match(await page.locator('.prompt').textContent(), /t11 t12 t13/);
  assert.deepEqual(trouble, []);
  await context.close();
});

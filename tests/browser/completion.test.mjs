// Completion codes for crowd platforms: shown to a labeler whose quota is done, and to administrators.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { api, makeSet, signedInPage, startBrowser, startServer, visit } from './support.mjs';

let server;
let browser;
before(async () => {
  const env = { INSTRUCTD_LABELING__DAILY_QUOTA: '1', INSTRUCTD_LABELING__COMPLETION_SECRET: 'a secret of the operator' };
  server = await startServer({ withEncoder: false, env });
  browser = await startBrowser();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

test('a labeler who has done the quota sees the code that administrators see', async () => {
  await makeSet(server.url, 'Which is the capital of Denmark?', ['Copenhagen.', 'Oslo.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/label', '.answer');
  assert.equal(await page.locator('.completion-code').count(), 0);

  const turn = await api(server.url, 'GET', '/v1/label/next?resume=true');
  await api(server.url, 'POST', `/v1/label/${turn.assignment_id}/judgment`, {
    lease_token: turn.lease_token,
    outcome: 'ranked',
    items: turn.completions.map((c, tier) => ({ completion_id: c.id, tier })),
    idempotency_key: 'once',
  });
  await visit(page, server.url, '/label', '.completion-code');
  const code = await page.locator('.completion-code').textContent();
  assert.match(code, /^[0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4}$/);
  const { data } = await api(server.url, 'GET', '/admin/labelers');
  assert.equal(data.find((person) => person.id === 'admin').completion_code, code);

  const ada = await api(server.url, 'POST', '/admin/labelers', { name: 'Ada' });
  await visit(page, server.url, '/admin#/people', 'table');
  const row = page.getByRole('row', { name: /Ada/ }).first();
  await row.getByRole('button', { name: /Manage/ }).click();
  const shown = await page.locator('dialog').innerText();
  const listed = await api(server.url, 'GET', '/admin/labelers');
  const hers = listed.data.find((person) => person.name === 'Ada').completion_code;
  assert.notEqual(hers, code);
  assert.ok(shown.includes(hers), shown);
  assert.ok(ada);
  assert.deepEqual(trouble, []);
  await context.close();
});

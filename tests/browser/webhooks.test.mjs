// Webhooks on the settings page: made with a secret that is shown once, tried, sent again, deleted.
import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { createServer } from 'node:http';
import { after, before, test } from 'node:test';
import { signedInPage, startBrowser, startServer, violations, visit } from './support.mjs';

let server;
let browser;
let receiver;
/** What the receiver got, and the status of its next answer. */
const received = [];
let status = 204;

before(async () => {
  receiver = createServer((request, response) => {
    let body = '';
    request.on('data', (chunk) => (body += chunk));
    request.on('end', () => {
      received.push({ headers: request.headers, body });
      response.writeHead(status).end();
    });
  });
  await new Promise((done) => receiver.listen(0, '127.0.0.1', done));
  const host = `127.0.0.1:${receiver.address().port}`;
  const env = { INSTRUCTD_WEBHOOKS__HOSTS: JSON.stringify([host]), INSTRUCTD_WEBHOOKS__ATTEMPTS: '1' };
  server = await startServer({ withEncoder: false, env });
  browser = await startBrowser();
});
after(async () => {
  await browser?.close();
  await server?.stop();
  receiver?.close();
});

test('a webhook is added, tried, sent again and deleted', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/settings', '#webhook-url');
  const url = page.locator('#webhook-url');
  const add = page.getByRole('button', { name: 'Add webhook' });

  await url.fill('http://example.org/hook');
  await add.click();
  await page.locator('#webhook-error', { hasText: 'use https' }).waitFor();
  assert.equal(await url.getAttribute('aria-invalid'), 'true');

  const address = `http://127.0.0.1:${receiver.address().port}/hook`;
  await url.fill(address);
  await add.click();
  const secret = await page.locator('dialog .secret input').inputValue();
  assert.match(secret, /^whsec_/);
  await page.locator('dialog').getByRole('button', { name: 'Close' }).click();
  const hook = page.getByRole('row', { name: address }).first();
  await hook.getByText('Job succeeded').waitFor();
  assert.ok(!(await page.content()).includes(secret), 'the secret is shown once');

  // A test that the receiver refuses is given up after its one attempt.
  status = 500;
  await page.getByRole('button', { name: `Send a test to ${address}` }).click();
  const delivery = page.locator('tr[data-delivery]');
  await delivery.getByText('given up').waitFor();
  await delivery.getByText('500').waitFor();
  status = 204;
  await delivery.getByRole('button', { name: 'Send again' }).click();
  await delivery.getByText('delivered').waitFor();
  assert.equal(received.length, 2);
  const [first, second] = received;
  assert.equal(second.headers['webhook-id'], first.headers['webhook-id']);
  for (const { headers, body } of received) {
    const key = Buffer.from(secret.slice('whsec_'.length), 'base64');
    const signed = createHmac('sha256', key).update(`${headers['webhook-id']}.${headers['webhook-timestamp']}.${body}`).digest('base64');
    assert.equal(headers['webhook-signature'], `v1,${signed}`);
    assert.equal(JSON.parse(body).type, 'webhook.test');
  }

  assert.deepEqual(await violations(page), []);

  await page.getByRole('button', { name: `Delete the webhook ${address}` }).click();
  await page.locator('dialog').getByRole('button', { name: 'Delete', exact: true }).click();
  await page.getByText('No webhooks.').waitFor();
  assert.equal(await delivery.count(), 0);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the section is in Chinese too', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url, { lang: 'zh' });
  await visit(page, server.url, '/admin#/settings', '#webhook-url');
  await page.getByText('没有 webhook。').waitFor();
  await page.getByText('已知答案的准确率下降').waitFor();
  assert.deepEqual(trouble, []);
  await context.close();
});

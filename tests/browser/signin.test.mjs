// Coming in and coming back: links, invites, what was not sent, and what a refused secret says.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { api, judgmentsOf, listOf, makeSet, openPage, signedInPage, startBrowser, startServer, visit } from './support.mjs';

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

const addPerson = (name, role = 'labeler') => api(server.url, 'POST', '/admin/labelers', { name, role });

/** Ranks what is shown; the judgment does not arrive while `/judgment` is blocked. */
async function rank(page) {
  await page.locator('.answer').first().waitFor();
  await page.keyboard.press('1');
  await page.keyboard.press('Enter');
}

const outbox = (page) => page.evaluate(() => JSON.parse(localStorage.getItem('instructd.outbox') ?? '[]'));

test('a labeler whose cookie is lost comes back by link as the same person, and unsent judgments are sent', async () => {
  const ada = await addPerson('Ada Returning');
  const sets = [];
  for (const q of ['first', 'second']) sets.push(await makeSet(server.url, `return ${q}`, ['one', 'two']));
  const { page, context, trouble } = await openPage(browser, server.url);
  await page.goto(server.url + ada.link.url);
  await page.locator('.answer').first().waitFor();
  assert.equal(await page.locator('.user-name').textContent(), 'Ada Returning');
  assert.ok(!page.url().includes('link'), 'the secret leaves the address bar');
  await page.route('**/judgment', (route) => route.abort());
  await rank(page);
  await page.waitForFunction(() => JSON.parse(localStorage.getItem('instructd.outbox') ?? '[]').length === 1);
  await context.clearCookies();
  await page.unroute('**/judgment');
  await page.reload();
  await page.locator('.sign-in').waitFor();
  await page.locator('#sign-link').fill(`${server.url}${ada.link.url}`);
  const sent = page.waitForResponse((r) => r.url().endsWith('/judgment') && r.status() === 200);
  await page.locator('.sign-in button[type=submit]').click();
  await sent;
  await page.waitForFunction(() => localStorage.getItem('instructd.outbox') === null);
  const stored = (await Promise.all(sets.map((id) => judgmentsOf(server.url, id)))).flat();
  assert.deepEqual(
    stored.map((j) => j.labeler_id),
    [ada.id],
  );
  const people = listOf(await api(server.url, 'GET', '/admin/labelers')).filter((l) => l.name === 'Ada Returning');
  assert.equal(people.length, 1, 'one person');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('signing out warns of unsent judgments; another person does not send them; their own does', async () => {
  const [bea, cem] = [await addPerson('Bea'), await addPerson('Cem')];
  const set = await makeSet(server.url, 'sign-out', ['one', 'two']);
  const { page, context, trouble } = await openPage(browser, server.url);
  await page.goto(server.url + bea.link.url);
  await page.route('**/judgment', (route) => route.abort());
  await rank(page);
  await page.waitForFunction(() => JSON.parse(localStorage.getItem('instructd.outbox') ?? '[]').length === 1);
  await page.locator('.user button').click();
  assert.match(await page.locator('dialog h2').textContent(), /One judgment is not sent yet/);
  await page.locator('dialog .actions button.primary').click();
  assert.equal(await page.locator('.user-name').textContent(), 'Bea', 'still here');
  await page.locator('.user button').click();
  await page.locator('dialog .actions button.danger').click();
  await page.locator('.sign-in').waitFor();
  await page.unroute('**/judgment');
  await page.locator('#sign-link').fill(cem.link.token);
  await page.locator('.sign-in button[type=submit]').click();
  await page.locator('.toast', { hasText: 'one unsent judgment of Bea' }).waitFor();
  assert.equal((await outbox(page)).length, 1, 'kept apart');
  assert.deepEqual(await judgmentsOf(server.url, set), []);
  // Without signing out: the link of the other person is enough.
  const sent = page.waitForResponse((r) => r.url().endsWith('/judgment') && r.status() === 200);
  await page.goto(server.url + bea.link.url);
  await sent;
  const stored = await judgmentsOf(server.url, set);
  assert.deepEqual(
    stored.map((j) => j.labeler_id),
    [bea.id],
  );
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a session that ends under the work says what is kept, and the promise holds', async () => {
  const dee = await addPerson('Dee');
  for (const q of ['a', 'b']) await makeSet(server.url, `ends ${q}`, ['one', 'two']);
  const { page, context, trouble } = await openPage(browser, server.url);
  await page.goto(server.url + dee.link.url);
  await page.locator('.answer').first().waitFor();
  await context.clearCookies();
  await rank(page);
  await page.locator('.toast', { hasText: 'sign in again as Dee' }).waitFor();
  assert.equal((await outbox(page)).length, 1);
  const again = await api(server.url, 'POST', `/admin/labelers/${dee.id}/link`, {});
  const sent = page.waitForResponse((r) => r.url().endsWith('/judgment') && r.status() === 200);
  await page.goto(server.url + again.url);
  await sent;
  assert.deepEqual(trouble, []);
  await context.close();
});

test('adding a person shows their link, and it works; a second one of the name is a new link', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/people', '.inline-form');
  await page.locator('#person-name').fill('Eve 李');
  await page.locator('.inline-form', { has: page.locator('#person-name') }).locator('button').click();
  const link = await page.locator('dialog .secret input').inputValue();
  assert.match(link, /\/label#link=link-[0-9a-f]{64}$/);
  await page.keyboard.press('Escape');
  const guest = await openPage(browser, server.url);
  await guest.page.goto(link);
  await guest.page.locator('.user-name', { hasText: 'Eve 李' }).waitFor();

  await page.locator('#person-name').fill('eve 李');
  await page.locator('.inline-form', { has: page.locator('#person-name') }).locator('button').click();
  await page.locator('dialog', { hasText: 'Eve 李 is here already' }).locator('button.primary').click();
  await page.waitForFunction(() => document.querySelector('dialog .secret input'));
  const second = await page.locator('dialog .secret input').inputValue();
  assert.notEqual(second, link);
  await page.keyboard.press('Escape');
  const row = page.locator('tr', { hasText: 'Eve 李' });
  assert.equal(await row.count(), 1, 'one person');

  // The old link says that it was replaced; after revoking, the new one says that.
  const says = async (address, words) => {
    const fresh = await openPage(browser, server.url);
    await fresh.page.goto(address);
    await fresh.page.locator('.sign-in .form-error', { hasText: words }).waitFor();
    assert.deepEqual(fresh.trouble, []);
    await fresh.context.close();
  };
  await says(link, 'replaced by a newer one');
  await row.getByRole('button', { name: 'Manage Eve 李' }).click();
  await page.getByRole('button', { name: 'Revoke link' }).click();
  await page.locator('dialog button.danger').click();
  await page.locator('.toast.good', { hasText: 'no longer works' }).waitFor();
  await says(second, 'was revoked');
  await row.getByRole('button', { name: 'Manage Eve 李' }).click();
  await page.getByRole('button', { name: 'New link' }).click();
  const third = await page.locator('dialog .secret input').inputValue();
  await guest.page.goto(third);
  await guest.page.locator('.user-name', { hasText: 'Eve 李' }).waitFor();
  assert.deepEqual(guest.trouble, []);
  assert.deepEqual(trouble, []);
  await guest.context.close();
  await context.close();
});

test('an invite greets, gives a link to keep, and says when it was used', async () => {
  const invite = await api(server.url, 'POST', '/admin/invites', { name: 'Flo' });
  const { page, context, trouble } = await openPage(browser, server.url);
  await page.goto(server.url + invite.url);
  await page.locator('.sign-in h1', { hasText: 'Welcome, Flo' }).waitFor();
  assert.ok(!(await page.content()).includes(invite.token), 'the token is not on the page');
  await page.reload();
  await page.locator('.sign-in h1', { hasText: 'Welcome, Flo' }).waitFor();
  await page.locator('.sign-in button[type=submit]').click();
  const own = await page.locator('#own-link').inputValue();
  await page.locator('#own-link-kept').click();
  await page.locator('.user-name', { hasText: 'Flo' }).waitFor();
  await context.clearCookies();
  await page.goto(own);
  await page.locator('.user-name', { hasText: 'Flo' }).waitFor();
  await page.goto(server.url + invite.url);
  await page.locator('.toast', { hasText: 'the invite was not used' }).waitFor();
  await context.clearCookies();
  await page.goto(server.url + invite.url);
  await page.locator('.sign-in .form-error', { hasText: 'was used already' }).waitFor();
  assert.ok(await page.locator('#sign-link').isVisible(), 'a labeler meets the link first');
  const fields = await page.locator('.sign-in input').evaluateAll((all) => all.map((i) => [i.id, i.type]));
  assert.deepEqual(fields, [
    ['sign-link', 'password'],
    ['sign-key', 'password'],
  ]);
  assert.match(await page.locator('#sign-key-help').textContent(), /INSTRUCTD_ADMIN_KEY/);
  await page.locator('#sign-link').fill('hello');
  await page.locator('.sign-in button[type=submit]').click();
  await page.locator('.form-error', { hasText: 'whole link' }).waitFor();
  assert.deepEqual(trouble, []);
  await context.close();
});

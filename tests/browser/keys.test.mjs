// The list of keys on the label page, and keys that each person changes.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { api, judgmentsOf, makeSet, openPage, signedInPage, startBrowser, startServer, visit } from './support.mjs';

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

/** Opens the list of keys, presses `k` as the new key of an action, and closes the list. */
async function change(page, action, k) {
  await page.locator('.help-button').click();
  await page.locator(`[data-key=${action}]`).click();
  await page.keyboard.press(k);
  const said = await page.locator('dialog [role=status]').textContent();
  await page.keyboard.press('Escape');
  await page.locator('dialog').waitFor({ state: 'detached' });
  return said;
}

test('a key that a person changes works, is shown on its button, and is kept for that person alone', async () => {
  const set = await makeSet(server.url, 'Name a planet.', ['Mars.', 'A spoon.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  const hint = (name) => page.locator(`[data-act=${name}] kbd`);
  assert.equal(await hint('all_bad').textContent(), 'X');
  assert.match(await change(page, 'all_bad', 'q'), /“all bad” is on Q now/);
  assert.equal(await hint('all_bad').textContent(), 'Q');
  const isAllBad = async () => (await page.locator('[data-act=all_bad]').getAttribute('aria-pressed')) === 'true';
  await page.keyboard.press('x');
  assert.equal(await isAllBad(), false, 'the former key does nothing');
  await page.keyboard.press('q');
  assert.equal(await isAllBad(), true);
  await page.keyboard.press('q');

  // a key that is taken changes places with the other
  assert.match(await change(page, 'skip', 'u'), /“skip, with a reason” is on U now, and “reopen the last judgment” on S/);
  assert.deepEqual([await hint('skip').textContent(), await hint('undo').textContent()], ['U', 'S']);
  // keys that are the same for everybody cannot be given away
  await page.locator('.help-button').click();
  await page.locator('[data-key=more]').click();
  await page.keyboard.press('3');
  assert.match(await page.locator('dialog [role=status]').textContent(), /Choose a letter/);
  await page.keyboard.press('Escape');
  assert.equal(await page.locator('dialog[open]').count(), 1, 'Esc ends the choice and leaves the list open');
  await page.keyboard.press('Escape');
  await page.locator('dialog').waitFor({ state: 'detached' });

  // after a reload, and through to the judgment
  await page.reload();
  await page.locator('.answer').first().waitFor();
  assert.equal(await hint('all_bad').textContent(), 'Q');
  await page.keyboard.press('q');
  await page.keyboard.press('Enter');
  for (let i = 0; i < 100 && (await judgmentsOf(server.url, set)).length === 0; i++) await new Promise((r) => setTimeout(r, 50));
  assert.equal((await judgmentsOf(server.url, set))[0].outcome, 'all_bad');

  // another person in the same browser has the default keys
  const { token } = await api(server.url, 'POST', '/admin/invites', { role: 'labeler' });
  assert.ok((await context.request.post(`${server.url}/session`, { data: { invite: token, name: 'Bob' } })).ok());
  const other = await makeSet(server.url, 'Name a star.', ['The sun.', 'A fork.']);
  await visit(page, server.url, `/label?set_id=${other}`, '.answer');
  assert.equal(await hint('all_bad').textContent(), 'X');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the default keys come back', async () => {
  const set = await makeSet(server.url, 'Name a sea.', ['The Baltic.', 'A hill.']);
  const { page, context, trouble } = await openPage(browser, server.url, { lang: 'zh' });
  const { token } = await api(server.url, 'POST', '/admin/invites', { role: 'labeler' });
  assert.ok((await context.request.post(`${server.url}/session`, { data: { invite: token, name: 'Cy' } })).ok());
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  assert.match(await change(page, 'tie', 't'), /“平局”现在用 T/);
  await page.keyboard.press('t');
  assert.equal(await page.locator('[data-act=tie]').getAttribute('aria-pressed'), 'true');
  await page.locator('.help-button').click();
  await page.locator('dialog button', { hasText: '恢复默认按键' }).click();
  assert.equal(await page.locator('[data-key=tie]').textContent(), '=');
  await page.keyboard.press('Escape');
  await page.locator('dialog').waitFor({ state: 'detached' });
  assert.equal(await page.locator('[data-act=tie] kbd').textContent(), '=');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('changed keys follow the person to another browser, and keys of a browser are taken over once', async () => {
  const set = await makeSet(server.url, 'Name a river.', ['The Elbe.', 'A chair.']);
  const dan = await api(server.url, 'POST', '/admin/labelers', { name: 'Dan' });
  const opened = async (stored) => {
    const browserOf = await openPage(browser, server.url);
    await browserOf.context.addInitScript(
      ([id, keys]) => {
        // at the first visit only
        if (localStorage.getItem('visited')) return;
        localStorage.setItem('visited', '1');
        localStorage.setItem(`instructd.keys.${id}`, keys);
      },
      [dan.id, stored],
    );
    await browserOf.page.goto(server.url + dan.link.url);
    await browserOf.page.locator('.answer').first().waitFor();
    return browserOf;
  };
  const key = (page, name) => page.locator(`[data-act=${name}] kbd`);
  const stored = async (page) => (await page.evaluate(async () => (await fetch('/v1/label/keys')).json())).keys;
  // kept by an earlier version of the page
  const first = await opened(JSON.stringify({ all_bad: 'q' }));
  await first.page.waitForFunction(async () => (await (await fetch('/v1/label/keys')).json()).keys?.all_bad === 'q');
  // a browser with other keys of its own takes the server's
  const second = await opened(JSON.stringify({ all_bad: 'z' }));
  await second.page.locator('[data-act=all_bad] kbd', { hasText: 'Q' }).waitFor();
  const sent = second.page.waitForResponse((r) => r.url().endsWith('/v1/label/keys') && r.request().method() === 'POST');
  await change(second.page, 'skip', 'y');
  await sent;
  assert.deepEqual(await stored(second.page), { all_bad: 'q', skip: 'y' });
  // back in the first one; a change without a connection is sent by the next visit
  await first.page.reload();
  await first.page.locator('[data-act=skip] kbd', { hasText: 'Y' }).waitFor();
  await first.page.route('**/v1/label/keys', (route) => route.abort());
  await change(first.page, 'skip', 'v');
  assert.equal(await key(first.page, 'skip').textContent(), 'V');
  await first.page.unroute('**/v1/label/keys');
  await first.page.reload();
  await first.page.waitForFunction(async () => (await (await fetch('/v1/label/keys')).json()).keys?.skip === 'v');
  assert.equal(await key(first.page, 'skip').textContent(), 'V');
  assert.ok(set);
  for (const { context, trouble } of [first, second]) {
    assert.deepEqual(trouble, []);
    await context.close();
  }
});

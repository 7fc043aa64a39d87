// Several people at work: agreement, practice with a verdict, settling, quotas, roles, erasing, drawing sets, datasets.
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

/** A page on which a new person is signed in, by invite. */
async function newcomer(name, role = 'labeler') {
  const opened = await openPage(browser, server.url);
  const { token } = await api(server.url, 'POST', '/admin/invites', { role });
  const answer = await opened.context.request.post(`${server.url}/session`, { data: { invite: token, name } });
  assert.ok(answer.ok(), await answer.text());
  return opened;
}

const known = (set, kind, tiers, explanation) =>
  api(server.url, 'POST', `/admin/sets/${set.id}/known-answer`, {
    kind,
    tiers: set.completions.map((c, i) => ({ completion_id: c.id, tier: tiers[i] })),
    explanation,
  });

test('practice: the verdict comes at once, with the reason, and Enter goes on', async () => {
  const set = await api(server.url, 'POST', '/v1/comparison-sets', {
    messages: [{ role: 'user', content: 'What is two plus two?' }],
    completions: ['Four.', 'Five.'],
  });
  await known(set, 'calibration', [0, 1], 'Because **four** is right.');
  const { page, context, trouble } = await newcomer('Newcomer');
  await visit(page, server.url, '/label', '.practice');
  assert.match(await page.locator('.practice').textContent(), /Practice 1 of 1/);
  const texts = await page.locator('.answer-body').allTextContents();
  const wrong = texts.findIndex((x) => x.includes('Five'));
  await page.keyboard.press(String(wrong + 1));
  await page.keyboard.press('Enter');
  await page.locator('.verdict.missed').waitFor();
  assert.equal(await page.locator('.verdict strong', { hasText: /^four$/ }).count(), 1, 'the reason is shown as Markdown');
  assert.match(
    await page
      .locator('.answer')
      .nth(1 - wrong)
      .locator('.expected')
      .textContent(),
    /best/,
  );
  await page.keyboard.press('Enter');
  await page.locator('.verdict').waitFor({ state: 'detached' });
  assert.deepEqual(trouble, []);
  await context.close();
});

test('two people disagree: the figures say so, a reviewer settles it', async () => {
  const ids = [];
  for (let i = 0; i < 4; i++) {
    const set = await api(server.url, 'POST', '/v1/comparison-sets', {
      messages: [{ role: 'user', content: `Which is larger? (${i})` }],
      completions: ['The sun.', 'The moon.'],
      overlap: 2,
    });
    ids.push(set.id);
  }
  for (const [name, likes] of [
    ['Ada', () => 'sun'],
    ['王芳', (i) => (i === 0 ? 'moon' : 'sun')],
  ]) {
    const { page, context, trouble } = await newcomer(name);
    for (const [i, id] of ids.entries()) {
      await visit(page, server.url, `/label?set_id=${id}`, '.answer');
      const texts = await page.locator('.answer-body').allTextContents();
      const sent = page.waitForResponse((r) => r.url().endsWith('/judgment'));
      await page.keyboard.press(String(texts.findIndex((x) => x.includes(likes(i))) + 1));
      await page.keyboard.press('Enter');
      assert.equal((await sent).status(), 200);
    }
    if (name !== 'Ada') {
      await page.locator('.progress-button').click();
      await page.locator('dialog .figure-row').first().waitFor();
      assert.match(await page.locator('dialog').textContent(), /75\u00a0%/, 'own agreement: three of four');
      await page.keyboard.press('Escape');
    }
    assert.deepEqual(trouble, []);
    await context.close();
  }

  const { page, context, trouble } = await newcomer('Reviewer', 'reviewer');
  await visit(page, server.url, '/admin', '.throughput');
  assert.deepEqual(await page.locator('.tabs a').allTextContents(), ['Judgments'], 'a reviewer sees the judgments only');
  await page.locator('.figure-row').first().waitFor();
  const pairwise = page.locator('.figure-row', { hasText: 'Two people prefer the same answer' });
  assert.match(await pairwise.textContent(), /75\u00a0%/);
  assert.match(await page.locator('main').textContent(), /72–77 %/, 'the ceiling is beside the agreement');
  for (const name of ['Ada', '王芳']) await page.getByRole('cell', { name, exact: true }).first().waitFor();
  await page.locator('section', { hasText: 'Most disputed' }).locator('.prompt-cell a').first().click();
  await page.locator('.places select').first().waitFor();
  const answers = await page.locator('.review-answers article').allTextContents();
  const sun = answers.findIndex((x) => x.includes('The sun.'));
  await page.locator('.places select').nth(sun).selectOption('0');
  await page
    .locator('.places select')
    .nth(1 - sun)
    .selectOption('1');
  await page.locator('#settle-why').fill('The sun is a star.');
  await page.getByRole('button', { name: 'Settle the set' }).click();
  await page.locator('.tag.good', { hasText: 'settled' }).waitFor();
  assert.equal((await judgmentsOf(server.url, ids[0])).length, 3);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('sets are drawn from stored prompts by a policy, and one is taken out', async () => {
  for (let i = 0; i < 3; i++)
    await api(server.url, 'POST', '/v1/prompts', { messages: [{ role: 'user', content: `t${i} t${i + 7}` }], tags: ['draw'] });
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/queue', '.policies');
  await page.locator('#draw-count').fill('0');
  await page.getByRole('button', { name: 'Create sets' }).click();
  await page.locator('#draw-count[aria-invalid=true]').waitFor();
  await page.locator('#draw-count').fill('3');
  await page.locator('#draw-tag').fill('draw');
  await page.getByRole('button', { name: 'Create sets' }).click();
  await page.locator('.running li', { hasText: 'done' }).first().waitFor({ timeout: 30_000 });
  const rows = page.locator('section', { hasText: 'Sets' }).locator('tbody tr', { hasText: 'Random' });
  await rows.first().waitFor();
  const before = await rows.count();
  assert.ok(before >= 1, `${before} sets`);
  await rows.first().locator('td.pick input').check();
  await page.getByRole('button', { name: 'Remove 1 set from the queue' }).click();
  await page.locator('dialog button.danger').click();
  await page.locator('.toast.good').waitFor();
  await page.locator('#sets-status').selectOption('retired');
  await page.locator('.pager', { hasText: '1–1 of 1' }).waitFor();
  assert.equal(await rows.count(), 1);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('role, quota and erasure of a person; the audit trail tells', async () => {
  const guest = await newcomer('Temp Person');
  for (const q of ['a', 'b']) await makeSet(server.url, `quota ${q}`, ['one', 'two']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/people', '.table-box td');
  const row = page.locator('tr', { hasText: 'Temp Person' });
  await row.getByRole('button', { name: 'Manage Temp Person' }).click();
  await page.locator('#edit-quota').fill('1');
  await page.locator('#edit-role').selectOption('reviewer');
  await page.locator('dialog button.primary').click();
  await page.locator('tr', { hasText: 'Temp Person' }).locator('td', { hasText: 'Reviewer' }).waitFor();

  await visit(guest.page, server.url, '/label', '.answer, .empty');
  if (await guest.page.locator('.answer').count()) {
    await guest.page.keyboard.press('1');
    const sent = guest.page.waitForResponse((r) => r.url().endsWith('/judgment'));
    await guest.page.keyboard.press('Enter');
    await sent;
  }
  await visit(guest.page, server.url, '/label', '.empty');
  assert.match(await guest.page.locator('.empty h1').textContent(), /Done for today/);
  assert.deepEqual(guest.trouble, []);

  await page.locator('tr', { hasText: 'Temp Person' }).getByRole('button').click();
  await page.getByRole('button', { name: 'Erase' }).click();
  const go = page.locator('dialog button[type=submit].danger');
  assert.ok(await go.isDisabled(), 'the name must be typed first');
  await page.locator('#erase-name').fill('Temp Person');
  await go.click();
  await page.locator('.tag', { hasText: 'erased' }).waitFor();
  await page.locator('td', { hasText: 'Temp Person' }).first().waitFor({ state: 'detached' }); // nowhere, not even in an invite
  assert.equal((await guest.context.request.get(`${server.url}/session`)).status(), 401, 'the session, too');
  await guest.context.close();

  await visit(page, server.url, '/admin#/data', '#dataset-name');
  await page.locator('#dataset-name').fill('first.try');
  await page.getByRole('button', { name: 'Freeze' }).click();
  await page.locator('td', { hasText: 'first.try' }).first().waitFor();
  await visit(page, server.url, '/admin#/audit', '#audit-action');
  await page.locator('td', { hasText: 'erased a person' }).first().waitFor();
  await page.locator('td', { hasText: 'froze a dataset' }).first().waitFor();
  assert.deepEqual(trouble, []);
  await context.close();
});

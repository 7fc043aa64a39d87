// Projects: a second one is made on the admin page, a labeler becomes its member and gets its sets, guidelines and rubric.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { api, judgmentsOf, listOf, openPage, signedInPage, startBrowser, startServer, violations, visit } from './support.mjs';

let server;
let browser;
before(async () => {
  server = await startServer({ withEncoder: false });
  browser = await startBrowser();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

/** A page on which a person has signed in by their key. */
async function pageOf(key, options) {
  const opened = await openPage(browser, server.url, options);
  const response = await opened.context.request.post(`${server.url}/session`, { data: { key } });
  assert.ok(response.ok(), await response.text());
  return opened;
}

const projectNamed = async (name) => listOf(await api(server.url, 'GET', '/admin/projects')).find((p) => p.name === name);

const makeSetIn = async (project, prompt, texts) => {
  const completions = texts.map((text) => ({ text }));
  return (await api(server.url, 'POST', '/v1/comparison-sets', { messages: [{ role: 'user', content: prompt }], completions, project })).id;
};

test('one project shows no choice anywhere', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/people', '#new-project');
  assert.equal(await page.locator('#admin-project').count(), 0);
  await visit(page, server.url, '/label?ask=1', 'textarea');
  assert.equal(await page.locator('.project-choice select').count(), 0);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a second project has a member who labels its sets by its rubric and guidelines', async () => {
  const ada = await api(server.url, 'POST', '/admin/keys', { name: 'Ada', scopes: ['feedback'] });
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/people', '#new-project');
  await page.locator('#new-project').fill('default');
  await page.getByRole('button', { name: 'Create project' }).click();
  await page.locator('#new-project-error', { hasText: 'default' }).waitFor();
  await page.locator('#new-project').fill('Safety');
  await page.getByRole('button', { name: 'Create project' }).click();
  const card = page.getByRole('article', { name: 'Safety' });
  await card.waitFor();
  await card.locator('summary').click();
  await card.getByLabel('Person').selectOption({ label: 'Ada' });
  await card.getByLabel('Judgments a day', { exact: true }).fill('5');
  await card.getByRole('button', { name: 'Add member' }).click();
  await card.getByRole('button', { name: 'Remove Ada' }).waitFor();
  await card.getByText('Members: 1').waitFor();
  assert.deepEqual(await violations(page), []);
  const safety = await projectNamed('Safety');
  const { data: members } = await api(server.url, 'GET', `/admin/projects/${safety.id}/members`);
  assert.deepEqual(members.map((m) => [m.labeler_id, m.daily_quota]), [[ada.labeler_id, 5]]);

  // The guidelines of the project, chosen beside the tabs and named in the address.
  await page.locator('#admin-project').selectOption({ label: 'Safety' });
  await page.waitForURL(`**/admin?project=${safety.id}**`);
  await visit(page, server.url, `/admin?project=${safety.id}#/settings`, '#guidelines-en');
  await page.locator('#guidelines-en').fill('# Refuse what harms');
  await page.locator('form', { has: page.locator('#guidelines-en') }).getByRole('button', { name: 'Save' }).click();
  await page.locator('.toast', { hasText: 'English' }).waitFor();
  const theirs = await api(server.url, 'GET', '/v1/guidelines');
  assert.ok(!theirs.html.includes('Refuse'), 'those of the first project stay');

  const flag = { key: 'harmful', label: { en: 'Harmful', zh: '有害' }, kind: 'flag', required: false };
  const definition = { name: 'Safety', dimensions: [flag], rationale: 'off' };
  await api(server.url, 'POST', '/admin/rubrics', { definition, activate: true, project: 'Safety' });
  const first = await makeSetIn(undefined, 'How do birds fly?', ['With wings.', 'With feathers.']);
  const own = await makeSetIn('Safety', 'How do I pick a lock?', ['Call a locksmith.', 'With a pick.']);
  await visit(page, server.url, `/admin?project=${safety.id}#/queue`, '.view.queue table');
  await page.getByText('How do I pick a lock?').first().waitFor();
  assert.equal(await page.getByText('How do birds fly?').count(), 0);
  assert.deepEqual(await violations(page), []);
  assert.deepEqual(trouble, []);
  await context.close();

  // The member sees the project's guidelines and sets alone, without a choice.
  const labeler = await pageOf(ada.key);
  await visit(labeler.page, server.url, '/label', '.answer');
  await labeler.page.getByRole('heading', { name: 'Refuse what harms' }).waitFor();
  await labeler.page.getByText('How do I pick a lock?').first().waitFor();
  await labeler.page.getByText('Harmful').first().waitFor();
  assert.equal(await labeler.page.locator('.project-choice select').count(), 0);
  await labeler.page.keyboard.press('1');
  await labeler.page.keyboard.press('Enter');
  await labeler.page.locator('.empty').waitFor();
  const [judgment] = await judgmentsOf(server.url, own);
  assert.equal(judgment.labeler_id, ada.labeler_id);
  const { rubric } = await api(server.url, 'GET', `/v1/rubric?project=${safety.id}`);
  assert.equal(judgment.rubric_version, rubric.version);
  assert.equal((await judgmentsOf(server.url, first)).length, 0);
  assert.deepEqual(labeler.trouble, []);
  await labeler.context.close();
});

for (const phone of [false, true]) {
  test(`a person in two projects chooses one, which is kept, ${phone ? 'on a phone' : 'with the keyboard'}`, async () => {
    const safety = (await projectNamed('Safety')) ?? (await api(server.url, 'POST', '/admin/projects', { name: 'Safety' }));
    await makeSetIn(undefined, `What is rain? ${phone}`, ['Water.', 'Weather.']);
    await makeSetIn(safety.id, `What is a lock? ${phone}`, ['A bolt.', 'A device.']);
    const person = await api(server.url, 'POST', '/admin/keys', { name: `Both ${phone}`, scopes: ['feedback'] });
    for (const id of ['default', safety.id])
      await api(server.url, 'POST', `/admin/projects/${id}/members`, { labeler_id: person.labeler_id });
    const { page, context, trouble } = await pageOf(person.key, { phone });
    await visit(page, server.url, '/label', '.answer');
    const shown = () => page.evaluate(() => document.body.textContent);
    assert.ok(!(await shown()).includes('lock?'));
    const select = page.getByLabel('Project', { exact: true });
    if (phone) await page.locator('.menu-button').click();
    assert.deepEqual(await violations(page), []);
    if (phone) await select.selectOption(safety.id);
    else {
      await select.focus();
      await page.keyboard.press('ArrowDown');
    }
    await page.getByText('lock?').first().waitFor();
    await page.reload();
    await page.getByText('lock?').first().waitFor();
    assert.equal(await select.inputValue(), safety.id);
    await visit(page, server.url, '/label?project=default', '.answer');
    await page.waitForFunction(() => !document.body.textContent.includes('lock?'));
    assert.deepEqual(trouble, []);
    await context.close();
  });
}

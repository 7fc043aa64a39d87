// The data page: what an import took and refused, the next step, what an export cannot hold.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { makeSet, signedInPage, startBrowser, startServer, visit } from './support.mjs';

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

const file = (name, ...lines) => ({ name, mimeType: 'application/x-ndjson', buffer: Buffer.from(`${lines.join('\n')}\n`) });
const ranking = (prompt, texts, more = {}) =>
  JSON.stringify({ prompt, completions: texts.map((text, tier) => ({ text, tier })), ...more });

/** Imports a file and gives the report as text. */
async function take(page, format, chosen) {
  await page.locator('#import-format').selectOption(format);
  await page.locator('#import-file').setInputFiles(chosen);
  const done = page.waitForResponse((r) => r.url().includes('/admin/import'));
  await page.getByRole('button', { name: 'Import', exact: true }).click();
  await done;
  const report = page.locator('form [role=status]');
  await report.locator('.errors li, .import-next, .form-error').first().waitFor();
  return report;
}

test('every bad line is named with its fault; good lines come in, and the page says what to do next', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/data', '#import-file');
  const bad = await take(page, 'comparisons', file('bad.jsonl', 'not json', ranking('one', ['only']), '{"prompt": "x"}'));
  assert.match(await bad.textContent(), /Nothing was imported\./);
  const lines = await bad.locator('.errors li').allTextContents();
  assert.equal(lines.length, 3);
  assert.match(lines[0], /^Line 1not JSON: .* at column \d+$/, 'the line is counted in the file');
  assert.match(lines[1], /^Line 2completions must contain 2 to 64 texts, found 1$/, 'code without backticks');
  assert.equal(await bad.locator('.import-next').count(), 0);

  const mixed = file('mixed.jsonl', ranking('Why is the sky blue?', ['scattering', 'paint'], { extra: 1 }), 'nope');
  const some = await take(page, 'comparisons', mixed);
  assert.match(await some.textContent(), /1 imported, 0 already stored\..*1 line cannot be used:.*Line 2.*extra \(in 1 lines\)/);
  assert.equal(await some.locator('.import-next a').getAttribute('href'), '#/jobs/new/reward');
  const prompts = await take(page, 'prompts', file('p.jsonl', '{"prompt": "Tell me a joke."}'));
  assert.equal(await prompts.locator('.import-next a').getAttribute('href'), '#/queue');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('an export says how many rankings its format cannot hold', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/data', '#import-file');
  // all answers tie: nothing is preferred, so pairs cannot say it
  const tie = JSON.stringify({ prompt: 'A tie', completions: ['a', 'b'].map((text) => ({ text, tier: 0 })) });
  await take(page, 'comparisons', file('tie.jsonl', tie));
  const said = async (name) => {
    const saved = page.waitForEvent('download');
    const row = page.locator('.export-list li', { hasText: name });
    await row.locator('a').click();
    await (await saved).delete();
    await row.locator('[role=status]:not(:empty)').waitFor();
    return row.locator('[role=status]').textContent();
  };
  assert.equal(await said('TRL preferences'), '1 ranking is not in this file: the format cannot hold it.');
  assert.equal(await said('2 to 64 answers'), 'The file holds everything.');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('sets that nobody is left for are counted, and one click lists them', async () => {
  const set = await makeSet(server.url, 'Nobody is left for this', ['a', 'b']);
  await makeSet(server.url, 'Somebody may come', ['a', 'b']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  await page.keyboard.press('s');
  await page.locator('dialog input[value=other]').check();
  await page.locator('dialog button[type=submit]').click();
  await page.locator('dialog').waitFor({ state: 'detached' });
  // the own history names the prompt
  await page.locator('.progress-button').first().click();
  await page.locator('.history-prompt', { hasText: 'Nobody is left for this' }).waitFor();

  await visit(page, server.url, '/admin#/queue', '.notice button');
  assert.match(await page.locator('.notice').textContent(), /1 open set has no labeler left/);
  await page.locator('.notice').getByRole('button', { name: 'Show in the list' }).click();
  await page.locator('.pager', { hasText: '1–1 of 1' }).waitFor();
  assert.equal(await page.locator('.prompt-cell').textContent(), 'Nobody is left for this');
  await visit(page, server.url, '/admin#/labels', '.figure a');
  await page.locator('.figure a').click();
  await page.locator('.pager', { hasText: '1–1 of 1' }).waitFor();
  await visit(page, server.url, '/admin#/', '.loop');
  assert.match(await page.locator('.loop').textContent(), /1 has no labeler left/);
  assert.deepEqual(trouble, []);
  await context.close();
});

// Language models as labelers on the pages: a form starts a job that asks a judge, and its agreement with people is a
// figure beside theirs.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { after, before, test } from 'node:test';
import { api, listOf, makeSet, signedInPage, startBrowser, startServer, visit } from './support.mjs';

const CRITERIA = 'The longer answer is better.';

/** A server of a judge that prefers the longer answer; `asked` has its questions. */
function startJudge() {
  const asked = [];
  const judge = createServer((request, response) => {
    let body = '';
    request.on('data', (chunk) => (body += chunk));
    request.on('end', () => {
      const question = JSON.parse(body).messages[0].content;
      asked.push(question);
      const [, a, b] = /## Answer A\n([\s\S]*?)\n\n## Answer B\n([\s\S]*?)\n\n## Decision/.exec(question);
      const first = a.length > b.length ? 0.9 : 0.1;
      const top_logprobs = [
        { token: 'A', logprob: Math.log(first), bytes: null },
        { token: 'B', logprob: Math.log(1 - first), bytes: null },
      ];
      const content = [{ token: 'A', logprob: Math.log(first), bytes: null, top_logprobs }];
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify({ choices: [{ index: 0, message: { role: 'assistant', content: 'A' }, logprobs: { content } }] }));
    });
  });
  return new Promise((done) => judge.listen(0, '127.0.0.1', () => done({ port: judge.address().port, asked, stop: () => judge.close() })));
}

let judge;
let server;
let browser;
before(async () => {
  judge = await startJudge();
  const config = `[judges.large]\nurl = "http://127.0.0.1:${judge.port}/v1"\nmodel = "wise"\n`;
  server = await startServer({ withEncoder: false, config });
  browser = await startBrowser();
});
after(async () => {
  await browser?.close();
  await server?.stop();
  judge?.stop();
});

async function ended(id) {
  for (let i = 0; i < 600; i++) {
    const job = await api(server.url, 'GET', `/admin/jobs/${id}`);
    if (['succeeded', 'failed', 'cancelled'].includes(job.state)) return job;
    await new Promise((r) => setTimeout(r, 100));
  }
  throw new Error('the job does not end');
}

test('the form lets a judge rank sets, and the figure tells how far it agrees with people', async () => {
  for (let i = 0; i < 6; i++) {
    const set = await makeSet(server.url, `t${i + 1} t5`, ['t10', 't11 t12 t13']);
    const { completions } = await api(server.url, 'GET', `/v1/comparison-sets/${set}`);
    await api(server.url, 'POST', '/v1/comparisons', {
      set_id: set,
      completions: [
        { completion_id: completions[0].id, tier: 1 },
        { completion_id: completions[1].id, tier: 0 },
      ],
      idempotency_key: set,
    });
  }
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/labels', 'main h1');
  await page.getByText('No language model has ranked sets yet.').waitFor();
  await page.getByRole('link', { name: 'Let a judge rank sets' }).click();
  await page.locator('#arg-host').waitFor();
  assert.deepEqual(await page.locator('#arg-host option').evaluateAll((all) => all.map((o) => o.textContent)), ['none', 'large']);
  assert.equal(await page.locator('#arg-publish_as, #arg-sets').count(), 0, 'the job makes no model, and the server chooses the sets');
  const start = page.locator('.job-form button[type=submit]');
  await start.click();
  await page.locator('#arg-host-error').getByText('exactly one of host and judge_model').waitFor();
  await page.locator('#arg-host').selectOption({ label: 'large' });
  await page.locator('#arg-criteria').fill(CRITERIA);
  await start.click();
  await page.waitForURL(/#\/jobs\/[^/]+$/);
  const job = await ended(decodeURIComponent(page.url().split('#/jobs/')[1]));
  assert.equal(job.state, 'succeeded', job.error);
  assert.equal(judge.asked.length, 12, 'every pair in both orders');
  assert.ok(judge.asked.every((q) => q.includes(CRITERIA) && !q.includes('llama')), 'blind, and by these criteria');

  await visit(page, server.url, '/admin#/labels', 'main h1');
  const row = page.locator('tr', { hasText: 'large (wise)' }).first();
  await row.waitFor();
  const text = await row.textContent();
  assert.match(text, new RegExp(CRITERIA));
  assert.match(text, /100\s?%/);
  assert.match(text, /6 sets/);
  const { labelers } = await api(server.url, 'GET', '/admin/api/quality');
  assert.ok(labelers.every((l) => l.name !== 'large (wise)'), 'a model is not among the people');

  const [{ set_id: set }] = listOf(await api(server.url, 'GET', '/admin/api/judgments'));
  await visit(page, server.url, `/admin#/sets/${set}`, '.review-answers');
  const ranking = page.locator('section', { hasText: 'Language models as labelers' }).locator('tbody tr');
  await ranking.waitFor();
  assert.match(await ranking.textContent(), /large \(wise\).*B > A/, 'the longer answer comes first');
  assert.equal(await page.locator('[data-part=runs]').isHidden(), true, 'no run has learned from it');
  assert.deepEqual(trouble, []);
  await context.close();
});

// The queue, the judgments, the audit trail and the settings: reasons and cures of draws, search, paging, bulk removal.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { api, listOf, makeSet, openPage, signedInPage, startBrowser, startServer, visit } from './support.mjs';

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

const prompt = (text, tags = []) => api(server.url, 'POST', '/v1/prompts', { messages: [{ role: 'user', content: text }], tags });

async function ended() {
  for (let i = 0; i < 200; i++) {
    const [draw] = listOf(await api(server.url, 'GET', '/admin/sets/draws?limit=1'));
    if (draw && draw.state !== 'running') return draw;
    await new Promise((r) => setTimeout(r, 50));
  }
  throw new Error('the draw does not end');
}

test('a draw that makes nothing says why, and one click draws again', async () => {
  for (let i = 0; i < 3; i++) await prompt(`t${i + 1} t5`, ['cure']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/queue', '#draw-count');
  await page.locator('#draw-tag').fill('cure');
  await page.locator('#draw-count').fill('3');
  await page.locator('#draw-max-tokens').fill('4');
  const go = page.locator('form button[type=submit]');
  await go.click();
  await page.locator('.draws li .tag.good').first().waitFor();
  const first = await ended();
  assert.equal(first.made, 3);
  assert.equal(first.request.max_tokens, 4);
  // What was cut off is told, and the length can be raised from there.
  if (first.report.cut_off) {
    await page.locator('.draw-notes', { hasText: 'cut off at 4 tokens' }).first().waitFor();
    await page.locator('.draw-notes button', { hasText: 'Use 8 tokens' }).first().click();
    assert.equal(await page.locator('#draw-max-tokens').inputValue(), '8');
  }
  await go.click();
  const note = page.locator('.draw-notes li', { hasText: 'All 3 matching prompts already have a set.' });
  await note.waitFor();
  assert.equal(await page.locator('.draws > li').first().locator('.tag.warn').count(), 1, 'nothing made is no success');
  await note.locator('button', { hasText: 'Draw again for prompts that have sets' }).click();
  await page.waitForFunction(() => document.querySelectorAll('.draws > li').length === 3);
  const again = await ended();
  assert.equal(again.report.has_set, 0);
  assert.ok(again.made > 0, JSON.stringify(again.report));
  assert.deepEqual(trouble, []);
  await context.close();
});

test('what cannot be drawn is disabled with the reason', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/queue', '#draw-count');
  for (const [policy, why] of [
    ['uncertainty', /reward model/],
    ['versus', /second model version/],
  ]) {
    const radio = page.locator(`input[name=policy][value=${policy}]`);
    assert.equal(await radio.isDisabled(), true, policy);
    assert.match(await page.locator(`#policy-${policy}-why`).textContent(), why);
  }
  assert.equal(await page.locator('input[name=policy][value=random]').isDisabled(), false);
  // A bad temperature is marked at its field.
  await page.locator('#draw-temperature').fill('9');
  await page.locator('form button[type=submit]').click();
  await page.locator('#draw-temperature[aria-invalid=true]').waitFor();
  assert.match(await page.locator('#draw-temperature-error').textContent(), /\S/);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('sets are found by their prompt, paged, and removed together', async () => {
  for (let i = 0; i < 30; i++) await makeSet(server.url, `paging ${i}`, ['one', 'two']);
  const rare = await makeSet(server.url, '<b>needle</b> in the hay 针', ['one', 'two']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/queue', '#sets-q');
  await page.locator('.pager').waitFor();
  assert.match(await page.locator('.pager').textContent(), /1–25 of 3\d/);
  await page.locator('.pager button', { hasText: 'Older' }).click();
  await page.locator('.pager', { hasText: '26–' }).waitFor();
  await page.locator('#sets-q').fill('needle');
  await page.locator('.pager', { hasText: '1–1 of 1' }).waitFor();
  const link = page.locator('.prompt-cell a');
  assert.equal(await link.textContent(), '<b>needle</b> in the hay 针');
  assert.equal(await link.getAttribute('href'), `#/sets/${rare}`);
  await page.locator('#sets-q').fill('paging 1');
  await page.locator('.pager', { hasText: 'of 11' }).waitFor();
  await page.locator('th.pick input').check();
  await page.locator('button.danger', { hasText: 'Remove 11 sets from the queue' }).click();
  await page.locator('dialog button.danger').click();
  await page.locator('.muted', { hasText: 'Nothing matches' }).waitFor();
  await page.locator('#sets-status').selectOption('retired');
  await page.locator('.pager', { hasText: 'of 11' }).waitFor();
  // The trail names the sets by their prompt.
  await visit(page, server.url, '/admin#/audit', '.table-box');
  await page.locator('#audit-action').selectOption('retire_set');
  await page.locator('td', { hasText: 'removed a set from the queue' }).first().waitFor();
  assert.match(await page.locator('tbody tr').first().textContent(), /set “paging 1\d?”/);
  assert.equal(await page.locator('.actions button:visible').count(), 0, 'no "Older" where there is nothing older');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a search that runs out of time says how far it came and goes on', async () => {
  const wanted = await makeSet(server.url, 'a slow haystack', ['one', 'two']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  // The first request has no time: it finds nothing and stops at a row of last year.
  const stop = { data: [], after: '7ZZZZZZZZZZZZZZZZZZZZZZZZZ', total: null, searched_to: Date.UTC(2025, 2, 1, 12) * 1000 };
  await page.route(/\/admin\/sets\?.*q=haystack/, (route) =>
    route.request().url().includes('after=') ? route.continue() : route.fulfill({ json: stop }),
  );
  await visit(page, server.url, '/admin#/queue', '#sets-q');
  await page.locator('#sets-q').fill('haystack');
  await page.locator('.pager', { hasText: /Searched back to .*2025/ }).waitFor();
  await page.locator('.muted', { hasText: 'Nothing found here' }).waitFor();
  await page.locator('.pager button', { hasText: 'Search older entries' }).click();
  await page.locator(`.prompt-cell a[href="#/sets/${wanted}"]`).waitFor();
  // This page has no total, because newer rows were searched by another request.
  assert.equal(await page.locator('.pager span').textContent(), '1–1');
  assert.ok(await page.locator('.pager button', { hasText: 'Older' }).isDisabled());
  await page.locator('.pager button', { hasText: 'Newer' }).click();
  await page.locator('.pager', { hasText: 'Searched back to' }).waitFor();
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a judgment leads to its set, a name to its judgments; practice sets have an editable answer', async () => {
  const id = await makeSet(server.url, 'which is best?', ['good', 'bad']);
  const set = await api(server.url, 'GET', `/v1/comparison-sets/${id}`);
  const key = await api(server.url, 'POST', '/admin/keys', { name: 'Ada', scopes: ['feedback'] });
  const as = (method, path, body) =>
    fetch(server.url + path, {
      method,
      headers: { authorization: `Bearer ${key.key}`, 'content-type': 'application/json' },
      body: body && JSON.stringify(body),
    }).then((r) => r.json());
  const turn = await as('GET', `/v1/label/next?set_id=${id}`);
  await as('POST', `/v1/label/${turn.assignment_id}/judgment`, {
    lease_token: turn.lease_token,
    outcome: 'ranked',
    items: turn.completions.map((c, tier) => ({ completion_id: c.id, tier })),
    idempotency_key: 'ada-1',
  });
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/labels', '#judgments-q');
  await page.locator('td a.strong', { hasText: 'Ada' }).click();
  // The field is there before the name is followed, too.
  await page.waitForFunction((id) => document.querySelector('#judgments-labeler')?.value === id, key.labeler_id);
  const row = page.locator('section', { has: page.locator('#judgments-q') }).locator('tbody tr');
  await row.first().waitFor();
  assert.equal(await row.count(), 1);
  assert.match(await row.textContent(), /A > B/);
  assert.match(await row.locator('td').nth(5).textContent(), /^–$/, 'a time that nobody measured is unknown');
  await row.locator('a').click();
  await page.locator('.review-answers').waitFor();
  await page.locator('#place-0').selectOption({ value: '0' });
  await page.locator('#place-1').selectOption({ value: '1' });
  await page.locator('#settle-why').fill('good is good');
  await page.locator('button', { hasText: 'Use for practice' }).click();
  await page.locator('button', { hasText: 'Save the known answer' }).waitFor();
  assert.equal(await page.locator('#settle-why').inputValue(), 'good is good');
  await page.locator('#settle-why').fill('because it helps');
  await page.locator('button', { hasText: 'Save the known answer' }).click();
  await page.locator('.toast', { hasText: 'saved' }).waitFor();
  const review = await api(server.url, 'GET', `/v1/review/sets/${id}`);
  assert.equal(review.known_answer.explanation, 'because it helps');
  assert.equal(review.known_answer.tiers[0].completion_id, set.completions[0].id);
  // A practice set has no number of people.
  await visit(page, server.url, '/admin#/queue', '#sets-q');
  await page.locator('#sets-kind').selectOption('calibration');
  await page.locator('td', { hasText: '1, no limit' }).waitFor();
  assert.equal(await page.locator('td', { hasText: '1,000,000' }).count(), 0);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('settings have names in words, those that can be changed come first, the others are folded', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/settings', '.setting');
  const headings = await page.locator('.view.settings h2').allTextContents();
  assert.ok(headings.indexOf('Change here') < headings.indexOf('Set in the configuration'));
  const names = await page.locator('.setting-name').allTextContents();
  assert.ok(names.length > 50);
  assert.deepEqual(names.filter((name) => /_/.test(name)), [], 'no keys as titles');
  assert.equal(await page.locator('details.fold[open]').count(), 0);
  // The editor of the guidelines, webhooks and what is kept how long are on this page, too.
  const height = await page.evaluate(() => document.documentElement.scrollHeight);
  assert.ok(height < 6200, `${height}`);
  await page.locator('#settings-filter').fill('breaker_pause');
  await page.locator('.setting-name', { hasText: 'Pause after failures' }).waitFor();
  await page.locator('#settings-filter').fill('');
  await page.locator('#set-labeling-temperature').fill('0.8');
  await page.locator('.setting', { has: page.locator('#set-labeling-temperature') }).locator('button[type=submit]').click();
  await page.locator('.toast', { hasText: 'Temperature of drawn answers' }).waitFor();
  assert.deepEqual(trouble, []);
  await context.close();
});

test('without an encoder nothing is asked of it, and an empty sentence is said', async () => {
  const { page, context, trouble } = await openPage(browser, server.url);
  const failed = [];
  // Nobody is signed in here; that alone is said by a status.
  page.on('response', (r) => r.status() >= 400 && !r.url().endsWith('/session') && failed.push(`${r.status()} ${r.url()}`));
  await visit(page, server.url, '/explore?text=t5%20t9', '.token');
  await page.locator('.explore .muted', { hasText: 'Only the decoder is shown' }).waitFor();
  assert.equal(await page.locator('.looks figure').count(), 1);
  assert.deepEqual(failed, []);
  // A part of a character is shown by its bytes.
  const names = await page.evaluate(async () => {
    const { shown } = await import('/static/js/explore/attention.js');
    return [shown('\uFFFD', [0xf0, 0x9f]), shown(' cat', [32, 99, 97, 116]), shown('\n', [10]), shown(' ', [32])];
  });
  assert.deepEqual(names, ['0xF0 0x9F', 'cat', '⏎', '␣']);
  await page.locator('#sentence').fill('  ');
  await page.locator('.sentence button').click();
  assert.match(await page.locator('#sentence-error').textContent(), /enter a sentence/);
  assert.deepEqual(trouble, []);
  await context.close();
});

const VIEWS = ['#/queue', '#/labels', '#/data', '#/settings', '#/audit'];
test('no view is wider than its window, from 320 to 2560', async () => {
  for (const lang of ['en', 'zh']) {
    const { page, context, trouble } = await signedInPage(browser, server.url, { lang });
    for (const width of [320, 390, 600, 820, 1100, 1440, 2560]) {
      await page.setViewportSize({ width, height: 900 });
      for (const view of VIEWS) {
        await page.goto(`${server.url}/admin${view}`);
        await page.locator('.view h1').waitFor();
        await page.waitForLoadState('networkidle');
        const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        assert.ok(over <= 0, `${view} at ${width} (${lang}): ${over} px too wide`);
      }
    }
    assert.deepEqual(trouble, []);
    await context.close();
  }
});

// Runs and forms without traps: what is preselected, what a figure says, what a button does, at every width.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { api, listOf, signedInPage, startBrowser, startServer, visit } from './support.mjs';

let server;
let browser;
let reward;
let ppo;

async function finished(id) {
  for (let i = 0; i < 900; i++) {
    const job = await api(server.url, 'GET', `/admin/jobs/${id}`);
    if (['succeeded', 'failed', 'cancelled'].includes(job.state)) {
      assert.equal(job.state, 'succeeded', job.error);
      return job;
    }
    await new Promise((r) => setTimeout(r, 100));
  }
  throw new Error('the job does not end');
}

const run = async (kind, args, more) => finished((await api(server.url, 'POST', '/admin/jobs', { kind, args, ...more })).id);

before(async () => {
  server = await startServer();
  browser = await startBrowser();
  for (let i = 0; i < 30; i++)
    await api(server.url, 'POST', '/v1/comparisons', {
      messages: [{ role: 'user', content: `t${i} t${i + 7}` }],
      completions: [
        { text: `t${i + 2} t${i + 3} t4`, tier: 0 },
        { text: `t${i + 5}`, tier: 1 },
      ],
    });
  const small = { max_length: 64, lora: { rank: 2 } };
  reward = await run(
    'reward',
    { ...small, publish_as: 'judge', heldout_fraction: 0.4, eval_every: 1, max_steps: 3 },
    { name: 'First judge', note: 'One epoch.', tags: ['short'] },
  );
  await api(server.url, 'POST', '/admin/models/judge/promote', {});
  ppo = await run('ppo', {
    ...small,
    publish_as: 'better',
    iterations: 3,
    rollout_batch_size: 4,
    response_length: 6,
    eval_every: 1,
    kl_budget: 1000,
  });
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

test('the review page of a set names the runs that learned from it', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  const [{ set_id: set }] = listOf(await api(server.url, 'GET', '/admin/api/judgments'));
  await visit(page, server.url, `/admin#/sets/${set}`, '[data-part=runs] tbody tr');
  const rows = await page.locator('[data-part=runs] tbody tr').allTextContents();
  assert.equal(rows.length, 2, rows.join('; '));
  assert.match(rows[0], /First judge/);
  assert.match(rows[1], /through the reward model judge.*better/);
  await page.locator('[data-part=runs] a', { hasText: 'First judge' }).click();
  await page.waitForURL(/#\/jobs\/[^/]+$/);
  await page.locator('h1', { hasText: 'First judge' }).waitFor();
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the PPO form preselects no gold reward model, and the reward model can never be it', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/jobs/new/ppo', '.schema-form');
  const gold = page.locator('#arg-gold_reward_model');
  assert.equal(await gold.inputValue(), '');
  assert.equal(await gold.locator('option:checked').textContent(), 'none');
  assert.equal(await page.locator('#arg-reward_model').inputValue(), 'judge');
  assert.ok(await gold.locator('option[value=judge]').evaluate((o) => o.disabled));
  assert.ok(await page.locator('#arg-publish_as').isVisible(), 'the name of the result is asked for at once');
  // however the choice came about, it is refused
  await gold.evaluate((select) => {
    for (const o of select.options) o.disabled = false;
    select.value = 'judge';
  });
  const posted = [];
  page.on('request', (r) => r.method() === 'POST' && /\/admin\/jobs$/.test(r.url()) && posted.push(r.postDataJSON()));
  await page.locator('.job-form button[type=submit]').click();
  await page.locator('#arg-gold_reward_model[aria-invalid=true]').waitFor();
  assert.match(await page.locator('#arg-gold_reward_model-error').textContent(), /judge is the reward model/);
  assert.deepEqual(posted, []);
  // no reward at all is refused too, instead of taking the active one in silence
  await gold.selectOption('');
  await page.locator('#arg-reward_model').selectOption('');
  await page.locator('.job-form button[type=submit]').click();
  await page.locator('#arg-reward_model[aria-invalid=true]').waitFor();
  assert.deepEqual(posted, []);
  await page.locator('#arg-reward_model').selectOption('judge');
  await page.locator('#arg-iterations').fill('1');
  await page.locator('#arg-rollout_batch_size').fill('4');
  await page.locator('#arg-response_length').fill('4');
  await page.locator('#job-name').fill('From the form');
  await page.locator('.job-form button[type=submit]').click();
  await page.locator('.run-head').waitFor();
  assert.equal(posted[0].args.gold_reward_model, undefined);
  assert.equal(posted[0].name, 'From the form');
  const job = (await api(server.url, 'GET', '/admin/jobs?q=from%20the%20form')).data[0];
  assert.notEqual(job.args.lora, null, 'adapters unless a person turns them off');
  await finished(job.id);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('every form is in the words of its reader: no Markdown marks, no null, no cut options, no raw labels', async () => {
  const recipes = listOf(await api(server.url, 'GET', '/admin/recipes'));
  for (const lang of ['en', 'zh']) {
    const { page, context, trouble } = await signedInPage(browser, server.url, { lang });
    for (const { name } of recipes) {
      await visit(page, server.url, `/admin#/jobs/new/${name}`, '.schema-form');
      const texts = await page.locator('.schema-form').evaluate((form) => ({
        help: [...form.querySelectorAll('.help')].map((e) => e.textContent),
        labels: [...form.querySelectorAll('label > span:first-child, legend > span:first-child')].map((e) => e.textContent),
        options: [...form.querySelectorAll('option')].map((e) => e.textContent),
      }));
      for (const text of texts.help) {
        assert.doesNotMatch(text, /`|\bnull\b|Hugging Face directory|JSONL of/, `${name}: ${text}`);
        if (lang === 'zh') assert.match(text || '空', /\p{Script=Han}/u, `${name}: ${text}`);
      }
      for (const text of texts.labels) assert.doesNotMatch(text, /_|^[a-z]/, `${name}: ${text}`);
      for (const text of texts.options) assert.ok(text.length <= 40, `${name}: ${text}`);
      if (name === 'pretrain') assert.equal(await page.locator('#arg-model').inputValue(), '', 'a new model begins from nothing');
    }
    assert.deepEqual(trouble, []);
    await context.close();
  }
});

test('the estimate follows the form, and a server without one is no trouble', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  const asked = [];
  await page.route('**/admin/jobs/estimate', (route) => {
    asked.push(route.request().postDataJSON());
    const many = asked.at(-1).args.iterations === 500;
    return route.fulfill({
      json: {
        memory_bytes: many ? 32e9 : 2.1e9,
        available_memory_bytes: 16e9,
        seconds: { low: 180, high: 360 },
        basis: 'all 134.5M parameters trained',
        assumptions: [{ code: 'all_parameters', parameters: 134515008 }, { code: 'earlier_runs', runs: 1 }],
        steps: many ? 500 : 100,
        fits: !many,
      },
    });
  });
  await visit(page, server.url, '/admin#/jobs/new/ppo', '.estimate span');
  assert.match(await page.locator('.estimate').textContent(), /3 min 00 s to 6 min 00 s · 2\.1 GB of 16 GB free memory · 100 steps/);
  assert.equal(
    await page.locator('.estimate .help').textContent(),
    'all 134.5 million parameters are trained; time from the speed of one earlier run of this recipe on this machine',
  );
  await page.locator('#arg-iterations').fill('500');
  await page.locator('.estimate .bad-text').waitFor();
  assert.equal(asked.at(-1).kind, 'ppo');
  await page.unroute('**/admin/jobs/estimate');
  await page.route('**/admin/jobs/estimate', (route) => route.fulfill({ status: 404, json: { error: { message: 'no' } } }));
  await visit(page, server.url, '/admin#/jobs/new/sft', '.schema-form');
  await page.waitForTimeout(600);
  assert.equal(await page.locator('.estimate').textContent(), '');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('curves: raw values beside them, smoothing off until asked for, every quantity once, sections and four pins', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/admin#/jobs/${ppo.id}`, '.chart canvas');
  const metrics = (await api(server.url, 'GET', `/admin/jobs/${ppo.id}/metrics`)).metrics;
  const last = (name) => metrics.filter((m) => m.name === name).sort((a, b) => a.step - b.step).at(-1).value;
  const chart = page.locator('.chart[data-metric=reward]');
  const value = async () => Number((await chart.locator('.key b').textContent()).replace('−', '-'));
  assert.ok(Math.abs((await value()) - last('reward')) < 1e-3 * Math.max(1, Math.abs(last('reward'))));
  assert.equal(await page.locator('#smooth').inputValue(), '0');
  assert.equal(await chart.locator('.smoothed').count(), 0);
  await page.locator('#smooth').fill('0.9');
  await chart.locator('.smoothed').waitFor();
  assert.ok(Math.abs((await value()) - last('reward')) < 1e-3 * Math.max(1, Math.abs(last('reward'))), 'the raw value stays');
  await page.locator('#smooth').fill('0');
  const titles = await page.locator('.chart-title').evaluateAll((all) => all.map((e) => e.firstChild.textContent));
  assert.equal(new Set(titles).size, titles.length, `no doubles: ${titles}`);
  for (const title of titles) assert.doesNotMatch(title, /_|\//, title);
  assert.equal(await page.locator('.charts.pinned .chart').count(), 4);
  assert.ok((await page.locator('.chart-section:not([hidden])').count()) >= 4);
  // pinning takes the place of the oldest, and is remembered
  await page.locator('.chart[data-metric=policy_loss] .pin').click();
  await page.locator('.charts.pinned .chart[data-metric=policy_loss]').waitFor();
  assert.equal(await page.locator('.charts.pinned .chart').count(), 4);
  await page.reload();
  await page.locator('.charts.pinned .chart[data-metric=policy_loss]').waitFor();
  // the measurement after the last step is no step 4 of 3
  assert.match(await page.locator('.chart[data-metric=kl] figcaption').textContent(), /after the last step/);
  // a closed section draws nothing and breaks nothing
  await page.locator('[data-section=timing] > summary').click();
  await page.locator('[data-section=timing] > summary').click();
  // zoom has a visible way back
  const kl = page.locator('.chart[data-metric=kl]');
  await kl.scrollIntoViewIfNeeded();
  const box = await kl.locator('canvas').boundingBox();
  assert.ok(await kl.getByRole('button', { name: 'Reset zoom' }).isHidden());
  await page.mouse.move(box.x + box.width * 0.4, box.y + 60);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.7, box.y + 60, { steps: 5 });
  await page.mouse.up();
  await kl.getByRole('button', { name: 'Reset zoom' }).click();
  assert.ok(await kl.getByRole('button', { name: 'Reset zoom' }).isHidden());
  // the same curves over the time at work
  await page.locator('#time-axis').check();
  assert.match(await page.locator('.chart[data-metric=reward] figcaption .help').textContent(), /^(\d+ min )?\d+ s$/);
  await page.locator('#time-axis').uncheck();
  assert.match(await page.locator('.chart[data-metric=reward] figcaption .help').textContent(), /^(step \d|after the last step)$/);
  assert.equal(await page.locator('.chart[data-metric=elapsed_seconds]').count(), 0, 'the clock is an axis, no curve');
  // samples: before and after, with reward
  assert.match(await page.locator('.sample-side').first().textContent(), /before training.*Reward/);
  assert.match(await page.locator('.sample-side').nth(1).textContent(), /step 3.*Reward/);
  assert.match(await page.locator('.run-summary').textContent(), /Reward (rose|fell) from .*n = 4.*nats.*Published as better/);
  assert.match(await page.locator('[data-part=settings]').textContent(), /Rounds.*100.*3/, 'what differs from the defaults');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('accuracy has its n, interval and chance, and the run says whether it beats a coin', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/admin#/jobs/${reward.id}`, '.chart canvas');
  const n = reward.result.metrics?.heldout?.pairs ?? reward.result.heldout.pairs;
  const chart = page.locator('.chart[data-metric=heldout_accuracy]');
  await page.locator('.run-summary', { hasText: /chance/ }).waitFor();
  assert.match(await page.locator('.run-summary').textContent(), new RegExp(`n = ${n}`));
  assert.match(await chart.locator('.chart-figure').textContent(), new RegExp(`\\(\\d+–\\d+.%\\), n = ${n}`));
  assert.match(await chart.locator('.chart-note').textContent(), /chance \(50 %\)/);
  assert.match(await page.locator('.run-summary').textContent(), /not better than chance|Better than chance/);
  await visit(page, server.url, '/admin#/', '.loop');
  assert.match(await page.locator('.node.reward').textContent(), new RegExp(`n = ${n}`));
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a sweep is one table: every combination, mean and deviation as text and picture, the best marked', async () => {
  const sweep = await run('reward', {
    max_length: 64,
    lora: { rank: 2 },
    publish_as: 'swept',
    heldout_fraction: 0.4,
    max_steps: 2,
    sweep: { grid: { learning_rate: [1e-4, 1e-2] }, seeds: 2 },
  });
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/admin#/jobs/${sweep.id}`, 'section svg.whisker');
  const part = page.locator('section', { has: page.getByRole('heading', { name: 'Sweep', exact: true }) });
  assert.equal(await part.locator('tbody tr').count(), 2);
  const { cells, best, by } = sweep.result.metrics.sweep;
  assert.equal(by, 'heldout_accuracy');
  const rows = await part.locator('tbody tr').allInnerTexts();
  rows.forEach((text, i) => {
    assert.match(text, new RegExp(`${cells[i].args.learning_rate}[^]*%.* ± .*%`), text);
    assert.equal(/best/.test(text), i === best, text);
  });
  assert.equal(await part.locator('svg.whisker .w-dot').count(), 2);
  assert.match(await part.locator('svg.whisker').first().getAttribute('aria-label'), / ± /);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('cancelling: each button says what it does, the safe one has the focus, the state stands once', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  const args = { iterations: 100000, rollout_batch_size: 4, response_length: 6, max_length: 64, lora: { rank: 2 } };
  const { id } = await api(server.url, 'POST', '/admin/jobs', { kind: 'ppo', args });
  await visit(page, server.url, `/admin#/jobs/${id}`, '.run-head');
  await page.locator('.run-head .tag', { hasText: 'running' }).waitFor({ timeout: 20_000 });
  await page.getByRole('button', { name: 'Cancel job' }).click();
  assert.deepEqual(await page.locator('dialog .actions button').allTextContents(), ['Keep running', 'Cancel job']);
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Keep running');
  await page.keyboard.press('Enter');
  await page.locator('dialog').waitFor({ state: 'detached' });
  assert.equal((await api(server.url, 'GET', `/admin/jobs/${id}`)).cancel_requested, false);
  await page.getByRole('button', { name: 'Cancel job' }).click();
  await page.locator('dialog').getByRole('button', { name: 'Cancel job' }).click();
  await page.locator('.run-head .tag', { hasText: 'cancelled' }).waitFor({ timeout: 30_000 });
  assert.equal((await page.locator('.run-head').textContent()).match(/cancelled/g).length, 1);
  assert.equal(await page.locator('.run-head .bad-text').count(), 0);
  assert.doesNotMatch(await page.locator('.log').textContent(), /[{}"]/, 'the log is in words');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('runs have names, notes and tags; the list finds them, shows results and has no empty button', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/admin#/jobs/${ppo.id}`, '.run-head');
  await page.getByRole('button', { name: 'Edit name and note' }).click();
  await page.locator('#run-name').fill('Against the first judge');
  await page.locator('#run-note').fill('Short answers only.');
  await page.locator('#run-tags').fill('short, kl, kl');
  await page.locator('.run-edit button[type=submit]').click();
  await page.locator('h1', { hasText: 'Against the first judge' }).waitFor();
  await page.reload();
  await page.locator('h1', { hasText: 'Against the first judge' }).waitFor();
  assert.match(await page.locator('.run-head').textContent(), /Short answers only\..*short.*kl.*by admin/s);
  await visit(page, server.url, '/admin#/jobs', '.job-name');
  for (const b of await page.locator('.view-head a, .view-head button').all())
    if (await b.isVisible()) assert.notEqual((await b.textContent()).trim(), '', 'no empty button');
  assert.match(await page.locator('tr', { has: page.locator('.job-name a', { hasText: /^First judge$/ }) }).textContent(), /judge.*Held-out accuracy.*n = .*admin/s);
  await page.locator('#jobs-search').fill('against the FIRST');
  await page.locator('.job-name a', { hasText: /^First judge$/ }).waitFor({ state: 'detached' });
  assert.equal(await page.locator('.job-name').count(), 1);
  await page.locator('#jobs-search').fill('nothing like it');
  await page.getByText('No job matches').waitFor();
  await page.locator('#jobs-search').fill('');
  await page.locator('.job-name', { hasText: 'Against the first judge' }).waitFor();
  await page.locator('#jobs-kind').selectOption('reward');
  await page.locator('.job-name', { hasText: 'Against the first judge' }).waitFor({ state: 'detached' });
  assert.equal(await page.locator('.job-name').count(), 2, 'the first judge and the sweep');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the next step lights up what it is about, and gives the reason with its figures', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  const real = await api(server.url, 'GET', '/admin/api/overview');
  const say = (next_action) =>
    page.route('**/admin/api/overview', (route) => route.fulfill({ json: { ...real, running_jobs: [], next_action } }));
  const values = { name: 'coin', n: 30, accuracy: 16 / 30, low: 0.36, high: 0.7 };
  await say({ action: 'rank', reason: 'chance', values, message: '' });
  await visit(page, server.url, '/admin#/', '.loop');
  const words = await page.locator('.next-step').textContent();
  assert.match(words, /Rank answers.*coin is right on 53.% \(95 % interval 36.% to 70.%\) of 30 held-out pairs: not better than chance/);
  assert.equal(await page.locator('.node.next').getAttribute('class'), 'node rankings next');
  await page.unroute('**/admin/api/overview');
  await say({ action: 'promote', about: 'reward', reason: 'promote_reward', values, message: '' });
  await visit(page, server.url, '/admin#/', '.loop');
  assert.match(await page.locator('.node.next').getAttribute('class'), /reward/, 'not the policy');
  await page.unroute('**/admin/api/overview');
  await say({ action: 'wait', reason: 'something new', values: {}, message: '' });
  await visit(page, server.url, '/admin#/', '.loop');
  assert.doesNotMatch(await page.locator('.next-step').textContent(), /next\.|because/, 'an unknown reason has general words');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a reward model that was made and not promoted is named, with what to do', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  const real = await api(server.url, 'GET', '/admin/api/overview');
  assert.equal(real.unpromoted_reward, null, 'one is active');
  const json = { ...real, active_reward: null, unpromoted_reward: real.active_reward };
  await page.route('**/admin/api/overview', (route) => route.fulfill({ json }));
  await visit(page, server.url, '/admin#/', '.loop');
  assert.match(await page.locator('.node.reward').innerText(), /judge\s+not promoted yet: promote it under Models/);
  await page.locator('.node.reward').click();
  await page.locator('.tree').waitFor();
  assert.deepEqual(trouble, []);
  await context.close();
});

test('each view has its title, and takes the focus to its heading', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/', '.loop');
  assert.equal(await page.title(), 'Overview · instructd');
  for (const [tab, heading] of [
    ['Jobs', 'Jobs'],
    ['Models', 'Models'],
    ['Overview', null],
  ]) {
    await page.locator('nav.tabs').getByRole('link', { name: tab, exact: true }).click();
    await page.waitForFunction((t) => document.title === t, `${tab} · instructd`);
    const focused = await page.evaluate(() => [document.activeElement.tagName, document.activeElement.textContent]);
    assert.equal(focused[0], 'H1');
    if (heading) assert.equal(focused[1], heading);
  }
  await page.goto(`${server.url}/admin#/jobs/${reward.id}`);
  await page.waitForFunction(() => document.title === 'First judge · instructd');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('no view is wider than its window, from 320 to 2560', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  const views = ['#/', '#/jobs', '#/jobs/new/reward', '#/jobs/new/ppo', `#/jobs/${ppo.id}`, `#/jobs/${reward.id}`, '#/models'];
  for (const width of [320, 360, 390, 480, 600, 768, 820, 1024, 1100, 1280, 1440, 1920, 2560]) {
    await page.setViewportSize({ width, height: 900 });
    for (const hash of views) {
      await visit(page, server.url, `/admin${hash}`, '.view h1');
      await page.waitForTimeout(150);
      const over = await page.evaluate(() => {
        const wide = document.documentElement.scrollWidth - innerWidth;
        const out = [...document.querySelectorAll('main *')].find((e) => !e.closest('.table-box, .tabs, .samples, .log, .u-wrap') && e.getBoundingClientRect().right > innerWidth + 1);
        return wide > 0 || out ? `${wide} ${out?.className || out?.tagName}` : '';
      });
      assert.equal(over, '', `${hash} at ${width}`);
    }
  }
  assert.deepEqual(trouble, []);
  await context.close();
});

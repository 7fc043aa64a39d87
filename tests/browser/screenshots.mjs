// Makes the pictures of the README: `node screenshots.mjs` writes docs/images/ranking.png and docs/images/run.png.
// The run is a real PPO run of the built-in model with a reward model trained on the rankings of tests/fixtures.
import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { ADMIN_KEY, api, makeSet, signedInPage, startBrowser, startServer, visit } from './support.mjs';

const ROOT = resolve(import.meta.dirname, '../..');
const IMAGES = join(ROOT, 'docs/images');

const server = await startServer({ model: 'builtin', withEncoder: false });
const browser = await startBrowser();

async function run(kind, args, more) {
  const { id } = await api(server.url, 'POST', '/admin/jobs', { kind, args, ...more });
  for (;;) {
    const job = await api(server.url, 'GET', `/admin/jobs/${id}`);
    if (job.state === 'succeeded') return job;
    if (['failed', 'cancelled'].includes(job.state)) throw new Error(job.error);
    await new Promise((r) => setTimeout(r, 500));
  }
}

try {
  const rankings = await readFile(join(ROOT, 'tests/fixtures/oasst-en-ranked.jsonl'));
  const imported = await fetch(`${server.url}/admin/import?format=comparisons&name=oasst`, {
    method: 'POST',
    headers: { authorization: `Bearer ${ADMIN_KEY}` },
    body: rankings,
  });
  if (!imported.ok) throw new Error(await imported.text());
  await run('reward', { publish_as: 'judge', max_length: 192, epochs: 2, learning_rate: 3e-4 }, { name: 'Reward model on 151 rankings' });
  const ppo = await run(
    'ppo',
    { reward_model: 'judge', publish_as: 'better', iterations: 16, rollout_batch_size: 16, response_length: 32, learning_rate: 3e-5 },
    { name: 'PPO against the judge' },
  );
  await makeSet(server.url, 'Explain to a ten-year-old why the sky is blue.', [
    'Sunlight looks white, but it is a mix of all colours. When it travels through the air, it bumps into tiny ' +
      'particles of gas. Blue light is scattered in every direction much more than red light, so wherever you look ' +
      'in the sky, some blue light reaches your eyes.',
    'The sky is blue because it reflects the ocean. Oceans are blue, and they cover most of the Earth, so their ' +
      'colour is seen above us like in a mirror.',
  ]);
  const { page } = await signedInPage(browser, server.url);
  await page.setViewportSize({ width: 1280, height: 720 });
  await visit(page, server.url, '/label', 'main');
  await page.waitForTimeout(1500);
  await page.screenshot({ path: join(IMAGES, 'ranking.png') });
  await visit(page, server.url, `/admin#/jobs/${ppo.id}`, 'main');
  await page.waitForTimeout(2500);
  await page.setViewportSize({ width: 1280, height: 1000 });
  await page.waitForTimeout(500);
  await page.screenshot({ path: join(IMAGES, 'run.png') });
} finally {
  await browser.close();
  await server.stop();
}

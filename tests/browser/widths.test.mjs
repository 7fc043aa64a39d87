// Every page at every width, in both languages and themes: nothing sticks out, lines stay readable, no control is cut.
// SHOTS  a folder: a picture of every page at every width is written there
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { api, listOf, makeSet, openPage, signedInPage, startBrowser, startServer } from './support.mjs';

const WIDTHS = [320, 390, 600, 820, 1024, 1440, 1920, 2560];
/** Characters of a line that an eye still follows. */
const LONGEST_LINE = 120;

let server;
let browser;
/** [path, selector to wait for, a signed-in person is needed, what is opened on it] */
let PAGES;
before(async () => {
  server = await startServer();
  browser = await startBrowser();
  const long = 'How do I keep basil alive indoors through a long winter, and what should I do when its leaves turn yellow?';
  const pair = await makeSet(server.url, long, ['Give it **light** and water it when the soil is dry. '.repeat(6), 'Buy a new plant.']);
  const three = await makeSet(server.url, 'Name a river.', ['The Rhine.', '| a | b |\n|---|---|\n| 1 | 2 |', `\`\`\`\n${'code '.repeat(60)}\n\`\`\``]);
  await api(server.url, 'POST', '/v1/demonstrations', { messages: [{ role: 'user', content: 't5' }], completion: 't6' });
  await api(server.url, 'POST', '/admin/jobs', { kind: 'sft', args: { max_steps: 1 } }).catch(() => {});
  const [job] = listOf(await api(server.url, 'GET', '/admin/jobs'));
  await api(server.url, 'POST', '/admin/labelers', { name: 'Somebody with a rather long name', role: 'labeler' }).catch(() => {}); // a server that runs already has them
  PAGES = [
    ['/', '.doors', false],
    ['/', '.step', true],
    ['/label', '.sign-in', false],
    ['/admin', '.sign-in', false],
    [
      '/chat',
      '#chat-input',
      false,
      async (page) => {
        await page.locator('#chat-input').fill('t5');
        await page.keyboard.press('Enter');
        await page.locator('.thumbs button').first().click();
      },
    ],
    ['/docs', 'details.route', false],
    ['/no/such/page', 'h1', false],
    [`/label?set_id=${pair}`, '.answer', true],
    [`/label?set_id=${three}`, '.answer', true],
    ['/label?ask=1', '.ask', true],
    ['/chat', '#chat-input', true],
    ['/explore?text=t5%20t9%20t2%20t40', '.plan-out table', true],
    ['/admin#/', '.loop', true],
    ['/admin#/jobs', '.view-head a.button.primary', true],
    ['/admin#/jobs/new/ppo', '.schema-form', true],
    ['/admin#/jobs/new/reward', '.schema-form', true],
    ...(job ? [[`/admin#/jobs/${job.id}`, '.run-head', true]] : []),
    ['/admin#/models', '.tree', true],
    ['/admin#/queue', '.policies', true],
    [`/admin#/sets/${three}`, '.review-answers', true],
    ['/admin#/labels', '.throughput', true],
    ['/admin#/data', '#import-file', true],
    ['/admin#/people', '#invite-note', true],
    ['/admin#/people', '#invite-note', true, (page) => page.getByRole('button', { name: /Somebody/ }).click()],
    [`/label?set_id=${pair}`, '.answer', true, (page) => page.locator('.progress-button').first().click()],
    [`/label?set_id=${pair}`, '.answer', true, (page) => page.keyboard.press('?')],
    [`/label?set_id=${pair}`, '.answer', true, (page) => page.keyboard.press('s')],
    ['/admin#/settings', '.setting', true],
    ['/admin#/audit', '.list-tools', true],
  ];
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

/** What is wrong with the page as it stands: runs in the browser. */
function faults(longest) {
  const found = [];
  const view = document.documentElement.clientWidth;
  const over = document.documentElement.scrollWidth - view;
  const name = (el) => `${el.tagName.toLowerCase()}${el.id ? `#${el.id}` : ''}.${[...el.classList].join('.')} "${(el.textContent ?? '').trim().slice(0, 30)}"`;
  if (over > 0) found.push(`the page is ${over} px too wide`);
  const scrolls = (el) => {
    for (let at = el.parentElement; at && at !== document.body; at = at.parentElement)
      if (/auto|scroll|hidden|clip/.test(getComputedStyle(at).overflowX)) return true;
    return false;
  };
  for (const el of document.querySelectorAll('main *, header *, dialog[open] *')) {
    if (!el.checkVisibility({ visibilityProperty: true, opacityProperty: true }) || el.closest('svg, .hidden-label, .skip-link, .katex')) continue;
    const box = el.getBoundingClientRect();
    if (box.width === 0 || box.height === 0) continue;
    if ((box.right > view + 1 || box.left < -1) && !scrolls(el)) found.push(`sticks out: ${name(el)}`);
    const card = el.parentElement.closest('dialog[open]')?.getBoundingClientRect();
    if (card && (box.right > card.right + 1 || box.left < card.left - 1)) found.push(`sticks out of its dialog: ${name(el)}`);
    // words of a button or a tab that its box cuts
    if (el.matches('button, a.button, .tag, label.inline, nav a, h1, h2') && el.scrollWidth > el.clientWidth + 1 && el.clientWidth > 0 && getComputedStyle(el).overflowX !== 'visible' && getComputedStyle(el).textOverflow !== 'ellipsis')
      found.push(`cut: ${name(el)}`);
    if (el.matches('p, li') && !el.querySelector('p, li, pre, table, button, input') && (el.textContent ?? '').length > longest) {
      const letter = parseFloat(getComputedStyle(el).fontSize) * (/^zh/.test(document.documentElement.lang) ? 1 : 0.5);
      const range = document.createRange();
      range.selectNodeContents(el);
      const wide = Math.max(...[...range.getClientRects()].map((r) => r.width));
      if (wide / letter > longest) found.push(`a line of ${Math.round(wide / letter)} characters: ${name(el)}`);
    }
  }
  return [...new Set(found)].slice(0, 6);
}

for (const [lang, theme] of [
  ['en', 'light'],
  ['zh', 'dark'],
])
  test(`every page fits every width: ${lang}, ${theme}`, async () => {
    const bad = [];
    const walk = async ({ page, context, trouble }, signedIn) => {
      for (const [i, [path, selector, , open]] of [...PAGES.entries()].filter(([, p]) => p[2] === signedIn)) {
        await page.goto(`${server.url}/robots.txt`); // else only the part behind the # changes
        await page.setViewportSize({ width: WIDTHS[0], height: 900 });
        await page.goto(server.url + path);
        await page.locator(selector).first().waitFor();
        if (open) {
          await open(page);
          await page.locator('dialog[open]').waitFor();
        }
        for (const width of WIDTHS) {
          await page.setViewportSize({ width, height: 900 });
          await page.evaluate(() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r))));
          for (const what of await page.evaluate(faults, LONGEST_LINE)) bad.push(`${path} at ${width}: ${what}`);
          if (process.env.SHOTS) {
            mkdirSync(process.env.SHOTS, { recursive: true });
            const file = `${i}${path.replace(/[^a-z0-9]+/gi, '-').slice(0, 24)}-${width}-${lang}.png`;
            await page.screenshot({ path: join(process.env.SHOTS, file), fullPage: width < 1000 });
          }
        }
      }
      assert.deepEqual(trouble, []);
      await context.close();
    };
    await walk(await openPage(browser, server.url, { lang, theme }), false);
    await walk(await signedInPage(browser, server.url, { lang, theme }), true);
    assert.deepEqual(bad, []);
  });

// Phone, Chinese, accessibility: every page, by measurement.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { after, before, test } from 'node:test';
import { api, axeSource, judgmentsOf, listOf, makeSet, openPage, signedInPage, startBrowser, startServer, visit } from './support.mjs';

const STATIC = resolve(import.meta.dirname, '../../static');
const words = Object.fromEntries(['en', 'zh'].map((l) => [l, JSON.parse(readFileSync(join(STATIC, `i18n/${l}.json`), 'utf8'))]));

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

/** [path, selector to wait for]; `/label` needs an open set. */
const PAGES = [
  ['/', '.doors'],
  ['/label', '.answer'],
  ['/label?ask=1', '.ask'],
  ['/chat', '#chat-input'],
  ['/admin#/', '.loop'],
  ['/admin#/jobs', '.view-head a.button.primary'],
  ['/admin#/jobs/new/ppo', '.schema-form'],
  ['/admin#/models', '.tree'],
  ['/admin#/queue', '.policies'],
  ['/admin#/labels', '.throughput'],
  ['/admin#/data', '#import-file'],
  ['/admin#/people', '#invite-note'],
  ['/admin#/settings', '.setting'],
  ['/admin#/audit', '.list-tools'],
  ['/explore?text=t5%20t9%20t2%20t40', '.plan-out table'],
];

test('language files: same keys, nothing empty, Chinese is Chinese, every key in the code exists', () => {
  assert.deepEqual(Object.keys(words.en), Object.keys(words.zh));
  for (const lang of ['en', 'zh'])
    for (const [key, text] of Object.entries(words[lang])) assert.ok(text.trim() !== '', `${lang} ${key}`);
  const translated = Object.values(words.zh).filter((x) => /\p{Script=Han}/u.test(x)).length;
  assert.ok(translated > 0.97 * Object.keys(words.zh).length, `${translated} translated`);
  const placeholders = (x) => [...x.matchAll(/\{\w+\}/g)].map(String).sort().join();
  for (const key of Object.keys(words.en)) {
    if (!key.endsWith('_one')) assert.equal(placeholders(words.zh[key]), placeholders(words.en[key]), key);
  }
  const files = readdirSync(join(STATIC, 'js'), { recursive: true }).filter((f) => f.endsWith('.js'));
  for (const file of files) {
    for (const [, key] of readFileSync(join(STATIC, 'js', file), 'utf8').matchAll(/\bt\('([^']+)'/g))
      assert.ok(key in words.en, `${file}: ${key}`);
  }
});

test('Chinese is written as Chinese: full-width marks, spaces at Latin words, one term for one thing', () => {
  const HAN = '[\\u4e00-\\u9fff]';
  const wrong = [];
  const forbid = (key, text, pattern, what) => pattern.test(text) && wrong.push(`${key}: ${what}: ${text}`);
  for (const [key, text] of Object.entries(words.zh)) {
    if (!new RegExp(HAN).test(text)) continue;
    // code keeps its marks; what stands in for a placeholder brings its own
    const prose = text.replace(/`[^`]*`|max\(n, best_of\)|\{\w+\}/g, (code) => (code.startsWith('{') ? 'X' : ''));
    forbid(key, prose, /[,;!?]/, 'a half-width mark');
    forbid(key, prose, new RegExp(`${HAN}:|:${HAN}|${HAN}\\(|\\)${HAN}`), 'a half-width mark');
    const bare = text.replace(/\{(why|direction|name|d)\}/g, '');
    forbid(key, bare, new RegExp(`${HAN}[A-Za-z0-9{]|[A-Za-z0-9}]${HAN}`), 'no space between Chinese and Latin');
    forbid(key, text, /\d %/, 'a space before %');
    forbid(key, text, /您|词元|使用中|不相上下|位次|复核员|回退|看内部|提示(?!词|微调)(?<!软提示)/, 'a second term');
  }
  assert.deepEqual(wrong, []);
});

test('every setting, argument, recipe and recorded action has words in both languages', async () => {
  const [settings, recipes] = await Promise.all(['/admin/settings', '/admin/recipes'].map((path) => api(server.url, 'GET', path)));
  const needed = [
    ...listOf(settings).flatMap((s) => [`setting_name.${s.name}`, `setting.${s.name}`]),
    ...listOf(recipes).flatMap((r) => [
      `recipe.${r.name}`,
      `recipe_name.${r.name}`,
      ...Object.keys(r.schema.properties).flatMap((arg) => [`arg.${arg}`, `arg.${arg}_help`]),
    ]),
  ];
  assert.ok(needed.length > 150, `${needed.length}`);
  assert.deepEqual(needed.filter((key) => !(key in words.en)), []);
});

test('HTML is parsed in one place only', () => {
  const files = readdirSync(join(STATIC, 'js'), { recursive: true }).filter((f) => f.endsWith('.js'));
  const uses = files.flatMap((file) =>
    readFileSync(join(STATIC, 'js', file), 'utf8')
      .split('\n')
      .filter((line) => /innerHTML|outerHTML|insertAdjacentHTML|document\.write|setHTML|\beval\(|new Function/.test(line))
      .map(() => file),
  );
  assert.deepEqual([...new Set(uses)], ['dom.js']);
});

test('phone: every page and every view of the administration can be reached', async () => {
  const set = await makeSet(server.url, 'Name a river.', ['The Rhine.', 'Blue.']);
  for (const [lang, theme] of [
    ['en', 'light'],
    ['zh', 'dark'],
  ]) {
    const { page, context, trouble } = await signedInPage(browser, server.url, { phone: true, lang, theme });
    for (const width of [320, 390]) {
      await page.setViewportSize({ width, height: 844 });
      for (const [path, selector] of PAGES) {
        await visit(page, server.url, path === '/label' ? `/label?set_id=${set}` : path, selector);
        // whole, and not below something else
        const shown = (of) =>
          page.locator(`${of} a`).evaluateAll((links) =>
            links
              .filter((link) => {
                const box = link.getBoundingClientRect();
                const at = document.elementFromPoint(box.right - 4, box.top + box.height / 2);
                return box.width > 0 && box.left >= 0 && box.right <= innerWidth && (at === link || link.contains(at));
              })
              .map((link) => new URL(link.href).pathname + new URL(link.href).hash),
          );
        const row = await shown('.top > .nav');
        if (row.length === 0) await page.locator('.menu-button').tap();
        const pages = row.length ? row : await shown('.menu-pages');
        assert.deepEqual(pages, ['/label', '/chat', '/explore', '/admin'], `${path} at ${width}`);
        if (row.length === 0) await page.keyboard.press('Escape');
        if (path.startsWith('/admin')) assert.equal((await shown('nav.tabs')).length, 9, `${path} at ${width}`);
      }
    }
    assert.deepEqual(trouble, []);
    await context.close();
  }
});

test('phone, Chinese: nothing overflows, no untranslated key, a pair is ranked by touch', async () => {
  const set = await makeSet(server.url, '法国的首都是哪里?', ['巴黎。', '里昂。']);
  const { page, context, trouble } = await signedInPage(browser, server.url, { phone: true, lang: 'zh' });
  for (const [path, selector] of PAGES) {
    await visit(page, server.url, path === '/label' ? `/label?set_id=${set}` : path, selector);
    assert.equal(await page.locator('html').getAttribute('lang'), 'zh-Hans');
    const seen = await page.evaluate(() => ({
      width: document.documentElement.scrollWidth,
      view: window.innerWidth,
      text: document.body.innerText,
    }));
    assert.ok(seen.width <= 390 && seen.view === 390, `${path} is ${seen.width} wide in ${seen.view}`);
    const raw = Object.keys(words.zh).filter(
      (key) => key.includes('.') && new RegExp(`(^|\\s)${key.replaceAll('.', '\\.')}(\\s|$)`).test(seen.text),
    );
    assert.deepEqual(raw, [], `${path} shows keys`);
    assert.match(seen.text, /\p{Script=Han}/u);
    const small = await page.evaluate(() =>
      [...document.querySelectorAll('button, select, .button, nav a')]
        .filter((el) => el.checkVisibility({ visibilityProperty: true }) && !el.matches('.link'))
        .map((el) => ({ box: el.getBoundingClientRect(), name: el.textContent || el.className }))
        .filter(({ box }) => box.height < 40)
        .map(({ box, name }) => `${name} ${box.height}`),
    );
    assert.deepEqual(small, [], `${path}: touch targets under 40 px`);
  }
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  await page.locator('[data-act=b]').tap();
  const answer = page.waitForResponse((r) => r.url().endsWith('/judgment'));
  await page.locator('[data-act=submit]').tap();
  assert.equal((await answer).status(), 200);
  const [judgment] = await judgmentsOf(server.url, set);
  assert.equal(judgment.items.find((i) => i.tier === 0).shown_position, 1);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the language switch is remembered', async () => {
  const { page, context } = await openPage(browser, server.url);
  await visit(page, server.url, '/', '.doors');
  await page.locator('.lang-button').click();
  await page.locator('html[lang=zh-Hans] .doors').waitFor();
  await page.goto(`${server.url}/chat`);
  await page.locator('html[lang=zh-Hans] #chat-input').waitFor();
  await context.close();
});

test('axe finds nothing serious on any page, light and dark, in both languages', async () => {
  const axe = await axeSource();
  const found = [];
  const check = async (page, where) => {
    await page.evaluate(axe);
    const result = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
    for (const v of result.violations) {
      if (['serious', 'critical'].includes(v.impact))
        found.push(
          `${where}: ${v.id} ${v.nodes
            .map((n) => n.target.join(' '))
            .slice(0, 4)
            .join(' | ')}`,
        );
    }
  };
  for (const [theme, lang] of [
    ['light', 'en'],
    ['dark', 'en'],
    ['light', 'zh'],
    ['dark', 'zh'],
  ]) {
    const out = await openPage(browser, server.url, { theme, lang });
    await visit(out.page, server.url, '/label', '.sign-in');
    await check(out.page, `sign-in ${theme} ${lang}`);
    await out.context.close();
    const { page, context } = await signedInPage(browser, server.url, { theme, lang });
    for (const [path, selector] of PAGES) {
      // a set of its own each time: three answers show every kind of control
      const set =
        path === '/label'
          ? await makeSet(server.url, `Name a river (${theme} ${lang}).`, ['The **Rhine**.', '```\ncode\n```', 'Mount Fuji.'])
          : null;
      await visit(page, server.url, set ? `/label?set_id=${set}` : path, selector);
      if (set) {
        if ((await page.locator('.show-more').count()) === 0) await page.keyboard.press('m');
        await page.keyboard.press('1');
      }
      await check(page, `${path} ${theme} ${lang}`);
      if (set) {
        await page.keyboard.press('?');
        await page.locator('dialog[open]').waitFor();
        await check(page, `keys ${theme} ${lang}`);
      }
    }
    await context.close();
  }
  assert.deepEqual(found, []);
});

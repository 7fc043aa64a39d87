// What labelers read: mathematics, code and wide tables in answers, from the server's Markdown and while it streams.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { api, makeSet, signedInPage, startBrowser, startServer, violations, visit } from './support.mjs';

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

const CELLS = ['method', 'responsibility', 'counterexample', 'configuration', 'acknowledgement', 'internationalisation'];
const ANSWER = [
  'The sum is $$\\sum_{i=1}^{n} 1 = n$$ and \\(x^2 + \\frac{a}{b}\\) costs $5 and then $10.',
  '```python\ndef f(x):\n    return "<b>" + x  # a comment\n```',
  `| ${CELLS.join(' | ')} |\n|${'---|'.repeat(CELLS.length)}\n| ${CELLS.join(' | ')} |`,
  'A broken formula $\\nosuch{a}$ and [a dead link](http://plain.example).',
].join('\n\n');

for (const phone of [false, true])
  test(`mathematics, code and tables are typeset (${phone ? 'phone' : 'desktop'})`, async () => {
    await makeSet(server.url, `t${phone ? 5 : 6} which one?`, [ANSWER, `${ANSWER}\n\nAnd more.`]);
    const { page, context, trouble } = await signedInPage(browser, server.url, { phone });
    await visit(page, server.url, '/label', '.prose table');
    await page.locator('.prose .math.typeset').first().waitFor({ state: 'attached' });
    const first = page.locator('.prose', { has: page.locator('table') }).first();
    assert.equal(await first.locator('.math-display.typeset .katex').count(), 1);
    assert.equal(await first.locator('.math-inline.typeset .katex').count(), 1, 'money is no formula');
    await first.locator('.math.source').waitFor(); // a formula with an error keeps its source
    await first.locator('code.coloured .hljs-string').first().waitFor();
    assert.match(await first.locator('pre').innerText(), /return "<b>" \+ x {2}# a comment/, 'the code is the same');
    const cell = first.locator('td').nth(5);
    const [height, line] = await cell.evaluate((el) => [el.clientHeight, parseFloat(getComputedStyle(el).lineHeight)]);
    assert.ok(height < 2 * line + 8, `a word of a table is broken over lines: ${height} px at ${line} px a line`);
    assert.equal(await first.locator('a[href]').count(), 0);
    const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(over <= 0, `the page scrolls sideways by ${over} px`);
    if (process.env.INSTRUCTD_SHOTS) await page.screenshot({ path: `${process.env.INSTRUCTD_SHOTS}/reading-${phone}.png`, fullPage: true });
    assert.deepEqual(trouble, []);
    await context.close();
  });

const CALL = { id: 'c1', type: 'function', function: { name: 'get_weather', arguments: '{"city": "Bonn", "days": [1, 2]}' } };
const TOOLS = [{ type: 'function', function: { name: 'get_weather', description: 'Weather of the next days.', parameters: {} } }];
const CONVERSATION = [
  { role: 'system', content: `You are helpful.\n\n# Tools\n\n${JSON.stringify(TOOLS)}` },
  { role: 'user', content: 'Will it rain in Bonn?' },
  { role: 'assistant', content: 'I look it up.', tool_calls: [CALL] },
  { role: 'tool', tool_call_id: 'c1', content: '{"days": [{"day": 1, "rain": true}, {"day": 2, "rain": false}]}' },
];
const LOOKS_AGAIN =
  '<think>\nDay 2 is missing a *temperature*.\n</think>\n\nOne moment.\n' +
  '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn", "note": "<b>two</b> lines\\nof text"}}\n</tool_call>';

for (const phone of [false, true])
  for (const theme of ['light', 'dark'])
    test(`reasoning, calls of tools and results are shown apart (${phone ? 'phone' : 'desktop'}, ${theme})`, async () => {
      const lang = theme === 'dark' ? 'zh' : 'en';
      const own = await startServer(); // whose queue holds nothing else
      await api(own.url, 'POST', '/v1/comparison-sets', { messages: CONVERSATION, completions: ['Yes, tomorrow.', LOOKS_AGAIN] });
      const { page, context, trouble } = await signedInPage(browser, own.url, { phone, theme, lang });
      await visit(page, own.url, '/label', '.tool-result');
      const call = page.locator('.tool-call', { hasText: 'two' });
      await call.waitFor();
      assert.deepEqual(await call.locator('dt').allInnerTexts(), ['city', 'note']);
      assert.deepEqual(await call.locator('dd pre').allInnerTexts(), ['Bonn', '<b>two</b> lines\nof text'], 'as text');
      assert.match(await page.locator('.tool-result pre').innerText(), /"rain": true\n/, 'laid out over lines');
      const thought = page.locator('.reasoning');
      assert.equal(await thought.locator('em').innerText(), 'temperature');
      await thought.locator('summary').click();
      assert.equal(await thought.locator('em').isVisible(), false, 'can be folded');
      await thought.locator('summary').click();
      const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert.ok(over <= 0, `the page scrolls sideways by ${over} px`);
      if (process.env.INSTRUCTD_SHOTS)
        await page.screenshot({ path: `${process.env.INSTRUCTD_SHOTS}/parts-${phone}-${theme}.png`, fullPage: true });
      assert.deepEqual(trouble, []);
      await context.close();
      await own.stop();
    });

test('text that streams in is typeset as it grows, and hostile formulas stay text', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/chat', '#chat-input');
  const found = await page.evaluate(async () => {
    const { richText } = await import('/static/js/richtext.js');
    const el = richText(
      'so \\[\na^2\n\\] and $b$, for $5 or $6\n\n```js\nlet a = 1;\n```\n\n' +
        '$\\href{javascript:alert(1)}{x}$ $\\includegraphics{https://evil.example/a.png}$ $\\def\\a{\\a\\a}\\a$',
    );
    document.body.append(el);
    for (let i = 0; i < 100 && !el.querySelector('.math-inline.typeset'); i++) await new Promise((r) => setTimeout(r, 50));
    await new Promise((r) => setTimeout(r, 200));
    return {
      display: el.querySelectorAll('.math-display.typeset').length,
      inline: el.querySelectorAll('.math-inline .katex').length,
      code: el.querySelectorAll('code .hljs-keyword').length,
      active: el.querySelectorAll('a, img, script').length,
    };
  });
  assert.equal(found.display, 1);
  assert.ok(found.inline >= 1);
  assert.equal(found.code, 1);
  assert.equal(found.active, 0);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a long answer is folded with a map; O unfolds, a part of the map is brought into view, and keys still rank', async () => {
  const section = (name) => `## ${name}\n\n${'The sea is wide and the sky is high. '.repeat(30)}\n\n`;
  const long = ['Winds', 'Waves', 'Tides', 'Currents'].map(section).join('') + '```js\nlet x = 1;\n```\n';
  const set = await makeSet(server.url, 'Tell me all about the sea.', [long, 'It is wet.']);
  for (const options of [{}, { phone: true, lang: 'zh', theme: 'dark' }]) {
    const { page, context, trouble } = await signedInPage(browser, server.url, options);
    await visit(page, server.url, `/label?set_id=${set}`, '.long');
    const answer = page.locator('.answer', { has: page.locator('.long') });
    assert.equal(await page.locator('.long').count(), 1, 'the short answer is not folded');
    assert.deepEqual(await answer.locator('.long-map li').allTextContents(), ['Winds', 'Waves', 'Tides', 'Currents']);
    const folded = () => answer.locator('.long.folded').count();
    const height = () => answer.locator('.long-text').evaluate((el) => el.clientHeight);
    const low = await height();
    assert.equal(await folded(), 1);
    assert.deepEqual(await violations(page), []);
    if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/long-${options.phone ? 'phone' : 'desktop'}.png` });
    await answer.locator('.long-map button').last().click();
    assert.equal(await folded(), 0);
    assert.ok((await height()) > low + 100);
    const seen = await answer.locator('h2', { hasText: 'Currents' }).last().evaluate((el) => {
      const box = el.getBoundingClientRect();
      return box.top > 0 && box.bottom < window.innerHeight;
    });
    assert.ok(seen, 'the part is in view');
    await page.keyboard.press('o');
    assert.equal(await folded(), 1);
    await answer.locator('.long-toggle').click();
    assert.equal(await folded(), 0);
    // differences are seen whole, and plain text is folded without a map
    await page.keyboard.press('o');
    await page.keyboard.press('d');
    assert.equal(await page.locator('.long').count(), 0);
    await page.keyboard.press('d');
    await page.keyboard.press('p');
    assert.deepEqual([await folded(), await answer.locator('.long-map').count()], [1, 0]);
    await page.keyboard.press('p');
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.equal(wide, 0, 'nothing sticks out');
    await page.keyboard.press('1');
    assert.equal(await page.locator('.submit').getAttribute('aria-disabled'), 'false');
    await page.evaluate(() => localStorage.clear());
    assert.deepEqual(trouble, []);
    await context.close();
  }
});

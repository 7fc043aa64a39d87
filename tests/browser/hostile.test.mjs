// Hostile text in every stored field: no dialog, no CSP violation, no request that leaves the server.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { api, makeSet, signedInPage, startBrowser, startServer, visit } from './support.mjs';

const CORPUS = [
  '<script>alert(1)</script>',
  '<img src=x onerror=alert(1)>',
  '<svg onload=alert(1)></svg>',
  '<svg><script href="https://evil.example/x.js"></script></svg>',
  '<iframe src="javascript:alert(1)"></iframe>',
  '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
  '<a href="javascript:alert(1)">click</a>',
  '[click](javascript:alert(1))',
  '[click](  JaVaScRiPt:alert(1))',
  '[click](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)',
  '![x](https://evil.example/leak.png)',
  '![x](x" onerror="alert(1))',
  '<link rel=stylesheet href=https://evil.example/x.css>',
  '<style>@import url(https://evil.example/x.css); * { background: url(https://evil.example/y) }</style>',
  '<div style="background:url(https://evil.example/z)">styled</div>',
  '<meta http-equiv="refresh" content="0;url=https://evil.example/">',
  '<base href="https://evil.example/">',
  '<form action="https://evil.example/"><button autofocus onfocus=alert(1)>x</button></form>',
  '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(1)&gt;">',
  '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
  '<details open ontoggle=alert(1)>x</details>',
  '<video><source onerror=alert(1)></video>',
  '<input autofocus onfocus=alert(1)>',
  '<object data="https://evil.example/x"></object><embed src="https://evil.example/x">',
  '```html\n<script>alert(1)</script>\n```',
  '`<img src=x onerror=alert(1)>`',
  '<https://evil.example/><img src=x onerror=alert(1)>',
  '"><img src=x onerror=alert(1)>',
  "'-alert(1)-'",
  '\u202e<img src=x onerror=alert(1)>\u202c',
  '{{constructor.constructor("alert(1)")()}} ${alert(1)}',
  '&lt;img src=x onerror=alert(1)&gt;',
];

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

/** Elements and attributes that hostile text would have to create to do anything. */
const planted = (page) =>
  page.evaluate(() => {
    const bad = [];
    for (const el of document.querySelectorAll('main *, .toasts *, dialog *')) {
      if (/^(script|iframe|object|embed|link|style|meta|base|img|video|audio|source|math)$/i.test(el.localName))
        bad.push(el.localName);
      for (const a of el.attributes) {
        if (/^on/i.test(a.name)) bad.push(`${el.localName} ${a.name}`);
        if (/^(href|src|action|formaction|xlink:href)$/i.test(a.name) && /^\s*(javascript|data|vbscript):/i.test(a.value))
          bad.push(`${a.name}=${a.value}`);
      }
    }
    return bad;
  });

test('prompts and completions', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  // three at a time: prompt, two completions; the whole corpus passes every place
  for (let i = 0; i < CORPUS.length; i++) {
    const at = (k) => CORPUS[(i + k) % CORPUS.length];
    const set = await makeSet(server.url, `${i} ${at(0)}`, [`a${i} ${at(1)}`, `b${i} ${at(2)}`]);
    await visit(page, server.url, `/label?set_id=${set}`, '.answer');
    assert.deepEqual(await planted(page), [], `set ${i}`);
    if (i % 8 === 0) {
      for (const key of ['d', 'p', 'd', 'p']) {
        await page.keyboard.press(key);
        assert.deepEqual(await planted(page), [], `set ${i}, view ${key}`);
      }
      if ((await page.locator('.show-more').count()) === 0) await page.keyboard.press('m');
      await page.locator('#more-rationale').fill(at(3));
      await page.locator('#more-ideal').fill(at(4));
      await page.keyboard.press('Escape');
      await page.keyboard.press('1');
      const answer = page.waitForResponse((r) => r.url().endsWith('/judgment'));
      await page.keyboard.press('Enter');
      assert.equal((await answer).status(), 200);
      await page.locator('.toast').first().waitFor();
      assert.deepEqual(await planted(page), []);
    }
  }
  assert.deepEqual(trouble, []);
  await context.close();
});

test('names of labelers, notes of invites, names of keys', async () => {
  for (const text of CORPUS) {
    const name = text.replace(/\s+/g, ' ').slice(0, 60);
    // a server may refuse a name; what it stores must be shown as text
    for (const [path, body] of [
      ['/admin/labelers', { name, role: 'labeler' }],
      ['/admin/invites', { role: 'labeler', note: name }],
      ['/admin/keys', { name, scopes: ['inference'] }],
    ]) {
      await api(server.url, 'POST', path, body).catch((e) => assert.match(e.message, /: 4\d\d /, 'refused politely'));
    }
  }
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/admin#/people', '.table-box td');
  await page.waitForLoadState('networkidle');
  assert.deepEqual(await planted(page), []);
  assert.ok((await page.locator('main').textContent()).includes('onerror=alert(1)'), 'the text itself is on the page');
  for (const path of ['/admin#/', '/admin#/jobs', '/admin#/models', '/admin#/labels', '/admin#/queue', '/admin#/data']) {
    await visit(page, server.url, path, '.view > *');
    assert.deepEqual(await planted(page), []);
  }
  assert.deepEqual(trouble, []);
  await context.close();
});

test('reasons, explanations, tags and what the audit trail and the review show of them', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  const ids = [];
  for (let i = 0; i < CORPUS.length; i += 4) {
    const set = await api(server.url, 'POST', '/v1/comparison-sets', {
      messages: [{ role: 'user', content: `practice ${i} ${CORPUS[i]}` }],
      completions: [`x ${CORPUS[i]}`, `y ${CORPUS[(i + 1) % CORPUS.length]}`],
    });
    ids.push(set.id);
    await api(server.url, 'POST', `/admin/sets/${set.id}/known-answer`, {
      kind: 'calibration',
      tiers: set.completions.map((c, tier) => ({ completion_id: c.id, tier })),
      explanation: CORPUS.slice(i, i + 4).join('\n\n'),
    });
    await visit(page, server.url, `/label?set_id=${set.id}`, '.answer');
    if ((await page.locator('.show-more').count()) === 0) await page.keyboard.press('m');
    await page.locator('#more-rationale').fill(CORPUS.slice(i, i + 4).join(' '));
    await page.keyboard.press('Escape');
    await page.keyboard.press('1');
    await page.keyboard.press('Enter');
    await page.locator('.verdict').waitFor();
    assert.deepEqual(await planted(page), [], `verdict ${i}`);
  }
  await api(server.url, 'POST', '/v1/prompts', { messages: [{ role: 'user', content: 'p' }], tags: CORPUS.slice(0, 8) });
  await api(server.url, 'POST', '/admin/datasets', { filter: { set_kind: 'calibration' } });
  for (const [path, selector] of [
    [`/admin#/sets/${ids[0]}`, '.places'],
    [`/admin#/sets/${ids[3]}`, '.places'],
    ['/admin#/labels', '.matrix, .throughput'],
    ['/admin#/queue', '.policies'],
    ['/admin#/data', '#dataset-name'],
  ]) {
    await visit(page, server.url, path, selector);
    await page.waitForLoadState('networkidle');
    assert.deepEqual(await planted(page), [], path);
  }
  assert.deepEqual(trouble, []);
  await context.close();
});

test('chat input and hostile addresses', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, '/chat', '#chat-input');
  for (const text of CORPUS.slice(0, 6)) {
    await page.locator('#chat-input').fill(text);
    const answer = page.waitForResponse((r) => r.url().endsWith('/v1/chat/completions'));
    await page.keyboard.press('Enter');
    await answer;
    await page.locator('.composer button.primary').waitFor();
    assert.deepEqual(await planted(page), []);
  }
  for (const path of [
    '/label?set_id=<script>alert(1)</script>',
    '/label?invite="><img src=x onerror=alert(1)>',
    '/label#invite="><img src=x onerror=alert(1)>',
    '/label#link="><img src=x onerror=alert(1)>',
    '/admin#/jobs/<img src=x onerror=alert(1)>',
    '/admin#/jobs/new/<svg onload=alert(1)>',
  ]) {
    await page.goto(server.url + path);
    await page.locator('main > *').first().waitFor();
    assert.deepEqual(await planted(page), [], path);
  }
  assert.deepEqual(trouble, []);
  await context.close();
});

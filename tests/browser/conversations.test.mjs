// Conversations against the real binary: three turns by keyboard with a mark and a correction, a reload between turns, a
// lost connection, a tie on a phone.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { ADMIN_KEY, api, judgmentsOf, makeSet, signedInPage, startBrowser, startServer, violations, visit } from './support.mjs';

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

/** The screenshot of a state, where a folder for them is named. */
const shot = (page, name) => process.env.SHOTS && page.screenshot({ path: `${process.env.SHOTS}/${name}.png` });

async function stored(setId, n = 1) {
  for (let i = 0; i < 200; i++) {
    const list = await judgmentsOf(server.url, setId);
    if (list.length >= n) return list;
    await new Promise((r) => setTimeout(r, 50));
  }
  assert.fail(`no judgment of ${setId} arrived`);
}

/** Asks a question with short answers and waits for their set; resolves with its id. */
async function ask(page, question) {
  await visit(page, server.url, '/label?ask=1', '#ask-text');
  await page.locator('#ask-text').fill(question);
  await page.locator('#ask-max-tokens').fill('6');
  await page.locator('#ask-text').press('Control+Enter');
  return leased(page);
}

/** The id of the set on the screen, once it can be ranked. */
async function leased(page) {
  await page.locator('.submit').waitFor();
  return page.evaluate(() => JSON.parse(sessionStorage.getItem('instructd.current')).set_id);
}

const conversationOf = async (setId) => (await api(server.url, 'GET', `/v1/label/conversations?set_id=${setId}`)).data[0];

const textsOf = (page, selector) => page.locator(selector).allTextContents();

async function exported(format) {
  const answer = await fetch(`${server.url}/admin/export?format=${format}`, { headers: { authorization: `Bearer ${ADMIN_KEY}` } });
  return (await answer.text())
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line));
}

test('three turns by keyboard, with a mark and a correction; the next message survives a reload', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  const first = await ask(page, 't1 t2');
  const chosen = await page.locator('.answer-body').nth(1).textContent();
  await page.keyboard.press('2');
  await page.keyboard.press('Enter');
  await page.locator('#next-text').waitFor();
  const turns = await textsOf(page, '.talk .turn');
  assert.equal(turns.length, 2, 'the question and the better answer');
  assert.ok(turns[1].includes(chosen.trim()), `${turns[1]} holds ${chosen}`);
  await page.locator('#next-text').press('Control+Enter');
  assert.match(await page.locator('.talk .form-error').textContent(), /write a message/);
  await page.locator('#next-text').fill('t3 t4');
  assert.deepEqual(await violations(page), []);
  await shot(page, 'talk-desktop-light-en');

  await page.goto(`${server.url}/label`);
  await page.locator('#next-text').waitFor();
  assert.equal(await page.locator('#next-text').inputValue(), 't3 t4');
  await page.locator('#next-text').press('Control+Enter');
  const second = await leased(page);
  assert.equal((await textsOf(page, '.prompt .turn')).length, 3, 'the whole conversation is above the answers');

  // marks: W, words by Shift and the arrow keys, Enter
  await page.keyboard.press('w');
  await page.locator('#mark-text').waitFor();
  await page.keyboard.press('Enter');
  assert.match(await page.locator('dialog .help[role=status]').textContent(), /Select the wrong words/);
  await page.keyboard.press('Control+Home');
  await page.keyboard.press('ArrowRight');
  for (let i = 0; i < 3; i++) await page.keyboard.press('Shift+ArrowRight');
  const text = await page.locator('#mark-text').inputValue();
  await page.keyboard.type('zz');
  assert.equal(await page.locator('#mark-text').inputValue(), text, 'the text is not written to');
  await page.locator('#mark-note').fill('not so');
  await page.locator('#mark-note').press('Enter');
  assert.match(await page.locator('dialog .marks-list').textContent(), /not so/);
  assert.deepEqual(await violations(page), []);
  await shot(page, 'marks-desktop-light-en');
  await page.locator('dialog button', { hasText: 'Done' }).click();

  // a correction: E opens the answer in its place, Esc closes it, the answer stays as it was with the changes below it
  const answer = page.locator('.answer').first();
  const body = await answer.locator('.answer-body').innerText();
  await page.keyboard.press('e');
  const field = answer.locator('.correct-field textarea');
  await field.waitFor();
  await page.waitForFunction(() => document.activeElement.closest('.correct-field') !== null);
  assert.equal(await field.inputValue(), text);
  assert.equal(await answer.locator('.answer-body').getByText(body.trim(), { exact: true }).count(), 0);
  await page.keyboard.press('Control+Home');
  await page.keyboard.type('t5 t6 corrected ');
  assert.deepEqual(await violations(page), []);
  await shot(page, 'correct-desktop-light-en');
  await page.keyboard.press('Escape');
  assert.equal(await answer.locator('.answer-body').innerText(), body);
  assert.match(await answer.locator('.marks').textContent(), /not so.*corrected/s);
  assert.deepEqual((await answer.locator('.tracked ins').allTextContents()).map((x) => x.trim()), ['t5 t6 corrected']);
  assert.equal(await answer.locator('.tracked del').count(), 0);
  // the original text takes the correction back; the corrected one can be written again
  await page.keyboard.press('e');
  await answer.locator('.correct-field .quiet').click();
  assert.equal(await field.inputValue(), text);
  await field.fill('t5 t6 corrected');
  await answer.locator('.correct-field .primary').click();
  assert.match(await answer.locator('.tracked del').first().textContent(), /t/);
  await shot(page, 'corrected-desktop-light-en');
  await page.reload();
  await page.locator('.answer .marked').waitFor();
  await page.keyboard.press('1');
  await page.keyboard.press('Enter');

  await page.locator('#next-text').fill('t7');
  await page.locator('#next-text').press('Control+Enter');
  await page.locator('.prompt .turn').nth(4).waitFor();
  const third = await leased(page);
  await page.keyboard.press('1');
  await page.keyboard.press('Enter');
  await page.locator('[data-act=end-talk]').click();
  await page.locator('.empty, .submit').first().waitFor();
  assert.equal(await page.locator('#next-text').count(), 0, 'the conversation has ended');

  // the conversation is listed, and goes on where it ended
  await page.locator('.progress-button').click();
  const listed = page.locator('dialog li', { hasText: 't1 t2' }).filter({ hasText: '3 turns' });
  await listed.waitFor();
  assert.deepEqual(await violations(page), []);
  await shot(page, 'history-desktop-light-en');
  await listed.locator('button', { hasText: 'Go on' }).click();
  await page.locator('#next-text').waitFor();
  assert.equal((await textsOf(page, '.talk .turn')).length, 6, 'three questions, each with its better answer');
  await page.locator('[data-act=end-talk]').click();
  await page.locator('.empty, .submit').first().waitFor();

  for (const set of [first, second, third]) assert.equal((await stored(set)).length, 1);
  assert.deepEqual((await conversationOf(first)).turns.map((turn) => turn.set_id), [first, second, third]);
  const [judgment] = await stored(second);
  const [span] = judgment.spans;
  assert.deepEqual([judgment.spans.length, span.start, span.end, span.note], [1, 1, 4, 'not so']);
  assert.equal(span.completion_id, judgment.items.find((i) => i.shown_position === 0).completion_id);
  const [demonstration] = (await exported('demonstrations')).filter((d) => d.completion === 't5 t6 corrected');
  assert.equal(demonstration.corrects, text);
  const prompts = (await exported('comparisons')).map((line) => line.prompt.map((m) => m.content));
  assert.ok(prompts.some((p) => p.length === 5 && p[0] === 't1 t2' && p[1].trim() === chosen.trim() && p[2] === 't3 t4' && p[4] === 't7'), JSON.stringify(prompts));

  // reviewers see what was marked, and what was wrong about it
  await visit(page, server.url, `/admin#/sets/${second}`, '.marked');
  const row = page.locator('tr', { has: page.locator('.marked') });
  assert.match(await row.textContent(), /A.*not so/s);
  await row.locator('summary').click();
  assert.match(await row.locator('.tracked ins').last().textContent(), /corrected/);
  assert.deepEqual(await violations(page), []);
  await shot(page, 'review-corrected-desktop-light-en');
  assert.deepEqual(trouble, []);
  await context.close();
});

test('answers whose stream was lost are found again', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url);
  const first = await ask(page, 't8');
  await page.keyboard.press('1');
  await page.keyboard.press('Enter');
  await page.locator('#next-text').fill('t9');
  // nothing reaches the server: the message is still there
  await page.route('**/v1/label/continue', (route) => route.abort('connectionreset'));
  await page.locator('.talk button[type=submit]').click();
  await page.locator('.talk .form-error', { hasText: /\w/ }).waitFor();
  assert.equal(await page.locator('#next-text').inputValue(), 't9');
  await page.unroute('**/v1/label/continue');
  // the server stores the answers, and the connection is lost on the way back
  await page.route('**/v1/label/continue', async (route) => {
    await route.fetch();
    await route.abort('connectionreset');
  });
  await page.locator('#next-text').press('Control+Enter');
  const second = await leased(page);
  assert.deepEqual((await conversationOf(first)).turns.map((turn) => turn.set_id), [first, second]);
  assert.equal((await textsOf(page, '.prompt .turn')).length, 3);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('on a phone, in Chinese, after a tie the labeler chooses the answer; a mark by touch', async () => {
  const { page, context, trouble } = await signedInPage(browser, server.url, { phone: true, lang: 'zh', theme: 'dark' });
  await ask(page, 't20 t21');
  await page.locator('.mark-button').nth(1).tap();
  await page.locator('#mark-text').waitFor();
  // what a finger selects
  await page.locator('#mark-text').evaluate((/** @type {HTMLTextAreaElement} */ el) => el.setSelectionRange(0, 2));
  await page.locator('[data-act=mark-selection]').tap();
  await page.locator('dialog .marked').waitFor();
  assert.deepEqual(await violations(page), []);
  await shot(page, 'marks-phone-dark-zh');
  await page.locator('dialog .primary').tap();
  await page.locator('.correct-button').nth(1).tap();
  await page.locator('.correct-field textarea').fill('t2 改过');
  assert.deepEqual(await violations(page), []);
  await shot(page, 'correct-phone-dark-zh');
  await page.locator('.correct-field .primary').tap();
  await page.locator('.answer').nth(1).locator('.tracked ins').first().waitFor();
  await shot(page, 'corrected-phone-dark-zh');
  await page.locator('[data-act=tie]').tap();
  await page.locator('.submit').tap();
  await page.locator('.talk input[type=radio]').first().waitFor();
  assert.equal(await page.locator('.talk input[type=radio]').count(), 2);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(wide, 0, 'nothing sticks out');
  const chosen = await page.locator('.talk .choice-text > :last-child').nth(1).textContent();
  await page.locator('.talk .choice').nth(1).tap();
  await page.locator('#next-text').fill('t22');
  assert.deepEqual(await violations(page), []);
  await shot(page, 'talk-phone-dark-zh');
  await page.locator('.talk .primary').tap();
  await leased(page);
  const turns = await textsOf(page, '.prompt .turn');
  assert.ok(turns[1].includes(chosen.trim()), `${turns[1]} holds ${chosen}`);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('a set of the queue is marked, and offers no conversation', async () => {
  const set = await makeSet(server.url, 'Name a metal.', ['Iron \u{1F600} is a metal.', 'Wood is a metal.']);
  const { page, context, trouble } = await signedInPage(browser, server.url);
  await visit(page, server.url, `/label?set_id=${set}`, '.answer');
  const iron = page.locator('.answer', { hasText: 'Iron' });
  // words that are selected on the page are selected in the dialog
  await iron.locator('.answer-body p').evaluate((el) => {
    const range = document.createRange();
    const node = el.firstChild;
    range.setStart(node, node.textContent.indexOf('is a'));
    range.setEnd(node, node.textContent.indexOf('.'));
    window.getSelection().removeAllRanges();
    window.getSelection().addRange(range);
  });
  await iron.locator('.mark-button').focus();
  await page.keyboard.press('Enter');
  await page.locator('#mark-text').waitFor();
  await page.waitForFunction(() => document.activeElement.id === 'mark-text');
  await page.keyboard.press('Enter');
  assert.equal(await page.locator('dialog .marked').textContent(), 'is a metal');
  await page.keyboard.press('Escape');
  await page.keyboard.press('1');
  await page.keyboard.press('Enter');
  const [judgment] = await stored(set);
  // characters, not UTF-16 units
  assert.deepEqual(judgment.spans.map((s) => [s.start, s.end]), [[7, 17]]);
  assert.equal(await page.locator('#next-text').count(), 0);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the way from one text to another is told in words that stay, go and come', async () => {
  const { page, context } = await signedInPage(browser, server.url);
  await page.goto(`${server.url}/label`);
  const found = await page.evaluate(async () => {
    const { edits } = await import('/static/js/label/diff.js');
    const long = (word) => Array.from({ length: 4000 }, (_, i) => `${word}${i % 7}`).join(' ');
    const pairs = [
      ['a b c', 'a x c'],
      ['a b c', 'a b c'],
      ['one two three', 'four five'],
      ['', 'new'],
      ['gone', ''],
      ['keep this part. Then this.', 'keep part. Then this, and more.'],
      [long('a'), long('b')],
    ];
    return pairs.map(([a, b]) => ({ b, parts: edits(a, b) }));
  });
  for (const { b, parts } of found) assert.equal(parts.filter((p) => p.kind !== 'gone').map((p) => p.text).join(''), b);
  const told = (i) => found[i].parts.map((p) => `${p.kind}:${p.text}`);
  assert.deepEqual(told(0), ['same:a ', 'gone:b', 'new:x', 'same: c']);
  assert.deepEqual(told(1), ['same:a b c']);
  assert.deepEqual(told(2), ['gone:one two three', 'new:four five']);
  assert.deepEqual(told(4), ['gone:gone']);
  await context.close();
});

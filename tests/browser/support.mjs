// Starts the real binary and Chromium; helpers that every browser test shares.
//
// INSTRUCTD_BIN  path of the binary (default: target/debug/instructd of this repository)
// INSTRUCTD_URL  a server that runs already, instead (its admin key in INSTRUCTD_ADMIN_KEY)
// INSTRUCTD_STATIC  a folder that /static comes from instead of the binary: for working on the pages
// CHROMIUM       path of Chromium (default: /usr/bin/chromium)
import { spawn } from 'node:child_process';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { chromium } from 'playwright-core';
import { documentOf, faultOf } from './contract.mjs';

const ROOT = resolve(import.meta.dirname, '../..');
export const ADMIN_KEY = process.env.INSTRUCTD_ADMIN_KEY ?? 'browser-test-admin-key';
const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

const freePort = () =>
  new Promise((done, fail) => {
    const s = createServer();
    s.on('error', fail);
    s.listen(0, '127.0.0.1', () => {
      const { port } = s.address();
      s.close(() => done(port));
    });
  });

/**
 * The server on a free port with an empty data directory; `stop()` ends it and cleans up.
 * `model` names what it serves instead of the tiny model, `withEncoder` whether it serves the tiny encoder too, `env`
 * further settings by their variables, also as a function of the server's address, and `config` is its config.toml.
 */
export async function startServer({ withEncoder = true, model: served, env = {}, config = '' } = {}) {
  if (process.env.INSTRUCTD_URL) return { url: process.env.INSTRUCTD_URL, stop: async () => {} };
  const bin = process.env.INSTRUCTD_BIN ?? join(ROOT, 'target/debug/instructd');
  const data = await mkdtemp(join(tmpdir(), 'instructd-browser-'));
  const model = join(data, 'tiny-chat');
  await cp(join(ROOT, 'tests/fixtures/llama-tied-tiny'), model, { recursive: true });
  // the fixture knows only the words t0 … t95 and has no template: chat gets the barest one
  await writeFile(
    join(model, 'tokenizer_config.json'),
    JSON.stringify({ chat_template: '{% for m in messages %}{{ m.content }} {% endfor %}' }),
  );
  await writeFile(join(data, 'config.toml'), config); // other settings come by flag and environment only
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const encoder = join(ROOT, 'tests/fixtures/bert-tiny');
  const args = ['serve', '--model', served ?? model, ...(withEncoder ? ['--encoder', encoder] : []), '--data-dir', join(data, 'data'), '--listen', `127.0.0.1:${port}`];
  const child = spawn(bin, args, {
    cwd: data,
    // the server refuses INSTRUCTD_ variables that it does not know, such as this test's own
    env: {
      ...Object.fromEntries(Object.entries(process.env).filter(([k]) => !k.startsWith('INSTRUCTD_'))),
      INSTRUCTD_ADMIN_KEY: ADMIN_KEY,
      ...(typeof env === 'function' ? env(url) : env),
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output = (output + chunk).slice(-200_000)));
  const ended = new Promise((done) => child.once('exit', (code, signal) => done(`${code ?? signal}`)));
  child.once('error', (e) => (output += e.message));
  const stop = async () => {
    child.kill('SIGTERM');
    const forced = setTimeout(() => child.kill('SIGKILL'), 10_000);
    await ended;
    clearTimeout(forced);
    await rm(data, { recursive: true, force: true });
  };
  for (let i = 0; i < 600; i++) {
    if (child.exitCode !== null || child.pid === undefined)
      throw new Error(`the server did not start (${child.exitCode}):\n${output.slice(-8000)}`);
    const ready = await fetch(`${url}/ready`).then(
      (r) => r.ok,
      () => false,
    );
    if (ready) return { url, stop, output: () => output };
    await new Promise((r) => setTimeout(r, 100));
  }
  await stop();
  throw new Error(`the server was never ready:\n${output.slice(-8000)}`);
}

/** JSON call with the admin key; throws with the server's words where the answer is not 2xx. */
export async function api(url, method, path, body) {
  const response = await fetch(url + path, {
    method,
    headers: { authorization: `Bearer ${ADMIN_KEY}`, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
  if (response.headers.get('content-type')?.startsWith('application/json')) {
    const fault = faultOf(await documentOf(url), method, path.split('?')[0], response.status, text);
    if (fault) throw new Error(fault);
  }
  return text === '' ? null : JSON.parse(text);
}

/** The array in a list answer. */
export function listOf(answer) {
  if (Array.isArray(answer)) return answer;
  return answer?.data ?? Object.values(answer ?? {}).find(Array.isArray) ?? [];
}

/** A set with given texts; returns its id. */
export async function makeSet(url, prompt, texts) {
  const set = await api(url, 'POST', '/v1/comparison-sets', {
    messages: [{ role: 'user', content: prompt }],
    completions: texts.map((text) => ({ text })),
  });
  return set.id ?? set.set_id;
}

export const judgmentsOf = async (url, setId) =>
  listOf(await api(url, 'GET', '/v1/judgments?limit=200')).filter((j) => j.set_id === setId);

export const startBrowser = () => chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: FLAGS });

/**
 * A fresh page that records what must not happen: `trouble` collects dialogs, CSP violations, uncaught errors,
 * requests that leave the server and answers that are not as the API's document says.
 */
export async function openPage(browser, url, { lang = 'en', theme = 'light', phone = false } = {}) {
  const context = await browser.newContext({
    viewport: phone ? { width: 390, height: 844 } : { width: 1440, height: 900 },
    hasTouch: phone,
    isMobile: phone,
    colorScheme: theme,
    locale: 'en-GB',
  });
  const trouble = [];
  await context.exposeFunction('__trouble', (text) => trouble.push(text));
  await context.addInitScript((code) => {
    if (localStorage.getItem('instructd.lang') === null) localStorage.setItem('instructd.lang', code);
    document.addEventListener('securitypolicyviolation', (e) =>
      window.__trouble(`CSP: ${e.violatedDirective} ${e.blockedURI} ${e.sample}`),
    );
  }, lang);
  if (process.env.INSTRUCTD_STATIC) {
    await context.route('**/static/**', (route) =>
      route.fulfill({
        path: join(process.env.INSTRUCTD_STATIC, new URL(route.request().url()).pathname.replace('/static/', '')),
      }),
    );
    await context.route(/\/(label|chat|admin)?(\?.*)?$/, async (route) => {
      const name = new URL(route.request().url()).pathname.slice(1) || 'index';
      if (route.request().resourceType() !== 'document') return route.continue();
      const served = await route.fetch();
      return route.fulfill({ response: served, path: join(process.env.INSTRUCTD_STATIC, `${name}.html`) });
    });
  }
  const page = await context.newPage();
  page.on('dialog', (d) => {
    trouble.push(`dialog: ${d.message()}`);
    d.dismiss().catch(() => {});
  });
  page.on('pageerror', (e) => trouble.push(`error: ${e.stack ?? e}`));
  context.on('request', (r) => {
    const to = new URL(r.url());
    if (!['blob:', 'data:'].includes(to.protocol) && to.origin !== url) trouble.push(`request left the server: ${r.url()}`);
  });
  page.on('response', async (r) => {
    const to = new URL(r.url());
    if (to.origin !== url || to.pathname.startsWith('/static/') || !r.ok()) return;
    if (!r.headers()['content-type']?.startsWith('application/json')) return;
    // The body of an answer that nobody waited for may be gone.
    const text = await r.text().catch(() => null);
    const fault = text === null ? null : faultOf(await documentOf(url), r.request().method(), to.pathname, r.status(), text);
    if (fault) trouble.push(`contract: ${fault}`);
  });
  page.on('console', (m) => /content security policy/i.test(m.text()) && trouble.push(`console: ${m.text()}`));
  return { page, context, trouble };
}

/** Signs in through the panel of whatever page asks for it. */
export async function signIn(page, url, path = '/label') {
  await page.goto(url + path);
  await page.locator('#sign-key').fill(ADMIN_KEY);
  await page.locator('.sign-in button[type=submit]').click();
  await page.locator('.sign-in').waitFor({ state: 'detached' });
}

/** Opens `path` and waits for `selector`. */
export async function visit(page, url, path, selector) {
  if (page.url() === url + path) await page.reload();
  else await page.goto(url + path);
  await page.locator(selector).first().waitFor();
}

/** A page that is signed in by cookie, without going through the panel. */
export async function signedInPage(browser, url, options) {
  const opened = await openPage(browser, url, options);
  const response = await opened.context.request.post(`${url}/session`, { data: { key: ADMIN_KEY } });
  if (!response.ok()) throw new Error(`POST /session: ${response.status()} ${await response.text()}`);
  return opened;
}

export const axeSource = () => readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** Serious violations that axe finds on the page as it is, each with its first element. */
export async function violations(page) {
  await page.evaluate(await axeSource());
  const { violations: found } = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  return found.filter((v) => ['serious', 'critical'].includes(v.impact)).map((v) => `${v.id}: ${v.nodes[0].html}`);
}

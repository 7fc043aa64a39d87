// Signing in at an OpenID Connect provider, a stand-in of which runs here with a real key.
import assert from 'node:assert/strict';
import { generateKeyPairSync, sign } from 'node:crypto';
import { createServer } from 'node:http';
import { after, before, test } from 'node:test';
import { openPage, startBrowser, startServer } from './support.mjs';

const NAME = 'Zoë Provided';
const SUBJECT = 'subject-4711';

let server;
let browser;
let provider;
before(async () => {
  provider = await startProvider();
  server = await startServer({
    config: '[auth.roles]\nops = "admin"\n',
    env: (url) => ({
      INSTRUCTD_AUTH__OIDC__ISSUER: provider.url,
      INSTRUCTD_AUTH__OIDC__CLIENT_ID: 'browser-test',
      INSTRUCTD_AUTH__OIDC__PUBLIC_URL: url,
      INSTRUCTD_AUTH__OIDC__NAME: 'Team Login',
      INSTRUCTD_AUTH__OIDC__ROLE_CLAIM: 'groups',
      INSTRUCTD_LOG__FILTER: 'info,instructd=trace',
    }),
  });
  browser = await startBrowser();
});
after(async () => {
  await browser?.close();
  await server?.stop();
  provider?.stop();
});

/** A provider that signs everybody in as the same person; `groups` and `refuses` can be changed. */
async function startProvider() {
  const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const jwk = { ...publicKey.export({ format: 'jwk' }), kid: 'k', alg: 'RS256', use: 'sig' };
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const issued = new Map();
  const state = { url: '', groups: [], refuses: false, tokens: [], stop: () => http.close() };
  const http = createServer(async (request, response) => {
    const url = new URL(request.url, state.url);
    const json = (body) => response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(body));
    if (url.pathname === '/.well-known/openid-configuration') {
      return json({ issuer: state.url, authorization_endpoint: `${state.url}/authorize`, token_endpoint: `${state.url}/token`, jwks_uri: `${state.url}/keys` });
    }
    if (url.pathname === '/keys') return json({ keys: [jwk] });
    if (url.pathname === '/authorize') {
      const back = new URL(url.searchParams.get('redirect_uri'));
      back.searchParams.set('state', url.searchParams.get('state'));
      if (state.refuses) {
        back.searchParams.set('error', 'access_denied');
        back.searchParams.set('error_description', 'Raw words of the provider');
      } else {
        const code = `code-${issued.size}`;
        issued.set(code, url.searchParams.get('nonce'));
        back.searchParams.set('code', code);
      }
      return response.writeHead(303, { location: back.href }).end();
    }
    if (url.pathname === '/token') {
      let body = '';
      for await (const chunk of request) body += chunk;
      const now = Math.floor(Date.now() / 1000);
      const nonce = issued.get(new URLSearchParams(body).get('code'));
      const claims = { iss: state.url, aud: 'browser-test', sub: SUBJECT, name: NAME, groups: state.groups, nonce, iat: now, exp: now + 60 };
      const signed = `${part({ alg: 'RS256', kid: 'k' })}.${part(claims)}`;
      const token = `${signed}.${sign('sha256', Buffer.from(signed), privateKey).toString('base64url')}`;
      state.tokens.push(token);
      return json({ access_token: 'access-4711', token_type: 'Bearer', id_token: token });
    }
    response.writeHead(404).end();
  });
  await new Promise((done) => http.listen(0, '127.0.0.1', done));
  state.url = `http://127.0.0.1:${http.address().port}`;
  return state;
}

/** What went wrong apart from going to the provider, which is on purpose. */
const others = (trouble) => trouble.filter((text) => !text.startsWith(`request left the server: ${provider.url}/authorize`));

test('a person signs in at the provider, works, and signs out', async () => {
  const { page, context, trouble } = await openPage(browser, server.url);
  await page.goto(`${server.url}/label`);
  await page.getByRole('link', { name: 'Sign in with Team Login' }).click();
  await page.locator('.user-name', { hasText: NAME }).waitFor();
  assert.equal(page.url(), `${server.url}/label`);
  const cookies = await context.cookies();
  assert.deepEqual(
    cookies.map((c) => [c.name, c.httpOnly, c.sameSite]),
    [['instructd_session', true, 'Strict']],
  );
  await page.locator('.user button').click();
  await page.locator('.sign-in').waitFor();
  assert.deepEqual(await context.cookies(), []);
  // The claim gives another role at the next sign-in, and the page that asked is the one that comes back.
  provider.groups = ['ops'];
  await page.goto(`${server.url}/admin`);
  await page.getByRole('link', { name: 'Sign in with Team Login' }).click();
  await page.locator('.user-name', { hasText: NAME }).waitFor();
  assert.equal(new URL(page.url()).pathname, '/admin');
  assert.deepEqual(others(trouble), []);
  await context.close();
});

test('what the provider refuses is told in our words, in both languages', async () => {
  provider.refuses = true;
  for (const [lang, link, words] of [
    ['en', 'Sign in with Team Login', 'The provider did not sign you in.'],
    ['zh', '使用 Team Login 登录', '身份提供方没有让你登录。'],
  ]) {
    const { page, context, trouble } = await openPage(browser, server.url, { lang });
    await page.goto(`${server.url}/label`);
    await page.getByRole('link', { name: link }).click();
    await page.locator('.sign-in .form-error', { hasText: words }).waitFor();
    assert.ok(!page.url().includes('#'), 'the reason leaves the address bar');
    assert.ok(!(await page.content()).includes('Raw words'));
    assert.deepEqual(others(trouble), []);
    await context.close();
  }
  provider.refuses = false;
});

test('no token and no claim is in the log', () => {
  const log = server.output();
  assert.ok(log.length > 0);
  for (const secret of [...provider.tokens, 'access-4711', SUBJECT, NAME]) {
    assert.ok(!log.includes(secret), secret);
  }
});

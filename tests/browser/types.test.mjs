// The pages' JavaScript against the API's types: the types are those of the server's document, and tsc finds no fault.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { typesOf } from '../../scripts/api_types.mjs';
import { startServer } from './support.mjs';

const ROOT = resolve(import.meta.dirname, '../..');

test('contract.d.ts is what the API document says', async () => {
  const server = await startServer({ withEncoder: false });
  try {
    const answer = await fetch(`${server.url}/openapi.json`);
    const now = typesOf(await answer.json());
    const kept = await readFile(join(ROOT, 'static/js/contract.d.ts'), 'utf8');
    assert.ok(
      now === kept,
      'static/js/contract.d.ts is out of date: run `node scripts/api_types.mjs openapi.json > static/js/contract.d.ts` with what GET /openapi.json answers',
    );
  } finally {
    await server.stop();
  }
});

test('tsc finds no fault in static/js', () => {
  const tsc = join(import.meta.dirname, 'node_modules/.bin/tsc');
  try {
    execFileSync(tsc, ['--project', join(import.meta.dirname, 'tsconfig.json')], { encoding: 'utf8' });
  } catch (e) {
    assert.fail(e.stdout || e.message);
  }
});

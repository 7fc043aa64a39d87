#!/usr/bin/env node
// Types of the API for the pages' JavaScript, made from the server's OpenAPI document.
//
//     node scripts/api_types.mjs openapi.json > static/js/contract.d.ts
//
// `openapi.json` is what `GET /openapi.json` answers. tests/browser/types.test.mjs says when the file is out of date.

import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const literal = (value) => JSON.stringify(value).replaceAll("'", "\\'").replace(/^"(.*)"$/s, "'$1'");
const field = (name) => (/^[A-Za-z_$][\w$]*$/.test(name) ? name : literal(name));
const union = (types) => {
  const all = [...new Set(types)];
  return all.includes('any') ? 'any' : all.join(' | ');
};
const wrapped = (type) => (type.includes(' | ') || type.includes(' & ') ? `(${type})` : type);

/** A schema of JSON as a type; JSON of any kind is `any`. */
function typeOf(schema, indent = '') {
  if (schema === true || schema === undefined) return 'any';
  if (schema.$ref) return schema.$ref.split('/').pop();
  if ('const' in schema) return literal(schema.const);
  if (schema.enum) return union(schema.enum.map(literal));
  const several = schema.anyOf ?? schema.oneOf;
  if (several && !schema.properties) return union(several.map((s) => typeOf(s, indent)));
  const kinds = [schema.type ?? (schema.properties ? 'object' : 'any')].flat();
  return union(kinds.map((kind) => ofKind(kind, schema, indent)));
}

function ofKind(kind, schema, indent) {
  switch (kind) {
    case 'null':
    case 'string':
    case 'boolean':
      return kind;
    case 'integer':
    case 'number':
      return 'number';
    case 'array':
      if (schema.prefixItems) return `[${schema.prefixItems.map((s) => typeOf(s, indent)).join(', ')}]`;
      return `${wrapped(typeOf(schema.items, indent))}[]`;
    case 'object': {
      const own = Object.entries(schema.properties ?? {});
      if (own.length === 0) {
        const rest = schema.additionalProperties;
        return rest && rest !== true ? `Record<string, ${typeOf(rest, indent)}>` : 'Record<string, any>';
      }
      const inner = `${indent}  `;
      const lines = own.map(([name, s]) => {
        const must = (schema.required ?? []).includes(name);
        return `${comment(s.description, inner)}${inner}${field(name)}${must ? '' : '?'}: ${typeOf(s, inner)};\n`;
      });
      return `{\n${lines.join('')}${indent}}`;
    }
    default:
      return 'any';
  }
}

const comment = (text, indent = '') =>
  text ? `${indent}/** ${text.replaceAll('*/', '* /').split('\n').join(`\n${indent} * `)} */\n` : '';

/** Literal paths first, then those with parameters: an earlier one is the closer one. */
const closest = ([a], [b]) =>
  (a.match(/\{/g) ?? []).length - (b.match(/\{/g) ?? []).length || b.length - a.length || (a < b ? -1 : 1);

const pattern = (path) => (path.includes('{') ? `\`${path.replace(/\{\w+\}/g, '${string}')}\`` : literal(path));

/** `type Name<P extends string> = P extends '/path' ? T : …`. */
function byPath(name, about, routes, otherwise) {
  const lines = [...routes].sort(closest).map(([path, type]) => `  P extends ${pattern(path)} ? ${type} :`);
  return `${comment(about)}export type ${name}<P extends string> = string extends P ? any :\n${lines.join('\n')}\n  ${otherwise};\n`;
}

function answerOf(operation) {
  const types = [];
  for (const [status, response] of Object.entries(operation.responses)) {
    if (!status.startsWith('2')) continue;
    const schema = response.content?.['application/json']?.schema;
    if (schema) types.push(typeOf(schema, '  '));
    else if (!response.content) types.push('null');
  }
  return types.length ? union(types) : null;
}

function queryOf(operation) {
  const all = (operation.parameters ?? []).filter((p) => p.in === 'query');
  if (all.length === 0) return null;
  // A parameter that is null, undefined or empty is left out.
  const one = (p) => `${field(p.name)}${p.required ? '' : '?'}: ${union([typeOf(p.schema), 'null', 'undefined', "''"])}`;
  return `{ ${all.map(one).join('; ')} }`;
}

/** The whole file. */
export function typesOf(document) {
  let out = '// Types of the server\'s API. Made by scripts/api_types.mjs from /openapi.json: do not edit.\n\n';
  for (const [name, schema] of Object.entries(document.components.schemas)) {
    out += `${comment(schema.description)}export type ${name} = ${typeOf(schema)};\n\n`;
  }
  const answers = { get: [], post: [], delete: [] };
  const bodies = [];
  const queries = [];
  const events = [];
  for (const [path, methods] of Object.entries(document.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const answer = answerOf(operation);
      if (answer && answers[method]) answers[method].push([path, answer]);
      const body = operation.requestBody?.content['application/json']?.schema;
      if (body) bodies.push([path, typeOf(body, '  ')]);
      const query = method === 'get' && queryOf(operation);
      if (query) queries.push([path, query]);
      const event = operation.responses['200']?.content?.['text/event-stream']?.['x-event-schema'];
      if (event) events.push([path, typeOf(event)]);
    }
  }
  out += comment('What stands in the place of an answer or body where the API has no such route.');
  out += 'export interface NoSuchRoute<P extends string> {\n  \'the API has no such route\': P;\n}\n\n';
  for (const [method, name] of [['get', 'GetAnswer'], ['post', 'PostAnswer'], ['delete', 'DeleteAnswer']]) {
    out += `${byPath(name, `What ${method.toUpperCase()} answers.`, answers[method], 'NoSuchRoute<P>')}\n`;
  }
  out += `${byPath('PostBody', 'What POST sends.', bodies, 'Record<string, never>')}\n`;
  out += `${byPath('GetQuery', 'What may stand in the query of GET.', queries, 'Record<string, never>')}\n`;
  out += byPath('EventOf', 'One event of a stream.', events, 'never');
  return out;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  process.stdout.write(typesOf(JSON.parse(readFileSync(process.argv[2] ?? 0, 'utf8'))));
}

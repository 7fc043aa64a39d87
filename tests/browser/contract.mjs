// Holds what the pages get from the server against its own document, /openapi.json: undeclared fields are faults.

const SILENT = new Set(['description', 'title', 'default', 'format', 'examples', 'minimum', 'maximum', 'minItems', 'maxItems']);
const kindOf = (v) => (v === null ? 'null' : Array.isArray(v) ? 'array' : Number.isInteger(v) ? 'integer' : typeof v);

/** What is wrong with `value`, or null. */
function fault(document, value, schema, at = 'answer') {
  if (schema === true) return null;
  if (schema === false) return `${at}: nothing may be here`;
  for (const [word, demand] of Object.entries(schema)) {
    let wrong = null;
    if (word === '$ref') wrong = fault(document, value, document.components.schemas[demand.split('/').pop()], at);
    else if (word === 'anyOf' || word === 'oneOf') {
      const tried = demand.map((s) => fault(document, value, s, at));
      wrong = tried.includes(null) ? null : tried.join('; ');
    } else if (word === 'type') {
      const kind = kindOf(value);
      const fits = [demand].flat().some((k) => k === kind || (k === 'number' && kind === 'integer'));
      wrong = fits ? null : `${at} is ${JSON.stringify(value)?.slice(0, 60)}, not ${demand}`;
    } else if (word === 'const') wrong = value === demand ? null : `${at} is not ${demand}`;
    else if (word === 'enum') wrong = demand.includes(value) ? null : `${at} is ${value}, none of ${demand}`;
    else if (word === 'items' && Array.isArray(value)) {
      for (const [i, v] of value.slice(schema.prefixItems?.length ?? 0).entries()) wrong ??= fault(document, v, demand, `${at}[${i}]`);
    } else if (word === 'prefixItems' && Array.isArray(value)) {
      for (const [i, s] of demand.entries()) if (i < value.length) wrong ??= fault(document, value[i], s, `${at}[${i}]`);
    } else if (word === 'required' && kindOf(value) === 'object') {
      const missing = demand.find((name) => !(name in value));
      wrong = missing ? `${at} has no field ${missing}` : null;
    } else if (!['items', 'prefixItems', 'required', 'properties', 'additionalProperties'].includes(word) && !SILENT.has(word))
      throw new Error(`contract.mjs does not know the word ${word} of JSON Schema`);
    if (wrong) return wrong;
  }
  if (kindOf(value) === 'object' && (schema.properties || schema.type === 'object'))
    for (const [name, inner] of Object.entries(value)) {
      const own = schema.properties?.[name] ?? schema.additionalProperties;
      const wrong = own === undefined ? `${at}.${name} is not in the document` : fault(document, inner, own, `${at}.${name}`);
      if (wrong) return wrong;
    }
  return null;
}

function operationOf(document, method, path) {
  const given = path.split('/');
  const fits = (template) => {
    const wanted = template.split('/');
    return wanted.length === given.length && wanted.every((w, i) => w === given[i] || (w.startsWith('{') && given[i] !== ''));
  };
  const found = Object.keys(document.paths).filter(fits);
  found.sort((a, b) => a.split('{').length - b.split('{').length);
  return document.paths[found[0]]?.[method.toLowerCase()];
}

/** What is wrong with a JSON answer of the server, or null. */
export function faultOf(document, method, path, status, text) {
  const responses = operationOf(document, method, path)?.responses;
  if (!responses) return status >= 400 ? null : `${method} ${path} is not in the document`;
  const response = responses[status] ?? responses[`${Math.trunc(status / 100)}XX`];
  if (!response) return `${method} ${path}: the status ${status} is not declared`;
  const schema = response.content?.['application/json']?.schema;
  if (!schema) return `${method} ${path} ${status}: JSON is not declared`;
  const wrong = fault(document, JSON.parse(text), schema);
  return wrong && `${method} ${path} ${status}: ${wrong}`;
}

const documents = new Map(); // url → promise of its document

/** The server's document, asked for once. */
export function documentOf(url) {
  if (!documents.has(url)) documents.set(url, fetch(`${url}/openapi.json`).then((r) => r.json()));
  return documents.get(url);
}

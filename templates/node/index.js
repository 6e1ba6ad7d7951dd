'use strict';

// Serves function/handler.js to the watchdog: HTTP/1.1 on the loopback address.

const http = require('http');
const path = require('path');

const DRAIN_MILLISECONDS = 25000;
let stopping = false;
const RAW_BODY = /^(1|true|yes)$/i.test(process.env.RAW_BODY || '');

/** One request as the handler sees it. */
class FunctionEvent {
  constructor(request, raw) {
    const at = request.url.indexOf('?');
    this.method = request.method;
    this.headers = request.headers;
    this.path = at < 0 ? request.url : request.url.slice(0, at);
    this.query = parameters(at < 0 ? '' : request.url.slice(at + 1));
    this.rawBody = raw;
    this.body = RAW_BODY ? raw : parseBody(request.headers['content-type'], raw);
  }
}

/** How the handler answers: status(), headers(), then succeed() or fail(). */
class FunctionContext {
  constructor(done) {
    this.done = done;
    this.called = false;
    this.code = 200;
    this.fields = {};
  }

  status(code) {
    if (code === undefined) return this.code;
    this.code = code;
    return this;
  }

  headers(fields) {
    if (fields === undefined) return this.fields;
    this.fields = fields;
    return this;
  }

  succeed(value) {
    this.finish(undefined, value);
  }

  fail(error) {
    this.finish(error === undefined ? new Error('the function failed') : error);
  }

  finish(error, value) {
    if (this.called) return;
    this.called = true;
    this.done(error, value);
  }
}

class BadBody extends Error {}

function parameters(text) {
  const found = {};
  for (const [name, value] of new URLSearchParams(text)) {
    if (!Object.hasOwn(found, name)) {
      Object.defineProperty(found, name, { value, enumerable: true, writable: true, configurable: true });
    } else if (Array.isArray(found[name])) {
      found[name].push(value);
    } else {
      found[name] = [found[name], value];
    }
  }
  return found;
}

function parseBody(type, raw) {
  const kind = (type || '').split(';')[0].trim().toLowerCase();
  if (raw.length === 0) return {};
  if (kind === 'application/json' || kind.endsWith('+json')) {
    try {
      return JSON.parse(raw.toString('utf8'));
    } catch {
      throw new BadBody('the body is not valid JSON\n');
    }
  }
  if (kind === 'application/x-www-form-urlencoded') return parameters(raw.toString('utf8'));
  if (kind === '' || kind.startsWith('text/') || kind === 'application/xml') return raw.toString('utf8');
  return raw;
}

function send(request, response, status, fields, value) {
  let body = value;
  let type = 'text/plain; charset=utf-8';
  if (body === undefined || body === null) {
    body = '';
  } else if (Buffer.isBuffer(body) || body instanceof Uint8Array) {
    type = 'application/octet-stream';
  } else if (typeof body === 'object' && typeof body.pipe === 'function') {
    type = 'application/octet-stream';
  } else if (typeof body !== 'string') {
    body = JSON.stringify(body);
    type = 'application/json; charset=utf-8';
  }
  response.statusCode = status;
  if (stopping) response.setHeader('connection', 'close');
  for (const [name, field] of Object.entries(fields)) response.setHeader(name, field);
  if (!response.hasHeader('content-type')) response.setHeader('content-type', type);
  if (typeof body.pipe === 'function') {
    body.on('error', (error) => {
      console.error(error);
      response.destroy();
    });
    body.pipe(response);
    return;
  }
  response.removeHeader('transfer-encoding');
  response.setHeader('content-length', Buffer.byteLength(body));
  response.end(request.method === 'HEAD' ? undefined : body);
}

function answer(request, response, context, error, value) {
  try {
    if (error === undefined) {
      send(request, response, context.code, context.fields, value);
    } else {
      console.error(error);
      const told = error instanceof Error ? 'the function failed, its log says why\n' : error;
      const status = context.code >= 400 ? context.code : 500;
      send(request, response, status, context.fields, told);
    }
  } catch (wrong) {
    // A status or header that HTTP does not allow.
    console.error(wrong);
    for (const name of response.getHeaderNames()) response.removeHeader(name);
    send(request, response, 500, {}, 'the function failed, its log says why\n');
  }
}

function call(handler, request, response, raw) {
  const context = new FunctionContext((error, value) => answer(request, response, context, error, value));
  let event;
  try {
    event = new FunctionEvent(request, raw);
  } catch (error) {
    const status = error instanceof BadBody ? 400 : 500;
    send(request, response, status, {}, error instanceof BadBody ? error.message : 'bad request\n');
    return;
  }
  let result;
  try {
    result = handler(event, context, (error, value) => context.finish(error || undefined, value));
  } catch (error) {
    context.finish(error instanceof Error ? error : new Error(String(error)));
    return;
  }
  if (result && typeof result.then === 'function') {
    result.then(
      (value) => context.finish(undefined, value),
      (error) => context.finish(error instanceof Error ? error : new Error(String(error))),
    );
  } else if (result !== undefined || handler.length < 2) {
    context.finish(undefined, result);
  }
  // Otherwise the handler is in the callback style and answers when it is ready.
}

async function load() {
  let found;
  const folder = path.join(__dirname, 'function');
  const fs = require('fs');
  const names = ['handler.js', 'handler.mjs', 'handler.cjs', 'index.js', 'index.mjs'];
  const file = names.map((name) => path.join(folder, name)).find((name) => fs.existsSync(name));
  if (!file) throw new Error('the handler has no `handler.js`');
  try {
    found = require(file);
  } catch (error) {
    if (error.code !== 'ERR_REQUIRE_ESM' && !/Cannot use import statement|Unexpected token 'export'/.test(error.message)) {
      throw error;
    }
    found = await import(file);
  }
  for (const candidate of [found, found.default, found.handle, found.handler]) {
    if (typeof candidate === 'function') return candidate;
  }
  throw new Error(`${path.basename(file)} exports no function: write \`module.exports = async (event, context) => …\``);
}

async function main() {
  const handler = await load();
  const port = Number(new URL(process.env.upstream_url || 'http://127.0.0.1:3000').port) || 3000;
  const server = http.createServer({ keepAlive: true, noDelay: true }, (request, response) => {
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('error', () => response.destroy());
    request.on('end', () => call(handler, request, response, Buffer.concat(parts)));
  });
  // The watchdog is the only client and keeps the time itself.
  server.keepAliveTimeout = 0;
  server.headersTimeout = 0;
  server.requestTimeout = 0;
  server.timeout = 0;
  const stop = () => {
    stopping = true;
    server.close(() => process.exit(0));
    server.closeIdleConnections();
    setTimeout(() => process.exit(0), DRAIN_MILLISECONDS).unref();
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
  server.listen(port, '127.0.0.1', 1024);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});

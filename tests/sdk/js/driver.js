// The driver of centrifuge for JavaScript: see drivers.py. One process for all clients, transports and formats.
'use strict';

const readline = require('node:readline');
const { EventSource } = require('eventsource');
const WebSocket = require('ws');
const sdks = { false: require('centrifuge').Centrifuge, true: require('centrifuge/build/protobuf').Centrifuge };

const clients = new Map();

const say = (message) => process.stdout.write(JSON.stringify(message) + '\n');

class Client {
  constructor({ who, url, emulation, transport, protobuf, token, tokens, min_reconnect_delay }) {
    this.who = who;
    this.isBinary = protobuf;
    this.isEmulated = transport !== 'websocket';
    this.subs = new Map();
    const scheme = transport === 'websocket' ? url.replace('http', 'ws') : url;
    const options = {
      websocket: WebSocket,
      eventsource: EventSource,
      fetch: globalThis.fetch,
      readableStream: globalThis.ReadableStream,
      emulationEndpoint: `${emulation}/emulation`,
      minReconnectDelay: min_reconnect_delay ?? 100,
      maxReconnectDelay: 1000,
      timeout: 10000,
    };
    if (token) options.token = token;
    if (tokens) options.getToken = this.giver(tokens, { event: 'get_token' });
    this.sdk = new sdks[protobuf]([{ transport, endpoint: `${scheme}/connection/${transport}` }], options);
    const plain = (event) => this.sdk.on(event, ({ code, reason }) => this.tell(event, { code, reason }));
    plain('connecting');
    plain('disconnected');
    this.sdk.on('connected', (c) => this.tell('connected', { client: c.client, transport: c.transport }));
    this.sdk.on('error', (c) => this.tell('error', { code: c.error.code, reason: c.error.message }));
    this.sdk.on('message', (c) => this.tell('message', { data: this.value(c.data) }));
    this.listen(this.sdk, 'server_');
  }

  tell(event, fields) {
    say({ who: this.who, event, ...fields });
  }

  // JSON in what the SDK gives: values, or bytes.
  value(data) {
    if (!(data instanceof Uint8Array)) return data ?? null;
    return data.length ? JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(data)) : null;
  }

  bytes(data) {
    return this.isBinary ? new TextEncoder().encode(JSON.stringify(data)) : data;
  }

  info(info) {
    if (!info) return null;
    const { user, client } = info;
    return { user, client, conn_info: this.value(info.connInfo), chan_info: this.value(info.chanInfo) };
  }

  publication(p) {
    const { offset, tags } = p;
    return {
      data: this.value(p.data), offset: Number(offset ?? 0), info: this.info(p.info),
      tags: tags && Object.keys(tags).length ? tags : null,
    };
  }

  // A getToken that gives one after the other, the last one again and again.
  giver(tokens, event) {
    const left = [...tokens];
    return async () => {
      this.tell(event.event, event);
      return left.length > 1 ? left.shift() : left[0];
    };
  }

  // Events that subscriptions and, for server-side ones, clients have.
  listen(source, prefix) {
    const on = (event, fields) =>
      source.on(event, (c) => this.tell(prefix + event, { channel: c.channel, ...fields(c) }));
    on('publication', (c) => this.publication(c));
    on('join', (c) => ({ info: this.info(c.info) }));
    on('leave', (c) => ({ info: this.info(c.info) }));
    on('subscribing', (c) => ({ code: c.code ?? null, reason: c.reason ?? null }));
    on('unsubscribed', (c) => ({ code: c.code ?? null, reason: c.reason ?? null }));
    on('subscribed', (c) => ({
      recoverable: c.recoverable, positioned: c.positioned,
      was_recovering: c.wasRecovering, recovered: c.recovered,
      position: c.streamPosition ? position(c.streamPosition) : null, data: this.value(c.data),
    }));
  }

  subscription({ channel, token, tokens, positioned, recoverable, join_leave, delta, since, states }) {
    let sub = this.subs.get(channel);
    if (sub) return sub;
    const options = { minResubscribeDelay: 100, maxResubscribeDelay: 1000 };
    if (token) options.token = token;
    if (tokens) options.getToken = this.giver(tokens, { event: 'get_sub_token', channel });
    if (positioned) options.positioned = true;
    if (recoverable) options.recoverable = true;
    if (join_leave) options.joinLeave = true;
    if (delta) options.delta = delta;
    if (since) options.since = since;
    if (states) options.getState = this.giver(states, { event: 'get_state', channel });
    sub = this.sdk.newSubscription(channel, options);
    this.listen(sub, '');
    sub.on('error', (c) => this.tell('sub_error', { channel, code: c.error.code, reason: c.error.message }));
    this.subs.set(channel, sub);
    return sub;
  }
}

const position = ({ offset, epoch }) => ({ offset: Number(offset), epoch });

const commands = {
  connect: (c) => c.sdk.connect(),
  disconnect: (c) => c.sdk.disconnect(),
  subscribe: (c, command) => c.subscription(command).subscribe(),
  unsubscribe: (c, { channel }) => c.subs.get(channel)?.unsubscribe(),
  storm: (c, command) => {
    const sub = c.subscription(command);
    // Requests of their own may overtake each other, and then nobody knows what was meant to be the last.
    if (c.isEmulated) c.sdk.startBatching();
    for (let n = 0; n < command.pairs; n++) {
      sub.subscribe();
      sub.unsubscribe();
    }
    if (command.stay) sub.subscribe();
    if (c.isEmulated) c.sdk.stopBatching();
  },
  publish: async (c, { channel, data }) => {
    await c.sdk.publish(channel, c.bytes(data));
  },
  rpc: async (c, { method, data }) => c.value((await c.sdk.rpc(method, c.bytes(data))).data),
  send: async (c, { data }) => {
    await c.sdk.send(c.bytes(data));
  },
  presence: async (c, { channel }) => {
    const { clients } = await c.sdk.presence(channel);
    return Object.fromEntries(Object.entries(clients).map(([id, info]) => [id, c.info(info)]));
  },
  presence_stats: async (c, { channel }) => {
    const { numClients, numUsers } = await c.sdk.presenceStats(channel);
    return { num_clients: numClients, num_users: numUsers };
  },
  history: async (c, { channel, limit, since, reverse }) => {
    const found = await c.sdk.history(channel, { limit, since, reverse });
    return { ...position(found), publications: found.publications.map((p) => c.publication(p)) };
  },
  close: (c) => {
    clients.delete(c.who);
    c.sdk.disconnect();
  },
};

async function run(command) {
  const { n, do: name, who } = command;
  try {
    if (name === 'open') {
      const client = new Client(command);
      clients.set(who, client);
      client.sdk.connect();
      say({ n });
      return;
    }
    say({ n, ok: (await commands[name](clients.get(who), command)) ?? null });
  } catch (error) {
    say({ n, error: { code: error.code ?? 0, message: String(error.message ?? error) } });
  }
}

process.on('uncaughtException', (error) => console.error('uncaught', error));
process.on('unhandledRejection', (error) => console.error('unhandled', error));

const lines = readline.createInterface({ input: process.stdin });
lines.on('line', (line) => run(JSON.parse(line)));
lines.on('close', () => process.exit(0));

// The witness of centrifuge for JavaScript: see witnesses.py for its commands, ledger.py for its lines.
'use strict';

const fs = require('node:fs');
const readline = require('node:readline');
const WebSocket = require('ws');
const sdks = { false: require('centrifuge').Centrifuge, true: require('centrifuge/build/protobuf').Centrifuge };

const FLUSH_MS = 50;
const record = fs.openSync(process.argv[2], 'a');
const clients = [];
let lines = [];
let isPublishing = false;

const note = (kind, ...rest) => {
  const now = Number(process.hrtime.bigint() / 1000n) / 1e6;
  lines.push(`${kind} ${now.toFixed(6)} ${rest.join(' ')}\n`);
};

const flush = () => {
  const text = lines.join('');
  lines = [];
  if (text) fs.writeSync(record, text);
};

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class Witness {
  constructor(options) {
    Object.assign(this, options);
    this.endpoint = 0;
    this.sequence = 0;
    const { transport, endpoints, protobuf } = options;
    const self = this;
    // What a load balancer does for browsers: a connection that cannot be made goes to the next shard.
    class Balanced extends WebSocket {
      constructor(url, ...rest) {
        super(endpoints[self.endpoint].replace('http', 'ws') + '/connection/websocket', ...rest);
        let wasOpen = false;
        this.addEventListener('open', () => { wasOpen = true; });
        this.addEventListener('close', () => {
          if (!wasOpen) self.endpoint = (self.endpoint + 1) % endpoints.length;
        });
      }
    }
    const url = transport === 'websocket' ? 'ws://balanced' : `${endpoints[0]}/connection/${transport}`;
    this.sdk = new sdks[protobuf]([{ transport, endpoint: url }], {
      websocket: Balanced,
      fetch: globalThis.fetch,
      readableStream: globalThis.ReadableStream,
      emulationEndpoint: `${endpoints[0]}/emulation`,
      minReconnectDelay: 100,
      maxReconnectDelay: 1000,
      maxServerPingDelay: 3000,
    });
    this.sdk.on('connected', () => note('C', this.who, this.endpoint));
    this.sdk.on('connecting', (c) => note('D', this.who, c.code));
    this.sdk.on('disconnected', (c) => note('D', this.who, c.code));
    if (!this.interval) this.subscribe();
    this.sdk.connect();
  }

  // Protobuf gives and takes bytes.
  value(data) {
    return data instanceof Uint8Array ? JSON.parse(new TextDecoder().decode(data)) : data;
  }

  bytes(data) {
    return this.protobuf ? new TextEncoder().encode(JSON.stringify(data)) : data;
  }

  subscribe() {
    const sub = this.sdk.newSubscription(this.channel, {
      recoverable: true, minResubscribeDelay: 100, maxResubscribeDelay: 1000,
    });
    sub.on('subscribed', (c) => {
      const { epoch, offset } = c.streamPosition;
      note('S', this.who, c.wasRecovering ? 1 : 0, c.recovered ? 1 : 0, epoch, Number(offset));
    });
    sub.on('subscribing', (c) => note('U', this.who, c.code));
    sub.on('unsubscribed', (c) => note('U', this.who, c.code));
    sub.on('publication', (c) => {
      const [publisher, sequence] = this.value(c.data);
      note('M', this.who, Number(c.offset), publisher, sequence);
    });
    sub.subscribe();
  }

  async publish() {
    while (isPublishing) {
      await pause(this.interval * 1000 * (0.5 + Math.random()));
      if (!isPublishing) return;
      this.sequence += 1;
      note('P', this.who, this.sequence);
      try {
        await this.sdk.publish(this.channel, this.bytes([this.who, this.sequence]));
        note('A', this.who, this.sequence);
      } catch (error) {
        note('F', this.who, this.sequence, error.code ?? 0);
      }
    }
  }
}

let publishing = [];

const commands = {
  open: ({ clients: all }) => { for (const options of all) clients.push(new Witness(options)); },
  publish: () => {
    isPublishing = true;
    publishing = clients.filter((client) => client.interval).map((client) => client.publish());
  },
  cease: async () => {
    isPublishing = false;
    await Promise.all(publishing);
  },
};

process.on('uncaughtException', (error) => console.error('uncaught', error));
process.on('unhandledRejection', (error) => console.error('unhandled', error));
setInterval(flush, FLUSH_MS);

const input = readline.createInterface({ input: process.stdin });
input.on('line', async (line) => {
  const command = JSON.parse(line);
  try {
    await commands[command.do](command);
    flush();
    process.stdout.write(JSON.stringify({ n: command.n, ok: null }) + '\n');
  } catch (error) {
    const told = { code: 0, message: String(error.stack ?? error) };
    process.stdout.write(JSON.stringify({ n: command.n, error: told }) + '\n');
  }
});
input.on('close', () => process.exit(0));

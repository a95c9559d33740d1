// Drives the reference client: against sockets made up here, for what it does with each close code and advice, and
// against a real node (its port is the argument) through a cable that can be cut. `tests/page.rs` runs it.
'use strict';

const assert = require('node:assert/strict');
const net = require('node:net');
const { RtcClient } = require('../src/page/client.js');

const DEADLINE_MS = 300_000;
const soon = () => new Promise((resolve) => setImmediate(resolve));

// A socket of which this test is the other end.
class MadeUpSocket {
  static all = [];
  readyState = 0;
  bufferedAmount = 0;
  sent = [];
  constructor(url, subprotocol) {
    Object.assign(this, { url: new URL(url), subprotocol });
    MadeUpSocket.all.push(this);
  }
  send(text) { this.sent.push(JSON.parse(text)); }
  close(code) { Object.assign(this, { readyState: 3, closedWith: code }); }
  say(frame) { this.onmessage?.({ data: JSON.stringify(frame) }); }
  lose(code, reason = '') {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }
  welcome(fields = {}) {
    this.readyState = 1;
    this.say({ type: 'welcome', nodeId: 'n1', clientId: 'a', offset: 100, recovered: true, pingIntervalMs: 25_000, ...fields });
  }
  of(type) { return this.sent.filter((frame) => frame.type === type); }
}

function madeUp(options = {}) {
  MadeUpSocket.all = [];
  const states = [];
  const client = new RtcClient({
    url: 'ws://node/ws/connect', clientId: 'a b', WebSocket: MadeUpSocket, random: () => 0.5,
    onState: (state, detail) => states.push({ state, ...detail }), ...options,
  });
  client.start();
  return { client, states, sockets: MadeUpSocket.all };
}

const message = (offset, msgId = `m${offset}`, from = 'b') => ({ type: 'message', msgId, from, toClientId: 'a b', payload: offset, offset, ts: 1 });

const tests = {
  'the first connection asks to resume from nothing': () => {
    const { client, sockets: [socket] } = madeUp();
    assert.equal(socket.url.search, '?clientId=a+b&acks=1&recvAck=1&resumeOffset=0');
    assert.equal(socket.subprotocol, 'rtc.v1.json');
    client.stop();
  },

  'each close code has its consequence': () => {
    // Full jitter with a die that always says one half: the first delay is half of the base of 250 ms.
    for (const [code, reason, state, delayMs] of [
      [1000, '', 'waiting', 125], [1001, 'shutdown', 'waiting', 125], [1006, '', 'waiting', 125], [1011, '', 'waiting', 125],
      [1012, 'drain', 'waiting', 125], [1012, 'drain;delay=1830;node=n7', 'waiting', 1955], [1013, '', 'waiting', 5125],
      [1002, 'protocol', 'stopped'], [1003, '', 'stopped'], [1007, '', 'stopped'], [1008, '', 'stopped'], [1009, '', 'stopped'],
      [4000, '', 'stopped'], [4001, 'replaced', 'stopped'], [4099, '', 'stopped'],
      [4100, 'slow-consumer', 'waiting', 5125], [4101, '', 'waiting', 5125], [4199, '', 'waiting', 5125],
      [4200, '', 'waiting', 0], [4202, 'no-pong', 'waiting', 0], [4299, '', 'waiting', 0], [4300, '', 'waiting', 125],
    ]) {
      const { client, states, sockets: [socket] } = madeUp({ limits: { stableMs: 0 } });
      socket.welcome();
      socket.lose(code, reason);
      assert.equal(states.at(-1).state, state, `${code}`);
      assert.equal(states.at(-1).delayMs, delayMs, `${code} ${reason}`);
      client.stop();
    }
  },

  'an attempt that came to nothing may be the login that replaces us, once': async () => {
    const { client, states, sockets } = madeUp();
    sockets[0].lose(1006);
    await until(() => sockets.length === 2);
    sockets[1].welcome();
    sockets[1].lose(4001, 'replaced');
    assert.equal(states.at(-1).state, 'waiting');
    await until(() => sockets.length === 3);
    sockets[2].welcome();
    sockets[2].lose(4001, 'replaced');
    assert.equal(states.at(-1).state, 'stopped');
    client.stop();
  },

  'reconnect now is not reconnect in a loop': () => {
    const { client, states, sockets: [socket] } = madeUp();
    socket.welcome();
    socket.lose(4202);
    assert.equal(states.at(-1).delayMs, 125);
    client.stop();
  },

  'advice is followed before the old connection is let go': async () => {
    const { client, states, sockets } = madeUp();
    sockets[0].welcome();
    sockets[0].say({ type: 'reconnect', reason: 'drain', nodeId: 'n2', url: 'ws://other/ws/connect', afterMs: 0, resumeOffset: 999 });
    await until(() => sockets.length === 2);
    assert.equal(sockets[0].closedWith, undefined);
    assert.equal(sockets[1].url.host, 'other');
    // Our own position, not what the node had sent.
    assert.equal(sockets[1].url.searchParams.get('resumeOffset'), '100');
    sockets[0].say(message(101));
    const confirmed = client.send('b', 'on the old one');
    sockets[0].lose(4001, 'replaced');
    sockets[1].welcome({ offset: 100 });
    sockets[1].say({ type: 'ack', msgId: sockets[1].of('message')[0].msgId, status: 'delivered' });
    assert.equal(await confirmed, 'delivered');
    assert.equal(sockets[0].of('message')[0].msgId, sockets[1].of('message')[0].msgId);
    assert.deepEqual(states.map(({ state }) => state), ['connecting', 'open', 'open']);
    client.stop();
  },

  'advice that leads nowhere leaves the connection as it is': async () => {
    const { client, sockets } = madeUp();
    sockets[0].welcome();
    sockets[0].say({ type: 'reconnect', reason: 'drain', nodeId: '', url: '', afterMs: 0, resumeOffset: 0 });
    await until(() => sockets.length === 2);
    sockets[1].lose(1006);
    assert.equal(client.state, 'open');
    sockets[0].lose(1012, 'drain');
    assert.equal(client.state, 'waiting');
    client.stop();
  },

  'a repeat is acked again and shown once': async () => {
    const shown = [];
    const saved = [];
    const { client, sockets: [socket] } = madeUp({
      limits: { ackDelayMs: 0 }, onMessage: ({ payload }) => { shown.push(payload); }, save: (position) => saved.push(position),
    });
    socket.welcome();
    for (const each of [message(101), message(102), message(101), message(103, 'm102'), message(104)]) socket.say(each);
    await until(() => socket.of('ack').at(-1)?.offset === 104);
    assert.deepEqual(shown, [101, 102, 104]);
    assert.deepEqual([saved[0], saved.at(-1)], [100, 104]);
    assert.ok(socket.of('ack').length < 5, 'acks are gathered');
    client.stop();
  },

  'a handler that takes its time is acked after it, and one that throws is told': async () => {
    const errors = [];
    let finish;
    const { client, sockets: [socket] } = madeUp({
      limits: { ackMessages: 1 }, onError: ({ code }) => errors.push(code),
      onMessage: ({ payload }) => { if (payload === 102) throw new Error('no'); return new Promise((resolve) => { finish = resolve; }); },
    });
    socket.welcome();
    socket.say(message(101));
    socket.say(message(102));
    await soon();
    assert.equal(socket.of('ack').length, 0);
    finish();
    await until(() => socket.of('ack').length === 2);
    assert.deepEqual(socket.of('ack').map(({ offset }) => offset), [101, 102]);
    assert.deepEqual(errors, ['handler']);
    client.stop();
  },

  'a position that means nothing to the node is given up, and said': async () => {
    const gaps = [];
    const { client, sockets: [socket] } = madeUp({ position: 5000, onGap: (welcome) => gaps.push(welcome.offset) });
    assert.equal(socket.url.searchParams.get('resumeOffset'), '5000');
    socket.welcome({ offset: 100, recovered: false });
    await soon();
    assert.deepEqual([client.position, gaps], [100, [100]]);
    client.stop();
  },

  'everything is bounded, and full is an answer': async () => {
    const { client, sockets: [socket] } = madeUp({ limits: { inFlightMessages: 2, outboxMessages: 3, payloadBytes: 10 } });
    const sends = [1, 2, 3].map((payload) => client.send('b', payload));
    await assert.rejects(client.send('b', 4), { code: 'outbox_full' });
    await assert.rejects(client.send('b', 'longer than ten'), { code: 'too_large' });
    socket.welcome();
    assert.deepEqual(socket.of('message').map(({ payload }) => payload), [1, 2]);
    const [first, second] = socket.of('message').map(({ msgId }) => msgId);
    socket.say({ type: 'error', code: 'buffer_full', reason: 'full', msgId: first });
    await assert.rejects(sends[0], { code: 'buffer_full' });
    assert.equal(client.send('b', 2, { msgId: second }), sends[1], 'the same name is the same message');
    assert.equal(socket.of('message').length, 3);
    client.stop();
  },

  'cuts lose nothing, repeat nothing and keep the order': async (port) => {
    const MESSAGES = 300;
    const cables = { a: await Cable.to(port), b: await Cable.to(port) };
    const got = { a: [], b: [] };
    const errors = [];
    const clients = Object.fromEntries(['a', 'b'].map((id) => [id, new RtcClient({
      url: `ws://127.0.0.1:${cables[id].port}/ws/connect`, clientId: `cut-${id}-${process.pid}`,
      limits: { backoffBaseMs: 20, backoffCapMs: 50 },
      onMessage: ({ payload }) => { got[id].push(payload); }, onError: (error) => errors.push(error),
    })]));
    for (const client of Object.values(clients)) client.start();
    const areOpen = () => Object.values(clients).every(({ state }) => state === 'open');
    await until(areOpen);
    const statuses = [];
    for (let n = 0; n < MESSAGES; n++) {
      statuses.push(clients.a.send(clients.b.options.clientId, n), clients.b.send(clients.a.options.clientId, n));
      if (n % 40 === 20) cables[n % 80 === 20 ? 'a' : 'b'].cut();
      if (n % 10 === 0) await soon();
      // The rest waits until the cut ends have come back, so that every cut meets messages on their way.
      if (n % 40 === 39) await until(areOpen);
    }
    for (const status of await Promise.all(statuses)) assert.ok(['delivered', 'held'].includes(status), status);
    await until(() => got.a.length >= MESSAGES && got.b.length >= MESSAGES);
    const expected = Array.from({ length: MESSAGES }, (_, n) => n);
    assert.deepEqual(got, { a: expected, b: expected });
    assert.deepEqual(errors, []);
    for (const client of Object.values(clients)) client.stop();
    for (const cable of Object.values(cables)) cable.close();
  },

  'what was sent to someone away arrives on return, once and in order': async (port) => {
    const cable = await Cable.to(port);
    const got = [];
    const [url, id] = [`ws://127.0.0.1:${port}/ws/connect`, (name) => `away-${name}-${process.pid}`];
    const alice = new RtcClient({ url, clientId: id('alice') });
    const bob = new RtcClient({
      url: `ws://127.0.0.1:${cable.port}/ws/connect`, clientId: id('bob'), limits: { backoffBaseMs: 20, backoffCapMs: 50 },
      onMessage: ({ payload }) => { got.push(payload); },
    });
    alice.start();
    bob.start();
    await until(() => bob.state === 'open');
    assert.equal(await alice.send(id('bob'), 'here'), 'delivered');
    // Silent, not closed: the node learns of it from the missing acks alone.
    cable.freeze();
    const held = await Promise.all(['one', 'two', { three: 3 }].map((payload) => alice.send(id('bob'), payload)));
    assert.deepEqual(held, ['held', 'held', 'held']);
    assert.deepEqual(got, ['here']);
    cable.cut();
    await until(() => got.length >= 4);
    assert.equal(await alice.send(id('bob'), 'after'), 'delivered');
    assert.deepEqual(got, ['here', 'one', 'two', { three: 3 }, 'after']);
    alice.stop();
    bob.stop();
    cable.close();
  },

  'the newest login wins, and the older client stays away': async (port) => {
    const url = `ws://127.0.0.1:${port}/ws/connect`;
    const ended = [];
    const older = new RtcClient({ url, clientId: `twice-${process.pid}`, onState: (state, { code }) => ended.push([state, code]) });
    older.start();
    await until(() => older.state === 'open');
    const newer = new RtcClient({ url, clientId: `twice-${process.pid}` });
    newer.start();
    await until(() => older.state === 'stopped');
    assert.deepEqual(ended.at(-1), ['stopped', 4001]);
    await until(() => newer.state === 'open');
    newer.stop();
  },
};

// A TCP relay to the node that breaks as networks break: `cut` resets both ends, `freeze` passes nothing on any more.
class Cable {
  static async to(port) {
    const cable = new Cable();
    cable.pairs = new Set();
    cable.server = net.createServer((near) => {
      const far = net.connect(port, '127.0.0.1');
      const pair = { near, far };
      cable.pairs.add(pair);
      for (const [from, to] of [[near, far], [far, near]]) {
        from.on('data', (bytes) => { if (!pair.isFrozen) to.write(bytes); });
        from.on('error', () => {});
        from.on('close', () => { to.destroy(); cable.pairs.delete(pair); });
      }
    });
    await new Promise((resolve) => cable.server.listen(0, '127.0.0.1', resolve));
    cable.port = cable.server.address().port;
    return cable;
  }
  freeze() { for (const pair of this.pairs) pair.isFrozen = true; }
  cut() { for (const { near, far } of this.pairs) { near.resetAndDestroy(); far.resetAndDestroy(); } }
  close() { this.cut(); this.server.close(); }
}

// Looks again every few milliseconds; the deadline of the whole run ends a wait that has no end.
async function until(isTrue) {
  while (!isTrue()) await new Promise((resolve) => setTimeout(resolve, 5));
}

async function main() {
  const port = Number(process.argv[2]);
  assert.ok(Number.isInteger(port) && port > 0, 'usage: node client.cjs PORT');
  assert.equal(typeof WebSocket, 'function', 'this Node has no WebSocket: use 22, or --experimental-websocket');
  let name;
  const deadline = setTimeout(() => {
    console.error(`not done after ${DEADLINE_MS} ms: ${name}`);
    process.exit(1);
  }, DEADLINE_MS);
  for (const [each, test] of Object.entries(tests)) {
    name = each;
    try {
      await test(port);
    } catch (error) {
      console.error(`FAILED ${name}\n${error.stack}`);
      process.exit(1);
    }
    console.log(`ok ${name}`);
  }
  clearTimeout(deadline);
  console.log(`${Object.keys(tests).length} passed`);
}

main();

// Reference client of the protocol rtc.v1.json (docs/protocol.md): one WebSocket that comes back by itself, sends that
// are kept until the node confirms them, messages that arrive in order and once. It has no dependencies: a plain script
// in a browser (`RtcClient`), `require` in Node (where there is no global WebSocket, pass one in).
//
//     const client = new RtcClient({ url: 'ws://127.0.0.1:8080/ws/connect', clientId: 'alice', onMessage: show });
//     client.start();
//     await client.send('bob', { text: 'hello' });   // → 'delivered', 'stored', 'held'; rejects with error.code
//
// It does not keep anything beyond its own life. What must survive a crash is the application's to keep: the position
// (`save`, and `position` at the next start) and sends that are not confirmed (send them again under the same msgId).
'use strict';

const LIMITS = Object.freeze({
  dedupMessages: 1024, //        names of received messages that are remembered, to know a repeat
  outboxMessages: 1000, //       sends that may wait here; more are refused with `outbox_full`
  inFlightMessages: 200, //      sends on their way; the node stops reading at 256
  payloadBytes: 256 * 1024, //   the node's default limit, as UTF-8 of the payload's JSON
  bufferedBytes: 1024 * 1024, // bytes that may wait in the socket; the rest of the sends wait here
  ackDelayMs: 50, //             acks are gathered for so long; after 1000 ms the node would tell the sender `held`
  ackMessages: 64, //            or until so many messages have come
  openTimeoutMs: 10_000, //      from `new WebSocket` to `welcome`
  ownLoginMs: 60_000, //         a 4001 so soon after an attempt that came to nothing may be due to that attempt
  pongTimeoutMs: 10_000, //      from our ping to any sign of life
  confirmTimeoutMs: 30_000, //   from sending, on one connection, to the node's answer
  backoffBaseMs: 250, //         full jitter: a random time up to base × 2^attempt …
  backoffCapMs: 30_000, //       … but no longer than this
  backoffFloorMs: 5_000, //      and not shorter than this where the node says "too much"
  stableMs: 10_000, //           a connection this old was a good one: the next attempt counts as the first
});

class RtcError extends Error {
  constructor(code, reason) {
    super(reason);
    this.code = code;
  }
}

class RtcClient {
  #live = null; //          the connection that has been welcomed: { socket, url, bornAt, heardAt, pingedAt, welcome }
  #next = null; //          the one being opened. Both exist only while we move: make before break
  #queue = []; //           sends to be written, in order: { msgId, text, sentAt, promise, resolve, reject }
  #inFlight = new Map(); // sends written to #live and not answered, by msgId, in the order of writing
  #seen = new Set(); //     `from NUL msgId` of the latest messages, oldest first; a client id has no NUL in it
  #work = Promise.resolve(); // messages are handled one after the other, even by a handler that takes its time
  #unacked = 0;
  #attempts = 0;
  #gaveUpAt = -Infinity; // when an attempt came to nothing, for the last time
  #names = 0;
  #timers = { retry: 0, move: 0, ack: 0, tick: 0 };

  // Options: url, clientId; position (of an earlier life, from `save`); WebSocket, random (for tests).
  // Hooks:   onMessage(message), may return a promise: the ack waits for it, and its exceptions go to onError;
  //          onState(state, detail): 'connecting' 'open' 'waiting' 'stopped' (the node said: do not return) 'closed';
  //          onGap(welcome): something before this point is gone for good; save(position): keep it, then we ack;
  //          onError({ code, reason, msgId? }); onFrame('in' | 'out', text).
  constructor(options) {
    const none = () => {};
    const hooks = { onMessage: none, onState: none, onGap: none, onError: none, onFrame: none, save: none };
    this.options = { WebSocket: globalThis.WebSocket, random: Math.random, ...hooks, ...options };
    this.limits = { ...LIMITS, ...options.limits };
    this.position = options.position ?? 0; // the last offset that was handled: where a new connection resumes
    this.state = 'closed';
    // Names must differ from those of this client's earlier lives: a repeated name is taken for a repeated message.
    const bytes = crypto.getRandomValues(new Uint8Array(9));
    this.prefix = Array.from(bytes, (byte) => byte.toString(36).padStart(2, '0')).join('');
  }

  get nodeId() { return this.#live?.welcome.nodeId; }
  get unconfirmed() { return this.#inFlight.size + this.#queue.length; }

  start() {
    if (this.#timers.tick) return;
    this.#timers.tick = setInterval(() => this.#tick(Date.now()), 1000);
    this.#attempts = 0;
    this.#open(this.options.url);
  }

  // Says goodbye. Sends that are not confirmed stay here and go out after the next `start`.
  stop() { this.#end('closed', {}); }

  // The network is back, as the browser's `online` event tells: no need to wait for the next attempt.
  retry() {
    this.#attempts = 0;
    if (this.state === 'waiting') this.#open(this.options.url);
  }

  // Sends `payload`, any JSON value, to the client `to`. `msgId` is the message's name: sent again under the same name it
  // still arrives once.
  send(to, payload, { msgId = `${this.prefix}-${++this.#names}`, ttlMs } = {}) {
    const pending = this.#inFlight.get(msgId) ?? this.#queue.find((entry) => entry.msgId === msgId);
    if (pending) return pending.promise;
    const json = JSON.stringify(payload) ?? 'null';
    if (new TextEncoder().encode(json).length > this.limits.payloadBytes) {
      return Promise.reject(new RtcError('too_large', `payload is over ${this.limits.payloadBytes} bytes`));
    }
    if (this.unconfirmed >= this.limits.outboxMessages) {
      return Promise.reject(new RtcError('outbox_full', `${this.unconfirmed} sends are unconfirmed already`));
    }
    const head = JSON.stringify({ type: 'message', msgId, toClientId: to, ttlMs });
    const entry = { msgId, text: `${head.slice(0, -1)},"payload":${json}}`, sentAt: 0 };
    entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    this.#queue.push(entry);
    this.#flush();
    return entry.promise;
  }

  #open(url) {
    clearTimeout(this.#timers.retry);
    const address = new URL(url);
    // `resumeOffset` says that we ack, too, and is always our own position: what was handled, not what was sent to us.
    const query = { clientId: this.options.clientId, acks: 1, recvAck: 1, resumeOffset: this.position };
    for (const [name, value] of Object.entries(query)) address.searchParams.set(name, value);
    const socket = new this.options.WebSocket(address.href, 'rtc.v1.json');
    const now = Date.now();
    const link = { socket, url, bornAt: now, heardAt: now, pingedAt: 0, welcome: null };
    this.#next = link;
    if (!this.#live) this.#setState('connecting', {});
    socket.onmessage = (event) => this.#onFrame(link, event.data);
    socket.onclose = (event) => this.#onLost(link, event.code, event.reason);
    socket.onerror = () => {}; // a close event follows, and says more
  }

  #onFrame(link, text) {
    this.options.onFrame('in', text);
    link.heardAt = Date.now();
    link.pingedAt = 0;
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      return this.options.onError({ code: 'malformed', reason: 'the node sent something that is not JSON' });
    }
    switch (frame.type) {
      case 'welcome': return this.#onWelcome(link, frame);
      case 'message': return this.#then(() => this.#receive(frame));
      case 'ack': return this.#settle(frame.msgId, (entry) => entry.resolve(frame.status));
      case 'error': return this.#onError(frame);
      case 'reconnect': return this.#onAdvice(link, frame);
      default: // `pong`, and what later nodes may say: unknown types and fields are ignored
    }
  }

  #onWelcome(link, welcome) {
    const older = this.#live;
    link.welcome = welcome;
    this.#live = link;
    this.#next = null;
    if (older) discard(older);
    this.#then(() => {
      if (!welcome.recovered) this.options.onGap(welcome);
      // A client that is new here, or whose position means nothing to this node, begins where the node begins.
      if (!welcome.recovered || welcome.offset > this.position) this.options.save((this.position = welcome.offset));
      else if (this.position > welcome.offset) this.#ackSoon();
    });
    // Nobody will answer on the old connection: everything unanswered goes out again, same names, same order.
    this.#queue = [...this.#inFlight.values(), ...this.#queue];
    this.#inFlight.clear();
    this.#setState('open', welcome);
    this.#flush();
  }

  #then(step) {
    const tell = (error) => this.options.onError({ code: 'handler', reason: String(error) });
    this.#work = this.#work.then(step).catch(tell);
  }

  // Handles one message. At least once over the wire becomes once here: a repeat is acked again and shown to nobody.
  async #receive(message) {
    const key = `${message.from}\0${message.msgId}`;
    const isNew = message.offset > this.position && !this.#seen.has(key);
    try {
      if (isNew) await this.options.onMessage(message);
    } finally {
      this.#seen.delete(key);
      this.#seen.add(key);
      if (this.#seen.size > this.limits.dedupMessages) this.#seen.delete(this.#seen.values().next().value);
      this.position = Math.max(this.position, message.offset);
      this.#ackSoon();
    }
  }

  // One cumulative ack for all that came within `ackDelayMs`.
  #ackSoon() {
    if (++this.#unacked >= this.limits.ackMessages) return this.#ack();
    this.#timers.ack ||= setTimeout(() => this.#ack(), this.limits.ackDelayMs);
  }

  #ack() {
    clearTimeout(this.#timers.ack);
    this.#timers.ack = 0;
    this.#unacked = 0;
    this.options.save(this.position);
    this.#write(this.#live, JSON.stringify({ type: 'ack', offset: this.position }));
  }

  #flush() {
    const { inFlightMessages, bufferedBytes } = this.limits;
    const hasRoom = ({ socket }) => this.#inFlight.size < inFlightMessages && socket.bufferedAmount < bufferedBytes;
    while (this.#queue.length > 0 && this.#live?.socket.readyState === 1 && hasRoom(this.#live)) {
      const entry = this.#queue.shift();
      entry.sentAt = Date.now();
      this.#inFlight.set(entry.msgId, entry);
      this.#write(this.#live, entry.text);
    }
  }

  #write(link, text) {
    if (link?.socket.readyState !== 1) return; // on its way out: what matters is sent again on the next one
    this.options.onFrame('out', text);
    link.socket.send(text);
  }

  #settle(msgId, finish) {
    const entry = this.#inFlight.get(msgId);
    this.#inFlight.delete(msgId);
    if (entry) finish(entry);
    this.#flush();
  }

  #onError(error) {
    this.options.onError(error);
    if (error.msgId) this.#settle(error.msgId, (entry) => entry.reject(new RtcError(error.code, error.reason)));
  }

  // Make before break: the second connection opens while the first still delivers; `#onWelcome` lets go of the first.
  // If it cannot be opened, the first is used until the node closes it.
  #onAdvice(link, advice) {
    clearTimeout(this.#timers.move);
    this.#timers.move = setTimeout(() => {
      if (this.#live === link && !this.#next) this.#open(advice.url || this.options.url);
    }, advice.afterMs);
  }

  #onLost(link, code, reason) {
    discard(link);
    if (this.#next === link) this.#next = null;
    if (this.#live === link) this.#live = null;
    // A node may take up an attempt just before we give it up: then the newer login that replaced us was our own.
    const wasOwn = code === 4001 && Date.now() - this.#gaveUpAt < this.limits.ownLoginMs;
    if (wasOwn) this.#gaveUpAt = -Infinity; // once
    if (!link.welcome) this.#gaveUpAt = Date.now();
    // While we move, the loss of the other connection is no news: 4001 on the old one means that the new one is in.
    if (this.#live || this.#next) return;
    // 4000–4099, or told that we break the rules: coming back unchanged would end the same way.
    const isFinal = (code >= 4000 && code <= 4099 && !wasOwn) || [1002, 1003, 1007, 1008, 1009].includes(code);
    if (isFinal) return this.#end('stopped', { code, reason });
    const wasStable = link.welcome !== null && Date.now() - link.bornAt >= this.limits.stableMs;
    if (wasStable) this.#attempts = 0;
    const delayMs = this.#delayMs(code, reason, wasStable);
    this.#attempts += 1;
    this.#setState('waiting', { code, reason, delayMs });
    this.#timers.retry = setTimeout(() => this.#open(this.options.url), delayMs);
  }

  #delayMs(code, reason, wasStable) {
    const { backoffBaseMs, backoffCapMs, backoffFloorMs } = this.limits;
    const jitterMs = this.options.random() * Math.min(backoffCapMs, backoffBaseMs * 2 ** this.#attempts);
    const asked = /(?:^|;)delay=(\d{1,7})(?:;|$)/.exec(reason); // as in `drain;delay=1830;node=n7`
    if (asked) return Number(asked[1]) + jitterMs;
    if (code >= 4200 && code <= 4299 && wasStable) return 0; // at once, but never in a tight loop
    const mustWait = (code >= 4100 && code <= 4199) || code === 1013;
    return mustWait ? backoffFloorMs + jitterMs : jitterMs;
  }

  // Once a second: is anyone there, has anything waited too long? A browser hides protocol pings from scripts, so that
  // silence is broken by a ping of our own.
  #tick(now) {
    const { openTimeoutMs, pongTimeoutMs, confirmTimeoutMs } = this.limits;
    if (this.#next && now - this.#next.bornAt > openTimeoutMs) this.#onLost(this.#next, 1006, 'no welcome');
    const live = this.#live;
    if (!live) return;
    if (live.pingedAt && now - live.pingedAt > pongTimeoutMs) return this.#onLost(live, 1006, 'no pong');
    if (!live.pingedAt && now - live.heardAt >= live.welcome.pingIntervalMs) {
      live.pingedAt = now;
      this.#write(live, '{"type":"ping"}');
    }
    for (const entry of this.#inFlight.values()) {
      if (now - entry.sentAt <= confirmTimeoutMs) break; // they are in the order of sending
      const error = new RtcError('unconfirmed', 'no answer came: send it again under its msgId');
      this.#settle(entry.msgId, () => entry.reject(error));
    }
    this.#flush();
  }

  #setState(state, detail) {
    this.state = state;
    this.options.onState(state, detail);
  }

  #end(state, detail) {
    for (const name of Object.keys(this.#timers)) {
      clearTimeout(this.#timers[name]); // clears an interval as well
      this.#timers[name] = 0;
    }
    for (const link of [this.#live, this.#next]) if (link) discard(link);
    this.#live = this.#next = null;
    this.#setState(state, detail);
  }
}

// Lets go of a connection: nothing it still says matters, the node repeats what we have not acked.
function discard({ socket }) {
  socket.onmessage = socket.onclose = null;
  socket.close(1000);
}

if (typeof module !== 'undefined') module.exports = { RtcClient, RtcError, LIMITS };

// Two clients side by side, to try a node by hand. Everything that comes from elsewhere is shown through textContent.
'use strict';

const MESSAGES_SHOWN_MAX = 200;
const FRAMES_SHOWN_MAX = 200;
const FRAME_CHARACTERS_MAX = 2000;
const REFRESH_MS = 200;

const STATUS = {
  delivered: ['delivered', 'The recipient has acknowledged it'],
  stored: ['stored', 'Kept safely until the recipient takes it'],
  held: ['held by the node', 'It waits in the node until the recipient takes it; it survives connections, not a restart'],
  sent: ['sent', 'Written to a recipient that does not acknowledge'],
};

// The network between one client and the node, which a person can break. A script cannot break a socket without its
// goodbye, so that a cut one is left open and ignored in both directions: to the node a client that has gone silent.
class Cable {
  isOnline = true;
  #sockets = new Set();

  constructor() {
    const cable = this;
    this.Socket = class {
      #inner = null;
      #isCut = false;
      constructor(url, subprotocol) {
        if (!cable.isOnline) return void setTimeout(() => this.cut(), 0);
        cable.#sockets.add(this); // kept until it has ended: a forgotten socket would be closed politely
        this.#inner = new WebSocket(url, subprotocol);
        this.#inner.onmessage = (event) => { if (!this.#isCut) this.onmessage?.(event); };
        this.#inner.onclose = (event) => {
          cable.#sockets.delete(this);
          if (!this.#isCut) this.onclose?.(event);
        };
      }
      get readyState() { return this.#isCut || !this.#inner ? WebSocket.CLOSED : this.#inner.readyState; }
      get bufferedAmount() { return this.#inner?.bufferedAmount ?? 0; }
      send(text) { if (!this.#isCut) this.#inner?.send(text); }
      close(code) { if (!this.#isCut) this.#inner?.close(code); }
      cut() {
        if (this.#isCut) return;
        this.#isCut = true;
        this.onclose?.({ code: 1006, reason: '' });
      }
    };
  }

  cut() { for (const socket of this.#sockets) socket.cut(); }
}

class Panel {
  #client = null;
  #cable = new Cable();
  #frames = 0;
  #retryAt = 0;
  #wasOpen = false;

  constructor(id, to) {
    const root = document.getElementById('client').content.cloneNode(true).firstElementChild;
    this.root = root;
    const find = (selector) => root.querySelector(selector);
    this.id = find('[name=id]');
    this.to = find('[name=to]');
    this.text = find('[name=text]');
    this.kind = find('.send small');
    this.messages = find('.messages');
    this.frames = find('.frames ol');
    this.framesCount = find('.frames summary span');
    this.stateText = find('.state span');
    this.facts = Object.fromEntries(['node', 'offset', 'unconfirmed'].map((name) => [name, find(`[data-fact=${name}]`)]));
    this.buttons = Object.fromEntries(['offline', 'cut', 'connect'].map((name) => [name, find(`[data-action=${name}]`)]));
    this.id.value = id;
    this.to.value = to;

    this.buttons.offline.onclick = () => this.#setOnline(!this.#cable.isOnline);
    this.buttons.cut.onclick = () => {
      this.#note('Connection cut, without a goodbye');
      this.#cable.cut();
    };
    this.buttons.connect.onclick = () => (this.#isRunning() ? this.#client.stop() : this.start());
    this.id.onkeydown = (event) => { if (event.key === 'Enter' && !this.#isRunning()) this.start(); };
    find('.compose').onsubmit = (event) => {
      event.preventDefault();
      this.#send();
    };
    this.text.oninput = () => { setText(this.kind, this.text.value.trim() && readPayload(this.text.value).isJson ? 'JSON' : ''); };
    this.text.onkeydown = (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      find('.compose').requestSubmit();
    };
    new ResizeObserver(() => this.#scrollDown()).observe(this.messages);
    setInterval(() => this.render(), REFRESH_MS);
  }

  #isRunning() { return this.#client !== null && !['closed', 'stopped'].includes(this.#client.state); }

  start() {
    const clientId = this.id.value;
    if (clientId === '') return this.id.focus();
    // A client of the same name goes on where it was, with what it still has to send; another name is another client.
    if (this.#client?.options.clientId !== clientId) this.#client = this.#make(clientId);
    this.#client.start();
    this.render();
  }

  #make(clientId) {
    const key = `rtc.position.${clientId}`;
    return new RtcClient({
      url: new URL('/ws/connect', location.href.replace(/^http/, 'ws')).href,
      clientId,
      WebSocket: this.#cable.Socket,
      position: Number(sessionStorage.getItem(key) ?? 0),
      save: (position) => sessionStorage.setItem(key, String(position)),
      onMessage: (message) => this.#showReceived(message),
      onState: (state, detail) => this.#onState(state, detail),
      onGap: () => this.#note('The node does not know where this client was: it has started anew, or messages have aged out'),
      onError: ({ code, reason, msgId }) => { if (!msgId) this.#note(`${code}: ${reason}`, true); },
      onFrame: (way, text) => this.#showFrame(way, text),
    });
  }

  #onState(state, { code, reason, delayMs }) {
    this.#retryAt = Date.now() + (delayMs ?? 0);
    if (state === 'open') {
      if (this.#wasOpen) this.#note('Connected again');
      this.#wasOpen = true;
    }
    if (state === 'closed') {
      this.#wasOpen = false;
      this.#note('Disconnected');
    }
    if (state === 'stopped') {
      this.#wasOpen = false;
      const why = code === 4001 ? 'Replaced: this client id has logged in somewhere else' : `The node closed the connection: ${code} ${reason}`;
      this.#note(why, true);
    }
    this.render();
  }

  #setOnline(isOnline) {
    this.#cable.isOnline = isOnline;
    this.#note(isOnline ? 'Online' : 'Offline');
    if (isOnline) this.#client?.retry();
    else this.#cable.cut();
    this.render();
  }

  #send() {
    if (!this.#client) return;
    const { payload } = readPayload(this.text.value);
    const to = this.to.value;
    const meta = this.#show('out', payload);
    const tell = (status, word, title) => {
      meta.dataset.status = status;
      const bold = element('b', word);
      bold.title = title;
      meta.replaceChildren(`to ${to} · `, bold);
    };
    tell('unconfirmed', 'unconfirmed', 'The node has not confirmed it yet; it is sent again until it does');
    this.#client.send(to, payload).then(
      (status) => tell(status, ...(STATUS[status] ?? [status, ''])),
      (error) => tell('refused', `${error.code}: ${error.message}`, 'Not accepted'),
    );
    this.text.value = '';
    setText(this.kind, '');
    this.render();
  }

  #showReceived(message) {
    const hasText = typeof message.payloadJson === 'string';
    const meta = this.#show('in', hasText ? message.payloadJson : message.payload);
    setText(meta, `from ${message.from} · ${clock(message.ts)}`);
    meta.title = `offset ${message.offset}, msgId ${message.msgId}`;
  }

  #show(way, payload) {
    const isText = typeof payload === 'string';
    const body = element('div', isText ? payload : JSON.stringify(payload));
    body.className = isText ? 'body' : 'body is-json';
    const meta = element('div', '');
    meta.className = 'meta';
    const item = element('li', '');
    item.className = way;
    item.append(body, meta);
    this.#append(item);
    return meta;
  }

  #note(text, isWarning = false) {
    const item = element('li', text);
    item.className = isWarning ? 'note is-warning' : 'note';
    this.#append(item);
  }

  #append(item) {
    appendBounded(this.messages, item, MESSAGES_SHOWN_MAX);
    this.#scrollDown();
  }

  // Once the item is filled in and laid out.
  #scrollDown() { requestAnimationFrame(() => { this.messages.scrollTop = this.messages.scrollHeight; }); }

  #showFrame(way, text) {
    this.#frames += 1;
    setText(this.framesCount, String(this.#frames));
    const arrow = element('i', way === 'out' ? '↑' : '↓');
    arrow.title = way === 'out' ? 'sent' : 'received';
    const cut = text.length > FRAME_CHARACTERS_MAX ? `${text.slice(0, FRAME_CHARACTERS_MAX)}… (${text.length} characters)` : text;
    const item = element('li', '');
    item.dataset.way = way;
    item.append(element('time', clock(Date.now())), arrow, element('span', cut));
    const isAtEnd = this.frames.scrollTop + this.frames.clientHeight >= this.frames.scrollHeight - 8;
    appendBounded(this.frames, item, FRAMES_SHOWN_MAX);
    if (isAtEnd) this.frames.scrollTop = this.frames.scrollHeight;
  }

  render() {
    const state = this.#client?.state ?? 'closed';
    const isOnline = this.#cable.isOnline;
    const secondsLeft = Math.max(0, (this.#retryAt - Date.now()) / 1000);
    const words = {
      open: 'Connected',
      connecting: 'Connecting',
      waiting: isOnline ? `Next try in ${secondsLeft.toFixed(0)} s` : 'Offline',
      stopped: 'Stopped',
      closed: 'Disconnected',
    };
    this.root.dataset.state = state;
    this.root.setAttribute('aria-label', `Client ${this.id.value}`);
    setText(this.stateText, isOnline || !this.#isRunning() ? words[state] : 'Offline');
    setText(this.facts.offset, this.#client?.position ? String(this.#client.position) : '–');
    const unconfirmed = this.#client?.unconfirmed ?? 0;
    setText(this.facts.unconfirmed, String(unconfirmed));
    this.facts.unconfirmed.toggleAttribute('data-some', unconfirmed > 0);
    setText(this.facts.node, state === 'open' ? this.#client.nodeId : '–');
    if (state === 'open') setText(document.getElementById('node'), this.#client.nodeId);
    this.id.readOnly = this.#isRunning();
    this.buttons.cut.disabled = state !== 'open';
    this.buttons.offline.setAttribute('aria-pressed', String(!isOnline));
    setText(this.buttons.offline, isOnline ? 'Go offline' : 'Go online');
    setText(this.buttons.connect, this.#isRunning() ? 'Disconnect' : 'Connect');
  }
}

// What is JSON is sent as JSON; anything else is a text.
function readPayload(text) {
  try {
    return { payload: JSON.parse(text), isJson: true };
  } catch {
    return { payload: text, isJson: false };
  }
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function appendBounded(list, item, most) {
  list.append(item);
  while (list.childElementCount > most) list.firstElementChild.remove();
}

function clock(ms) { return new Date(ms).toLocaleTimeString([], { hourCycle: 'h23' }); }

const panels = [new Panel('alice', 'bob'), new Panel('bob', 'alice')];
for (const panel of panels) {
  document.getElementById('clients').append(panel.root);
  panel.start();
}

// The page at `/`: asks this balancer once a second and shows what it says. Everything is written as text.
'use strict';

const PERIOD_MS = 1000;
const ROWS_MAX = 200; // of nodes; a larger fleet is better looked at in Grafana
const HOUR_MS = 3_600_000;
const HIGH = 0.7;
const FULL = 0.85;

const percent = (share, digits = 1) => (share == null ? '–' : `${(share * 100).toFixed(digits)} %`);
const whole = (value) => (value == null ? '–' : Math.round(value).toLocaleString('en'));
const millis = (value) => (value == null ? '–' : value < 10_000 ? `${Math.round(value)} ms` : `${Math.round(value / 1000)} s`);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text != null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function show(name, text) {
  document.querySelector(`[data-text=${name}]`).textContent = text;
}

function bar(share) {
  const made = element('div', null, 'bar');
  if (share == null) return element('span', '–');
  made.dataset.level = share > FULL ? 'full' : share > HIGH ? 'high' : 'calm';
  const track = element('i');
  const fill = element('b');
  fill.style.width = `${Math.min(share, 1) * 100}%`;
  track.append(fill);
  made.append(track, element('span', percent(share, 0)));
  return made;
}

function cell(content, className) {
  const made = element('td', null, className);
  made.append(content instanceof Node ? content : String(content));
  return made;
}

function nodeRow(node) {
  const row = element('tr');
  row.dataset.state = node.state;
  const name = element('span', node.nodeId);
  name.title = [node.url, node.zone].filter(Boolean).join(' · ');
  row.append(
    cell(name),
    cell(element('span', node.state, 'state')),
    cell(node.weight ?? '–', 'number'),
    cell(percent(node.share), 'number'),
    cell(bar(node.cpu)),
    cell(bar(node.mem)),
    cell(node.score == null ? '–' : node.score.toFixed(2), 'number'),
    cell(whole(node.activeConn), 'number'),
    cell(whole(node.mps), 'number'),
    cell(millis(node.p95LatencyMs), 'number'),
    cell(millis(node.kafkaTopicLagLatencyMs), 'number'),
    cell(node.ringVersion ?? '–', 'number'),
    cell(millis(node.heartbeatAgeMs), 'number'),
  );
  return row;
}

function rebalanceRow(rebalance) {
  const row = element('tr');
  const reason = element('div', rebalance.reason);
  reason.title = rebalance.reason;
  if (rebalance.cause) reason.append(element('small', rebalance.cause));
  const peaks = [rebalance.peakBefore, rebalance.peakAfter].map((peak) => peak?.toFixed(2));
  row.append(
    cell(new Date(rebalance.ts).toLocaleTimeString()),
    cell(rebalance.version, 'number'),
    cell(rebalance.nodes, 'number'),
    cell(reason),
    cell(percent(rebalance.movedShare), 'number'),
    cell(peaks[0] ? `${peaks[0]} → ${peaks[1]}` : '–', 'number'),
  );
  return row;
}

function ringPiece(node, widest) {
  const piece = element('span', node.nodeId);
  piece.dataset.state = node.state;
  piece.title = `${node.nodeId}: ${percent(node.share)}`;
  piece.style.flexGrow = node.share;
  piece.style.flexBasis = '0';
  piece.style.setProperty('--strength', `${25 + 45 * (node.share / widest)}%`);
  return piece;
}

// A name stands in its piece where it fits whole; all are measured before any is changed, for one layout.
function showRing(pieces) {
  document.querySelector('.ring').replaceChildren(...pieces);
  const tooWide = pieces.filter((piece) => piece.scrollWidth > piece.clientWidth);
  for (const piece of tooWide) piece.textContent = '';
}

function fill(selector, name, rows) {
  document.querySelector(selector).replaceChildren(...rows);
  document.querySelector(`[data-empty=${name}]`).hidden = rows.length > 0;
}

function render(state, ring) {
  const nodes = state.nodes;
  const known = nodes.map((node) => node.cpu).filter((cpu) => cpu != null);
  const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);
  const mean = known.length ? sum(known) / known.length : null;
  show('name', state.nodeId);
  show('role', state.isLeader ? 'leads' : state.leader ? `follows ${state.leader}` : 'waits for a leader');
  show('nodes', nodes.length);
  show('version', ring.version ?? '–');
  show('cpu', percent(mean, 0));
  show('peak', mean > 0 ? (Math.max(...known) / mean).toFixed(2) : '–');
  show('connections', whole(sum(nodes.map((node) => node.activeConn))));
  show('mps', whole(sum(nodes.map((node) => node.mps))));
  const recent = ring.rebalances.filter((rebalance) => rebalance.ts > state.ts - HOUR_MS);
  show('moved', percent(sum(recent.map((rebalance) => rebalance.movedShare))));
  const owners = nodes.filter((node) => node.share > 0);
  const widest = Math.max(...owners.map((node) => node.share), 0);
  showRing(owners.map((node) => ringPiece(node, widest)));
  fill('.nodes tbody', 'nodes', nodes.slice(0, ROWS_MAX).map(nodeRow));
  fill('.history tbody', 'history', ring.rebalances.map(rebalanceRow));
  setLive(state.isFresh, state.isFresh ? 'live' : 'redis does not answer');
}

function setLive(isLive, text) {
  document.body.dataset.live = isLive ? 'yes' : 'no';
  show('live', text);
}

async function ask(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(5000) });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

async function turn() {
  try {
    const [state, ring] = await Promise.all([ask('/api/v1/nodes'), ask('/api/v1/ring')]);
    render(state, ring);
  } catch {
    setLive(false, 'the balancer does not answer');
  }
  setTimeout(turn, PERIOD_MS);
}

turn();

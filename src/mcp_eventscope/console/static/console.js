// The console: polls the facts, and shows them. All texts are written as text nodes, never as markup.
"use strict";

const INTERVAL = 1000;
const HIDDEN_INTERVAL = 15000;
const TIMEOUT = 8000;
const WINDOW = 300; // Seconds of the plots, once there are so many.
const LEAST_WINDOW = 60;
const GAP = 5; // Seconds between two points that are not connected.
const SPARK_POINTS = 40;
const EVENTS = 50;
const STALE = 15; // Seconds after which the pending events of a worker may be others.
const SVG = "http://www.w3.org/2000/svg";

// Not relative: the address of the page may contain the token, with which `fetch` accepts no URL.
const BASE = `${location.protocol}//${location.host}${location.pathname}`;

const state = {
  facts: null, received: 0, failed: null, failure: "", paused: false, sort: ["age", 1], filter: "",
  open: null, detail: null, detailError: "", events: null, payloads: false,
  history: new Map(), rates: new Map(), backlogs: new Map(), problems: new Map(),
};

// -- texts ------------------------------------------------------------------------------------------------------------

// Characters that are invisible, or that reorder a line: a client could disguise its text with them.
const UNSAFE = /[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

function clean(value) {
  return String(value).replace(UNSAFE, (each) => (each === "\u00a0" ? " " : `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 10) return `${seconds.toFixed(1)}s`;
  const whole = Math.round(seconds);
  const parts = [["d", Math.floor(whole / 86400)], ["h", Math.floor(whole / 3600) % 24], ["m", Math.floor(whole / 60) % 60], ["s", whole % 60]];
  return parts.filter(([, number]) => number).slice(0, 2).map(([unit, number]) => `${number}${unit}`).join(" ");
}

function bytes(number) {
  if (number === null || number === undefined) return "";
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (number < 1024) return `${unit === "B" || number >= 100 ? Math.round(number) : number.toFixed(1)} ${unit}`;
    number /= 1024;
  }
  return `${number.toFixed(1)} TiB`;
}

function quantity(number) {
  if (number === null || number === undefined) return "";
  if (number >= 100000) return `${(number / 1000).toFixed(0)}k`;
  if (number >= 10000) return `${(number / 1000).toFixed(1)}k`;
  return Number.isInteger(number) || number >= 100 ? number.toFixed(0) : number.toFixed(1);
}

function milliseconds(seconds) {
  return seconds === null || seconds === undefined ? "" : `${(seconds * 1000).toFixed(seconds < 0.01 ? 2 : 0)} ms`;
}

function clock(seconds) {
  const when = new Date(seconds * 1000);
  const time = when.toLocaleTimeString([], { hour12: false });
  return when.toDateString() === new Date().toDateString() ? time : `${when.toLocaleDateString()} ${time}`;
}

// -- elements ---------------------------------------------------------------------------------------------------------

function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : clean(value));
  }
  made.append(...children.filter((each) => each !== null && each !== undefined).map((each) => (each instanceof Node ? each : clean(each))));
  return made;
}

function s(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const $ = (selector) => document.querySelector(selector);

function setText(element, text) {
  const cleaned = clean(text);
  if (element.textContent !== cleaned) element.textContent = cleaned;
}

function setClass(element, name) {
  if (element.className !== name) element.className = name;
}

// The bar of a part of a bound.
function bar(part) {
  const level = part >= 0.9 ? " bad" : part >= 0.7 ? " warn" : "";
  const width = Math.max(part > 0 ? 3 : 0, Math.min(100, part * 100));
  return s("svg", { class: `bar${level}`, viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, s("rect", { width, height: 10 }));
}

// A line of points [x from 0 to 1, y or null], over an area. It has a gap where y is null or no point is.
function line(points, peak, attributes, gap = 1) {
  const parts = [[]];
  let before = null;
  for (const [x, y] of points) {
    if (y === null || (before !== null && x - before > gap)) parts.push([]);
    before = x;
    if (y !== null) parts[parts.length - 1].push(`${(x * 100).toFixed(2)},${(30 - 27 * (peak > 0 ? y / peak : 0)).toFixed(2)}`);
  }
  const drawn = s("svg", { viewBox: "0 0 100 31", preserveAspectRatio: "none", "aria-hidden": "true", ...attributes });
  for (const part of parts.filter((each) => each.length)) {
    const [from, to] = [part[0].split(",")[0], part[part.length - 1].split(",")[0]];
    drawn.append(s("polygon", { class: "area", points: `${from},31 ${part.join(" ")} ${to},31` }), s("polyline", { class: "stroke", points: part.join(" ") }));
  }
  return drawn;
}

// A table whose rows are kept by key, so that selections, focus and scrolling survive an update.
class Table {
  constructor(section, columns, { key, empty, row } = {}) {
    this.columns = columns;
    this.key = key;
    this.row = row;
    this.rows = new Map();
    this.section = section;
    this.emptyText = empty;
    this.body = section.querySelector("tbody");
    section.querySelector("thead").append(h("tr", {}, ...columns.map((each) => this.header(each))));
  }

  header(column) {
    const cell = h("th", { class: column.class, scope: "col", title: column.title }, column.sort ? h("button", { type: "button", onclick: () => sortBy(column.sort) }, column.name) : column.name);
    if (column.sort) cell.dataset.sort = column.sort;
    return cell;
  }

  update(items) {
    const seen = new Set();
    let place = this.body.firstChild;
    for (const item of items) {
      const key = this.key(item);
      seen.add(key);
      let row = this.rows.get(key);
      if (!row) {
        row = h("tr", {}, ...this.columns.map((each) => h("td", { class: each.class })));
        this.rows.set(key, row);
        if (this.row) this.row(row, item);
      }
      this.columns.forEach((column, index) => {
        const cell = row.children[index];
        const shown = column.cell(item);
        const parts = (Array.isArray(shown) ? shown : [shown]).filter((each) => each !== null && each !== undefined && each !== "");
        if (parts.every((each) => !(each instanceof Node))) setText(cell, parts.join(" "));
        else if (!cell.contains(document.activeElement)) cell.replaceChildren(...parts.map((each) => (each instanceof Node ? each : clean(each))));
      });
      if (place === row) place = row.nextSibling;
      else this.body.insertBefore(row, place);
      if (place && place.classList.contains("detail") && place.dataset.key === key) place = place.nextSibling;
      else if (row.detail) this.body.insertBefore(row.detail, place);
    }
    for (const [key, row] of this.rows) {
      if (!seen.has(key)) {
        if (row.detail) row.detail.remove();
        row.remove();
        this.rows.delete(key);
      }
    }
    const empty = this.section.querySelector(".empty");
    empty.hidden = items.length > 0;
    setText(empty, items.length ? "" : this.emptyText());
  }
}

// -- sessions ---------------------------------------------------------------------------------------------------------

const alive = (name) => state.facts.workers.some((each) => each.name === name && each.alive);

function liveness(session) {
  if (!session.workers.length || session.workers.some(alive)) return null;
  return h("span", { class: "tag bad-text", title: "All workers that serve it are dead. The next request adopts it." }, "no live worker");
}

const sessionColumns = [
  { name: "session", class: "mono", title: "The hash of its id, as in logs and spans", cell: (each) => h("button", { type: "button", class: "toggle", "aria-expanded": String(state.open === each.hash) }, each.hash) },
  { name: "client", sort: "client", class: "text", title: "As the client names itself", cell: (each) => (each.client ? h("span", { title: `${each.client}, revision ${each.protocol_version}` }, each.client) : h("span", { class: "faint" }, "unknown")) },
  { name: "age", sort: "age", class: "right w2", cell: (each) => duration(aged(each.age)) },
  { name: "idle", sort: "idle", class: "right", title: "Since its last event", cell: (each) => duration(aged(each.idle)) },
  { name: "running", sort: "running", class: "right", title: "Requests without a response", cell: (each) => each.running || h("span", { class: "faint" }, "0") },
  { name: "events/s", sort: "rate", class: "right", cell: (each) => [each.rate === null ? "" : quantity(each.rate), spark(each.hash)] },
  { name: "bytes", sort: "bytes", class: "right w2", title: "Accounted bytes, against the bound of a session", cell: (each) => [bytes(each.bytes), bar(each.bytes / state.facts.bound)] },
  { name: "workers", class: "mono w2", title: "The workers that serve it", cell: (each) => [...each.workers.slice(0, 2).map((name) => h("span", { class: alive(name) ? "" : "bad-text" }, `${name} `)), each.workers.length > 2 ? `+${each.workers.length - 2} ` : "", liveness(each)] },
  { name: "owner", class: "text w3", title: "Whether it belongs to a principal, and the audience of its token", cell: (each) => (each.authenticated ? (each.audience ? `token for ${each.audience}` : "authenticated") : h("span", { class: "faint" }, "anonymous")) },
  { name: "expires", sort: "expires_in", class: "right w3", title: "Until its record expires unless a request renews it", cell: (each) => (each.expires_in === null ? "never" : duration(Math.max(0, each.expires_in - lag()))) },
];

const lag = () => (state.facts.age || 0) + (performance.now() - state.received) / 1000;
const aged = (seconds) => (seconds === null ? null : seconds + lag());

function spark(hash) {
  const points = state.rates.get(hash) || [];
  const peak = Math.max(1, ...points);
  return line(points.map((each, index) => [(SPARK_POINTS - points.length + index) / (SPARK_POINTS - 1), each]), peak, { class: "spark" });
}

function sortBy(name) {
  state.sort = state.sort[0] === name ? [name, -state.sort[1]] : [name, name === "age" || name === "client" ? 1 : -1];
  render();
}

function shownSessions() {
  const [name, direction] = state.sort;
  const wanted = state.filter.toLowerCase();
  const text = (each) => [each.hash, each.client, each.server, each.audience, ...each.workers].join(" ").toLowerCase();
  const value = (each) => (name === "client" ? each.client.toLowerCase() : each[name] === null ? Infinity : each[name]);
  return state.facts.sessions
    .filter((each) => !wanted || text(each).includes(wanted))
    .sort((one, other) => (value(one) < value(other) ? -1 : value(one) > value(other) ? 1 : one.hash < other.hash ? -1 : 1) * direction);
}

function toggle(hash) {
  state.open = state.open === hash ? null : hash;
  Object.assign(state, { detail: null, detailError: "", events: null, payloads: false });
  for (const [key, row] of sessions.rows) {
    if (row.detail) row.detail.remove();
    row.detail = null;
    row.classList.toggle("open", key === state.open);
    row.querySelector(".toggle").setAttribute("aria-expanded", String(key === state.open));
    if (key === state.open) {
      row.detail = h("tr", { class: "detail", "data-key": key }, h("td", { colspan: sessionColumns.length }, h("div", { class: "inner" }, "loading")));
      row.after(row.detail);
    }
  }
  pollDetail();
}

function renderDetail() {
  const row = sessions.rows.get(state.open);
  if (!row || !row.detail) return;
  const inner = row.detail.querySelector(".inner");
  const selection = document.getSelection();
  if (selection && !selection.isCollapsed && inner.contains(selection.anchorNode)) return; // Something is being copied.
  if (state.detailError) { inner.replaceChildren(h("p", { class: "bad-text" }, state.detailError)); return; }
  if (!state.detail) return;
  const session = state.facts.sessions.find((each) => each.hash === state.open);
  const focus = inner.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  inner.replaceChildren(facts(session), streams(), ...(state.events ? [events()] : []));
  if (focus) inner.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
}

function facts(session) {
  const workers = Object.entries(state.detail.workers).map(([name, lives]) => h("span", { class: `mono ${lives ? "" : "bad-text"}` }, `${name}${lives ? "" : " (dead)"} `));
  const items = session ? [["server", session.server], ["revision", session.protocol_version], ["audience", session.audience], ["owner", session.authenticated ? "authenticated" : "anonymous"], ["expires in", duration(session.expires_in)], ["state", state.detail.state]] : [["state", state.detail.state]];
  const list = h("dl", { class: "facts" }, ...items.filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { class: "text" }, value))));
  list.append(h("div", {}, h("dt", {}, "memory"), h("dd", {}, bytes(state.detail.memory))), h("div", {}, h("dt", {}, "workers"), h("dd", {}, ...(workers.length ? workers : ["none"]))));
  return list;
}

function streams() {
  if (!state.detail.streams.length) return h("p", { class: "soft" }, "No retained events.");
  const names = ["stream", "state", "events", "retained", "memory", "idle", "expires", "worker", "followers", ""];
  const hide = { memory: "w2", expires: "w2", retained: "w2", worker: "w2", followers: "w2" };
  const rows = state.detail.streams.map((each) => {
    const chosen = state.events && state.events.run === each.run;
    const level = { running: "ok-text", answered: "warn-text", unclaimed: "warn-text" }[each.state] || "soft";
    return h("tr", {},
      h("td", { class: "text" }, each.stream || h("span", { class: "soft" }, "standalone")),
      h("td", { class: each.state === "running" && !each.worker_alive ? "bad-text" : level }, each.state === "running" && !each.worker_alive ? "orphaned" : each.state),
      h("td", {}, each.last ? `${each.first}\u2013${each.last}` : "none"),
      h("td", { class: "w2" }, quantity(each.retained)),
      h("td", { class: "w2" }, bytes(each.memory)),
      h("td", {}, duration(each.idle)),
      h("td", { class: "w2" }, each.expires_in === null ? "" : duration(each.expires_in)),
      h("td", { class: `mono w2 ${each.worker_alive ? "" : "bad-text"}` }, each.worker),
      h("td", { class: "w2" }, each.following === null ? "unknown" : each.following),
      h("td", { class: "right" }, h("button", { type: "button", class: "toggle", "data-focus": each.run, onclick: () => chooseEvents(each) }, chosen ? "hide" : "events")));
  });
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { class: hide[name], title: name === "followers" ? "Processes that follow it by a subscription; its own worker follows in memory" : null }, name)))), h("tbody", {}, ...rows)));
}

function chooseEvents(stream) {
  state.events = state.events && state.events.run === stream.run ? null : { run: stream.run, key: stream.key, name: stream.stream || "standalone", rows: null, error: "" };
  state.payloads = false;
  renderDetail();
  pollDetail();
}

function events() {
  const { rows, name, error } = state.events;
  const box = h("div", { class: "events" });
  const contents = state.facts.payloads ? h("button", { type: "button", "data-focus": "payloads", "aria-pressed": String(state.payloads), onclick: () => { state.payloads = !state.payloads; pollDetail(); } }, state.payloads ? "Hide contents" : "Show contents") : h("span", { class: "faint" }, "Contents are not shown: console_payloads is off.");
  box.append(h("div", { class: "bar-line" }, h("strong", {}, `The last events of ${name}`), contents));
  if (error) box.append(h("p", { class: "bad-text" }, error));
  else if (!rows) box.append("loading");
  else {
    const lines = rows.map((each) => h("tr", {}, h("td", { class: "right" }, each.number), h("td", { class: "w2" }, clock(each.time)), h("td", { class: each.type === "lost" || each.type === "corrupt" ? "bad-text" : "" }, each.type), h("td", { class: "text w2" }, each.method), h("td", { class: "right" }, bytes(each.bytes)), state.payloads ? h("td", { class: "mono payload text" }, each.payload === undefined ? "" : each.payload) : null));
    const classes = { number: "right", size: "right", accepted: "w2", method: "w2" };
    const names = ["number", "accepted", "type", "method", "size", ...(state.payloads ? ["contents"] : [])];
    box.append(h("div", { class: "scroll tall", tabindex: "0" }, h("table", {}, h("thead", {}, h("tr", {}, ...names.map((each) => h("th", { class: classes[each] }, each)))), h("tbody", {}, ...lines))));
  }
  return box;
}

// -- the other parts --------------------------------------------------------------------------------------------------

const workerColumns = [
  { name: "worker", class: "mono", cell: (each) => [h("span", { class: `dot ${each.alive ? "ok" : "bad"}` }), each.name] },
  { name: "lease", class: "right", title: "Until it expires unless it is renewed", cell: (each) => (each.alive ? (each.lease_seconds === null ? "never" : duration(each.lease_seconds)) : h("span", { class: "tag bad-text" }, "dead")) },
  { name: "sessions", class: "right", cell: (each) => each.sessions },
  { name: "running", class: "right", title: "Requests without a response", cell: (each) => (each.requests && !each.alive ? h("span", { class: "bad-text" }, each.requests) : each.requests) },
  { name: "inbox", class: "right", title: "Unread messages of other workers", cell: (each) => each.inbox },
  { name: "backlog", class: "right", title: "Pending events, in the memory of a worker that has answered this page", cell: backlog },
];

function backlog(worker) {
  const known = state.backlogs.get(worker.name);
  if (!known || !worker.alive) return h("span", { class: "faint", title: "This worker has not answered this page" }, "\u2013");
  const age = (performance.now() - known.received) / 1000;
  const title = `${bytes(known.bytes)}${known.failure ? `, ${known.failure}` : ""}, ${duration(age)} ago`;
  return h("span", { class: age > STALE ? "faint" : known.failure ? "bad-text" : "", title }, quantity(known.events));
}

// Pending events and log events are in the memory of each worker: without all of them "none" means less.
function renderAnswered() {
  const living = state.facts.workers.filter((each) => each.alive);
  const known = living.filter((each) => state.backlogs.has(each.name)).length;
  const note = $("#answered");
  note.hidden = Boolean(state.facts.worker) && known === living.length;
  setText(note, state.facts.worker ? `Answered by ${known} of ${living.length} workers: pending events and log events of the others are not shown.` : "Pending events and log events are not shown: workers keep them in memory. See their metrics and logs, or the console of the server.");
}

const plots = [
  { name: "Events", unit: "/s", index: 1, format: quantity },
  { name: "Redis commands", unit: "/s", index: 2, format: quantity },
  { name: "Redis latency", unit: "", index: 3, format: milliseconds },
  { name: "Redis memory", unit: "", index: 4, format: bytes },
  { name: "Sessions", unit: "", index: 5, format: quantity },
  { name: "Running requests", unit: "", index: 6, format: quantity },
];

function renderPlots() {
  const points = [...state.history.values()].sort((one, other) => one[0] - other[0]);
  const now = state.facts.time + (performance.now() - state.received) / 1000;
  const box = $("#plots");
  if (!box.children.length) box.append(...plots.map((each) => h("div", { class: "plot" }, h("div", { class: "name" }, each.name), h("div", { class: "numbers" }, h("span", { class: "value" }), h("span", { class: "peak" })), s("svg", {}))));
  const span = Math.min(WINDOW, Math.max(LEAST_WINDOW, points.length ? now - points[0][0] : 0));
  plots.forEach((plot, place) => {
    const values = points.map((each) => [1 - (now - each[0]) / span, each[plot.index]]).filter(([x]) => x >= 0);
    const known = values.filter(([, y]) => y !== null).map(([, y]) => y);
    const last = values.length ? values[values.length - 1][1] : null;
    const peak = Math.max(0, ...known);
    const [, { children: [valueBox, peakBox] }, drawing] = box.children[place].children;
    valueBox.replaceChildren(last === null ? h("span", { class: "faint" }, "\u2013") : plot.format(last), last === null || !plot.unit ? "" : h("small", {}, ` ${plot.unit}`));
    setText(peakBox, known.length ? `max ${plot.format(peak)}` : "");
    drawing.replaceWith(line(values, peak, {}, GAP / span));
  });
}

function renderRedis() {
  const { redis } = state.facts;
  setText($("#redis .count"), redis.address);
  $("#servers").replaceChildren(...(redis.servers.length ? redis.servers.map((each) => server(each, redis)) : [h("p", { class: "empty" }, "No facts yet.")]));
}

function server(each, redis) {
  const role = each.role === "master" ? "primary" : each.role;
  const memory = each.maxmemory ? [`${bytes(each.memory)} of ${bytes(each.maxmemory)}`, bar(each.memory / each.maxmemory)] : [`${bytes(each.memory)}, no maxmemory`];
  const evicts = each.policy && each.policy !== "noeviction";
  const items = [
    ["memory", h("span", {}, ...memory)],
    ["role", h("span", { class: each.role && each.role !== "master" ? "bad-text" : "" }, role || "unknown")],
    ["latency", milliseconds(redis.latency)],
    ["eviction", h("span", { class: evicts ? "warn-text" : "" }, each.policy || "unknown")],
    ["clients", each.clients], ["replicas", each.replicas], ["evicted keys", each.evicted],
    ["AOF", each.aof === null ? "unknown" : each.aof ? "on" : "off"], ["uptime", duration(each.uptime)],
  ].filter(([, value]) => value !== null && value !== "");
  return h("dl", { class: "server" }, h("dd", { class: "all" }, `${each.node ? `${each.node}: ` : ""}${each.kind} ${each.version}`), ...items.flatMap(([name, value]) => [h("dt", {}, name), h("dd", { class: name === "memory" ? "rest" : null }, value)]));
}

// Each worker observes conditions of Redis and of other workers: those that overlap are one.
function distinct(problems) {
  const kept = [];
  for (const each of problems) {
    const end = each.lasting ? Infinity : each.until;
    const key = (other) => [other.name, other.fields.worker, other.fields.session, other.fields.node].join(" ");
    const same = (other) => key(other) === key(each) && other.time <= end && each.time <= (other.lasting ? Infinity : other.until);
    if (each.name.includes(".") || !kept.some(same)) kept.push(each);
  }
  return kept;
}

function renderProblems() {
  const shown = distinct([...state.problems.values()].sort((one, other) => other.lasting - one.lasting || one.time - other.time)).sort((one, other) => other.lasting - one.lasting || other.time - one.time).slice(0, 100);
  const lasting = shown.filter((each) => each.lasting).length;
  setText($("#problems .count"), shown.length ? `${lasting ? `${lasting} now, ` : ""}${shown.length} in all` : "");
  const empty = $("#problems .empty");
  empty.hidden = shown.length > 0;
  setText(empty, state.facts.worker ? "None since the workers that have answered started." : "None since the console started.");
  const list = $("#problems ol");
  const selection = document.getSelection();
  if (selection && !selection.isCollapsed && list.contains(selection.anchorNode)) return;
  list.replaceChildren(...shown.map(problem));
}

function problem(each) {
  const level = each.lasting || each.until === null ? { error: "bad", warning: "warn", info: "ok" }[each.level] || "" : "";
  const when = each.lasting ? `now, since ${clock(each.time)}` : each.until !== null ? `${clock(each.time)}, for ${duration(each.until - each.time)}` : clock(each.time);
  const { fix, ...fields } = each.fields;
  const pairs = Object.entries(fields).flatMap(([name, value]) => [h("span", { class: "key" }, `${name} `), h("span", { class: "text" }, `${Array.isArray(value) ? value.join(", ") : value}  `), " "]);
  return h("li", {}, h("span", { class: `dot ${level}` }), h("div", {}, h("div", { class: "line" }, h("span", { class: "name" }, each.name.includes(".") ? each.name : each.name.replaceAll("_", " ")), h("span", { class: "when" }, when)), pairs.length ? h("div", { class: "fields" }, ...pairs) : null, fix ? h("div", { class: "fix" }, `Fix: ${fix}`) : null));
}

function renderStatus() {
  const status = $("#status");
  const banner = $("#banner");
  const { facts: found } = state;
  let [level, text, alarm] = ["", "connecting", ""];
  if (state.failed !== null) {
    [level, text] = ["bad", "server unreachable"];
    alarm = `${state.failure} since ${clock(state.failed)} (${duration(Date.now() / 1000 - state.failed)}).`;
  } else if (found && !found.redis.reachable) {
    const { since, error, refused } = found.redis;
    [level, text] = ["bad", refused ? "Redis refuses" : "Redis unreachable"];
    const begun = `since ${clock(since)} (${duration(found.time - since + (performance.now() - state.received) / 1000)})`;
    alarm = `${refused ? `Redis has refused to be read ${begun}` : `Redis has been unreachable ${begun}`}: ${error}.`;
  } else if (found) {
    [level, text] = ["ok", `Redis ${milliseconds(found.redis.latency)}`];
  }
  if (alarm && found && found.age !== null) alarm += ` The facts below are ${duration(lag())} old.`;
  setClass(status, `pill ${level}`);
  setText($("#status-text"), text);
  banner.hidden = !alarm;
  setText(banner, alarm);
  if (!found) return;
  const by = found.worker ? `answered by worker ${found.worker.name}` : "read directly from Redis";
  setText($("#meta"), found.age === null ? by : `${by}, ${duration(lag())} ago${state.paused ? ", paused" : ""}`);
  setText($("#foot"), `mcp-eventscope ${found.version}. Read-only. Session ids are shown as hashes, as in logs and spans: mcp-eventscope sessions show HASH.`);
}

function render() {
  renderStatus();
  if (!state.facts) return;
  const { facts: found } = state;
  const shown = shownSessions();
  sessions.update(shown);
  for (const cell of document.querySelectorAll("#sessions > .scroll > table > thead th[data-sort]")) {
    if (cell.dataset.sort === state.sort[0]) cell.setAttribute("aria-sort", state.sort[1] > 0 ? "ascending" : "descending");
    else cell.removeAttribute("aria-sort");
  }
  const more = found.truncated ? " or more" : "";
  setText($("#sessions .count"), found.known > found.sessions.length ? `${found.sessions.length} of ${found.known}${more}` : `${found.known}${more}${found.complete ? "" : ", looking for more"}`);
  workers.update(found.workers);
  const living = found.workers.filter((each) => each.alive).length;
  setText($("#workers .count"), living === found.workers.length ? `${living}` : `${living} of ${found.workers.length} alive`);
  renderAnswered();
  renderPlots();
  renderRedis();
  renderProblems();
  renderDetail();
}

const sessions = new Table($("#sessions"), sessionColumns, {
  key: (each) => each.hash,
  empty: () => (state.facts.age === null ? "No facts yet." : state.filter ? "No session matches the filter." : "No sessions."),
  row: (row, item) => {
    row.classList.add("row");
    row.addEventListener("click", () => { if (document.getSelection().isCollapsed) toggle(item.hash); });
  },
});
const workers = new Table($("#workers"), workerColumns, { key: (each) => each.name, empty: () => "No workers." });

// -- polling ----------------------------------------------------------------------------------------------------------

async function read(path) {
  const aborting = new AbortController();
  const timer = setTimeout(() => aborting.abort(), TIMEOUT);
  try {
    const response = await fetch(BASE + path, { cache: "no-store", credentials: "same-origin", signal: aborting.signal, headers: { accept: "application/json" } });
    const body = await response.json();
    if (!response.ok) throw new Error(response.status === 401 ? "The server needs the token: reload the page" : body.error || `The server answered ${response.status}`);
    return body;
  } finally {
    clearTimeout(timer);
  }
}

function take(found) {
  Object.assign(state, { facts: found, received: performance.now(), failed: null, failure: "" });
  for (const point of found.history) state.history.set(point[0], point);
  for (const time of state.history.keys()) if (time < found.time - WINDOW - 5) state.history.delete(time);
  const present = new Set(found.sessions.map((each) => each.hash));
  for (const each of found.sessions) {
    const points = state.rates.get(each.hash) || [];
    points.push(each.rate || 0);
    state.rates.set(each.hash, points.slice(-SPARK_POINTS));
  }
  for (const hash of state.rates.keys()) if (!present.has(hash)) state.rates.delete(hash);
  if (found.worker) state.backlogs.set(found.worker.name, { ...found.worker, received: state.received });
  const source = found.worker ? found.worker.name : "";
  const living = new Set(found.workers.filter((each) => each.alive).map((each) => each.name));
  for (const name of state.backlogs.keys()) if (!living.has(name)) state.backlogs.delete(name);
  for (const each of found.problems) state.problems.set(`${source} ${each.number}`, { ...each, source });
  // A worker that has ended cannot report that a condition has ended.
  for (const each of state.problems.values()) if (each.lasting && each.source && each.source !== source && !living.has(each.source)) Object.assign(each, { lasting: false, until: found.time });
  if (state.problems.size > 500) for (const key of [...state.problems.keys()].slice(0, 100)) state.problems.delete(key);
  if (state.open && !present.has(state.open)) state.detailError = "The session has ended, or is no longer shown.";
}

async function pollDetail() {
  const hash = state.open;
  if (!hash) return;
  try {
    const found = await read(`session/${encodeURIComponent(hash)}`);
    if (state.open !== hash) return;
    Object.assign(state, { detail: found, detailError: "" });
    const chosen = state.events;
    const stream = chosen && found.streams.find((each) => each.run === chosen.run);
    if (stream) {
      const shown = state.payloads;
      const query = new URLSearchParams({ stream: chosen.key, run: chosen.run, after: Math.max(0, stream.last - EVENTS) });
      if (shown) query.set("payloads", "1");
      try {
        const { events: rows } = await read(`session/${encodeURIComponent(hash)}/events?${query}`);
        if (state.events === chosen && state.payloads === shown) Object.assign(chosen, { rows: rows.reverse(), error: "" });
      } catch (error) {
        Object.assign(chosen, { error: error.message });
      }
    } else if (chosen) {
      Object.assign(chosen, { error: "The stream has no retained events." });
    }
  } catch (error) {
    if (state.open === hash) state.detailError = error.message;
  }
  renderDetail();
}

let timer = null;

async function poll() {
  clearTimeout(timer);
  if (!state.paused) {
    try {
      take(await read("facts"));
      pollDetail();
    } catch (error) {
      if (state.failed === null) state.failed = Date.now() / 1000;
      state.failure = error instanceof TypeError || error.name === "AbortError" ? "The server has not answered" : error.message;
    }
    render();
  }
  clearTimeout(timer);
  timer = setTimeout(poll, document.hidden ? HIDDEN_INTERVAL : INTERVAL);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
$("#filter").addEventListener("input", (event) => { state.filter = event.target.value; render(); });
$("#pause").addEventListener("click", (event) => {
  state.paused = !state.paused;
  event.target.setAttribute("aria-pressed", String(state.paused));
  setText(event.target, state.paused ? "Resume" : "Pause");
  poll();
});
setInterval(renderStatus, 1000);
poll();

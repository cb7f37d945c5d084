/* What happens in a pipeline, from trace events (src/host/trace_json.h), whether they come live or from a file. Times are
 * milliseconds of the run's clock. seek(t) makes nodes what they were at t; spans are what they are. */
const LATEST = 1e12, ROWS_MOST = 1024; /* beyond these nothing is believed */
const SPANS_MOST = 6000, RAW_MOST = 60000, NODES_MOST = 40000;

class Request {
  constructor(id) { this.id = id; this.nodes = new Map(); this.root = null; this.path = []; this.ended = false; this.born = 0; }
  node(id, parent, text, p, t) {
    const up = this.nodes.get(parent);
    const n = { id, up, text, p, t, state: "alive", kids: [], q: (up ? up.q : 1) * p, verdict: "", depth: up ? up.depth + 1 : 0 };
    this.nodes.set(id, n);
    if (up) up.kids.push(n);
    return n;
  }
}

export class Pipeline {
  constructor() { this.reset(); }
  reset() {
    this.tracks = new Map();
    this.marks = [];
    this.raw = [];
    this.n = 0;
    this.first = Infinity;
    this.newest = -Infinity;
    this.lost = 0;
    this.rewind();
  }
  rewind() {
    this.requests = new Map();
    this.applied = 0;
    this.at = -Infinity;
    this.tokens = []; /* { t, verdict, text, request, node } */
    this.ahead = 0;
    this.current = null;
  }

  /* ---- events in ---- */

  add(events) {
    for (const e of events) {
      if (!e || typeof e !== "object") continue;
      if (e.ph === "M") this.name(e);
      else if (e.ph === "X") this.span(e);
      else if (e.ph === "i" && (e.cat === "submit" || e.cat === "advance")) this.mark(e);
      else if (e.cat === "lost") this.lost++;
      else continue;
      this.raw.push(e);
    }
    if (this.raw.length > RAW_MOST) this.raw.splice(0, this.raw.length - RAW_MOST);
  }
  name(e) {
    const m = /^stage (\d+)$/.exec(e.args?.name ?? "");
    if (m) this.n = Math.min(128, Math.max(this.n, +m[1] + 1));
  }
  seen(t) { if (Number.isFinite(t)) { this.first = Math.min(this.first, t); this.newest = Math.max(this.newest, t); } }
  span(e) {
    const t = e.ts / 1000, d = e.dur / 1000, a = e.args || {};
    if (!(Math.abs(t) < LATEST) || !(d >= 0 && d < LATEST) || !Number.isInteger(e.tid) || e.tid < 0 || e.tid > 129) return;
    const list = this.tracks.get(e.tid) || this.tracks.set(e.tid, []).get(e.tid);
    const of = [];
    for (const part of Array.isArray(a.of) ? a.of : []) if (Array.isArray(part?.[1])) for (const id of part[1].slice(0, ROWS_MOST - of.length)) of.push({ request: part[0], id });
    const count = x => Math.max(0, Math.min(ROWS_MOST, x | 0));
    const s = { t, end: t + d, kind: e.name, rows: count(a.rows), live: count(a.rows_live), of, prompt: count(a.prompt) };
    let i = list.length; /* nearly always the last */
    while (i > 0 && list[i - 1].t > t) i--;
    list.splice(i, 0, s);
    if (list.length > SPANS_MOST) list.splice(0, list.length - SPANS_MOST);
    this.seen(t);
    this.seen(s.end);
  }
  mark(e) {
    const m = { t: e.ts / 1000, cat: e.cat, verdict: e.name, ...e.args };
    if (!(Math.abs(m.t) < LATEST)) return;
    this.marks.push(m);
    this.seen(m.t);
  }

  /* ---- the state at a time ---- */

  seek(t) {
    if (t < this.at && this.applied && this.marks[this.applied - 1].t > t) this.rewind();
    while (this.applied < this.marks.length && this.marks[this.applied].t <= t) this.apply(this.marks[this.applied++]);
    this.at = t;
    if (this.marks.length > RAW_MOST) { const old = Math.min(this.applied, this.marks.length - RAW_MOST); this.marks.splice(0, old); this.applied -= old; }
    if (this.tokens.length > 4000) this.tokens.splice(0, 2000);
  }
  request(id) {
    let r = this.requests.get(id);
    if (!r) {
      r = new Request(id);
      this.requests.set(id, r);
      if (this.requests.size > 12) this.requests.delete(this.requests.keys().next().value);
    }
    return r;
  }
  apply(m) {
    if (m.request === undefined) { if (m.cat === "advance") this.tokens.push({ t: m.t, verdict: m.verdict, text: String(m.text ?? ""), request: 0 }); return; }
    const r = this.request(m.request);
    this.current = r;
    if (m.cat === "submit") this.submit(r, m); else this.advance(r, m);
    if (r.nodes.size > NODES_MOST) for (const [id, n] of r.nodes) { if (n.state === "dead") r.nodes.delete(id); if (r.nodes.size < NODES_MOST / 2) break; }
  }
  submit(r, m) {
    const sent = (Array.isArray(m.sent) ? m.sent : []).filter(Array.isArray).slice(0, ROWS_MOST).sort((a, b) => a[0] - b[0]); /* parents first */
    r.born ||= m.t;
    r.known = m.nodes;
    r.predicts ||= m.rows > 1;
    for (const [id, parent, , logp, text] of sent) {
      const old = r.nodes.get(id);
      if (old) { old.sent = true; continue; }
      const n = r.node(id, parent, String(text ?? ""), Math.min(1, Math.exp(logp)) || 0, m.t);
      n.sent = true;
      if (id === m.root && !r.root) { n.state = "chosen"; r.root = n; r.path.push(n); }
    }
  }
  advance(r, m) {
    if (m.verdict === "miss" && !r.predicts) m = { ...m, verdict: "plain" }; /* nobody had guessed */
    const old = r.root;
    let n = r.nodes.get(m.node);
    if (!n) { n = r.node(m.node, old?.id, String(m.text ?? ""), m.verdict === "miss" ? 0.001 : 0.05, m.t); n.sent = false; }
    for (const k of old ? old.kids : []) if (k !== n) this.kill(k, m.t);
    n.state = "chosen";
    n.verdict = m.verdict;
    n.tChosen = m.t;
    r.root = n;
    r.path.push(n);
    r.ended = m.verdict === "last";
    this.tokens.push({ t: m.t, verdict: m.verdict, text: n.text || m.text || "", request: r.id, node: n });
    if (r.ended) for (const k of n.kids) this.kill(k, m.t);
  }
  kill(n, t) {
    const stack = [n];
    while (stack.length) { const x = stack.pop(); if (x.state !== "alive") continue; x.state = "dead"; x.tDead = t; stack.push(...x.kids); }
  }

  /* ---- questions ---- */

  node(of) { return this.requests.get(of.request)?.nodes.get(of.id); }
  track(tid) { return this.tracks.get(tid) || []; }
  /* The span of a track at t, or the last one before; its index. */
  index(tid, t) {
    const list = this.track(tid);
    let low = 0, high = list.length;
    while (low < high) { const mid = (low + high) >> 1; if (list[mid].t <= t) low = mid + 1; else high = mid; }
    return low - 1;
  }
  now(tid, t) { const s = this.track(tid)[this.index(tid, t)]; return s && t < s.end ? s : null; }
  /* Fates of a batch's rows, in their order: "chosen", "alive", "dead", "prompt". */
  fates(s) {
    if (s.kind === "prefill") return Array(s.rows).fill("prompt");
    if (s.kind === "draft") return Array(s.rows).fill("draft");
    if (!s.of.length) return [...Array(s.live).fill("alive"), ...Array(Math.max(0, s.rows - s.live - s.prompt)).fill("dead")];
    const fates = s.of.map(of => this.node(of)?.state ?? "alive");
    return s.prompt ? [...Array(s.prompt).fill("prompt"), ...fates] : fates;
  }
  text(n, most = 160) {
    let s = "";
    for (let k = 0; n && k < 60 && s.length < most; k++, n = n.up) s = n.text + s;
    return s;
  }
  depths(r) {
    let deepest = 0, alive = 0;
    const stack = r?.root && !r.ended ? r.root.kids.map(k => [k, 1]) : [];
    while (stack.length) {
      const [n, d] = stack.pop();
      if (n.state !== "alive") continue;
      alive++;
      deepest = Math.max(deepest, d);
      for (const k of n.kids) stack.push([k, d + 1]);
    }
    return { deepest, alive };
  }
  step(dir, t) { /* the time of the next or the previous thing that happens */
    let best = dir > 0 ? Infinity : -Infinity;
    const see = x => { if (dir > 0 ? x > t + 1e-6 && x < best : x < t - 1e-6 && x > best) best = x; };
    for (const tid of this.tracks.keys()) { const i = this.index(tid, t), list = this.track(tid); for (const k of [i - 1, i, i + 1]) if (list[k]) { see(list[k].t); see(list[k].end); } }
    for (const k of [this.applied - 2, this.applied - 1, this.applied, this.applied + 1]) if (this.marks[k]) see(this.marks[k].t);
    return Number.isFinite(best) ? best : t;
  }

  /* ---- figures at t ---- */

  figures(t) {
    const mine = this.tokens.slice(-64), last = mine.at(-1), busy = [];
    let step = 0, alone = 0;
    for (let i = 1; i <= this.n; i++) {
      const at = this.index(i, t), list = this.track(i).slice(Math.max(0, at - 40), at + 1).filter(s => s.kind === "batch");
      const took = list.map(s => s.end - s.t).sort((a, b) => a - b);
      if (took.length) { step = Math.max(step, took[took.length >> 1]); alone += took[0]; }
      busy.push(this.now(i, t) ? 1 : 0);
    }
    const heads = this.track(this.n + 1), at = this.index(this.n + 1, t), head = heads.slice(Math.max(0, at - 40), at + 1).map(s => s.end - s.t).sort((a, b) => a - b);
    if (head.length) alone += head[head.length >> 1];
    const run = last ? mine.filter(x => x.request === last.request) : [];
    const gaps = run.slice(1).map((x, i) => x.t - run[i].t).slice(-20).sort((a, b) => a - b);
    const span = run.length > 1 ? run.at(-1).t - run[0].t : 0, each = span ? span / (run.length - 1) : 0;
    const told = run.filter(x => x.verdict !== "last" && x.verdict !== "plain"), hits = told.filter(x => x.verdict === "hit").length;
    return { busy: busy.reduce((a, b) => a + b, 0), step, each, between: gaps.length ? gaps[gaps.length >> 1] : 0, rate: each ? 1000 / each : 0, steps: each && step ? step / each : 0,
      hits: told.length ? hits / told.length : NaN, times: each && alone ? alone / each : 0, ...this.depths(this.current) };
  }
}

/* A trace file's events; one that was cut short is read as far as it goes. */
export function parseTrace(text) {
  try {
    const all = JSON.parse(text);
    const list = Array.isArray(all) ? all : all.traceEvents;
    if (!Array.isArray(list)) throw new Error("no list of events");
    return list;
  } catch (e) {
    const end = text.lastIndexOf("}");
    if (!text.trimStart().startsWith("[") || end < 0) throw new Error("this is not a trace: " + e.message);
    for (let cut = end, k = 0; cut > 0 && k < 50; cut = text.lastIndexOf("}", cut - 1), k++)
      try { return JSON.parse(text.slice(0, cut + 1) + "]"); } catch { /* earlier */ }
    throw new Error("this is not a trace that can be read");
  }
}

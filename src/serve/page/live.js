/* The pipeline's view: where events come from (the server, or a file), time and its controls, words and figures. The views
 * themselves: chain.js, tree.js, time.js. */
import { complete, openEvents } from "./api.js";
import { ChainView } from "./chain.js";
import { readColors, visible } from "./draw.js";
import { drawVersus, TimeView } from "./time.js";
import { tip } from "./tips.js";
import { parseTrace, Pipeline } from "./trace.js";
import { TreeView } from "./tree.js";

const $ = id => document.getElementById(id);
const number = (x, digits) => (x > 0 && Number.isFinite(x) ? x.toFixed(digits) : "–");
const QUIET_MS = 2000;

export class Live {
  constructor(store) {
    this.store = store;
    this.live = this.shown = new Pipeline(); /* what comes from the server; what is shown: that, or a file's */
    this.t = NaN;
    this.playing = true;
    this.speed = 1;
    this.follows = true; /* the newest */
    this.delay = 150;
    this.stages = 0;
    this.chain = new ChainView($("chain"));
    this.tree = new TreeView($("tree"));
    this.time = new TimeView($("time"));
    this.controls();
    this.pointers();
    readColors();
    addEventListener("look", () => { readColors(); this.wake(); this.redrawVersus(); });
    new ResizeObserver(() => { this.wake(); this.redrawVersus(); }).observe($("live"));
    addEventListener("visibilitychange", () => this.watch());
    this.watch();
    this.wake();
  }

  /* ---- events from the server ---- */

  visible() { return !document.hidden && getComputedStyle($("live")).display !== "none"; }

  server(now) {
    this.stages = now.stages.length;
    this.spec = !!now.draft;
    if (this.live.n < this.stages) { this.live.n = this.stages; this.wake(); }
    if (this.starts !== undefined && this.starts !== now.starts) { this.live.reset(); this.live.n = this.stages; if (this.shown === this.live) this.t = NaN; } /* another engine, another clock */
    this.starts = now.starts;
    this.watch();
  }
  /* Only who looks is told: no events while the page is hidden. */
  async watch() {
    if (!this.visible() && !$("compare").checked) { this.watching?.abort(); return; }
    if (this.watching || !this.stages) return;
    const watching = this.watching = new AbortController();
    try {
      for await (const list of await openEvents("pipeline/events", watching.signal)) {
        if (list[0]?.cat === "lost") continue;
        this.live.add(list);
        this.wake();
      }
    } catch { /* the server has gone, or nobody looks */ }
    this.watching = null;
    if (!watching.signal.aborted) setTimeout(() => this.watch(), 2000);
  }

  /* ---- time ---- */

  wake() { this.frame ||= requestAnimationFrame(now => this.tick(now)); }

  /* Live, the view keeps a little behind what happens: a batch is told of at its end. */
  advance(dt) {
    const p = this.shown, end = p.newest;
    if (!Number.isFinite(end)) return false;
    if (!Number.isFinite(this.t)) this.t = this.follows && p === this.live ? Math.max(p.first, end - 500) : p.first;
    if (!this.playing) return false;
    const before = this.t, recent = p.track(1).slice(-8).reduce((most, s) => Math.max(most, s.end - s.t), 0);
    this.delay += (Math.min(1500, recent * 1.15 + 120) - this.delay) * 0.05;
    let pace = this.speed;
    if (p === this.live && this.follows && this.speed === 1) pace = Math.max(0.85, Math.min(4, 1 + (end - this.t - this.delay) / 1000));
    this.t += dt * pace;
    if (p === this.live) this.t = this.over(this.t, before);
    this.t = Math.min(this.t, end);
    return this.t !== before;
  }
  /* Nothing happened for long: that time is skipped. */
  over(t, before) {
    const next = this.live.step(1, before);
    return next > before + QUIET_MS && this.live.newest > next ? Math.max(t, next - 200) : t;
  }

  tick(now) {
    const dt = this.before && now - this.before < 250 ? now - this.before : 16;
    this.frame = 0;
    this.before = now;
    if (!this.visible()) return;
    const moved = this.advance(dt);
    this.draw(now);
    if (moved || this.settling) this.wake(); else this.before = 0;
  }
  draw(now) {
    const p = this.shown, t = Number.isFinite(this.t) ? this.t : 0;
    p.seek(t);
    if (!this.figuresAt || now - this.figuresAt > 180 || !this.playing) { this.figuresAt = now; this.figures = p.figures(t); this.say(t); }
    const began = performance.now();
    this.chain.draw(p, t, this.busy(p, t));
    this.settling = this.tree.draw(p, now);
    this.time.draw(p, t, this.figures.step);
    this.cost = performance.now() - began;
    document.body.dataset.drawMs = this.cost.toFixed(2);
  }
  busy(p, t) {
    const span = Math.max(500, this.figures.step * 20), out = [];
    for (let i = 1; i <= p.n; i++) {
      const list = p.track(i);
      let sum = 0;
      for (let k = p.index(i, t); k >= 0 && list[k].end > t - span; k--) sum += Math.min(t, list[k].end) - Math.max(t - span, list[k].t);
      out.push(Math.max(0, Math.min(1, sum / span)));
    }
    return out;
  }

  /* ---- words ---- */

  say(t) {
    const p = this.shown, f = this.figures, put = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };
    const some = Number.isFinite(p.newest), runs = some && p.current?.path.length > 1 && p.current && !p.current.ended && t < p.newest + 1 && f.busy > 0;
    put("f-rate", number(f.rate, 1));
    put("f-between", f.between > 0 ? number(f.between, f.between < 10 ? 1 : 0) + " ms" : "–");
    put("f-step", number(f.steps, 2));
    put("f-hits", Number.isFinite(f.hits) && this.hasTree(p) ? Math.round(f.hits * 100) + " %" : "–");
    put("f-times", f.times > 0 ? number(f.times, 1) + "×" : "–");
    if (this.trouble?.until > performance.now()) put("words", this.trouble.text);
    else put("words", runs && !p.current.predicts ? `Without predictions: ${f.busy} of ${p.n} stages busy` + (f.steps ? `, ${f.steps.toFixed(2)} tokens a step` : "")
      : runs ? `${f.busy} of ${p.n} stages busy, ${f.alive} guesses in flight, ${f.deepest} tokens ahead` + (f.steps ? `, ${f.steps.toFixed(1)} tokens a step` : "")
      : f.busy ? `The prompt goes through: ${f.busy} of ${p.n} stages busy` : some ? (this.shown === this.live ? "Nothing runs now." : this.name) : "Nothing runs. Ask something and watch.");
    put("span-words", p.n ? `the last ${(this.time.span / 1000).toFixed(1)} s` : "");
    const past = p.newest - p.first;
    if (document.activeElement !== $("seek") && past > 0) $("seek").value = Math.round(1000 * (this.t - p.first) / past);
    $("now").disabled = this.shown === this.live && this.follows && this.playing && this.speed === 1;
  }
  hasTree(p) { return p.tokens.some(x => x.verdict === "hit" || x.verdict === "late hit") || this.spec; }

  /* ---- controls ---- */

  play(on) {
    this.playing = on;
    $("pause").textContent = on ? "Pause" : "Play";
    $("pause").setAttribute("aria-pressed", !on);
    if (on && this.shown !== this.live && this.t >= this.shown.newest) this.t = this.shown.first;
    this.wake();
  }
  go(t) { this.t = Math.min(this.shown.newest, Math.max(this.shown.first, t)); this.follows = false; this.figuresAt = 0; this.wake(); }
  now() {
    this.shown = this.live;
    this.follows = true;
    this.speed = 1;
    $("speed").value = "1";
    this.t = Number.isFinite(this.live.newest) ? this.live.newest - this.delay : NaN;
    this.play(true);
  }
  controls() {
    const step = dir => { this.play(false); this.go(this.shown.step(dir, this.t)); this.spoken(); };
    $("pause").onclick = () => this.play(!this.playing);
    $("step").onclick = () => step(1);
    $("back").onclick = () => step(-1);
    $("speed").onchange = () => { this.speed = +$("speed").value; this.follows = this.speed === 1; this.wake(); };
    $("seek").oninput = () => { this.play(false); this.go(this.shown.first + $("seek").value / 1000 * (this.shown.newest - this.shown.first)); };
    $("now").onclick = () => this.now();
    $("compare").checked = !!this.store.settings.compare;
    $("compare").onchange = () => { if (!$("compare").checked) $("fig-versus").hidden = true; this.store.settings.compare = $("compare").checked; this.store.saveSettings(); this.watch(); };
    $("open").onchange = async () => { const file = $("open").files[0]; $("open").value = ""; if (file) this.load(file.name, await file.text()); };
    $("save").onclick = () => this.save();
    addEventListener("keydown", e => {
      if (e.target.closest("input, textarea, select, button, dialog") || e.ctrlKey || e.metaKey || e.altKey) return;
      if (e.key === " ") { e.preventDefault(); this.play(!this.playing); } else if (e.key === "." || (e.key === "ArrowRight" && !e.target.closest("canvas"))) step(1);
      else if (e.key === "," || (e.key === "ArrowLeft" && !e.target.closest("canvas"))) step(-1);
    });
    addEventListener("dragover", e => e.preventDefault());
    addEventListener("drop", async e => { e.preventDefault(); const file = e.dataTransfer?.files[0]; if (file) this.load(file.name, await file.text()); });
  }
  load(name, text) {
    try {
      const p = new Pipeline();
      p.add(parseTrace(text));
      if (!Number.isFinite(p.newest)) throw new Error("no batches in it");
      this.shown = p;
      this.trouble = null;
      this.name = `Replay of ${name}: ${((p.newest - p.first) / 1000).toFixed(1)} s`;
      this.t = p.first;
      this.follows = false;
      this.tree.shown.clear();
      this.play(true);
      $("live-said").textContent = this.name;
    } catch (e) {
      this.trouble = { text: `${name}: ${e.message}`, until: performance.now() + 8000 };
      setTimeout(() => this.wake(), 8100);
      $("words").textContent = $("live-said").textContent = this.trouble.text;
    }
  }
  save() {
    const names = [], name = (tid, text) => names.push({ ph: "M", pid: 1, tid, name: "thread_name", args: { name: text } });
    name(0, "drafter");
    for (let i = 0; i < this.shown.n; i++) name(i + 1, `stage ${i}`);
    name(this.shown.n + 1, "verifier");
    const text = "[\n" + [...names, ...this.shown.raw.filter(e => e.ph !== "M")].map(e => JSON.stringify(e)).join(",\n") + "\n]\n", a = document.createElement("a");
    a.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    a.download = "pipedec-trace.json";
    a.click();
    setTimeout(() => URL.revokeObjectURL(a.href), 10000);
  }

  /* ---- rows under the mouse, or chosen with the arrows ---- */

  about(node) {
    const p = this.shown, fate = { chosen: "chosen", alive: "alive: it may come true", dead: "dead: the reply went another way" }[node.state];
    return `${visible(p.text(node))}\n${node.p < 0.002 && node.verdict === "miss" ? "not predicted" : Math.round(node.p * 100) + " % after the token before"}, ${fate}` + (node.verdict ? `, ${node.verdict}` : "");
  }
  pointers() {
    const over = (view, words) => {
      view.canvas.onmousemove = e => {
        const r = view.canvas.getBoundingClientRect(), hit = view.at(e.clientX - r.left, e.clientY - r.top), pick = hit?.node ?? null;
        tip(hit ? words(hit) : "", e.clientX, e.clientY);
        if (pick !== this.chain.pick) { this.chain.pick = this.tree.pick = pick; this.wake(); }
      };
      view.canvas.onmouseleave = () => { tip(""); this.chain.pick = this.tree.pick = null; this.wake(); };
    };
    over(this.chain, c => (c.node ? this.about(c.node) : "a row whose token is not known here"));
    over(this.tree, b => this.about(b.node));
    over(this.time, b => {
      const count = {}, name = b.tid === 0 ? "draft" : b.tid > this.shown.n ? "head" : `stage ${b.tid}`;
      for (const f of this.shown.fates(b.s)) count[f] = (count[f] || 0) + 1;
      return `${name}: ${b.s.kind} of ${b.s.rows} rows, ${(b.s.end - b.s.t).toFixed(1)} ms\n` + Object.entries(count).map(([k, v]) => `${v} ${k}`).join(", ");
    });
    $("chain").onkeydown = e => {
      const dir = { ArrowDown: 1, ArrowUp: -1, ArrowRight: 1000, ArrowLeft: -1000 }[e.key];
      if (!dir) return;
      e.preventDefault();
      this.select(dir);
    };
    $("chain").onblur = () => tip("");
  }
  select(dir) {
    const cells = this.chain.cells.filter(c => c.node);
    if (!cells.length) return;
    this.play(false);
    let at = cells.findIndex(c => c.node === this.chain.pick);
    if (Math.abs(dir) < 1000) at = Math.min(cells.length - 1, Math.max(0, at + dir));
    else { /* the next column */
      const x = cells[Math.max(0, at)].x, next = dir > 0 ? cells.findIndex((c, i) => i > at && c.x > x) : cells.findLastIndex((c, i) => i < at && c.x < x);
      at = next < 0 ? Math.max(0, at) : next;
    }
    const c = cells[at], r = $("chain").getBoundingClientRect();
    this.chain.pick = this.tree.pick = c.node;
    tip(this.about(c.node), r.left + c.x + c.w, r.top + c.y);
    $("live-said").textContent = this.about(c.node);
    this.wake();
  }
  spoken() { $("live-said").textContent = `${((this.t - this.shown.first) / 1000).toFixed(3)} s: ${$("words").textContent}`; }

  /* ---- the same question without predictions ---- */

  run(name, text) {
    for (const r of [...this.live.requests.values()].reverse()) {
      const mine = this.live.tokens.filter(x => x.request === r.id);
      if (mine.length > 1 && text.trim().startsWith(mine.slice(0, -1).map(x => x.text).join("").trim().replace(/\ufffd+$/, "").slice(0, 40))) return { name, p: this.live, request: r.id, from: r.born, to: mine.at(-1).t, tokens: mine };
    }
    return null;
  }
  async compare(request, text, timings) {
    if (!$("compare").checked) return;
    const n = timings.predicted_n;
    this.live.seek(this.live.newest);
    const first = this.run("With predictions", text);
    this.pair = null;
    this.redrawVersus();
    $("fig-versus").hidden = false;
    $("versus-words").textContent = "Now without predictions ...";
    let plain = "", times = null;
    try {
      for await (const e of complete({ ...request, max_tokens: n, mode: "pp" })) { if (e.text) plain += e.text; if (e.timings) times = e.timings; }
    } catch (e) { $("versus-words").textContent = `Without predictions it did not work: ${e.message}`; return; }
    await new Promise(done => setTimeout(done, 400)); /* the last events */
    this.live.seek(this.live.newest);
    const second = this.run("Plain pipeline", plain);
    this.pair = first && second && first.request !== second.request ? [first, second] : null;
    const a = timings.predicted_ms, b = times?.predicted_ms ?? NaN;
    $("versus-words").textContent = `${n} tokens in ${(a / 1000).toFixed(1)} s with predictions, ${times?.predicted_n} in ${(b / 1000).toFixed(1)} s without: ${(b / a).toFixed(1)} times as fast` +
      (plain === text ? ", and the same text, token for token." : ". (The texts differ: a seed was not given.)");
    this.redrawVersus();
  }
  redrawVersus() {
    $("versus").hidden = !this.pair;
    if (this.pair && !$("fig-versus").hidden) drawVersus($("versus"), this.pair);
  }
}

/* Time to the right: a line a stage, a bar a batch, filled by the fates of its rows; below, the reply's tokens. */
import { begin, cell, color, fit, FONT, GLYPH, verdictColor, visible } from "./draw.js";

const LEFT = 42, FOOT = 34;

/* Bars of one stretch of time into a part of a canvas; what was drawn goes to `bars`, to be found again. */
export function bars(g, p, view, bars) {
  const { x, y, w, h, from, to, request } = view, lines = p.n + 2, each = h / lines, tall = Math.max(2, each - (each > 6 ? 2 : 1)), scale = w / (to - from);
  g.save();
  g.beginPath();
  g.rect(x, y, w, h);
  g.clip();
  for (let tid = 0; tid <= p.n + 1; tid++) {
    const list = p.track(tid), top = y + tid * each;
    for (let i = Math.max(0, p.index(tid, from)); i < list.length && list[i].t < to; i++) {
      const s = list[i], x0 = x + (s.t - from) * scale, wide = Math.max(1, (Math.min(s.end, view.now ?? s.end) - s.t) * scale - 1);
      if (s.end < from || s.t > (view.now ?? Infinity) || (request && s.of.length && !s.of.some(o => o.request === request))) continue;
      bar(g, p, s, x0, top, wide, tall);
      bars?.push({ x: x0, y: top, w: wide, h: tall, s, tid });
    }
  }
  g.restore();
}

function bar(g, p, s, x, y, w, h) {
  if (s.kind === "head") { cell(g, x, y, Math.max(2, w), h, "chosen"); return; }
  if (s.kind === "stopped") { cell(g, x, y, w, h, "dead"); return; }
  const fates = p.fates(s), all = fates.length || 1;
  let at = y;
  for (const kind of ["dead", "alive", "draft", "prompt", "chosen"]) {
    const n = fates.reduce((sum, f) => sum + (f === kind), 0), part = h * n / all;
    if (!n) continue;
    if (part >= 0.4) cell(g, x, at, w, kind === "chosen" ? Math.max(1.5, part) : part, kind);
    at += part;
  }
}

export class TimeView {
  constructor(canvas) { this.canvas = canvas; this.bars = []; this.span = 1000; }
  draw(p, t, step) {
    const { g, w, h } = begin(this.canvas);
    this.bars.length = 0;
    const want = Math.max(40, step * 22 || 1000);
    if (want > this.span * 1.6 || want < this.span / 1.6) this.span = want;
    if (!p.n || !Number.isFinite(t)) return;
    const view = { x: LEFT, y: 6, w: w - LEFT - 8, h: h - FOOT - 6, from: t - this.span, to: t, now: t };
    this.grid(g, p, view);
    bars(g, p, view, this.bars);
    this.tokens(g, p, view, h);
  }
  grid(g, p, v) {
    const each = v.h / (p.n + 2);
    g.font = `10.5px ${FONT}`;
    g.textAlign = "right";
    g.fillStyle = color.soft;
    for (let tid = 0; tid <= p.n + 1; tid++) if (each >= 11 || tid === 0 || tid > p.n || (tid % 2 === 0 && tid < p.n)) g.fillText(tid === 0 ? "draft" : tid > p.n ? "head" : tid, LEFT - 7, v.y + (tid + 0.5) * each);
    const unit = 10 ** Math.floor(Math.log10(this.span / 3)) * ([1, 2, 5].findLast(k => k * 10 ** Math.floor(Math.log10(this.span / 3)) <= this.span / 3) ?? 1);
    g.strokeStyle = color.line;
    g.lineWidth = 1;
    g.textAlign = "center";
    g.font = `10px ${FONT}`;
    for (let k = Math.ceil(v.from / unit) * unit; k < v.to; k += unit) {
      const x = Math.round(v.x + (k - v.from) / (v.to - v.from) * v.w) + 0.5;
      g.beginPath();
      g.moveTo(x, v.y);
      g.lineTo(x, v.y + v.h);
      g.stroke();
      if (x > LEFT + 12) g.fillText((k / 1000).toFixed(unit < 100 ? 2 : 1) + " s", x, v.y + v.h + 26);
    }
  }
  tokens(g, p, v) {
    let free = -Infinity;
    for (const token of p.tokens.slice(-120)) {
      if (token.t < v.from) continue;
      const x = v.x + (token.t - v.from) / (v.to - v.from) * v.w, y = v.y + v.h + 10;
      g.fillStyle = verdictColor(token.verdict);
      g.font = `700 11px ${FONT}`;
      g.textAlign = "center";
      if (x > free) { g.fillText(GLYPH[token.verdict] ?? "", x, y); free = x + 9; } else g.fillRect(x - 0.5, y - 4, 1.5, 8);
      g.globalAlpha = 0.35;
      g.fillRect(x - 0.5, v.y + v.h - v.h / (p.n + 2), 1, v.h / (p.n + 2));
      g.globalAlpha = 1;
    }
  }
  at(x, y) { return this.bars.findLast(b => x >= b.x && x <= b.x + b.w && y >= b.y && y <= b.y + b.h); }
}

/* Two runs over the same time, one above the other: [{ name, p, request, from, tokens }]. */
export function drawVersus(canvas, runs) {
  const { g, w, h } = begin(canvas), part = h / runs.length, most = Math.max(...runs.map(r => r.to - r.from)), scale = (w - LEFT - 12) / most;
  runs.forEach((r, i) => {
    const v = { x: LEFT, y: i * part + 20, w: w - LEFT - 12, h: part - 46, from: r.from, to: r.from + most, now: r.to, request: r.request };
    g.font = `600 12px ${FONT}`;
    g.textAlign = "left";
    g.fillStyle = color.ink;
    g.fillText(r.name, 8, i * part + 10);
    g.fillStyle = color.well;
    g.fillRect(v.x, v.y, v.w, v.h);
    bars(g, r.p, v, null);
    let free = -Infinity;
    for (const token of r.tokens) {
      const x = v.x + (token.t - r.from) * scale, text = visible(token.text).trim();
      g.fillStyle = verdictColor(token.verdict);
      g.fillRect(x - 0.75, v.y + v.h + 3, 1.5, 7);
      g.font = `10px ${FONT}`;
      if (x < free || !text) continue;
      const short = fit(g, text, 60);
      g.fillStyle = color.soft;
      g.fillText(short, x - 1, v.y + v.h + 17);
      free = x + g.measureText(short).width + 6;
    }
  });
}

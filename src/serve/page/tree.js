/* The prediction tree: from the newest chosen token to the right, the likeliest line on top. Nodes glide to their places. */
import { begin, box, color, fit, FONT, GLYPH, still, verdictColor, visible } from "./draw.js";

const LINE = 25, HIGH = 19, FADE = 450, GAP = 15, PERCENT = 25, WIDEST = 118, COLUMNS = 24;

const percent = n => (n.state !== "alive" || n.p >= 0.995 ? "" : n.p < 0.01 ? "<1%" : Math.round(n.p * 100) + "%");
/* A token's own text; the blank that words begin with is left out. */
const words = n => (n.state === "chosen" && n.verdict ? GLYPH[n.verdict] + " " : "") + visible(n.text.replace(/^ (?=\S)/, ""));

export class TreeView {
  constructor(canvas) { this.canvas = canvas; this.shown = new Map(); this.boxes = []; this.pick = null; this.last = 0; }

  /* Which nodes, and where: { node, col, row }. */
  layout(r, cols, rows, back) {
    const places = new Map(), root = r.root, past = r.path.slice(-back - 1, -1);
    past.forEach((n, i) => places.set(n, { col: i - past.length, row: 0 }));
    places.set(root, { col: 0, row: 0 });
    const kids = new Map(), edge = root.kids.filter(k => k.state === "alive").map(n => ({ n, d: 1 }));
    let leaves = 1, hidden = 0;
    if (r.ended) edge.length = 0;
    while (edge.length) { /* likeliest first */
      let best = 0;
      for (let i = 1; i < edge.length; i++) if (edge[i].n.q > edge[best].n.q) best = i;
      const { n, d } = edge.splice(best, 1)[0], old = kids.get(n.up) || [];
      if (d > cols || (old.length && leaves >= rows) || n.q < root.q * 1e-4) { hidden++; continue; }
      if (old.length) leaves++;
      kids.set(n.up, [...old, n]);
      if (edge.length < 400) for (const k of n.kids) if (k.state === "alive") edge.push({ n: k, d: d + 1 });
    }
    let line = 0;
    const put = (n, d) => { /* the first child goes on in its parent's line */
      const mine = (kids.get(n) || []).sort((a, b) => b.q - a.q);
      mine.forEach((k, i) => { if (i) line++; places.set(k, { col: d + 1, row: line }); put(k, d + 1); });
    };
    put(root, 0);
    this.hidden = hidden;
    return places;
  }

  draw(p, now) {
    const { g, w, h } = begin(this.canvas), r = p.current, dt = Math.min(100, now - this.last);
    this.last = now;
    this.boxes.length = 0;
    if (!r?.root) { this.shown.clear(); this.empty(g, w, h); return false; }
    const places = this.layout(r, COLUMNS, Math.max(3, Math.floor((h - 20) / LINE)), w < 500 ? 1 : 3), at = this.columns(g, places, w);
    const glide = still() ? 1 : 1 - Math.exp(-dt / 90);
    let moving = false;
    for (const [n, place] of places) {
      const x = at.get(place.col), y = 14 + place.row * LINE;
      let s = this.shown.get(n);
      if (!s) { const up = this.shown.get(n.up); s = { x: up && !still() ? up.x + 24 : x, y: up && !still() ? up.y : y, a: still() ? 1 : 0 }; this.shown.set(n, s); }
      s.w = place.wide;
      s.x += (x - s.x) * glide;
      s.y += (y - s.y) * glide;
      s.a = Math.min(1, s.a + dt / 160);
      s.gone = 0;
      moving ||= Math.abs(x - s.x) + Math.abs(y - s.y) > 0.3 || s.a < 1;
    }
    for (const [n, s] of this.shown)
      if (!places.has(n)) { s.gone = (s.gone || 0) + dt; s.y += n.state === "dead" ? dt * 0.012 : 0; s.x -= n.state === "chosen" ? dt * 0.2 : 0; if (s.gone > FADE || still()) this.shown.delete(n); else moving = true; }
    for (const [n, s] of this.shown) this.edge(g, n, s, r);
    for (const [n, s] of this.shown) this.node(g, n, s, r);
    this.more(g, w, h);
    return moving;
  }

  /* Where each column begins; each is as wide as its widest token. What does not fit is left out. */
  columns(g, places, w) {
    const widths = new Map(), at = new Map();
    g.font = `600 11.5px ${FONT}`;
    for (const [n, place] of places) {
      place.wide = Math.min(WIDEST, Math.ceil(g.measureText(words(n)).width) + 12 + (percent(n) ? PERCENT : 0));
      widths.set(place.col, Math.max(widths.get(place.col) ?? 0, place.wide));
    }
    let x = 12;
    for (const col of [...widths.keys()].sort((a, b) => a - b)) { at.set(col, x); x += widths.get(col) + GAP; }
    for (const [n, place] of places) if (place.col > 0 && at.get(place.col) + place.wide > w - 4) { places.delete(n); this.hidden++; }
    return at;
  }

  empty(g, w, h) {
    g.font = `13px ${FONT}`;
    g.textAlign = "center";
    g.fillStyle = color.soft;
    g.fillText("The tree of guesses grows here.", w / 2, h / 2);
  }
  alpha(s) { return s.a * (s.gone ? Math.max(0, 1 - s.gone / FADE) : 1); }
  edge(g, n, s, r) {
    const up = this.shown.get(n.up);
    if (!up) return;
    const x0 = up.x + up.w, x1 = s.x, chosen = n.state === "chosen", share = Math.sqrt(Math.min(1, n.q / (r.root.q || 1)));
    g.globalAlpha = this.alpha(s);
    g.strokeStyle = chosen ? verdictColor(n.verdict || "hit") : n.state === "dead" ? color.dead : color.alive;
    g.lineWidth = chosen ? 4 : 0.8 + 2.2 * share;
    g.setLineDash(n.state === "dead" || n.verdict === "miss" ? [3, 3] : []);
    g.beginPath();
    g.moveTo(x0, up.y + HIGH / 2);
    if (Math.abs(up.y - s.y) < 1) g.lineTo(x1, s.y + HIGH / 2);
    else { const bend = Math.max(x1 - 9, x0 + 2); g.bezierCurveTo(bend, up.y + HIGH / 2, x0 + 2, s.y + HIGH / 2, x1, s.y + HIGH / 2); }
    g.stroke();
    g.setLineDash([]);
    g.globalAlpha = 1;
  }
  node(g, n, s, r) {
    const wide = s.w, chosen = n.state === "chosen", root = n === r.root, dead = n.state === "dead";
    g.globalAlpha = this.alpha(s);
    box(g, s.x, s.y, wide, HIGH, 5);
    g.fillStyle = chosen ? verdictColor(n.verdict || "hit") : color.card;
    if (n.verdict === "miss") g.fillStyle = color.card;
    g.fill();
    g.lineWidth = root || n === this.pick ? 2.5 : 1.2;
    g.strokeStyle = n === this.pick ? color.ink : chosen ? verdictColor(n.verdict || "hit") : dead ? color.dead : color.alive;
    g.setLineDash(dead || n.verdict === "miss" ? [3, 2] : []);
    g.stroke();
    g.setLineDash([]);
    g.textAlign = "left";
    g.font = `${chosen ? 600 : 400} 11.5px ${FONT}`;
    g.fillStyle = n.verdict === "miss" ? color.miss : chosen ? color.card : dead ? color.soft : color.ink;
    const label = percent(n);
    g.fillText(fit(g, words(n), wide - 9 - (label ? PERCENT - 3 : 0)), s.x + 6, s.y + HIGH / 2 + 0.5);
    if (label) { g.font = `9.5px ${FONT}`; g.fillStyle = color.soft; g.textAlign = "right"; g.fillText(label, s.x + wide - 4, s.y + HIGH / 2 + 0.5); }
    g.globalAlpha = 1;
    if (!s.gone) this.boxes.push({ x: s.x, y: s.y, w: wide, h: HIGH, node: n });
  }
  more(g, w, h) {
    if (!this.hidden) return;
    g.font = `11px ${FONT}`;
    g.textAlign = "right";
    g.fillStyle = color.soft;
    g.fillText(`and ${this.hidden} branches more`, w - 8, h - 9);
  }
  at(x, y) { return this.boxes.find(b => x >= b.x && x <= b.x + b.w && y >= b.y && y <= b.y + b.h); }
}

/* The stages side by side, each with the batch that it computes, a row a predicted token. */
import { begin, cell, color, FONT, GLYPH, still, verdictColor } from "./draw.js";

const TOP = 22, FOOT = 30, ROWS = 32;
const ease = x => 1 - (1 - x) ** 3;

export class ChainView {
  constructor(canvas) { this.canvas = canvas; this.cells = []; this.pick = null; }

  draw(p, t, busy) {
    const { g, w, h } = begin(this.canvas), n = Math.max(p.n, 1), step = w / (n + 2), wide = Math.max(5, step - Math.min(10, step * 0.22));
    const x = col => col * step + (step - wide) / 2;
    this.cells.length = 0;
    this.frame(g, n, x, wide, h, busy);
    if (!p.n) return;
    this.batch(g, p, p.now(0, t), t, x(0), x(0), wide, h);
    for (let i = 1; i <= n; i++) this.batch(g, p, p.now(i, t), t, x(i - 1), x(i), wide, h);
    this.head(g, p, t, x(n + 1), wide, h);
  }

  frame(g, n, x, wide, h, busy) {
    g.font = `600 11px ${FONT}`;
    g.textAlign = "center";
    for (let col = 0; col <= n + 1; col++) {
      const name = col === 0 ? "draft" : col > n ? "head" : String(col);
      g.fillStyle = color.well;
      g.beginPath();
      g.roundRect(x(col) - 2, TOP - 2, wide + 4, h - TOP - FOOT + 4, 4);
      g.fill();
      g.fillStyle = color.soft;
      g.fillText(wide < 24 && name.length > 2 ? name[0].toUpperCase() : name, x(col) + wide / 2, 11);
      if (col < 1 || col > n) continue;
      const share = busy[col - 1] ?? 0; /* how busy it has been of late */
      g.fillStyle = color.line;
      g.fillRect(x(col), h - 21, wide, 4);
      g.fillStyle = color.accent;
      g.fillRect(x(col), h - 21, wide * share, 4);
      g.font = `10px ${FONT}`;
      g.fillStyle = color.soft;
      if (wide >= 24) g.fillText(Math.round(share * 100) + "%", x(col) + wide / 2, h - 9);
      g.font = `600 11px ${FONT}`;
    }
  }

  batch(g, p, s, t, from, to, wide, h) {
    if (!s) return;
    const fates = p.fates(s), room = h - TOP - FOOT, each = Math.min(9, room / Math.max(ROWS, fates.length)), gap = each > 4 ? 1.5 : each > 2.5 ? 1 : 0;
    const move = still() ? 1 : ease(Math.min(1, (t - s.t) / Math.max(1, Math.min(160, (s.end - s.t) * 0.4)))), x = from + (to - from) * move;
    const first = fates.length - s.of.length;
    fates.forEach((fate, i) => {
      const of = i >= first ? s.of[i - first] : null, node = of && p.node(of), y = TOP + i * each;
      cell(g, x, y, wide, Math.max(1, each - gap), s.kind === "stopped" ? "dead" : fate, node ? Math.sqrt(Math.min(1, node.q / (node.root ?? rootQ(p, of)))) : 1);
      if (of) this.cells.push({ x, y, w: wide, h: each, node, of });
      if (this.pick && node && node === this.pick) { g.strokeStyle = color.ink; g.lineWidth = 1.5; g.strokeRect(x - 1, y - 1, wide + 2, each + 1); }
    });
    g.fillStyle = color.ink; /* how far it is */
    g.globalAlpha = 0.55;
    g.fillRect(to, h - FOOT + 3, wide * Math.min(1, (t - s.t) / Math.max(1e-6, s.end - s.t)), 1.5);
    g.globalAlpha = 1;
  }

  head(g, p, t, x, wide, h) {
    const tokens = p.tokens.slice(-9).reverse();
    g.textAlign = "center";
    tokens.forEach((token, i) => {
      const y = TOP + 10 + i * 20;
      if (y > h - FOOT) return;
      g.globalAlpha = Math.max(0.15, 1 - i * 0.13);
      g.font = `700 ${i ? 12 : 15}px ${FONT}`;
      g.fillStyle = verdictColor(token.verdict);
      g.fillText(GLYPH[token.verdict] ?? "", x + wide / 2, y);
    });
    g.globalAlpha = 1;
  }

  at(x, y) { return this.cells.find(c => x >= c.x && x <= c.x + c.w && y >= c.y && y < c.y + c.h); }
}

const rootQ = (p, of) => p.requests.get(of.request)?.root?.q || 1;

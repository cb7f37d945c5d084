/* Drawing on canvases: size, colours, small shapes. */
const NAMES = ["ink", "soft", "line", "back", "card", "well", "accent", "alive", "chosen", "dead", "late", "miss", "prompt", "draft"];
export const color = {};
export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
export const GLYPH = { hit: "✓", "late hit": "◐", miss: "✕", last: "■", plain: "•" };
export const FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif";

export function readColors() {
  const style = getComputedStyle(document.documentElement);
  for (const n of NAMES) color[n] = style.getPropertyValue("--" + n).trim();
  hatch = null;
}

export const verdictColor = v => (v === "hit" ? color.chosen : v === "late hit" ? color.late : v === "miss" ? color.miss : v === "plain" ? color.accent : color.soft);

/* The canvas at the screen's resolution, empty; { g, w, h } in CSS pixels. */
export function begin(canvas) {
  const scale = Math.min(devicePixelRatio || 1, 2), w = canvas.clientWidth, h = canvas.clientHeight;
  if (canvas.width !== Math.round(w * scale) || canvas.height !== Math.round(h * scale)) { canvas.width = Math.round(w * scale); canvas.height = Math.round(h * scale); }
  const g = canvas.getContext("2d");
  g.setTransform(scale, 0, 0, scale, 0, 0);
  g.clearRect(0, 0, w, h);
  g.textBaseline = "middle";
  return { g, w, h };
}

let hatch = null;
function hatching(g) {
  if (hatch) return hatch;
  const c = document.createElement("canvas");
  c.width = c.height = 6;
  const p = c.getContext("2d");
  p.strokeStyle = color.dead;
  p.lineWidth = 1.4;
  p.beginPath();
  for (const o of [-6, 0, 6]) { p.moveTo(o, 6); p.lineTo(o + 6, 0); }
  p.stroke();
  return (hatch = g.createPattern(c, "repeat"));
}

/* A row of a batch: its fate is told by colour and by form. */
export function cell(g, x, y, w, h, fate, strength = 1) {
  g.globalAlpha = fate === "alive" ? 0.4 + 0.6 * strength : 1;
  if (fate === "dead") {
    g.fillStyle = hatching(g);
    g.fillRect(x, y, w, h);
    if (h >= 4) { g.strokeStyle = color.dead; g.lineWidth = 1; g.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1); }
  } else {
    g.fillStyle = color[fate] || color.alive;
    g.fillRect(x, y, w, h);
    if (fate === "chosen" && h >= 4 && w >= 12) { g.fillStyle = color.card; g.fillRect(x + 2, y + h / 2 - 0.75, 5, 1.5); g.fillRect(x + w - 7, y + h / 2 - 0.75, 5, 1.5); }
  }
  g.globalAlpha = 1;
}

export function box(g, x, y, w, h, r) {
  g.beginPath();
  g.roundRect(x, y, w, h, r);
}

/* A token as one sees it: blanks and ends of lines have signs. */
export const visible = text => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +| +$/g, m => "·".repeat(m.length)).replace(/[\u0000-\u001f\u007f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "�");

const widths = new Map();
export function fit(g, text, room) {
  const id = g.font + room + text;
  let out = widths.get(id);
  if (out !== undefined) return out;
  const all = [...text];
  let n = all.length;
  out = text;
  while (n > 0 && g.measureText(out).width > room) out = all.slice(0, --n).join("") + (n ? "…" : "");
  if (widths.size > 4000) widths.clear();
  widths.set(id, out);
  return out;
}

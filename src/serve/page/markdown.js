/* Markdown to elements. Text becomes text nodes and nothing else: no HTML is ever parsed, no address but http, https and mailto
 * becomes a link, nothing is loaded (an image becomes a link to it). render() of a text that has grown changes the last
 * blocks alone. */
import { highlight } from "./highlight.js";

const make = (tag, ...children) => { const e = document.createElement(tag); e.append(...children); return e; };

/* ---- within a line ---- */

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|!?\[([^\]\n]*)\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+"[^"\n]*")?\)|(https?:\/\/[^\s<>"'`\])]+[^\s<>"'`\]).,;:!?])|\*\*(?=\S)([\s\S]*?\S)\*\*|__(?=\S)([\s\S]*?\S)__(?!\w)|~~(?=\S)([\s\S]*?\S)~~|\*(?=[^\s*])([^*]*?[^\s*])\*(?!\*)|\b_(?=[^\s_])([^_]*?[^\s_])_(?!\w)|\\([\\`*_{}[\]()#+\-.!|~>])/g;

function link(text, address) {
  let url = null;
  try { url = new URL(address); } catch { /* not one */ }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  const a = make("a", ...inline(text || address, 1));
  a.href = url.href;
  a.target = "_blank";
  a.rel = "noopener noreferrer nofollow";
  return a;
}

function inline(text, depth = 0) {
  const out = [];
  let at = 0;
  const plain = s => s.split("\n").forEach((line, i) => { if (i) out.push(make("br")); if (line) out.push(line); });
  if (depth > 4) return [text];
  for (const m of text.matchAll(INLINE)) {
    let node;
    if (m[1]) node = make("code", m[2]);
    else if (m[4] !== undefined) node = link(m[3], m[4]);
    else if (m[5]) { node = make("a", m[5]); try { node.href = new URL(m[5]).href; node.target = "_blank"; node.rel = "noopener noreferrer nofollow"; } catch { node = null; } }
    else if (m[6] ?? m[7]) node = make("strong", ...inline(m[6] ?? m[7], depth + 1));
    else if (m[8]) node = make("del", ...inline(m[8], depth + 1));
    else if (m[9] ?? m[10]) node = make("em", ...inline(m[9] ?? m[10], depth + 1));
    else if (m[11]) node = m[11];
    if (!node) continue;
    plain(text.slice(at, m.index));
    out.push(node);
    at = m.index + m[0].length;
  }
  plain(text.slice(at));
  return out;
}

/* ---- blocks: { kind, lines } ---- */

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)[^`]*$/, HEAD = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/, RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/, QUOTE = /^ {0,3}>\s?/, ROW = /^\s*\|?.*\|.*$/, DASHES = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

function fence(lines, i) {
  const mark = FENCE.exec(lines[i]);
  let end = i + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(mark[1]) && /^[`~]+$/.test(lines[end].trim()))) end++;
  return { kind: "code", lang: mark[2], lines: lines.slice(i + 1, end), next: Math.min(end + 1, lines.length) };
}

function run(lines, i, kind, belongs) {
  let end = i + 1;
  while (end < lines.length && belongs(lines[end], end)) end++;
  return { kind, lines: lines.slice(i, end), next: end };
}

const blank = line => !line.trim();
const begins = (lines, i) => FENCE.test(lines[i]) || HEAD.test(lines[i]) || RULE.test(lines[i]) || QUOTE.test(lines[i]) || ITEM.test(lines[i]);

function block(lines, i) {
  const line = lines[i];
  if (FENCE.test(line)) return fence(lines, i);
  if (HEAD.test(line)) return { kind: "head", lines: [line], next: i + 1 };
  if (RULE.test(line)) return { kind: "rule", lines: [line], next: i + 1 };
  if (QUOTE.test(line)) return run(lines, i, "quote", l => QUOTE.test(l));
  if (ITEM.test(line)) return run(lines, i, "list", (l, k) => ITEM.test(l) || /^\s{2,}\S/.test(l) || (blank(l) && k + 1 < lines.length && (ITEM.test(lines[k + 1]) || /^\s{2,}\S/.test(lines[k + 1]))) ||
    (!blank(l) && !begins(lines, k) && !blank(lines[k - 1])));
  if (ROW.test(line) && i + 1 < lines.length && DASHES.test(lines[i + 1]) && lines[i + 1].includes("-")) return run(lines, i, "table", l => ROW.test(l) && !blank(l));
  return run(lines, i, "text", (l, k) => !blank(l) && !begins(lines, k));
}

function blocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n"), out = [];
  for (let i = 0; i < lines.length;) {
    if (blank(lines[i])) { i++; continue; }
    const b = block(lines, i);
    b.raw = lines.slice(i, b.next).join("\n");
    i = b.next;
    out.push(b);
  }
  return out;
}

/* ---- elements ---- */

export function copyButton(text, words = "Copy") {
  const b = make("button", words);
  b.type = "button";
  b.onclick = async () => {
    try { await navigator.clipboard.writeText(text()); b.textContent = "Copied"; } catch { b.textContent = "No access"; }
    setTimeout(() => { b.textContent = words; }, 1500);
  };
  return b;
}

function codeBlock(b) {
  const text = b.lines.join("\n"), code = make("code");
  highlight(code, text, b.lang.toLowerCase());
  const pre = make("pre", code), bar = make("div", make("span", b.lang || "text"), copyButton(() => text));
  bar.className = "bar";
  pre.tabIndex = 0;
  pre.dir = "ltr";
  const box = make("div", bar, pre);
  box.className = "code";
  return box;
}

function list(lines, depth) {
  const first = ITEM.exec(lines[0]), base = first[1].length, ordered = /\d/.test(first[2]);
  const out = make(ordered ? "ol" : "ul"), items = [];
  if (ordered) out.start = parseInt(first[2], 10);
  for (const line of lines) {
    const m = ITEM.exec(line);
    if (m && m[1].length <= base + 1) items.push([m[3]]);
    else items.at(-1).push(line.replace(new RegExp(`^\\s{0,${base + (ordered ? 3 : 2)}}`), ""));
  }
  for (const item of items) {
    const li = make("li");
    li.dir = "auto";
    const inner = blocks(item.join("\n"));
    inner.forEach((b, i) => li.append(...(i === 0 && b.kind === "text" ? inline(b.raw) : [element(b, depth + 1)])));
    out.append(li);
  }
  return out;
}

function table(lines) {
  const cells = line => line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/).map(c => c.trim().replaceAll("\\|", "|"));
  const row = (line, tag) => make("tr", ...cells(line).map(c => make(tag, ...inline(c))));
  const box = make("div", make("table", make("thead", row(lines[0], "th")), make("tbody", ...lines.slice(2).map(l => row(l, "td")))));
  box.className = "wide";
  return box;
}

function element(b, depth = 0) {
  switch (depth > 8 ? "text" : b.kind) {
  case "code": return codeBlock(b);
  case "head": { const m = HEAD.exec(b.lines[0]); return make("h" + Math.min(5, m[1].length + 2), ...inline(m[2])); }
  case "rule": return make("hr");
  case "quote": return make("blockquote", ...blocks(b.lines.map(l => l.replace(QUOTE, "")).join("\n")).map(x => element(x, depth + 1)));
  case "list": return list(b.lines, depth);
  case "table": return table(b.lines);
  default: return make("p", ...inline(b.raw ?? b.lines.join("\n")));
  }
}

const drawn = new WeakMap(); /* element -> the raw texts of its blocks */

export function render(to, text) {
  const old = drawn.get(to) || [], now = blocks(text);
  let same = 0;
  while (same < old.length && same < now.length && old[same] === now[same].raw && same < now.length - 1) same++;
  while (to.childNodes.length > same) to.lastChild.remove();
  for (const b of now.slice(same)) { const e = element(b); if (!e.dir) e.dir = "auto"; to.append(e); }
  drawn.set(to, now.map(b => b.raw));
}

/* Tips: what has data-tip shows it under the mouse and on focus; canvases show their own with tip(). */
const box = () => document.getElementById("tip");

export function tip(text, x, y) {
  const b = box();
  b.hidden = !text;
  if (!text) return;
  if (b.textContent !== text) b.textContent = text;
  const { width, height } = b.getBoundingClientRect();
  b.style.left = Math.max(6, Math.min(x + 12, innerWidth - width - 6)) + "px";
  b.style.top = (y + 18 + height > innerHeight ? Math.max(6, y - height - 10) : y + 18) + "px";
}

export function tips() {
  let shown = null;
  const show = e => {
    const of = e.target.closest?.("[data-tip]");
    if (of === shown) return;
    shown = of;
    if (!of) { tip(""); return; }
    const r = of.getBoundingClientRect();
    tip(of.dataset.tip, r.left, r.bottom - 10);
  };
  addEventListener("mouseover", show);
  addEventListener("focusin", show);
  addEventListener("focusout", () => { shown = null; tip(""); });
  addEventListener("keydown", e => { if (e.key === "Escape") tip(""); });
  for (const e of document.querySelectorAll("figcaption [data-tip], #figures [data-tip]")) e.tabIndex = 0;
}

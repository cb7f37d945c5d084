/* The pipeline's view: what the server tells of itself. */
const $ = id => document.getElementById(id);

export class Live {
  constructor() { this.before = null; for (const id of ["fig-chain", "fig-tree", "fig-time"]) $(id).hidden = true; for (const c of document.querySelectorAll(".controls")) c.hidden = true; }
  compare() {}
  server(now) {
    const b = this.before, dt = b ? (now.time_ms - b.time_ms) / 1000 : 0, found = now.hits + now.late + now.misses;
    this.before = now;
    $("words").textContent = now.running ? `${now.running} run, ${now.waiting} wait` : "Nothing runs. Ask something and watch.";
    $("f-rate").textContent = dt > 0 ? Math.max(0, (now.tokens - b.tokens) / dt).toFixed(1) : "–";
    $("f-hits").textContent = found ? Math.round(100 * now.hits / found) + " %" : "–";
  }
}

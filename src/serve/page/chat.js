/* The conversation: streaming, stop, regenerate, edit, copy; calls of tools and their results. */
import { complete } from "./api.js";
import { copyButton, render } from "./markdown.js";
import { parsed } from "./settings.js";

const $ = id => document.getElementById(id);
const make = (tag, kind, text) => { const e = document.createElement(tag); if (kind) e.className = kind; if (text) e.textContent = text; return e; };
const IDEAS = ["Write a C function that reverses a singly linked list.", "Why is the sky blue?", "Explain a pipeline to a child.", "Write a haiku about waiting."];

const words = t => `${t.predicted_n} tokens · ${t.predicted_per_second.toFixed(1)} tokens/s · first after ${(t.prompt_ms / 1000).toFixed(2)} s` +
  (t.speedup ? ` · ${t.speedup.toFixed(1)}× over plain pipeline` : "") + (t.cache_n ? ` · ${t.cache_n} prompt tokens kept` : "");

const json = text => { try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; } };
/* Text as a block of code, whatever is in it. */
const block = text => { const fence = "`".repeat(3 + Math.max(0, ...(text.match(/`+/g) ?? []).map(x => x.length))); return `${fence}json\n${text}\n${fence}`; };

/* Says what is new to screen readers, a sentence at a time. */
class Speaker {
  constructor(to) { this.to = to; this.text = ""; }
  add(piece) {
    this.text += piece;
    const end = Math.max(this.text.lastIndexOf(". "), this.text.lastIndexOf("\n"), this.text.length > 200 ? this.text.lastIndexOf(" ") : -1);
    if (end >= 0) { this.say(this.text.slice(0, end + 1)); this.text = this.text.slice(end + 1); }
  }
  end() { this.say(this.text); this.text = ""; }
  say(text) { if (!text.trim()) return; this.to.append(make("p", "", text)); while (this.to.children.length > 6) this.to.firstChild.remove(); }
}

export class Chat {
  /* on: { changed(), reply(request, text, timings) } */
  constructor(store, on) {
    this.store = store;
    this.on = on;
    this.speaker = new Speaker($("spoken"));
    $("form").onsubmit = e => { e.preventDefault(); this.running ? this.stop() : this.send(); };
    $("text").oninput = () => this.fit();
    $("text").onkeydown = e => {
      if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); if (!this.running) this.send(); }
      else if (e.key === "ArrowUp" && !$("text").value) { const last = [...document.querySelectorAll(".msg.user")].pop(); if (last && !this.running) { e.preventDefault(); last.querySelector("[data-do=edit]").click(); } }
    };
    addEventListener("keydown", e => { if (e.key === "Escape" && this.running && !document.querySelector("dialog[open]")) this.stop(); });
    this.draw();
  }
  get messages() { return this.store.current.messages; }

  /* ---- drawing ---- */

  draw() {
    const talk = $("talk");
    talk.replaceChildren();
    if (!this.messages.length) talk.append(this.welcome());
    this.messages.forEach((m, i) => talk.append(this.message(m, i)));
    talk.scrollTop = talk.scrollHeight;
    this.fit();
  }
  welcome() {
    const box = make("div", "welcome"), ideas = make("div", "ideas");
    box.append(make("h2", "", "Ask, and watch it being answered"), make("p", "", "A small model guesses ahead; the large one checks all guesses at once while they flow through its stages. The answer is the large model's own, token for token."), ideas);
    for (const idea of IDEAS) { const b = make("button", "", idea); b.type = "button"; b.onclick = () => this.send(idea); ideas.append(b); }
    return box;
  }
  message(m, i) {
    const box = make("article", "msg " + m.role), body = make("div", "body"), tools = make("div", "tools");
    box.setAttribute("aria-label", m.role === "user" ? "You" : m.role === "tool" ? `Result of ${m.name}` : "Answer");
    box.append(body, tools);
    body.dir = "auto";
    if (m.role === "assistant") this.fill(box, m); else body.textContent = m.content;
    if (m.role === "tool") box.prepend(make("p", "fine", `Result of ${m.name}`));
    this.tools(tools, m, i);
    if (m.calls && !this.running) this.answers(box, m, i);
    return box;
  }
  /* What an answer has so far: thoughts, text, calls of tools. */
  fill(box, m) {
    const body = box.querySelector(".body");
    let thought = box.querySelector(".thought"), calls = box.querySelector(".calls");
    if (m.thought && !thought) {
      thought = make("details", "thought");
      thought.append(make("summary", "", "Thoughts"), make("p"));
      body.before(thought);
    }
    if (m.thought) thought.lastChild.textContent = m.thought;
    render(body, m.json && m.content ? block(json(m.content)) : m.content);
    if (m.calls && !calls) { calls = make("div", "calls"); body.after(calls); }
    (m.calls ?? []).forEach((c, i) => {
      let card = calls.children[i];
      if (!card) {
        card = make("div", "call");
        card.setAttribute("role", "group");
        card.append(make("p", "name"), make("div", "body"));
        calls.append(card);
      }
      card.setAttribute("aria-label", `Call of ${c.name}`);
      card.firstChild.textContent = `Calls ${c.name}`;
      render(card.querySelector(".body"), block(json(c.arguments)));
    });
  }
  /* Boxes for the results of the newest answer's calls. */
  answers(box, m, at) {
    const given = this.messages.slice(at + 1);
    if (!given.every(r => r.role === "tool")) return;
    m.calls.forEach((c, i) => {
      if (given.some(r => r.id === c.id)) return;
      const label = make("label", "result", `Result of ${c.name}`), area = make("textarea"), ok = make("button", "main", "Send result");
      area.rows = 2;
      ok.type = "button";
      ok.onclick = () => { if (!this.running && area.value.trim()) this.result(m, at, { role: "tool", id: c.id, name: c.name, content: area.value }); };
      label.append(area);
      box.querySelector(".calls").children[i].append(label, ok);
    });
  }
  result(m, at, r) {
    this.messages.push(r);
    const all = m.calls.every(c => this.messages.slice(at + 1).some(x => x.id === c.id));
    this.store.touch();
    this.draw();
    return all ? this.reply() : undefined;
  }
  tools(to, m, i) {
    const last = i === this.messages.length - 1;
    const button = (name, text, run) => { const b = make("button", "", text); b.type = "button"; b.dataset.do = name; b.onclick = run; to.append(b); };
    to.replaceChildren();
    if (m.content) { const c = copyButton(() => m.content); c.dataset.do = "copy"; to.append(c); }
    if (m.role === "user") button("edit", "Edit", () => this.edit(i));
    if (m.role === "assistant" && last) button("again", "Regenerate", () => this.again());
    if (m.error) to.append(make("span", "error", m.error));
    if (m.stopped) to.append(make("span", "fine", "stopped"));
    if (m.timings) to.append(make("span", "fine", words(m.timings)));
  }
  fit() {
    const t = $("text");
    t.style.height = "auto";
    t.style.height = t.scrollHeight + "px";
  }

  /* ---- what one can do ---- */

  send(given) {
    const text = (given ?? $("text").value).trim();
    if (!text || this.running) return;
    if (given === undefined) $("text").value = "";
    this.messages.push({ role: "user", content: text });
    this.draw();
    return this.reply();
  }
  stop() { this.running?.abort(); }
  again() {
    if (this.running) return;
    if (this.messages.at(-1)?.role === "assistant") this.messages.pop();
    this.draw();
    return this.reply();
  }
  edit(i) {
    if (this.running) return;
    const box = $("talk").children[i], area = make("textarea", "edit"), row = make("div", "row"), ok = make("button", "main", "Send"), no = make("button", "", "Cancel");
    ok.type = no.type = "button";
    area.value = this.messages[i].content;
    area.setAttribute("aria-label", "Edit the message");
    row.append(ok, no);
    box.replaceChildren(area, row);
    area.focus();
    no.onclick = () => { this.draw(); $("text").focus(); };
    ok.onclick = () => { const text = area.value; if (!text.trim()) return; this.messages.length = i; this.send(text); };
    area.onkeydown = e => { if (e.key === "Escape") { e.stopPropagation(); no.click(); } if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); ok.click(); } };
  }
  request() {
    const s = this.store.settings, system = s.system.trim();
    const messages = this.messages.filter(m => m.content || m.calls).map(m => {
      if (m.role === "tool") return { role: m.role, tool_call_id: m.id, name: m.name, content: m.content };
      if (!m.calls) return { role: m.role, content: m.content };
      return { role: m.role, content: m.content || null, tool_calls: m.calls.map(c => ({ id: c.id, type: "function", function: { name: c.name, arguments: c.arguments } })) };
    });
    const schema = parsed(s.schema), tools = parsed(s.tools);
    return { ...s.sampling, ...(schema && { response_format: { type: "json_schema", json_schema: { name: "reply", schema } } }), ...(tools && { tools }),
      messages: system ? [{ role: "system", content: system }, ...messages] : messages };
  }

  /* ---- a reply ---- */

  show(on) {
    $("send").textContent = on ? "Stop" : "Send";
    $("send").classList.toggle("main", !on);
    document.body.classList.toggle("busy", on);
  }
  async reply() {
    const request = this.request(), chat = this.store.current, m = { role: "assistant", content: "" }, at = this.messages.push(m) - 1;
    if (request.response_format) m.json = true;
    const box = this.message(m, at), body = box.querySelector(".body"), talk = $("talk");
    let drawn = 0, finish = "";
    const paint = () => {
      drawn = 0;
      const down = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
      this.fill(box, m);
      if (down) talk.scrollTop = talk.scrollHeight;
    };
    body.classList.add("waits");
    box.lastChild.replaceChildren();
    talk.append(box);
    talk.scrollTop = talk.scrollHeight;
    this.store.touch();
    this.on.changed();
    const running = this.running = new AbortController();
    this.show(true);
    try {
      for await (const e of complete(request, running.signal)) {
        if (e.text) { m.content += e.text; this.speaker.add(e.text); drawn ||= requestAnimationFrame(paint); this.store.saveSoon(); }
        if (e.thought) { m.thought = (m.thought ?? "") + e.thought; drawn ||= requestAnimationFrame(paint); }
        if (e.call) {
          const calls = m.calls ??= [], { index, id, name } = e.call;
          while (calls.length <= Math.min(index, 127)) calls.push({ id: "", name: "", arguments: "" });
          const c = calls[Math.min(index, 127)];
          if (id) c.id = id;
          if (name) { c.name = name; this.speaker.add(`Calls ${name}. `); }
          c.arguments += e.call.arguments;
          drawn ||= requestAnimationFrame(paint);
          this.store.saveSoon();
        }
        if (e.timings) m.timings = e.timings;
        if (e.finish) finish = e.finish;
      }
    } catch (e) {
      if (e.name === "AbortError") m.stopped = true; else m.error = e.message || "the connection broke";
    }
    cancelAnimationFrame(drawn);
    this.running = null;
    this.show(false);
    body.classList.remove("waits");
    paint();
    this.speaker.end();
    if (chat === this.store.current) { this.tools(box.lastChild, m, at); if (m.calls) this.answers(box, m, at); if (talk.scrollHeight - talk.scrollTop - talk.clientHeight < 120) talk.scrollTop = talk.scrollHeight; }
    this.store.save();
    this.on.changed();
    if (m.timings && !m.stopped && !m.error && !m.calls) this.on.reply(request, m.content, m.timings, finish);
  }
}

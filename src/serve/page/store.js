/* What stays in the browser: conversations and settings. A full or forbidden storage loses only what does not fit. */
const CHATS = "pipedec.chats", SETTINGS = "pipedec.settings", MOST = 200;

function read(name, otherwise) {
  try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
}

function write(name, value) {
  try { localStorage.setItem(name, JSON.stringify(value)); return true; } catch { return false; }
}

const isCall = c => c && ["id", "name", "arguments"].every(k => typeof c[k] === "string");
const isMessage = m => m && ["user", "assistant", "tool"].includes(m.role) && typeof m.content === "string" &&
  (m.calls === undefined || (Array.isArray(m.calls) && m.calls.every(isCall)));
const isChat = c => c && typeof c.id === "string" && Array.isArray(c.messages) && c.messages.every(isMessage);

export class Store {
  constructor() {
    const saved = read(CHATS, {});
    this.chats = Array.isArray(saved.chats) ? saved.chats.filter(isChat) : [];
    this.current = this.chats.find(c => c.id === saved.current) || null;
    this.settings = { sampling: {}, system: "", theme: "", schema: "", tools: "", ...read(SETTINGS, {}) };
    for (const name of ["schema", "tools"]) if (typeof this.settings[name] !== "string") this.settings[name] = "";
    if (!this.current) this.begin();
    addEventListener("pagehide", () => this.save());
  }
  begin() {
    if (this.current && !this.current.messages.length) return this.current;
    this.current = { id: crypto.randomUUID?.() ?? String(Date.now() + Math.random()), title: "", updated: Date.now(), messages: [] };
    this.chats.unshift(this.current);
    return this.current;
  }
  choose(id) { this.current = this.chats.find(c => c.id === id) || this.current; this.save(); }
  drop(id) {
    this.chats = this.chats.filter(c => c.id !== id);
    if (this.current.id === id) { this.current = null; this.current = this.chats[0] || null; if (!this.current) this.begin(); }
    this.save();
  }
  touch() {
    const c = this.current;
    c.updated = Date.now();
    if (!c.title) c.title = (c.messages[0]?.content || "").replace(/\s+/g, " ").slice(0, 60);
    this.chats = [c, ...this.chats.filter(x => x !== c)];
    this.saveSoon();
  }
  saveSoon() { this.timer ??= setTimeout(() => this.save(), 400); }
  save() {
    clearTimeout(this.timer);
    this.timer = undefined;
    let chats = this.chats.filter(c => c.messages.length).slice(0, MOST);
    while (!write(CHATS, { current: this.current.id, chats }) && chats.length > 1) chats = chats.slice(0, -1); /* the oldest go */
  }
  saveSettings() { write(SETTINGS, this.settings); }
}

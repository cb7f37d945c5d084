/* The page begins here: header, conversations, tips; then the conversation and the pipeline's view. */
import { getJson } from "./api.js";
import { Chat } from "./chat.js";
import { Live } from "./live.js";
import { settings } from "./settings.js";
import { Store } from "./store.js";
import { tips } from "./tips.js";

const $ = id => document.getElementById(id);
const store = new Store();
let live = null;

/* ---- the server's state ---- */

let timer;
function state(kind, text) { $("state").className = kind; if ($("state").textContent !== text) $("state").textContent = text; }

async function look() {
  clearTimeout(timer);
  try {
    const now = await getJson("pipeline");
    const what = now.total ? `${now.what} ${Math.round(100 * now.done / now.total)} %` : now.what;
    state(now.state, now.state === "ok" ? (now.waiting ? `${now.waiting} wait` : "ready") : what ? `${now.state}: ${what}` : now.state);
    $("model").textContent = now.model + (now.draft ? `, drafted by ${now.draft}` : "") + (now.stages.length ? `, ${now.stages.length} stages` : "");
    $("note").textContent = now.note;
    live.server(now);
  } catch (e) {
    state("", e instanceof TypeError ? "no answer" : e.message);
  }
  timer = setTimeout(look, document.hidden ? 10000 : $("state").className === "ok" ? 2000 : 500);
}

/* ---- conversations ---- */

function chats(chat) {
  const list = $("chats");
  list.replaceChildren();
  for (const c of store.chats) {
    if (!c.messages.length && c !== store.current) continue;
    const li = document.createElement("li"), open = document.createElement("button"), drop = document.createElement("button");
    open.type = drop.type = "button";
    open.className = "open";
    open.textContent = c.title || "New conversation";
    open.onclick = () => { if (chat.running) return; store.choose(c.id); chat.draw(); chats(chat); if (innerWidth < 992) show(false); };
    drop.className = "drop";
    drop.textContent = "✕";
    drop.setAttribute("aria-label", `Delete: ${open.textContent}`);
    drop.onclick = () => { if (chat.running) return; store.drop(c.id); chat.draw(); chats(chat); };
    li.className = c === store.current ? "now" : "";
    if (c === store.current) open.setAttribute("aria-current", "true");
    li.append(open, drop);
    list.append(li);
  }
}
function show(on) { $("list").hidden = !on; $("list-open").setAttribute("aria-expanded", on); }

function pane(name) {
  document.body.dataset.pane = name;
  for (const b of $("panes").children) b.setAttribute("aria-pressed", b.dataset.pane === name);
  dispatchEvent(new Event("resize"));
}

settings(store, look);
live = new Live(store);
const chat = new Chat(store, { changed: () => chats(chat), reply: (...all) => live.compare(...all) });
chats(chat);
$("list-open").onclick = () => show($("list").hidden);
$("new").onclick = () => { if (chat.running) return; store.begin(); chat.draw(); chats(chat); $("text").focus(); };
for (const b of $("panes").children) b.onclick = () => pane(b.dataset.pane);
addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
tips();
look();
if (innerWidth > 640) $("text").focus();

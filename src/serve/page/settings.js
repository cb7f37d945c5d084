/* The settings' dialog: system prompt, schema and tools, sampling, look, key. */
import { getJson, key, setKey } from "./api.js";

const $ = id => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed", "max_tokens"];

/* What is wrong with a field's text; "": nothing. */
const CHECKS = {
  schema: value => value && typeof value === "object" && !Array.isArray(value) ? "" : 'A schema is an object, such as {"type": "object", "properties": {...}}.',
  tools: value => Array.isArray(value) && value.every(t => t?.type === "function" && typeof t.function?.name === "string") ? "" :
    'Tools are a list of {"type": "function", "function": {"name": ..., "parameters": {...}}}.'
};
function wrong(name, text) {
  if (!text.trim()) return "";
  try { return CHECKS[name](JSON.parse(text)); } catch (e) { return `This is not JSON: ${e.message}.`; }
}
/* The value of a text that has been checked; undefined: none. */
export const parsed = text => { try { return text?.trim() ? JSON.parse(text) : undefined; } catch { return undefined; } };

export function applyTheme(theme) {
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.look = dark ? "dark" : "light";
  dispatchEvent(new Event("look"));
}

export function settings(store, onKey) {
  const dialog = $("settings"), form = $("settings-form"), field = name => form.elements[name];
  const say = (name, text) => { $(name + "-error").textContent = text; field(name).setAttribute("aria-invalid", text !== ""); };
  const held = () => {
    const s = store.settings, what = [s.schema.trim() && "replies keep to a schema", s.tools.trim() && "the model may call tools"].filter(Boolean).join(", ");
    $("held").hidden = !what;
    $("held-words").textContent = what && what[0].toUpperCase() + what.slice(1) + ".";
  };
  const fill = s => {
    for (const n of NUMBERS) field(n).value = s.sampling[n] ?? "";
    field("system").value = s.system;
    for (const n in CHECKS) { field(n).value = s[n]; say(n, ""); }
    $("held-fields").open = !!(s.schema || s.tools);
    field("theme").value = s.theme;
    field("key").value = key();
  };
  $("settings-open").onclick = async () => {
    fill(store.settings);
    dialog.showModal();
    try {
      const { default_generation_settings: { params } } = await getJson("props");
      for (const n of NUMBERS) if (params[n] !== undefined) field(n).placeholder = +params[n].toFixed(3);
    } catch { /* the server's defaults stay unsaid */ }
  };
  $("defaults").onclick = () => fill({ sampling: {}, system: "", theme: "", schema: "", tools: "" });
  form.onsubmit = e => {
    if (e.submitter?.value === "cancel") return;
    const bad = Object.keys(CHECKS).filter(n => { const text = wrong(n, field(n).value); say(n, text); return text; });
    if (bad.length) { e.preventDefault(); $("held-fields").open = true; field(bad[0]).focus(); return; }
    const sampling = {};
    for (const n of NUMBERS) if (field(n).value !== "" && Number.isFinite(+field(n).value)) sampling[n] = +field(n).value;
    Object.assign(store.settings, { sampling, system: field("system").value, theme: field("theme").value, schema: field("schema").value, tools: field("tools").value });
    store.saveSettings();
    held();
    applyTheme(store.settings.theme);
    if (field("key").value !== key()) { setKey(field("key").value); onKey(); }
  };
  $("held-off").onclick = () => { Object.assign(store.settings, { schema: "", tools: "" }); store.saveSettings(); held(); $("text").focus(); };
  held();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => applyTheme(store.settings.theme));
  applyTheme(store.settings.theme);
}

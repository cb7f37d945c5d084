/* The settings' dialog: system prompt, sampling, look, key. */
import { getJson, key, setKey } from "./api.js";

const $ = id => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed", "max_tokens"];

export function applyTheme(theme) {
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.look = dark ? "dark" : "light";
  dispatchEvent(new Event("look"));
}

export function settings(store, onKey) {
  const dialog = $("settings"), form = $("settings-form"), field = name => form.elements[name];
  const fill = s => {
    for (const n of NUMBERS) field(n).value = s.sampling[n] ?? "";
    field("system").value = s.system;
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
  $("defaults").onclick = () => fill({ sampling: {}, system: "", theme: "" });
  form.onsubmit = e => {
    if (e.submitter?.value === "cancel") return;
    const sampling = {};
    for (const n of NUMBERS) if (field(n).value !== "" && Number.isFinite(+field(n).value)) sampling[n] = +field(n).value;
    Object.assign(store.settings, { sampling, system: field("system").value, theme: field("theme").value });
    store.saveSettings();
    applyTheme(store.settings.theme);
    if (field("key").value !== key()) { setKey(field("key").value); onKey(); }
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => applyTheme(store.settings.theme));
  applyTheme(store.settings.theme);
}

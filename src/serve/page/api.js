/* The server: requests with the key, and streams of events. */
const KEY = "pipedec.key";

export const key = () => sessionStorage.getItem(KEY) || "";
export const setKey = value => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY));

export function headers(more = {}) {
  return key() ? { ...more, Authorization: "Bearer " + key() } : more;
}

async function failure(response) {
  const text = await response.text();
  try { return new Error(JSON.parse(text).error.message); } catch { return new Error(`the server answers ${response.status}`); }
}

export async function getJson(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await failure(response);
  return response.json();
}

/* The data of each server-sent event, parsed. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts)
        if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export async function openEvents(path, signal) {
  const response = await fetch(path, { headers: headers(), signal, cache: "no-store" });
  if (!response.ok) throw await failure(response);
  return events(response);
}

/* A reply: yields { text }, { thought }, { call } (its index; id and name at first, then pieces of its arguments), { finish }, { timings }. */
export async function* complete(body, signal) {
  const response = await fetch("v1/chat/completions", { method: "POST", signal, headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }) });
  if (!response.ok) throw await failure(response);
  for await (const e of events(response)) {
    if (e.error) throw new Error(e.error.message);
    const choice = e.choices?.[0];
    if (choice?.delta?.reasoning_content) yield { thought: choice.delta.reasoning_content };
    for (const c of choice?.delta?.tool_calls ?? []) yield { call: { index: c.index, id: c.id, name: c.function?.name, arguments: c.function?.arguments ?? "" } };
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (e.timings) yield { timings: e.timings };
  }
}

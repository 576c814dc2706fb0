// Client of the server's OpenAI-compatible API.

/** An error response of the server; `status` is 0 if it cannot be reached. */
export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let key = sessionStorage.getItem("visualchat-key") ?? "";

export function setKey(value) {
  key = value.trim();
  sessionStorage.setItem("visualchat-key", key); // kept until the tab is closed
}

export const hasKey = () => key !== "";

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  let details = {};
  try {
    details = (await response.json()).error ?? {};
  } catch { /* not JSON: the response of a proxy, for instance */ }
  throw new ApiError(details.message ?? `The server answered with status ${response.status}.`, response.status, details.code);
}

export const about = async () => (await call("about")).json();
export const fetchImage = async (path) => (await call(path)).blob();

/** Upload an image; returns its id. */
export async function upload(blob, name) {
  const form = new FormData();
  form.append("purpose", "vision");
  form.append("file", blob, name);
  return (await (await call("v1/files", { method: "POST", body: form })).json()).id;
}

/** Request an answer and yield its deltas: {text}, and at the end {finish} and {usage}. */
export async function* streamAnswer(body, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) throw new ApiError("The connection was lost in the middle of the answer.");
      const events = (buffer + value).split("\n\n");
      buffer = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) continue;
        if (event === "data: [DONE]") return;
        const data = JSON.parse(event.slice(6));
        if (data.error) throw new ApiError(data.error.message, response.status, data.error.code);
        if (data.usage) yield { usage: data.usage };
        for (const { delta, finish_reason: finish } of data.choices) {
          if (delta.content) yield { text: delta.content };
          if (finish) yield { finish };
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

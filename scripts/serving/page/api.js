// Talking to the server: OpenAI's interface, which any other client may use as well.

/** What the server says went wrong; `status` is 0 where it cannot be reached. */
export class Refusal extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let key = sessionStorage.getItem("visualchat-key") ?? "";

export function setKey(value) {
  key = value.trim();
  sessionStorage.setItem("visualchat-key", key); // gone with the tab
}

export const hasKey = () => key !== "";

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached. Is it still running?");
  }
  if (answer.ok) return answer;
  let wrong = {};
  try {
    wrong = (await answer.json()).error ?? {};
  } catch { /* not from our server */ }
  throw new Refusal(wrong.message ?? `The server answered ${answer.status}.`, answer.status, wrong.code);
}

export const about = async () => (await call("about")).json();
export const picture = async (path) => (await call(path)).blob();

/** Upload an image; returns its id. */
export async function upload(blob, name) {
  const form = new FormData();
  form.append("purpose", "vision");
  form.append("file", blob, name);
  return (await (await call("v1/files", { method: "POST", body: form })).json()).id;
}

/** Ask for an answer and yield its pieces: {text}, and at the end {finish} and {usage}. */
export async function* ask(body, signal) {
  const answer = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) throw new Refusal("The connection broke off in the middle of the answer.");
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) continue;
        if (event === "data: [DONE]") return;
        const data = JSON.parse(event.slice(6));
        if (data.error) throw new Refusal(data.error.message, answer.status, data.error.code);
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

// The conversation: questions with images, and for each the answers of one model, or of two side by side.
//
// A turn is {images, parts, answers}; `answers` holds {text, state, note, error} by model name, whose state is busy,
// done, stopped or failed. Every request has the whole conversation with that model; the server caches what it has
// computed before.

import * as api from "./api.js";
import * as composer from "./composer.js";
import { attentionName, introduce } from "./intro.js";

const { element } = composer;
const $ = (id) => document.getElementById(id);
const EMPTY = "(no answer)"; // an empty answer is not a valid message of a conversation

let models = [];
let examples = [];
let turns = [];
let suggestions = []; // further questions of an example
let editing = null; // the index of the turn that is being edited
let running = null; // the AbortController of the answers that are being generated

const shownImages = (end = turns.length) => turns.slice(0, end).flatMap((turn) => turn.images);
const selectedModels = () => {
  const names = [$("model-a").value];
  if ($("model-b").value) names.push($("model-b").value);
  return names;
};
const notice = (text = "") => { $("notice").textContent = text; };

/** A question as the model reads it; chips become the names of their images. */
function content(turn, index) {
  const all = shownImages(index + 1);
  const text = turn.parts.map((part) => part.text ?? `image ${all.indexOf(part.image) + 1}`).join("");
  const parts = turn.images.map((image) => ({ type: "file", file: { file_id: image.file } }));
  return text ? [...parts, { type: "text", text }] : parts;
}

function messages(name, last) {
  const system = $("system").value.trim();
  const history = system ? [{ role: "system", content: system }] : [];
  for (const [index, turn] of turns.slice(0, last + 1).entries()) {
    history.push({ role: "user", content: content(turn, index) });
    if (index < last) history.push({ role: "assistant", content: turn.answers[name]?.text || EMPTY });
  }
  return history;
}

/** Let every selected model answer the turn at `index`, at the same time. */
async function answer(index, options = {}) {
  const turn = turns[index];
  running = new AbortController();
  const { signal } = running;
  notice();
  for (const name of selectedModels()) turn.answers[name] = { text: "", state: "busy", note: "", error: "" };
  draw();
  await Promise.all(selectedModels().map((name) => answerWith(name, index, options, signal)));
  running = null;
  draw();
}

async function answerWith(name, index, options, signal, retry = true) {
  const result = turns[index].answers[name];
  const started = performance.now();
  let usage = null;
  const body = {
    model: name,
    messages: messages(name, index),
    max_tokens: Number($("tokens").value) || 256,
    temperature: Number($("temperature").value),
    ...options,
  };
  try {
    for await (const delta of api.streamAnswer(body, signal)) {
      if (delta.text) result.text += delta.text;
      if (delta.usage) usage = delta.usage;
      if (delta.finish === "length") result.note = "cut at the maximum length \u00b7 ";
      paint(index, name);
    }
    result.state = "done";
    const seconds = ((performance.now() - started) / 1000).toFixed(2);
    result.note += `${usage?.completion_tokens ?? "?"} tokens in ${seconds} s`;
    const cached = usage?.prompt_tokens_details?.cached_tokens ?? 0;
    if (cached) result.note += `, ${cached} of ${usage.prompt_tokens} prompt tokens cached`;
  } catch (error) {
    if (error.name === "AbortError") result.state = "stopped";
    else if (error.code === "file_not_found" && retry) {
      // The server drops uploads when its memory is full: upload the images again.
      for (const image of shownImages(index + 1)) image.file = await api.upload(image.blob, image.name);
      return answerWith(name, index, options, signal, false);
    } else {
      result.state = "failed";
      result.error = error.message;
      if (error.status === 401) $("settings").showModal();
      if (!(error instanceof api.ApiError)) console.error(error);
    }
  }
  paint(index, name);
}

async function send() {
  if (running || composer.isEmpty()) return;
  if (!composer.ready()) return notice("An image is still being uploaded; try again in a moment.");
  if (editing !== null) {
    turns.length = editing;
    editing = null;
  }
  const parts = composer.parts();
  turns.push({ images: composer.images(), parts, answers: {} });
  const text = parts.map((part) => part.text ?? "").join("");
  suggestions = suggestions.filter((question) => question !== text);
  composer.clear();
  await answer(turns.length - 1);
}

async function startExample(blobs, questions) {
  if (running) return;
  reset();
  suggestions = questions.slice(1);
  await composer.addFiles(blobs.map((blob, n) => new File([blob], `example ${n + 1}`, { type: blob.type })));
  if (composer.images().length !== blobs.length) return;
  composer.fill(composer.images(), [{ text: questions[0] }]);
  await send();
}

function edit(index) {
  if (running) return;
  editing = index;
  composer.setEarlier(shownImages(index));
  composer.fill(turns[index].images, turns[index].parts);
  draw();
  $("text").focus();
}

function regenerate(index) {
  if (running) return;
  turns.length = index + 1;
  // Greedy decoding would give the same answer again, so the new one is sampled.
  const temperature = Math.max(Number($("temperature").value), 0.8);
  answer(index, { temperature, top_p: 0.95, seed: Math.floor(Math.random() * 2 ** 31) });
}

function reset() {
  running?.abort();
  turns = [];
  suggestions = [];
  editing = null;
  composer.clear();
  notice();
  draw();
}

// Display ------------------------------------------------------------------------------------------------------

function draw() {
  const names = selectedModels();
  document.body.classList.toggle("two", names.length > 1);
  $("intro").hidden = turns.length > 0 || !models.length;
  $("new").disabled = turns.length === 0;
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("editing").hidden = editing === null;
  if (editing !== null) $("editing").firstElementChild.textContent = `Editing question ${editing + 1}: sending it removes the later rounds.`;
  composer.setEarlier(shownImages(editing ?? turns.length));
  const described = names.map((name) => models.find((model) => model.id === name)).filter(Boolean);
  $("badge").textContent = `attention: ${[...new Set(described.map((model) => model.attention))].join(" / ")}`;
  $("badge").hidden = !described.length;
  $("badge").title = described.map((model) => `${model.id}: ${attentionName(model)}`).join("\n");
  $("log").replaceChildren(...turns.map(drawTurn));
  $("suggestions").replaceChildren(
    ...(running || editing !== null || !turns.length ? [] : suggestions).map((question) => {
      const button = element("button", { type: "button", textContent: question });
      button.onclick = () => {
        composer.fill(composer.images(), [{ text: question }]);
        send();
      };
      return button;
    }),
  );
  if (turns.length) $("scroll").scrollTop = $("scroll").scrollHeight;
}

function drawTurn(turn, index) {
  const all = shownImages(index + 1);
  const shown = turn.images.map((image) => {
    const picture = element("img", { src: image.url, alt: image.name, title: "Enlarge" });
    picture.onclick = () => view(image, all.indexOf(image) + 1);
    return element("figure", {}, picture, element("figcaption", { textContent: `image ${all.indexOf(image) + 1}` }));
  });
  const text = element("div", { className: "text" });
  for (const part of turn.parts) {
    if (part.text !== undefined) text.append(part.text);
    else text.append(element("span", { className: "chip" }, element("img", { src: part.image.url, alt: "" }), `image ${all.indexOf(part.image) + 1}`));
  }
  const mine = element("div", { className: "mine" });
  if (shown.length) mine.append(element("div", { className: "shown" }, ...shown));
  mine.append(text);
  const tools = element("div", { className: "tools" });
  const tool = (label, action) => {
    const button = element("button", { type: "button", className: "plain", textContent: label, onclick: action });
    button.disabled = running !== null;
    return button;
  };
  tools.append(tool("Edit", () => edit(index)));
  const answers = element("div", { className: "answers" });
  const names = Object.keys(turn.answers).filter((name) => selectedModels().includes(name));
  for (const name of names.length ? names : Object.keys(turn.answers)) {
    const box = element("div", { className: "answer" });
    box.dataset.model = name;
    box.dataset.index = index;
    fillAnswer(box, turn.answers[name], name);
    answers.append(box);
  }
  const below = element("div", { className: "tools" });
  if (index === turns.length - 1 && !running) below.append(tool("Regenerate", () => regenerate(index)));
  return element("li", { className: "turn" }, mine, tools, answers, below);
}

function fillAnswer(box, result, name) {
  box.className = `answer ${result.state}`;
  const note = { busy: "", stopped: "stopped", failed: "" }[result.state] ?? result.note;
  box.replaceChildren(
    element("div", { className: "who" }, element("span", { textContent: name }), element("span", { textContent: note })),
    element("div", { className: "text", textContent: result.text || (result.state === "done" ? EMPTY : "") }),
  );
  if (result.error) box.append(element("p", { className: "error", textContent: result.error }));
}

/** Update one answer without redrawing everything. */
function paint(index, name) {
  const box = [...document.querySelectorAll(".answer")].find((one) => one.dataset.model === name && one.dataset.index === String(index));
  const scroll = $("scroll");
  const below = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
  if (box) fillAnswer(box, turns[index].answers[name], name);
  if (below) scroll.scrollTop = scroll.scrollHeight;
}

function view(image, number) {
  const dialog = element("dialog", { className: "viewer" });
  const name = element("button", { type: "button", className: "plain", textContent: "Name it in the question" });
  name.onclick = () => { dialog.close(); composer.nameImage(image); };
  const close = element("button", { type: "button", className: "plain", textContent: "Close", onclick: () => dialog.close() });
  dialog.append(element("img", { src: image.url, alt: image.name }), `image ${number}: ${image.name} `, name, close);
  dialog.onclose = () => dialog.remove();
  document.body.append(dialog);
  dialog.showModal();
}

// Start ---------------------------------------------------------------------------------------------------------

async function start() {
  try {
    const about = await api.about();
    models = about.models;
    examples = about.examples;
    composer.setUp({ limits: about.limits, report: notice });
  } catch (error) {
    notice(error.message);
    if (error.status === 401) $("settings").showModal();
    return;
  }
  const options = () => models.map((model) => element("option", { value: model.id, textContent: model.id }));
  $("model-a").replaceChildren(...options());
  $("model-b").replaceChildren(element("option", { value: "", textContent: "none" }), ...options());
  $("versus").hidden = models.length < 2;
  choose();
}

function choose() {
  const first = models.find((model) => model.id === $("model-a").value);
  if ($("model-b").value === first.id) $("model-b").value = "";
  for (const option of $("model-b").options) option.disabled = option.value === first.id;
  introduce($("intro"), first, examples, startExample);
  draw();
}

$("model-a").onchange = $("model-b").onchange = choose;
$("new").onclick = reset;
$("stop").onclick = () => running?.abort();
$("edit-cancel").onclick = () => { editing = null; composer.clear(); draw(); };
$("composer").onsubmit = (event) => { event.preventDefault(); send(); };
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
};
$("text").addEventListener("input", () => notice());
$("settings-open").onclick = () => $("settings").showModal();
$("temperature").oninput = () => { $("temperature-shown").textContent = $("temperature").value; };
$("settings").onclose = () => {
  const key = $("key").value;
  if (!key && models.length) return;
  if (key) api.setKey(key);
  $("key").value = "";
  if (!models.length && api.hasKey()) start();
};
start();

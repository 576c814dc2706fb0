// The conversation: questions with images, and for each the answer of one model or of two side by side.
//
// A turn is {images, parts, answers}; `answers` holds for each model's name {text, state, note, error}, whose state is
// busy, done, stopped or failed. What is sent is always the whole conversation as one model has seen it; the server
// recognises what it has computed before.

import * as api from "./api.js";
import * as composer from "./composer.js";
import { attentionName, introduce } from "./intro.js";

const { element } = composer;
const $ = (id) => document.getElementById(id);
const SILENT = "(no answer)"; // an answer without a word would not be a round of a conversation

let models = [];
let examples = [];
let turns = [];
let next = []; // questions that an example goes on with
let editing = null; // the place of the turn that is being edited
let running = null; // what stops the answers that are being made

const shownImages = (end = turns.length) => turns.slice(0, end).flatMap((turn) => turn.images);
const chosen = () => {
  const names = [$("model-a").value];
  if ($("model-b").value) names.push($("model-b").value);
  return names;
};
const notice = (text = "") => { $("notice").textContent = text; };

/** A question as the model reads it; chips become the names of their images. */
function content(turn, place) {
  const all = shownImages(place + 1);
  const words = turn.parts.map((part) => part.text ?? `image ${all.indexOf(part.image) + 1}`).join("");
  const parts = turn.images.map((image) => ({ type: "file", file: { file_id: image.file } }));
  return words ? [...parts, { type: "text", text: words }] : parts;
}

function messages(name, last) {
  const system = $("system").value.trim();
  const said = system ? [{ role: "system", content: system }] : [];
  for (const [place, turn] of turns.slice(0, last + 1).entries()) {
    said.push({ role: "user", content: content(turn, place) });
    if (place < last) said.push({ role: "assistant", content: turn.answers[name]?.text || SILENT });
  }
  return said;
}

/** Let every chosen model answer the turn at `place`, at the same time. */
async function answer(place, options = {}) {
  const turn = turns[place];
  running = new AbortController();
  const { signal } = running;
  notice();
  for (const name of chosen()) turn.answers[name] = { text: "", state: "busy", note: "", error: "" };
  draw();
  await Promise.all(chosen().map((name) => one(name, place, options, signal)));
  running = null;
  draw();
}

async function one(name, place, options, signal, again = true) {
  const made = turns[place].answers[name];
  const begun = performance.now();
  let first = null;
  let usage = null;
  const body = {
    model: name,
    messages: messages(name, place),
    max_tokens: Number($("tokens").value) || 256,
    temperature: Number($("temperature").value),
    ...options,
  };
  try {
    for await (const piece of api.ask(body, signal)) {
      first ??= performance.now();
      if (piece.text) made.text += piece.text;
      if (piece.usage) usage = piece.usage;
      if (piece.finish === "length") made.note = "cut at the longest answer allowed \u00b7 ";
      paint(place, name);
    }
    made.state = "done";
    const seconds = ((performance.now() - begun) / 1000).toFixed(2);
    made.note += `${usage?.completion_tokens ?? "?"} tokens in ${seconds} s`;
    const known = usage?.prompt_tokens_details?.cached_tokens ?? 0;
    if (known) made.note += `, ${known} of ${usage.prompt_tokens} read before`;
  } catch (error) {
    if (error.name === "AbortError") made.state = "stopped";
    else if (error.code === "file_not_found" && again) {
      // The server keeps uploads only while there is room: show the images again.
      for (const image of shownImages(place + 1)) image.file = await api.upload(image.blob, image.name);
      return one(name, place, options, signal, false);
    } else {
      made.state = "failed";
      made.error = error.message;
      if (error.status === 401) $("settings").showModal();
      if (!(error instanceof api.Refusal)) console.error(error);
    }
  }
  paint(place, name);
}

async function send() {
  if (running || composer.isEmpty()) return;
  if (!composer.ready()) return notice("An image is still on its way; try again in a moment.");
  if (editing !== null) {
    turns.length = editing;
    editing = null;
  }
  const parts = composer.parts();
  turns.push({ images: composer.images(), parts, answers: {} });
  const words = parts.map((part) => part.text ?? "").join("");
  next = next.filter((question) => question !== words);
  composer.clear();
  await answer(turns.length - 1);
}

async function begin(blobs, questions) {
  if (running) return;
  reset();
  next = questions.slice(1);
  await composer.addFiles(blobs.map((blob, n) => new File([blob], `example ${n + 1}`, { type: blob.type })));
  if (composer.images().length !== blobs.length) return;
  composer.fill(composer.images(), [{ text: questions[0] }]);
  await send();
}

function edit(place) {
  if (running) return;
  editing = place;
  composer.setEarlier(shownImages(place));
  composer.fill(turns[place].images, turns[place].parts);
  draw();
  $("text").focus();
}

function regenerate(place) {
  if (running) return;
  turns.length = place + 1;
  // The likeliest answer would be the same again, so it is drawn.
  const temperature = Math.max(Number($("temperature").value), 0.8);
  answer(place, { temperature, top_p: 0.95, seed: Math.floor(Math.random() * 2 ** 31) });
}

function reset() {
  running?.abort();
  turns = [];
  next = [];
  editing = null;
  composer.clear();
  notice();
  draw();
}

// What is seen ------------------------------------------------------------------------------------------------------

function draw() {
  const names = chosen();
  document.body.classList.toggle("two", names.length > 1);
  $("intro").hidden = turns.length > 0 || !models.length;
  $("new").disabled = turns.length === 0;
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("editing").hidden = editing === null;
  if (editing !== null) $("editing").firstElementChild.textContent = `Editing question ${editing + 1}: sending it takes back what followed.`;
  composer.setEarlier(shownImages(editing ?? turns.length));
  const described = names.map((name) => models.find((model) => model.id === name)).filter(Boolean);
  $("badge").textContent = `attention: ${[...new Set(described.map((model) => model.attention))].join(" / ")}`;
  $("badge").hidden = !described.length;
  $("badge").title = described.map((model) => `${model.id}: ${attentionName(model)}`).join("\n");
  $("log").replaceChildren(...turns.map(drawTurn));
  $("suggestions").replaceChildren(
    ...(running || editing !== null || !turns.length ? [] : next).map((question) => {
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

function drawTurn(turn, place) {
  const all = shownImages(place + 1);
  const shown = turn.images.map((image) => {
    const picture = element("img", { src: image.url, alt: image.name, title: "Look at it" });
    picture.onclick = () => view(image, all.indexOf(image) + 1);
    return element("figure", {}, picture, element("figcaption", { textContent: `image ${all.indexOf(image) + 1}` }));
  });
  const words = element("div", { className: "said" });
  for (const part of turn.parts) {
    if (part.text !== undefined) words.append(part.text);
    else words.append(element("span", { className: "chip" }, element("img", { src: part.image.url, alt: "" }), `image ${all.indexOf(part.image) + 1}`));
  }
  const mine = element("div", { className: "mine" });
  if (shown.length) mine.append(element("div", { className: "shown" }, ...shown));
  mine.append(words);
  const tools = element("div", { className: "tools" });
  const tool = (label, action) => {
    const button = element("button", { type: "button", className: "plain", textContent: label, onclick: action });
    button.disabled = running !== null;
    return button;
  };
  tools.append(tool("Edit", () => edit(place)));
  const answers = element("div", { className: "answers" });
  const names = Object.keys(turn.answers).filter((name) => chosen().includes(name));
  for (const name of names.length ? names : Object.keys(turn.answers)) {
    const box = element("div", { className: "answer" });
    box.dataset.model = name;
    box.dataset.place = place;
    fillAnswer(box, turn.answers[name], name);
    answers.append(box);
  }
  const below = element("div", { className: "tools" });
  if (place === turns.length - 1 && !running) below.append(tool("Regenerate", () => regenerate(place)));
  return element("li", { className: "turn" }, mine, tools, answers, below);
}

function fillAnswer(box, made, name) {
  box.className = `answer ${made.state}`;
  const note = { busy: "", stopped: "stopped", failed: "" }[made.state] ?? made.note;
  box.replaceChildren(
    element("div", { className: "who" }, element("span", { textContent: name }), element("span", { textContent: note })),
    element("div", { className: "said", textContent: made.text || (made.state === "done" ? SILENT : "") }),
  );
  if (made.error) box.append(element("p", { className: "wrong", textContent: made.error }));
}

/** Show what came of one answer without drawing everything anew. */
function paint(place, name) {
  const box = [...document.querySelectorAll(".answer")].find((one) => one.dataset.model === name && one.dataset.place === String(place));
  const scroll = $("scroll");
  const below = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
  if (box) fillAnswer(box, turns[place].answers[name], name);
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

// Beginning ---------------------------------------------------------------------------------------------------------

async function start() {
  try {
    const told = await api.about();
    models = told.models;
    examples = told.examples;
    composer.setUp({ limits: told.limits, report: notice });
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
  introduce($("intro"), first, examples, begin);
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
  const given = $("key").value;
  if (!given && models.length) return;
  if (given) api.setKey(given);
  $("key").value = "";
  if (!models.length && api.hasKey()) start();
};
start();

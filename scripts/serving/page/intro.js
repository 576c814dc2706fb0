// What a newcomer reads: what this model is, what it was trained on, how well it sees, and pictures to begin with.

import { picture } from "./api.js";
import { element } from "./composer.js";

const ATTENTION = {
  mmca: [
    "MMCA, multi-modal causal attention",
    "A word reads the words before it and, apart from them, the images before it, and adds up what it found. An image "
      + "reads nothing but itself. So an image is computed once, however often and wherever it is shown.",
  ],
  causal: [
    "causal attention",
    "Words and images stand in one line, and each reads everything before it, as in an ordinary language model.",
  ],
  dattn: [
    "D-Attn, decomposed attention",
    "As in causal attention a word reads words and images with one attention, but an image reads nothing but itself. So "
      + "an image is computed once, however often and wherever it is shown.",
  ],
};

const count = (value) => value.toLocaleString("en");
const size = (value) =>
  value >= 1e9 ? `${(value / 1e9).toFixed(1)} billion` : value >= 1e6 ? `${(value / 1e6).toFixed(1)} million` : count(value);
const percent = (share) => `${Math.round(100 * share)} %`;

export const attentionName = (model) => (ATTENTION[model.attention] ?? [model.attention])[0];

/** Fill `place` with the introduction; `begin(images, questions)` starts an example. */
export function introduce(place, model, examples, begin) {
  const [name, how] = ATTENTION[model.attention] ?? [model.attention, ""];
  place.replaceChildren(element("h1", { textContent: "Talk with a model about images" }));
  const tell = (...children) => place.append(element("p", {}, ...children));
  const conversations = model.conversations ? count(model.conversations) : null;
  if (model.miniature) {
    tell(
      "You are talking with ", element("b", { textContent: model.id }), `, a tiny VisualChat model (${size(model.parameters)} `
        + "parameters) that was trained on this machine in minutes, from nothing, in a miniature world of coloured shapes. It "
        + "tells what is where, which colour or shape, how many, and which image, in a word or two, over several images and "
        + "rounds. Of anything else it knows nothing.",
    );
  } else {
    tell(
      "You are talking with ", element("b", { textContent: model.id }), `, a VisualChat model (${size(model.parameters)} `
        + "parameters): a vision encoder, a projector and a language model that together answer questions about images, "
        + "several in one conversation, over many rounds.",
    );
  }
  if (examples.length) {
    tell(element("b", { textContent: "Begin with a picture it has never seen" }), ", or bring your own:");
    const cards = examples.map((example) => {
      const holder = element("span", { className: "pictures" });
      const card = element("button", { type: "button", className: "card" }, holder, element("span", { textContent: example.questions[0] }));
      card.disabled = true;
      Promise.all(example.images.map(picture)).then((blobs) => {
        holder.append(...blobs.map((blob) => element("img", { src: URL.createObjectURL(blob), alt: "" })));
        card.disabled = false;
        card.onclick = () => begin(blobs, example.questions);
      }).catch(() => card.remove());
      return card;
    });
    place.append(element("div", { className: "cards" }, ...cards));
  } else {
    tell("Add an image below, by the button, by dropping or by pasting it, and ask about it.");
  }

  const facts = [];
  const right = (model.right ?? {})[model.checkpoint];
  const groups = { one: "right about one image", several: "right about several images" };
  for (const [group, label] of Object.entries(groups)) {
    const [share, chance] = right?.[group] ?? [];
    if (share !== undefined) facts.push([percent(share), label + (chance ? ` (guessing: ${percent(chance)})` : "")]);
  }
  if (conversations) facts.push([conversations, `conversations in ${Object.keys(model.datasets).length} datasets, ${model.epochs} times`]);
  if (model.step) facts.push([count(model.step), `steps of training (the ${model.checkpoint} checkpoint)`]);
  place.append(element("ul", { className: "facts" }, ...facts.map(([value, label]) =>
    element("li", {}, element("b", { textContent: value }), element("span", { textContent: label })))));

  const more = element("details", {}, element("summary", { textContent: "How does it work, and what can I do here?" }));
  const say = (...children) => more.append(element("p", {}, ...children));
  say(element("b", { textContent: "Images. " }), "Show any number, in any round. Each gets a number that it keeps, so "
    + "\u201cimage 2\u201d means the same image later on. Click an image of your question, or drag it into the text, to name it there.");
  say(element("b", { textContent: "Answers. " }), "They appear as they are made, and can be stopped. A question can be edited, which "
    + "takes back what followed; an answer can be drawn anew.");
  say(element("b", { textContent: "Attention. " }), `This model uses ${name}. ${how}`);
  const parts = [`decoder ${model.decoder}`, `encoder ${model.encoder}`, `projector ${model.projector}`,
    `${model.image_tokens} tokens per image of ${model.image_side} \u00d7 ${model.image_side} pixels`, `context of ${count(model.context ?? 0)} tokens`];
  if (model.weights) parts.push(`weights ${model.weights}`);
  if (model.heldout_loss) parts.push(`held-out loss ${model.heldout_loss.toFixed(4)}`);
  say(element("b", { textContent: "Parts. " }), `${parts.join(", ")}.`);
  if (model.datasets) {
    const shares = Object.entries(model.datasets).map(([key, value]) => `${key} (${count(value)})`).join(", ");
    say(element("b", { textContent: "Training. " }), `Conversations of one pass by dataset${model.miniature ? ", each drawn in miniature" : ""}: ${shares}.`);
  }
  place.append(more);
  place.hidden = false;
}

// The introduction: what the model is, what it was trained on, its scores, and example images to start with.

import { fetchImage } from "./api.js";
import { element } from "./composer.js";

const ATTENTION = {
  mmca: [
    "MMCA, multi-modal causal attention",
    "A text token attends to the text before it and, separately, to the images before it; both results are added. An image "
      + "attends only to itself. So an image is computed once, however often and wherever it is shown.",
  ],
  causal: [
    "causal attention",
    "Text and images form one sequence, and each token attends to everything before it, as in an ordinary language model.",
  ],
  dattn: [
    "D-Attn, decomposed attention",
    "As in causal attention, a text token attends to text and images together, but an image attends only to itself. So "
      + "an image is computed once, however often and wherever it is shown.",
  ],
};

const count = (value) => value.toLocaleString("en");
const size = (value) =>
  value >= 1e9 ? `${(value / 1e9).toFixed(1)} billion` : value >= 1e6 ? `${(value / 1e6).toFixed(1)} million` : count(value);
const percent = (share) => `${Math.round(100 * share)} %`;

export const attentionName = (model) => (ATTENTION[model.attention] ?? [model.attention])[0];

/** Fill `container` with the introduction; `startExample(images, questions)` asks the questions of an example. */
export function introduce(container, model, examples, startExample) {
  const [name, description] = ATTENTION[model.attention] ?? [model.attention, ""];
  container.replaceChildren(element("h1", { textContent: "Chat with a model about images" }));
  const addParagraph = (...children) => container.append(element("p", {}, ...children));
  const conversations = model.conversations ? count(model.conversations) : null;
  if (model.miniature) {
    addParagraph(
      "This is ", element("b", { textContent: model.id }), `, a tiny VisualChat model (${size(model.parameters)} parameters) that `
        + "was trained from scratch on this machine in minutes, in a miniature world of coloured shapes. In a word or two it "
        + "answers what is where, which colour or shape, how many, and which image, over several images and rounds. It knows "
        + "nothing else.",
    );
  } else {
    addParagraph(
      "This is ", element("b", { textContent: model.id }), `, a VisualChat model (${size(model.parameters)} `
        + "parameters): a vision encoder, a projector and a language model that together answer questions about images, "
        + "several in one conversation, over many rounds.",
    );
  }
  if (examples.length) {
    addParagraph(element("b", { textContent: "Start with images it has never seen" }), ", or add your own:");
    const cards = examples.map((example) => {
      const holder = element("span", { className: "pictures" });
      const card = element("button", { type: "button", className: "card" }, holder, element("span", { textContent: example.questions[0] }));
      card.disabled = true;
      Promise.all(example.images.map(fetchImage)).then((blobs) => {
        holder.append(...blobs.map((blob) => element("img", { src: URL.createObjectURL(blob), alt: "" })));
        card.disabled = false;
        card.onclick = () => startExample(blobs, example.questions);
      }).catch(() => card.remove());
      return card;
    });
    container.append(element("div", { className: "cards" }, ...cards));
  } else {
    addParagraph("Add an image below with the button, or drop or paste it, and ask about it.");
  }

  const facts = [];
  const accuracy = (model.accuracy ?? {})[model.checkpoint];
  const groups = { one: "correct about one image", several: "correct about several images" };
  for (const [group, label] of Object.entries(groups)) {
    const [share, chance] = accuracy?.[group] ?? [];
    if (share !== undefined) facts.push([percent(share), label + (chance ? ` (chance: ${percent(chance)})` : "")]);
  }
  if (conversations) facts.push([conversations, `conversations of ${Object.keys(model.datasets).length} datasets, ${model.epochs} epochs`]);
  if (model.step) facts.push([count(model.step), `training steps (${model.checkpoint} checkpoint)`]);
  container.append(element("ul", { className: "facts" }, ...facts.map(([value, label]) =>
    element("li", {}, element("b", { textContent: value }), element("span", { textContent: label })))));

  const more = element("details", {}, element("summary", { textContent: "How does it work, and what can I do here?" }));
  const addDetail = (...children) => more.append(element("p", {}, ...children));
  addDetail(element("b", { textContent: "Images. " }), "Show any number, in any round. Each gets a number that it keeps, so "
    + "\u201cimage 2\u201d means the same image later on. Click an image of your question, or drag it into the text, to name it there.");
  addDetail(element("b", { textContent: "Answers. " }), "They appear while they are generated, and can be stopped. Editing a question removes "
    + "the later rounds; an answer can be regenerated with sampling.");
  addDetail(element("b", { textContent: "Attention. " }), `This model uses ${name}. ${description}`);
  const parts = [`decoder ${model.decoder}`, `encoder ${model.encoder}`, `projector ${model.projector}`,
    `${model.image_tokens} tokens per image of ${model.image_side} \u00d7 ${model.image_side} pixels`, `context of ${count(model.context ?? 0)} tokens`];
  if (model.weights) parts.push(`weights ${model.weights}`);
  if (model.heldout_loss) parts.push(`held-out loss ${model.heldout_loss.toFixed(4)}`);
  addDetail(element("b", { textContent: "Parts. " }), `${parts.join(", ")}.`);
  if (model.datasets) {
    const shares = Object.entries(model.datasets).map(([key, value]) => `${key} (${count(value)})`).join(", ");
    addDetail(element("b", { textContent: "Training. " }), `Conversations of one epoch by dataset${model.miniature ? ", each a miniature version" : ""}: ${shares}.`);
  }
  container.append(more);
  container.hidden = false;
}

// The question that is being written: a tray of new images, and a text that may name images.
//
// An image keeps its number for the whole conversation. In the text a chip names it, which the model reads as "image 2";
// the images themselves come before the question, as in training.

import { ApiError, upload } from "./api.js";

const $ = (id) => document.getElementById(id);
const text = $("text");

/** Images in the tray: {blob, name, url, file} with `file` the id of the upload. */
let tray = [];
let earlier = []; // the images of earlier turns
let limits = { images: 32, image: 20 << 20 };
let report = () => {};

export const element = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};

export function setUp(options) {
  limits = options.limits;
  report = options.report;
}

/** Set the images that earlier turns have shown. */
export function setEarlier(images) {
  earlier = images;
  draw();
}

export const images = () => tray;
export const number = (image) => [...earlier, ...tray].indexOf(image) + 1;

/** Check, upload and add files; with `named`, name each in the text at the caret. */
export async function addFiles(files, named = false) {
  for (const file of files) {
    const name = file.name || "pasted image";
    if (earlier.length + tray.length >= limits.images) {
      report(`A conversation shows at most ${limits.images} images.`);
      return;
    }
    if (file.size > limits.image) {
      report(`${name} has ${(file.size / 2 ** 20).toFixed(1)} MB; at most ${limits.image >> 20} MB are accepted.`);
      continue;
    }
    const image = { blob: file, name, url: URL.createObjectURL(file), file: null };
    tray.push(image);
    draw();
    if (named) nameImage(image);
    try {
      image.file = await upload(file, name);
    } catch (error) {
      remove(image);
      if (!(error instanceof ApiError)) throw error;
      report(`${name} could not be added: ${error.message}`);
    }
  }
}

/** Fill in the images and parts of a question, to edit or send it. */
export function fill(shown, parts) {
  tray = [...shown];
  text.replaceChildren(...parts.map((part) => (part.image ? chip(part.image) : document.createTextNode(part.text))));
  draw();
}

export function clear() {
  tray = [];
  text.replaceChildren();
  draw();
}

/** The text as parts: {text}, and {image} in place of its name. */
export function parts() {
  const result = [];
  const add = (string) => {
    if (result.at(-1)?.text !== undefined) result.at(-1).text += string;
    else result.push({ text: string });
  };
  const walk = (node) => {
    for (const child of node.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) add(child.data.replaceAll("\u00a0", " "));
      else if (child.nodeName === "BR") add("\n");
      else if (child.image) result.push({ image: child.image });
      else {
        if (/^(DIV|P)$/.test(child.nodeName) && result.length) add("\n");
        walk(child);
      }
    }
  };
  walk(text);
  for (const [index, part] of result.entries()) {
    // A chip adds a space, which must not precede punctuation.
    if (part.text && result[index - 1]?.image) part.text = part.text.replace(/^ (?=[?.,;:!])/, "");
  }
  if (result[0]?.text !== undefined) result[0].text = result[0].text.trimStart();
  if (result.at(-1)?.text !== undefined) result.at(-1).text = result.at(-1).text.trimEnd();
  return result.filter((part) => part.image || part.text);
}

export const isEmpty = () => !tray.length && !parts().length;
export const ready = () => tray.every((image) => image.file);

/** Name an image in the text, at the caret. */
export function nameImage(image) {
  text.focus();
  const selection = getSelection();
  let range = selection.rangeCount ? selection.getRangeAt(0) : null;
  if (!range || !text.contains(range.startContainer)) {
    range = document.createRange();
    range.selectNodeContents(text);
    range.collapse(false);
  }
  range.deleteContents();
  const node = chip(image);
  const space = document.createTextNode("\u00a0");
  range.insertNode(space);
  range.insertNode(node);
  selection.collapse(space, 1);
  draw();
}

export function chip(image) {
  const node = element("span", { className: "chip", contentEditable: "false", image }, element("img", { src: image.url, alt: "" }));
  node.append(`image ${number(image)}`);
  return node;
}

function remove(image) {
  tray = tray.filter((other) => other !== image);
  for (const child of [...text.querySelectorAll(".chip")]) if (child.image === image) child.remove();
  draw();
}

function draw() {
  $("tray").replaceChildren(
    ...tray.map((image) => {
      const shown = element("img", { src: image.url, alt: image.name, title: "Name this image in the text", draggable: true });
      shown.onclick = () => nameImage(image);
      shown.ondragstart = (event) => event.dataTransfer.setData("text/x-image", number(image));
      const removal = element("button", { type: "button", className: "remove", textContent: "\u00d7", title: "Remove" });
      removal.setAttribute("aria-label", `Remove image ${number(image)}`);
      removal.onclick = () => remove(image);
      return element("figure", {}, shown, removal, element("figcaption", { textContent: `image ${number(image)}` }));
    }),
  );
  for (const child of text.querySelectorAll(".chip")) {
    if (number(child.image)) child.lastChild.data = `image ${number(child.image)}`;
    else child.remove();
  }
  text.classList.toggle("empty", !text.textContent.trim() && !text.querySelector(".chip"));
}

function caretAt(event) {
  const position = document.caretPositionFromPoint?.(event.clientX, event.clientY);
  const range = position ? document.createRange() : document.caretRangeFromPoint?.(event.clientX, event.clientY);
  if (position) range.setStart(position.offsetNode, position.offset);
  if (range && text.contains(range.startContainer)) {
    range.collapse(true);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
  }
}

const filesOf = (transfer) => [...(transfer?.files ?? [])];
const hasText = () => text.textContent.trim() !== "";

text.addEventListener("input", draw);
text.addEventListener("paste", (event) => {
  event.preventDefault(); // pastes text without markup and styles
  const files = filesOf(event.clipboardData);
  if (files.length) addFiles(files, hasText());
  else document.execCommand("insertText", false, event.clipboardData.getData("text/plain"));
});
document.addEventListener("paste", (event) => {
  if (event.defaultPrevented || /^(INPUT|TEXTAREA)$/.test(event.target.nodeName)) return;
  const files = filesOf(event.clipboardData);
  if (files.length) addFiles(files);
});

let depth = 0; // dragenter and dragleave fire for every element that the pointer passes
document.addEventListener("dragenter", () => { depth += 1; $("drop").hidden = false; });
document.addEventListener("dragleave", () => { depth -= 1; $("drop").hidden = depth <= 0; });
document.addEventListener("dragend", () => { depth = 0; $("drop").hidden = true; });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  $("drop").hidden = true;
  const within = text.contains(event.target);
  if (within) caretAt(event);
  const shown = [...earlier, ...tray][Number(event.dataTransfer.getData("text/x-image")) - 1];
  if (shown) nameImage(shown);
  else addFiles(filesOf(event.dataTransfer), within && hasText());
});

$("attach").onclick = () => $("files").click();
$("files").onchange = (event) => {
  addFiles([...event.target.files]); // a copy, because resetting the field empties the list
  event.target.value = "";
};
draw();

// The question being written: a tray of images, and a text in which images may be named at any place.
//
// An image keeps its number for the whole conversation. In the text it is named by a chip, which the model reads as
// "image 2"; the images themselves are shown before the question, as in training.

import { Refusal, upload } from "./api.js";

const $ = (id) => document.getElementById(id);
const text = $("text");

/** Images in the tray: {blob, name, url, file} with `file` the id of the upload. */
let tray = [];
let before = []; // the images of earlier turns
let limits = { images: 32, image: 20 << 20 };
let report = () => {};

export const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

export function setUp(options) {
  limits = options.limits;
  report = options.report;
}

/** Tell the composer which images the conversation has shown. */
export function setEarlier(images) {
  before = images;
  draw();
}

export const images = () => tray;
export const number = (image) => [...before, ...tray].indexOf(image) + 1;

/** Check, upload and add files; with `named`, name each in the text at the caret. */
export async function addFiles(files, named = false) {
  for (const file of files) {
    const name = file.name || "pasted image";
    if (before.length + tray.length >= limits.images) {
      report(`A conversation shows at most ${limits.images} images.`);
      return;
    }
    if (file.size > limits.image) {
      report(`${name} has ${(file.size / 2 ** 20).toFixed(1)} MB; at most ${limits.image >> 20} MB are read.`);
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
      if (!(error instanceof Refusal)) throw error;
      report(`${name} could not be added: ${error.message}`);
    }
  }
}

/** Put images and parts of an earlier question back, to edit it. */
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

/** The text as parts: {text} and {image}, an image standing for its name. */
export function parts() {
  const found = [];
  const add = (string) => {
    if (found.at(-1)?.text !== undefined) found.at(-1).text += string;
    else found.push({ text: string });
  };
  const walk = (node) => {
    for (const child of node.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) add(child.data.replaceAll("\u00a0", " "));
      else if (child.nodeName === "BR") add("\n");
      else if (child.image) found.push({ image: child.image });
      else {
        if (/^(DIV|P)$/.test(child.nodeName) && found.length) add("\n");
        walk(child);
      }
    }
  };
  walk(text);
  for (const [place, part] of found.entries()) {
    // The space that came with a chip is not wanted before what closes a sentence.
    if (part.text && found[place - 1]?.image) part.text = part.text.replace(/^ (?=[?.,;:!])/, "");
  }
  if (found[0]?.text !== undefined) found[0].text = found[0].text.trimStart();
  if (found.at(-1)?.text !== undefined) found.at(-1).text = found.at(-1).text.trimEnd();
  return found.filter((part) => part.image || part.text);
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
  const made = chip(image);
  const space = document.createTextNode("\u00a0");
  range.insertNode(space);
  range.insertNode(made);
  selection.collapse(space, 1);
  draw();
}

export function chip(image) {
  const made = element("span", { className: "chip", contentEditable: "false", image }, element("img", { src: image.url, alt: "" }));
  made.append(`image ${number(image)}`);
  return made;
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
      const gone = element("button", { type: "button", className: "remove", textContent: "\u00d7", title: "Remove" });
      gone.setAttribute("aria-label", `Remove image ${number(image)}`);
      gone.onclick = () => remove(image);
      return element("figure", {}, shown, gone, element("figcaption", { textContent: `image ${number(image)}` }));
    }),
  );
  for (const child of text.querySelectorAll(".chip")) {
    if (number(child.image)) child.lastChild.data = `image ${number(child.image)}`;
    else child.remove();
  }
  text.classList.toggle("empty", !text.textContent.trim() && !text.querySelector(".chip"));
}

function caretAt(event) {
  const place = document.caretPositionFromPoint?.(event.clientX, event.clientY);
  const range = place ? document.createRange() : document.caretRangeFromPoint?.(event.clientX, event.clientY);
  if (place) range.setStart(place.offsetNode, place.offset);
  if (range && text.contains(range.startContainer)) {
    range.collapse(true);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
  }
}

const pictures = (transfer) => [...(transfer?.files ?? [])];
const written = () => text.textContent.trim() !== "";

text.addEventListener("input", draw);
text.addEventListener("paste", (event) => {
  event.preventDefault(); // neither markup nor styles come along
  const files = pictures(event.clipboardData);
  if (files.length) addFiles(files, written());
  else document.execCommand("insertText", false, event.clipboardData.getData("text/plain"));
});
document.addEventListener("paste", (event) => {
  if (event.defaultPrevented || /^(INPUT|TEXTAREA)$/.test(event.target.nodeName)) return;
  const files = pictures(event.clipboardData);
  if (files.length) addFiles(files);
});

let depth = 0; // dragenter and dragleave come for every element on the way
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
  const known = [...before, ...tray][Number(event.dataTransfer.getData("text/x-image")) - 1];
  if (known) nameImage(known);
  else addFiles(pictures(event.dataTransfer), within && written());
});

$("attach").onclick = () => $("files").click();
$("files").onchange = (event) => {
  addFiles([...event.target.files]); // a copy: the list empties with the field
  event.target.value = "";
};
draw();

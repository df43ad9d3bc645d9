// Small helpers. Text of models and datasets is set by append() and textContent only, so it is never markup.
"use strict";

const PAGE = 6; // groups in the page at a time
const LONG = 20000; // characters of a completion shown at first
const SHADES = 8; // of a token's background, by weight

const groups = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("controls");
const list = document.getElementById("groups");
const READ = Object.fromEntries([...(form?.elements.read.options ?? [])].map((one) => [one.value, one.text])); // in words
const slices = [...new Set(groups.map((group) => group.slice).filter(Boolean))].sort();
const boxes = new Map(); // list of tokens -> what it shows
const state = { found: [], listed: [], page: 0, layer: "all", kept: null, linked: "" };

const field = (name) => form.elements[name].value;
const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Append text; very long text in blocks that are laid out when they come into view (as one line it takes minutes). */
function write(element, text) {
  if (text.length <= 4000) element.append(text);
  else element.append(...text.match(/[^]{1,2000}/gu).map((piece) => make("span", { className: "piece" }, piece)));
  return element;
}

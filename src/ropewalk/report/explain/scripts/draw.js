"use strict";
// Elements, texts and numbers. Texts from the data are only ever set as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const texts = data.texts;
const locale = document.documentElement.lang === "zh" ? "zh-CN" : "en-US";

function make(tag, attributes, parent, text) {
  return finish(document.createElement(tag), attributes, parent, text);
}

function shape(tag, attributes, parent, text) {
  return finish(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, parent, text);
}

function finish(element, attributes, parent, text) {
  set(element, attributes);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function set(element, attributes) {
  for (const name in attributes) element.setAttribute(name, attributes[name]);
}

// At most 4 significant digits: 12,350 or 0.1747.
const quantityFormat = new Intl.NumberFormat(locale, { maximumSignificantDigits: 4 });
const countFormat = new Intl.NumberFormat(locale);
const quantity = (value) => (value === null || !isFinite(value) ? "∞" : quantityFormat.format(value));
const count = (value) => countFormat.format(value);

// Tokens in the largest unit that divides them, as the command line reads them: 8k, 1m.
function tokens(length) {
  for (const [unit, size] of [["m", 1048576], ["k", 1024]])
    if (length >= size && length % size === 0) return length / size + unit;
  return length >= 10240 ? quantityFormat.format(length / 1024) + "k" : count(length);
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

const lineColor = (index) => `var(--line${index % 8})`;

// What is shown: the stop of the length, the pair of each circle, and the pair that the pointer is on.
const state = { stop: 0, fast: data.fast, slow: data.slow, hovered: null };
const drawings = [];
const frameTimes = []; // milliseconds from a change to the end of its drawing
let changedAt = null;

function update(changes) {
  Object.assign(state, changes);
  if (changedAt !== null) return; // the next frame draws all changes until then
  changedAt = performance.now();
  requestAnimationFrame(() => {
    const begin = performance.now();
    drawings.forEach((draw) => draw());
    frameTimes.push(performance.now() - begin);
    changedAt = null;
  });
}

// A dynamic scaling has one entry for each stop, a static one a single entry.
const atStop = (lists) => lists[Math.min(state.stop, lists.length - 1)];

// Call `draw(width)` now and whenever the width of an element changes.
function drawAtWidth(element, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.floor(element.clientWidth);
    if (now > 0 && now !== width) draw((width = now));
  }).observe(element);
}

// The parts of the report one can walk around in are items.js, tree.js and map.js, one script on the page.
// All text goes in as text, never as HTML. Here: the table of items, colours, words.
"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("items").textContent);
const N = data.ids.length, L = data.depth;
const ALL = Array.from({ length: N }, (_, item) => item);
const NO_VALUE = "#7d8894";
// Twelve colours that carry white text and differ in lightness as well as in hue.
const PALETTE = ["#2f6fa3", "#b8672a", "#3c8a57", "#a14a78", "#6a5bb5", "#8a7a1f", "#23868c", "#b24a4a", "#52708f", "#6f8f2c", "#8d5fa8", "#5f6670"];

const codesOf = (item) => {
  const codes = data.codes.slice(item * L, item * L + L), end = codes.indexOf(-1);
  return end < 0 ? codes : codes.slice(0, end);
};
const token = (level, code) => data.pattern.replace("{letter}", String.fromCharCode(97 + level)).replace("{code}", code);
const spell = (codes) => codes.map((code, level) => token(level, code)).join("");
const nameOf = (item) => data.titles[item] || data.ids[item];
const hue = (code) => `oklch(${0.5 + (code % 3) * 0.06} 0.13 ${Math.round(code * 137.508) % 360})`; // neighbours far apart
const number = (value) => value.toLocaleString("en");
const make = (tag, text, className) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
};

// ---- colours: a label's value, or the code itself
const chosen = { tree: data.labels.length ? 0 : -1, map: -1 };
const valueColour = (label, value) => (value < 0 ? NO_VALUE : PALETTE[value % PALETTE.length]);
function showKey(id, choice) {
  const names = choice < 0 ? [] : data.labels[choice].values;
  $(id).replaceChildren(...names.map((name, value) => {
    const row = make("li"), dot = make("i");
    dot.style.background = valueColour(choice, value);
    row.append(dot, name);
    return row;
  }));
}

// ---- words that set a group's titles apart
let words = null, wordTotals = null;
function tellingWords(items) {
  if (!words) {
    words = data.titles.map((title) => new Set(title.toLowerCase().match(/[\p{L}][\p{L}\p{N}]{2,}/gu) || []));
    wordTotals = new Map();
    words.forEach((set) => set.forEach((word) => wordTotals.set(word, (wordTotals.get(word) || 0) + 1)));
  }
  const inside = new Map();
  items.forEach((item) => words[item].forEach((word) => inside.set(word, (inside.get(word) || 0) + 1)));
  return [...inside]
    .map(([word, count]) => [word, count * Math.log((count / items.length) / (wordTotals.get(word) / N))])
    .sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))
    .slice(0, 3).map(([word]) => word);
}

// The prefix tree as a treemap one can walk into, and the search box.
let path = [];      // codes of the prefix that is open
let rest = null;    // its children too small for the picture, when those are open
function childrenOf(items, level) {
  const groups = new Map();
  items.forEach((item) => {
    const code = data.codes[item * L + level];
    if (!groups.has(code)) groups.set(code, []);
    groups.get(code).push(item);
  });
  return [...groups].map(([code, members]) => ({ code, members })).sort((a, b) => b.members.length - a.members.length || a.code - b.code);
}
const itemsUnder = (prefix) => ALL.filter((item) => prefix.every((code, level) => data.codes[item * L + level] === code));

// Squarified treemap (Bruls, Huizing, van Wijk 2000): rows are filled while their worst aspect ratio gets better.
function squarify(sizes, width, height) {
  const cells = [], total = sizes.reduce((a, b) => a + b, 0), scale = (width * height) / total;
  let x = 0, y = 0, w = width, h = height, start = 0;
  const worst = (row, side) => {
    const sum = row.reduce((a, b) => a + b, 0);
    return Math.max(...row.map((area) => Math.max((side * side * area) / (sum * sum), (sum * sum) / (side * side * area))));
  };
  while (start < sizes.length) {
    const side = Math.min(w, h), row = [sizes[start] * scale];
    let end = start + 1;
    while (end < sizes.length && worst([...row, sizes[end] * scale], side) <= worst(row, side)) row.push(sizes[end++] * scale);
    const thick = row.reduce((a, b) => a + b, 0) / side;
    let along = 0;
    row.forEach((area) => {
      const length = area / thick;
      cells.push(w >= h ? [x, y + along, thick, length] : [x + along, y, length, thick]);
      along += length;
    });
    if (w >= h) { x += thick; w -= thick; } else { y += thick; h -= thick; }
    start = end;
  }
  return cells;
}

function shares(items, choice) {
  const counts = new Map();
  items.forEach((item) => counts.set(data.labels[choice].of[item], (counts.get(data.labels[choice].of[item]) || 0) + 1));
  return [...counts].sort((a, b) => b[1] - a[1]);
}

// Without a label: by the side of the map a child's items lie on, seen from the middle of all that is open.
function colourByPlace(items) {
  if (!data.map) return (child) => hue(child.code);
  const middle = (members, axis) => members.reduce((sum, item) => sum + data.map[axis][item], 0) / members.length;
  const cx = middle(items, "x"), cy = middle(items, "y");
  return ({ members }) => {
    const dx = middle(members, "x") - cx, dy = middle(members, "y") - cy;
    const angle = (Math.atan2(dy, dx) * 180) / Math.PI + 360, far = Math.min(1, Math.hypot(dx, dy) / 900);
    return `oklch(0.5 ${(0.03 + 0.1 * far).toFixed(3)} ${Math.round(angle)})`;
  };
}

function cellFor(child, level, colourOf, [x, y, w, h]) {
  const button = make("button");
  button.type = "button";
  Object.assign(button.style, { left: `${x}px`, top: `${y}px`, width: `${w}px`, height: `${h}px` });
  const name = child.code < 0 ? "ends here" : token(level, child.code);
  const mix = chosen.tree < 0 ? [] : shares(child.members, chosen.tree);
  button.style.background = mix.length ? valueColour(chosen.tree, mix[0][0]) : colourOf(child);
  const count = `${number(child.members.length)} item${child.members.length === 1 ? "" : "s"}`;
  const telling = child.members.length === 1 ? [nameOf(child.members[0])] : tellingWords(child.members);
  const label = data.labels[chosen.tree];
  const parts = mix.slice(0, 3).map(([value, n]) => `${value < 0 ? "no value" : label.values[value]} ${Math.round((100 * n) / child.members.length)}%`);
  button.title = [`${name}, ${count}`, telling.join(", "), parts.join(", ")].filter(Boolean).join("\n");
  button.setAttribute("aria-label", button.title);
  // The token where it fits, then words on as many lines of 14 pixels as there are.
  const named = w > 6.8 * name.length + 10 && h > 20;
  const lines = Math.floor((h - (mix.length > 1 ? 12 : 6)) / 14) - named;
  if (named) button.append(make("b", name));
  if (w > 40 && lines > 0) {
    const text = make("span", telling.join(", "));
    text.style.webkitLineClamp = lines;
    button.append(text);
  }
  if (mix.length > 1 && h > 16) {
    const strip = make("span", undefined, "mix");
    mix.forEach(([value, n]) => {
      const part = make("i");
      Object.assign(part.style, { flex: n, background: valueColour(chosen.tree, value) });
      strip.append(part);
    });
    button.append(strip);
  }
  button.addEventListener("click", () => open([...path, child.code]));
  return button;
}

function drawTree() {
  const box = $("tree"), items = itemsUnder(path), level = path.length;
  showKey("treekey", chosen.tree);
  drawTrail(items.length);
  const leaf = level === L || path.includes(-1) || items.length <= 1;
  box.hidden = leaf;
  $("leaves").hidden = !leaf;
  if (leaf) {
    $("leaves").replaceChildren(...items.slice(0, 200).map(itemRow));
    return;
  }
  const width = box.clientWidth, height = box.clientHeight;
  let children = rest || childrenOf(items, level);
  // As many cells as stay large enough to be hit; the others wait behind one cell.
  const most = Math.max(12, Math.floor((width * height) / 1100));
  const hidden = children.length > most ? children.slice(most - 1) : [];
  children = hidden.length ? children.slice(0, most - 1) : children;
  const sizes = children.map((child) => child.members.length);
  if (hidden.length) sizes.push(hidden.reduce((sum, child) => sum + child.members.length, 0));
  const cells = squarify(sizes, width, height);
  const colourOf = colourByPlace(items);
  const buttons = children.map((child, index) => cellFor(child, level, colourOf, cells[index]));
  if (hidden.length) {
    const more = make("button", `${number(hidden.length)} smaller prefixes`);
    const [x, y, w, h] = cells[cells.length - 1];
    more.type = "button";
    Object.assign(more.style, { left: `${x}px`, top: `${y}px`, width: `${w}px`, height: `${h}px`, background: NO_VALUE });
    more.addEventListener("click", () => { rest = hidden; drawTree(); focusFirst(); });
    buttons.push(more);
  }
  buttons.forEach((button, index) => { button.tabIndex = index ? -1 : 0; });
  box.replaceChildren(...buttons);
}
// One stop for the tab key, arrows from cell to cell.
$("tree").addEventListener("keydown", (event) => {
  const cells = [...$("tree").children], here = cells.indexOf(event.target);
  const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: cells.length - 1 }[event.key];
  if (here < 0 || to === undefined) return;
  event.preventDefault();
  const next = cells[Math.max(0, Math.min(to, cells.length - 1))];
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus({ preventScroll: true });
});

function drawTrail(count) {
  const steps = [["all items", []], ...path.map((code, level) => [code < 0 ? "ends" : token(level, code), path.slice(0, level + 1)])];
  $("trail").replaceChildren(...steps.map(([name, prefix], index) => {
    const button = make("button", name);
    button.type = "button";
    if (index === steps.length - 1) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => open(prefix));
    return button;
  }), make("span", `${number(count)} item${count === 1 ? "" : "s"}`, "note"));
}

function itemRow(item) {
  const row = make("li");
  row.append(make("span", spell(codesOf(item)), "sid"), ` ${nameOf(item)} `, make("span", data.ids[item], "badge"));
  return row;
}
const focusFirst = () => { const first = $("tree").querySelector("button"); if (first) first.focus({ preventScroll: true }); };
function open(prefix) {
  path = prefix;
  rest = null;
  drawTree();
  const current = $("trail").querySelector("[aria-current]");
  if (current) current.focus({ preventScroll: true });
}

// ---- search
let marked = -1;
$("find").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase(), list = $("found");
  list.hidden = wanted.length < 2;
  if (list.hidden) return;
  const hits = ALL.filter((item) => `${data.titles[item]}\n${data.ids[item]}\n${spell(codesOf(item))}`.toLowerCase().includes(wanted));
  const rows = hits.slice(0, 12).map((item) => {
    const row = make("li"), button = make("button", "show");
    button.type = "button";
    button.addEventListener("click", () => {
      marked = item;
      open(codesOf(item).slice(0, L - 1));
      if (map) map.goTo(item);
    });
    button.setAttribute("aria-label", `show ${nameOf(item)} in tree and map`);
    row.append(button, " ", make("span", spell(codesOf(item)), "sid"), ` ${nameOf(item)}`);
    return row;
  });
  rows.push(make("li", hits.length > 12 ? `${number(hits.length - 12)} more` : `${number(hits.length)} found`, "out"));
  list.replaceChildren(...rows);
});

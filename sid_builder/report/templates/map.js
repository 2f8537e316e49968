// The map of the embeddings; the last of the three, so it also draws everything for the first time.
function makeMap() {
  const canvas = $("map"), tip = $("tip"), only = $("only");
  const { x, y } = data.map, wide = Math.max(...x, 1), high = Math.max(...y, 1);
  let zoom = 1, cx = wide / 2, cy = high / 2, width = 0, height = 0, base = 1;
  const firstCodes = childrenOf(ALL, 0);
  // Landmarks: the fullest first codes, where their items are on average.
  const landmarks = firstCodes.slice(0, 200).map(({ members }) => ({
    text: tellingWords(members).slice(0, 2).join(", "),
    x: members.reduce((sum, item) => sum + x[item], 0) / members.length,
    y: members.reduce((sum, item) => sum + y[item], 0) / members.length,
  }));
  [...firstCodes].sort((a, b) => a.code - b.code).forEach(({ code, members }) => {
    const option = make("option", `${token(0, code)} (${number(members.length)})`);
    option.value = code;
    only.append(option);
  });
  const colour = (item) => (chosen.map < 0 ? hue(data.codes[item * L]) : valueColour(chosen.map, data.labels[chosen.map].of[item]));
  const place = (item) => [width / 2 + (x[item] - cx) * base * zoom, height / 2 + (y[item] - cy) * base * zoom];

  function draw() {
    const dots = window.devicePixelRatio || 1;
    width = canvas.clientWidth;
    height = canvas.clientHeight;
    canvas.width = width * dots;
    canvas.height = height * dots;
    base = 0.94 * Math.min(width / wide, height / high);
    const pen = canvas.getContext("2d"), radius = Math.max(1.6, Math.min(5, 90 / Math.sqrt(N))) * Math.min(2, Math.sqrt(zoom));
    pen.scale(dots, dots);
    const shown = only.value === "" ? null : Number(only.value);
    const drawItem = (item, alpha) => {
      const [px, py] = place(item);
      if (px < -9 || py < -9 || px > width + 9 || py > height + 9) return;
      pen.globalAlpha = alpha;
      pen.fillStyle = colour(item);
      pen.beginPath();
      pen.arc(px, py, radius, 0, 7);
      pen.fill();
    };
    ALL.forEach((item) => { if (shown === null || data.codes[item * L] !== shown) drawItem(item, shown === null ? 0.75 : 0.08); });
    if (shown !== null) ALL.forEach((item) => { if (data.codes[item * L] === shown) drawItem(item, 1); });
    if (shown === null) drawLandmarks(pen);
    if (marked >= 0) {
      const [px, py] = place(marked);
      pen.globalAlpha = 1;
      pen.strokeStyle = getComputedStyle(canvas).color;
      pen.lineWidth = 2.5;
      pen.beginPath();
      pen.arc(px, py, radius + 6, 0, 7);
      pen.stroke();
    }
    showKey("mapkey", chosen.map);
  }

  function drawLandmarks(pen) {
    const style = getComputedStyle(canvas), taken = [];
    pen.globalAlpha = 1;
    pen.font = `600 12px ${style.fontFamily}`;
    pen.textAlign = "center";
    pen.lineWidth = 4;
    pen.lineJoin = "round";
    pen.strokeStyle = style.backgroundColor;
    pen.fillStyle = style.color;
    landmarks.forEach(({ text, x: mx, y: my }) => {
      const px = width / 2 + (mx - cx) * base * zoom, py = height / 2 + (my - cy) * base * zoom;
      const half = pen.measureText(text).width / 2 + 4;
      const clash = taken.some(([qx, qy, other]) => Math.abs(px - qx) < half + other && Math.abs(py - qy) < 18);
      if (clash || taken.length >= 24 || px < half || px > width - half || py < 14 || py > height - 8) return;
      taken.push([px, py, half]);
      pen.strokeText(text, px, py + 4);
      pen.fillText(text, px, py + 4);
    });
  }

  function nearest(px, py, within) {
    const shown = only.value === "" ? null : Number(only.value);
    let best = -1, distance = within * within;
    ALL.forEach((item) => {
      if (shown !== null && data.codes[item * L] !== shown) return;
      const [qx, qy] = place(item), d = (qx - px) ** 2 + (qy - py) ** 2;
      if (d < distance) { distance = d; best = item; }
    });
    return best;
  }
  function showTip(item) {
    tip.hidden = item < 0;
    if (item < 0) return;
    const [px, py] = place(item);
    tip.replaceChildren(make("div", nameOf(item)), make("div", spell(codesOf(item)), "sid"));
    tip.style.left = `${Math.max(4, Math.min(px + 12, width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${py + 14 + tip.offsetHeight > height ? py - tip.offsetHeight - 10 : py + 14}px`;
  }
  function zoomBy(factor, px = width / 2, py = height / 2) {
    const next = Math.max(1, Math.min(60, zoom * factor)), scale = base * zoom;
    cx += (px - width / 2) / scale - (px - width / 2) / (base * next);
    cy += (py - height / 2) / scale - (py - height / 2) / (base * next);
    zoom = next;
    showTip(-1);
    draw();
  }
  function moveBy(dx, dy) {
    cx -= dx / (base * zoom);
    cy -= dy / (base * zoom);
    draw();
  }
  function goTo(item) {
    [cx, cy, zoom] = [x[item], y[item], Math.max(zoom, 4)];
    draw();
    showTip(item);
  }

  let drag = null;
  canvas.addEventListener("pointerdown", (event) => { drag = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => { drag = null; });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  canvas.addEventListener("pointerleave", () => showTip(-1));
  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      moveBy(event.clientX - drag[0], event.clientY - drag[1]);
      drag = [event.clientX, event.clientY];
      showTip(-1);
      return;
    }
    const box = canvas.getBoundingClientRect();
    showTip(nearest(event.clientX - box.left, event.clientY - box.top, 14));
  });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoomBy(event.deltaY < 0 ? 1.25 : 0.8, event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (steps[event.key]) moveBy(...steps[event.key]);
    else if (event.key === "+" || event.key === "=") zoomBy(1.5);
    else if (event.key === "-") zoomBy(1 / 1.5);
    else return;
    event.preventDefault();
    showTip(nearest(width / 2, height / 2, 80)); // the item in the middle: the pointer of those without one
  });
  $("in").addEventListener("click", () => zoomBy(1.6));
  $("out").addEventListener("click", () => zoomBy(1 / 1.6));
  $("whole").addEventListener("click", () => { [zoom, cx, cy] = [1, wide / 2, high / 2]; showTip(-1); draw(); });
  only.addEventListener("change", draw);
  return { draw, goTo };
}

const map = data.map ? makeMap() : null;
document.querySelectorAll("select.colour").forEach((select) => select.addEventListener("change", () => {
  chosen[select.dataset.for] = Number(select.value);
  if (select.dataset.for === "tree") drawTree(); else map.draw();
}));
const drawAll = () => { drawTree(); if (map) map.draw(); };
let waiting = 0;
window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawAll, 120); });
drawAll();

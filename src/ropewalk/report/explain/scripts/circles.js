// The circle of a pair: the angles of training, and the angles that a text uses under each scaling.

const CENTER = 190, OUTER = 150, OUTER_WIDTH = 20, FIRST_RING = 124, LAST_RING = 66;

// A ring is a circle whose dashes show a part of it. A pathLength of 1 makes their unit one rotation.
function ring(parent, radius, width, color) {
  return shape("circle", { cx: 0, cy: 0, r: radius, fill: "none", pathLength: 1, "stroke-width": width,
    style: `stroke: ${color}`, "stroke-dasharray": "0 2" }, parent);
}

function showArc(element, from, to) {
  set(element, { "stroke-dasharray": `0 ${from} ${Math.max(to - from, 0)} 2` });
}

function makeCircle(figure) {
  const which = figure.dataset.circle;
  const svg = figure.querySelector("svg"), slider = figure.querySelector("input");
  const name = figure.querySelector(".pair-name"), body = figure.querySelector("tbody");
  const methods = data.methods;
  // Angles grow counterclockwise from the right, as in mathematics.
  const plane = shape("g", { transform: `translate(${CENTER} ${CENTER}) scale(1 -1)` }, svg);
  set(ring(plane, OUTER, OUTER_WIDTH, "var(--never-back)"), { "stroke-dasharray": "none" });
  set(ring(plane, OUTER, OUTER_WIDTH, "var(--never)"), { "stroke-dasharray": ".003 .009" });
  const trained = ring(plane, OUTER, OUTER_WIDTH, "var(--trained)");
  const gap = Math.min(16, (FIRST_RING - LAST_RING) / Math.max(methods.length - 1, 1));
  const rings = methods.map((_, index) => {
    const radius = FIRST_RING - gap * index, width = Math.min(8, gap * 0.6);
    set(ring(plane, radius, 1, "var(--rule)"), { "stroke-dasharray": "none" });
    return { radius, inside: ring(plane, radius, width, lineColor(index)), outside: ring(plane, radius, width, "var(--never)") };
  });
  shape("line", { x1: LAST_RING - 12, x2: OUTER + 14, y1: 0, y2: 0, style: "stroke: var(--ink)", "stroke-width": 1 }, plane);
  shape("text", { x: CENTER + OUTER + 18, y: CENTER + 5 }, svg, texts.start);
  const end = shape("line", { x1: OUTER - 12, x2: OUTER + 16, y1: 0, y2: 0, style: "stroke: var(--ink)", "stroke-width": 2 }, plane);
  const endLabel = shape("text", { "text-anchor": "middle" }, svg, texts.end);
  rings.forEach((each, index) => {
    each.dot = shape("circle", { r: Math.min(6.5, gap * 0.5), style: `fill: ${lineColor(index)}; stroke: var(--back)`,
      "stroke-width": 1.5 }, plane);
  });
  shape("text", { x: CENTER, y: CENTER - 2, "text-anchor": "middle", class: "big pair" }, svg);
  const center = svg.querySelector(".pair");
  const rows = methods.map((method, index) => {
    const row = make("tr", {}, body), head = make("th", { scope: "row" }, row);
    make("span", { class: "key", style: `--color: ${lineColor(index)}` }, head);
    make("code", {}, head, method.label);
    return { turns: make("td", { class: "number" }, row), status: make("td", {}, row) };
  });
  slider.addEventListener("input", () => update({ [which]: Number(slider.value) }));

  drawings.push(() => {
    const pair = state[which], last = data.stops[state.stop] - 1;
    const trainedTurns = (data.originalLength - 1) * data.methods[0].turns[0][pair];
    const covered = Math.min(trainedTurns, 1);
    showArc(trained, 0, covered);
    const isLabeled = covered > 0.05 && covered < 0.95, angle = 2 * Math.PI * covered;
    end.style.display = endLabel.style.display = isLabeled ? "" : "none";
    set(end, { transform: `rotate(${360 * covered})` });
    set(endLabel, { x: CENTER + (OUTER + 28) * Math.cos(angle), y: CENTER - (OUTER + 28) * Math.sin(angle) + 5 });
    slider.value = pair;
    center.textContent = fill(texts.pair, { pair });
    name.textContent = fill(texts.wavelength, { tokens: fill(texts.tokens, { count: quantity(data.wavelengths[pair]) }) });
    slider.setAttribute("aria-valuetext", `${center.textContent}, ${name.textContent}`);
    const parts = methods.map((method, index) => {
      const turns = last * atStop(method.turns)[pair], reached = Math.min(turns, 1);
      const { inside, outside, dot, radius } = rings[index];
      showArc(inside, 0, Math.min(reached, covered));
      showArc(outside, covered, reached);
      set(dot, { cx: radius * Math.cos(2 * Math.PI * turns), cy: radius * Math.sin(2 * Math.PI * turns) });
      const [status, kind] = describeAngles(reached - covered, covered === 1, atStop(method.divisors)[pair]);
      rows[index].turns.textContent = quantity(turns);
      rows[index].status.textContent = status;
      rows[index].status.className = kind;
      return fill(texts.circle_part, { label: method.label, rotations: quantity(turns), status });
    });
    svg.setAttribute("aria-label", fill(texts.circle, { pair, parts: parts.join(" ") }));
  });
}

// `beyond`: the part of the circle past the trained arc that is used, in rotations.
function describeAngles(beyond, isComplete, divisor) {
  if (divisor === null) return [texts.still, ""];
  if (beyond > 1e-4) return [fill(texts.untrained, { degrees: quantityFormat.format(Number((360 * beyond).toPrecision(3))) }), "bad"];
  if (Math.abs(divisor - 1) < 1e-6) return [texts.within, "fine"];
  return [fill(isComplete ? texts.resolution : texts.squeezed, { divisor: quantity(divisor) }), isComplete ? "" : "fine"];
}

// All pairs at once: rotations over L, and the divisors of each scaling in three bands.

const BANDS = { u: "untouched", r: "ramp", i: "interpolated" };
const ROTATIONS_HEIGHT = 120, STRIP_HEIGHT = 44, MIN_BAR = 3;

function makeStrips(container) {
  const pairs = data.rotations.length, methods = data.methods;
  const readout = document.getElementById("strip-readout");
  const largest = Math.max(...methods.flatMap((method) => method.divisors.flat()).filter((divisor) => divisor !== null), 1.01);
  const rows = [addRow(texts.rotations_row), ...methods.map((method) => addRow(method.label))];
  container.setAttribute("aria-label", texts.strip);
  let width = 0, bars = [];

  function addRow(label) {
    const row = make("div", {}, container), head = make("div", { class: "strip-head" }, row);
    make("code", {}, head, label);
    return { note: make("span", { class: "soft" }, head), svg: shape("svg", { "aria-hidden": "true" }, row) };
  }

  drawAtWidth(container, (now) => {
    width = now;
    const step = width / pairs, gap = step > 6 ? 1.5 : 0.5;
    rows[0].note.textContent = fill(texts.critical, { pair: data.critical });
    drawRotations(rows[0].svg, width, step, gap);
    bars = methods.map((_, index) => {
      const svg = rows[index + 1].svg;
      svg.replaceChildren();
      set(svg, { viewBox: `0 0 ${width} ${STRIP_HEIGHT}`, height: STRIP_HEIGHT });
      const backs = [], fronts = [];
      for (let pair = 0; pair < pairs; pair++) {
        const box = { x: pair * step, width: Math.max(step - gap, 0.5) };
        backs.push(shape("rect", { ...box, y: 0, height: STRIP_HEIGHT, "fill-opacity": 0.16 }, svg));
        fronts.push(shape("rect", { ...box }, svg));
      }
      return { backs, fronts, shown: null };
    });
    for (const { svg } of rows) {
      const height = svg === rows[0].svg ? ROTATIONS_HEIGHT : STRIP_HEIGHT;
      if (data.critical > 0 && data.critical < pairs)
        shape("line", { x1: data.critical * step - gap / 2, x2: data.critical * step - gap / 2, y1: -2, y2: height + 2,
          style: "stroke: var(--ink)", "stroke-dasharray": "4 3" }, svg);
      shape("rect", { class: "cursor", y: -2, height: height + 4, width: Math.max(step, 3), fill: "none",
        style: "stroke: var(--ink)", "stroke-width": 1.5, rx: 2 }, svg);
    }
    update({});
  });

  container.addEventListener("pointermove", (event) => update({ hovered: pairAt(event) }));
  container.addEventListener("pointerleave", () => update({ hovered: null }));
  container.addEventListener("click", (event) => update({ slow: pairAt(event) }));
  container.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -8, PageUp: 8, Home: -pairs, End: pairs };
    if (!(event.key in moves)) return;
    event.preventDefault();
    update({ hovered: null, slow: clamp(state.slow + moves[event.key], 0, pairs - 1) });
  });

  function pairAt(event) {
    const box = container.getBoundingClientRect();
    return clamp(Math.floor(((event.clientX - box.left) / box.width) * pairs), 0, pairs - 1);
  }

  drawings.push(() => {
    if (!width) return;
    const pair = state.hovered ?? state.slow, step = width / pairs;
    bars.forEach((each, index) => {
      const method = methods[index], divisors = atStop(method.divisors), bands = atStop(method.bands);
      if (each.shown === divisors) return; // only dynamic scalings follow the length
      each.shown = divisors;
      const counts = { u: 0, r: 0, i: 0 };
      divisors.forEach((divisor, pair) => {
        const color = `fill: var(--${BANDS[bands[pair]]})`;
        const part = divisor === null ? 1 : Math.max(Math.log(divisor) / Math.log(largest), 0);
        const height = Math.max(part * STRIP_HEIGHT, MIN_BAR);
        counts[bands[pair]]++;
        set(each.backs[pair], { style: color });
        set(each.fronts[pair], { style: color, y: STRIP_HEIGHT - height, height });
      });
      const factor = atStop(method.attention);
      const notes = Object.keys(counts).filter((band) => counts[band]).map((band) => `${counts[band]} ${texts[BANDS[band]]}`);
      if (factor !== 1) notes.push(fill(texts.attention, { factor: quantity(factor) }));
      rows[index + 1].note.textContent = notes.join(", ");
    });
    for (const { svg } of rows) set(svg.querySelector(".cursor"), { x: pair * step });
    const parts = [describePair(pair), ...methods.slice(1).map((method) =>
      fill(texts.divisor, { label: method.label, divisor: quantity(atStop(method.divisors)[pair]) }))];
    set(container, { "aria-valuenow": pair, "aria-valuetext": parts.join("; ") });
    readout.replaceChildren();
    parts.forEach((part) => make("span", {}, readout, part));
  });
}

function drawRotations(svg, width, step, gap) {
  svg.replaceChildren();
  set(svg, { viewBox: `0 0 ${width} ${ROTATIONS_HEIGHT}`, height: ROTATIONS_HEIGHT });
  const logs = data.rotations.map(Math.log10), low = Math.min(...logs, 0) - 0.3, high = Math.max(...logs, 0);
  const y = (log) => ROTATIONS_HEIGHT * (1 - (log - low) / (high - low));
  logs.forEach((log, pair) => shape("rect", { x: pair * step, y: y(log), width: Math.max(step - gap, 0.5), height: ROTATIONS_HEIGHT - y(log),
    style: `fill: var(--${data.rotations[pair] < 1 ? "never" : "trained"})` }, svg));
  shape("line", { x1: 0, x2: width, y1: y(0), y2: y(0), style: "stroke: var(--ink)" }, svg);
  shape("text", { x: width, y: y(0) - 6, "text-anchor": "end" }, svg, texts.one_rotation);
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function describePair(pair) {
  return fill(texts.readout, { pair, wavelength: quantity(data.wavelengths[pair]), rotations: quantity(data.rotations[pair]) });
}

// The same numbers as a table, made when it is first opened.
function makePairsTable(details) {
  details.addEventListener("toggle", () => {
    const methods = data.methods.slice(1);
    const heads = [texts.column_pair, texts.column_wavelength, texts.column_rotations,
      ...methods.map((method) => fill(texts.column_divisor, { label: method.label }))];
    const rows = data.rotations.map((rotations, pair) => [pair, quantity(data.wavelengths[pair]), quantity(rotations),
      ...methods.map((method) => quantity(atStop(method.divisors)[pair]))]);
    showTable(details, heads, rows);
  });
}

function showTable(details, heads, rows) {
  details.querySelector(".wide")?.remove();
  const table = make("table", {}, make("div", { class: "wide", tabindex: 0 }, details));
  const head = make("tr", {}, make("thead", {}, table));
  heads.forEach((text) => make("th", { scope: "col", class: "number" }, head, text));
  const body = make("tbody", {}, table);
  for (const cells of rows) {
    const row = make("tr", {}, body);
    cells.forEach((cell, index) => make(index ? "td" : "th", { class: "number", ...(index ? {} : { scope: "row" }) }, row, cell));
  }
}

// A line chart with a legend, a cursor for pointer and keyboard, and its numbers as a table.

const CHART_HEIGHT = 310, MARGIN = { left: 52, right: 16, top: 30, bottom: 46 };
const DASHES = ["none", "none", "7 3", "2 3", "10 3 2 3", "5 5", "1 4", "12 4"];

// `spec`: x, lines ({label, index, values}), names of both axes, isLogX, isLogY, mark ({x, label}), level ({y, label}).
function makeChart(figure, spec) {
  const keys = make("ul", { class: "keys" }, figure);
  for (const line of spec.lines) {
    const key = make("li", {}, keys), sample = shape("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, key);
    shape("line", { x1: 0, x2: 26, y1: 5, y2: 5, "stroke-width": 3, style: `stroke: ${lineColor(line.index)}`,
      "stroke-dasharray": DASHES[line.index % 8] }, sample);
    make("code", {}, key, line.label);
  }
  const svg = shape("svg", { tabindex: 0, role: "slider", "aria-valuemin": 0, "aria-valuemax": spec.x.length - 1,
    "aria-label": `${figure.querySelector("h3").textContent}. ${texts.chart_hint}` }, figure);
  const readout = make("output", { class: "readout" }, figure);
  const details = make("details", { class: "numbers-table" }, figure);
  make("summary", {}, details, document.querySelector("[data-table=pairs] summary").textContent);
  details.addEventListener("toggle", () => showTable(details, [spec.xName, ...spec.lines.map((line) => line.label)],
    spec.x.map((x, index) => [count(x), ...spec.lines.map((line) => (line.values[index] === null ? "" : quantity(line.values[index])))])));

  const values = spec.lines.flatMap((line) => line.values).filter((value) => value !== null).concat(spec.level ? [spec.level.y] : []);
  const yTicks = spec.isLogY ? logTicks(values) : linearTicks(values);
  const yLow = yTicks[0], yHigh = yTicks[yTicks.length - 1];
  let toX, cursor, chosen = spec.x.length - 1;

  drawAtWidth(figure, (width) => {
    const right = width - MARGIN.right, bottom = CHART_HEIGHT - MARGIN.bottom;
    const scale = (value, isLog, low, high) => (isLog ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low));
    const xLow = spec.x[0], xHigh = spec.x[spec.x.length - 1];
    toX = (x) => MARGIN.left + (right - MARGIN.left) * scale(x, spec.isLogX, xLow, xHigh);
    const toY = (y) => bottom - (bottom - MARGIN.top) * scale(y, spec.isLogY, yLow, yHigh);
    svg.replaceChildren();
    set(svg, { viewBox: `0 0 ${width} ${CHART_HEIGHT}`, height: CHART_HEIGHT });
    for (const tick of yTicks) {
      shape("line", { x1: MARGIN.left, x2: right, y1: toY(tick), y2: toY(tick), style: "stroke: var(--rule)" }, svg);
      shape("text", { x: MARGIN.left - 8, y: toY(tick) + 5, "text-anchor": "end", class: "soft" }, svg, quantity(tick));
    }
    for (const tick of xTicks(spec, Math.floor((right - MARGIN.left) / 58)))
      shape("text", { x: toX(tick), y: bottom + 20, "text-anchor": "middle", class: "soft" }, svg, tokens(tick));
    shape("text", { x: right, y: CHART_HEIGHT - 6, "text-anchor": "end", class: "soft" }, svg, spec.xName);
    shape("text", { x: 0, y: 12, class: "soft" }, svg, spec.yName);
    if (spec.mark && spec.mark.x > xLow && spec.mark.x < xHigh) {
      const x = toX(spec.mark.x);
      shape("line", { x1: x, x2: x, y1: MARGIN.top - 4, y2: bottom, style: "stroke: var(--ink)", "stroke-dasharray": "4 3" }, svg);
      shape("text", { x, y: 12, "text-anchor": "middle" }, svg, spec.mark.label);
    }
    if (spec.level) {
      shape("line", { x1: MARGIN.left, x2: right, y1: toY(spec.level.y), y2: toY(spec.level.y), style: "stroke: var(--ink)",
        "stroke-dasharray": "4 3" }, svg);
      shape("text", { x: right, y: toY(spec.level.y) - 6, "text-anchor": "end" }, svg, spec.level.label);
    }
    for (const line of spec.lines) {
      const points = spec.x.map((x, index) => [x, line.values[index]]).filter(([, y]) => y !== null);
      shape("path", { d: "M" + points.map(([x, y]) => `${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`).join("L"), fill: "none",
        style: `stroke: ${lineColor(line.index)}`, "stroke-width": 2.2, "stroke-linejoin": "round",
        "stroke-dasharray": DASHES[line.index % 8] }, svg);
    }
    cursor = shape("line", { y1: MARGIN.top, y2: bottom, style: "stroke: var(--ink)", "stroke-opacity": 0 }, svg);
    read(chosen, false);
  });

  function read(index, isShown = true) {
    chosen = clamp(index, 0, spec.x.length - 1);
    const at = `${count(spec.x[chosen])} (${spec.xName})`;
    const parts = spec.lines.filter((line) => line.values[chosen] !== null).map((line) => `${line.label} ${quantity(line.values[chosen])}`);
    set(cursor, { x1: toX(spec.x[chosen]), x2: toX(spec.x[chosen]), "stroke-opacity": isShown ? 1 : 0 });
    set(svg, { "aria-valuenow": chosen, "aria-valuetext": `${at}: ${parts.join("; ")}` });
    readout.replaceChildren();
    [`${at}:`, ...parts].forEach((part) => make("span", {}, readout, part));
  }

  svg.addEventListener("pointermove", (event) => {
    const x = event.clientX - svg.getBoundingClientRect().left;
    const distances = spec.x.map((value) => Math.abs(toX(value) - x));
    read(distances.indexOf(Math.min(...distances)));
  });
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -8, PageUp: 8, Home: -1e9, End: 1e9 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    read(chosen + moves[event.key]);
  });
}

// At most `most` ticks: powers of two on a log scale, else even parts of the range.
function xTicks(spec, most) {
  const low = spec.x[0], high = spec.x[spec.x.length - 1];
  if (!spec.isLogX) {
    const parts = [8, 4, 2, 1].find((parts) => parts < most) ?? 1;
    return Array.from({ length: parts + 1 }, (_, index) => Math.round(((high + 1 - low) / parts) * index + low)).map((x) => Math.min(x, high + 1));
  }
  const powers = [];
  for (let power = 1; power <= high; power *= 2) if (power >= low) powers.push(power);
  const every = Math.ceil(powers.length / most);
  return powers.filter((_, index) => (powers.length - 1 - index) % every === 0);
}

function linearTicks(values) {
  const low = Math.min(...values, 0), high = Math.max(...values), raw = (high - low) / 5 || 1;
  const unit = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 2.5, 3, 5, 10].map((part) => part * unit).find((part) => part >= raw * 0.999);
  const ticks = [];
  for (let tick = Math.floor(low / step); (tick - 1) * step < high - step * 0.001; tick++) ticks.push(Number((tick * step).toPrecision(10)));
  return ticks;
}

function logTicks(values) {
  const low = Math.min(...values), high = Math.max(...values), ticks = [];
  for (let unit = 10 ** Math.floor(Math.log10(low)); unit <= high * 100; unit *= 10)
    for (const part of [1, 2, 5]) ticks.push(part * unit);
  const first = ticks.findLastIndex((tick) => tick <= low), last = ticks.findIndex((tick) => tick >= high);
  return ticks.slice(first, Math.max(last, first + 1) + 1);
}

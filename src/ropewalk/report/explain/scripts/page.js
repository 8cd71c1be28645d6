// Put the page together: sliders, buttons, charts.

for (const input of document.querySelectorAll(".length-input")) {
  const output = input.parentElement.querySelector("output");
  input.max = data.stops.length - 1;
  input.addEventListener("input", () => update({ stop: Number(input.value) }));
  drawings.push(() => {
    const length = data.stops[state.stop];
    input.value = state.stop;
    output.textContent = fill(texts.length, { count: count(length), ratio: quantity(length / data.originalLength) });
    input.setAttribute("aria-valuetext", output.textContent);
  });
}
document.querySelectorAll(".circle").forEach(makeCircle);
makeStrips(document.querySelector(".strips"));
makePairsTable(document.querySelector("[data-table=pairs]"));

const labels = data.methods.map((method) => method.label);
const toLines = (lines, first = 0) => lines.map((values, index) => ({ label: labels[index + first], index: index + first, values }));
// A measured scaling has the color that it has in the other pictures, if it is in them.
let unused = labels.length;
const measured = (data.curve?.labels ?? []).map((label) => ({ label, index: labels.includes(label) ? labels.indexOf(label) : unused++ }));
const charts = {
  scores: () => ({ x: data.scores.x, lines: toLines(data.scores.lines), isLogX: true, xName: texts.distance, yName: texts.score,
    mark: { x: data.originalLength, label: texts.end } }),
  stale: () => ({ x: data.stale.x, lines: toLines(data.stale.lines, 1), xName: texts.position, yName: texts.degrees,
    level: { y: 90, label: texts.chance } }),
  curve: () => ({ x: data.curve.x, lines: data.curve.lines.map((values, index) => ({ ...measured[index], values })),
    isLogX: true, isLogY: true, xName: texts.text_length, yName: texts.perplexity, mark: { x: data.originalLength, label: texts.end } }),
};
for (const figure of document.querySelectorAll(".chart")) makeChart(figure, charts[figure.dataset.chart]());

const play = document.getElementById("play");
let playing = null;
play.addEventListener("click", () => {
  if (playing) clearInterval(playing);
  playing = playing ? null : setInterval(() => update({ slow: (state.slow + 1) % data.rotations.length }), 250);
  play.textContent = playing ? texts.pause : texts.play;
});

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const shown = root.dataset.theme ?? (isDark ? "dark" : "light");
  root.dataset.theme = shown === "dark" ? "light" : "dark";
});

for (const button of document.querySelectorAll(".copy")) {
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("pre");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = texts.copied;
    setTimeout(() => (button.textContent = texts.copy), 1500);
  });
}

// Begin at the target, or at the first stop beyond it.
update({ stop: Math.max(data.stops.findIndex((stop) => stop >= Math.max(data.target, data.originalLength)), 0) });

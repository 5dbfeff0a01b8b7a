"use strict";
// The three panels that Plotly draws: every axis beside the other, curves, and two axes against each other.
// Each is drawn from the configurations that match, best first, and from what is highlighted.

const SHADES = 8;
// What a browser draws at once, and a reader can tell apart; filters show the others.
const [LINES, CURVES, MARKS] = [1000, 400, 2000];
const PINS = [
  ["#e6194b", "solid", "star"],
  ["#f58231", "dash", "square"],
  ["#f032e6", "dot", "diamond"],
  ["#9a6324", "dashdot", "cross"],
  ["#808080", "longdash", "triangle-up"],
];
// From the best to the worst: what is best contrasts most with the page.
const RAMPS = {
  light: ["#440154", "#3b528b", "#21918c", "#5ec962", "#cdbb1e"],
  dark: ["#fde725", "#5ec962", "#21918c", "#3b6fa8", "#5b4a9a"],
};
const darkness = matchMedia("(prefers-color-scheme: dark)");
const ramp = () => RAMPS[darkness.matches ? "dark" : "light"];
// Lines over the same values lie side by side: so far up or down at most, as a share of the axis.
const ASIDE = 0.012;

// Plotly reads some HTML in its labels; names are no HTML.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const shown = (value) => (value === null ? "-" : String(Number(value.toPrecision(4))));
const position = (axis, c) => axis.at[axis.codes[c]];
const valueOf = (axis, c) => axis.texts[axis.codes[c]];

// A color of the ramp; t from 0, the best, to 1.
function shade(t) {
  const k = Math.min(Math.floor(t * 4), 3);
  const [from, to] = [k, k + 1].map((i) => ramp()[i].match(/\w\w/g).map((hex) => parseInt(hex, 16)));
  return `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * (t * 4 - k))).join()})`;
}

// The interval around the values from the i-th to the j-th, up to halfway to their neighbours.
function around(axis, i, j) {
  const pad = (axis.at[axis.at.length - 1] - axis.at[0]) * 0.02 || 0.5;
  const border = (k, next) => (next in axis.at ? (axis.at[k] + axis.at[next]) / 2 : axis.at[k] + pad * (next - k));
  return [border(i, i - 1), border(j, j + 1)];
}

// The first tick, and those after it that leave room for text.
function ticks(axis, most) {
  const gap = (axis.at[axis.at.length - 1] - axis.at[0]) / most;
  const kept = [];
  for (const tick of axis.ticks) if (!kept.length || tick[0] - kept[kept.length - 1][0] >= gap) kept.push(tick);
  return { tickvals: kept.map(([at]) => at), ticktext: kept.map(([, text]) => plain(text)) };
}

// Of configurations in order: the best, and as many from all the rest.
function few(order, most) {
  const half = most / 2;
  const pace = (order.length - half) / half;
  const isNext = (i) => Math.floor((i - half) / pace) !== Math.floor((i - half - 1) / pace);
  return order.length <= most ? order : order.filter((_, i) => i < half || isNext(i));
}

// For each configuration 0 if it is the best, 1 from the third quartile, or from the loss before training, upwards.
function scores(loss) {
  const all = loss.codes.map((_, c) => c);
  const finite = all.filter((c) => valueOf(loss, c) !== "diverged").map((c) => position(loss, c));
  const lowest = finite.length ? finite[0] : 0;
  // What was stopped comes after the others, whatever its loss.
  const sorted = Float64Array.from(finite).sort();
  const quartile = finite.length ? sorted[Math.floor(0.75 * finite.length)] : 1;
  const highest = Math.max(Math.min(quartile, loss.initial), lowest + 1e-9);
  const score = all.map((c) => Math.min(Math.max((position(loss, c) - lowest) / (highest - lowest), 0), 1));
  const text = shown(loss.note ? 10 ** highest : highest);
  return { score, ends: [finite.length ? loss.texts[0] : "-", text] };
}

function layout({ xaxis, yaxis, ...rest }) {
  const style = getComputedStyle(document.body);
  const axis = { gridcolor: style.getPropertyValue("--line"), zeroline: false, automargin: true };
  return {
    paper_bgcolor: style.backgroundColor, plot_bgcolor: style.backgroundColor,
    font: { color: style.color, family: style.fontFamily, size: 12 },
    margin: { l: 55, r: 15, t: 15, b: 45 }, showlegend: false, hovermode: "closest",
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}
const show = (element, traces, more) =>
  window.Plotly.react(element, traces, layout(more), { displaylogo: false, responsive: true });

// Some configurations as lines of few colors, the best on top, and those that are pinned above them.
// pathOf(configurations): their x and y, with gaps, and who owns each point. isDotted: for each; those are below.
function linesOf(order, pinned, score, pathOf, isDotted = () => false) {
  const bins = Array.from({ length: 2 * SHADES }, () => []);
  for (const c of order) bins[Math.min(Math.floor(score[c] * SHADES), SHADES - 1) + isDotted(c) * SHADES].push(c);
  const common = { type: "scatter", hoverinfo: "none" };
  const lines = bins.map((members, i) => ({
    ...common, ...pathOf(members), mode: "lines", opacity: pinned.length ? 0.3 : 0.75,
    line: { color: shade(((i % SHADES) + 0.5) / SHADES), width: 1, dash: i < SHADES ? "solid" : "dot" },
  }));
  const pins = pinned.map((c, i) => ({
    ...common, ...pathOf([c]), mode: "lines+markers", line: { color: PINS[i][0], dash: PINS[i][1], width: 2.5 },
    marker: { symbol: PINS[i][2], size: 6 },
  }));
  return [...lines.reverse().filter(({ x }) => x.length), ...pins];
}

const spanOf = (axis) => around(axis, 0, axis.at.length - 1);
const heightOf = (axis, at) => (at - spanOf(axis)[0]) / (spanOf(axis)[1] - spanOf(axis)[0]);
const asideOf = (axis) => (axis.at.length > 30 ? 0 : ASIDE);

function drawParallel(element, axes, selected, state, score) {
  const n = score.length;
  const spans = axes.map((axis) => [spanOf(axis)[0], spanOf(axis)[1] - spanOf(axis)[0]]);
  const heights = (c) =>
    axes.map((axis, a) => (position(axis, c) - spans[a][0]) / spans[a][1] + asideOf(axis) * ((2 * c) / n - 1));
  const pathOf = (members) => ({
    x: members.flatMap(() => [...axes.keys(), null]),
    y: members.flatMap((c) => [...heights(c), null]),
    customdata: members.flatMap((c) => Array(axes.length + 1).fill(c)),
  });
  const paper = getComputedStyle(document.body).backgroundColor;
  // Every optimizer of thirty has its name, in smaller letters.
  const labels = axes.map((axis) => ticks(axis, axis.words ? 30 : 12));
  const annotations = axes.flatMap((axis, a) => {
    const { tickvals, ticktext } = labels[a];
    const font = { size: tickvals.length > 16 ? 9 : 11 };
    const common = { x: a, showarrow: false, xanchor: "right", xshift: -3, font, bgcolor: paper };
    return tickvals.map((at, i) => ({ ...common, y: heightOf(axis, at), text: ticktext[i] }));
  });
  const box = (axis, [low, high]) => {
    const a = axes.indexOf(axis);
    const [y0, y1] = [low, high].map((at) => Math.min(Math.max(heightOf(axis, at), -0.02), 1.02));
    return { type: "rect", x0: a - 0.05, x1: a + 0.05, y0, y1, line: { width: 1 }, fillcolor: "rgba(128,128,128,0.3)" };
  };
  const brushes = [...state.brushes].flatMap(([axis, ranges]) => ranges.map((range) => box(axis, range)));
  const stem = { type: "line", y0: 0, y1: 1, layer: "below", line: { width: 1, color: "#888" } };
  const label = { tickvals: [...axes.keys()], ticktext: axes.map((axis) => plain(axis.label)), side: "top" };
  return show(element, linesOf(few(selected, LINES), state.pinned, score, pathOf, state.stopped), {
    dragmode: "select", selections: [], annotations,
    shapes: [...axes.map((_, a) => ({ ...stem, x0: a, x1: a })), ...brushes],
    margin: { l: 15 + 6 * Math.max(...labels[0].ticktext.map((text) => text.length)), r: 15, t: 40, b: 10 },
    xaxis: { ...label, range: [-0.1, axes.length - 0.65], showgrid: false, fixedrange: true },
    yaxis: { range: [-0.02, 1.02], visible: false, fixedrange: true },
  });
}

// The axis nearest to the middle of a box, and the values within the box.
function brushed(axes, { x, y }) {
  const axis = axes[Math.min(Math.max(Math.round((x[0] + x[1]) / 2), 0), axes.length - 1)];
  const [start, end] = spanOf(axis);
  const [low, high] = [Math.min(...y) - asideOf(axis), Math.max(...y) + asideOf(axis)];
  return [axis, [start + low * (end - start), start + high * (end - start)]];
}

// Whether a metric has a log scale, and the range and ticks in which most of its curves lie.
function scaleOf({ name, values }, initial) {
  const log = name !== "eval_accuracy" && values.every((value) => value === null || value >= 0);
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value !== null && (!log || value > 0)) [low, high] = [Math.min(low, value), Math.max(high, value)];
  }
  if (low > high) return { log, yaxis: { type: log ? "log" : "linear" } };
  if (log) high = Math.max(Math.min(high, 3 * initial), 1.1 * low);
  if (!log) return { log, yaxis: { range: [low - 0.04 * (high - low), high + 0.04 * (high - low)] } };
  const [from, to] = [Math.log10(low), Math.log10(high)];
  const margin = 0.04 * (to - from);
  const decades = Array.from({ length: Math.ceil(to) - Math.floor(from) + 1 }, (_, k) => 10 ** (Math.floor(from) + k));
  const tickvals = decades.flatMap((decade) => (to - from < 4 ? [1, 2, 5] : [1]).map((digit) => digit * decade));
  const fixed = to - from < 8 ? { tickvals, ticktext: tickvals.map(shown) } : {};
  return { log, yaxis: { type: "log", range: [from - margin, to + margin], ...fixed } };
}

// A stroke at the last point of each curve that ends early.
function endsOf(order, { runs, runsOf, step }, { values }, state, score) {
  const some = order.filter(state.stopped).flatMap((c) => runsOf[c]).filter(state.isCut);
  const last = (run) => runs.start[run + 1] - 1;
  const color = some.map((run) => shade(score[runs.configuration[run]]));
  return {
    type: "scatter", mode: "markers", hoverinfo: "none", customdata: some,
    x: some.map((run) => step[last(run)]), y: some.map((run) => values[last(run)]),
    marker: { symbol: "line-ns-open", size: 9, color, line: { width: 1.5 } },
  };
}

// customdata: the run of each point.
function drawCurves(element, { runs, runsOf, step }, metric, selected, state, score) {
  const { log, yaxis } = metric.scale;
  const pathOf = (members) => {
    const some = members.flatMap((c) => runsOf[c]);
    const length = some.reduce((sum, run) => sum + runs.start[run + 1] - runs.start[run] + 1, 0);
    const [x, y] = [new Float64Array(length).fill(NaN), new Float64Array(length).fill(NaN)];
    const customdata = Array(length);
    let k = 0;
    for (const run of some) {
      for (let i = runs.start[run]; i < runs.start[run + 1]; i++, k++) {
        const value = metric.values[i];
        x[k] = step[i];
        y[k] = value === null || (log && value <= 0) ? NaN : value;
        customdata[k] = run;
      }
      // A gap.
      k++;
    }
    return { x, y, customdata };
  };
  const order = few(selected, CURVES);
  const ends = endsOf(order, { runs, runsOf, step }, metric, state, score);
  return show(element, [...(ends.x.length ? [ends] : []), ...linesOf(order, state.pinned, score, pathOf)], {
    uirevision: metric.name,
    xaxis: { title: { text: "step" } },
    yaxis: { title: { text: plain(metric.label) + (log ? " (log)" : "") }, ...yaxis },
  });
}

// For each pair of values the best configuration that has it. others: axes that are held as in the best of all.
// customdata: the configuration of each point or cell.
function drawOver(element, [across, up], others, selected, state, score) {
  const best = new Map();
  for (const c of selected) {
    const place = across.codes[c] * up.at.length + up.codes[c];
    if (others.every((axis) => axis.codes[c] === axis.codes[selected[0]]) && !best.has(place)) best.set(place, c);
  }
  const size = across.at.length * up.at.length;
  const isGrid = [across, up].every((axis) => axis.isAxis && axis.at.length <= 40) && score.length >= size / 3;
  const colors = { colorscale: ramp().map((color, i) => [i / 4, color]) };
  const marks = { type: "scatter", mode: "markers", hoverinfo: "none" };
  const place = (axis, c) => (isGrid ? axis.codes[c] : position(axis, c));
  let trace;
  if (isGrid) {
    const cells = up.texts.map((_, j) => across.texts.map((_, i) => best.get(i * up.at.length + j)));
    const each = (value) => cells.map((row) => row.map((c) => (c === undefined ? null : value(c))));
    const sign = (c) => (state.diverged(c) ? "✕" : state.stopped(c) ? "○" : "");
    const text = cells.map((row) => row.map((c) => (c === undefined ? "" : sign(c))));
    trace = {
      type: "heatmap", z: each((c) => score[c]), zmin: 0, zmax: 1, customdata: each((c) => c), text,
      texttemplate: "%{text}", showscale: false, hoverinfo: "none", xgap: 1, ygap: 1, ...colors,
    };
  } else {
    const points = few([...best.values()], MARKS).reverse();
    const symbol = points.map((c) => (state.diverged(c) ? "x" : state.stopped(c) ? "circle-open" : "circle"));
    const [size, width] = [[6, 7], [1.5, 0]].map(([hollow, full]) => points.map((c) => (state.stopped(c) ? hollow : full)));
    const marker = { color: points.map((c) => score[c]), symbol, cmin: 0, cmax: 1, size, line: { width }, ...colors };
    const [x, y] = [across, up].map((axis) => points.map((c) => place(axis, c)));
    trace = { ...marks, x, y, customdata: points, marker };
  }
  const pins = state.pinned.map((c, i) => ({
    ...marks, x: [place(across, c)], y: [place(up, c)], customdata: [c],
    marker: { symbol: PINS[i][2], size: 14, color: PINS[i][0], line: { color: "white", width: 1.5 } },
  }));
  const axisOf = (axis, most) => ({
    title: { text: plain(axis.label + (isGrid ? "" : axis.note)) }, showgrid: !isGrid,
    ...(isGrid ? { tickvals: [...axis.at.keys()], ticktext: axis.texts.map(plain) } : ticks(axis, most)),
  });
  const uirevision = `${across.name} ${up.name}`;
  return show(element, [trace, ...pins], { uirevision, xaxis: axisOf(across, 8), yaxis: axisOf(up, 10) });
}

"use strict";
// The interactive part of a report: what a reader chooses, the table, and what links them to the panels of panels.js.
// `interactive.content` says what the numbers are.

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
const button = (textContent, more) => make("button", { type: "button", textContent, ...more });
const within = (ranges, at) => !ranges || ranges.some(([low, high]) => low <= at && at <= high);

// A filter by words is a box each, one by numbers two sliders. `follow` shows what was chosen elsewhere.
function boxes(axis, state, update) {
  const inputs = axis.texts.map(() => make("input", { type: "checkbox", checked: true }));
  const labels = inputs.map((input, i) => make("label", {}, input, ` ${axis.texts[i]} `));
  const field = make("fieldset", {}, make("legend", { textContent: axis.label }), ...labels);
  field.addEventListener("change", () => {
    const kept = inputs.flatMap((input, i) => (input.checked ? [around(axis, i, i)] : []));
    if (kept.length === inputs.length) state.brushes.delete(axis);
    else state.brushes.set(axis, kept);
    update();
  });
  const follow = () => inputs.forEach((input, i) => {
    input.checked = within(state.brushes.get(axis), axis.at[i]);
  });
  return { field, follow };
}

function sliders(axis, state, update) {
  const max = axis.at.length - 1;
  const slider = (word, value) =>
    make("input", { type: "range", min: 0, max, value, ariaLabel: `${axis.label} ${word}` });
  const [from, to, said] = [slider("from", 0), slider("to", max), make("output", {})];
  const field = make("fieldset", {}, make("legend", { textContent: axis.label }), from, to, said);
  field.addEventListener("input", ({ target }) => {
    if (+from.value > +to.value) from.value = to.value = target.value;
    if (+from.value === 0 && +to.value === max) state.brushes.delete(axis);
    else state.brushes.set(axis, [around(axis, +from.value, +to.value)]);
    update();
  });
  const follow = () => {
    const kept = axis.at.flatMap((at, i) => (within(state.brushes.get(axis), at) ? [i] : []));
    const [first, last] = [kept[0], kept[kept.length - 1]];
    if (kept.length) [from.value, to.value] = [first, last];
    said.textContent = kept.length ? `${axis.texts[first]} to ${axis.texts[last]}` : "none";
  };
  return { field, follow };
}

// A table of configurations, those that are pinned first.
function table(columns, cell, state, pin, update) {
  const value = (column, c) => (column.ranks ? c : column.at ? position(column, c) : column.values[c] ?? Infinity);
  const heads = columns.map((column) => make("th", { scope: "col" }, button(column.label)));
  heads.forEach((head, i) => head.firstChild.addEventListener("click", () => {
    state.ascending = state.sort !== columns[i] || !state.ascending;
    state.sort = columns[i];
    update();
  }));
  const more = button("Show more rows");
  more.addEventListener("click", () => { state.rows += 200; update(); });
  const body = make("tbody", {});
  const head = make("thead", {}, make("tr", {}, make("th", { scope: "col", textContent: "#" }), ...heads));

  function row(c) {
    const i = state.pinned.indexOf(c);
    const first = button(c + 1, { ariaPressed: String(i >= 0), title: "Highlight in every panel" });
    const cells = columns.map((column) => make("td", { textContent: cell(column, c) }));
    const found = make("tr", { className: i >= 0 ? "pinned" : "" }, make("td", {}, first), ...cells);
    if (i >= 0) found.style.setProperty("--pin", PINS[i][0]);
    found.addEventListener("click", () => pin(c));
    return found;
  }
  function draw(selected) {
    const sign = state.ascending ? 1 : -1;
    const order = selected.map((c) => [value(state.sort, c), c]);
    order.sort(([one, i], [other, j]) => (one === other ? i - j : one < other ? -sign : sign));
    const others = order.map(([, c]) => c).filter((c) => !state.pinned.includes(c));
    const direction = state.ascending ? "ascending" : "descending";
    heads.forEach((th, i) => { th.ariaSort = columns[i] === state.sort ? direction : "none"; });
    body.replaceChildren(...[...state.pinned, ...others.slice(0, state.rows)].map(row));
    more.hidden = others.length <= state.rows;
  }
  return { element: make("table", { id: "configurations" }, head, body), more, draw };
}

async function explore() {
  const { axes, results, runs, metrics, step, initial, thinned, early } = JSON.parse(await unpack("sweep"));
  const library = document.createElement("script");
  library.textContent = await unpack("plotly");
  document.head.append(library);

  const [chosen, loss] = [axes.slice(0, -1), axes[axes.length - 1]];
  const all = loss.codes.map((_, c) => c);
  const runsOf = all.map(() => []);
  runs.configuration.forEach((c, run) => runsOf[c].push(run));
  chosen.forEach((axis) => { axis.isAxis = true; });
  metrics.forEach((metric) => { metric.scale = scaleOf(metric, initial); });
  const { score, ends } = scores(loss);
  const stopped = (c) => early !== null && early.steps[c] !== null;
  const lossOf = (c) => valueOf(loss, c) + (stopped(c) ? ` at step ${early.steps[c]}, ${early.words}` : "");
  // No final losses: sorted by them, what was stopped comes after the others.
  loss.ranks = early !== null;
  const named = (c) =>
    chosen.filter((axis) => valueOf(axis, c) !== "-").map((axis) => `${axis.label} ${valueOf(axis, c)}`).join(", ");
  const percent = (value) => (value === null ? "-" : `${(100 * value).toFixed(2)}%`);
  const cell = (column, c) => {
    if (column.texts) return valueOf(column, c);
    if (column.name === "steps_to_target_median" && column.values[c] === null) return stopped(c) ? "stopped" : "missed";
    return (column.name === "eval_accuracy_median" ? percent : shown)(column.values[c]);
  };
  const columns = [...axes, ...results];
  const searched = all.map((c) => columns.map((one) => `${one.label} ${cell(one, c)}`).join(", ").toLowerCase());

  // What the reader has chosen; everything is drawn from it.
  const diverged = (c) => valueOf(loss, c) === "diverged";
  const isCut = (run) => early.runs[run];
  const choices = { brushes: new Map(), words: "", pinned: [], sort: loss, ascending: true, rows: 50 };
  const state = { ...choices, diverged, stopped, isCut };
  function pin(c) {
    const others = state.pinned.filter((other) => other !== c);
    state.pinned = others.length < state.pinned.length ? others : [...others, c].slice(-PINS.length);
    update();
  }

  const select = (id, options, value) => {
    const items = options.map((text, i) => make("option", { value: i, textContent: text }));
    const element = make("select", { id }, ...items);
    element.value = value;
    element.addEventListener("change", () => update());
    return element;
  };
  const labels = axes.map(({ label }) => label);
  const x = Math.max(chosen.findIndex((axis) => !axis.words), 0);
  const y = chosen.length < 2 ? axes.length - 1 : (x + 1) % chosen.length;
  const [selectX, selectY] = [select("x", labels, x), select("y", labels, y)];
  const selectRest = select("rest", ["at their best", "as in the best configuration"], 0);
  const selectMetric = select("metric", metrics.map(({ label }) => label), 0);

  const words = make("input", { type: "search", id: "words", placeholder: "adam, or lr 1e-3" });
  words.addEventListener("input", () => { state.words = words.value.toLowerCase(); update(); });
  const clear = button("Show all");
  clear.addEventListener("click", () => { state.brushes.clear(); state.words = words.value = ""; update(); });
  const release = button("Remove highlights");
  release.addEventListener("click", () => { state.pinned = []; update(); });

  const filters = axes.map((axis) => (axis.words ? boxes : sliders)(axis, state, () => update()));
  const [parallel, curves, over] = ["parallel", "curves", "over"].map((id) => make("div", { id, className: "panel" }));
  const list = table(columns, cell, state, pin, () => update());
  const count = make("p", { id: "count", ariaLive: "polite" });
  const [tip, bar] = [make("div", { id: "tip", hidden: true }), make("span", { className: "ramp" })];

  let pending = false;
  function update() {
    if (!pending) requestAnimationFrame(draw);
    pending = true;
  }
  async function draw() {
    pending = false;
    const brushes = [...state.brushes];
    const fits = (c) => brushes.every(([axis, ranges]) => within(ranges, position(axis, c)));
    const selected = all.filter((c) => searched[c].includes(state.words) && fits(c));
    filters.forEach(({ follow }) => follow());
    const best = selected.length ? ` Best: ${named(selected[0])}; evaluation loss ${lossOf(selected[0])}.` : "";
    const most = `The panels draw at most ${LINES} lines, the curves of ${CURVES}, and ${MARKS} points:`;
    const left = selected.length > CURVES ? ` ${most} the best, and some of all others.` : "";
    count.textContent = `${selected.length} of ${all.length} configurations.${best}${left}`;
    bar.style.background = `linear-gradient(to right, ${ramp().join()})`;
    release.disabled = !state.pinned.length;
    list.draw(selected);
    const pair = [axes[selectX.value], axes[selectY.value]];
    const others = selectRest.value === "1" ? chosen.filter((axis) => !pair.includes(axis)) : [];
    await Promise.all([
      drawParallel(parallel, axes, selected, state, score),
      drawCurves(curves, { runs, runsOf, step }, metrics[selectMetric.value], selected, state, score),
      drawOver(over, pair, others, selected, state, score),
    ]);
    section.dataset.drawn = Number(section.dataset.drawn || 0) + 1;
  }

  const section = document.getElementById("explore");
  const controls = (...children) => make("div", { className: "controls" }, ...children);
  const labelled = (text, element) => make("label", {}, `${text} `, element);
  const heading = (textContent) => make("h3", { textContent });
  const scroll = (element) => make("div", { className: "scroll" }, element);
  const fields = make("div", { className: "filters" }, ...filters.map(({ field }) => field));
  const help =
    "Drag a box over an axis of the first panel, or move a slider, to filter. Click a curve, a cell or a row to " +
    "highlight its configuration everywhere.";
  const hollow = early && "Dotted lines over the axes, hollow points, cells with a ○, and curves that end at a |: " +
    `${early.words}, with the loss at the last evaluation. They come after the others.`;
  section.append(
    make("p", {}, help),
    make("p", {}, `loss ${ends[0]} `, bar, ` ${ends[1]} and above, or diverged (✕)`),
    ...(hollow ? [make("p", { id: "early" }, hollow)] : []),
    controls(labelled("Containing", words), clear, release),
    make("details", { open: innerWidth > 700 }, make("summary", { textContent: "Filters" }), fields),
    count,
    heading("All axes"), scroll(parallel),
    heading("Curves"), controls(labelled("Of", selectMetric), thinned ? "Some evaluations are left out." : ""), curves,
    heading("Two axes"),
    controls(labelled("Across", selectX), labelled("up", selectY), labelled("others", selectRest)), over,
    heading("Configurations"), scroll(list.element), list.more, tip,
  );
  parallel.style.minWidth = `${95 * axes.length}px`;
  section.hidden = false;
  await draw();

  // found: the configuration of a point, and what there is to say about it.
  function listen(element, found) {
    element.on("plotly_hover", ({ points, event }) => {
      const it = found(points[0]);
      tip.hidden = !it;
      if (!it) return;
      tip.textContent = it.text;
      tip.style.left = `${Math.max(0, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${event.clientY + 14}px`;
    });
    element.on("plotly_unhover", () => { tip.hidden = true; });
    element.on("plotly_click", ({ points }) => { const it = found(points[0]); if (it) pin(it.c); });
  }
  const ofConfiguration = ({ customdata: c }) =>
    typeof c === "number" ? { c, text: `${named(c)}: evaluation loss ${lossOf(c)}` } : null;
  listen(parallel, ofConfiguration);
  listen(over, ofConfiguration);
  listen(curves, ({ customdata: run, x: at, y: value }) => {
    const c = runs.configuration[run];
    const { label } = metrics[selectMetric.value];
    const ended = stopped(c) && isCut(run) ? `; ${early.words}, at step ${early.steps[c]}` : "";
    return { c, text: `${named(c)}; seed ${runs.seed[run]}, step ${at}: ${label} ${shown(value)}${ended}` };
  });
  parallel.on("plotly_selected", (event) => {
    if (!event || !event.range) return;
    const [axis, range] = brushed(axes, event.range);
    state.brushes.set(axis, [range]);
    update();
  });
  darkness.addEventListener("change", update);
}

// After the document has been painted.
addEventListener("load", () => setTimeout(explore));

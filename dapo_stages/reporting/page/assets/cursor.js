// Values of the charts: a cursor through all that are over iterations, by pointer or keyboard. Without this script
// every dot has a title instead, which the browser shows.

const WIDTH = 460; // of a chart's own coordinates
const charts = [...document.querySelectorAll(".charts > section")].map(chartOf);
const linked = (chart) => charts.filter((other) => other === chart || (chart.over === "iteration" && other.over === "iteration"));

function chartOf(section) {
  const svg = section.querySelector("svg");
  const { over, low, high, left, right } = svg.dataset;
  const names = [...section.querySelectorAll(".legend b")];
  const curves = [...svg.querySelectorAll("g[data-name]")].map((group, index) => {
    const bars = group.querySelector(".bin") !== null;
    const dots = [...group.querySelectorAll("[data-x]")].map((dot) => ({ dot, x: +dot.dataset.x, text: titleOf(dot) }));
    // A title is `iteration 3: name value`; that of a bar names a range instead.
    for (const one of dots) one.value = one.text.slice(one.text.indexOf(`: ${group.dataset.name} `) + group.dataset.name.length + 3);
    return { group, dots, bars, named: names[index], latest: names[index].textContent, thinned: "thinned" in group.dataset };
  });
  const marks = new Map([...svg.querySelectorAll(".mark")].map((mark) => [+mark.dataset.x, titleOf(mark)]));
  const all = new Set([...curves.flatMap((curve) => curve.dots.map((one) => one.x)), ...marks.keys()]);
  const at = (x) => +left + ((x - low) / (high - low)) * (right - left);
  const bars = curves.some((curve) => curve.bars);
  return { svg, curves, marks, at, over: bars ? "" : over, xs: [...all].sort((a, b) => a - b), line: null,
    said: section.querySelector(".at"), name: svg.getAttribute("aria-label") };
}

/** The text of an element's title, which is removed: the browser would show it over the chart. */
function titleOf(element) {
  const title = element.querySelector("title");
  title?.remove();
  return title?.textContent ?? "";
}

/** What a curve has at x; a long one is drawn without all of its points, so there the nearest within a few pixels. */
function valueAt(chart, curve, x) {
  const found = curve.dots.find((one) => one.x === x);
  if (found || !curve.thinned) return found;
  const near = (one) => Math.abs(chart.at(one.x) - chart.at(x));
  const best = curve.dots.reduce((a, b) => (near(b) < near(a) ? b : a));
  return near(best) < 4 ? best : undefined;
}

/** Show the values at x in a chart; null: the latest ones, as at first. */
function showAt(chart, x) {
  for (const here of chart.svg.querySelectorAll(".here")) here.classList.remove("here");
  chart.line?.remove();
  chart.line = null;
  let place = "";
  for (const curve of chart.curves) {
    const found = x === null ? null : valueAt(chart, curve, x);
    found?.dot.classList.add("here");
    const elsewhere = found && found.x !== x ? ` (${found.x})` : "";
    curve.named.textContent = x === null ? curve.latest : found ? found.value + elsewhere : "–";
    if (found && curve.bars) place ||= found.text.slice(0, found.text.indexOf(": "));
  }
  if (x === null) {
    chart.said.textContent = "";
    return;
  }
  const { top, bottom } = chart.svg.dataset;
  chart.line = document.createElementNS(chart.svg.namespaceURI, "line");
  const ends = { class: "cursor", x1: chart.at(x), x2: chart.at(x), y1: top, y2: bottom };
  for (const [name, value] of Object.entries(ends)) chart.line.setAttribute(name, value);
  chart.svg.append(chart.line);
  chart.said.textContent = chart.marks.get(x) ?? (place || `${chart.svg.dataset.over} ${x}`);
}

function moveTo(chart, x) {
  for (const other of charts) showAt(other, linked(chart).includes(other) ? x : null);
  chart.x = x;
  if (x === null) return;
  const values = chart.curves.map((curve) => `${curve.group.dataset.name} ${curve.named.textContent}`);
  chart.svg.setAttribute("aria-valuenow", x);
  chart.svg.setAttribute("aria-valuetext", `${chart.said.textContent}: ${values.join(", ")}`);
}

function nearest(chart, event) {
  const box = chart.svg.getBoundingClientRect();
  const place = ((event.clientX - box.left) * WIDTH) / box.width;
  const far = (x) => Math.abs(chart.at(x) - place);
  return chart.xs.reduce((a, b) => (far(b) < far(a) ? b : a));
}

/** All charts are one stop of the tab key; the arrow keys lead on from there. */
function reach(chart) {
  for (const other of charts) other.svg.tabIndex = other === chart ? 0 : -1;
}

function stepIn(chart, key) {
  const now = chart.xs.indexOf(chart.x ?? chart.xs.at(-1));
  const last = chart.xs.length - 1;
  const next = { ArrowLeft: now - 1, ArrowRight: now + 1, PageDown: now - 10, PageUp: now + 10, Home: 0, End: last }[key];
  return next === undefined ? undefined : chart.xs[Math.min(Math.max(next, 0), last)];
}

for (const chart of charts) {
  const { svg, xs } = chart;
  const said = { role: "slider", "aria-valuemin": xs[0], "aria-valuemax": xs.at(-1), "aria-valuenow": xs.at(-1) };
  for (const [name, value] of Object.entries(said)) svg.setAttribute(name, value);
  svg.addEventListener("pointermove", (event) => moveTo(chart, nearest(chart, event)));
  svg.addEventListener("pointerdown", (event) => moveTo(chart, nearest(chart, event)));
  svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") moveTo(chart, null); });
  svg.addEventListener("focus", () => { reach(chart); if (svg.matches(":focus-visible")) moveTo(chart, chart.x ?? xs.at(-1)); });
  svg.addEventListener("blur", () => moveTo(chart, null));
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const other = charts[charts.indexOf(chart) + by];
    const x = stepIn(chart, event.key);
    if (other) other.svg.focus();
    else if (x !== undefined) moveTo(chart, x);
    else if (event.key === "Escape") moveTo(chart, null);
    else if (!by) return;
    event.preventDefault();
  });
}
if (charts.length) reach(charts[0]);

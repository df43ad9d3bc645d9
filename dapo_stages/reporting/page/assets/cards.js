// A group: its image, its question, and its completions side by side.

function show() {
  const { found, page } = state;
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  const completions = found.reduce((sum, entry) => sum + entry.completions.length, 0);
  document.getElementById("count").textContent =
    `${plural(completions, "completion")} of ${plural(found.length, "question")}, page ${page + 1} of ${pages}`;
  document.getElementById("previous").disabled = page === 0;
  document.getElementById("next").disabled = page === pages - 1;
  state.kept = null;
  boxes.clear();
  list.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(card));
  for (const [box, { entry }] of boxes) if (entry.current === box) look(box, null);
}

function card(entry) {
  const { group } = entry;
  const weights = group.completions.flatMap((one) => one.weights).sort((a, b) => a - b);
  const edge = Math.floor(weights.length / 50); // so that one extreme token does not pale all others
  const range = weights.length ? [weights[edge], weights[weights.length - 1 - edge]] : [1, 1];
  const view = make("div", { className: "view" });
  const details = [
    make("bdi", {}, `answer ${group.solution}`), ` · ${group.correct} of ${group.completions.length} right`,
    group.informative ? " · informative" : "", group.kept ? "" : " · not kept", group.replayed ? " · replayed" : "",
    ` · iteration ${group.iteration}`, group.replayed ? `, sampled in ${group.sampled}` : "",
    group.slice ? make("bdi", {}, ` · ${group.slice}`) : "", make("br"),
    make("bdi", {}, group.id), " · ", make("bdi", {}, group.prompt),
  ];
  const aside = make("aside", {}, view, question(group.problem), make("div", { className: "details" }, ...details));
  if (range[1] > range[0]) aside.append(ramp(range));
  const images = group.images.map((image) => imageElement(image, view));
  const looked = make("div", { className: "looked", "aria-live": "polite" });
  Object.assign(entry, { range, looked, images, current: null, slider: null });
  const heat = entry.completions.find((one) => one.heat)?.heat;
  view.append(make("div", { className: "where" }, heat ? layers(entry, heat) : null, looked));
  const shown = entry.completions.map((one, index) => completion(one, entry, index));
  return make("article", { className: "card group", "aria-label": `question ${group.id}` }, aside,
    make("div", { className: "completions" }, ...shown));
}

function question(text) {
  const long = { className: "question long", tabIndex: 0, role: "region", "aria-label": "question" };
  return write(make("div", { dir: "auto", ...(text.length > LONG ? long : { className: "question" }) }), text);
}

function imageElement(image, view) {
  if (!image.uri) {
    view.append(make("p", { className: "soft" }, "The image cannot be shown."));
    return null;
  }
  const canvas = make("canvas", { hidden: true });
  const alt = `image of the question, ${image.width} × ${image.height} pixels`;
  const className = image.width < 160 ? "image small" : "image";
  const frame = make("div", { className }, make("img", { src: image.uri, alt }), canvas);
  frame.style.maxWidth = `${Math.min(250, Math.max(140, image.width))}px`;
  view.append(frame);
  return canvas;
}

function layers(entry, heat) {
  const last = heat.layers.length - 1;
  const value = Math.max(0, heat.layers.indexOf(state.layer));
  entry.slider = make("input", { type: "range", min: 0, max: last, step: 1, "aria-label": "layers" });
  entry.slider.value = value;
  entry.named = make("output", {}, heat.layers[value]);
  entry.slider.addEventListener("input", () => setLayer(entry, heat.layers[+entry.slider.value]));
  return make("div", { className: "layers" }, "layers", entry.slider, entry.named);
}

function setLayer(entry, layer) {
  state.layer = layer;
  if (entry.current) look(entry.current, entry.token);
}

function ramp([low, high]) {
  const steps = [...Array(SHADES).keys()].map((shade) => make("i", { className: `w${shade}` }));
  const scale = make("span", { className: "ramp" }, ...steps);
  return make("div", { className: "details" }, `weight ${number(low)} `, scale, ` ${number(high)}`);
}

function fact(name, value, kind = "") {
  return make("li", { className: kind }, `${name} `, make("b", {}, value));
}

function completion(one, entry, index) {
  const said = make("ul", { className: "said" });
  if (one.advantage !== null) {
    const kind = one.advantage > 0 ? "good" : one.advantage < 0 ? "bad" : "";
    said.append(fact("advantage", (one.advantage > 0 ? "+" : "") + number(one.advantage), kind));
  }
  if (one.reward !== null) said.append(fact("reward", number(one.reward)));
  for (const [name, value] of Object.entries(one.rewards)) {
    said.append(fact(name === "vgr" ? "VGR reward" : name, number(value)));
  }
  if (one.vgr !== null) said.append(fact("VGR", number(one.vgr)));
  said.append(fact("tokens", String(one.tokens.length)));
  if (one.finish === "length") said.append(make("li", {}, "truncated"));
  else if (one.finish !== "stop") said.append(make("li", {}, one.finish));
  if (one.in_loss === false) said.append(make("li", {}, `not in the loss${one.why ? `: ${one.why}` : ""}`));
  const name = `tokens of completion ${index + 1}, ${one.id}`;
  const box = make("div", { className: "tokens", role: "listbox", "aria-label": name, dir: "auto" });
  boxes.set(box, { one, entry });
  if (!entry.current || (one.heat && !boxes.get(entry.current).one.heat)) entry.current = box;
  const parts = [said, box];
  if (!fill(box, LONG)) {
    const more = make("button", { type: "button" }, `Show all ${plural(one.tokens.join("").length, "character")}`);
    more.addEventListener("click", () => { fill(box, Infinity); more.remove(); box.firstChild.focus(); });
    parts.push(more);
  }
  if (one.cut) {
    const rest = `${plural(one.cut, "further character")} only in the Parquet files.`;
    parts.push(make("p", { className: "soft" }, rest));
  }
  parts.push(make("div", { className: "details" }, make("bdi", {}, one.id)));
  return make("section", { className: "completion", "aria-label": `completion ${index + 1}` }, ...parts);
}

function fill(box, room) {
  const { one, entry: { range: [low, high] } } = boxes.get(box);
  const spans = [];
  for (const [index, token] of one.tokens.entries()) {
    if (room <= 0) break;
    const weight = one.weights[index];
    const shade = weight === undefined || high <= low ? 0 : Math.min(Math.max((weight - low) / (high - low), 0), 1);
    const text = token.slice(0, room);
    const name = text.trim() ? {} : { "aria-label": text.includes("\n") ? "line break" : text ? "space" : "empty" };
    const className = `w${Math.round(shade * (SHADES - 1))}`;
    const tabIndex = spans.length ? -1 : 0; // a single tab stop; arrow keys move on from there
    spans.push(write(make("span", { className, role: "option", tabIndex, ...name }), text));
    room -= token.length;
  }
  if (!spans.length) spans.push(make("span", { role: "option", tabIndex: 0 }, "(empty)"));
  box.replaceChildren(...spans);
  return room >= 0;
}

// A group: its image, its question, and its completions side by side.

function show() {
  const { found, page } = state;
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  const completions = found.reduce((sum, entry) => sum + entry.completions.length, 0);
  document.getElementById("count").textContent =
    `${plural(completions, "completion")} of ${plural(found.length, "question")}, page ${page + 1} of ${pages}`;
  if (state.linked && !found.some((entry) => entry.completions.some((one) => one.id === state.linked))) {
    document.getElementById("count").append("; the one that was linked to is in the Parquet files only");
  }
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
    "solution ", make("b", {}, make("bdi", {}, group.solution)),
    ` · ${group.correct} of ${group.completions.length} right`,
    group.informative ? " · informative" : "", group.kept ? "" : " · not kept", group.replayed ? " · replayed" : "",
    ` · iteration ${group.iteration}`, group.replayed ? `, sampled in ${group.sampled}` : "",
    group.slice ? " · slice " : "", group.slice ? make("bdi", {}, group.slice) : "", make("br"),
    make("bdi", {}, group.id), " · ", make("bdi", {}, group.prompt),
  ];
  const aside = make("aside", {}, view, question(group.problem), make("div", { className: "details" }, ...details));
  if (range[1] > range[0]) aside.append(ramp(range));
  const times = new Set(groups.filter((other) => other.prompt === group.prompt).map((other) => other.iteration));
  if (times.size > 1) aside.append(sameQuestion(group.prompt, `The same question in ${plural(times.size, "iteration")}`));
  entry.shares = [];
  const images = group.images.map((image, index) => imageElement(image, index, entry, view));
  const looked = make("div", { className: "looked", "aria-live": "polite" });
  Object.assign(entry, { range, looked, images, key: keyElement(), current: null, slider: null });
  const heat = entry.completions.find((one) => one.heat)?.heat;
  view.classList.toggle("mapped", Boolean(heat));
  const controls = heat ? [viewSwitch(), layers(entry, heat), entry.key] : [];
  view.append(make("div", { className: "where" }, ...controls, looked));
  const shown = entry.completions.map((one, index) => completion(one, entry, index));
  return make("article", { className: "card group", "aria-label": `question ${group.id}` }, aside,
    make("div", { className: "completions" }, ...shown));
}

function question(text) {
  const long = { className: "question long", tabIndex: 0, role: "region", "aria-label": "question" };
  return write(make("div", { dir: "auto", ...(text.length > LONG ? long : { className: "question" }) }), text);
}

/** A button that enlarges the image: as it is, and once more with a canvas for the map. */
function imageElement(image, index, entry, view) {
  if (!image.uri) {
    view.append(make("p", { className: "soft" }, "The image cannot be shown."));
    entry.shares.push({ caption: make("span"), second: "" });
    return null;
  }
  const second = image.second === undefined ? "" : ` at ${image.second} s`;
  const canvas = make("canvas", { hidden: true });
  const alt = `image ${index + 1} of the question${second}, ${image.width} × ${image.height} pixels`;
  const button = make("button", { type: "button", title: "Enlarge",
    className: image.width < 160 ? "image small" : "image" },
    make("span", { className: "plain" }, make("img", { src: image.uri, alt: "" })),
    make("span", { className: "over" }, make("img", { src: image.uri, alt }), canvas));
  button.style.setProperty("--widest", `${Math.min(320, Math.max(140, image.width))}px`);
  button.addEventListener("click", () => enlarge(entry, index, button));
  const caption = make("span", { className: "soft share" }, second.slice(4));
  entry.shares.push({ caption, second: second.slice(4) });
  const strip = second || entry.completions.some((one) => one.shares);
  view.append(strip ? make("figure", { className: "unit" }, button, make("figcaption", {}, caption)) : button);
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

function fact(tag, name, value, kind = "") {
  return make(tag, { className: kind }, name, " ", make("b", {}, value));
}

/** What the model answered, right or wrong, and how that was read. */
function verdict(one) {
  const right = isRight(one);
  const parts = [make("span", { className: "sign", "aria-hidden": "true" }, right ? "✓" : "✗"), ` ${right ? "right" : "wrong"}`];
  if (isAnswered(one)) parts.push(": ", make("b", {}, make("bdi", {}, one.answer)));
  else if (one.read === "none") parts.push(": no answer found");
  const how = isAnswered(one) && one.read in READ ? make("span", { className: "soft" }, `, ${READ[one.read]}`) : null;
  return make("div", { className: right ? "verdict good" : "verdict bad" }, ...parts, how);
}

/** The most important figures in one line, all of them on demand. */
function figuresOf(one) {
  const said = make("ul", { className: "said" });
  for (const [name, value] of Object.entries(one.rewards)) {
    said.append(fact("li", name === "vgr" ? "VGR reward" : name, number(value)));
  }
  said.append(fact("li", "tokens", String(one.tokens.length)), make("li", {}, one.finish === "length" ? "truncated" : one.finish));
  if (one.in_loss === false) said.append(make("li", {}, `not in the loss${one.why ? `: ${one.why}` : ""}`));
  const line = [];
  if (one.advantage !== null) {
    const kind = one.advantage > 0 ? "good" : one.advantage < 0 ? "bad" : "";
    const name = make("abbr", { title: "advantage" }, "adv.");
    line.push(fact("span", name, (one.advantage > 0 ? "+" : "") + number(one.advantage), kind));
  }
  if (one.reward !== null) line.push(fact("span", "reward", number(one.reward)));
  if (one.vgr !== null) line.push(fact("span", "VGR", number(one.vgr)));
  if (!line.length) line.push("figures");
  const summary = make("summary", {}, ...line.flatMap((part, index) => (index ? [" · ", part] : [part])));
  return make("details", { className: "figures" }, summary, said);
}

function completion(one, entry, index) {
  const name = `tokens of completion ${index + 1}, ${one.id}`;
  const box = make("div", { className: "tokens", role: "listbox", "aria-label": name, dir: "auto" });
  boxes.set(box, { one, entry });
  if (!entry.current || (one.heat && !boxes.get(entry.current).one.heat)) entry.current = box;
  const parts = [verdict(one), figuresOf(one), box];
  if (!fill(box, LONG)) {
    const more = make("button", { type: "button" }, `Show all ${plural(one.tokens.join("").length, "character")}`);
    more.addEventListener("click", () => { fill(box, Infinity); more.remove(); box.firstChild.focus(); });
    parts.push(more);
  }
  if (one.cut) {
    const rest = `${plural(one.cut, "further character")} only in the Parquet files.`;
    parts.push(make("p", { className: "soft" }, rest));
  }
  const link = make("a", { href: linkTo(one), title: "Link to this completion" }, make("bdi", {}, one.id));
  parts.push(make("div", { className: "details" }, link));
  const className = one.id === state.linked ? "completion linked" : "completion";
  return make("section", { className, tabIndex: -1, "aria-label": `completion ${index + 1}` }, ...parts);
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

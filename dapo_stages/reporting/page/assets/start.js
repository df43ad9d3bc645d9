// Events of mouse, keyboard and controls.

const tokenOf = (target) => (target instanceof Element ? target.closest(".tokens > span") : null);
const boxOf = (target) => tokenOf(target)?.parentElement;
const place = (token) => [...token.parentElement.children].indexOf(token);

function lookAt(token) {
  if (boxes.get(boxOf(token)).one.tokens.length) look(boxOf(token), place(token));
}

function keep(token) {
  state.kept?.classList.remove("kept");
  state.kept?.removeAttribute("aria-selected");
  state.kept = token === state.kept ? null : token;
  state.kept?.classList.add("kept");
  state.kept?.setAttribute("aria-selected", "true");
  lookAt(token);
}

function step(token, key) {
  const siblings = token.parentElement.children;
  const all = [...boxes.keys()];
  const other = (by) => all[all.indexOf(token.parentElement) + by]?.firstElementChild;
  return { ArrowRight: token.nextElementSibling, ArrowLeft: token.previousElementSibling, Home: siblings[0],
    End: siblings[siblings.length - 1], ArrowDown: other(1), ArrowUp: other(-1) }[key];
}

function start() {
  list.addEventListener("mouseover", (event) => { if (boxOf(event.target)) lookAt(tokenOf(event.target)); });
  list.addEventListener("mouseout", (event) => {
    const box = boxOf(event.target);
    if (!box || boxOf(event.relatedTarget)) return;
    const entry = boxes.get(box).entry;
    const kept = [state.kept, document.activeElement].find((token) => boxes.get(boxOf(token))?.entry === entry);
    if (kept) lookAt(kept);
    else look(box, null);
  });
  list.addEventListener("focusin", (event) => {
    const box = boxOf(event.target);
    if (!box) return;
    for (const token of box.querySelectorAll('[tabindex="0"]')) token.tabIndex = -1;
    event.target.tabIndex = 0;
    lookAt(event.target);
  });
  list.addEventListener("click", (event) => { if (boxOf(event.target)) keep(tokenOf(event.target)); });
  list.addEventListener("keydown", (event) => {
    const token = event.target;
    if (!boxOf(token) || event.ctrlKey || event.altKey || event.metaKey) return;
    const { one, entry } = boxes.get(boxOf(token));
    const layer = one.heat?.layers["1234".indexOf(event.key)];
    const next = step(token, event.key);
    if (next) next.focus();
    else if (layer) setLayer(entry, layer);
    else if (event.key === "v") nextView();
    else if (event.key === "Enter" || event.key === " ") keep(token);
    else return;
    event.preventDefault();
  });

  let waiting = 0;
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(chosen, 120); });
  form.addEventListener("reset", () => setTimeout(chosen));
  form.addEventListener("submit", (event) => { event.preventDefault(); chosen(); });
  const turn = (by) => {
    state.page += by;
    state.linked = "";
    show();
    saveAddress();
    document.getElementById("completions").scrollIntoView();
  };
  document.getElementById("previous").addEventListener("click", () => turn(-1));
  document.getElementById("next").addEventListener("click", () => turn(1));
  document.getElementById("guessed").addEventListener("click", () => { set(GUESSED); chosen(); });
  document.getElementById("csv").addEventListener("click", downloadCsv);
  addEventListener("hashchange", () => { if (readAddress()) goToAddress(); });
  document.addEventListener("click", (event) => {
    const view = event.target instanceof Element && event.target.closest("[data-show]")?.dataset.show;
    if (view) setView(view);
  });
  document.addEventListener("change", (event) => { if (event.target.matches(".smooth")) setSmooth(event.target.checked); });

  const options = (name, values, texts = values) => {
    form.elements[name].append(...values.map((value, index) => make("option", { value }, texts[index])));
    form.elements[name].parentElement.hidden = !values.length;
  };
  const all = groups.flatMap((group) => group.completions);
  const iterations = [...new Set(groups.map((group) => group.iteration))].sort((a, b) => b - a);
  options("iteration", iterations, iterations.map(String));
  options("slice", slices);
  options("finish", [...new Set(all.map((one) => one.finish))].sort());
  const places = new Set(["", "answered", ...all.map(readingOf)]);
  for (const option of [...form.elements.read.options]) if (!places.has(option.value)) option.remove();
}

if (groups.length) {
  for (const element of [form, ...document.querySelectorAll(".found, .help")]) element.hidden = false;
  start();
  setView("map");
  if (readAddress()) goToAddress();
  else choose();
}

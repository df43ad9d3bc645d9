// What is shown of images (map, image, both), and an image as large as the window, to zoom into.

const VIEWS = { map: "map", image: "image", both: "side by side" };
const dialog = document.getElementById("zoom");
const zoom = { entry: null, index: 0, level: 1, from: null };
const LARGEST = 16; // times the size that fits

function viewSwitch() {
  const buttons = Object.entries(VIEWS).map(([view, name]) => {
    const pressed = String(document.body.dataset.view === view);
    return make("button", { type: "button", "data-show": view, "aria-pressed": pressed }, name);
  });
  const smooth = make("input", { type: "checkbox", className: "smooth", checked: document.body.dataset.smooth === "yes" });
  const group = make("span", { role: "group", "aria-label": "shown of the image" }, ...buttons);
  return make("div", { className: "switch" }, group, make("label", {}, smooth, " smooth"));
}

function setView(view) {
  document.body.dataset.view = view;
  for (const button of document.querySelectorAll("[data-show]")) {
    button.setAttribute("aria-pressed", String(button.dataset.show === view));
  }
  if (dialog.open) resizeTo(zoom.level);
}

function nextView() {
  const views = Object.keys(VIEWS);
  setView(views[(views.indexOf(document.body.dataset.view) + 1) % views.length]);
}

function setSmooth(smooth) {
  document.body.dataset.smooth = smooth ? "yes" : "no";
  for (const box of document.querySelectorAll(".smooth")) box.checked = smooth;
}

function enlarge(entry, index, button) {
  Object.assign(zoom, { entry, index, level: 1 });
  const copy = make("div", { className: button.className }, ...[...button.children].map((part) => part.cloneNode(true)));
  const stage = make("div", { className: "stage", tabIndex: 0, role: "region", "aria-label": "image" }, copy);
  const bar = make("div", { className: "bar" });
  const step = (text, name, act) => {
    const made = make("button", { type: "button", "aria-label": name }, text);
    made.addEventListener("click", act);
    bar.append(made);
  };
  const mapped = button.parentElement.classList.contains("mapped");
  if (mapped) bar.append(viewSwitch());
  step("−", "smaller", () => resizeTo(zoom.level / 1.5));
  step("+", "larger", () => resizeTo(zoom.level * 1.5));
  step("fit", "as large as fits", () => resizeTo(1));
  step("Close", "close", () => dialog.close());
  const said = make("p", { className: "looked" });
  dialog.classList.toggle("mapped", mapped);
  dialog.replaceChildren(bar, stage, ...(mapped ? [entry.key.cloneNode(true), said] : []));
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { left, top } = stage.getBoundingClientRect();
    resizeTo(zoom.level * 1.0015 ** -event.deltaY, event.clientX - left, event.clientY - top);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button) return; // fingers scroll
    event.preventDefault();
    stage.focus();
    stage.setPointerCapture(event.pointerId);
    zoom.from = [stage.scrollLeft + event.clientX, stage.scrollTop + event.clientY];
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) stage.scrollTo(zoom.from[0] - event.clientX, zoom.from[1] - event.clientY);
  });
  dialog.showModal();
  stage.focus();
  copyMap();
  resizeTo(1);
}

/** The map, its key and what is said of it, as they are at the group. */
function copyMap() {
  const canvas = dialog.querySelector("canvas");
  const drawn = zoom.entry.images[zoom.index];
  canvas.hidden = drawn.hidden;
  [canvas.width, canvas.height] = [drawn.width, drawn.height];
  canvas.getContext("2d").drawImage(drawn, 0, 0);
  dialog.querySelector(".key")?.replaceWith(zoom.entry.key.cloneNode(true));
  const said = dialog.querySelector(".looked");
  if (said) said.textContent = zoom.entry.looked.textContent;
}

/** So many times as large as fits; what is at x, y of the stage stays there. */
function resizeTo(level, x, y) {
  const stage = dialog.querySelector(".stage");
  const image = stage.querySelector(".over img");
  const both = document.body.dataset.view === "both" && dialog.classList.contains("mapped");
  const [wide, high] = [(stage.clientWidth - 8) / (both ? 2 : 1), stage.clientHeight];
  const [left, top] = [x ?? stage.clientWidth / 2, y ?? stage.clientHeight / 2];
  const [across, down] = [(stage.scrollLeft + left) / stage.scrollWidth, (stage.scrollTop + top) / stage.scrollHeight];
  zoom.level = Math.min(Math.max(level, 1), LARGEST);
  const fits = Math.min(wide, (high * image.naturalWidth) / image.naturalHeight);
  stage.firstChild.style.setProperty("--widest", `${Math.floor(fits * zoom.level)}px`);
  stage.scrollTo(across * stage.scrollWidth - left, down * stage.scrollHeight - top);
}

dialog?.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const layer = boxes.get(zoom.entry.current)?.one.heat?.layers["1234".indexOf(event.key)];
  if (event.key === "+" || event.key === "=") resizeTo(zoom.level * 1.5);
  else if (event.key === "-") resizeTo(zoom.level / 1.5);
  else if (event.key === "0") resizeTo(1);
  else if (event.key === "v") nextView();
  else if (layer) {
    setLayer(zoom.entry, layer);
    copyMap();
  } else return;
  event.preventDefault();
});

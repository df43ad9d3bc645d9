// What is shown of images (map, image, both), and an image as large as the window, to zoom into.

const VIEWS = { map: "map", image: "image", both: "side by side" };
const dialog = document.getElementById("zoom");
const zoom = { entry: null, index: 0, level: 1, at: [0.5, 0.5] }; // `at`: the point in the middle, as shares of the image
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
  Object.assign(zoom, { entry, index, level: 1, at: [0.5, 0.5] });
  const copy = make("div", { className: button.className }, ...[...button.children].map((part) => part.cloneNode(true)));
  const stage = make("div", { className: "stage", tabIndex: 0, role: "region", "aria-label": "image" }, copy);
  const mapped = button.closest(".view").classList.contains("mapped");
  const actions = [
    ["−", "smaller", () => resizeTo(zoom.level / 1.5)], ["+", "larger", () => resizeTo(zoom.level * 1.5)],
    ["fit", "as large as fits", () => resizeTo(1)], ["Close", "close", () => dialog.close()],
  ].map(([text, name, act]) => {
    const made = make("button", { type: "button", "aria-label": name }, text);
    made.addEventListener("click", act);
    return made;
  });
  dialog.classList.toggle("mapped", mapped);
  const below = mapped ? [make("div", { className: "key" }), make("p", { className: "looked" })] : [];
  dialog.replaceChildren(make("div", { className: "bar" }, mapped ? viewSwitch() : null, ...actions), stage, ...below);
  movable(stage);
  dialog.showModal();
  stage.focus();
  copyMap();
  resizeTo(1);
}

/** The wheel zooms, a mouse or a finger drags, two fingers do both. */
function movable(stage) {
  const pointers = new Map();
  const middle = () => [0, 1].map((axis) => mean([...pointers.values()].map((place) => place[axis])));
  const spread = () => {
    const [one, two] = [...pointers.values()];
    return two ? Math.hypot(one[0] - two[0], one[1] - two[1]) : 1;
  };
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    resizeTo(zoom.level * 1.0015 ** -event.deltaY, event.clientX, event.clientY);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    stage.focus();
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId)) return;
    const [before, width] = [middle(), spread()];
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    const [now, size] = [middle(), measured()];
    zoom.at = zoom.at.map((share, axis) => share - (now[axis] - before[axis]) / size[axis]);
    resizeTo((zoom.level * spread()) / width, ...now);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, (event) => pointers.delete(event.pointerId));
  }
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** The map, its key and what is said of it, as they are at the group. */
function copyMap() {
  const canvas = dialog.querySelector("canvas");
  const drawn = zoom.entry.images[zoom.index];
  canvas.hidden = drawn.hidden;
  [canvas.width, canvas.height] = [drawn.width, drawn.height];
  canvas.getContext("2d").drawImage(drawn, 0, 0);
  if (!dialog.classList.contains("mapped")) return;
  dialog.querySelector(".key").replaceWith(zoom.entry.key.cloneNode(true));
  dialog.querySelector(".looked").textContent = zoom.entry.looked.textContent;
}

/** Width and height of the enlarged image. */
function measured() {
  const image = dialog.querySelector(".over img");
  const pane = image.parentElement;
  const fits = Math.min(pane.clientWidth, (pane.clientHeight * image.naturalWidth) / image.naturalHeight);
  return [fits * zoom.level, (fits * zoom.level * image.naturalHeight) / image.naturalWidth];
}

/** So many times as large as fits; what is at x, y of the window stays there. Side by side, both show the same part. */
function resizeTo(level, x, y) {
  const panes = [...dialog.querySelectorAll(".image > span")].filter((pane) => pane.clientWidth);
  const frames = panes.map((pane) => pane.getBoundingClientRect());
  const box = frames.find(({ left, right }) => x >= left && x <= right) ?? frames[0];
  const room = [box.width, box.height];
  const from = x === undefined ? [0, 0] : [x - box.left - box.width / 2, y - box.top - box.height / 2];
  const before = measured();
  zoom.level = Math.min(Math.max(level, 1), LARGEST);
  const size = measured();
  zoom.at = zoom.at.map((share, axis) => {
    const edge = Math.min(room[axis] / size[axis] / 2, 0.5);
    return Math.min(Math.max(share + from[axis] / before[axis] - from[axis] / size[axis], edge), 1 - edge);
  });
  const { style } = dialog.querySelector(".stage");
  ["--wide", "--high"].forEach((name, axis) => style.setProperty(name, `${size[axis]}px`));
  const start = (axis) => `${room[axis] / 2 - zoom.at[axis] * size[axis]}px`;
  ["--left", "--top"].forEach((name, axis) => style.setProperty(name, start(axis)));
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

dialog?.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const layer = boxes.get(zoom.entry.current)?.one.heat?.layers["1234".indexOf(event.key)];
  if (event.key === "+" || event.key === "=") resizeTo(zoom.level * 1.5);
  else if (event.key === "-") resizeTo(zoom.level / 1.5);
  else if (event.key === "0") resizeTo(1);
  else if (event.key === "v") nextView();
  else if (event.key in STEPS && event.target.matches(".stage")) {
    zoom.at = zoom.at.map((share, axis) => share + (0.1 * STEPS[event.key][axis]) / zoom.level);
    resizeTo(zoom.level);
  } else if (layer) {
    setLayer(zoom.entry, layer);
    copyMap();
  } else return;
  event.preventDefault();
});
addEventListener("resize", () => { if (dialog?.open) resizeTo(zoom.level); });

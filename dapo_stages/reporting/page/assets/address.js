// The address of the page: filters, page and a linked completion, after its "#".

const CONTROLS = [...new Set([...(form?.elements ?? [])].map((control) => control.name).filter(Boolean))];

const linkTo = (one) => `#${new URLSearchParams({ completion: one.id })}`;

/** Set the controls of some names, the others to nothing. */
function set(values) {
  for (const name of CONTROLS) {
    const control = form.elements[name];
    control.value = values[name] ?? "";
    if (control.selectedIndex < 0) control.selectedIndex = 0; // an option that this page does not have
  }
}

/** The controls have changed. */
function chosen() {
  state.page = 0;
  state.linked = "";
  choose();
  saveAddress();
}

function saveAddress() {
  const said = new URLSearchParams(CONTROLS.filter((name) => field(name) !== "").map((name) => [name, field(name)]));
  if (state.page) said.set("page", state.page + 1);
  if (state.linked) said.set("completion", state.linked);
  const [page] = location.href.split("#");
  history.replaceState(null, "", `${said}` ? `${page}#${said}` : page);
}

/** Set controls and page by the address; false if it names none of them, as "#browser" does. */
function readAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  if (![...CONTROLS, "page", "completion"].some((name) => said.has(name))) return false;
  set(Object.fromEntries(CONTROLS.map((name) => [name, said.get(name)])));
  state.page = Math.max(0, Math.floor(+said.get("page") || 1) - 1);
  state.linked = said.get("completion") ?? "";
  return true;
}

function goToAddress() {
  choose();
  const linked = list.querySelector(".linked");
  if (linked) {
    linked.scrollIntoView({ block: "center" });
    linked.focus({ preventScroll: true });
  } else document.getElementById("completions").scrollIntoView();
}

// The held-out questions: each with a sign per evaluation, and what was answered when it is opened.

const questions = JSON.parse(document.getElementById("asked-data").textContent);
const FEW = 12; // questions shown until asked for the others
const course = document.getElementById("course");

/** Whether the image was not needed: right with it blanked, in the latest evaluation that asked so. */
const isBlind = (one) => one.answers.findLast((answer) => answer.blank)?.blank.right === true;

function signs(answers, isRight, [right, wrong]) {
  return answers.map((one) => {
    const ok = isRight(one);
    return make("span", { className: ok ? "good" : "bad", title: `iteration ${one.iteration}: ${ok ? "right" : "wrong"}` }, ok ? right : wrong);
  });
}

function wentHow(one) {
  const { kind, turned } = one;
  return turned === null ? kind : `${kind} in iteration ${turned}`;
}

function row(one) {
  const blanks = one.answers.filter((answer) => answer.blank);
  const strip = (name, marks) => make("span", { className: "strip", role: "img", "aria-label": name }, ...marks);
  const count = one.answers.filter((answer) => answer.ok).length;
  const summary = make("summary", {},
    strip(`right in ${count} of ${plural(one.answers.length, "evaluation")}`, signs(one.answers, (answer) => answer.ok, "●○")),
    blanks.length ? strip(`image blanked: right in ${blanks.filter((answer) => answer.blank.right).length} of ${blanks.length}`,
      signs(blanks, (answer) => answer.blank.right, "▲△")) : null,
    make("bdi", { className: "asks" }, (one.problem ?? one.id).slice(0, 300)),
    make("span", { className: "went" }, wentHow(one)));
  const details = make("details", {}, summary);
  details.addEventListener("toggle", () => { if (details.open && !details.querySelector(".history")) details.append(over(one)); });
  return details;
}

/** Image and question beside the answers; evaluations in a row that wrote the same are one card. */
function over(one) {
  const images = one.images.map((image, index) => (image.uri
    ? make("img", { src: image.uri, className: image.width < 160 ? "small" : "", alt: `image ${index + 1} of the question` })
    : make("p", { className: "soft" }, "The image cannot be shown.")));
  const text = one.problem === null ? make("p", { className: "soft" }, "The question is not in the run's folder any more.") : question(one.problem);
  const facts = ["solution ", make("b", {}, make("bdi", {}, one.solution)), one.slice ? " · slice " : "",
    one.slice ? make("bdi", {}, one.slice) : "", make("br"), make("bdi", {}, one.id)];
  const aside = make("aside", {}, ...images, text, make("div", { className: "details" }, ...facts));
  const same = sameQuestion(one.id, "Completions of this question, with where they looked");
  if (same) aside.append(same);
  const runs = [];
  for (const answer of one.answers) {
    const before = runs.at(-1);
    if (before && before[0].greedy && answer.greedy?.text === before[0].greedy.text && answer.ok === before[0].ok) before.push(answer);
    else runs.push([answer]);
  }
  return make("div", { className: "history" }, aside, make("div", { className: "answers" }, ...runs.map(answered)));
}

function answered(run) {
  const [first, last] = [run[0], run.at(-1)];
  const name = first === last ? `iteration ${first.iteration}` : `iterations ${first.iteration} to ${last.iteration}, the same`;
  const parts = [make("div", { className: "soft" }, name)];
  const one = last.greedy;
  if (one) {
    parts.push(verdict({ ...one, rewards: { accuracy: +one.right } }));
    const rest = one.cut ? ` … (${plural(one.cut, "further character")})` : "";
    parts.push(make("div", { className: "tokens", tabIndex: 0, dir: "auto", role: "region", "aria-label": `written in ${name}` }, one.text + rest));
  }
  const said = [];
  if (last.samples) said.push(`${last.right} of ${plural(last.samples, "sample")} right`);
  if (last.blank) said.push("image blanked: ", make("bdi", {}, last.blank.answer ?? "no answer"), last.blank.right ? " ✓ right" : " ✗ wrong");
  if (said.length > 1 && last.samples) said.splice(1, 0, " · ");
  if (said.length && first !== last) said.unshift(`iteration ${last.iteration}: `);
  if (said.length) parts.push(make("div", { className: "details" }, ...said));
  return make("section", { className: "completion", "aria-label": name }, ...parts);
}

/** A button that shows the completions of a question in all iterations, oldest first; null where there are none. */
function sameQuestion(prompt, text) {
  if (!groups.some((group) => group.prompt === prompt)) return null;
  const button = make("button", { type: "button" }, text);
  button.addEventListener("click", () => {
    set({ search: prompt, sort: "iteration" });
    chosen();
    document.getElementById("completions").scrollIntoView();
  });
  return button;
}

function showAsked(most = FEW) {
  const wanted = (one) => !course.value || (course.value === "blind" ? isBlind(one) : one.kind === course.value);
  const found = questions.filter(wanted);
  document.getElementById("asked-count").textContent = `${found.length} of ${plural(questions.length, "question")}`;
  const list = document.getElementById("asked-list");
  list.replaceChildren(...found.slice(0, most).map(row));
  if (found.length <= most) return;
  const more = make("button", { type: "button" }, `Show all ${plural(found.length, "question")}`);
  more.addEventListener("click", () => { showAsked(Infinity); list.children[most].querySelector("summary").focus(); });
  list.append(more);
}

if (questions.length) {
  course.closest(".controls").hidden = false;
  for (const option of [...course.options].slice(1)) {
    const any = questions.some((one) => (option.value === "blind" ? isBlind(one) : one.kind === option.value));
    if (!any) option.remove();
  }
  course.addEventListener("change", () => showAsked());
  showAsked();
}

// Which completions are shown, in which order.

const MEASURES = {
  iteration: (one, group) => group.iteration,
  accuracy: (one, group) => group.correct / group.completions.length,
  reward: (one) => one.reward ?? one.rewards.accuracy,
  length: (one) => one.tokens.length,
  vgr: (one) => one.vgr,
};
const isRight = (one) => one.rewards.accuracy === 1;
const isFormed = (one) => one.rewards.format === 1;
const isAnswered = (one) => (one.answer ?? null) !== null;

// Well-formed, answered, not cut off, measured; those that looked least first. As `inspect --find guessed`.
const GUESSED = { format: "well-formed", read: "answered", finish: "stop", "vgr-min": "0", sort: "-vgr", first: "20" };

const readingOf = (one) => one.read ?? "unknown";

const lower = new WeakMap();
function says(thing, texts, query) {
  if (!lower.has(thing)) lower.set(thing, texts().join("\n").toLowerCase());
  return lower.get(thing).includes(query);
}

function within(name, value) {
  const [low, high] = [field(`${name}-min`), field(`${name}-max`)];
  if (low === "" && high === "") return true;
  return value !== null && value !== undefined && (low === "" || value >= +low) && (high === "" || value <= +high);
}

function wantsGroup(group) {
  return (
    (field("iteration") === "" || group.iteration === +field("iteration")) &&
    (field("signal") === "" || (field("signal") === "informative") === group.informative) &&
    (field("origin") === "" || (field("origin") === "replayed") === group.replayed) &&
    (field("slice") === "" || group.slice === field("slice"))
  );
}

function wants(one, group, query) {
  const asked = () => [group.problem, group.solution, group.id, group.prompt];
  const said = () => [one.tokens.join(""), one.id];
  return (
    (field("answer") === "" || (field("answer") === "right") === isRight(one)) &&
    (field("format") === "" || (field("format") === "well-formed") === isFormed(one)) &&
    (field("read") === "" || (field("read") === "answered" ? isAnswered(one) : readingOf(one) === field("read"))) &&
    (field("finish") === "" || one.finish === field("finish")) &&
    ["reward", "length", "vgr"].every((name) => within(name, MEASURES[name](one, group))) &&
    (query === "" || says(group, asked, query) || says(one, said, query))
  );
}

/** Filter, sort, and show the page that is asked for, or the one with the completion that was linked to. */
function choose() {
  const query = field("search").trim().toLowerCase();
  const sort = field("sort");
  const [name, sign] = [sort.replace("-", ""), sort.startsWith("-") ? -1 : 1];
  const value = (one, group) => MEASURES[name](one, group) ?? sign * Infinity; // unknown ones last
  const order = (a, b) => sign * compare(value(a.one, a.group), value(b.one, b.group));
  let listed = groups
    .filter(wantsGroup)
    .flatMap((group) => group.completions.filter((one) => wants(one, group, query)).map((one) => ({ group, one })));
  if (sort) listed.sort(order);
  if (field("first") !== "") listed = listed.slice(0, Math.max(0, +field("first")));
  const found = new Map(); // groups in the order of their first completion
  for (const { group, one } of listed) {
    if (!found.has(group)) found.set(group, { group, completions: [] });
    found.get(group).completions.push(one);
  }
  state.listed = listed;
  state.found = [...found.values()];
  const linked = state.found.findIndex(({ completions }) => completions.some((one) => one.id === state.linked));
  const last = Math.max(0, Math.ceil(state.found.length / PAGE) - 1);
  state.page = linked < 0 ? Math.min(state.page, last) : Math.floor(linked / PAGE);
  show();
}

const compare = (a, b) => (a === b ? 0 : a < b ? -1 : 1);

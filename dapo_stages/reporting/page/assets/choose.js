// Which completions are shown, in which order.

const MEASURES = {
  iteration: (one, group) => group.iteration,
  accuracy: (one, group) => group.correct / group.completions.length,
  reward: (one) => one.reward ?? one.rewards.accuracy,
  length: (one) => one.tokens.length,
  vgr: (one) => one.vgr,
};
const isRight = (one) => one.rewards.accuracy === 1;

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
    (field("slice") === "" || group.slice === slices[+field("slice")])
  );
}

function wants(one, group, query) {
  const asked = () => [group.problem, group.solution, group.id, group.prompt];
  const said = () => [one.tokens.join(""), one.id];
  return (
    (field("answer") === "" || (field("answer") === "right") === isRight(one)) &&
    ["reward", "length", "vgr"].every((name) => within(name, MEASURES[name](one, group))) &&
    (query === "" || says(group, asked, query) || says(one, said, query))
  );
}

function choose() {
  const query = field("search").trim().toLowerCase();
  const found = groups
    .filter(wantsGroup)
    .map((group) => ({ group, completions: group.completions.filter((one) => wants(one, group, query)) }))
    .filter((entry) => entry.completions.length);
  const sort = field("sort");
  if (sort) {
    const name = sort.replace("-", "");
    const sign = sort.startsWith("-") ? -1 : 1;
    const value = (one, group) => MEASURES[name](one, group) ?? sign * Infinity; // unknown ones last
    for (const { group, completions } of found) {
      completions.sort((a, b) => sign * compare(value(a, group), value(b, group)));
    }
    found.sort((a, b) => sign * compare(value(a.completions[0], a.group), value(b.completions[0], b.group)));
  }
  state.found = found;
  state.page = 0;
  show();
}

const compare = (a, b) => (a === b ? 0 : a < b ? -1 : 1);

// What is filtered, as a file: the columns of dapo_stages/reporting/iteration/listing.py.

const CSV = {
  iteration: (one, group) => group.iteration,
  completion_id: (one) => one.id,
  group_id: (one, group) => group.id,
  slice: (one, group) => group.slice,
  right: isRight,
  answer: (one) => one.answer,
  solution: (one, group) => group.solution,
  read_from: (one) => one.read,
  finish_reason: (one) => one.finish,
  well_formed: isFormed,
  reward: (one) => one.reward,
  advantage: (one) => one.advantage,
  vgr: (one) => one.vgr,
  tokens: (one) => one.tokens.length,
  question: (one, group) => group.problem,
  completion: (one) => one.tokens.join(""),
};

/** A cell; text that a spreadsheet would compute is preceded by an apostrophe. */
function cell(value) {
  if (typeof value !== "string") return String(value ?? "");
  const isFormula = /^[=+\-@\t]/.test(value) && !/^[+-][0-9]+(\.[0-9]+)?$/.test(value);
  const text = isFormula ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csvText() {
  const rows = state.listed.map(({ group, one }) => Object.values(CSV).map((of) => cell(of(one, group))));
  return [Object.keys(CSV), ...rows].map((row) => `${row.join(",")}\n`).join("");
}

function downloadCsv() {
  const file = new Blob(["\ufeff", csvText()], { type: "text/csv" }); // the mark tells spreadsheets that it is UTF-8
  const link = make("a", { href: URL.createObjectURL(file), download: "completions.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

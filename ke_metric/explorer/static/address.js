// What is shown, and how it stands in the address bar: back, reload and a shared address show it again.

const PARTS = ["query", "gallery", "upload"];
const CHANGES = ["all", "mended", "broken"];

const whole = (text) => (/^\d{1,9}$/.test(text ?? "") ? Number(text) : null);

function readNetwork(text, networks) {
  const [generation, name] = (text ?? "").split(":");
  return networks.find((each) => each.generation === whole(generation) && each.name === name);
}

function readQuery(text, facts) {
  const [part, number] = (text ?? "").split(":");
  const position = whole(number);
  if (!PARTS.includes(part) || position === null) return null;
  const there = part === "upload" ? facts.uploads.includes(position) : position < (facts.parts[part]?.length ?? 0);
  return there ? { part, position } : null;
}

// Return what an address says; what it does not say, or says of something that is not there, is as at the beginning.
// Address and answers are the reader's own: what cannot be read is told in `missing`.
export function readAddress(search, facts) {
  const given = new URLSearchParams(search);
  const networks = facts.networks;
  const last = networks.at(-1).generation;
  const first = networks[0];
  const query = readQuery(given.get("query"), facts);
  const label = whole(given.get("class"));
  const since = whole(given.get("since"));
  return {
    query: query ?? { part: facts.query_part, position: 0 },
    left: readNetwork(given.get("left"), networks) ?? first,
    right: readNetwork(given.get("right"), networks) ?? networks.find((each) => each.generation === last),
    change: CHANGES.includes(given.get("change")) ? given.get("change") : "all",
    since: networks.some((each) => each.generation === since) ? since : first.generation,
    class: label !== null && label < facts.classes.length ? label : null,
    text: given.get("text") ?? "",
    missing: given.has("query") && !query,
  };
}

export function writeAddress(state) {
  const found = new URLSearchParams({ query: `${state.query.part}:${state.query.position}` });
  for (const side of ["left", "right"]) found.set(side, `${state[side].generation}:${state[side].name}`);
  if (state.change !== "all") {
    found.set("change", state.change);
    found.set("since", state.since);
  }
  if (state.class !== null) found.set("class", state.class);
  if (state.text) found.set("text", state.text);
  return `?${found}`;
}

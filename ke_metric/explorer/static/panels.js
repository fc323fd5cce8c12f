// Two networks side by side: which, and what each finds for the query.

import { hidden, make, option, percent, scoreName } from "./elements.js";

export const titleOf = (network) => (network.generation ? `generation ${network.generation}, ${network.name}` : network.name);

// Return words for what is shown of a picture: the name of its class, else its own.
export const labelOf = (item, classes) => (item.class >= 0 ? classes[item.class] : item.name);

const VERDICTS = [
  [true, "right", "✓", "right"],
  [false, "wrong", "✗", "wrong"],
  [null, "unknown", "–", "no class"],
];

// Scores that say something of a single query; others are told of all queries only.
const OF_A_QUERY = ["map@r"];

export class Panel {
  // `facts` is what the explorer shows, `side` is left or right, `choose` is called with another network for it.
  constructor(facts, side, choose) {
    this.facts = facts;
    this.side = side;
    this.generation = make("select", { id: `${side}-generation` });
    this.name = make("select", { id: `${side}-network` });
    const generations = [...new Set(facts.networks.map((each) => each.generation))];
    this.generation.append(...generations.map((each) => option(each, String(each))));
    this.heading = make("h3", { id: `${side}-heading` });
    this.scores = make("p", { className: "scores" });
    this.own = make("p", { className: "own" });
    this.found = make("ol", { className: "grid found", "aria-label": "Neighbours, most similar first" });
    this.element = make(
      "section",
      { className: "card panel", "aria-labelledby": `${side}-heading` },
      this.heading,
      this.choices(),
      this.scores,
      this.own,
      this.found,
    );
    this.generation.addEventListener("change", () => choose(this.chosen()));
    this.name.addEventListener("change", () => choose(this.chosen()));
  }

  choices() {
    if (this.facts.kind === "index") return null;
    const field = (select, text) =>
      make("div", { className: "field" }, make("label", { htmlFor: select.id, textContent: text }), select);
    return make("div", { className: "filters" }, field(this.generation, "Generation"), field(this.name, "Network"));
  }

  // Return the network that the two lists say; the generation decides where it has none of that name.
  chosen() {
    return networkOf(this.facts, Number(this.generation.value), this.name.value);
  }

  showNetwork(network) {
    const names = this.facts.networks.filter((each) => each.generation === network.generation).map((each) => each.name);
    this.generation.value = String(network.generation);
    this.name.replaceChildren(...names.map((each) => option(each, each, each === network.name)));
    const title = titleOf(network);
    this.heading.textContent = title.charAt(0).toUpperCase() + title.slice(1);
    const scores = Object.entries(network.scores).map(([name, value]) => `${scoreName(name)} ${percent(value)}`);
    this.scores.textContent = scores.length ? `All queries: ${scores.join(", ")}` : "";
  }

  // Show an answer; `choose` is called with a neighbour that is clicked.
  show(answer, addressOf, choose) {
    const known = answer.neighbors.filter((each) => each.right !== null);
    const right = known.filter((each) => each.right).length;
    const told = Object.entries(answer.scores)
      .filter(([name]) => OF_A_QUERY.includes(name))
      .map(([name, value]) => ` · ${scoreName(name)} ${percent(value)}`);
    const verdict = `${right} of ${known.length} right`;
    this.own.replaceChildren(
      ...(known.length
        ? ["This query: ", make("strong", { textContent: verdict }), ...told]
        : ["This picture has no class: what it finds is neither right nor wrong"]),
    );
    // Whoever goes from neighbour to neighbour by keyboard stays where they are in the list.
    const held = [...this.found.children].findIndex((item) => item.contains(document.activeElement));
    this.found.replaceChildren(...answer.neighbors.map((each, rank) => this.item(each, rank, addressOf, choose)));
    this.found.children[held]?.firstChild.focus({ preventScroll: true });
    return `${this.heading.textContent}: ${known.length ? verdict : `${answer.neighbors.length} found`}`;
  }

  item(found, rank, addressOf, choose) {
    const [, kind, mark, word] = VERDICTS.find(([verdict]) => verdict === found.right);
    const label = labelOf(found, this.facts.classes);
    const button = make(
      "button",
      { type: "button", className: `picture ${kind}`, title: `${label}\n${found.name}` },
      hidden(`${rank + 1}: `),
      pictureOf(addressOf("gallery", found.position)),
      make(
        "span",
        { className: "verdict" },
        make("span", { className: "mark" }, make("span", { textContent: `${mark} `, "aria-hidden": "true" }), word),
        make("span", { className: "similarity" }, hidden(" similarity "), found.similarity.toFixed(2)),
      ),
      make("span", { className: "label", textContent: label }),
    );
    button.addEventListener("click", () => choose({ part: "gallery", position: found.position }));
    return make("li", {}, button);
  }
}

export function networkOf(facts, generation, name) {
  const there = facts.networks.filter((each) => each.generation === generation);
  return there.find((each) => each.name === name) ?? there[0];
}

// Return a picture that says so where it cannot be shown.
export function pictureOf(address, alt = "") {
  const image = make("img", { src: address, alt, width: 112, height: 112, loading: "lazy", draggable: false });
  const frame = make("span", { className: "frame" }, image);
  image.addEventListener("error", () => {
    frame.replaceChildren(make("span", { className: "gone", textContent: "picture cannot be read" }));
  });
  return frame;
}

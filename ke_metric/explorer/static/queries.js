// The list of queries: all, or those that were mended or broken; of one class; with a text in their labels.

import { byId, make, option } from "./elements.js";
import { labelOf, pictureOf } from "./panels.js";
import { ask } from "./requests.js";

const AT_A_TIME = 60;

export class QueryList {
  // `change` is called with the fields that were changed and whether they are still being changed; `choose` with a
  // query; `refused` with what went wrong when more was asked for.
  constructor(facts, { change, choose, refused, addressOf }) {
    Object.assign(this, { facts, choose, addressOf });
    this.positions = [];
    byId("class").append(...facts.classes.map((name, number) => option(number, name)));
    const generations = [...new Set(facts.networks.map((each) => each.generation))];
    byId("since").append(...generations.slice(0, -1).map((each) => option(each, String(each))));
    byId("change-field").hidden = generations.length < 2;
    byId("class").addEventListener("change", (event) => {
      const value = event.target.value;
      change({ class: value === "" ? null : Number(value) }, { pickFirst: value !== "" });
    });
    byId("change").addEventListener("change", (event) => change({ change: event.target.value }));
    byId("since").addEventListener("change", (event) => change({ since: Number(event.target.value) }));
    byId("text").addEventListener("input", (event) => change({ text: event.target.value }, { passing: true }));
    byId("text").addEventListener("change", (event) => change({ text: event.target.value }));
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("more").addEventListener("click", () => this.showMore().catch(refused));
  }

  isFiltered(state) {
    return state.change !== "all" || state.class !== null || state.text.trim() !== "";
  }

  // Show the queries of a state.
  async show(state, signal) {
    this.showFilters(state);
    const parameters = {
      generation: state.right.generation,
      network: state.right.name,
      change: state.change,
      since: state.change === "all" ? 0 : state.since,
      class: state.class ?? "",
      text: state.text,
      count: AT_A_TIME,
    };
    const { generation, network, ...chosen } = parameters;
    // The list of all queries is the same for every network.
    const shown = JSON.stringify(state.change === "all" ? chosen : parameters);
    if (shown === this.shown) {
      this.markQuery(state.query);
      return;
    }
    const answer = await ask("/api/queries", { ...parameters, from: 0 }, signal);
    if (signal.aborted) return;
    this.shown = shown;
    this.parameters = parameters;
    this.positions = answer.positions;
    byId("listed").textContent = this.words(state, answer.total);
    byId("list").replaceChildren(...answer.queries.map((each) => this.item(each)));
    this.showButton(answer);
    this.markQuery(state.query);
  }

  showFilters(state) {
    byId("change").value = state.change;
    byId("since-field").hidden = state.change === "all" || byId("change-field").hidden;
    byId("since").value = String(state.since);
    byId("class").value = state.class === null ? "" : String(state.class);
    if (byId("text").value !== state.text) byId("text").value = state.text;
    byId("queries-of").textContent = state.change === "all" ? "" : `of generation ${state.right.generation}, ${state.right.name}`;
  }

  words(state, total) {
    const words = this.facts.kind === "index" ? ["picture", "pictures"] : ["query", "queries"];
    const many = `${total.toLocaleString("en")} ${total === 1 ? words[0] : words[1]}`;
    if (state.change === "all") return many;
    if (state.since === state.right.generation) {
      return `Generation ${state.since} is shown itself: move the slider, or choose another generation before.`;
    }
    return `${many} ${state.change} from generation ${state.since} to generation ${state.right.generation}`;
  }

  showButton(answer) {
    const left = answer.total - byId("list").children.length;
    byId("more").hidden = left <= 0;
    byId("more").textContent = `Show more (${left.toLocaleString("en")} left)`;
  }

  async showMore() {
    const from = byId("list").children.length;
    const { shown } = this;
    const answer = await ask("/api/queries", { ...this.parameters, from });
    // Another list is shown by now, or this answer was asked for twice.
    if (shown !== this.shown || from !== byId("list").children.length) return;
    const items = answer.queries.map((each) => this.item(each));
    byId("list").append(...items);
    this.showButton(answer);
    items[0]?.firstChild.focus();
  }

  item(query) {
    const part = this.facts.query_part;
    const label = labelOf(query, this.facts.classes);
    const button = make(
      "button",
      { type: "button", className: "picture", title: `${label}\n${query.name}` },
      pictureOf(this.addressOf(part, query.position)),
      make("span", { className: "label", textContent: label }),
    );
    button.dataset.position = query.position;
    button.addEventListener("click", () => this.choose({ part, position: query.position }));
    return make("li", {}, button);
  }

  markQuery(query) {
    for (const button of byId("list").querySelectorAll("button")) {
      const own = query.part === this.facts.query_part && Number(button.dataset.position) === query.position;
      if (own) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }
}

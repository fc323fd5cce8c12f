// The page: what is shown follows from one state, and the address bar holds it.

import { readAddress, writeAddress } from "./address.js";
import { byId, make } from "./elements.js";
import { PictureMap } from "./map.js";
import { Panel, labelOf, networkOf, pictureOf, titleOf } from "./panels.js";
import { QueryList } from "./queries.js";
import { ask, askNow, askNumbers, post } from "./requests.js";
import { takeUploads } from "./uploads.js";

const PLAY_SECONDS = 1.3;
const SLOW = 350; // milliseconds after which waiting is shown

class Page {
  constructor(facts) {
    this.facts = facts;
    this.generations = [...new Set(facts.networks.map((each) => each.generation))];
    this.galleryCount = facts.parts.gallery.length;
    this.addressOf = (part, position) => `${facts.pictures}/${part}/${position}`;
    const choose = (query) => this.change({ query });
    this.panels = [];
    for (const side of facts.networks.length > 1 ? ["left", "right"] : ["right"]) {
      this.panels.push(new Panel(facts, side, (network) => this.change({ [side]: network })));
    }
    byId("panels").append(...this.panels.map((panel) => panel.element));
    byId("panels").classList.toggle("single", this.panels.length === 1);
    this.list = new QueryList(facts, {
      change: (fields, how) => this.onFilter(fields, how),
      choose,
      refused: (error) => this.say(error.message),
      addressOf: this.addressOf,
    });
    this.map = new PictureMap({
      describe: (dot) => this.describeDot(dot),
      choose: (dot) => choose(this.pictureOfDot(dot)),
      tell: (words) => this.tell(words),
    });
    this.introduce();
    this.listen();
  }

  introduce() {
    const { facts } = this;
    document.title = `${facts.title} · ke_metric explorer`;
    byId("title").textContent = facts.title;
    const many = (count, one, more) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;
    const words = [many(this.galleryCount, "picture", "pictures")];
    if (facts.parts.query) words.push(many(facts.parts.query.length, "query", "queries"));
    if (facts.classes.length) words.push(many(facts.classes.length, "class", "classes"));
    if (facts.kind === "lineage") words.unshift(many(this.generations.length, "generation", "generations"));
    byId("summary").textContent = words.join(" · ");
    byId("notes").append(...facts.notes.map((note) => make("li", { textContent: note })));
    byId("notes").hidden = !facts.notes.length;
    if (facts.kind === "index") byId("queries-name").textContent = "Pictures";
    byId("slide").hidden = this.generations.length < 2;
    byId("slider").max = String(this.generations.length - 1);
    const legend = [
      ["key-query", "⊕", "query"],
      ["key-right", "○", "neighbour, right"],
      ["key-wrong", "✕", "neighbour, wrong"],
      ["key-found", "○", "neighbour, no class"],
      ["key-same", "●", "same class"],
      ["key-listed", "●", "in the list"],
    ];
    byId("legend").append(
      ...legend.map(([kind, sign, text]) =>
        make("li", { className: kind }, make("span", { textContent: sign, "aria-hidden": "true" }), ` ${text}`),
      ),
    );
  }

  listen() {
    const slider = byId("slider");
    const slid = () => ({ right: networkOf(this.facts, this.generations[Number(slider.value)], this.state.right.name) });
    slider.addEventListener("input", () => this.change(slid(), { passing: true }));
    slider.addEventListener("change", () => this.change(slid()));
    byId("play").addEventListener("click", () => this.play(!this.playing));
    byId("random").addEventListener("click", () => this.chooseRandom());
    window.addEventListener("popstate", () => this.show(readAddress(location.search, this.facts)));
    takeUploads(this.facts.limits, {
      begun: () => this.say("", "Looking at the picture…"),
      taken: (number) => {
        this.facts.uploads.push(number);
        this.change({ query: { part: "upload", position: number } });
      },
      refused: (error) => this.say(error.message),
    });
  }

  begin() {
    const state = readAddress(location.search, this.facts);
    history.replaceState(null, "", writeAddress(state));
    this.show(state);
    if (state.missing) this.say("What the address says of the query is not there (any more): this is the first query.");
  }

  // Show another state. While something is being moved (`passing`) the address changes in place; going back leads to
  // where it was before the moving, so the first such change adds to the history and later ones replace that.
  change(fields, { passing = false } = {}) {
    const state = { ...this.state, ...fields };
    const address = writeAddress(state);
    const changed = Object.keys(fields).join();
    if (address !== location.search) {
      if (this.moving === changed) history.replaceState(null, "", address);
      else history.pushState(null, "", address);
    }
    this.moving = passing ? changed : null;
    if (!("right" in fields)) this.play(false);
    return this.show(state);
  }

  onFilter(fields, { passing = false, pickFirst = false } = {}) {
    const shown = this.change(fields, { passing });
    if (pickFirst) {
      shown.then((isShown) => {
        const [first] = this.list.positions;
        // Not where something else was chosen meanwhile, or there is no such list.
        if (isShown && first !== undefined) this.change({ query: { part: this.facts.query_part, position: first } });
      });
    }
  }

  // Returns whether this state's list is what is shown in the end.
  async show(state) {
    this.state = state;
    this.asked?.abort();
    this.asked = new AbortController();
    const { signal } = this.asked;
    this.say("");
    this.showSlider();
    this.showQuery(state.query);
    byId("main").setAttribute("aria-busy", "true");
    const parts = [
      [byId("neighbors"), this.showNeighbors(signal)],
      [byId("plane"), this.showMap(signal)],
      [byId("list"), this.list.show(state, signal)],
    ];
    const shown = await Promise.all(parts.map(([element, part]) => this.showPart(element, part, signal)));
    if (signal.aborted) return false;
    byId("main").setAttribute("aria-busy", "false");
    return shown.at(-1);
  }

  // Show a part of the page as soon as it is there. Networks are computed one after the other when the explorer begins,
  // and a part that waits for one says so. Returns whether it is there.
  async showPart(element, shown, signal) {
    const setBusy = (busy) => {
      element.setAttribute("aria-busy", String(busy));
      if (busy) this.tell("Computing");
    };
    const slow = setTimeout(() => setBusy(true), SLOW);
    try {
      await shown;
      if (!signal.aborted && this.neighbors) this.markMap();
      return true;
    } catch (error) {
      if (error.name !== "AbortError") this.say(error.message);
      return false;
    } finally {
      clearTimeout(slow);
      if (!signal.aborted) setBusy(false);
    }
  }

  showSlider() {
    const { right } = this.state;
    const slider = byId("slider");
    slider.value = String(this.generations.indexOf(right.generation));
    slider.setAttribute("aria-valuetext", `generation ${right.generation}`);
    byId("slid").textContent = `${right.generation} of ${this.generations.at(-1)}`;
  }

  async showNeighbors(signal) {
    const { query } = this.state;
    const answers = await Promise.all(
      this.panels.map((panel) => {
        const network = this.state[panel.side];
        return ask("/api/neighbors", { generation: network.generation, network: network.name, ...query }, signal);
      }),
    );
    if (signal.aborted) return;
    const told = this.panels.map((panel, number) => {
      panel.showNetwork(this.state[panel.side]);
      return panel.show(answers[number], this.addressOf, (chosen) => this.change({ query: chosen }));
    });
    this.showName(answers.at(-1).query);
    this.neighbors = answers.at(-1).neighbors;
    this.tell(told.join("; "));
  }

  // Show the picture that is searched with before anything was found.
  showQuery({ part, position }) {
    const address = this.addressOf(part, position);
    if (address === this.queryAddress) return;
    this.queryAddress = address;
    this.caption = make("figcaption");
    const label = part === "upload" ? "The picture that you gave" : this.facts.classes[this.facts.parts[part][position]];
    byId("query-figure").replaceChildren(pictureOf(address, label ?? "A picture of no class"), this.caption);
    this.list.markQuery({ part, position });
  }

  showName(query) {
    const own = query.part === "upload";
    this.caption.replaceChildren(
      make("strong", { textContent: own ? "Your picture" : labelOf(query, this.facts.classes) }),
      make("span", { className: "own-name", textContent: own ? "" : query.name }),
    );
  }

  async showMap(signal) {
    const { right } = this.state;
    const found = await askNumbers("/api/map", { generation: right.generation, network: right.name }, signal);
    if (signal.aborted) return;
    const name = this.facts.kind === "index" ? "" : `of ${titleOf(right)}; `;
    byId("map-of").textContent = `${name}two dimensions show ${Math.round(100 * found[0])} % of the variance`;
    this.places = this.places?.buffer === found.buffer ? this.places : found.subarray(1);
    this.map.moveTo(this.places);
  }

  markMap() {
    const { query } = this.state;
    const dots = (verdict) => this.neighbors.filter((each) => each.right === verdict).map((each) => each.position);
    const label = query.part === "upload" ? -1 : this.facts.parts[query.part][query.position];
    const same = [];
    if (label >= 0) {
      this.facts.parts.gallery.forEach((each, position) => each === label && same.push(position));
      this.facts.parts.query?.forEach((each, position) => each === label && same.push(this.galleryCount + position));
    }
    const { positions } = this.list;
    const asDots = this.facts.parts.query ? positions.map((each) => this.galleryCount + each) : positions;
    const listed = this.list.isFiltered(this.state) ? asDots : null;
    this.map.mark({
      query: query.part === "upload" ? -1 : this.dotOf(query),
      right: dots(true),
      wrong: dots(false),
      found: dots(null),
      same,
      listed,
    });
    byId("legend").querySelector(".key-listed").hidden = !listed;
    byId("legend").querySelector(".key-found").hidden = !dots(null).length;
    for (const kind of ["right", "wrong", "same"]) byId("legend").querySelector(`.key-${kind}`).hidden = label < 0;
    byId("legend").querySelector(".key-query").hidden = query.part === "upload";
  }

  dotOf({ part, position }) {
    return part === "query" ? this.galleryCount + position : position;
  }

  pictureOfDot(dot) {
    const inGallery = dot < this.galleryCount;
    return { part: inGallery ? "gallery" : "query", position: inGallery ? dot : dot - this.galleryCount };
  }

  describeDot(dot) {
    const { part, position } = this.pictureOfDot(dot);
    const label = this.facts.parts[part][position];
    const words = label >= 0 ? this.facts.classes[label] : `picture ${position + 1}`;
    return { words: this.facts.parts.query ? `${words} (${part})` : words, address: this.addressOf(part, position) };
  }

  chooseRandom() {
    const { positions } = this.list;
    const among = positions.length ? positions : [...this.facts.parts[this.facts.query_part].keys()];
    const position = among[Math.floor(Math.random() * among.length)];
    this.change({ query: { part: this.facts.query_part, position } });
  }

  // Go through the generations, from the first one where the last one is shown.
  play(on) {
    if (on === Boolean(this.playing)) return;
    byId("play").setAttribute("aria-pressed", String(on));
    byId("play").textContent = on ? "Pause" : "Play";
    clearInterval(this.playing);
    this.playing = on ? setInterval(() => this.playNext(), 1000 * PLAY_SECONDS) : null;
    if (on && this.generations.indexOf(this.state.right.generation) === this.generations.length - 1) this.moveTo(0);
    else if (on) this.playNext();
  }

  playNext() {
    const next = this.generations.indexOf(this.state.right.generation) + 1;
    if (next >= this.generations.length) this.play(false);
    else this.moveTo(next);
  }

  moveTo(number) {
    this.change({ right: networkOf(this.facts, this.generations[number], this.state.right.name) }, { passing: true });
  }

  // Say something that went wrong where everybody sees it; what is only on its way is told to screen readers.
  say(message, underway = "") {
    byId("message").textContent = message;
    if (underway) this.tell(underway);
  }

  tell(words) {
    byId("status").textContent = words;
  }
}

// Ask for the token where there is one and it was not entered yet.
async function enter() {
  if ((await askNow("/api/access")).allowed) return;
  const dialog = byId("access");
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.showModal();
  await new Promise((resolve) => {
    byId("access-form").addEventListener("submit", async (event) => {
      event.preventDefault();
      const answer = await post("/api/access", byId("token").value, "text/plain");
      if (answer.allowed) resolve();
      else byId("access-message").textContent = "This is another token.";
    });
  });
  dialog.close();
}

try {
  await enter();
  const page = new Page(await askNow("/api/state"));
  page.begin();
} catch (error) {
  byId("message").textContent = error.message;
}

// The map: a dot for each picture, drawn on a canvas, moved from one network's places to the next one's.

import { byId, make } from "./elements.js";

const MOVING = 450; // milliseconds
const NEAR = 14; // pixels within which a dot is meant
const FURTHEST = 12; // times closer than the whole
const EDGE = 16; // pixels around the dots
const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const still = window.matchMedia("(prefers-reduced-motion: reduce)");
const dark = window.matchMedia("(prefers-color-scheme: dark)");

const eased = (share) => 1 - (1 - share) ** 3;

// Return the middle of places, and half their width and height.
function boxOf(places) {
  const least = [Infinity, Infinity];
  const most = [-Infinity, -Infinity];
  for (let i = 0; i < places.length; i += 1) {
    least[i % 2] = Math.min(least[i % 2], places[i]);
    most[i % 2] = Math.max(most[i % 2], places[i]);
  }
  const half = (axis) => (most[axis] - least[axis]) / 2 || 1;
  return [(least[0] + most[0]) / 2, (least[1] + most[1]) / 2, half(0), half(1)];
}

export class PictureMap {
  // `describe` gives words and the picture's address of a dot, `choose` is called with one that was clicked, and `tell`
  // with words for a screen reader.
  constructor({ describe, choose, tell }) {
    this.canvas = byId("canvas");
    this.tip = byId("tip");
    Object.assign(this, { describe, choose, tell });
    this.places = new Float32Array();
    this.box = [0, 0, 1, 1];
    this.marks = { query: -1, right: [], wrong: [], found: [], same: [], listed: null };
    this.pointed = -1;
    this.zoom = 1;
    this.middle = null; // what lies in the middle when zoomed; of the whole it is the middle of the dots
    new ResizeObserver(() => this.resize()).observe(byId("plane"));
    dark.addEventListener("change", () => this.draw());
    this.listen();
  }

  listen() {
    this.canvas.addEventListener("pointermove", (event) => this.onMove(event));
    this.canvas.addEventListener("pointerdown", (event) => this.onDown(event));
    this.canvas.addEventListener("pointerup", (event) => this.onUp(event));
    this.canvas.addEventListener("pointercancel", () => { this.held = null; });
    this.canvas.addEventListener("pointerleave", () => this.point(-1));
    this.canvas.addEventListener("blur", () => this.point(-1));
    this.canvas.addEventListener("keydown", (event) => this.onKey(event));
    byId("closer").addEventListener("click", () => this.scale(1.6));
    byId("farther").addEventListener("click", () => this.scale(1 / 1.6));
  }

  resize() {
    const { width, height } = byId("plane").getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    this.size = [width, height];
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.ratio = ratio;
    this.draw();
  }

  // Move all dots to new places, two numbers for each.
  moveTo(places) {
    if (places === this.target) return;
    this.target = places;
    const before = this.places;
    const [boxBefore, box] = [this.box, boxOf(places)];
    if (before.length !== places.length || still.matches) {
      this.places = places;
      this.box = box;
      this.draw();
      return;
    }
    const start = performance.now();
    const between = new Float32Array(places.length);
    const step = (now) => {
      if (this.target !== places) return;
      const share = Math.min(1, (now - start) / MOVING);
      const done = eased(share);
      for (let i = 0; i < places.length; i += 1) between[i] = before[i] + (places[i] - before[i]) * done;
      this.places = share < 1 ? between : places;
      this.box = box.map((each, i) => boxBefore[i] + (each - boxBefore[i]) * done);
      this.draw();
      if (share < 1) requestAnimationFrame(step);
    };
    this.places = before.slice();
    requestAnimationFrame(step);
  }

  mark(marks) {
    this.marks = marks;
    this.draw();
  }

  scale(factor) {
    const zoom = Math.min(FURTHEST, Math.max(1, this.zoom * factor));
    const kept = this.pointed >= 0 ? this.pointed : this.marks.query;
    if (zoom === 1) this.middle = null;
    else if (kept >= 0 && this.zoom === 1) this.middle = [this.places[2 * kept], this.places[2 * kept + 1]];
    this.zoom = zoom;
    // Of the whole map a finger scrolls the page; closer, it moves the map.
    this.canvas.style.touchAction = zoom > 1 ? "none" : "";
    this.draw();
  }

  radius() {
    const [width, height] = this.size;
    return Math.min((width / 2 - EDGE) / this.box[2], (height / 2 - EDGE) / this.box[3]) * this.zoom;
  }

  // Return a function from a dot to where it is on the canvas, which holds until anything moves.
  placing() {
    const { places } = this;
    const radius = this.radius();
    const [across, along] = this.middle ?? this.box;
    const left = this.size[0] / 2 - across * radius;
    const top = this.size[1] / 2 + along * radius;
    return (dot) => [left + places[2 * dot] * radius, top - places[2 * dot + 1] * radius];
  }

  nearest(x, y) {
    let best = -1;
    let least = NEAR * NEAR;
    const placed = this.placing();
    for (let dot = 0; dot < this.places.length / 2; dot += 1) {
      const [left, top] = placed(dot);
      const far = (left - x) ** 2 + (top - y) ** 2;
      if (far < least) [best, least] = [dot, far];
    }
    return best;
  }

  onMove(event) {
    if (this.held && this.zoom > 1) {
      const radius = this.radius();
      this.middle = [
        this.held.middle[0] - (event.offsetX - this.held.x) / radius,
        this.held.middle[1] + (event.offsetY - this.held.y) / radius,
      ];
      this.held.moved ||= Math.hypot(event.offsetX - this.held.x, event.offsetY - this.held.y) > 4;
      this.point(-1);
      this.draw();
      return;
    }
    this.point(this.nearest(event.offsetX, event.offsetY));
  }

  onDown(event) {
    this.held = { x: event.offsetX, y: event.offsetY, middle: this.middle ?? this.box, moved: false };
    if (this.zoom > 1) this.canvas.setPointerCapture(event.pointerId);
  }

  onUp(event) {
    const moved = this.held?.moved;
    this.held = null;
    if (moved) return;
    const dot = this.nearest(event.offsetX, event.offsetY);
    if (dot >= 0) this.choose(dot);
  }

  onKey(event) {
    if (event.key in DIRECTIONS) this.step(DIRECTIONS[event.key]);
    else if (event.key === "Enter" && this.pointed >= 0) this.choose(this.pointed);
    else if (event.key === "+") this.scale(1.6);
    else if (event.key === "-") this.scale(1 / 1.6);
    else if (event.key === "Escape") this.point(-1);
    else return;
    event.preventDefault();
  }

  // Point at the dot that lies nearest in a direction; what lies aside counts as farther away.
  step([right, up]) {
    if (this.pointed < 0) {
      this.point(Math.max(0, this.marks.query), true);
      return;
    }
    const [x, y] = [this.places[2 * this.pointed], this.places[2 * this.pointed + 1]];
    let best = -1;
    let least = Infinity;
    for (let dot = 0; dot < this.places.length / 2; dot += 1) {
      const [across, along] = [this.places[2 * dot] - x, this.places[2 * dot + 1] - y];
      const ahead = across * right + along * up;
      const aside = Math.abs(across * up) + Math.abs(along * right);
      if (ahead <= 1e-6 || aside > 2 * ahead) continue;
      const far = ahead + 2 * aside;
      if (far < least) [best, least] = [dot, far];
    }
    if (best >= 0) this.point(best, true);
  }

  point(dot, spoken = false) {
    if (dot === this.pointed) return;
    this.pointed = dot;
    this.canvas.style.cursor = dot >= 0 ? "pointer" : "";
    this.draw();
    if (dot < 0) {
      this.tip.hidden = true;
      return;
    }
    const { words, address } = this.describe(dot);
    this.tip.replaceChildren(
      make("img", { src: address, alt: "", width: 96, height: 96 }),
      make("span", { textContent: words }),
    );
    this.tip.hidden = false;
    const [x, y] = this.placing()(dot);
    const right = x > this.size[0] - 150;
    const below = y < 150;
    this.tip.style.left = `${right ? x - 134 : x + 14}px`;
    this.tip.style.top = `${below ? y + 12 : y - 150}px`;
    if (spoken) this.tell(words);
  }

  draw() {
    if (!this.size || !this.size[0]) return;
    const brush = this.canvas.getContext("2d");
    const style = getComputedStyle(this.canvas);
    const color = (name) => style.getPropertyValue(`--${name}`);
    brush.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    brush.clearRect(0, 0, ...this.size);
    const count = this.places.length / 2;
    const { listed, same, right, wrong, found, query } = this.marks;
    const side = count > 4000 ? 2.5 : count > 1000 ? 3.5 : 5;
    this.dots(brush, listed ? color("faintest") : color("dot"), side, null);
    if (listed) this.dots(brush, color("listed"), side, listed);
    this.dots(brush, color("accent"), side + 1.5, same);
    this.rings(brush, color("found"), found, 6, "ring");
    this.rings(brush, color("right"), right, 6, "ring");
    this.rings(brush, color("wrong"), wrong, 6, "cross");
    if (query >= 0) this.rings(brush, color("ink"), [query], 9, "target");
    if (this.pointed >= 0) this.rings(brush, color("ink"), [this.pointed], 7, "ring");
  }

  // Draw dots, all of them where `chosen` is null. Small ones are squares, which are drawn ten times as fast.
  dots(brush, color, side, chosen) {
    brush.fillStyle = color;
    const placed = this.placing();
    const many = chosen === null ? this.places.length / 2 : chosen.length;
    for (let i = 0; i < many; i += 1) {
      const [x, y] = placed(chosen === null ? i : chosen[i]);
      if (side < 4) {
        brush.fillRect(x - side / 2, y - side / 2, side, side);
      } else {
        brush.beginPath();
        brush.arc(x, y, side / 2, 0, 2 * Math.PI);
        brush.fill();
      }
    }
  }

  rings(brush, color, chosen, radius, kind) {
    brush.strokeStyle = color;
    brush.lineWidth = 2;
    const placed = this.placing();
    for (const dot of chosen) {
      const [x, y] = placed(dot);
      brush.beginPath();
      if (kind === "cross") {
        brush.moveTo(x - radius * 0.7, y - radius * 0.7);
        brush.lineTo(x + radius * 0.7, y + radius * 0.7);
        brush.moveTo(x + radius * 0.7, y - radius * 0.7);
        brush.lineTo(x - radius * 0.7, y + radius * 0.7);
      } else {
        brush.arc(x, y, radius, 0, 2 * Math.PI);
      }
      if (kind === "target") {
        brush.moveTo(x - radius - 4, y);
        brush.lineTo(x - radius + 3, y);
        brush.moveTo(x + radius - 3, y);
        brush.lineTo(x + radius + 4, y);
      }
      brush.stroke();
    }
  }
}

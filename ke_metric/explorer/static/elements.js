// Elements of the page. Names of pictures and classes are anybody's: they only ever become text.

export const byId = (id) => document.getElementById(id);

// Return an element; of `properties` those that the element itself has are set as such, others as attributes.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

export function option(value, text, selected) {
  return make("option", { value: String(value), textContent: text, selected });
}

const NAMES = { "map@r": "MAP@R", r_precision: "R-precision" };

// Return a score's name as people write it: Recall@1, MAP@R.
export function scoreName(name) {
  return NAMES[name] ?? name.replace("recall", "Recall");
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

export const hidden = (text) => make("span", { className: "visually-hidden", textContent: text });

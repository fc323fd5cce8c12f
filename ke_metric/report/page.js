"use strict";
// Unpacks the library inside the page and draws every figure. Where that fails, the tables still say everything.
async function unpacked(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

(async () => {
  const root = document.documentElement;
  root.classList.add("with-figures");
  const options = {
    actions: false,
    ast: true, // expressions are interpreted, never compiled: the page's policy allows no compiler
    renderer: "svg",
    defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
  };
  try {
    const library = document.createElement("script");
    library.textContent = await unpacked("library");
    document.head.append(library);
    const figures = JSON.parse(await unpacked("figures"));
    for (const place of document.querySelectorAll("[data-figure]")) {
      await window.drawFigure(place, figures[place.dataset.figure], options);
    }
  } catch (error) {
    root.classList.remove("with-figures");
  }
  root.dataset.drawn = "yes";
})();

// What is folded away belongs onto paper too.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details.printed:not([open])")) {
    folded.open = true;
    folded.dataset.opened = "";
  }
});
addEventListener("afterprint", () => {
  for (const folded of document.querySelectorAll("details[data-opened]")) {
    folded.open = false;
    delete folded.dataset.opened;
  }
});

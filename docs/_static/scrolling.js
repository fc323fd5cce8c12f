/* What is wider than the page scrolls in a box of its own. Such a box, and no other, can be reached by keyboard. */
function letScrollingBoxesBeReached() {
  for (const box of document.querySelectorAll("pre, .table-wrapper, figure.rooms")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
window.addEventListener("DOMContentLoaded", letScrollingBoxesBeReached);
window.addEventListener("resize", letScrollingBoxesBeReached);

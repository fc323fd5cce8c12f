// A picture of the reader's own: chosen, or dropped anywhere on the page.

import { byId } from "./elements.js";
import { Refusal, post } from "./requests.js";

const TYPES = ["image/jpeg", "image/png", "image/webp"];
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

function check(files, limits) {
  if (files.length !== 1) throw new Refusal("One picture at a time: drop a single file.");
  const [file] = files;
  if (!TYPES.includes(file.type)) throw new Refusal("This file is no JPEG, PNG or WebP picture.");
  if (file.size > limits.bytes) {
    throw new Refusal(`The file has ${megabytes(file.size)}, at most ${megabytes(limits.bytes)} are taken.`);
  }
  return file;
}

// Return the number that the explorer gives a picture.
async function send(files, limits) {
  const file = check(files, limits);
  const answer = await post("/api/uploads", file, file.type);
  if (answer.refused) throw new Refusal(`The picture cannot be used: ${answer.refused}.`);
  return answer.upload;
}

// Call `taken` with the number of every picture that is given, `refused` with the error of one that cannot be used.
export function takeUploads(limits, { begun, taken, refused }) {
  const take = async (files) => {
    if (!files.length) return;
    begun();
    try {
      taken(await send(files, limits));
    } catch (error) {
      refused(error);
    }
  };
  byId("file").addEventListener("change", async (event) => {
    await take([...event.target.files]);
    event.target.value = "";
  });
  const drop = byId("drop");
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.hidden = false;
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.hidden = true;
  });
  window.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.hidden = true;
    take([...event.dataTransfer.files]);
  });
}

// Questions to the explorer. What was answered is kept: going back asks nothing again.

const MOST_KEPT = 400;
const kept = new Map();

// Something that a person can do something about; its message is for the page.
export class Refusal extends Error {}

async function send(path, options) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The explorer does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  let reason = `The explorer answered ${answer.status}.`;
  try {
    reason = (await answer.json()).error ?? reason;
  } catch {
    // An answer that is no document says nothing more than its number.
  }
  throw new Refusal(reason);
}

function keep(path, value) {
  kept.set(path, value);
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  return value;
}

const withParameters = (path, parameters) => (parameters ? `${path}?${new URLSearchParams(parameters)}` : path);

export async function ask(path, parameters, signal) {
  const whole = withParameters(path, parameters);
  return kept.get(whole) ?? keep(whole, await (await send(whole, { signal })).json());
}

export async function askNow(path) {
  return (await send(path)).json();
}

export async function askNumbers(path, parameters, signal) {
  const whole = withParameters(path, parameters);
  if (kept.has(whole)) return kept.get(whole);
  return keep(whole, new Float32Array(await (await send(whole, { signal })).arrayBuffer()));
}

export async function post(path, body, type) {
  return (await send(path, { method: "POST", body, headers: { "Content-Type": type } })).json();
}

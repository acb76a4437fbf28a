// The page: reads the form, runs its lanes, tells what went wrong.

import { ApiError, fetchModel } from "./api.js";
import { drawForwards } from "./canvas.js";
import { copyText } from "./copy.js";
import { Lane } from "./lane.js";
import { curlOf, HOLE, pythonOf, requestOf, surroundings } from "./request.js";

const FIELDS = ["prompt", "max_tokens", "temperature", "seed", "block_length", "rule"];
const TASKS = {
  chat: { prompt: "Write a short story about a lighthouse keeper.", modes: ["speculative", "ar"], maxTokens: 96 },
  continue: { prompt: "The recipe for a good soup is", modes: ["speculative", "ar"], maxTokens: 96 },
  fill: { prompt: `The capital of France is ${HOLE}, a city on the Seine.`, modes: ["diffusion", "off"], maxTokens: 3 },
};
const NARROW = matchMedia("(max-width: 900px)");
const element = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

const lanes = ["left", "right"].map((name) => new Lane(element("lane"), name));
let model = null;
let key = "";
let running = null; // the AbortController of what runs
let waitTimer = null;

function readFields() {
  const fields = Object.fromEntries(FIELDS.map((name) => [name, element(name).value]));
  return { ...fields, task: chosen("task") };
}

async function connect() {
  try {
    model = await fetchModel(key);
  } catch (error) {
    element("model").textContent = "no model";
    report(error);
    return;
  }
  element("model").textContent = `${model.id} · context ${model.max_model_len.toLocaleString("en")}`;
  offerModes();
  report(null);
  element("key-dialog").close();
  refresh();
}

async function run(event) {
  event.preventDefault();
  if (running || element("run").disabled) return;
  if (!model) await connect();
  if (!model) return;
  const active = lanes.filter((lane) => lane.isOn);
  const fields = readFields();
  let requests;
  report(null);
  try {
    requests = active.map((lane) => requestOf(fields, lane.mode.value, model.id));
  } catch (error) {
    report(error);
    return;
  }
  running = new AbortController();
  setRunning(true);
  for (const lane of lanes) lane.clear(lane.isOn ? surroundings(fields) : ["", ""]);
  const start = (lane, place) => lane.run(requests[place], key, running.signal, drawAllForwards);
  say("Writing.");
  try {
    await (element("order").value === "together" ? runTogether(active, start) : runInTurn(active, start));
    say(active.map(summary).join(" "));
  } catch (error) {
    if (error.name === "AbortError") say("Cancelled.");
    else report(error);
  } finally {
    running = null;
    setRunning(false);
  }
}

async function runInTurn(active, start) {
  for (const [place, lane] of active.entries()) await start(lane, place);
}

/** The first failure ends the others. */
async function runTogether(active, start) {
  const control = running;
  const runs = active.map((lane, place) =>
    start(lane, place).catch((error) => {
      control.abort();
      throw error;
    }),
  );
  const failed = (await Promise.allSettled(runs)).filter((each) => each.status === "rejected");
  const errors = failed.map((each) => each.reason);
  if (errors.length) throw errors.find((error) => error.name !== "AbortError") ?? errors[0];
}

function summary({ mode, answer }) {
  const rate = answer.tokensPerForward;
  return `${mode.value}: ${answer.numDecided} tokens${rate ? `, ${rate.toFixed(2)} per forward` : ""}.`;
}

function drawAllForwards() {
  const counts = lanes.map((lane) => lane.answer.perForward);
  const most = Math.max(...counts.flat(), 1);
  const longest = Math.max(...counts.map((each) => each.length));
  lanes.forEach((lane, place) => drawForwards(lane.parts.forwards, counts[place], longest, most));
}

function setRunning(isRunning) {
  element("run").disabled = isRunning;
  element("cancel").disabled = !isRunning;
  document.body.classList.toggle("running", isRunning);
  if (isRunning && NARROW.matches) element("answers").scrollIntoView();
  if (isRunning) element("cancel").focus({ preventScroll: true });
  else if (document.activeElement === document.body) element("run").focus({ preventScroll: true });
}

/** Show what went wrong where it belongs; null clears it. */
function report(error) {
  clearInterval(waitTimer);
  const box = element("error");
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  }
  box.hidden = !error;
  box.textContent = error?.message ?? "";
  if (!error) {
    if (!running) element("run").disabled = false;
    return;
  }
  if (!(error instanceof ApiError) && !error.param) throw error;
  const field = element(fieldOf(error.param));
  if (field) {
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", "error");
    field.focus();
  }
  if (error.status === 401) askForKey(key ? "The server does not know this key." : "");
  if (error.status === 429) waitFor(error.retryAfter ?? 1, error.message);
}

/** Return the id of the form's field that a field of the API comes from. */
function fieldOf(param) {
  const name = (param ?? "").split(".")[0];
  return { messages: "prompt", suffix: "prompt", max_completion_tokens: "max_tokens" }[name] ?? name;
}

/** Hold the button back for as long as the server asks. */
function waitFor(seconds, message) {
  const end = performance.now() + seconds * 1000;
  const tick = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    element("run").disabled = left > 0;
    element("wait").textContent = left > 0 ? ` Run opens again in ${left} s.` : " You can run it again.";
    if (left <= 0) clearInterval(waitTimer);
  };
  const wait = document.createElement("span");
  wait.id = "wait";
  wait.ariaLive = "off";
  element("error").replaceChildren(`${message}.`, wait);
  waitTimer = setInterval(tick, 250);
  setTimeout(tick);
}

function askForKey(message) {
  const told = element("key-error");
  told.textContent = message;
  told.hidden = !message;
  const dialog = element("key-dialog");
  if (!dialog.open) dialog.showModal();
  element("key").select();
}

function say(text) {
  element("status").textContent = text;
}

/** Show what the choices ask for: fields that matter, colours, code. */
function refresh() {
  const task = chosen("task");
  const modes = lanes.filter((lane) => lane.isOn).map((lane) => lane.mode.value);
  for (const field of document.querySelectorAll("[data-for]")) {
    field.hidden = !field.dataset.for.split(" ").some((mode) => modes.includes(mode));
  }
  for (const id of ["insert-hole", "prompt-hint"]) element(id).hidden = task !== "fill";
  document.body.dataset.colour = chosen("colour");
  for (const legend of document.querySelectorAll("[data-legend]")) {
    legend.hidden = legend.dataset.legend !== chosen("colour");
  }
  element("no-confidence").hidden = !modes.includes("diffusion");
  lanes.forEach((lane, place) => {
    lane.element.classList.toggle("off", !lane.isOn);
    element(`code-lane-${place}`).textContent = lane.mode.value;
    element(`code-lane-${place}`).parentElement.hidden = !lane.isOn;
  });
  showCode();
}

function showCode() {
  const place = lanes[1].isOn ? Number(chosen("code-lane")) : 0;
  const codeOf = chosen("language") === "curl" ? curlOf : pythonOf;
  try {
    const request = requestOf(readFields(), lanes[place].mode.value, model?.id ?? "MODEL");
    element("code").textContent = codeOf(request, location.origin, Boolean(key));
  } catch (error) {
    element("code").textContent = error.message;
  }
}

/** Begin a task as it is meant; a prompt that was typed stays. */
function setTask() {
  const { prompt, maxTokens } = TASKS[chosen("task")];
  const isUntouched = Object.values(TASKS).some((task) => task.prompt === element("prompt").value);
  if (isUntouched || element("prompt").value === "") element("prompt").value = prompt;
  element("max_tokens").value = maxTokens;
  if (model) offerModes();
}

function offerModes() {
  lanes.forEach((lane, place) => lane.offer(model.modes, TASKS[chosen("task")].modes[place], place > 0));
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
}

element("lanes").append(...lanes.map((lane) => lane.element));
element("theme").value = localStorage.getItem("theme") ?? "system";
setTheme(element("theme").value);
element("theme").addEventListener("change", (event) => setTheme(event.target.value));
element("request").addEventListener("submit", run);
element("cancel").addEventListener("click", () => running?.abort());
element("copy").addEventListener("click", () => copyText(element("code"), element("copy")));
element("open-key").addEventListener("click", () => askForKey(""));
element("close-key").addEventListener("click", () => element("key-dialog").close());
element("key-dialog").addEventListener("submit", (event) => {
  event.preventDefault();
  key = element("key").value.trim();
  connect();
});
element("insert-hole").addEventListener("click", () => {
  const prompt = element("prompt");
  prompt.setRangeText(HOLE, prompt.selectionStart, prompt.selectionEnd, "end");
  prompt.focus();
  refresh();
});
document.addEventListener("input", refresh);
for (const radio of document.querySelectorAll('input[name="task"]')) {
  radio.addEventListener("change", () => {
    setTask();
    refresh();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) element("request").requestSubmit();
});
setTask();
refresh();
connect();

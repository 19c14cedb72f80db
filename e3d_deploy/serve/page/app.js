// The live page: chooses a source, maintains the connection, and sends the viewer's commands to the server.

import { fetchModel, roundTrip, setToken, takeToken, token, uploadClip } from "./api.js";
import { Connection } from "./connection.js";
import { Monitor } from "./monitor.js";
import { followTheme, theme, toggleTheme } from "./theme.js";
import { $, ahead, listSources, milliseconds, notify, number, say, showState, showStats } from "./view.js";
import { Webcam, webcamRefusal } from "./webcam.js";

const SOURCE = "e3d-source";
const HORIZON_REST_MS = 80; // a dragged slider sends its value only after this time without a change
const PROBE_MS = 5000; // interval of the measurements of the network round trip
const SILENCE_MS = 3000; // maximum time without a picture before the page reports the silence

const clips = []; // uploaded by this page: { id, name }
const monitor = new Monitor();
const webcam = new Webcam();
let source = sessionStorage.getItem(SOURCE);
let paused = false;
let state = "connecting";

const horizon = () => Number($("horizon").value);

const connection = new Connection({
  state: setState,
  prepare,
  opening: () => ({ token: token(), source, horizon: horizon() }),
  ready(message) {
    say("backend", message.backend);
    say("precision", message.precision);
    monitor.begin(message);
    say("horizon-text", ahead(horizon(), monitor.rate));
    monitor.cameAt = performance.now();
    if (paused) connection.send({ type: "pause" });
    if (source === "webcam") webcam.start(monitor.model, (bytes) => paused || connection.sendPicture(bytes));
    setState(paused ? "paused" : "live");
    probe();
  },
  picture: (header, pictures) => monitor.show(header, pictures),
  message({ type, ...message }) {
    if (type === "stats") showStats(message, monitor.remark);
    if (type === "paused" || type === "resumed") setState(type === "paused" ? "paused" : "live");
    if (type === "was_reset") say("announce", "The state of the model was reset");
  },
});

/**
 * Request the description of the model, which may change when the server restarts, and prepare the source. Called
 * before each connection; return whether to connect.
 */
async function prepare() {
  const model = await fetchModel();
  monitor.take(model);
  const refusal = webcamRefusal(model.channels);
  const offers = model.sources.map(({ id, name }) => ({ id: `offer:${id}`, name }));
  const known = source === "" || source === "webcam" || [...offers, ...clips].some(({ id }) => id === source);
  if (!known) source = offers[0]?.id ?? "";
  document.documentElement.style.setProperty("--aspect", String(model.image_size[1] / model.image_size[0]));
  document.title = `${model.name} – e3d live`;
  say("model", model.name);
  $("horizon").max = String(model.horizon);
  say("horizon-text", ahead(horizon(), monitor.rate));
  listSources(offers, clips, refusal, source);
  monitor.repaint();
  if (source === "webcam") {
    if (refusal) throw { action: "refuse", why: refusal };
    await webcam.open(() => choose(""));
  }
  if (source !== "webcam") webcam.close(); // a different source was chosen, perhaps while the browser asked for permission
  if (!source) setState("choose");
  return Boolean(source);
}

function setState(name, detail) {
  state = name;
  showState(name, detail);
  const running = name === "live" || name === "paused";
  if (name !== "live") monitor.interrupt();
  if (name === "ended" || name === "refused") paused = false; // "Start again" also ends a pause
  $("pause").disabled = $("reset").disabled = !running;
  say("pause", paused ? "Resume" : "Pause");
  $("token-form").hidden = name !== "token";
  $("live").hidden = name === "token";
  if (name === "token") {
    if (token()) say("token-note", "The server refused this token. Check the token and enter it again.");
    $("token").focus();
  }
  if (!running) webcam.stop();
}

function choose(id) {
  source = id;
  if (!id.startsWith("clip:")) sessionStorage.setItem(SOURCE, id); // an uploaded clip is known only to this page
  $("source").value = id;
  paused = false;
  monitor.forget();
  showStats({});
  connection.open();
}

function togglePause() {
  if ($("pause").disabled) return;
  paused = !paused;
  say("pause", paused ? "Resume" : "Pause");
  connection.send({ type: paused ? "pause" : "resume" });
}

let resting = 0;
function changeHorizon() {
  say("horizon-text", ahead(horizon(), monitor.rate));
  clearTimeout(resting);
  resting = setTimeout(() => connection.send({ type: "horizon", value: horizon() }), HORIZON_REST_MS);
}

function stepHorizon(step) {
  $("horizon").value = String(horizon() + step);
  changeHorizon();
}

function reset() {
  if (!$("reset").disabled) connection.send({ type: "reset" });
}

function snapshot() {
  monitor.snapshot($("source").selectedOptions[0].text, `${$("backend").textContent} ${$("precision").textContent}`);
}

function switchTheme() {
  toggleTheme();
  repaint();
}

function repaint() {
  say("theme", theme() === "dark" ? "Light" : "Dark");
  monitor.repaint();
}

async function upload(file) {
  if (!monitor.model) return notify("The server has not answered yet; upload the clip later");
  const limit = monitor.model.limits.upload_bytes;
  if (file.size > limit) {
    return notify(`${file.name} has ${number(file.size / 1e6)} MB; the server accepts at most ${number(limit / 1e6)} MB`);
  }
  try {
    const id = await uploadClip(file, (part) => say("clip-label", `Uploading, ${Math.round(part * 100)} %`));
    clips.push({ id, name: file.name });
    choose(id);
  } catch (error) {
    notify(error.message);
  } finally {
    say("clip-label", "Upload a clip…");
    $("clip").value = ""; // allows the same file to be chosen again
  }
}

/** Show how long no picture has arrived; without this text, the last numbers would look current. */
function watch() {
  monitor.measure();
  const silence = performance.now() - monitor.cameAt;
  if (state === "live") say("state-text", silence > SILENCE_MS ? `Live, no pictures for ${Math.floor(silence / 1000)} s` : "Live");
}

async function probe() {
  if (state !== "live" && state !== "paused") return;
  const heard = connection.heard;
  try {
    say("network", milliseconds(await roundTrip()));
  } catch {
    if (connection.heard === heard) connection.drop(); // neither HTTP nor the WebSocket answers
  }
}

const KEYS = {
  " ": togglePause,
  ArrowLeft: () => stepHorizon(-1),
  ArrowRight: () => stepHorizon(1),
  r: reset,
  s: snapshot,
  d: switchTheme,
  "?": () => $("help").showModal(),
};

function press(event) {
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  // Controls handle their own keys: space presses a button, arrows move the slider, letters choose in a list.
  const own = { " ": "button, select, input:not([type=range])", ArrowLeft: "select, input", ArrowRight: "select, input" };
  const taken = event.target.closest(own[event.key] ?? "select, input:not([type=range])");
  if (!action || taken || event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  event.preventDefault();
  // A held key repeats about 30 times per second; only the slider follows the repeats.
  if (!event.repeat || event.key.startsWith("Arrow")) action();
}

takeToken();
followTheme(repaint);
document.addEventListener("keydown", press);
$("theme").addEventListener("click", switchTheme);
$("help-open").addEventListener("click", KEYS["?"]);
$("source").addEventListener("change", (event) => choose(event.target.value));
$("clip").addEventListener("change", (event) => event.target.files[0] && upload(event.target.files[0]));
$("horizon").addEventListener("input", changeHorizon);
$("pause").addEventListener("click", togglePause);
$("reset").addEventListener("click", reset);
$("snapshot").addEventListener("click", snapshot);
$("again").addEventListener("click", () => {
  if (["ended", "reconnecting", "refused"].includes(state)) connection.open();
  else $("notice").hidden = true;
});
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken($("token").value.trim());
  $("token").value = "";
  connection.open();
});
// A page that the viewer has left may stay in the browser's cache, where it would keep its session open.
window.addEventListener("pagehide", () => {
  connection.close();
  webcam.close();
});
window.addEventListener("pageshow", (event) => event.persisted && connection.open());
new ResizeObserver(() => monitor.repaint()).observe($("error-chart"));
setInterval(watch, 1000);
setInterval(probe, PROBE_MS);
connection.open();

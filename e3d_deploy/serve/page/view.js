// Texts and numbers of the page.

export const $ = (id) => document.getElementById(id);

export const say = (id, text) => {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text;
};

export const number = (value) => (value == null ? "–" : String(Number(value.toPrecision(3))));

/** Format a number that changes constantly with a fixed number of decimals, so that its width hardly changes. */
export const fixed = (value, decimals, unknown = "–") => (value == null ? unknown : value.toFixed(value < 100 ? decimals : 0));

export const milliseconds = (value) => (value == null ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`);

export const count = (value, one, many) => `${value} ${value === 1 ? one : many}`;

/** Return a horizon in words, with its time if the frames per second are known. */
export function ahead(horizon, rate) {
  return `${count(horizon, "frame", "frames")} ahead${rate ? ` · ${number(horizon / rate)} s` : ""}`;
}

const STATES = {
  choose: "Choose a source",
  connecting: "Connecting",
  live: "Live",
  paused: "Paused",
  ended: "Ended",
  refused: "Refused",
  token: "Token needed",
};

/** Show the state of the connection. The countdown is not announced, because a screen reader would read each second. */
export function showState(name, detail) {
  const waiting = name === "reconnecting";
  document.body.dataset.state = name;
  say("state-text", waiting ? `Reconnecting in ${detail.seconds} s` : STATES[name]);
  say("announce", waiting ? "Reconnecting" : STATES[name]);
  const why = waiting ? detail.why : detail;
  const shown = Boolean(why) && (waiting || name === "ended" || name === "refused");
  $("notice").hidden = !shown;
  say("notice-text", shown ? upper(sentence(why)) : "");
  say("again", { ended: "Start again", reconnecting: "Try now" }[name] ?? "Try again");
}

/** Show a message that does not concern the connection, such as a refused upload. */
export function notify(text) {
  $("notice").hidden = false;
  say("again", "Close");
  say("notice-text", sentence(text));
}

const sentence = (text) => (/[.!?…]$/.test(text) ? text : `${text}.`);

/** Begin a sentence with a capital letter, unless it begins with a file name or an address. */
const upper = (text) => text.replace(/^\p{Ll}(?=\p{L}*[ ,])/u, (letter) => letter.toUpperCase());

/** Fill the list of sources, and keep the chosen source. */
export function listSources(sources, clips, refusal, chosen) {
  const option = (value, text, disabled = false) => {
    const element = new Option(text, value, false, value === chosen);
    element.disabled = disabled;
    return element;
  };
  const group = (label, options) => {
    const element = document.createElement("optgroup");
    element.label = label;
    element.append(...options);
    return element;
  };
  const groups = [group("This device", [option("webcam", refusal ? "Webcam (off, see below)" : "Webcam", Boolean(refusal))])];
  if (clips.length) groups.unshift(group("Uploaded", clips.map(({ id, name }) => option(id, name))));
  if (sources.length) groups.unshift(group("On the server", sources.map(({ id, name }) => option(id, name))));
  $("source").replaceChildren(option("", "Choose a source"), ...groups);
  $("webcam-note").hidden = !refusal;
  say("webcam-note", refusal ?? "");
}

/** Show the message `stats`; missing fields are shown as "–". */
export function showStats(stats, remark) {
  const pictures = (value) => (value == null ? "–" : count(value, "picture", "pictures"));
  say("rate", stats.frames_per_second == null ? "–" : `${stats.frames_per_second.toFixed(1)} /s`);
  say("p50", milliseconds(stats.p50_ms));
  say("p99", milliseconds(stats.p99_ms));
  say("mse", fixed(stats.mse, 1));
  say("copy-mse", fixed(stats.copy_mse, 1));
  say("dropped-source", pictures(stats.dropped_source));
  say("dropped-viewer", pictures(stats.dropped_viewer));
  const verdict = [remark, stats.verdict].filter(Boolean).map((text) => upper(sentence(text))).join(" ");
  // The verdict is announced only once, because its numbers change every second.
  if (verdict && !$("verdict").textContent) say("announce", verdict);
  say("verdict", verdict);
}

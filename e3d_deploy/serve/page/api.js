// Requests to the REST API of the server, and the token that they need.

const KEY = "e3d-token";
const MODEL_DEADLINE_MS = 10_000;

/** Move the token from the address, where it would stay in the history, to the session storage of this tab. */
export function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  sessionStorage.setItem(KEY, token);
  history.replaceState(null, "", location.pathname + location.search);
}

export const token = () => sessionStorage.getItem(KEY);
export const setToken = (value) => sessionStorage.setItem(KEY, value);

const headers = () => (token() ? { Authorization: `Bearer ${token()}` } : {});

/** Return the message in an error response, or a sentence with the status if there is no message. */
function reason(body, status) {
  try {
    return JSON.parse(body).error.message;
  } catch {
    // The response came from a proxy, not from the server.
  }
  return `The server answered with status ${status}`;
}

/** Parse a response as JSON. A proxy may send a page of its own with status 200; then throw { action, why }. */
function parse(body) {
  try {
    return JSON.parse(body);
  } catch {
    throw { action: "retry", why: "The response did not come from e3d serve; check the proxy in front of the server" };
  }
}

/** Return the description of the model; throw { action, why } as `Connection` expects. */
export async function fetchModel() {
  const signal = AbortSignal.timeout(MODEL_DEADLINE_MS);
  let answer, body;
  try {
    answer = await fetch("/v1/model", { headers: headers(), cache: "no-store", signal });
    body = await answer.text();
  } catch {
    throw { action: "retry", why: signal.aborted ? "The server does not answer" : "The server cannot be reached" };
  }
  if (answer.ok) return parse(body);
  const why = reason(body, answer.status);
  if (answer.status === 401) throw { action: "token", why };
  throw { action: answer.status === 429 || answer.status >= 500 ? "retry" : "refuse", why };
}

/** Upload a clip and return its source; call `progress` with the fraction sent, in [0, 1]. */
export function uploadClip(file, progress) {
  const form = new FormData();
  form.append("clip", file);
  const request = new XMLHttpRequest(); // fetch does not report the progress of uploads
  request.open("POST", "/v1/clips");
  for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
  return new Promise((resolve, reject) => {
    request.upload.onprogress = (event) => progress(event.loaded / event.total);
    request.onload = () => {
      if (request.status === 201) resolve(JSON.parse(request.responseText).source);
      else reject(new Error(reason(request.responseText, request.status)));
    };
    request.onerror = () => reject(new Error("The connection was lost during the upload"));
    request.send(form);
  });
}

/** Return the time of a health check (ms); throw if the server does not answer. */
export async function roundTrip() {
  const began = performance.now();
  await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(5000) });
  return performance.now() - began;
}

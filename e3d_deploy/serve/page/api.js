// Requests to the REST side of the server, and the token for them.

const KEY = "e3d-token";
const MODEL_DEADLINE_MS = 10_000;

/** Take the token from the address, where it would stay in the history, and keep it for this tab alone. */
export function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  sessionStorage.setItem(KEY, token);
  history.replaceState(null, "", location.pathname + location.search);
}

export const token = () => sessionStorage.getItem(KEY);
export const setToken = (value) => sessionStorage.setItem(KEY, value);

const headers = () => (token() ? { Authorization: `Bearer ${token()}` } : {});

/** Return the reason in an answer of the server, or its status. */
function reason(body, status) {
  try {
    return JSON.parse(body).error.message;
  } catch {
    // An answer of a proxy.
  }
  return `The server answered ${status}`;
}

/** Return the object in an answer; a proxy may answer a page of its own with status 200. */
function parse(body) {
  try {
    return JSON.parse(body);
  } catch {
    throw { action: "retry", why: "Something else than e3d serve answered; check the proxy between" };
  }
}

/** Return the description of the model; throws { action, why } as a connection takes it. */
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

/** Upload a clip and return its source; `progress` is told the part sent, in [0, 1]. */
export function uploadClip(file, progress) {
  const form = new FormData();
  form.append("clip", file);
  const request = new XMLHttpRequest(); // fetch does not tell how much was sent
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

/** Return the time of a request that the server answers at once (ms); throws when it does not answer. */
export async function roundTrip() {
  const began = performance.now();
  await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(5000) });
  return performance.now() - began;
}

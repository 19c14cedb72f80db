// Protocol e3d.v1: binary messages and close codes of the server.

export const SUBPROTOCOL = "e3d.v1";

const TEXT = new TextDecoder();

/** Decode a binary message: the length of the header, the header as JSON, then the pictures in order. */
export function decode(buffer, [H, W], C) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(TEXT.decode(new Uint8Array(buffer, 4, length)));
  const pictures = {};
  header.pictures.forEach((name, i) => {
    pictures[name] = new Uint8Array(buffer, 4 + length + i * H * W * C, H * W * C);
  });
  return { header, pictures };
}

/** Close codes after which a later retry may succeed. */
const PASSING = new Set([1001, 1005, 1006, 1011, 1012, 1013, 4429, 4503]);

const REASONS = {
  1001: "The server stopped",
  1005: "The connection was lost",
  1006: "The connection was lost",
  1011: "The server failed",
  4400: "The server did not understand this page; reload it",
  4403: "The server does not allow this source",
  4404: "The source cannot be read",
  4408: "The session was idle for too long",
  4413: "A message was too large for the server",
  4429: "All sessions of the server are in use",
  4503: "The source was lost",
};

/** Return the action after a close, "end", "token", "retry" or "refuse", and the reason in words. */
export function closing(code, reason, error) {
  const why = error || reason || REASONS[code] || `The server closed the connection (code ${code})`;
  if (code === 1000 || code === 4408) return { action: "end", why };
  if (code === 4401) return { action: "token", why };
  return { action: PASSING.has(code) ? "retry" : "refuse", why };
}

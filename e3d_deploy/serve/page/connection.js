// The WebSocket to the server. A lost WebSocket is reopened after growing delays.

import { SUBPROTOCOL, closing, decode } from "./protocol.js";

const FIRST_DELAY_S = 0.5;
const LONGEST_DELAY_S = 15;
const READY_DEADLINE_MS = 30_000; // a network source may take long to open

export class Connection {
  #socket = null;
  #attempt = 0;
  #timer = 0;
  #run = 0; // number of the current attempt; late events of earlier attempts are ignored

  /**
   * handlers: prepare() returns whether to connect, or throws { action, why }; opening() returns the fields of the
   * message `open`; state(name, detail); ready(message); picture(header, pictures); message(message).
   */
  constructor(handlers) {
    this.handlers = handlers;
    this.ready = null;
    this.heard = 0; // performance.now() of the last message
  }

  /** Close the current connection, if any, and open a new connection. */
  open() {
    this.close();
    this.#attempt = 0;
    this.#connect();
  }

  close() {
    this.#run++;
    clearTimeout(this.#timer);
    this.ready = null;
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    if (socket.readyState === WebSocket.OPEN) socket.send('{"type":"close"}');
    socket.close();
  }

  /** Treat the current connection as lost, and reconnect. */
  drop() {
    if (this.#socket) this.#closed(this.#run, 1006, "", "");
  }

  send(message) {
    if (this.ready) this.#socket.send(JSON.stringify(message));
  }

  /** Send a picture unless earlier pictures still wait in the send buffer of the browser. */
  sendPicture(bytes) {
    if (this.ready && this.#socket.bufferedAmount < bytes.length / 2) this.#socket.send(bytes);
  }

  async #connect() {
    const run = ++this.#run;
    this.handlers.state("connecting");
    try {
      const wanted = await this.handlers.prepare();
      if (wanted && run === this.#run) this.#dial(run);
    } catch (error) {
      if (!error.action) throw error; // a bug of this page
      if (run === this.#run) this.#settle(error);
    }
  }

  #dial(run) {
    const url = new URL("/v1/live", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url, SUBPROTOCOL);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    let error = "";
    socket.onopen = () => socket.send(JSON.stringify({ type: "open", ...this.handlers.opening() }));
    socket.onmessage = (event) => {
      if (run !== this.#run) return;
      this.heard = performance.now();
      if (typeof event.data !== "string") return this.#picture(event.data);
      const message = JSON.parse(event.data);
      if (message.type === "ready") this.#begin(message);
      if (message.type === "error") error = message.message;
      if (message.type === "end") error = message.reason;
      this.handlers.message(message);
    };
    socket.onclose = (event) => this.#closed(run, event.code, event.reason, error);
    this.#timer = setTimeout(() => this.#closed(run, 1006, "", "The server does not answer"), READY_DEADLINE_MS);
  }

  #begin(message) {
    clearTimeout(this.#timer);
    this.ready = message;
    this.handlers.ready(message);
  }

  #picture(buffer) {
    this.#attempt = 0; // only a picture shows that the source works again
    const { header, pictures } = decode(buffer, this.ready.image_size, this.ready.channels);
    this.handlers.picture(header, pictures);
  }

  #closed(run, code, reason, error) {
    if (run !== this.#run) return;
    this.close();
    this.#settle(closing(code, reason, error));
  }

  #settle({ action, why }) {
    if (action === "retry") this.#wait(why);
    else this.handlers.state({ end: "ended", token: "token", refuse: "refused" }[action], why);
  }

  #wait(why) {
    const delay = Math.min(FIRST_DELAY_S * 2 ** this.#attempt++, LONGEST_DELAY_S);
    const until = performance.now() + delay * 1000;
    const tick = () => {
      const left = (until - performance.now()) / 1000;
      if (left <= 0.01) return void this.#connect();
      this.handlers.state("reconnecting", { why, seconds: Math.ceil(left) });
      this.#timer = setTimeout(tick, Math.min(1000, left * 1000));
    };
    tick();
  }
}

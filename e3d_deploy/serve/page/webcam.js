// The webcam of the viewer, as raw pictures in the size of the model.

import { luma } from "./pictures.js";

const DEFAULT_RATE = 10; // frames per second if the model states no rate

/** Return why this page cannot use a webcam, in words; null if it can. */
export function webcamRefusal(channels) {
  if (!window.isSecureContext) {
    return `The webcam is off: this page was loaded over plain http from ${location.hostname}, and browsers allow the ` +
      "webcam only on https pages and on localhost. Start the server with --tls-cert and --tls-key, or open the page " +
      "on the machine of the server.";
  }
  if (!navigator.mediaDevices?.getUserMedia) return "The webcam is off: this browser does not support cameras.";
  if (channels !== 1 && channels !== 3) return `The webcam is off: the model takes ${channels} channels, but a webcam has 1 or 3.`;
  return null;
}

const REASONS = {
  NotAllowedError: "The browser is not allowed to use the webcam. Allow the webcam in the address bar, then choose the webcam again.",
  NotFoundError: "This device has no webcam.",
  NotReadableError: "The webcam is in use by another program. Close that program, then choose the webcam again.",
};

export class Webcam {
  #timer = 0;
  #stream = null;
  #video = document.createElement("video");
  #canvas = document.createElement("canvas");

  /** Open the camera; throw { action, why } as `Connection` expects. `lost` is called when the camera is lost. */
  async open(lost) {
    if (this.#stream) return;
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } }, audio: false });
    } catch (error) {
      throw { action: "refuse", why: REASONS[error.name] ?? `The webcam cannot be opened: ${error.message}` };
    }
    this.#stream.getVideoTracks()[0].onended = lost;
    Object.assign(this.#video, { srcObject: this.#stream, muted: true, playsInline: true });
    await this.#video.play();
  }

  /** Call `send` with pictures [H, W, C] at the frame rate of a model. */
  start({ image_size: [H, W], channels, frames_per_second: rate }, send) {
    clearInterval(this.#timer);
    Object.assign(this.#canvas, { width: W, height: H });
    this.#timer = setInterval(() => send(this.#picture(H, W, channels)), 1000 / (rate || DEFAULT_RATE));
  }

  stop() {
    clearInterval(this.#timer);
  }

  close() {
    this.stop();
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
  }

  /** Return the picture of the camera, cropped around its centre to the aspect ratio of the model and scaled to its size. */
  #picture(H, W, channels) {
    const { videoWidth, videoHeight } = this.#video;
    const scale = Math.max(W / videoWidth, H / videoHeight);
    const [width, height] = [W / scale, H / scale];
    const context = this.#canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(this.#video, (videoWidth - width) / 2, (videoHeight - height) / 2, width, height, 0, 0, W, H);
    const { data } = context.getImageData(0, 0, W, H);
    const bytes = new Uint8Array(H * W * channels);
    for (let i = 0; i < H * W; i++) {
      const [r, g, b] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
      if (channels === 1) bytes[i] = Math.round(luma(r, g, b));
      else bytes.set([r, g, b], 3 * i);
    }
    return bytes;
  }
}

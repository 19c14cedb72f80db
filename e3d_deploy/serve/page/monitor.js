// Draws the pictures, the charts and the numbers of the latest picture. If pictures arrive faster than
// they can be drawn, only the latest picture is drawn.

import { Chart } from "./charts.js";
import { FULL_COLOUR, clear, paint, paintDifference, paintLegend } from "./pictures.js";
import { download } from "./snapshot.js";
import { theme } from "./theme.js";
import { $, ahead, count, fixed, milliseconds, say } from "./view.js";

const DRAWINGS = 100; // number of recent drawings whose median time is shown

export class Monitor {
  #newest = null; // picture not drawn yet
  #drawn = null; // picture on the canvases
  #drawings = []; // times (ms)
  #errors = new Chart($("error-chart"), {
    series: [{ colour: "--muted", dashed: true }, { colour: "--accent" }],
  });
  #novelty = new Chart($("novelty-chart"), { series: [{ colour: "--accent" }], level: 1, least: 2 });

  constructor() {
    this.model = null; // response of /v1/model, set before any other method is called
    this.cameAt = 0; // performance.now() of the last picture
    this.rate = null; // frames per second of the source, or of the model if the source states no rate; null if unknown
    this.remark = null; // sentence about the source, or null
  }

  /** Store the response of /v1/model; if the size of pictures changed, clear all pictures. */
  take(model) {
    const { image_size: size, channels } = this.model ?? {};
    this.model = model;
    this.rate = model.frames_per_second;
    this.remark = null;
    if (String([size, channels]) !== String([model.image_size, model.channels])) this.forget();
  }

  /** Store the rate and the remark of the message `ready`. */
  begin({ frames_per_second: rate, remark }) {
    this.rate = rate ?? this.model.frames_per_second;
    this.remark = remark;
  }

  /** Store a picture, and draw it in the next animation frame. */
  show(header, pictures) {
    const before = this.#newest ?? this.#drawn;
    // Errors at different horizons cannot be compared.
    if (before && before.header.horizon !== header.horizon) this.#forgetCharts();
    this.cameAt = performance.now();
    const seconds = this.cameAt / 1000;
    this.#errors.add(seconds, [header.copy_error, header.error], header.cut);
    this.#novelty.add(seconds, [header.novelty], header.cut);
    if (!this.#newest) requestAnimationFrame(() => this.#draw());
    this.#newest = { header, pictures };
  }

  /** Break the lines of the charts, because the next picture does not continue the last picture. */
  interrupt() {
    this.#errors.interrupt();
    this.#novelty.interrupt();
  }

  /** Clear the pictures, charts and numbers of a source. */
  forget() {
    this.#newest = this.#drawn = null;
    this.#forgetCharts();
    for (const id of ["now", "forecast", "difference"]) clear($(id), this.model.image_size);
    for (const id of ["now-text", "forecast-text", "error-now", "copy-now", "novelty-now"]) say(id, "");
    say("age", "–");
    $("difference-wait").hidden = true;
    $("snapshot").disabled = true;
    this.#drawCharts();
  }

  /** Draw everything again in the colours of the theme. */
  repaint() {
    paintLegend($("legend"), theme());
    say("legend-low", `−${FULL_COLOUR} darker`);
    say("legend-high", `brighter +${FULL_COLOUR}`);
    if (this.#drawn) this.#paint();
    this.#drawCharts();
  }

  /** Show the median time of drawing, which the latency of the server does not include. */
  measure() {
    const sorted = [...this.#drawings].sort((a, b) => a - b);
    say("drawing", milliseconds(sorted[sorted.length >> 1]));
  }

  snapshot(sourceName, backend) {
    if (!this.#drawn) return;
    const { header } = this.#drawn;
    download(
      [
        { title: "Now", canvas: $("now") },
        { title: `Forecast, ${ahead(header.horizon, this.rate)}`, canvas: $("forecast") },
        { title: "Difference", canvas: $("difference") },
      ],
      [
        `${this.model.name} · ${sourceName} · picture ${header.index} · ${backend} · ${new Date().toLocaleString()}`,
        `Difference: now − its earlier forecast; blue is darker, orange is brighter; full colour at ±${FULL_COLOUR} of 255`,
        `Error ${fixed(header.error, 1)} · copying the last picture ${fixed(header.copy_error, 1)} · novelty ${fixed(header.novelty, 2)}`,
      ],
      `${this.model.name}-${header.index}.png`,
    );
  }

  #draw() {
    if (!this.#newest) return; // `forget` was called in the meantime
    const began = performance.now();
    this.#drawn = this.#newest;
    this.#newest = null;
    this.#paint();
    this.#drawCharts();
    this.#drawings.push(performance.now() - began);
    if (this.#drawings.length > DRAWINGS) this.#drawings.shift();
  }

  #paint() {
    const { header, pictures } = this.#drawn;
    const { image_size: size, channels: C } = this.model;
    paint($("now"), pictures.now, size, C);
    paint($("forecast"), pictures.forecast, size, C);
    if (pictures.expected) paintDifference($("difference"), pictures.now, pictures.expected, size, C, theme());
    else clear($("difference"), size);
    $("difference-wait").hidden = Boolean(pictures.expected);
    say("difference-wait", `The difference appears ${count(header.horizon, "picture", "pictures")} after a start or reset.`);
    say("now-text", `picture ${header.index}`);
    say("forecast-text", ahead(header.horizon, this.rate));
    say("age", count(header.age, "picture", "pictures"));
    say("error-now", fixed(header.error, 1, ""));
    say("copy-now", fixed(header.copy_error, 1, ""));
    say("novelty-now", fixed(header.novelty, 2, ""));
    $("snapshot").disabled = false;
  }

  #drawCharts() {
    this.#errors.draw();
    this.#novelty.draw();
  }

  #forgetCharts() {
    this.#errors.clear();
    this.#novelty.clear();
  }
}

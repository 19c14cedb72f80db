// A line chart of the last minute on a canvas. The right end of the chart is the time of the latest picture, so the
// chart does not move during a pause.

const WINDOW_S = 60;
const GAP_S = 5; // a longer time without a picture breaks the line
const PAD = { left: 40, right: 10, top: 10, bottom: 20 }; // CSS pixels

/** Return the smallest round number that is at least the value. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= value);
}

const short = (value) => String(Number(value.toPrecision(3)));

export class Chart {
  #points = []; // { time, values, cut }

  /**
   * series: [{ colour: CSS variable, dashed }]; level: value of a dashed horizontal line; least: minimum of the upper
   * end of the axis.
   */
  constructor(canvas, { series, level = null, least = 1 }) {
    Object.assign(this, { canvas, series, level, least });
  }

  add(time, values, cut) {
    this.#points.push({ time, values, cut });
    while (this.#points[0].time < time - WINDOW_S) this.#points.shift();
  }

  /** Break the line before the next point. */
  interrupt() {
    const last = this.#points.at(-1);
    if (last?.values.some((value) => value !== null)) this.add(last.time, last.values.map(() => null), false);
  }

  clear() {
    this.#points = [];
  }

  draw() {
    const style = getComputedStyle(this.canvas);
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== h) Object.assign(this.canvas, { width: w, height: h });
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `11px ${style.fontFamily}`;
    const known = this.#points.flatMap(({ values }) => values).filter((value) => value !== null);
    const top = ceiling(Math.max(this.least, ...known));
    const end = this.#points.at(-1)?.time ?? 0;
    const x = (time) => width - PAD.right - ((end - time) / WINDOW_S) * (width - PAD.left - PAD.right);
    const y = (value) => height - PAD.bottom - (value / top) * (height - PAD.top - PAD.bottom);
    const pen = { context, style, x, y, top, end, width, height };
    this.#axes(pen);
    this.#cuts(pen);
    if (this.level !== null) this.#line(pen, [[x(end - WINDOW_S), y(this.level)], [x(end), y(this.level)]], "--muted", true);
    this.series.forEach(({ colour, dashed }, i) => {
      for (const run of this.#runs(i)) {
        this.#line(pen, run.map(({ time, values }) => [x(time), y(values[i])]), colour, dashed);
      }
    });
  }

  #axes({ context, style, x, y, top, end, width, height }) {
    context.fillStyle = style.getPropertyValue("--muted");
    context.strokeStyle = style.getPropertyValue("--line");
    context.lineWidth = 1;
    context.setLineDash([]);
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const value of [0, top / 2, top]) {
      const row = Math.round(y(value)) + 0.5;
      context.beginPath();
      context.moveTo(PAD.left, row);
      context.lineTo(width - PAD.right, row);
      context.stroke();
      context.fillText(short(value), PAD.left - 6, row);
    }
    context.textBaseline = "alphabetic";
    for (const [ago, align] of [[60, "left"], [30, "center"], [0, "right"]]) {
      context.textAlign = align;
      context.fillText(ago ? `−${ago} s` : "now", x(end - ago), height - 4);
    }
  }

  #cuts({ context, style, x, height }) {
    context.strokeStyle = style.getPropertyValue("--muted");
    context.setLineDash([1, 3]);
    for (const { time, cut } of this.#points) {
      if (!cut) continue;
      context.beginPath();
      context.moveTo(x(time), PAD.top);
      context.lineTo(x(time), height - PAD.bottom);
      context.stroke();
    }
  }

  /** Return the runs of points in which series i is known without a gap. */
  #runs(i) {
    const runs = [];
    let before = null;
    for (const point of this.#points) {
      const known = point.values[i] !== null;
      if (known && (!before || point.time - before.time > GAP_S)) runs.push([]);
      if (known) runs.at(-1).push(point);
      before = known ? point : null;
    }
    return runs;
  }

  #line({ context, style }, places, colour, dashed) {
    context.strokeStyle = style.getPropertyValue(colour);
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.setLineDash(dashed ? [4, 3] : []);
    context.beginPath();
    places.forEach(([left, up], i) => (i ? context.lineTo(left, up) : context.moveTo(left, up)));
    context.stroke();
  }
}

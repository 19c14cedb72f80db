// Paints pictures of the model on canvases of the same size; CSS enlarges the canvases without smoothing.

export const FULL_COLOUR = 64; // smallest difference that is shown in full colour (gray levels of 255)

const SCALES = {
  light: { darker: [20, 90, 190], equal: [246, 246, 244], brighter: [205, 85, 0] },
  dark: { darker: [96, 165, 255], equal: [18, 20, 24], brighter: [255, 150, 60] },
};

/** Return the luma of RGB by BT.601. */
export const luma = (r, g, b) => 0.299 * r + 0.587 * g + 0.114 * b;

/** Return a pixel as an integer with the bytes r, g, b, 255 in memory; all machines with a browser are little-endian. */
const pixel = (r, g, b) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;

/** Return the colours of the differences −255 … 255, as pixels. */
function diverging({ darker, equal, brighter }) {
  return Array.from({ length: 511 }, (_, i) => {
    const part = Math.min(Math.abs(i - 255) / FULL_COLOUR, 1);
    const end = i < 255 ? darker : brighter;
    return pixel(...equal.map((value, k) => Math.round(value + (end[k] - value) * part)));
  });
}

const COLOURS = { light: diverging(SCALES.light), dark: diverging(SCALES.dark) };

/** Fill a canvas; `at(i)` returns pixel i. */
function fill(canvas, H, W, at) {
  if (canvas.width !== W || canvas.height !== H) Object.assign(canvas, { width: W, height: H });
  const context = canvas.getContext("2d");
  const image = context.createImageData(W, H);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = at(i);
  context.putImageData(image, 0, 0);
}

/** Paint bytes [H, W, C]: the first three channels as RGB, or with fewer channels the first one as gray. */
export function paint(canvas, bytes, [H, W], C) {
  if (C < 3) fill(canvas, H, W, (i) => pixel(bytes[i * C], bytes[i * C], bytes[i * C]));
  else fill(canvas, H, W, (i) => pixel(bytes[i * C], bytes[i * C + 1], bytes[i * C + 2]));
}

/** Return the gray level of pixel i of bytes [H, W, C]. */
const gray = (bytes, C, i) => (C < 3 ? bytes[i * C] : luma(bytes[i * C], bytes[i * C + 1], bytes[i * C + 2]));

/** Paint now − expected in gray levels on the diverging scale of the theme. */
export function paintDifference(canvas, now, expected, [H, W], C, theme) {
  fill(canvas, H, W, (i) => COLOURS[theme][255 + Math.round(gray(now, C, i) - gray(expected, C, i))]);
}

export function paintLegend(canvas, theme) {
  const width = 2 * FULL_COLOUR + 1;
  fill(canvas, 1, width, (i) => COLOURS[theme][255 - FULL_COLOUR + i]);
}

/** Clear a canvas but keep its size, so that the layout of the page does not change. */
export function clear(canvas, [H, W]) {
  Object.assign(canvas, { width: W, height: H });
}

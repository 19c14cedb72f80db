// Downloads the three pictures with a caption as one PNG.

const WIDTH = 480; // approximate width of one picture (pixels); pictures are enlarged by a whole factor
const PAD = 24;

/** Download the pictures; figures: [{ title, canvas }], caption: lines of text. */
export function download(figures, caption, name) {
  const style = getComputedStyle(document.body);
  const { width: W, height: H } = figures[0].canvas;
  const factor = Math.max(1, Math.round(WIDTH / W));
  const [width, height] = [W * factor, H * factor];
  const sheet = document.createElement("canvas");
  sheet.width = PAD + figures.length * (width + PAD);
  sheet.height = 2 * PAD + 28 + height + caption.length * 22;
  const context = sheet.getContext("2d");
  context.fillStyle = style.getPropertyValue("--page");
  context.fillRect(0, 0, sheet.width, sheet.height);
  context.imageSmoothingEnabled = false;
  figures.forEach(({ title, canvas }, i) => {
    const left = PAD + i * (width + PAD);
    context.fillStyle = style.color;
    context.font = `600 16px ${style.fontFamily}`;
    context.fillText(title, left, PAD + 14, width);
    context.drawImage(canvas, left, PAD + 28, width, height);
  });
  context.fillStyle = style.getPropertyValue("--muted");
  context.font = `14px ${style.fontFamily}`;
  caption.forEach((line, i) => {
    context.fillText(line, PAD, PAD + 28 + height + 26 + i * 22, sheet.width - 2 * PAD);
  });
  sheet.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // the browser reads the URL only after the click
  });
}

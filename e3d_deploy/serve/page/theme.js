// Light or dark theme: the choice of the system until the viewer chooses.

const KEY = "e3d-theme";
const SYSTEM = matchMedia("(prefers-color-scheme: dark)");

export const theme = () => document.documentElement.dataset.theme;

// Only this function reads SYSTEM.matches: Chromium sends no event for a change whose value a script has already read.
const apply = () => {
  document.documentElement.dataset.theme = localStorage.getItem(KEY) ?? (SYSTEM.matches ? "dark" : "light");
};

export function toggleTheme() {
  localStorage.setItem(KEY, theme() === "dark" ? "light" : "dark");
  apply();
}

/** Apply the theme and call `repaint`, now and whenever the system changes its theme. */
export function followTheme(repaint) {
  const follow = () => {
    apply();
    repaint();
  };
  SYSTEM.addEventListener("change", follow);
  follow();
}

// Light or dark: the system's choice until the viewer makes one.

const KEY = "e3d-theme";
const SYSTEM = matchMedia("(prefers-color-scheme: dark)");

export const theme = () => document.documentElement.dataset.theme;

// Nothing but this reads SYSTEM.matches: Chromium reports no change that a script has already read.
const apply = () => {
  document.documentElement.dataset.theme = localStorage.getItem(KEY) ?? (SYSTEM.matches ? "dark" : "light");
};

export function toggleTheme() {
  localStorage.setItem(KEY, theme() === "dark" ? "light" : "dark");
  apply();
}

/** Call `repaint` now and whenever the system changes. */
export function followTheme(repaint) {
  const follow = () => {
    apply();
    repaint();
  };
  SYSTEM.addEventListener("change", follow);
  follow();
}

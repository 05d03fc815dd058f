"use strict";
// On every page: the theme toggle, copy buttons, and the first page's choice of machines. Nothing is fetched.
// The state of a page in its hash. A list is joined from encoded parts, so that a part may hold the separator.
const viewHash = {
  // Null where the hash is an anchor: whoever follows one keeps the view.
  read() {
    const text = location.hash.slice(1);
    return text === "" || text.startsWith("v=") ? new URLSearchParams(text) : null;
  },
  join: (parts, separator) => parts.map(encodeURIComponent).join(separator),
  split: (text, separator) => (text || "").split(separator).map((part) => {
    try {
      return decodeURIComponent(part);
    } catch { // a per cent sign that somebody typed
      return part;
    }
  }),
};
(() => {
  const root = document.documentElement;
  // What is below is laid out when the page is ready and idle; see board.css.
  addEventListener("load", () => (window.requestIdleCallback || setTimeout)(() => root.classList.add("whole")));
  const theme = document.getElementById("theme");
  const stored = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("theme");
      localStorage.setItem("theme", value);
    } catch { /* storage is off for this page: the toggle still works until it is left */ }
    return null;
  };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    stored(root.dataset.theme);
  });

  for (const button of document.querySelectorAll(".copy")) button.hidden = false;
  document.addEventListener("click", async (event) => {
    const button = event.target.closest(".copy");
    if (!button) return;
    const text = button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
    } catch { // no clipboard on file:// in some browsers
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });

  const kinds = document.getElementById("kinds");
  if (!kinds) return;
  kinds.hidden = false;
  const apply = () => {
    const state = viewHash.read();
    if (!state) return;
    const wanted = state.get("kind");
    for (const chip of kinds.querySelectorAll("[data-kind]")) chip.setAttribute("aria-pressed", String(chip.dataset.kind === wanted));
    const known = kinds.querySelector('[aria-pressed="true"]');
    for (const section of document.querySelectorAll("section.machine")) section.hidden = Boolean(known) && section.dataset.kind !== wanted;
  };
  kinds.addEventListener("click", (event) => {
    const chip = event.target.closest("[data-kind]");
    if (!chip) return;
    const on = chip.getAttribute("aria-pressed") === "true";
    history.pushState(null, "", on ? location.pathname + location.search : `#v=1&kind=${chip.dataset.kind}`);
    apply();
  });
  addEventListener("popstate", apply);
  addEventListener("hashchange", apply);
  apply();
})();

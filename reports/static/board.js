"use strict";
// Sorting, filtering, theme and copying. The page is complete without it; nothing is fetched.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
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

  const cell = (text, label, name) => {
    const td = document.createElement(name || "td");
    td.textContent = text;
    if (label) td.dataset.label = label;
    return td;
  };
  // Rows beyond the first few hundred come as columns of text and are drawn here.
  for (const data of document.querySelectorAll("script.rows-data")) {
    const body = data.parentElement.querySelector("table.later tbody");
    for (const [rank, contender, family, time, slowdown, limit, memory, error, energy, status, reason, repeat, sort] of JSON.parse(data.textContent)) {
      const tr = document.createElement("tr");
      tr.dataset.text = `${contender} ${family} ${status}`;
      tr.dataset.status = status;
      tr.dataset.sort = JSON.stringify(sort);
      if (sort.rank === 1) tr.className = "first";
      const head = cell(contender, "Contender", "th");
      head.scope = "row";
      tr.append(cell(rank, "Rank"), head, cell(time, "Time"), cell(slowdown, "Slowdown"), cell(limit, "Of limit"), cell(memory, "Memory"),
        cell(error, "Error"), cell(energy, "Energy"), cell(reason ? `${status}: ${reason}` : status, "Status"), cell(repeat, "Repeat"));
      body.append(tr);
    }
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = button.dataset.copy;
      try {
        await navigator.clipboard.writeText(text);
      } catch {
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
  }

  const form = document.getElementById("filters");
  if (!form) return;
  form.hidden = false;
  const shown = document.getElementById("shown");
  const keys = ["rank", "contender", "time", "slowdown", "limit", "memory", "error", "energy", "status"];
  let order = null; // {key, down}

  const compare = (key, down) => (a, b) => {
    const x = JSON.parse(a.dataset.sort)[key], y = JSON.parse(b.dataset.sort)[key];
    if (x === null || y === null) return (x === null) - (y === null); // what is missing stays at the end either way
    const sign = typeof x === "string" ? x.localeCompare(y) : x - y;
    return down ? -sign : sign;
  };
  const sortAll = () => {
    for (const table of document.querySelectorAll("table.rows")) {
      for (const th of table.tHead.querySelectorAll("th")) {
        const own = order && th.firstElementChild && th.firstElementChild.dataset.key === order.key;
        if (th.hasAttribute("aria-sort")) th.setAttribute("aria-sort", own ? (order.down ? "descending" : "ascending") : "none");
      }
      const by = order || { key: "rank", down: false };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare(by.key, by.down)));
    }
  };
  const filterAll = () => {
    const values = Object.fromEntries(new FormData(form));
    const words = (values.q || "").toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0, all = 0;
    for (const section of document.querySelectorAll("section.case")) {
      const facets = JSON.parse(section.dataset.facets);
      const fits = Object.entries(values).every(([k, v]) => !v || !k.startsWith("f.") || facets[k.slice(2)] === v);
      let here = 0;
      for (const tr of section.querySelectorAll("tbody tr")) {
        const text = tr.dataset.text.toLowerCase();
        const keep = fits && (!values.status || tr.dataset.status === values.status) && words.every((w) => text.includes(w));
        tr.hidden = !keep;
        all += 1;
        here += keep;
      }
      section.hidden = here === 0;
      count += here;
    }
    shown.textContent = `${count} of ${all} rows`;
  };
  // The whole view is in the hash, under keys that are known; anything else in it is ignored.
  const write = () => {
    const state = new URLSearchParams({ v: "1" });
    for (const [key, value] of new FormData(form)) if (value) state.set(key, value);
    if (order) state.set("sort", (order.down ? "-" : "") + order.key);
    const text = `#${state}`;
    if (text !== location.hash && !(text === "#v=1" && !location.hash)) history.pushState(null, "", text);
  };
  const read = () => {
    const state = new URLSearchParams(location.hash.slice(1));
    form.reset();
    for (const input of form.elements) {
      if (input.name && state.has(input.name)) input.value = state.get(input.name);
      if (input.tagName === "SELECT" && input.selectedIndex < 0) input.value = "";
    }
    const sort = state.get("sort") || "";
    const key = sort.replace(/^-/, "");
    order = keys.includes(key) ? { key, down: sort.startsWith("-") } : null;
    sortAll();
    filterAll();
  };
  for (const button of document.querySelectorAll(".sorter")) {
    button.addEventListener("click", () => {
      const key = button.dataset.key;
      order = order && order.key === key ? (order.down ? null : { key, down: true }) : { key, down: false };
      sortAll();
      write();
    });
  }
  form.addEventListener("input", () => { filterAll(); write(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("clear").addEventListener("click", () => { form.reset(); order = null; sortAll(); filterAll(); write(); });
  addEventListener("popstate", read);
  addEventListener("hashchange", read);
  read();
})();

"use strict";
// The table of rows: sorting by several columns, facets, search, columns on demand, presets, export of the view.
// Everything is drawn from the columns of data in the page; the whole view is in the URL's hash. Nothing is fetched.
(() => {
  // Rows drawn at a time: the length of the document decides how quick a page feels, and on a phone a row is a card.
  const STEP = matchMedia("(max-width: 760px)").matches ? 40 : 100;
  const home = document.getElementById("grid");
  if (!home) return;
  const data = JSON.parse(document.getElementById("grid-data").textContent);
  const table = home.querySelector("table");
  const body = table.tBodies[0];
  const at = (list, i) => (Array.isArray(list) ? list[i] : list.all);
  const text = (name, i) => data.texts[name].of[at(data.texts[name].at, i)];
  const metric = (name, i, part) => (data.metrics[name] ? at(data.metrics[name][part || "value"], i) : null);
  const summaries = new Map(data.summaries);

  const { quantity, share } = numbers;
  const rankText = (rank) => (rank === null ? "" : rank[0] === rank[1] ? String(rank[0]) : `${rank[0]}-${rank[1]}`);
  const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replace(/'/g, "'\"'\"'")}'`); // for a shell
  const command = (i) => (at(data.repeat, i) ? `archbench run ${quoted(`${text("track", i)}/${text("contender", i)}`)} --case ${quoted(text("case", i))}` : "");
  const printed = (name, i) => (metric(name, i) === null ? "" : quantity(metric(name, i), metric(name, i, "unit")));
  const known = new Set(["latency_s", "slowdown", "peak_bytes", "error", "energy_j"]);
  const others = Object.keys(data.metrics).filter((name) => !known.has(name));
  // What a row holds beside the columns every track has, in words.
  const also = (i) => others.filter((name) => name !== text("quality", i) && metric(name, i) !== null).map((name) => {
    const [words, isShare] = data.words[name];
    const value = metric(name, i);
    if (metric(name, i, "unit") !== "ratio") return `${words} ${printed(name, i)}`;
    if (isShare) return `${words} ${share(value)}`;
    return `${words} ${Number.isInteger(value) && Math.abs(value) < 1e6 ? value : printed(name, i)}`;
  });

  const { node, columns } = gridColumns({ data, at, text, metric, printed, command, rankText, also }); // see columns.js
  const offered = JSON.parse(home.dataset.columns); // [key, label, title, shown]
  const labels = new Map(offered.map(([key, label]) => [key, label]));
  const byDefault = offered.filter((column) => column[3]).map((column) => column[0]);

  // ---- facets and presets
  const facets = [];
  const facet = (name, values, of) => {
    const distinct = [...new Set(values)].filter((value) => value !== null && value !== "");
    if (distinct.length > 1 && distinct.length <= 24) {
      distinct.sort((a, b) => (isNaN(a) || isNaN(b) ? (a < b ? -1 : 1) : a - b));
      facets.push({ name, values: distinct, of });
    }
  };
  const used = (name) => data.texts[name].of;
  if (offered.some((column) => column[0] === "machine")) facet("machine", used("machine"), (i) => text("machine", i));
  facet("family", used("family"), (i) => text("family", i));
  for (const [axis, values] of Object.entries(data.axes)) facet(axis, values, (i) => values[at(data.texts.case.at, i)]);
  facet("status", used("status"), (i) => text("status", i));

  const least = (rows, group, value) => {
    const found = new Map();
    for (const i of rows) {
      const key = group(i), own = value(i);
      if (own !== null && (!found.has(key) || own < value(found.get(key)))) found.set(key, i);
    }
    const kept = new Set(found.values());
    return rows.filter((i) => kept.has(i));
  };
  const cell = (i) => `${text("machine", i)}\n${text("commit", i)}\n${text("track", i)}\n${text("case", i)}`;
  const exact = (rows) => rows.filter((i) => !text("differs", i));
  const ranking = (i) => metric(text("quality", i) ? `${text("quality", i)}_ratio` : "slowdown", i);
  const presets = {
    family: ["Best of each family", (rows) => least(exact(rows), (i) => `${cell(i)}\n${text("family", i)}`, ranking)],
    memory: ["Smallest memory", (rows) => least(exact(rows), cell, (i) => metric("peak_bytes", i))],
    exact: ["Exact only", exact],
  };
  if (data.here && used("machine").length > 1) presets.here = [`This machine`, (rows) => rows.filter((i) => text("machine", i) === data.here)];

  // ---- the view: q (search), s (sort), c (columns), p (preset), f.<facet>
  // Names of facets come from result files: an object without a prototype has no name of its own.
  const fresh = () => ({ q: "", s: [], c: byDefault, p: "", f: Object.create(null) });
  const keyOf = (entry) => entry.replace(/^-/, "");
  let view = fresh(), limit = STEP, rows = [];
  const parse = (state) => {
    const found = fresh();
    if (state.get("v") !== "1") return found;
    found.q = (state.get("q") || "").slice(0, 200);
    const order = viewHash.split(state.get("s"), ",").filter((entry) => labels.has(keyOf(entry)));
    found.s = order.filter((entry, k) => order.findIndex((other) => keyOf(other) === keyOf(entry)) === k).slice(0, 4);
    const picked = viewHash.split(state.get("c"), ",").filter((key) => labels.has(key));
    if (picked.length) found.c = [...labels.keys()].filter((key) => key === "contender" || picked.includes(key));
    if (Object.hasOwn(presets, state.get("p"))) found.p = state.get("p");
    for (const { name, values } of facets) {
      const wanted = viewHash.split(state.get(`f.${name}`), ",");
      const chosen = values.filter((value) => wanted.includes(value));
      if (chosen.length) found.f[name] = chosen;
    }
    return found;
  };
  const write = (replace) => {
    const state = new URLSearchParams({ v: "1" });
    if (view.q) state.set("q", view.q);
    if (view.s.length) state.set("s", view.s.join(","));
    if (view.c.join() !== byDefault.join()) state.set("c", view.c.join(","));
    if (view.p) state.set("p", view.p);
    for (const [name, chosen] of Object.entries(view.f)) if (chosen.length) state.set(`f.${name}`, viewHash.join(chosen, ","));
    const hash = String(state) === "v=1" ? "" : `#${state}`;
    if (hash === location.hash) return;
    history[replace ? "replaceState" : "pushState"](null, "", hash || location.pathname + location.search);
  };

  const haystack = [];
  const matches = (i, words) => {
    haystack[i] ??= ["machine", "case", "contender", "family", "status", "reason"].map((name) => text(name, i)).join("\n").toLowerCase();
    return words.every((word) => haystack[i].includes(word));
  };
  const choose = () => {
    const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
    let found = [...Array(data.n).keys()];
    for (const { name, of } of facets) {
      const chosen = view.f[name];
      if (chosen && chosen.length) found = found.filter((i) => chosen.includes(of(i)));
    }
    if (words.length) found = found.filter((i) => matches(i, words));
    if (view.p) found = presets[view.p][1](found);
    const orders = view.s.map((entry) => [columns[keyOf(entry)].sort, entry.startsWith("-")]);
    if (orders.length) {
      const keys = new Map(found.map((i) => [i, orders.map(([sort]) => sort(i))]));
      found.sort((a, b) => {
        for (let k = 0; k < orders.length; k += 1) {
          const x = keys.get(a)[k], y = keys.get(b)[k];
          if (x === y) continue;
          if (x === null || y === null) return x === null ? 1 : -1; // what is missing stays at the end either way
          const sign = x < y ? -1 : 1;
          return orders[k][1] ? -sign : sign;
        }
        return a - b;
      });
    }
    rows = found;
  };

  // ---- drawing
  const tools = document.getElementById("grid-tools");
  const count = document.getElementById("shown");
  const more = document.getElementById("more");
  const column = (key) => offered.find((entry) => entry[0] === key);
  const drawHead = () => {
    const tr = table.tHead.rows[0];
    tr.textContent = "";
    for (const key of view.c) {
      const [, label, title] = column(key);
      const th = node("th");
      th.scope = "col";
      if (title) th.title = title;
      const position = view.s.findIndex((entry) => keyOf(entry) === key);
      const down = position >= 0 && view.s[position].startsWith("-");
      th.setAttribute("aria-sort", position < 0 ? "none" : down ? "descending" : "ascending");
      const button = node("button", "sorter", label);
      button.type = "button";
      button.dataset.key = key;
      if (position >= 0 && view.s.length > 1) button.append(node("sup", "", String(position + 1)));
      th.append(button);
      tr.append(th);
    }
    drawSort();
  };
  // The headings of a phone's cards are not shown, so the order is chosen from a list.
  const sorts = document.getElementById("sort");
  const drawSort = () => {
    const said = (entry) => `${labels.get(keyOf(entry))}, ${entry.startsWith("-") ? "descending" : "ascending"}`;
    const choices = new Map([["", "by rank"], ...view.c.flatMap((key) => [key, `-${key}`]).map((entry) => [entry, said(entry)])]);
    if (view.s.length) choices.set(view.s.join(","), view.s.map(said).join(", then "));
    sorts.textContent = "";
    for (const [value, label] of choices) sorts.append(new Option(label, value));
    sorts.value = view.s.join(",");
  };
  const drawBody = () => {
    const part = document.createDocumentFragment();
    let before = null;
    for (const i of rows.slice(0, limit)) {
      const tr = node("tr"), group = cell(i);
      tr.className = [at(data.rank, i) && at(data.rank, i)[0] === 1 ? "first" : "", !view.s.length && group !== before ? "leads" : ""].join(" ").trim();
      before = group;
      for (const key of view.c) {
        const { head, className, draw } = columns[key];
        const made = node(head ? "th" : "td", className);
        if (head) {
          made.scope = "row";
          made.title = summaries.get(text("contender", i)) || "";
        }
        made.dataset.label = column(key)[1];
        made.append(...draw(i));
        tr.append(made);
      }
      part.append(tr);
    }
    body.textContent = "";
    body.append(part);
    more.hidden = rows.length <= limit;
    more.textContent = `Show ${Math.min(STEP, rows.length - limit)} more`;
  };
  const pressed = () => {
    for (const chip of tools.querySelectorAll("[data-facet]")) {
      chip.setAttribute("aria-pressed", String((view.f[chip.dataset.facet] || []).includes(chip.dataset.value)));
    }
    for (const chip of tools.querySelectorAll("[data-preset]")) chip.setAttribute("aria-pressed", String(view.p === chip.dataset.preset));
    for (const box of tools.querySelectorAll("[data-column]")) box.checked = view.c.includes(box.dataset.column);
    const search = document.getElementById("q");
    if (search.value !== view.q) search.value = view.q;
  };
  const show = (draw = true) => {
    choose();
    if (draw) {
      drawHead();
      drawBody();
    }
    pressed();
    count.textContent = rows.length ? `${rows.length} of ${data.n} row${data.n === 1 ? "" : "s"}` : "No row matches; Clear shows all.";
  };
  const change = (edit, replace) => {
    edit();
    limit = STEP;
    show();
    write(replace);
  };

  // ---- tools
  const chip = (label, attributes) => {
    const made = node("button", "chip", label);
    made.type = "button";
    Object.assign(made.dataset, attributes);
    made.setAttribute("aria-pressed", "false");
    return made;
  };
  const chips = document.getElementById("chips");
  const group = (label, members) => {
    const made = node("div", "chipgroup");
    made.setAttribute("role", "group");
    made.setAttribute("aria-label", label);
    made.append(node("span", "chiplabel", label), ...members);
    return made;
  };
  chips.append(group("view", Object.entries(presets).map(([key, [label]]) => chip(label, { preset: key }))));
  for (const { name, values } of facets) chips.append(group(name, values.map((value) => chip(value, { facet: name, value }))));
  const boxes = document.getElementById("columns");
  for (const [key, label] of offered) {
    const made = node("label"), box = node("input");
    box.type = "checkbox";
    box.dataset.column = key;
    box.disabled = key === "contender";
    made.append(box, ` ${label}`);
    boxes.append(made);
  }
  tools.hidden = false;
  tools.addEventListener("click", (event) => {
    const made = event.target.closest("button");
    if (!made) return;
    const { facet: name, value, preset, save } = made.dataset;
    if (name) {
      change(() => {
        const chosen = view.f[name] || [];
        view.f[name] = chosen.includes(value) ? chosen.filter((other) => other !== value) : [...chosen, value];
      });
    } else if (preset) change(() => { view.p = view.p === preset ? "" : preset; });
    else if (save) download(save);
    else if (made.id === "clear") change(() => { view = fresh(); });
  });
  tools.addEventListener("change", (event) => {
    if (event.target === sorts) change(() => { view.s = sorts.value ? sorts.value.split(",") : []; });
    const key = event.target.dataset.column;
    if (key) change(() => { view.c = offered.map((entry) => entry[0]).filter((other) => (other === key ? event.target.checked : view.c.includes(other))); });
  });
  let typing = false;
  document.getElementById("q").addEventListener("input", (event) => {
    change(() => { view.q = event.target.value; }, typing); // one entry of the history per search, not per letter
    typing = true;
  });
  document.getElementById("q").addEventListener("blur", () => { typing = false; });
  document.getElementById("q-form").addEventListener("submit", (event) => event.preventDefault());
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest(".sorter");
    if (!button) return;
    const key = button.dataset.key, old = view.s.find((entry) => keyOf(entry) === key);
    const next = old === undefined ? [key] : old === key ? [`-${key}`] : []; // up, down, back to the ranks
    change(() => { view.s = event.shiftKey ? [...view.s.filter((entry) => entry !== old), ...next] : next; });
    const again = table.tHead.querySelector(`[data-key="${key}"]`);
    if (again) again.focus();
  });
  more.addEventListener("click", () => { limit += STEP; drawBody(); });

  // ---- the current view as a file; see saving.js
  const written = saving({ data, at, text, metric, printed, command, rankText, also });
  const types = { json: "application/json", csv: "text/csv", md: "text/markdown" };
  const download = (format) => {
    const link = node("a");
    link.href = URL.createObjectURL(new Blob([written(rows, format)], { type: types[format] }));
    link.download = `${home.dataset.name}.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const read = () => {
    const state = viewHash.read();
    if (!state) return;
    view = parse(state);
    limit = STEP;
    show();
  };
  addEventListener("popstate", read);
  addEventListener("hashchange", read);
  const state = viewHash.read();
  const untouched = !state || String(state) === "";
  if (state) view = parse(state);
  drawHead();
  show(!untouched); // the HTML already shows the view nobody changed
  if (untouched) {
    limit = body.rows.length;
    more.hidden = data.n <= limit;
  }
})();

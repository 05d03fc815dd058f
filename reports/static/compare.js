"use strict";
// Two sides, case by case, by the rule of the ranks. The choice is in the URL's hash; nothing is fetched.
(() => {
  const source = document.getElementById("compare-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const { seconds, ratio } = numbers;
  const form = document.getElementById("pick");
  const body = document.querySelector("#compared tbody");
  const parts = ["machine", "commit", "contender"];
  const cells = new Map();
  for (const [side, place, value, low, high, time, ranked] of data.cells) cells.set(`${side} ${place}`, { value, low, high, time, ranked });
  const bands = new Map(data.bands.map(([machine, commit, place, width]) => [`${machine}\n${commit}\n${place}`, width]));
  const find = (side) => data.sides.findIndex((other) => parts.every((_, k) => other[k] === side[k]));
  let view = { a: data.a, b: data.b };

  // A choice keeps what it can of the rest: the same contender at another commit, if it was measured there.
  const nearest = (side, from) => {
    for (let depth = 3; depth >= 0; depth -= 1) {
      const order = depth === 3 ? parts.map((_, k) => k) : depth === 2 ? [from, 2] : depth === 1 ? [from] : [];
      const found = data.sides.find((other) => order.every((k) => other[k] === side[k]));
      if (found) return found;
    }
    return data.sides[0];
  };
  const options = (select, values, chosen, label) => {
    select.textContent = "";
    for (const value of values) {
      const option = document.createElement("option");
      option.value = value;
      option.textContent = label(value);
      option.selected = value === chosen;
      select.append(option);
    }
  };
  const draw = () => {
    for (const select of form.querySelectorAll("select")) {
      const side = view[select.dataset.side], k = parts.indexOf(select.dataset.part);
      const values = [...new Set(data.sides.filter((other) => parts.slice(0, k).every((_, j) => other[j] === side[j])).map((other) => other[k]))];
      if (k === 1) values.sort((x, y) => (data.dates[x] < data.dates[y] ? 1 : -1));
      options(select, values, side[k], (value) => (k === 1 ? `${value.slice(0, 10)} ${data.dates[value]}` : value));
    }
    const [a, b] = [find(view.a), find(view.b)], counts = { faster: 0, slower: 0, "cannot be told apart": 0, "not judged": 0 };
    body.textContent = "";
    data.cases.forEach((slug, place) => {
      const x = cells.get(`${a} ${place}`), y = cells.get(`${b} ${place}`);
      if (!x || !y) return;
      const width = Math.max(...["a", "b"].map((key) => bands.get(`${view[key][0]}\n${view[key][1]}\n${place}`) || 0));
      const clear = x.high !== null && y.high !== null && (x.high < y.low || y.high < x.low);
      let judged = clear && Math.abs(Math.log(x.value / y.value)) > width ? (x.value < y.value ? "faster" : "slower") : "cannot be told apart";
      // Another function, no interval or another machine: there is nothing to judge.
      if (!x.ranked || !y.ranked || view.a[0] !== view.b[0]) judged = "not judged";
      counts[judged] += 1;
      const tr = document.createElement("tr");
      const add = (name, content, className) => {
        const made = document.createElement(name);
        made.textContent = content;
        if (className) made.className = className;
        tr.append(made);
        return made;
      };
      add("th", slug).scope = "row";
      for (const side of [x, y]) add("td", `${seconds(side.time)}, ${ratio(side.value, side.low, side.high)}`, "num");
      add("td", ratio(x.value / y.value), "num");
      add("td", judged, judged === "faster" || judged === "slower" ? judged : "");
      body.append(tr);
    });
    const where = view.a[0] === view.b[0] ? `on ${view.a[0]}` : `on ${view.a[0]} and ${view.b[0]}`;
    document.getElementById("verdict").textContent = view.a[0] === view.b[0]
      ? `${view.a[2]} against ${view.b[2]} ${where}: ${counts.faster} faster, ${counts.slower} slower, ${counts["cannot be told apart"]} cannot be told apart${counts["not judged"] ? `, ${counts["not judged"]} not judged: one of them computes another function` : ""}.`
      : `${view.a[2]} against ${view.b[2]} ${where}: each relative to its own machine's baseline, so nothing is judged.`;
  };
  const read = () => {
    const state = viewHash.read();
    if (!state) return;
    const side = (key) => {
      const wanted = viewHash.split(state.get(key), "|");
      return state.get("v") === "1" && find(wanted) >= 0 ? data.sides[find(wanted)] : data[key];
    };
    view = { a: side("a"), b: side("b") };
    draw();
  };
  const write = () => history.pushState(null, "", `#${new URLSearchParams({ v: "1", a: viewHash.join(view.a, "|"), b: viewHash.join(view.b, "|") })}`);
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", (event) => {
    const { side, part } = event.target.dataset, k = parts.indexOf(part);
    view[side] = nearest(view[side].map((old, j) => (j === k ? event.target.value : old)), k);
    draw();
    write();
  });
  document.getElementById("swap").addEventListener("click", () => {
    view = { a: view.b, b: view.a };
    draw();
    write();
  });
  addEventListener("popstate", read);
  addEventListener("hashchange", read);
  if (viewHash.read()) read();
  else draw();
})();

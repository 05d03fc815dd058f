"use strict";
// The columns of the table of rows: what a cell says, and what it sorts by.
const gridColumns = ({ data, at, text, metric, printed, command, rankText, also }) => {
  const { significant, seconds, ratio, percent } = numbers;
  const node = (name, className, content) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (content !== undefined) made.textContent = content;
    return made;
  };
  const svg = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const place = (value) => {
    const [low, high] = data.strip;
    const found = (100 * Math.log(Math.max(value, low) / low)) / Math.log(high / low);
    return Math.round(Math.min(100, Math.max(0, found)) * 100) / 100;
  };
  const strip = (i) => {
    const value = metric("slowdown", i);
    if (value === null) return [];
    const low = metric("slowdown", i, "lo") ?? value, high = metric("slowdown", i, "hi") ?? value, one = place(1);
    const made = svg("svg", { class: "strip", viewBox: "0 0 100 12", "aria-hidden": "true" });
    made.append(
      svg("line", { class: "one", x1: one, x2: one, y1: 0, y2: 12 }),
      svg("line", { class: "interval", x1: place(low), x2: place(high), y1: 6, y2: 6 }),
      svg("circle", { class: "dot", cx: place(value), cy: 6, r: 2.6 }),
    );
    return [made, node("span", "num", ratio(value, metric("slowdown", i, "lo"), metric("slowdown", i, "hi")))];
  };
  const bar = (i) => {
    const share = at(data.limit_fraction, i);
    if (share === null) return [];
    const made = svg("svg", { class: "bar", viewBox: "0 0 100 8", "aria-hidden": "true" });
    made.append(
      svg("rect", { class: "trough", width: 100, height: 8, rx: 2 }),
      svg("rect", { class: "fill", width: Math.round(1000 * Math.min(1, share)) / 10, height: 8, rx: 2 }),
    );
    return [made, node("span", "num", percent(share))];
  };
  const badge = (i) => {
    const made = [node("span", `badge s-${text("status", i)}`, text("status", i))];
    if (text("reason", i)) made.push(" ", node("span", "reason", text("reason", i)));
    const more = also(i);
    const said = node("span", "reason", more.join(", "));
    if (more.length > 2) {
      const folded = node("details", "more");
      folded.append(node("summary", "", `${more.length} numbers`), said);
      made.push(" ", folded);
    } else if (more.length) made.push(" ", said);
    return made;
  };
  const copier = (i) => {
    if (!command(i)) return [];
    const button = node("button", "copy ghost", "Copy");
    button.type = "button";
    button.dataset.copy = command(i);
    const code = node("code", "", command(i));
    code.title = command(i);
    return [button, code];
  };
  const imported = (i) => {
    if (text("origin", i) !== "imported") return [];
    const found = [" ", node("span", "differs", "imported")];
    if (/^https?:\/\//.test(text("source", i))) {
      const link = node("a", "source", "source");
      link.href = text("source", i);
      link.rel = "noreferrer";
      found.push(" ", link);
    }
    return found;
  };
  const columns = {
    machine: { draw: (i) => [text("machine", i)], sort: (i) => text("machine", i) },
    commit: { draw: (i) => [node("code", "", text("commit", i).slice(0, 10))], sort: (i) => text("commit", i) },
    track: { draw: (i) => [text("track", i)], sort: (i) => text("track", i) },
    case: { draw: (i) => [node("code", "", text("case", i))], sort: (i) => at(data.texts.case.at, i) },
    rank: { className: "rank", draw: (i) => [rankText(at(data.rank, i))], sort: (i) => (at(data.rank, i) ? at(data.rank, i)[0] : null) },
    contender: {
      head: true,
      draw: (i) => [node("span", "name", text("contender", i)), " ", node("span", "family", text("family", i)),
        ...(text("differs", i) ? [" ", node("span", "differs", "another function")] : []), ...imported(i)],
      sort: (i) => text("contender", i),
    },
    time: { className: "num", draw: (i) => [metric("latency_s", i) === null ? "" : seconds(metric("latency_s", i))], sort: (i) => metric("latency_s", i) },
    slowdown: { className: "slow", draw: strip, sort: (i) => metric("slowdown", i) },
    quality: {
      className: "num",
      draw: (i) => {
        const name = text("quality", i), low = metric(name, i, "lo");
        return [printed(name, i) + (low === null ? "" : ` (${significant(low)}-${significant(metric(name, i, "hi"))})`)];
      },
      sort: (i) => metric(text("quality", i), i),
    },
    limit: { className: "limit", draw: bar, sort: (i) => at(data.limit_fraction, i) },
    memory: { className: "num", draw: (i) => [printed("peak_bytes", i)], sort: (i) => metric("peak_bytes", i) },
    error: { className: "num", draw: (i) => [metric("error", i) === null ? "" : significant(metric("error", i), 2)], sort: (i) => metric("error", i) },
    energy: { className: "num", draw: (i) => [printed("energy_j", i)], sort: (i) => metric("energy_j", i) },
    blocks: { className: "num", draw: (i) => [String(metric("slowdown", i, "n") ?? "")], sort: (i) => metric("slowdown", i, "n") },
    status: { draw: badge, sort: (i) => text("status", i) },
    verified: { draw: (i) => [text("verified", i)], sort: (i) => text("verified", i) },
    repeat: { className: "repeat", draw: copier, sort: command },
  };
  return { node, columns };
};

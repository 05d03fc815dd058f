"use strict";
// The view of a table as a file: the rows and numbers of `archbench export`, without the host.
const saving = ({ data, at, text, metric, printed, command, rankText, also }) => {
  const { significant, seconds, ratio, percent } = numbers;
  const names = Object.keys(data.metrics).sort();
  const asRow = (i) => ({
    machine: text("machine", i), commit: text("commit", i), track: text("track", i), case: text("case", i), contender: text("contender", i),
    status: text("status", i), reason: text("reason", i), rank: at(data.rank, i), baseline: text("baseline", i),
    metrics: Object.fromEntries(names.filter((name) => metric(name, i) !== null).map((name) => [name, {
      value: metric(name, i), ci: metric(name, i, "lo") === null ? null : [metric(name, i, "lo"), metric(name, i, "hi")],
      n: metric(name, i, "n"), unit: metric(name, i, "unit"),
    }])),
    limit_fraction: at(data.limit_fraction, i), reproduce: command(i), origin: text("origin", i), source: text("source", i),
  });
  const csvCell = (value) => {
    if (value === null || value === undefined) return "";
    const plain = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(plain) ? `"${plain.replace(/"/g, '""')}"` : plain;
  };
  const quality = (i) => {
    const name = text("quality", i), low = metric(name, i, "lo");
    if (metric(name, i) === null) return "";
    const ends = low === null ? "" : ` (${significant(low)}-${significant(metric(name, i, "hi"))})`;
    return `${name.replaceAll("_", " ")} ${significant(metric(name, i))}${ends}`;
  };
  const writers = {
    json: (rows) => `${JSON.stringify({ view: true, rows: rows.map(asRow) }, null, 1)}\n`,
    csv: (rows) => {
      const header = ["machine", "commit", "track", "case", "contender", "status", "reason", "rank_lo", "rank_hi", "baseline"];
      for (const name of names) header.push(name, `${name}_ci_lo`, `${name}_ci_hi`, `${name}_n`, `${name}_unit`);
      const lines = rows.map((i) => {
        const row = asRow(i);
        const line = [row.machine, row.commit, row.track, row.case, row.contender, row.status, row.reason, ...(row.rank || [null, null]), row.baseline];
        for (const name of names) {
          const found = row.metrics[name];
          line.push(...(found ? [found.value, ...(found.ci || [null, null]), found.n, found.unit] : Array(5).fill(null)));
        }
        return [...line, row.limit_fraction, row.reproduce, row.origin, row.source];
      });
      return [[...header, "limit_fraction", "reproduce", "origin", "source"], ...lines].map((line) => line.map(csvCell).join(",")).join("\n") + "\n";
    },
    md: (rows) => {
      const plain = (value) => value.replace(/[\\`*_[\]<>|]/g, "\\$&").replace(/\s+/g, " ").trim();
      const more = rows.some((i) => also(i).length);
      const lines = rows.map((i) => [text("machine", i), text("commit", i).slice(0, 8), text("track", i), text("case", i), rankText(at(data.rank, i)),
        text("contender", i), metric("latency_s", i) === null ? "" : seconds(metric("latency_s", i)),
        metric("slowdown", i) === null ? "" : ratio(metric("slowdown", i), metric("slowdown", i, "lo"), metric("slowdown", i, "hi")),
        quality(i), at(data.limit_fraction, i) === null ? "" : percent(at(data.limit_fraction, i)), printed("peak_bytes", i),
        text("reason", i) ? `${text("status", i)}: ${text("reason", i)}` : text("status", i), ...(more ? [also(i).join(", ")] : [])]);
      const head = "| machine | commit | track | case | rank | contender | time | slowdown | quality | of limit | memory | status |";
      const rule = "|---|---|---|---|---|---|---:|---:|---:|---:|---:|---|";
      return [...(more ? [`${head} also measured |`, `${rule}---|`] : [head, rule]), ...lines.map((line) => `| ${line.map(plain).join(" | ")} |`)].join("\n") + "\n";
    },
  };
  return (rows, format) => writers[format](rows);
};

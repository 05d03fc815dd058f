"use strict";
// Numbers for people, the same texts as src/archbench/formatting.py; tests/reports/test_browser.py compares them.
const numbers = (() => {
  const halfEven = (value, digits) => {
    // toExponential rounds ties up, Python rounds them to even; 60 digits tell a tie from what only looks like one.
    const short = value.toExponential(digits);
    const [mantissa, exponent] = value.toExponential(60).split("e");
    const figures = mantissa.replace(/[-.]/g, "");
    if (!/^50*$/.test(figures.slice(digits + 1)) || Number(figures[digits]) % 2) return short;
    const kept = figures.slice(0, digits + 1);
    return `${value < 0 ? "-" : ""}${kept[0]}${digits ? "." + kept.slice(1) : ""}e${exponent}`;
  };
  const whole = (value) => {
    const down = Math.floor(value);
    return value - down === 0.5 ? down + (down % 2) : Math.round(value);
  };
  const significant = (value, digits = 3) => {
    if (value === 0) return "0";
    const [mantissa, exponent] = halfEven(value, digits - 1).split("e");
    const power = Number(exponent);
    if (!(Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6)) {
      return `${mantissa}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
    }
    return Number(`${mantissa}e${power}`).toFixed(Math.max(0, digits - 1 - power));
  };
  const seconds = (value) => {
    for (const [factor, unit] of [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]]) {
      if (value >= factor * 0.9995) return `${significant(value / factor)} ${unit}`;
    }
    return `${significant(value / 1e-9)} ns`;
  };
  const size = (value) => {
    for (const [power, unit] of [[40, "TiB"], [30, "GiB"], [20, "MiB"], [10, "KiB"]]) {
      if (value >= 2 ** power) return `${significant(value / 2 ** power)} ${unit}`;
    }
    return `${whole(value)} B`;
  };
  const quantity = (value, unit) => {
    if (unit === "s") return seconds(value);
    if (unit === "B") return size(value);
    if (unit === "ratio" || unit === "") return significant(value);
    for (const [factor, prefix] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]]) {
      if (Math.abs(value) >= factor) return `${significant(value / factor)} ${prefix}${unit}`;
    }
    return `${significant(value)} ${unit}`;
  };
  const ratio = (value, low = null, high = null) =>
    `${significant(value)}×${low === null ? "" : ` (${significant(low)}-${significant(high)})`}`;
  const percent = (share) => `${whole(share * 100)}%`;
  const share = (value) => `${significant(100 * value)} %`;
  return { significant, seconds, size, quantity, ratio, percent, share };
})();

// Numbers as the page writes them, sign for sign as numbers.py does.

export function fixed(value, digits) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : value > 0 ? "∞" : "−∞";
  const text = big(Math.abs(value), digits);
  return value < 0 && Number(text) ? `−${text}` : text;
}

// toFixed turns to powers of ten from 1e21 on, which no logit needs in full.
const big = (size, digits) => (size < 1e21 ? size.toFixed(digits) : BigInt(size).toString() + (digits ? "." + "0".repeat(digits) : ""));

export function amount(value) {
  const size = Math.abs(value);
  if (size > 0 && size < 0.0005) return value.toExponential(0).replaceAll("-", "−");
  return value ? fixed(value, 3) : "0";
}

export function percent(p) {
  if (p === 0 || p === 1) return `${100 * p} %`;
  if (p > 0 && p < 0.0005) return "< 0.1 %";
  if (p > 0.9995 && p < 1) return "> 99.9 %";
  return `${fixed(100 * p, 1)} %`;
}

export function logit(x) {
  const text = fixed(x, 3);
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

const thousands = (count) => String(count).replace(/\B(?=(\d{3})+$)/g, ",");

export function counted(steps, limit) {
  if (steps === null) return `more than ${thousands(limit)} steps`;
  return `${thousands(steps)} step${steps === 1 ? "" : "s"}`;
}

export const at = (share) => `${fixed(100 * share, 2)}%`.replace("−", "-");

// The state of the page in its address, so that a link shows what somebody saw.

const read = () => new URLSearchParams(location.hash.slice(1));

export const stated = (key) => read().get(key);

export function state(changes) {
  const all = read();
  for (const [key, value] of Object.entries(changes)) {
    if (value === null || value === undefined) all.delete(key);
    else all.set(key, value);
  }
  const text = all.toString().replaceAll("%2C", ",").replace(/=(?=&|$)/g, "");
  try {
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  } catch {
    // A frame without an address of its own, as in a notebook, keeps its state to itself.
  }
}

// Anybody can write an address: anything but as many finite numbers as there are classes is ignored.
export function statedNumbers(key, count) {
  const values = (stated(key) ?? "").split(",").map((text) => (text.trim() === "" ? NaN : Number(text)));
  return values.length === count && values.every(Number.isFinite) ? values : null;
}

export function statedIndex(key, count) {
  const text = stated(key);
  return text !== null && /^\d+$/.test(text) && Number(text) < count ? Number(text) : null;
}

// The worst rows of the user's data: sort them, and open one in Push.

import { button, find } from "./dom.js";
import { state, statedIndex } from "./hash.js";
import { startPush } from "./scene_push.js";

export function startRows(scene, { rows, names, words, losses, key = "push" }) {
  const place = find(".opened", scene);
  const title = find(".headline", place);
  const buttons = [];
  let push = null;

  // Tables may show a row several times, as a worst example and as a suspected label.
  function open(k, byHand) {
    const row = rows[k];
    if (!row?.x) return;
    const shown = { names: row.names ?? names, x: row.x, label: row.label, weights: row.weights ?? null, hard: false };
    if (row.weights) shown.label = null;
    if (push) push.open(shown);
    else {
      push = startPush(place, { ...shown, losses, words, key });
      push.draw();
    }
    title.dataset.row = k;
    find(".which", place).textContent = row.title;
    buttons.forEach((each) => each.setAttribute("aria-pressed", String(Number(each.dataset.open) === k)));
    if (byHand) {
      state({ row: k || null, [`${key}.x`]: null, [`${key}.true`]: null, [`${key}.steps`]: null });
      place.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    }
  }

  scene.querySelectorAll("tr[data-row]").forEach((line) => {
    const k = Number(line.dataset.row);
    if (!rows[k]?.x) return;
    const said = `open ${rows[k].title} in Push`;
    const opens = button("Push", () => open(k, true), { "data-open": String(k), "aria-label": said, "aria-pressed": "false" });
    buttons.push(opens);
    line.firstChild.append(" ", opens);
  });
  if (rows.length && rows[0].x) open(statedIndex("row", rows.length) ?? 0, false);
}

const AT_ONCE = 100; // rows

// Any table with a head: a click on a column sorts by it, numbers as numbers.
export function makeSortable(table) {
  const body = table.tBodies[0];
  let rows = [...body.rows];
  let limit = AT_ONCE;
  const more = button("", () => {
    limit += AT_ONCE;
    show();
  }, { "data-do": "more" });
  // The other rows are kept out of the page, because every change of it would lay them out again.
  function show() {
    body.replaceChildren(...rows.slice(0, limit));
    more.hidden = rows.length <= limit;
    more.textContent = `Show ${AT_ONCE} more of ${rows.length} rows`;
  }
  if (rows.length > AT_ONCE) {
    table.after(more);
    show();
  }
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const text = head.textContent;
    const sort = button(text || "name", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keyed = rows.map((row, k) => [value(row.cells[column].textContent), k, row]);
      keyed.sort(([a, i], [b, j]) => (up ? compare(a, b) : compare(b, a)) || i - j);
      rows = keyed.map(([, , row]) => row);
      show();
    }, { class: "sort" });
    head.replaceChildren(sort);
  });
}

function value(text) {
  const plain = text.replaceAll(",", "").replaceAll("−", "-").trim();
  if (plain.startsWith("inf") || plain.startsWith("∞")) return Infinity;
  const number = /^[+-]?\d/.test(plain) ? parseFloat(plain) : NaN;
  return Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b || 0;
  if (typeof a !== typeof b) return typeof a === "number" ? 1 : -1;
  return a < b ? -1 : a > b ? 1 : 0;
}

export const sortTables = (root = document) => root.querySelectorAll("table.sortable").forEach(makeSortable);

// A row of the user's own, pasted as logits or as probabilities; what it was taken for is said, and can be changed.

import { button, choices, find, h } from "./dom.js";
import { sum } from "./mathematics.js";
import { startPush } from "./scene_push.js";

const MOST = 10_000; // classes

// Numbers between commas, spaces, brackets or lines; null if there is anything else, or too little.
export function readRow(text) {
  const words = text.split(/[\s,;()[\]]+/).filter((word) => word !== "");
  const values = words.map((word) => (/^[-−]inf(inity)?$/i.test(word) ? -Infinity : Number(word.replace("−", "-"))));
  if (values.length < 2 || values.length > MOST) return null;
  return values.some((value) => Number.isNaN(value) || value === Infinity) || !values.some(Number.isFinite) ? null : values;
}

export const looksLikeProbabilities = (values) =>
  values.every((value) => value >= 0 && value <= 1) && Math.abs(sum(values) - 1) < 0.01;

export function startOwn(scene, { losses, words, ask }) {
  const text = h("textarea", { id: "own-row", rows: "2", cols: "40", spellcheck: "false", placeholder: "2.0, 1.0, 0.1" });
  const names = h("input", { type: "text", id: "own-names", size: "24", placeholder: "cat, dog, fox" });
  const told = h("p", { role: "status", class: "told" });
  const kinds = h("div");
  const place = find(".opened", scene);
  let push = null;

  function show(kind) {
    const values = readRow(text.value);
    kinds.replaceChildren();
    if (values === null) {
      told.textContent = "Give at least two numbers, one a class, such as 2.0, 1.0, 0.1.";
      return;
    }
    const probable = looksLikeProbabilities(values);
    const taken = kind ?? (probable ? "probabilities" : "logits");
    if (taken === "probabilities" && !values.every((value) => value >= 0)) {
      told.textContent = "Probabilities are not negative; taken as logits.";
      return show("logits");
    }
    const why = kind ? "as you say" : probable ? "all lie in [0, 1] and they sum to 1" : "not all lie in [0, 1], or they do not sum to 1";
    told.textContent = `${values.length} numbers, taken as ${taken}: ${why}.`;
    kinds.replaceChildren(choices("They are", "own-kind", [["logits", "logits"], ["probabilities", "probabilities"]], taken, show));
    open(taken === "probabilities" ? values.map(Math.log) : values);
  }

  function open(x) {
    const given = names.value.split(",").map((name) => name.trim());
    const called = given.length === x.length && given.every((name) => name) ? given : x.map((_, k) => String(k));
    const row = { names: called, x, label: 0 };
    place.hidden = false;
    if (push) push.open(row);
    else {
      push = startPush(place, { ...row, losses, words, ask, key: "own" });
      push.draw();
    }
  }

  const controls = [...scene.children].find((child) => child.classList.contains("controls"));
  controls.replaceChildren(
    h("label", { for: "own-row" }, "Logits or probabilities, one a class"), text,
    h("label", { for: "own-names" }, "Names, if you like"), names,
    button("Show", () => show(), { "data-do": "own" }), told, kinds,
  );
  controls.classList.add("form");
  controls.hidden = false;
}

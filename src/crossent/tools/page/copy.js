// "Copy as Python" and "Copy as command": the text is shown as well, because a browser may not let a page from a disk use the clipboard.

import { button, h } from "./dom.js";

export function copyButtons(texts) {
  const shown = h("pre", { hidden: true, tabindex: "0" });
  const told = h("span", { role: "status", class: "told" });
  async function show(write) {
    shown.textContent = write();
    shown.hidden = false;
    try {
      await navigator.clipboard.writeText(shown.textContent);
      told.textContent = "Copied.";
    } catch {
      getSelection()?.selectAllChildren(shown);
      told.textContent = "Selected: copy it with your keyboard.";
    }
  }
  const buttons = Object.entries(texts).map(([kind, write]) => button(`Copy as ${kind}`, () => show(write), { "data-copy": kind }));
  return h("div", { class: "copy" }, ...buttons, told, shown);
}

const pythonNumber = (x) => (Number.isFinite(x) ? String(x) : `float("${x < 0 ? "-inf" : "inf"}")`);

export const pythonList = (values) => `[${values.map(pythonNumber).join(", ")}]`;

// A JSON string is a Python string, except for signs that JSON writes as two characters. The quotes are those of a POSIX shell.
export const pythonText = (text) =>
  JSON.stringify(text).replace(/[^ -~]/gu, (c) => `\\U${c.codePointAt(0).toString(16).padStart(8, "0")}`);

export const shellText = (text) => (/^[\w.,=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

// What explain takes for a target: labels in a set, which may be empty, or weights. A decimal point tells weights from labels.
export function pythonTarget(weights, hard) {
  const labels = weights.flatMap((w, k) => (w > 0 ? [k] : []));
  if (hard) return labels.length ? `{${labels.join(", ")}}` : "set()";
  return `[${weights.map((w) => (Number.isInteger(w) ? `${w}.0` : w)).join(", ")}]`;
}

export const commandTarget = (weights) => weights.map((w) => (Number.isInteger(w) ? `${w}.0` : w)).join(",");

export function rowAsPython(x, target, losses, names) {
  const called = names.every((name, k) => name === String(k)) ? "" : `, class_names=[${names.map(pythonText).join(", ")}]`;
  return [
    "import crossent",
    "",
    `e = crossent.explain(${pythonList(x)}, ${target}, ${JSON.stringify(losses.join(","))}${called})`,
    ...losses.map((loss) => `print(${JSON.stringify(loss)}, e[${JSON.stringify(loss)}].loss, e[${JSON.stringify(loss)}].gradient)`),
  ].join("\n");
}

// Names with a comma cannot be given to the command, which separates them with it.
export function rowAsCommand(x, target, losses, names) {
  const plain = names.every((name, k) => name === String(k)) || names.some((name) => name.includes(",") || name === "");
  const called = plain ? "" : ` --class-names=${shellText(names.join(","))}`;
  return `crossent explain --logits=${x.map((value) => (Number.isFinite(value) ? value : "-inf")).join(",")} --target=${target} --losses ${losses.join(",")}${called}`;
}

// Push: what the model says, what is true, and how hard a loss pushes each logit. push.py draws the same without a script,
// and a test holds the two to each other, node by node.

import { h } from "./dom.js";
import { sum } from "./mathematics.js";
import { amount, at, counted, fixed, logit, percent } from "./numbers.js";

const MOST_CLASSES = 12;
const OF_MANY = 8;
const LEAST_ARROW = 0.05;
export const MOST_STEPS = 100_000;
const LEAST_STRIP = 60;
const HEAD = "M0,0 L-14,-9 L-14,9 z";
const FLAG = "M0,-23 V8 M0,-23 L13,-17 L0,-11";

export function lines(push) {
  const every = push.names.map((name, k) => ({ index: k, name, x: push.x[k], p: push.p[k], t: push.t[k], gradient: push.gradient[k] }));
  if (every.length <= MOST_CLASSES) return every;
  const most = push.t.reduce((a, b) => Math.max(a, b));
  const wanted = most > 0 ? every.filter((line) => line.t === most).slice(0, OF_MANY) : [];
  const taken = new Set(wanted);
  const others = every.filter((line) => !taken.has(line)).sort((a, b) => b.x - a.x || a.index - b.index);
  const rest = others.slice(OF_MANY);
  const added = (key) => sum(rest.map((line) => line[key]));
  const x = rest.reduce((most, line) => Math.max(most, line.x), -Infinity);
  const together = { index: -1, name: `${rest.length} others`, x, p: added("p"), t: added("t"), gradient: added("gradient") };
  return [...wanted, ...others.slice(0, OF_MANY), together];
}

// --- the picture -----------------------------------------------------------------------------------------------------

export function panel(push, words, tag = "", focused = null) {
  const rows = lines(push);
  const line = rows.find((each) => each.index === focused) ?? rows[focus(rows)];
  return h("section", { class: "panel", "data-panel": tag },
    h("h3", {}, h("span", { class: "title" }, words.title), " ", h("span", { class: "gradient" }, `∂L/∂x = ${words.gradient}`)),
    h("div", { class: "push" }, ...rows.map(classRow), axis()),
    h("p", { class: "caption" }, caption(push, words)),
    h("p", { class: "sentence" }, sentence(push, words)),
    h("p", { class: "remark" }, ...remark(push, words)),
    h("p", { class: "formula" }, formula(push, words, line)),
    numbers(push, rows),
  );
}

const direction = (gradient) => (gradient < 0 ? "up" : gradient > 0 ? "down" : "still");

function classRow(line) {
  const name = h("div", { class: "name" }, line.name, line.t > 0 ? h("small", {}, " true") : null);
  return h("div", { class: "class", "data-class": String(line.index) }, name, classPicture(line, direction(line.gradient)));
}

function classPicture(line, way) {
  const { p, t } = line;
  const push = -line.gradient;
  const said = `${line.name}: says ${percent(p)}, true ${percent(t)}, pushed ${pushText(push)}`;
  return h("svg", { role: "img", "aria-label": said, height: "84", width: "100%" },
    ...[0, 0.5, 1].map((x) => h("line", { class: "tick", x1: at(x), x2: at(x), y1: "0", y2: "100%" })),
    h("line", { class: "mistake", x1: at(p), x2: at(t), y1: "46", y2: "46" }),
    ...arrow(p, Math.min(Math.max(p + push, 0), 1), way),
    mark(t, h("path", { class: "flag", d: FLAG })),
    h("circle", { class: `says ${way}`, cx: at(p), cy: "46", r: "8" }),
    words(...beside(p, push), "16", `amount ${way}`, pushText(push)),
    words(...near(p), "76", "said", `says ${percent(p)}`),
  );
}

function arrow(start, end, way) {
  if (!(Math.abs(end - start) >= LEAST_ARROW)) return [];
  const [shift, turn] = end > start ? ["-8", ""] : ["8", "rotate(180)"];
  return [
    h("line", { class: `arrow ${way}`, x1: at(start), x2: at(end), y1: "46", y2: "46", transform: `translate(${shift} 0)` }),
    mark(end, h("path", { class: `head ${way}`, d: HEAD, transform: turn })),
  ];
}

const mark = (x, shape) => h("svg", { x: at(x), y: "46", width: "1", height: "1", class: "mark" }, shape);

const words = (x, anchor, y, name, text) => h("text", { class: name, x: at(x), y, "text-anchor": anchor }, text);

const pushText = (push) => (push ? `${push > 0 ? "▲ up" : "▼ down"} ${amount(Math.abs(push))}` : "– stays");

function beside(p, push) {
  const end = Math.min(Math.max(p + push, 0), 1);
  if (Math.abs(end - p) >= 0.4) return [(p + end) / 2, "middle"];
  return near(p);
}

const near = (p) => [p, p < 0.2 ? "start" : p > 0.8 ? "end" : "middle"];

function axis() {
  const marks = [[0, "0"], [0.5, "½"], [1, "1"]].map(([x, text]) => words(x, "middle", "14", "said", text));
  return h("div", { class: "class axis" }, h("div", { class: "name" }), h("svg", { height: "18", width: "100%", "aria-hidden": "true" }, ...marks));
}

function caption(push, { sigmoid }) {
  if (push.x.length > 4) return sigmoid ? "σ of each logit" : "p = softmax of the logits";
  if (sigmoid) return push.x.map((x) => `σ(${logit(x)})`).join(", ");
  return `p = softmax(${push.x.map(logit).join(", ")})`;
}

// --- what it comes to ------------------------------------------------------------------------------------------------

function focus(rows) {
  let best = 0;
  const worth = ({ t, index, p }) => [t === 0 ? 1 : 0, index >= 0 ? 1 : 0, p];
  rows.forEach((line, k) => {
    const [a, b] = [worth(line), worth(rows[best])];
    const first = a.findIndex((value, i) => value !== b[i]);
    if (first >= 0 && a[first] > b[first]) best = k;
  });
  return best;
}

function trueClass(push) {
  const wanted = push.t.flatMap((t, k) => (t > 0 ? [k] : []));
  return wanted.length === 1 && push.t[wanted[0]] === 1 ? wanted[0] : null;
}

function rival(push) {
  const label = trueClass(push);
  let best = label === 0 ? 1 : 0;
  push.p.forEach((p, k) => {
    if (k !== label && p > push.p[best]) best = k;
  });
  return best;
}

export function sentence(push, { lead }) {
  const sizes = push.gradient.map(Math.abs);
  const total = sum(sizes);
  const label = trueClass(push);
  if (!total) return "Nothing moves: the gradient is 0 for every class.";
  if (push.name === "ce" && label !== null) {
    return `The push is the mistake: ${push.names[label]} up by what it lacks, ${push.names[rival(push)]} down by what it has.`;
  }
  const hit = sizes.reduce((best, size, k) => (size > sizes[best] ? k : best), 0);
  return `${lead} ${fixed((100 * sizes[hit]) / total, 0)} % of it hits ${push.names[hit]}.`;
}

function remark(push, words) {
  const label = trueClass(push);
  if (push.name !== "ce" || label === null) return [`The loss is ${amount(push.loss)}. ${words.remark}`];
  const power = (text) => ["e", h("sup", {}, text)];
  const few = push.names.length <= 3;
  const below = few ? push.names.flatMap((name, k) => [k ? " + e" : "e", h("sup", {}, name)]) : ["Σ e", h("sup", {}, "x")];
  const name = push.names[label];
  const parts = [`Only p(${name}) is in the formula, but p(${name}) = `, ...power(name), " / (", ...below, `). p(${name}) rises if ${name} goes up or ${push.names[rival(push)]} goes down; the gradient does both.`];
  return joined(parts);
}

// Texts beside each other are one node in a page that was parsed, and so they are here.
function joined(parts) {
  return parts.reduce((all, part) => {
    if (typeof part === "string" && typeof all.at(-1) === "string") all.push(all.pop() + part);
    else all.push(part);
    return all;
  }, []);
}

export function formula(push, words, line) {
  const gradient = `${line.gradient > 0 ? "+" : ""}${fixed(line.gradient, 4)}`;
  const filled = ["p − t", "σ − t"].includes(words.gradient)
    ? `${fixed(line.p, 4)} − ${fixed(line.t, 4)} = ${gradient}`
    : `${gradient} with p = ${fixed(line.p, 4)}, t = ${fixed(line.t, 4)}`;
  const way = { up: "goes up", down: "goes down", still: "stays" }[direction(line.gradient)];
  return `∂L/∂x(${line.name}) = ${words.gradient} = ${filled}: ${line.name} ${way}.`;
}

function numbers(push, rows) {
  const head = h("tr", {}, ...["class", "x", "p", "t", "∂L/∂x"].map((column) => h("th", { scope: "col" }, column)));
  const body = rows.map((line) =>
    h("tr", {}, h("th", { scope: "row" }, line.name),
      ...[logit(line.x), ...[line.p, line.t, line.gradient].map((value) => fixed(value, 4))].map((text) => h("td", {}, text))),
  );
  const table = h("table", {}, h("caption", {}, `Loss ${fixed(push.loss, 4)}`), h("thead", {}, head), h("tbody", {}, ...body));
  return h("details", {}, h("summary", {}, "The numbers"), h("div", { class: "scroll" }, table));
}

// --- the strip of steps ----------------------------------------------------------------------------------------------

export function strip(name, counts, words) {
  const most = Math.max(LEAST_STRIP, ...counts.map(([, count]) => count ?? MOST_STEPS));
  const title = h("p", { class: "caption" }, `Steps of gradient descent until ${name} leads, one stroke each`);
  return h("section", { class: "panel strip" }, title, ...counts.map(([loss, count]) => strokes(words[loss].title, count, most)));
}

function strokes(title, count, most) {
  const of = count ?? MOST_STEPS;
  const line = h("line", { class: "strokes", x1: "0%", x2: at(of / most), y1: "9", y2: "9", pathLength: of ? String(of) : "", "stroke-dasharray": "0.6 0.4" });
  const said = h("p", {}, h("span", {}, title), h("b", {}, counted(count, MOST_STEPS)));
  return h("div", { class: "steps" }, said, h("svg", { height: "18", width: "100%", "aria-hidden": "true" }, line));
}

// --- the headline ----------------------------------------------------------------------------------------------------

export function headline(names, p, label) {
  const first = p.reduce((best, value, k) => (value > p[best] ? k : best), 0);
  const truth = first === label ? ", and so it is." : `. The truth is ${names[label]}.`;
  return `The model says ${names[first]}, ${percent(p[first])}${truth} Who gets pushed?`;
}

// The deaf corner in motion: click a start, or use its sliders, and both losses descend from there. corner.py draws the same.

import { copyButtons, rowAsCommand, rowAsPython } from "./copy.js";
import { find, h, select } from "./dom.js";
import { guess } from "./guess.js";
import { state, stated, statedNumbers } from "./hash.js";
import { gradientOf, leads, oneHot, step } from "./mathematics.js";
import { at, counted, fixed, logit } from "./numbers.js";
import { MOST_STEPS } from "./push.js";

const REACH = 8;
const GRID = 48;
const NEAR = 0.12;
const COLOURS = [[36, 123, 214], [224, 98, 20]];
const NAMES = ["cat", "dog"];
const TRUE = oneHot(0, 2);

const place = (x) => (x + REACH) / (2 * REACH);

function heat(loss, [red, green, blue]) {
  const canvas = h("canvas", { width: String(GRID), height: String(GRID), "aria-hidden": "true" });
  const image = new ImageData(GRID, GRID);
  const centre = (k) => REACH * ((2 * (k + 0.5)) / GRID - 1);
  for (let i = 0; i < GRID; i++) {
    for (let j = 0; j < GRID; j++) {
      const [a, b] = gradientOf(loss, [centre(j), centre(GRID - 1 - i)], TRUE);
      const strength = Math.min((Math.abs(a) + Math.abs(b)) / 2, 1);
      image.data.set([red, green, blue, Math.round(255 * strength)], 4 * (i * GRID + j));
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// The path to where the true class leads, without the points that would lie on each other, and the number of its steps.
function race(loss, start) {
  let x = [...start];
  const trail = [x];
  const far = (point) => Math.max(Math.abs(point[0] - trail.at(-1)[0]), Math.abs(point[1] - trail.at(-1)[1])) >= NEAR;
  for (let count = 0; count <= MOST_STEPS; count++) {
    if (far(x)) trail.push(x);
    if (leads(x, 0)) return { trail: trail.at(-1) === x ? trail : [...trail, x], steps: count };
    x = step(x, gradientOf(loss, x, TRUE));
  }
  return { trail, steps: null };
}

function overlay({ trail, steps }, title) {
  const ways = `right in ${counted(steps, MOST_STEPS)}`;
  const circle = ([x, y], name, r) => h("circle", { class: name, cx: at(place(x)), cy: at(1 - place(y)), r });
  const [x, y] = trail[0];
  const left = place(x) > 0.5;
  return h("svg", { role: "img", "aria-label": `${title}: ${ways}`, width: "100%", height: "100%" },
    h("rect", { class: "frame", width: "100%", height: "100%" }),
    h("line", { class: "diagonal", x1: "0%", y1: "100%", x2: "100%", y2: "0%" }),
    ...trail.map((point) => circle(point, "trail", "3.5")),
    circle(trail[0], "start", "9"),
    h("text", { class: "corner", x: at(place(x)), y: at(1 - place(y)), dx: left ? "-16" : "16", dy: "3", "text-anchor": left ? "end" : "start" }, ways),
    h("text", { class: "corner", x: "2%", y: "5%" }, "sure and wrong"),
    h("text", { class: "corner", x: "98%", y: "97%", "text-anchor": "end" }, "sure and right"),
  );
}

function curves(losses, words) {
  const margins = Array.from({ length: 81 }, (_, k) => REACH * (k / 40 - 1));
  const pushes = losses.map((loss) => margins.map((margin) => Math.abs(gradientOf(loss, [margin, 0], TRUE)[0])));
  const path = (values) => `M${margins.map((x, k) => `${fixed(100 * place(x), 1)},${fixed(98 - 96 * Math.min(values[k], 1), 1)}`).join(" L")}`;
  const looks = ["whole line", "dashed"];
  const said = pushes.map((values, k) =>
    `${words[losses[k]].title} (${looks[k]}): ${fixed(values[0], 3)} where sure and wrong, ${fixed(values[40], 3)} at even odds, ${fixed(values[80], 3)} where sure and right`);
  return [pushes.map(path), said.join("; ")];
}

export function startCorner(scene, { start, losses, hears, deaf, words }) {
  let from = [...start];
  let other = losses[1];
  let drawn = losses[1];
  const shown = () => [losses[0], other];
  let sliders;

  function draw() {
    const panels = [...scene.querySelectorAll(".panels > .panel")];
    shown().forEach((loss, k) => {
      const planes = find(".heat", panels[k]);
      if (k === 1 && loss !== drawn) {
        find(".title", panels[k]).textContent = words[loss].title;
        find(".caption", panels[k]).textContent = hears[loss] ?? deaf;
        find("img, canvas", planes).replaceWith(heat(loss, COLOURS[k]));
      }
      find("svg", planes).replaceWith(overlay(race(loss, from), words[loss].title));
    });
    if (other !== drawn) {
      const [paths, said] = curves(shown(), words);
      scene.querySelectorAll(".curve").forEach((path, k) => path.setAttribute("d", paths[k]));
      find(".curves .remark", scene).textContent = said;
    }
    drawn = other;
    sliders?.forEach(([slider, output], k) => {
      slider.value = from[k];
      output.textContent = logit(from[k]);
    });
  }

  function recall() {
    from = statedNumbers("corner.x", 2)?.map((x) => Math.max(-REACH, Math.min(REACH, x))) ?? [...start];
    other = losses.slice(1).includes(stated("corner.loss")) ? stated("corner.loss") : losses[1];
  }

  function set(changes) {
    if (changes.from) from = changes.from;
    if (changes.other) other = changes.other;
    const opening = from.every((x, k) => x === start[k]) && other === losses[1];
    state({ "corner.x": opening ? null : from.join(","), "corner.loss": opening ? null : other });
    draw();
  }

  function slider(k) {
    const id = `corner-${k}`;
    const output = h("output", { for: id }, logit(from[k]));
    const input = h("input", {
      type: "range", id, min: String(-REACH), max: String(REACH), step: "0.5", value: String(from[k]), "aria-label": `start, logit of ${NAMES[k]}`,
      oninput: () => set({ from: from.map((x, i) => (i === k ? Number(input.value) : x)) }),
    });
    sliders.push([input, output]);
    return h("div", { class: "slider" }, h("span", { class: "name" }, NAMES[k]), input, output);
  }

  function controls() {
    sliders = [];
    const place = find(".controls", scene);
    place.replaceChildren(
      h("fieldset", {}, h("legend", {}, "Where the model starts; a click into a picture does the same"), slider(0), slider(1)),
      select("Beside it:", losses.slice(1).map((loss) => [loss, words[loss].title]), other, (loss) => set({ other: loss })),
      guess(scene, "In the upper left corner the model is sure and wrong. Does sigmoid and difference push there?", ["yes, hard", "hardly"], "hardly"),
      copyButtons({
        Python: () => rowAsPython(from, "0", shown(), NAMES),
        command: () => rowAsCommand(from, "0", shown(), NAMES),
      }),
    );
    place.hidden = false;
  }

  scene.addEventListener("click", (event) => {
    const picture = event.target.closest(".heat");
    if (!picture) return;
    const box = picture.getBoundingClientRect();
    const half = (share) => Math.round(2 * REACH * (2 * share - 1)) / 2;
    set({ from: [half((event.clientX - box.left) / box.width), half(1 - (event.clientY - box.top) / box.height)] });
  });
  addEventListener("hashchange", () => {
    recall();
    controls();
    draw();
  });
  recall();
  controls();
  if (from.some((x, k) => x !== start[k]) || other !== losses[1]) draw();
}

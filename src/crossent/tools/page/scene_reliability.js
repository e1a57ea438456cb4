// Reliability in motion: a slider over temperatures, for each of which Python has computed the numbers. reliability.py draws the same.

import { find, h } from "./dom.js";
import { state, statedIndex } from "./hash.js";
import { at, fixed } from "./numbers.js";

const told = ([temperature, nll, error]) =>
  `Temperature ${fixed(temperature, 2)}: cross entropy ${fixed(nll ?? NaN, 4)} nats, calibration error ${fixed(error, 4)}.`;

function diagram(tempered) {
  const bins = tempered[3];
  const most = bins.reduce((largest, [, , n]) => Math.max(largest, n), 1);
  return h("svg", { role: "img", "aria-label": told(tempered), width: "100%", height: "100%" },
    h("rect", { class: "frame", width: "100%", height: "100%" }),
    h("line", { class: "diagonal", x1: "0%", y1: "100%", x2: "100%", y2: "0%" }),
    ...bins.map(([confidence, accuracy, n]) =>
      h("circle", { class: "bin", cx: at(confidence), cy: at(1 - accuracy), r: fixed(3 + 11 * (n / most) ** 0.5, 1) })),
  );
}

export function startReliability(scene, { temperatures, one }) {
  const slider = h("input", { type: "range", id: "temperature", min: "0", max: String(temperatures.length - 1), step: "1", oninput: () => set(Number(slider.value)) });
  const output = h("output", { for: "temperature" });

  function draw(k) {
    slider.value = k;
    slider.setAttribute("aria-valuetext", `temperature ${fixed(temperatures[k][0], 2)}`);
    output.textContent = fixed(temperatures[k][0], 2);
    find(".reliability svg", scene).replaceWith(diagram(temperatures[k]));
    find(".sentence", scene).textContent = told(temperatures[k]);
  }

  function set(k) {
    state({ temperature: k === one ? null : k });
    draw(k);
  }

  const place = find(".controls", scene);
  place.replaceChildren(h("div", { class: "slider" }, h("label", { for: "temperature" }, "temperature"), slider, output));
  place.hidden = false;
  const recall = () => draw(statedIndex("temperature", temperatures.length) ?? one);
  addEventListener("hashchange", recall);
  recall();
}

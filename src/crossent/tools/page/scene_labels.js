// The third scene in motion: choose a kind of target and see both losses on it.

import { commandTarget, copyButtons, pythonTarget, rowAsCommand, rowAsPython } from "./copy.js";
import { choices, find } from "./dom.js";
import { guess } from "./guess.js";
import { state, stated } from "./hash.js";
import { evaluate } from "./mathematics.js";
import { panel } from "./push.js";

export function startLabels(scene, { cases, words }) {
  let chosen = cases[0];

  function weightsOf(side) {
    if (side.weights) return side.weights;
    return side.x.map((_, k) => (side.labels.includes(k) ? 1 : 0));
  }

  const pushOf = (side) => ({ ...evaluate(side.loss, side.x, weightsOf(side), !side.weights), names: side.names, x: side.x });

  function draw() {
    find(".panels", scene).replaceChildren(...chosen.sides.map((side) => panel(pushOf(side), words[side.loss], side.loss)));
    find(".legend", scene).textContent = chosen.about;
  }

  function recall() {
    const before = chosen;
    chosen = cases.find((each) => each.name === stated("labels")) ?? cases[0];
    if (chosen !== before) draw();
  }

  function asPython() {
    return chosen.sides.map((side) => rowAsPython(side.x, pythonTarget(weightsOf(side), !side.weights), [side.loss], side.names)).join("\n");
  }

  function asCommand() {
    return chosen.sides.map((side) => rowAsCommand(side.x, commandTarget(weightsOf(side)), [side.loss], side.names)).join("\n");
  }

  function controls() {
    const options = cases.map(({ name, title }) => [name, title]);
    const kinds = choices("The picture shows", "labels-case", options, chosen.name, (name) => {
      state({ labels: name === cases[0].name ? null : name });
      recall();
    });
    const place = find(".controls", scene);
    place.replaceChildren(
      kinds,
      guess(scene, "Two labels: which way does the cat go under softmax?", ["up", "down", "stays"], "down"),
      copyButtons({ Python: asPython, command: asCommand }),
    );
    place.hidden = false;
  }

  recall();
  controls();
  addEventListener("hashchange", () => {
    recall();
    controls();
  });
}

// The digits in motion: a click on an image opens its Push, with what the model of each loss says of it.

import { copyButtons, rowAsCommand, rowAsPython } from "./copy.js";
import { button, find, h, select } from "./dom.js";
import { state, stated, statedIndex } from "./hash.js";
import { evaluate, oneHot } from "./mathematics.js";
import { panel } from "./push.js";

const DIGITS = Array.from({ length: 10 }, (_, k) => String(k));

export function startDigits(scene, { images, losses, words }) {
  let chosen = null;
  let other = firstBeside(losses);
  const place = find(".opened", scene);
  const panels = h("div", { class: "panels" });
  const title = h("h3", { tabindex: "-1" });
  const shown = () => [...new Set([losses[0], other])];

  const buttons = [...scene.querySelectorAll(".digit")].map((image, k) => {
    const opens = button("", () => open(k, true), { "aria-label": `number ${images[k].index}, a ${images[k].label}: open its push`, class: "digit", "data-image": String(k) });
    opens.replaceChildren(...image.childNodes);
    image.replaceWith(opens);
    return opens;
  });

  function draw() {
    buttons.forEach((each, k) => each.setAttribute("aria-pressed", String(k === chosen)));
    place.hidden = chosen === null;
    if (chosen === null) return;
    const { label, index, logits } = images[chosen];
    title.textContent = `Image ${index} is a ${label}. Each panel is the model that was trained with that loss.`;
    panels.replaceChildren(...shown().map((loss) =>
      panel({ ...evaluate(loss, logits[loss], oneHot(label, 10)), names: DIGITS, x: logits[loss] }, words[loss], loss)));
  }

  function open(k, byHand) {
    chosen = k === chosen && byHand ? null : k;
    state({ "digits.image": chosen });
    draw();
  }

  const each = (write) => () =>
    shown().map((loss) => write(images[chosen ?? 0].logits[loss], String(images[chosen ?? 0].label), [loss], DIGITS)).join("\n");

  function recall() {
    chosen = statedIndex("digits.image", images.length);
    other = losses.includes(stated("digits.loss")) ? stated("digits.loss") : (firstBeside(losses));
    draw();
  }

  const choose = select("Beside it:", losses.slice(1).map((loss) => [loss, words[loss].title]), other, (loss) => {
    other = loss;
    state({ "digits.loss": loss });
    draw();
  });
  place.prepend(title);
  place.append(panels, choose, copyButtons({ Python: each(rowAsPython), command: each(rowAsCommand) }));
  addEventListener("hashchange", recall);
  recall();
}

const firstBeside = (losses) => (losses.includes("sigmoid-difference") ? "sigmoid-difference" : (losses[1] ?? losses[0]));

// Predict, then reveal: the pushes are hidden until somebody has said which way, or skips.

import { button, h } from "./dom.js";

export function guess(scene, ask, answers, right) {
  const told = h("span", { role: "status", class: "told" });
  const place = h("div", { class: "buttons guess" });
  function reveal(answer) {
    scene.classList.remove("guessing");
    const said = answer === null ? "" : answer === right ? `Yes: ${right}.` : `No: ${right}.`;
    told.textContent = said;
    place.replaceChildren(open, told);
  }
  const open = button("Guess first", () => begin(), { "data-do": "guess" });
  function begin() {
    scene.classList.add("guessing");
    told.textContent = "";
    const buttons = answers.map((answer) => button(answer, () => reveal(answer), { "data-answer": answer }));
    place.replaceChildren(h("strong", {}, ask), ...buttons, button("Show me", () => reveal(null)), told);
    buttons[0].focus({ preventScroll: true });
  }
  place.append(open, told);
  return place;
}

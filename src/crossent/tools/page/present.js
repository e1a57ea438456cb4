// The presentation, #present: one scene at a time in large type, and the arrow keys turn the page.

import { button, h } from "./dom.js";
import { state, stated } from "./hash.js";

export function startPresenting() {
  const scenes = [...document.querySelectorAll(".scene")];
  const toggle = button("", () => enter(document.body.classList.contains("present") ? null : ""), { "data-do": "present" });
  document.querySelector("h1").after(h("p", { class: "modes" }, toggle));
  const enter = (value) => {
    state({ present: value });
    apply();
  };
  let current = 0;

  function apply() {
    const on = stated("present") !== null;
    current = Math.min(Number(stated("slide")) || 0, scenes.length - 1);
    document.body.classList.toggle("present", on);
    scenes.forEach((scene, k) => scene.classList.toggle("away", on && k !== current));
    toggle.textContent = on ? "Leave the presentation" : "Present one scene at a time";
  }

  function turn(by) {
    current = Math.max(0, Math.min(scenes.length - 1, current + by));
    state({ slide: current || null });
    apply();
    scrollTo(0, 0);
  }

  addEventListener("hashchange", apply);
  addEventListener("keydown", (event) => {
    // A slider or a list has its own use for the arrows.
    if (!document.body.classList.contains("present") || event.target.closest("input, select, textarea")) return;
    const by = { ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1 }[event.key];
    if (by && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      turn(by);
    }
  });
  apply();
}

// The first scene in motion: drag a logit, pick the truth, step. The same for a row of the user's own.

import { commandTarget, copyButtons, pythonTarget, rowAsCommand, rowAsPython } from "./copy.js";
import { button, find, h, select } from "./dom.js";
import { guess } from "./guess.js";
import { state, stated, statedIndex, statedNumbers } from "./hash.js";
import { descend, evaluate, oneHot, softmax, stepsToLead } from "./mathematics.js";
import { logit } from "./numbers.js";
import { headline, MOST_STEPS, panel, strip } from "./push.js";

const MOST_SLIDERS = 12;
const MOST_FOLLOWED = 27; // classes, beyond which a step costs too much to be repeated a hundred thousand times
const FRAMES = 90; // of "Run until", however many steps there are

export function startPush(scene, data) {
  const push = new PushScene(scene, data);
  push.start();
  return push;
}

class PushScene {
  constructor(scene, { losses, words, ask = null, key = "push", ...row }) {
    Object.assign(this, { scene, losses, words, ask, key });
    this.take(row);
  }

  // A row of logits with one true class; or with weights instead, several labels or a soft one, which stay as they are.
  take({ names, x, label = null, weights = null, hard = true }) {
    const logits = x.map((value) => value ?? -Infinity);
    Object.assign(this, { names, x: [...logits], label, weights, hard, opening: { x: logits, label } });
    Object.assign(this, { other: this.first(), steps: 0, focused: null, followed: null });
  }

  first() {
    return this.losses[1] ?? this.losses[0];
  }

  start() {
    this.recall();
    this.controls();
    addEventListener("hashchange", () => {
      this.recall();
      this.controls();
      this.draw();
    });
    if (this.isOpening()) this.listen();
    else this.draw();
  }

  // Show another row in the place of the one that was there.
  open(row) {
    this.take(row);
    this.controls();
    this.draw();
  }

  isOpening() {
    const same = this.x.every((value, k) => value === this.opening.x[k]);
    return same && this.label === this.opening.label && this.other === this.first() && this.steps === 0;
  }

  recall() {
    this.x = statedNumbers(`${this.key}.x`, this.names.length) ?? [...this.opening.x];
    if (this.weights === null) this.label = statedIndex(`${this.key}.true`, this.names.length) ?? this.opening.label;
    this.other = this.losses.includes(stated(`${this.key}.loss`)) ? stated(`${this.key}.loss`) : this.first();
    this.steps = statedIndex(`${this.key}.steps`, MOST_STEPS + 1) ?? 0;
  }

  // Both panels start at the same logits; after some steps each is where its own loss has led.
  pushOf(loss) {
    const x = this.steps ? descend(loss, this.x, this.target(), this.steps, this.label, this.hard) : this.x;
    return { ...evaluate(loss, x, this.target(), this.hard), names: this.names, x };
  }

  target() {
    return this.weights ?? oneHot(this.label, this.x.length);
  }

  shownLosses() {
    return this.losses.length > 1 ? [this.losses[0], this.other] : [this.losses[0]];
  }

  draw() {
    const panels = this.shownLosses().map((loss) => panel(this.pushOf(loss), this.words[loss], loss, this.focused));
    const open = [...this.scene.querySelectorAll(".panels details")].map((each) => each.open);
    find(".panels", this.scene).replaceChildren(...panels);
    this.scene.querySelectorAll(".panels details").forEach((each, k) => (each.open = open[k] ?? false));
    if (this.label !== null) find(".headline", this.scene)?.replaceChildren(headline(this.names, softmax(this.x), this.label));
    this.drawSteps();
    this.sliders?.forEach(([slider, shown], k) => {
      slider.value = this.x[k];
      slider.setAttribute("aria-valuetext", `logit of ${this.names[k]}: ${logit(this.x[k])}`);
      shown.textContent = logit(this.x[k]);
    });
    if (this.told) this.told.textContent = this.steps ? `After ${this.steps.toLocaleString("en")} step${this.steps > 1 ? "s" : ""} of gradient descent, rate 1.` : "";
    this.listen();
  }

  // Long runs come after the picture, so that a hand on a slider does not wait for them.
  drawSteps() {
    const place = find(".strip", this.scene);
    if (!place) return;
    place.hidden = this.label === null || this.names.length > MOST_FOLLOWED || !this.x.every(Number.isFinite);
    if (place.hidden) return;
    clearTimeout(this.later);
    const key = JSON.stringify([this.x, this.label, this.other]);
    if (key === this.followed) return;
    this.later = setTimeout(() => {
      const counts = this.shownLosses().map((loss) => [loss, stepsToLead(loss, this.x, this.label, MOST_STEPS)]);
      this.followed = key;
      find(".strip", this.scene).replaceWith(strip(this.names[this.label], counts, this.words));
    }, 120);
  }

  changed() {
    const same = this.isOpening();
    state({
      [`${this.key}.x`]: same ? null : this.x.join(","),
      [`${this.key}.true`]: same || this.weights ? null : this.label,
      [`${this.key}.loss`]: same ? null : this.other,
      [`${this.key}.steps`]: this.steps || null,
    });
    this.draw();
  }

  set(changes) {
    cancelAnimationFrame(this.running);
    Object.assign(this, { steps: 0, ...changes });
    this.changed();
  }

  // --- controls --------------------------------------------------------------------------------------------------------

  controls() {
    const place = find(".controls", this.scene);
    this.sliders = null;
    this.told = h("span", { role: "status", class: "told" });
    const parts = [];
    if (this.names.length <= MOST_SLIDERS) parts.push(this.sliderRows());
    else if (this.label !== null) parts.push(this.truthOfMany());
    if (this.losses.length > 1) {
      parts.push(select("Beside it:", this.losses.slice(1).map((loss) => [loss, this.words[loss].title]), this.other, (other) => this.set({ other, steps: this.steps })));
    }
    parts.push(h("div", { class: "buttons" },
      button("Step", () => this.set({ steps: Math.min(this.steps + 1, MOST_STEPS) }), { "data-do": "step" }),
      this.label === null ? "" : button(`Run until ${this.names[this.label]} leads`, () => this.run(), { "data-do": "run" }),
      button("Start again", () => {
        this.set({ x: [...this.opening.x], label: this.opening.label });
        this.controls();
        this.draw();
      }, { "data-do": "reset" }),
      this.told));
    if (this.ask) parts.push(guess(this.scene, ...this.ask));
    parts.push(copyButtons({ Python: () => this.asPython(), command: () => this.asCommand() }));
    place.replaceChildren(...parts);
    place.hidden = false;
  }

  sliderRows() {
    this.sliders = [];
    const rows = this.names.map((name, k) => {
      const id = `${this.key}-logit-${k}`;
      const most = Math.max(12, ...this.opening.x.filter(Number.isFinite).map(Math.abs));
      const shown = h("output", { for: id }, logit(this.x[k]));
      const slider = h("input", {
        type: "range", id, min: String(-most), max: String(most), step: "0.5", value: String(this.x[k]),
        "aria-label": `logit of ${name}`, "aria-valuetext": `logit of ${name}: ${logit(this.x[k])}`, disabled: !Number.isFinite(this.x[k]),
        oninput: () => {
          const x = [...this.x];
          x[k] = Number(slider.value);
          this.set({ x });
        },
        onfocus: () => this.look(k),
      });
      this.sliders.push([slider, shown]);
      const truth = this.label === null ? "" : h("label", { class: "truth" }, h("input", { type: "radio", name: `${this.key}-truth`, checked: k === this.label, onchange: () => this.pick(k) }), "true");
      return h("div", { class: "slider" }, h("span", { class: "name" }, name), slider, shown, truth);
    });
    return h("fieldset", {}, h("legend", {}, this.label === null ? "Logits" : "Logits, and which class is true"), ...rows);
  }

  truthOfMany() {
    const options = this.names.map((name, k) => [String(k), name]);
    return select("True:", options, String(this.label), (k) => this.pick(Number(k)));
  }

  pick(label) {
    this.set({ label });
    const run = find("[data-do=run]", this.scene);
    run.textContent = `Run until ${this.names[label]} leads`;
  }

  // Steps are made in growing strides, so that seven and ten thousand take about as long.
  run() {
    cancelAnimationFrame(this.running);
    const losses = this.shownLosses();
    const counts = losses.map((loss) => stepsToLead(loss, this.x, this.label, MOST_STEPS) ?? MOST_STEPS);
    const last = Math.max(...counts);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return this.set({ steps: last });
    const ahead = () => {
      this.steps = Math.min(last, this.steps + Math.max(1, Math.ceil(this.steps / (FRAMES / 6))));
      this.changed();
      if (this.steps < last) this.running = requestAnimationFrame(ahead);
    };
    ahead();
  }

  // --- looking closer --------------------------------------------------------------------------------------------------

  listen() {
    this.scene.querySelectorAll(".panels .class[data-class]").forEach((row) => {
      row.addEventListener("pointerenter", () => this.look(Number(row.dataset.class)));
    });
  }

  look(k) {
    if (this.focused === k) return;
    this.focused = k;
    this.scene.querySelectorAll(".panels > .panel").forEach((old) => {
      const loss = old.dataset.panel;
      if (!loss) return;
      find(".formula", old).replaceWith(find(".formula", panel(this.pushOf(loss), this.words[loss], loss, k)));
    });
  }

  // After some steps each loss is at logits of its own, so that each gets a text of its own.
  each(write) {
    const losses = this.shownLosses();
    if (!this.steps) return write(this.x, losses);
    return losses.map((loss) => write(this.pushOf(loss).x, [loss])).join("\n");
  }

  asPython() {
    const target = this.weights === null ? String(this.label) : pythonTarget(this.weights, this.hard);
    return this.each((x, losses) => rowAsPython(x, target, losses, this.names));
  }

  asCommand() {
    const target = this.weights === null ? String(this.label) : commandTarget(this.weights);
    return this.each((x, losses) => rowAsCommand(x, target, losses, this.names));
  }
}

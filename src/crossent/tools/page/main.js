// Starts what the page holds. Everything can be read before this runs.

import { find } from "./dom.js";
import { startPresenting } from "./present.js";
import { startCorner } from "./scene_corner.js";
import { startDigits } from "./scene_digits.js";
import { startLabels } from "./scene_labels.js";
import { startPush } from "./scene_push.js";

const data = JSON.parse(find("#data").textContent);
const start = { push: startPush, corner: startCorner, labels: startLabels, digits: startDigits };

for (const scene of document.querySelectorAll("[data-scene]")) {
  const { scene: kind, key } = scene.dataset;
  start[kind](scene, { ...data[key ?? kind], words: data.words });
}
if (document.querySelectorAll(".scene").length > 1) startPresenting();
document.documentElement.dataset.ready = "yes";

// Starts what the page holds. Everything can be read before this runs.

import { find } from "./dom.js";
import { startPresenting } from "./present.js";
import { startCorner } from "./scene_corner.js";
import { startDigits } from "./scene_digits.js";
import { startLabels } from "./scene_labels.js";
import { startOwn } from "./scene_own.js";
import { startPush } from "./scene_push.js";
import { startReliability } from "./scene_reliability.js";
import { sortTables, startRows } from "./scene_rows.js";

const data = JSON.parse(find("#data").textContent);
const start = {
  push: startPush, corner: startCorner, labels: startLabels, digits: startDigits, rows: startRows, reliability: startReliability, own: startOwn,
};

for (const scene of document.querySelectorAll("[data-scene]")) {
  const kind = scene.dataset.scene;
  start[kind](scene, { ...data[kind], words: data.words });
}
sortTables();
if (data.present) startPresenting();
document.documentElement.dataset.ready = "yes";

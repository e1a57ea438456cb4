// Starts what the page holds. Everything can be read before this runs.

import { find } from "./dom.js";
import { startPush } from "./scene_push.js";

const data = JSON.parse(find("#data").textContent);
const start = { push: startPush };

for (const scene of document.querySelectorAll("[data-scene]")) {
  const { scene: kind, key } = scene.dataset;
  start[kind](scene, { ...data[key ?? kind], words: data.words });
}
document.documentElement.dataset.ready = "yes";

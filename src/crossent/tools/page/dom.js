// Elements from names, attributes and children. A string is always text, never markup.

const SVG = new Set(["svg", "line", "circle", "path", "text", "rect", "image", "g", "title", "polyline"]);

export function h(tag, attributes = {}, ...children) {
  const element = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== "" && value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== ""));
  return element;
}

export const find = (selector, root = document) => root.querySelector(selector);

// A labelled choice among a few, with the keyboard of radio buttons.
export function choices(legend, name, options, chosen, onChange) {
  const radios = options.map(([value, text]) =>
    h("label", {}, h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onChange(value) }), text),
  );
  return h("fieldset", { class: "choices" }, h("legend", {}, legend), ...radios);
}

export function select(label, options, chosen, onChange) {
  const items = options.map(([value, text]) => h("option", { value, selected: value === chosen }, text));
  const box = h("select", { onchange: (event) => onChange(event.target.value) }, ...items);
  return h("label", { class: "select" }, `${label} `, box);
}

export const button = (text, onclick, attributes = {}) => h("button", { type: "button", onclick, ...attributes }, text);

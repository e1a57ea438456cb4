// The losses of crossent.reference, in the same letters and the same order, for one row of logits.
//
// A row is a plain array of numbers. Two conventions are those of the reference: what has no weight is not there, so
// 0 · x = 0 whatever x is, and a row whose largest logit is not finite has no softmax, so its loss is NaN.

const times = (weight, value) => (weight === 0 ? 0 : weight * value);

export function sum(values) {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

// --- p ---------------------------------------------------------------------------------------------------------------

export function indexOfLargest(x) {
  let best = 0;
  for (let k = 1; k < x.length; k++) if (x[k] > x[best]) best = k;
  return best;
}

// -log softmax(x). The largest logit is left out of the sum, so that a confident row keeps its digits.
export function surprisal(x) {
  const first = indexOfLargest(x);
  const top = x[first];
  let others = 0;
  for (let k = 0; k < x.length; k++) if (k !== first) others += Math.exp(x[k] - top);
  const logSum = Math.log1p(others) + (top - top); // NaN where the largest logit is infinite
  return x.map((value) => -(value - top) + logSum);
}

export const softmax = (x) => surprisal(x).map((cost) => Math.exp(-cost));

// log(1 + e^x), so that -log σ(x) = softplus(-x).
export function softplus(x) {
  if (x === Infinity) return Infinity;
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

export const sigmoid = (x) => Math.exp(-softplus(-x));

// --- t ---------------------------------------------------------------------------------------------------------------

export const oneHot = (label, count) => Array.from({ length: count }, (_, k) => (k === label ? 1 : 0));

export const smooth = (t, epsilon) => t.map((weight) => times(1 - epsilon, weight) + epsilon / t.length);

// t = 1/M on each of M labels; a row without labels stays 0.
export function shares(weights) {
  const total = sum(weights);
  return weights.map((weight) => weight / (total === 0 ? 1 : total));
}

// --- (f, s): what a class with probability p costs, and how hard it is pulled, both of log p -------------------------

const lack = (logP) => 0 - Math.expm1(logP);

function focal(gamma) {
  return {
    f: (logP) => lack(logP) ** gamma * (0 - logP),
    s(logP) {
      const ratio = lack(logP) > 0 ? -logP / lack(logP) : 1;
      return lack(logP) ** gamma * (1 + gamma * times(Math.exp(logP), ratio));
    },
  };
}

const gce = (q) => ({ f: (logP) => lack(q * logP) / q, s: (logP) => Math.exp(q * logP) });

const scaled = (penalty, factor) => ({
  f: (logP) => times(factor, penalty.f(logP)),
  s: (logP) => times(factor, penalty.s(logP)),
});

// Give a class more probability than it has; where it would reach 1, nothing pulls.
function shifted(penalty, clip) {
  function logShifted(logP) {
    const low = Math.log(clip);
    const [more, less] = logP > low ? [logP, low] : [low, logP];
    return Math.min(more + Math.log1p(Math.exp(less - more)), 0);
  }
  return {
    f: (logP) => penalty.f(logShifted(logP)),
    s(logP) {
      const logQ = logShifted(logP);
      return logQ < 0 ? penalty.s(logQ) * Math.exp(logP - logQ) : 0;
    },
  };
}

const CROSS_ENTROPY = { f: (logP) => -logP, s: () => 1 };

const PENALTIES = {
  ce: CROSS_ENTROPY,
  "ce-smooth": CROSS_ENTROPY,
  focal: focal(2),
  gce: gce(0.7),
  mae: gce(1),
  sce: { f: (logP) => 0.1 * -logP + 4 * lack(logP), s: (logP) => 0.1 + 4 * Math.exp(logP) },
  poly1: { f: (logP) => -logP + lack(logP), s: (logP) => 1 + Math.exp(logP) },
  taylor: {
    f: (logP) => lack(logP) + lack(logP) ** 2 / 2,
    s: (logP) => -Math.expm1(2 * Math.log1p(-Math.exp(logP))),
  },
};

const BINARY = {
  bce: [CROSS_ENTROPY, CROSS_ENTROPY],
  "sigmoid-focal": [scaled(focal(2), 0.25), scaled(focal(2), 0.75)],
  asymmetric: [focal(1), shifted(focal(4), 0.05)],
};

// --- the losses: what each class adds, and ∂L/∂x ----------------------------------------------------------------------

// L = Σ t f(p), ∂L/∂x = mass · p - w ∘ t. For the largest p, which may be next to 1, the difference is formed as
// rest · p - pull · (1 - p), which does not cancel.
function softmaxLoss(x, t, { f, s }) {
  const logP = surprisal(x).map((cost) => -cost);
  const pull = logP.map((value, k) => times(t[k], s(value)));
  const top = indexOfLargest(x);
  const mass = sum(pull);
  const rest = sum(pull.map((value, k) => (k === top ? 0 : value)));
  const gradient = logP.map((value, k) =>
    k === top
      ? times(rest, Math.exp(value)) + times(pull[k], Math.expm1(value))
      : times(mass, Math.exp(value)) - pull[k],
  );
  return { t, terms: logP.map((value, k) => times(t[k], f(value))), gradient };
}

// Cross entropy applied to p instead of x: p ∘ (g - Σ p g) with g the gradient at p.
function afterSoftmax(x, t) {
  const p = softmax(x);
  const { terms, gradient: g } = softmaxLoss(p, t, CROSS_ENTROPY);
  const mean = sum(p.map((value, k) => value * g[k]));
  return { t, terms, gradient: p.map((value, k) => value * (g[k] - mean)) };
}

function sigmoidLoss(x, t, [yes, no]) {
  const logYes = x.map((value) => -softplus(-value));
  const logNo = x.map((value) => -softplus(value));
  return {
    t,
    terms: x.map((_, k) => times(t[k], yes.f(logYes[k])) + times(1 - t[k], no.f(logNo[k]))),
    gradient: x.map(
      (value, k) =>
        times(times(1 - t[k], no.s(logNo[k])), sigmoid(value)) - times(times(t[k], yes.s(logYes[k])), sigmoid(-value)),
    ),
  };
}

function sigmoidDifference(x, t) {
  return {
    t,
    terms: x.map((value, k) => (t[k] === 1 ? sigmoid(-value) : sigmoid(value))),
    gradient: x.map((value, k) => (t[k] === 1 ? -1 : 1) * sigmoid(value) * sigmoid(-value)),
  };
}

// 1/C · Σ max(0, 1 - x(true) + x) over the others.
function hinge(x, t) {
  const label = indexOfLargest(t);
  const count = x.length;
  const above = x.map((value, k) => (k === label ? 0 : Math.max(1 - x[label] + value, 0)));
  const gradient = above.map((value) => (value > 0 ? 1 / count : 0));
  gradient[label] = -sum(gradient);
  return { t, terms: above.map((value) => value / count), gradient };
}

export const isSigmoid = (name) => name in BINARY || name === "sigmoid-difference";

// What a loss tells every class of a row: p, t, the terms of the loss, and ∂L/∂x. `weights` are labels or soft labels.
export function evaluate(name, x, weights, areLabels = true) {
  const target = areLabels && !isSigmoid(name) ? shares(weights) : weights;
  const numbers = compute(name, x, name === "ce-smooth" ? smooth(target, 0.1) : target);
  return { ...numbers, name, p: probabilities(name, x), loss: sum(numbers.terms) };
}

function compute(name, x, t) {
  if (name in PENALTIES) return softmaxLoss(x, t, PENALTIES[name]);
  if (name in BINARY) return sigmoidLoss(x, t, BINARY[name]);
  return { "sigmoid-difference": sigmoidDifference, hinge, "ce-after-softmax": afterSoftmax }[name](x, t);
}

export const probabilities = (name, x) => (isSigmoid(name) ? x.map(sigmoid) : softmax(x));

// --- steps -----------------------------------------------------------------------------------------------------------

export const step = (x, gradient, rate = 1) => x.map((value, k) => value - rate * gradient[k]);

export function leads(x, label) {
  return x.every((value, k) => k === label || value < x[label]);
}

// Follow plain gradient descent until the label leads; null if that takes more than `limit` steps.
export function stepsToLead(name, x, label, limit = 100_000) {
  const weights = oneHot(label, x.length);
  for (let count = 0; count <= limit; count++) {
    if (leads(x, label)) return count;
    x = step(x, gradientOf(name, x, weights));
  }
  return null;
}

// ∂L/∂x alone, for one label: the same numbers in less time, for the many steps of stepsToLead.
export function gradientOf(name, x, t) {
  return compute(name, x, name === "ce-smooth" ? smooth(t, 0.1) : t).gradient;
}

// Make so many steps, and with a label none after it leads.
export function descend(name, x, weights, count, label = null, areLabels = true) {
  for (let done = 0; done < count && !(label !== null && leads(x, label)); done++) {
    x = step(x, evaluate(name, x, weights, areLabels).gradient);
  }
  return x;
}

// Reads a corpus of rows from the standard input and writes what the page's mathematics makes of them.
import { readFileSync } from "node:fs";

const source = readFileSync(process.argv[2], "utf8");
const { evaluate, stepsToLead } = await import(`data:text/javascript,${encodeURIComponent(source)}`);

const decode = (value) => (typeof value === "string" ? Number(value) : value);
const encode = (_, value) => (typeof value === "number" && !Number.isFinite(value) ? String(value) : value);

const { rows, runs } = JSON.parse(readFileSync(0, "utf8"));
const evaluated = rows.map((row) => evaluate(row.loss, row.x.map(decode), row.t, row.labels));
const counted = runs.map(({ loss, x, label, limit }) => stepsToLead(loss, x, label, limit));
process.stdout.write(JSON.stringify({ evaluated, counted }, encode));

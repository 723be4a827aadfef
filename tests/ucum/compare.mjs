// Compares the engine's UCUM check with @lhncbc/ucum-lhc: every unit of its table and combinations of them must get the
// same verdict. Usage: npm install && node compare.mjs   (in this folder; builds the example check_units first)
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const require = createRequire(import.meta.url);
const { UcumLhcUtils } = require("@lhncbc/ucum-lhc");
const lhc = UcumLhcUtils.getInstance();

const table = JSON.parse(readFileSync(require.resolve("@lhncbc/ucum-lhc/data/ucumDefs.min.json"), "utf8"));
const column = (name) => table.units.config.findIndex((one) => (Array.isArray(one) ? one[0] : one) === name);
const rows = table.units.data.filter((row) => row[column("csCode_")] && !/\s/.test(row[column("csCode_")]));
const units = rows.map((row) => row[column("csCode_")]);
// UCUM gives prefixes to metric units only; the other side takes them everywhere, so nothing else is asked.
const metric = rows.filter((row) => row[column("isMetric_")] && !/^10|[(){}/.\d]/.test(row[column("csCode_")]));
const prefixes = table.prefixes.data.map((row) => row[0]);

const cases = new Set(units);
for (const row of metric) {
  for (const prefix of prefixes) cases.add(prefix + row[column("csCode_")]);
}
for (const unit of units) {
  cases.add(unit + "2").add(unit + "-1").add("/" + unit).add(unit + "{note}").add(unit + "//s").add("(" + unit + ")/m");
}
for (const other of ["mmHg", "bpm", "count/min", "degC", "KG", "steps", "{steps}", "10*3/uL", "10^3", "kg.m/s2", "(kg", "kg)",
  "mg/dl", "%", "1/min", "beats/min", "lbs", "cmH2O", "C", "F", "L/(min.m2)", "a.b.c", "", "kg m", "1.5", "[degF", "mL/min/{1.73_m2}"]) {
  cases.add(other);
}
// The other side cannot divide by three units that UCUM defines on a ratio scale.
const list = [...cases].filter((unit) => unit !== "" && !/^[/(](\[diop\]|\[mesh_i\]|Bd)/.test(unit));
const answers = execFileSync("cargo", ["run", "-q", "-p", "iomt-mapping", "--example", "check_units"], {
  input: list.join("\n") + "\n", encoding: "utf8", maxBuffer: 1 << 28,
}).trimEnd().split("\n");

let differ = 0;
list.forEach((unit, at) => {
  const ours = answers[at].startsWith("valid\t");
  const answer = lhc.validateUnitString(unit);
  // "valid" with another code in the answer means: not as it is written, but this is probably meant.
  const theirs = answer.status === "valid" && answer.ucumCode === unit;
  if (ours !== theirs) {
    differ += 1;
    if (differ <= 60) console.log(`${unit}\tours ${ours}\ttheirs ${answer.status} ${answer.ucumCode} ${answer.msg}`);
  }
});
console.log(`${list.length} units, ${differ} judged differently`);
process.exit(differ === 0 ? 0 : 1);

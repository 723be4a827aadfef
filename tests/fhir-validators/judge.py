"""Judges what the validators found (standard input): nothing in the Observations, everything in the broken ones."""

import json
import sys

# A vector that is about something else and whose mapping has no URI where FHIR wants one.
EXPECTED = [("category-replaced", "Observation.category[0].coding[0].system: Invalid uri format")]


def lines(stream):
    return [json.loads(line) for line in stream]


observations = lines(open(sys.argv[1], encoding="utf-8"))
broken = lines(open(sys.argv[2], encoding="utf-8"))
told = lines(sys.stdin)
found = [one for one in told if "validator" in one]
counted = {}
for one in told:
    for validator in one.get("validators", []):
        counted.setdefault(validator, []).append(one["observations"])

problems = []
for validator in ["fhir", "@medplum/core", "fhir.resources"]:
    if counted.get(validator) != [len(observations), len(broken)]:
        problems.append(f"{validator} has looked at {counted.get(validator)} Observations")
for kind, least in [("pack", 100), ("vector", 100)]:
    count = sum(one["kind"] == kind for one in observations)
    if count < least:
        problems.append(f"only {count} Observations of a {kind}")
for one in found:
    expected = any(one["of"].endswith(name) and one["text"] == text for name, text in EXPECTED)
    if one["kind"] != "broken" and not expected:
        problems.append(f"{one['validator']}: {one['of']}: {one['text']}")
for one in broken:
    finders = {other["validator"] for other in found if other["kind"] == "broken" and other["of"] == one["of"]}
    for validator in set(one["must"]) - finders:
        problems.append(f"{validator} does not notice: {one['of']}")
for problem in problems:
    print(problem)
print(json.dumps({"observations": len(observations), "broken": len(broken), "problems": len(problems)}))
sys.exit(1 if problems else 0)

"""Validates lines {"of": .., "kind": .., "observation": {..}} from standard input with fhir.resources (R4B, whose Observation
is that of R4); writes a line for each thing that it does not like, and the count last."""

import json
import sys

from fhir.resources.R4B.observation import Observation
from pydantic import ValidationError

count = 0
for line in sys.stdin:
    told = json.loads(line)
    count += 1
    try:
        # From the text, so that decimals are read as they are spelled.
        Observation.model_validate_json(json.dumps(told["observation"]))
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            place = ".".join(str(part) for part in problem["loc"])
            text = f"{place}: {problem['msg']}"
            print(json.dumps({"validator": "fhir.resources", "of": told["of"], "kind": told["kind"], "text": text}))
print(json.dumps({"validators": ["fhir.resources"], "observations": count}))

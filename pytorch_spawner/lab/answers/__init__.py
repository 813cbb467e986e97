"""What the API answers, as pydantic models: for openapi.json, and for the tests that hold it."""

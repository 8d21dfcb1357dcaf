"""Configuration: the schema that checks it, and the code that composes it from YAML and overrides."""

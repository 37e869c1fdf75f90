"""The verbs of the command line: one config dataclass and one `run(config)` each."""

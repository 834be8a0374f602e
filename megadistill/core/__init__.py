"""What everything else stands on: config schema, shared types, errors, ranks, logs, files, seeds."""

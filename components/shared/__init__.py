"""What every step stands on: configuration, data, models, judges, evidence. Imports no step."""

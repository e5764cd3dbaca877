"""Audited model: a registered model, fetched and verified, to be attacked again."""

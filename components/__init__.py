"""Backburn's pipeline steps, and what they share."""

"""Judging: open the seals, score every completion and write the evidence."""

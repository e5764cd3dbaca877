"""From observations to the figures of the evidence: pure, so that anyone can do it again."""

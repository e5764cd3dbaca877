"""Tasks of lm-evaluation-harness: the shipped one, the user's own, and the harness's."""

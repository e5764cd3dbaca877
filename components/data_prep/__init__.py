"""Data preparation: disjoint splits of a domain, with digests and licences."""

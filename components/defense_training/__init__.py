"""Defence: warm start, Reward Neutralization and tempered consolidation."""

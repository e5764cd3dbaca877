"""The budgeted RL attack: in memory, with no way out for attacked weights."""

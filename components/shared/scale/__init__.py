"""A step as several processes: how they are started, and what they tell each other."""

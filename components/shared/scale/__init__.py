"""Running a step in more than one process: on one node or on several."""

"""The `harden` pipeline, its recipes, the local runner and the `backburn` command."""

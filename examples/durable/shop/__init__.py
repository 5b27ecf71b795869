"""The app of the example."""

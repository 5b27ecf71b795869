"""The dry run: samples in a transaction that is rolled back, and what they would have changed."""

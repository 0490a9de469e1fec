"""Programs that the tests run in several processes."""

"""How much of what others wrote converts: suites, and the page docs/coverage.md made of them."""

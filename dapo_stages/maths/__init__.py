"""The formulas: pure functions from arrays and numbers to arrays and numbers."""

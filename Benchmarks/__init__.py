"""Commands that measure: each prints a table and writes it into its section of RESULTS.md."""

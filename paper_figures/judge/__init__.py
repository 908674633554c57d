"""From these tables to numbers, comparisons and verdicts; nothing here draws, or imports what draws."""

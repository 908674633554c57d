"""Where data come from: downloads, wheels, and the formats that are inside."""

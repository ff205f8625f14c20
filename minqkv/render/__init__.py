"""Everything that rich draws: tables, the picture, progress. No number is computed here."""

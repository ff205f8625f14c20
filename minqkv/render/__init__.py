"""Everything that rich draws: tables, the picture, progress. Numbers arrive here finished."""

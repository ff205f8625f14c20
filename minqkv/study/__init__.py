"""A study: variants × tasks × seeds, run where a record is missing, then read with intervals."""

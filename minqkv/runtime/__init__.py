"""What the book stands on: arrays, cores, random streams, probes, files, errors."""

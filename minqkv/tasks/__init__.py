"""Data to train on, made on the host."""

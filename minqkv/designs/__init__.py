"""Attention layers of models that ship, where one of variants.SHIPPED needs more than a row."""

"""Attention layers of models that ship, where one of variants.SHIPPED needs more than a row; and
linear attention, which stores no rows.
"""

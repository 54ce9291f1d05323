"""Data sets, their index and the crops made from them."""

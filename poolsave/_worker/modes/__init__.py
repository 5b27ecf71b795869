"""How the objects of a chunk run: one transaction each, one for all, none, or several stages."""

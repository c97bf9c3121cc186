"""The checker of shapes and types in tests: an int is a float, as everywhere in Python's type system."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

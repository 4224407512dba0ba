"""What jaxtyping's import hook checks annotations with (tests/conftest.py): beartype, for which an int is a float too."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

"""Where functions that make examples are kept by name."""

import random
from collections.abc import Callable

Make = Callable[[random.Random], tuple[str, str]]
"""Makes one (input, answer) with a generator."""


class Registry(dict[str, Make]):
    """Functions by name; as a decorator it adds one, without the underscore before its name."""

    def __call__(self, make: Make) -> Make:
        """Adds ``make`` and returns it."""
        self[make.__name__.removeprefix("_")] = make
        return make

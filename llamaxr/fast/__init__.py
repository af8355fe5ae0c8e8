"""The same functions, faster. Read llamaxr/*.py first: nothing here is needed to understand the model.

A fast form attaches to a finished model by replacing its modules, as add_lora does, and the model knows
nothing of it. `--plain` leaves it out. Tests tie each fast form to the plain one, gradients included.
"""

from .generation import for_generation
from .training import compile_blocks, for_training, recompute_blocks

__all__ = ["compile_blocks", "for_generation", "for_training", "recompute_blocks"]

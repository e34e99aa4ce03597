"""Search for rescale factors.

search(checkpoint, corpus, target_length)      factors for a longer window
recover_short(checkpoint, corpus, factors)     a short set beside the long one
evaluate_methods(checkpoint, windows, target)  held-out perplexity of the known methods and of what was found
"""

import lazy_loader

from longrope.callable_module import make_callable

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
make_callable(__name__)

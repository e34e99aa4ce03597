"""Search for rescale factors.

search(checkpoint, corpus, target_length)      factors for a longer window
recover_short(checkpoint, corpus, factors)     a short set beside the long one
evaluate_methods(checkpoint, windows, target)  held-out perplexity of the known methods and of what was found
"""

from longrope.search.ledger import HistoryPoint
from longrope.search.measure import Machine, WindowModel
from longrope.search.methods import MethodScore, evaluate_methods
from longrope.search.options import SearchOptions
from longrope.search.recover import Recovery, recover_short
from longrope.search.run import Scored, SearchResult, search
from longrope.search.trial import Candidate

__all__ = [
    "Candidate",
    "HistoryPoint",
    "Machine",
    "MethodScore",
    "Recovery",
    "Scored",
    "SearchOptions",
    "SearchResult",
    "WindowModel",
    "evaluate_methods",
    "recover_short",
    "search",
]

"""Search for rescale factors.

search(checkpoint, corpus, target_length)      factors for a longer window
recover_short(checkpoint, corpus, factors)     a short set beside the long one
evaluate_methods(checkpoint, windows, target)  held-out perplexity of the known methods and of what was found

`longrope.estimates.search` says beforehand what a search takes.
"""

from longrope.search.evaluation_cache import HistoryPoint
from longrope.search.measure import Machine, WindowModel
from longrope.search.methods import MethodScore, evaluate_methods, known_rows
from longrope.search.options import SearchOptions
from longrope.search.recover import Recovery, recover_short, recovery_estimate
from longrope.search.run import ParetoPoint, Scored, SearchResult, check_search, search
from longrope.search.strategies import STRATEGIES
from longrope.search.trial import Candidate

__all__ = [
    "STRATEGIES",
    "Candidate",
    "HistoryPoint",
    "Machine",
    "MethodScore",
    "ParetoPoint",
    "Recovery",
    "Scored",
    "SearchOptions",
    "SearchResult",
    "WindowModel",
    "check_search",
    "evaluate_methods",
    "known_rows",
    "recover_short",
    "recovery_estimate",
    "search",
]

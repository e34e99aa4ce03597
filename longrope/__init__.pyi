"""Where each public name of `longrope` is; read by type checkers, and by `lazy_loader` when a name is first used."""

import collections.abc
import typing

from .checkpoint import Checkpoint as Checkpoint
from .checkpoint import open_checkpoint as open_checkpoint
from .errors import FactorError as FactorError
from .errors import InputError as InputError
from .errors import LongRopeError as LongRopeError
from .errors import MissingRequirementError as MissingRequirementError
from .errors import UnsupportedError as UnsupportedError
from .extend import Extension as Extension
from .extend import extend as extend
from .extend_options import ExtendOptions as ExtendOptions
from .factors import BoundFactors as BoundFactors
from .factors import RescaleFactors as RescaleFactors
from .finetune.options import TrainOptions as TrainOptions
from .finetune.stages import Stage as Stage
from .finetune.stages import StagePlan as StagePlan
from .finetune.trainer import finetune as finetune
from .generation import generate_across as generate_across
from .modeling import TorchSource as TorchSource
from .modeling import build_model as build_model
from .search.methods import MethodScore as MethodScore
from .search.methods import evaluate_methods as evaluate_methods
from .search.options import SearchOptions as SearchOptions
from .search.recover import Recovery as Recovery
from .search.recover import recover_short as recover_short
from .search.run import SearchResult as SearchResult
from .search.run import search as search
from .search.trial import Candidate as Candidate
from .text import Corpus as Corpus
from .text import load_corpus as load_corpus

convert: collections.abc.Callable[..., typing.Any]
validate: collections.abc.Callable[..., typing.Any]
read_factors: collections.abc.Callable[..., typing.Any]
__version__: str

"""LongRoPE: search a rescale factor for every rotary dimension and extend a model's context window.

Importing this package is cheap: nothing here imports torch or transformers until a model is built.
"""

__version__ = "0.1.0"

"""What each key does to a model when it is wrong; the words of the checks."""

MEANINGS = {
    "context_length": "runtimes take the window a user gets from it",
    "rope.scaling.type": "without longrope llama.cpp does not load the factors",
    "rope.scaling.original_context_length": "llama.cpp chooses the set by it; without it the long set is never used",
    "rope.scaling.attn_factor": "attention is too sharp or too flat at every length; perplexity may even fall",
    "rope.scaling.factor": "must be absent: llama.cpp applies it on top of the factors",
    "rope.freq_base": "every rotary frequency is wrong",
}

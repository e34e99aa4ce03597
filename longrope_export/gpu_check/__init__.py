"""`longrope-export doctor --gpu`: whether a device computes what a CPU does, in how much memory, how fast, and to what end.

    right      losses, gradients and rankings of the device in every precision, against float32 on the CPU
    memory     the estimates against what was allocated; what happens when memory runs out
    speed      tokens per second against plain transformers, the share of the chip's peak, where time goes
    headline   the method itself: perplexity and passkeys by length, known methods and a search, before and after training

Every section is a module with `STEPS`; a step yields rows. `run` is resumable by section. On a CPU the same code runs with a
tiny budget.
"""

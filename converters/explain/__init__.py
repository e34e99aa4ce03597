"""Why an artifact fails: where its logits leave the reference's, over positions and layers, and the likeliest cause.

    artifact, reference, ids ──windows──► KL of every position           the shape over positions
                             ──trials───► the reference with one change   under which it gives the artifact's logits
                             ──parts────► each layer by itself            which layers are at fault
                             ──naming───► Explanation                     with what the failed checks say

`run.explain` does it; `causes` has the result and needs no torch.
"""

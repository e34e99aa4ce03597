"""A mixture of experts, in ONNX's own operators: each expert sees the tokens that chose it, and no others.

    x [N,D] ─► gate ─► softmax ─► TopK ─► weights [N,k], chosen [N,k]
                                              │ flat: N·k places, each a token and one of its experts
    expert e:  places where chosen = e ─► rows of x ─► MLP ─┐
                                                            ├─► joined, back in the order of places ─► × weights ─► Σ over k
    expert …:                                             ──┘

An expert that nobody chose computes on no rows.
"""

from __future__ import annotations

import onnx_ir as ir

from converters.onnx.blocks import Experts
from converters.onnx.decoder import Router
from converters.onnx.parts import FLOAT, Parts
from converters.onnx.weights import Part

CORRECTION = "gate.e_score_correction_bias"
LOWEST = -3.0e38


class Mixture:
    """Builds mixtures of experts.

    Args:
        parts: of the graph.
        experts: how they are stored and computed.
        router: how they are chosen.
    """

    def __init__(self, parts: Parts, experts: Experts, router: Router) -> None:
        self.parts, self.experts, self.router = parts, experts, router
        self.graph = parts.graph

    def build(self, hidden: ir.Value) -> ir.Value:
        """[B,T,D] → [B,T,D], in the scope of an MLP."""
        g, width = self.graph, self.parts.decoder.hidden_size
        self._name_matrices()
        flat = g.op("Reshape", hidden, g.ints(-1, width), name="tokens")
        weights, chosen = self._route(flat)
        outputs, places = zip(
            *(self._expert(index, flat, chosen) for index in range(self.router.num_experts)), strict=True
        )
        mixed = self._mixed(outputs, places, weights, chosen)
        found = g.op("Reshape", mixed, g.op("Shape", hidden, name="shape"), name="experts")
        return g.op("Add", found, self._shared(hidden), name="with_shared") if self.experts.shared else found

    # -- the choice

    def _route(self, flat: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Weights [N,k] in the graph's type, and which experts [N·k]."""
        g, router = self.graph, self.router
        logits = self.parts.exact_linear("gate", flat, router.num_experts, bias=self.experts.router_bias)
        wide = self.parts.cast(logits, "gate_float32", FLOAT)
        scores = choice = self._scores(wide)
        if self._corrects:
            bias = self.parts.vector_of(g.path(CORRECTION), (router.num_experts,), None, FLOAT)
            choice = g.op("Add", scores, bias, name="corrected_scores")
        if router.groups > 1:
            choice = self._within_best_groups(choice)
        values, chosen = g.ops(
            "TopK", choice, g.ints(router.chosen), outputs=["best", "best_experts"], name="choice", axis=-1
        )
        if self._corrects:
            values = g.op("GatherElements", scores, chosen, name="best_scores", axis=-1)
        if router.normalized:
            values = g.op("Div", values, g.op("ReduceSum", values, g.ints(-1), name="sum"), name="shares")
        values = self.parts.times(values, router.scale, "scaled_shares", FLOAT)
        weights = self.parts.cast(values, "weights", g.dtype)
        return weights, g.op("Reshape", chosen, g.ints(-1), name="chosen")

    @property
    def _corrects(self) -> bool:
        """A correction decides which experts are chosen, and not what they weigh."""
        return self.experts.scores == "sigmoid"

    def _scores(self, logits: ir.Value) -> ir.Value:
        if self.experts.scores == "sigmoid":
            return self.graph.op("Sigmoid", logits, name="scores")
        return self.graph.op("Softmax", logits, name="scores", axis=-1)

    def _rank(self, grouped: ir.Value) -> ir.Value:
        """What groups [N,groups,experts] are chosen by: their best expert, or their best two, [N,groups]."""
        g = self.graph
        if not self._corrects:
            return g.op("ReduceMax", grouped, g.ints(-1), name="best_of_group", keepdims=0)
        two, _ = g.ops("TopK", grouped, g.ints(2), outputs=["best_two", "best_two_ids"], name="pair", axis=-1)
        return g.op("ReduceSum", two, g.ints(-1), name="best_of_group", keepdims=0)

    def _within_best_groups(self, scores: ir.Value) -> ir.Value:
        """Scores [N,E], below all others outside the groups that rank highest."""
        g, router = self.graph, self.router
        grouped = g.op("Reshape", scores, g.ints(0, router.groups, -1), name="by_group")
        best = self._rank(grouped)
        top, _ = g.ops(
            "TopK", best, g.ints(router.groups_chosen), outputs=["groups", "group_ids"], name="group_choice", axis=-1
        )
        last = g.op("ReduceMin", top, g.ints(-1), name="last_group", keepdims=1)
        kept = g.op("Unsqueeze", g.op("GreaterOrEqual", best, last, name="kept"), g.ints(-1), name="kept_groups")
        masked = g.op(
            "Where", kept, grouped, g.scalar("no_score", LOWEST if self._corrects else 0.0, FLOAT), name="masked"
        )
        return g.op("Reshape", masked, g.ints(0, router.num_experts), name="group_scores")

    # -- the experts

    def _expert(self, index: int, flat: ir.Value, chosen: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What one expert gives, [n,D], and for which places [n]."""
        g = self.graph
        with g.scope(f"experts.{index}"):
            hit = g.op("Equal", chosen, g.ints(index), name="is_chosen")
            places = g.op("Reshape", g.op("NonZero", hit, name="nonzero"), g.ints(-1), name="places")
            tokens = g.op("Div", places, g.ints(self.router.chosen), name="ids")
            rows = g.op("Gather", flat, tokens, name="rows")
            return self._mlp(rows), places

    def _mlp(self, rows: ir.Value) -> ir.Value:
        parts = self.parts
        gate, up = (parts.linear(name, rows, parts.rows_of(name)) for name in ("gate_proj", "up_proj"))
        inner = self._clamped(gate, up) if self.experts.clamped else parts.gated(gate, up)
        return parts.linear("down_proj", inner, parts.decoder.hidden_size)

    def _clamped(self, gate: ir.Value, up: ir.Value) -> ir.Value:
        """(up + 1) × gate × sigmoid(alpha × gate), gate at most `limit` and up within ± it."""
        g, limit = self.graph, self.router.limit
        high, low = g.scalar("limit", limit), g.scalar("minus_limit", -limit)
        gate = g.op("Min", gate, high, name="gate_clamped")
        up = g.op("Max", g.op("Min", up, high, name="up_below"), low, name="up_clamped")
        open_ = g.op("Sigmoid", self.parts.times(gate, self.router.alpha, "alpha"), name="sigmoid")
        shifted = g.op("Add", up, g.scalar("one", 1.0), name="up_plus_one")
        return g.op("Mul", shifted, g.op("Mul", gate, open_, name="glu"), name="gated")

    def _mixed(
        self, outputs: tuple[ir.Value, ...], places: tuple[ir.Value, ...], weights: ir.Value, chosen: ir.Value
    ) -> ir.Value:
        """The sum over each token's experts, weighted, [N,D]."""
        g, width = self.graph, self.parts.decoder.hidden_size
        found = g.op("Concat", *outputs, name="found", axis=0)
        order = g.op("Concat", *places, name="order", axis=0)
        count = g.op("Shape", chosen, name="num_places")
        _, back = g.ops("TopK", order, count, outputs=["sorted", "back"], name="sort", axis=0, largest=0)
        by_place = g.op("Gather", found, back, name="by_place")
        by_token = g.op("Reshape", by_place, g.ints(-1, self.router.chosen, width), name="by_token")
        weighted = g.op("Mul", by_token, g.op("Unsqueeze", weights, g.ints(-1), name="weight_column"), name="weighted")
        return g.op("ReduceSum", weighted, g.ints(1), name="mixed", keepdims=0)

    def _shared(self, hidden: ir.Value) -> ir.Value:
        """The expert of every token."""
        g, name = self.graph, str(self.experts.shared)
        with g.scope(name):
            found = self.parts.mlp(hidden)
        if not self.experts.shared_gate:
            return found
        gate = g.op("Sigmoid", self.parts.exact_linear(f"{name}_gate", hidden, 1), name=f"{name}_weight")
        return g.op("Mul", found, gate, name=f"{name}_weighted")

    # -- where their matrices lie

    def _name_matrices(self) -> None:
        """Give each expert's matrices names, where a checkpoint holds all of them in one tensor."""
        stacked = self.graph.path("experts.gate_up_proj")
        if stacked not in self.parts.weights:
            return
        entry = self.parts.weights.entry
        turns = self.experts.layout == "interleaved"
        height = entry(stacked).shape[-1 if turns else 1]
        gate = {"step": 2} if turns else {"stop": height // 2}
        up = {"start": 1, "step": 2} if turns else {"start": height // 2}
        self._take("gate_up_proj", {"gate_proj": gate, "up_proj": up}, transposed=turns)
        self._take("down_proj", {"down_proj": {}}, transposed=turns)

    def _take(self, source: str, parts: dict[str, dict[str, int]], *, transposed: bool) -> None:
        path, weights = self.graph.path, self.parts.weights
        for kind, tensor in (("weight", path(f"experts.{source}")), ("bias", path(f"experts.{source}_bias"))):
            if tensor in weights:
                weights.take(
                    tensor,
                    {
                        path(f"experts.{index}.{name}.{kind}"): Part(
                            index, transposed=transposed and kind == "weight", **rows
                        )
                        for index in range(self.router.num_experts)
                        for name, rows in parts.items()
                    },
                )

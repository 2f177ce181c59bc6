"""Exceptions for model types whose input is time series, trajectories or molecules."""

from __future__ import annotations

import torch

from lxt.coverage.exceptions import Tweak

_FORECAST = Tweak(
    "has no default for how far it looks ahead, and wants features of the time",
    init={"prediction_length": 4, "context_length": 16, "num_time_features": 1},
    kwargs={
        "past_time_features": lambda m: m.floats(m.size.batch, 16 + 7, 1),
        "past_observed_mask": lambda m: m.ones(m.size.batch, 16 + 7).to(m.model.dtype),
        "future_values": lambda m: m.floats(m.size.batch, 4),
        "future_time_features": lambda m: m.floats(m.size.batch, 4, 1),
    },
)

TWEAKS: dict[str, Tweak] = {
    **dict.fromkeys(("time_series_transformer", "informer", "autoformer"), _FORECAST),
    "timesfm2_5": Tweak(
        "its default reads 16384 steps, and predicts 1024",
        config={"context_length": 128, "horizon_length": 32, "output_quantile_len": 64},
    ),
    "decision_transformer": Tweak(
        "reads a trajectory: states, actions and returns to go",
        leaves={
            "states": lambda m: (m.size.batch, m.size.tokens, m.config.state_dim),
            "actions": lambda m: (m.size.batch, m.size.tokens, m.config.act_dim),
            "returns_to_go": lambda m: (m.size.batch, m.size.tokens, 1),
        },
        kwargs={
            "timesteps": lambda m: torch.arange(m.size.tokens).expand(m.size.batch, -1),
            "rewards": None,
        },
    ),
}

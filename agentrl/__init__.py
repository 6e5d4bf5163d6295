"""Train LLM agents by reinforcement learning in multi-turn environments, reusing every rollout safely."""

__version__ = "0.1.0"

"""`evaluate --policy api`: from the words of a command line to a server."""

import argparse

from agentrl.api_policy.api_player import ApiPolicy
from agentrl.api_policy.meter import Budget
from agentrl.errors import UserError


def api_policy_from(options: argparse.Namespace) -> ApiPolicy | None:
    """The server that the options name; None with another policy.

    Raises:
        UserError: one is missing, or belongs to this policy and it is not asked for.
    """
    if options.policy != "api":
        for option in ("endpoint", "api_model"):
            if getattr(options, option) is not None:
                raise UserError(f"--{option.removeprefix('api_')} belongs to --policy api. Add that.")
        return None
    if options.endpoint is None or options.api_model is None:
        raise UserError("--policy api needs a server: give --endpoint URL and --model NAME.")
    if not isinstance(options.extra_body, dict):
        raise UserError("--extra-body must be a JSON object, such as '{\"top_k\": 20}'.")
    limits = Budget(options.price_prompt, options.price_completion, options.max_tokens_total, options.max_cost)
    return ApiPolicy(
        options.endpoint, options.api_model, options.key_variable, options.timeout_s, options.retries,
        options.extra_body, limits,
    )  # fmt: skip

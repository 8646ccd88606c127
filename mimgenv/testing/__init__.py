"""The conformance kit: what an environment, a tool, a reward and a task type must keep, for people who write one.

Each check plays or calls what it is given, and raises an `AssertionError` that states the rule that is broken.
"""

from mimgenv.testing.env_contract import check_env_contract
from mimgenv.testing.reward_contract import check_reward
from mimgenv.testing.task_contract import check_task_type
from mimgenv.testing.tool_contract import check_tool

__all__ = ["check_env_contract", "check_reward", "check_task_type", "check_tool"]

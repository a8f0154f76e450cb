"""The 85 black-box cases of the gateway's specification (its section 11), for both modes of the front."""

from support.openai_cases.answers import ANSWERS
from support.openai_cases.case import Case, Otherwise, Says, Seen
from support.openai_cases.requests import REQUESTS
from support.openai_cases.routing import ROUTING

CASES: tuple[Case, ...] = (*REQUESTS, *ANSWERS, *ROUTING)
"""All of them, in the order of their numbers."""

__all__ = ["CASES", "Case", "Otherwise", "Says", "Seen"]

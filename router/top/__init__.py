"""`python -m router top`: the live state of a router in a terminal. A client of docs/api.md; no part of the router process."""

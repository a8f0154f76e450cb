"""What the keys do, in words."""

from typing import Final

from router.top.spans import Line, Role, Span


def _line(*pairs: str) -> Line:
    """Keys and words that explain them."""
    line: Line = []
    for pair in pairs:
        keys, _, words = pair.partition(" ")
        line += [Span(keys, Role.CHOSEN), Span(f" {words} ", Role.LABEL)]
    return line


KEYS: Final = _line(
    "1-5 table", "↑↓←→ move", "s/S sort", "r turn", "/ filter", "p pause", "⏎ detail", "? help", "q quit"
)
KEYS_OF_A_PAGE: Final = _line("↑↓←→ scroll", "e explain again", "esc back", "ctrl+c quit")

HELP: Final = """\
Keys

  1 2 3 4 5    workers, clusters, targets, requests, flows
               tab, shift+tab: the next one, the one before
  up down      another row; also k j, page up, page down, home, end
  left right   other columns, if not all fit; also h l
  s S          sort by the next column, by the one before; also > <
               or click a title
  r            sort the other way round
  /            filter, while you type: all words have to be in a row
                 silent         in any column, in any case
                 state:silent   in this column: names as for --sort
                 -tenant-a      rows without it
  escape       no filter
  p, space     pause: what is shown stays as it is; again: go on
  enter        all of the row, and what `explain` says about it:
               candidates, scores, exclusions, choice
  q, ctrl+c    quit

Columns

  RTT ms       round trip of the last health probe
  Queue, Run, Tok/s, KV, In tok/s   as the worker reports them
  Free         requests that its tunnel takes now without a wait
  InFl         requests of this router on it now
  Refus        its answers with 429 or 503, since the router started
  Fail         no answer, or another status of 500 or more
  First ms     from the request's head to the first byte of the answer
  End          how it ended; after the colon why the router refused it

docs/api.md describes every figure.
"""

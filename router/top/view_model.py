"""What `top` shows, without a terminal: the latest state or a frozen one, the chosen table, the filter, the connection."""

from collections.abc import Sequence

from router.operators.live_document import Live
from router.top.figures import duration
from router.top.live_state import merged
from router.top.overview import overview
from router.top.printable import printable
from router.top.spans import Line, Role, Span
from router.top.table_view import TableView
from router.top.tables import REQUESTS, TABLES, Table


class ViewModel:
    """The state of one screen. Times are seconds of any steady clock."""

    def __init__(self, live: Live, address: str, now: float) -> None:
        self.address = address
        self.words = ""
        """The filter, of all tables."""
        self.views = [TableView(table) for table in TABLES]
        self.active = 0
        self.preview = TableView(REQUESTS)
        """The last requests, below the chosen table of a tall terminal."""
        self._live = live
        self._frozen: Live | None = None
        self._frozen_at = now
        self._heard = now
        self._trouble: str | None = None
        self._update()

    @property
    def view(self) -> TableView:
        """The chosen table."""
        return self.views[self.active]

    @property
    def shown(self) -> Live:
        """The state that is shown."""
        return self._live if self._frozen is None else self._frozen

    @property
    def paused(self) -> bool:
        """Whether a frozen state is shown."""
        return self._frozen is not None

    def on_full(self, live: Live, now: float) -> None:
        """The router, perhaps a new one, has sent all of its state."""
        self._take(live, now)

    def on_update(self, update: Live, now: float) -> None:
        """The router has sent what is new."""
        self._take(merged(self._live, update), now)

    def on_trouble(self, reason: str) -> None:
        """There is no connection, or no use of it."""
        self._trouble = reason

    def pause_or_go_on(self, now: float) -> None:
        """Freeze what is shown, or show the latest state again."""
        self._frozen = self._live if self._frozen is None else None
        self._frozen_at = now
        self._update()

    def filter(self, words: str) -> None:
        """Show rows that match (`ordering.filtered`)."""
        self.words = words
        self._update()

    def choose(self, table: Table) -> None:
        """Show another table."""
        self.active = TABLES.index(table)

    def choose_next(self, step: int) -> None:
        """Show the next table, or the one before."""
        self.active = (self.active + step) % len(TABLES)

    def overview(self, width: int, now: float) -> list[Line]:
        """The lines above the tables."""
        return [*overview(self.shown, width), self._connection(now)]

    def tabs(self) -> Line:
        """The names of the tables with their keys and numbers of rows, and what is special: filter, pause."""
        line: Line = []
        for index, view in enumerate(self.views):
            size = str(view.total) if len(view.rows) == view.total else f"{len(view.rows)}/{view.total}"
            role = Role.CHOSEN if index == self.active else Role.LABEL
            text = f"{index + 1} {view.table.title} {size}"
            line += [Span(f"[{text}]" if index == self.active else f" {text} ", role)]
        return line

    # -----------------------------------------------------------------------------------------------------------------

    def _take(self, live: Live, now: float) -> None:
        self._live, self._heard, self._trouble = live, now, None
        if self._frozen is None:
            self._update()

    def _update(self) -> None:
        views: Sequence[TableView] = [*self.views, self.preview]
        for view in views:
            view.update(self.shown, self.words)

    def _connection(self, now: float) -> Line:
        line: Line = [Span(printable(self.address), Role.LABEL)]
        if self._trouble is not None:
            # The reason needs the space of the address.
            text = f"NO CONNECTION {duration(now - self._heard)}, trying again: {printable(self._trouble)}"
            line = [Span(text, Role.BAD)]
        if self._frozen is not None:
            line.append(Span(f"  PAUSED {duration(now - self._frozen_at)} ago; p goes on", Role.WARNING))
        if self.words:
            line.append(Span(f"  filter: {printable(self.words)}", Role.WARNING))
        return line

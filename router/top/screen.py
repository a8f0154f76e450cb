"""The screen: Textual draws the lines of the model, and gives it keys, sizes and events of the router."""

import asyncio
import signal
import time
from collections.abc import Callable
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input

from router.operators.live_document import Live
from router.top.client import RouterClient, RouterError
from router.top.detail import Question, explanation, fields, outcome, question
from router.top.keys import HELP, KEYS, KEYS_OF_A_PAGE
from router.top.lines_view import LinesView
from router.top.spans import Line, Role, Span
from router.top.tables import REQUESTS, TABLES
from router.top.view_model import ViewModel

_STYLES: Final = {
    Role.PLAIN: Style(),
    Role.LABEL: Style(dim=True),
    Role.GOOD: Style(color="green"),
    Role.WARNING: Style(color="yellow", bold=True),
    Role.BAD: Style(color="red", bold=True),
    Role.HEADER: Style(bold=True, underline=True),
    Role.SORTED: Style(bold=True, underline=True, color="cyan"),
    Role.CHOSEN: Style(bold=True, color="cyan"),
    Role.CURSOR: Style(reverse=True),
}
_TALL: Final = 40
"""Lines of a terminal from which on the last requests are shown below the chosen table."""

_SHORT_PAUSE_S, _LONG_PAUSE_S = 0.5, 4.0
"""Pauses between attempts to reach a router that does not answer."""


def _bindings(*pairs: tuple[str, str]) -> list[BindingType]:
    """Keys and actions, in the order in which they are typed: without priority, keys that are typed at once overtake an action."""
    return [Binding(keys, action, priority=True) for keys, action in pairs]


class Block(Widget, can_focus=False):
    """Lines that somebody makes for the size that there is."""

    def __init__(self, make: Callable[[int, int], list[Line]], identifier: str) -> None:
        super().__init__(id=identifier)
        self._make = make
        self._lines: list[Line] | None = None

    def renew(self) -> None:
        """Make the lines again."""
        self._lines = None
        self.refresh()

    def on_resize(self) -> None:
        """The size is another one."""
        self.renew()

    def render_line(self, y: int) -> Strip:
        """One line, as Textual asks for it."""
        if self._lines is None:
            self._lines = self._make(self.size.width, self.size.height)
        line = self._lines[y] if y < len(self._lines) else []
        segments = [Segment(span.text, _STYLES[span.role]) for span in line]
        return Strip(segments).adjust_cell_length(self.size.width, Style())


class Page(ModalScreen[None]):
    """Details of a row, or help, over the tables."""

    BINDINGS: ClassVar[list[BindingType]] = _bindings(
        ("escape,q,enter,backspace", "dismiss"),
        ("ctrl+c", "app.quit"),
        ("down,j", "scroll(1,0)"),
        ("up,k", "scroll(-1,0)"),
        ("right,l", "scroll(0,8)"),
        ("left,h", "scroll(0,-8)"),
        ("pagedown,space", "page(1)"),
        ("pageup", "page(-1)"),
        ("home,g", "scroll(-1000000,0)"),
        ("end,G", "scroll(1000000,0)"),
        ("e", "explain"),
    )
    CSS = "Page { background: ansi_default; layout: vertical; } #text { height: 1fr; } #page_keys { height: 1; }"

    def __init__(self, lines: list[Line], ask: Question | None = None, client: RouterClient | None = None) -> None:
        """`ask` is asked of `client`: the answer is shown before and after `lines`."""
        super().__init__()
        self._fixed = lines
        self._view = LinesView(lines)
        self._question = ask
        self._client = client

    def compose(self) -> ComposeResult:
        """The text, and its keys."""
        yield Block(lambda _width, height: self._view.window(height), "text")
        yield Block(lambda _width, _height: [KEYS_OF_A_PAGE], "page_keys")

    def on_mount(self) -> None:
        """Ask for an explanation at once."""
        self.action_explain()

    def action_scroll(self, down: int, right: int) -> None:
        """Show another part."""
        self._view.scroll(down, right)
        self.query_one("#text", Block).renew()

    def action_page(self, down: int) -> None:
        """Show another page."""
        self._view.scroll_pages(down)
        self.query_one("#text", Block).renew()

    def action_explain(self) -> None:
        """Ask the router again."""
        if self._question is not None and self._client is not None:
            self._show([[Span("asking the router…", Role.LABEL)]], [])
            self.run_worker(self._ask(self._question, self._client), exclusive=True)

    async def _ask(self, asked: Question, client: RouterClient) -> None:
        try:
            answer = explanation(await client.explain(asked.query))
            self._show([outcome(answer)], answer)
        except RouterError as error:
            self._show([[Span(f"no explanation: {error}", Role.BAD)]], [])

    def _show(self, short: list[Line], answer: list[Line]) -> None:
        """First what is chosen, then the row, then all of the explanation."""
        if self._question is not None:
            title: Line = [Span(f"{self._question.about} (explain):", Role.HEADER)]
            whole: list[Line] = [[], [Span("All of the explanation:", Role.HEADER)], *answer] if answer else []
            self._view.lines = [title, *short, [], *self._fixed, *whole]
            self.query_one("#text", Block).renew()


class TopApp(App[None]):
    """The program."""

    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    CSS = """
    Screen { background: ansi_default; layout: vertical; }
    #overview { height: 5; }
    #tabs { height: 1; }
    #table { height: 1fr; }
    #preview_title { height: 1; }
    #preview { height: 1fr; }
    #keys { height: 1; }
    Input { height: 1; border: none; padding: 0; background: ansi_default; color: ansi_default; }
    Input:focus { border: none; }
    .hidden { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = _bindings(
        ("q", "leave"),
        ("ctrl+c", "quit"),
        *((str(number + 1), f"table({number})") for number in range(len(TABLES))),
        ("tab", "next_table(1)"),
        ("shift+tab", "next_table(-1)"),
        ("down,j", "move(1)"),
        ("up,k", "move(-1)"),
        ("pagedown", "page(1)"),
        ("pageup", "page(-1)"),
        ("home,g", "move(-1000000)"),
        ("end,G", "move(1000000)"),
        ("right,l", "columns(1)"),
        ("left,h", "columns(-1)"),
        ("s,greater_than_sign", "sort(1)"),
        ("S,less_than_sign", "sort(-1)"),
        ("r", "reverse"),
        ("p,space", "pause"),
        ("slash,f", "filter"),
        ("escape", "no_filter"),
        ("enter", "keep_filter"),
        ("enter", "detail"),
        ("question_mark", "help"),
    )

    def __init__(self, client: RouterClient, live: Live, address: str) -> None:
        super().__init__(ansi_color=True)
        self.model = ViewModel(live, address, time.monotonic())
        self._client = client
        self._height = 0
        self._table_height: int | None = None
        self._edits = False

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        model = self.model
        yield Block(lambda width, _height: model.overview(width, time.monotonic()), "overview")
        yield Block(lambda _width, _height: [model.tabs()], "tabs")
        yield Block(lambda width, height: model.view.lines(width, height), "table")
        yield Block(lambda _width, _height: [[Span("Last requests", Role.LABEL)]], "preview_title")
        yield Block(lambda width, height: model.preview.lines(width, height, with_cursor=False), "preview")
        yield Input(placeholder="filter: words, column:word, -word; enter keeps it, escape clears it")
        yield Block(lambda _width, _height: [KEYS], "keys")

    def on_mount(self) -> None:
        """Follow the router; a signal ends the program in order."""
        self.query_one(Input).display = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.exit)
        self._arrange()
        self.run_worker(self._follow(), exit_on_error=True)
        self.set_interval(1.0, self._renew_overview)

    def on_resize(self, event: events.Resize) -> None:
        """The terminal has another size."""
        self._height = event.size.height
        self._arrange()

    # Keys ------------------------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Over the tables there are other keys, and an input line takes almost all of them."""
        if action == "quit":
            return True
        if len(self.screen_stack) > 1:
            return False
        if self._edits:
            return action in {"keep_filter", "no_filter"}
        return action != "keep_filter"

    async def action_leave(self) -> None:
        """End."""
        self.exit()

    def action_table(self, number: int) -> None:
        """Show this table."""
        self.model.choose(TABLES[number])
        self._arrange()

    def action_next_table(self, step: int) -> None:
        """Show the next table, or the one before."""
        self.model.choose_next(step)
        self._arrange()

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self.model.view.move(by)
        self._renew_table()

    def action_page(self, by: int) -> None:
        """Move the cursor by what is in view."""
        self.action_move(by * max(1, self.query_one("#table", Block).size.height - 2))

    def action_columns(self, by: int) -> None:
        """Show other columns."""
        self.model.view.show_columns(by)
        self._renew_table()

    def action_sort(self, step: int) -> None:
        """Sort by another column."""
        view = self.model.view
        view.sort(view.order.next(view.table, step))
        self._renew_table()

    def action_reverse(self) -> None:
        """Sort the other way round."""
        self.model.view.sort(self.model.view.order.reversed())
        self._renew_table()

    def action_pause(self) -> None:
        """Freeze, or go on."""
        self.model.pause_or_go_on(time.monotonic())
        self._renew()

    def action_filter(self) -> None:
        """Ask for the filter."""
        self._edits = True
        given = self.query_one(Input)
        given.value = self.model.words
        given.display = True
        self.screen.set_focus(given)

    def action_keep_filter(self) -> None:
        """Show rows that match what was typed."""
        self._end_filter(self.query_one(Input).value)

    def action_no_filter(self) -> None:
        """Show all rows."""
        self._end_filter("")

    def action_detail(self) -> None:
        """Show all of the row at the cursor, and its explanation."""
        view = self.model.view
        row = view.chosen
        if row is not None:
            title: Line = [Span(f"{view.table.title}: one row (docs/api.md has the names)", Role.HEADER)]
            asked = question(view.table, row, self.model.shown)
            self.push_screen(Page([title, *fields(row)], asked, self._client))

    def action_help(self) -> None:
        """Show what the keys do."""
        self.push_screen(Page([[Span(line)] for line in HELP.splitlines()]))

    def on_input_changed(self, event: Input.Changed) -> None:
        """The filter counts while it is typed."""
        if self._edits:
            self.model.filter(event.value)
            self._renew()

    def on_click(self, event: events.Click) -> None:
        """A click on a header sorts, on a row moves the cursor there."""
        table = self.query_one("#table", Block)
        if event.widget is not table:
            return
        view = self.model.view
        column = view.column_at(event.x, table.size.width) if event.y == 0 else None
        if column is not None:
            chosen = view.order.reversed() if view.order.column == column.name else view.order.by(column)
            view.sort(chosen)
        else:
            view.move_to_line(event.y - 1)
        self._renew_table()

    # -----------------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        pause = _SHORT_PAUSE_S
        while True:
            reason = "the router has ended the stream"
            try:
                async for name, live in self._client.events():
                    pause = _SHORT_PAUSE_S
                    (self.model.on_full if name == "full" else self.model.on_update)(live, time.monotonic())
                    self._renew()
            except RouterError as error:
                reason = str(error)
            self.model.on_trouble(reason)
            self._renew_overview()
            await asyncio.sleep(pause)
            pause = min(_LONG_PAUSE_S, pause * 2)

    def _end_filter(self, words: str) -> None:
        self._edits = False
        given = self.query_one(Input)
        given.display = False
        self.screen.set_focus(None)
        self.model.filter(words)
        self._renew()

    def _arrange(self) -> None:
        """Show the last requests below the table if there is space, and the table is not that of the requests."""
        both = self._both()
        for name in ("#preview_title", "#preview"):
            self.screen_stack[0].query_one(name).set_class(not both, "hidden")
        self._renew()

    def _both(self) -> bool:
        return self._height >= _TALL and self.model.view.table is not REQUESTS

    def _renew(self) -> None:
        # Of two tables the upper one gets the lines that it needs, at most half of them.
        height = min(len(self.model.view.rows) + 2, self._height // 2 - 4) if self._both() else None
        if height != self._table_height:
            self._table_height = height
            self.screen_stack[0].query_one("#table").styles.height = "1fr" if height is None else max(4, height)
        for block in self.screen_stack[0].query(Block):
            block.renew()

    def _renew_table(self) -> None:
        for name in ("#table", "#tabs"):
            self.query_one(name, Block).renew()

    def _renew_overview(self) -> None:
        self.screen_stack[0].query_one("#overview", Block).renew()

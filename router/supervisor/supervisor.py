"""Starts the processes of a router, starts those again that end, tells each what it needs to know, and drains them all."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence

import structlog

from router.process.supervision import Listen, Serving, Siblings
from router.supervisor.plan import ProcessPlan
from router.supervisor.restarts import RestartPolicy
from router.supervisor.router_process import RouterProcess
from router.supervisor.scrape import NoPageError

_log = structlog.get_logger()

SILENT_S = 30.0
"""Seconds without a message after which a process counts as hung, and is killed; it sends one each second."""

LAST_STEPS_S = 2.0
"""Seconds that processes may take to end after the drain time, before they are killed."""

Launch = Callable[[ProcessPlan], Awaitable[RouterProcess]]


class FirstStartError(Exception):
    """A process ended before all were serving for the first time; it has told the reason itself."""

    def __init__(self, stargate_id: str, code: int) -> None:
        super().__init__(f"process {stargate_id} ended with {code} before the router was started")
        self.stargate_id = stargate_id
        self.code = code


class Slot:
    """The place of one process: its plan, and the process that runs now."""

    def __init__(self, plan: ProcessPlan) -> None:
        self.plan = plan
        self.restarts = RestartPolicy()
        self.process: RouterProcess | None = None
        """None between an end and the next start."""
        self.told_siblings: list[object] | None = None
        self.told_listen: bool | None = None

    @property
    def serving(self) -> RouterProcess | None:
        """The process, if it serves."""
        return self.process if self.process is not None and self.process.serving is not None else None


class Supervisor:
    """Keeps one process in each slot."""

    def __init__(
        self,
        plans: Sequence[ProcessPlan],
        launch: Launch,
        *,
        on_ended: Callable[[Slot], None],
        on_serving: Callable[[], None],
    ) -> None:
        """`on_ended`: the process of this slot has ended. `on_serving`: after the start another process serves."""
        self.slots = [Slot(plan) for plan in plans]
        self._launch = launch
        self._on_ended = on_ended
        self._on_serving = on_serving
        self._keepers: list[asyncio.Task[int]] = []
        self._changed = asyncio.Event()
        self._failure: FirstStartError | None = None
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Set if a slot is not kept any more, because of a defect here: the router has to end."""
        self._started = False
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Start the first process, and the others when it serves: what is wrong for all is told once.

        Returns when all serve and the shared ports are open. Raises `FirstStartError`, `OSError`.
        """
        for slots in (self.slots[:1], self.slots[1:]):
            for slot in slots:
                keeper = asyncio.create_task(self._keep(slot), name=slot.plan.stargate_id)
                keeper.add_done_callback(self._on_keeper_ended)
                self._keepers.append(keeper)
            await self._until(lambda: all(slot.serving for slot in self.slots[: len(self._keepers)]))
        await self._until(lambda: all(slot.told_listen == self._listening(slot) for slot in self.slots))
        self._started = True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes."""
        for slot in self.slots:
            if slot.process is not None:
                slot.process.signal(number)

    def end_silent(self) -> None:
        """Kill processes whose event loop does not run any more; call it about once a second."""
        now = asyncio.get_running_loop().time()
        for slot in self.slots:
            process = slot.serving
            if process is not None and now - process.last_message_at > SILENT_S and not self._stopping.is_set():
                _log.error("a process does not answer; it is killed", router=slot.plan.stargate_id, pid=process.pid)
                process.signal(signal.SIGKILL)

    async def drain(self, timeout_s: float) -> bool:
        """End all processes; those that take longer than `timeout_s` seconds are killed. True if all ended in order."""
        self._stopping.set()
        self.signal(signal.SIGTERM)
        if not self._keepers:
            return True
        _, late = await asyncio.wait(self._keepers, timeout=timeout_s + LAST_STEPS_S)
        if late:
            self.signal(signal.SIGKILL)
            await asyncio.wait(late)
        return not any(keeper.exception() or keeper.result() for keeper in self._keepers)

    # --- one slot ----------------------------------------------------------------------------------------------------

    async def _keep(self, slot: Slot) -> int:
        """Keep a process running until the drain; returns the exit code of the last, 0 if none ran at the drain."""
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            code, served_s = await self._run(slot), 0.0
            process, slot.process = slot.process, None
            if process is not None and process.serving is not None:
                served_s = loop.time() - process.serving_since
                self._on_ended(slot)
            if self._stopping.is_set():
                # Before it has its handlers, a process ends by the signal itself: nothing had begun.
                return 0 if code == -signal.SIGTERM and not served_s else code
            if not self._started and self._failure is None:
                self._failure = FirstStartError(slot.plan.stargate_id, code)
                self._changed.set()
                return code
            pause_s = slot.restarts.pause_s(served_s)
            _log.error(
                "a process of the router ended; it is started again",
                router=slot.plan.stargate_id,
                exit_code=code,
                restarts=slot.restarts.restarts,
                pause_s=pause_s,
            )
            self._update()
            try:
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            except TimeoutError:
                continue
        return 0

    def _on_keeper_ended(self, keeper: asyncio.Task[int]) -> None:
        error = None if keeper.cancelled() else keeper.exception()
        if error is not None and not self.failed.done():
            _log.error("a process of the router is not followed any more", router=keeper.get_name(), exc_info=error)
            self.failed.set_result(error)
            self._changed.set()

    async def _run(self, slot: Slot) -> int:
        slot.told_siblings = slot.told_listen = None
        try:
            process = await self._launch(slot.plan)
        except OSError as error:
            _log.error("a process could not be started", router=slot.plan.stargate_id, error=str(error))
            return 1
        slot.process = process
        if self._stopping.is_set():
            process.signal(signal.SIGTERM)
        _log.info("process started", router=slot.plan.stargate_id, pid=process.pid)
        served = False

        def on_change() -> None:
            nonlocal served
            self._update()
            if self._started and not served and slot.told_listen == process.listening:
                served = True
                self._on_serving()

        return await process.run(on_change)

    # --- all together ------------------------------------------------------------------------------------------------

    def _update(self) -> None:
        """Tell each process its siblings, and whether to have the shared ports open."""
        serving = [(slot, slot.process) for slot in self.slots if slot.process is not None and slot.serving]
        if not self._stopping.is_set():
            wanted = listeners([process.ready for _, process in serving])
            for (slot, process), listen in zip(serving, wanted, strict=True):
                siblings = [
                    other.serving.replica for _, other in serving if other is not process and other.serving is not None
                ]
                if siblings != slot.told_siblings:
                    slot.told_siblings = list(siblings)
                    process.send(Siblings(siblings))
                if listen != slot.told_listen:
                    slot.told_listen = listen
                    process.send(Listen(listen))
        self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._failure is not None:
                raise self._failure
            if self.failed.done():
                raise self.failed.result()
            await self._changed.wait()
            self._changed.clear()

    @staticmethod
    def _listening(slot: Slot) -> bool:
        return slot.process is not None and slot.process.listening


def listeners(ready: Sequence[bool]) -> list[bool]:
    """Which processes have the shared ports open: those that are ready, and if none is, all.

    Then each answers as the only process of a router would: `/readyz` with 503, `/healthz` with 200.
    """
    return list(ready) if any(ready) else [True] * len(ready)


def addresses_of(serving: Serving | None) -> dict[str, str]:
    """The addresses of a process; none before it serves."""
    return {} if serving is None else serving.addresses


def metrics_address(slot: Slot) -> str:
    """Where the operators' port of the process in `slot` is. Raises `NoPageError` if it does not serve now."""
    process = slot.serving
    if process is None:
        raise NoPageError("the process does not serve now")
    return addresses_of(process.serving)["metrics"]

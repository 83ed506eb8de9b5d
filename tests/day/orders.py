"""What is ordered of the host during the day, and what must have come of it."""

import asyncio
import random
from typing import Final

from leasehold.events.answers import Answer
from leasehold.events.capabilities import NewDevice, NewMdev, NewVport
from leasehold.events.errors import OutcomeUnknownError, UnavailableError
from leasehold.events.inputs import CreateDeviceRequest, DestroyDeviceRequest
from leasehold.services.asking import create_device_request, destroy_device_request
from leasehold.services.client import Client
from tests.bench.cluster import HOST
from tests.creator.kernel import OTHER_TYPE, TYPE
from tests.day.load import Said
from tests.day.oracle import RawLog

WORKERS: Final = 3
PAUSE_S: Final = 0.1
"""After a refusal: the host may be out of date for a moment."""
GPU: Final = "pci_0000_00_06_0"


class Orders:
    """Workers that have devices made and taken away, one after the other."""

    def __init__(self, client: Client, seed: int) -> None:
        """`client` must be an operator's; it stays its owner's."""
        self.said: list[Said] = []
        self._client = client
        self._rng = random.Random(f"{seed} orders")
        self._stopping = False

    async def run(self) -> None:
        """Order until `stop`; every order that was given is over in the end."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WORKERS):
                tasks.create_task(self._work())

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping = True

    async def _work(self) -> None:
        made = ""
        while not self._stopping:
            if made:
                answer = await self._ask(destroy_device_request(made, host=HOST))
                made = "" if answer.state == "done" else made
            else:
                answer = await self._ask(create_device_request(self._new(), host=HOST))
                made = answer.devices[0] if answer.state == "done" else ""
            if answer.outcome == "refused":
                await asyncio.sleep(PAUSE_S)

    def _new(self) -> NewDevice:
        if self._rng.random() < 0.3:
            return NewVport()
        return NewMdev(parent=GPU, mdev_type=self._rng.choice((TYPE, OTHER_TYPE)))

    async def _ask(self, request: CreateDeviceRequest | DestroyDeviceRequest) -> Answer:
        """Ask under one id until it is over."""
        while True:
            try:
                answer = await self._client.answer_to(request)
            except (UnavailableError, OutcomeUnknownError):
                continue
            if answer.state != "waiting":
                self.said.append(Said(self._client.principal, request, answer))
                return answer
            await asyncio.sleep(PAUSE_S)

    def check(self, log: RawLog, there: set[str]) -> list[str]:
        """What was told and is not in the log, or did not come of it; `there`: keys of what was made and is there."""
        problems = [f"order {order} is not over" for order, row in log.orders.items() if not row.ends]
        for said in self.said:
            request_id, answer = str(said.request.request_id), said.answer
            effects = log.effects.get((said.principal, request_id), [])
            given = [each.position for each in effects if each.type == "host_ordered"]
            if given != ([answer.order] if answer.outcome == "ordered" else []):
                problems.append(f"{request_id} was told order {answer.order}; the log has it at {given}")
            elif given:
                ends = [end["type"] for end in log.orders[given[0]].ends]
                if (answer.state == "done") != any(end.startswith("order_carried_out") for end in ends):
                    problems.append(f"order {given[0]} was told to be {answer.state}, and ended as {ends}")
        left: set[str] = set()
        for row in log.orders.values():
            keys = {end["device"] for end in row.ends if end["type"].startswith("order_carried_out")}
            left = left | keys if row.what["type"].startswith("create") else left - keys
        if left != there:
            problems.append(f"by the orders there are {sorted(left)}; on the host there are {sorted(there)}")
        return problems

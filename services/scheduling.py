"""What schedulers and operators may ask for: the part of the client about queue, classes, quotas, devices and hosts."""

from collections.abc import Iterable

import msgspec

from leasehold.events import codec
from leasehold.events.answers import Answer
from leasehold.events.inputs import Request
from leasehold.events.questions import (
    Consider,
    ListClasses,
    ListQueue,
    ListQuotas,
    ListTaints,
    Question,
    Reading,
)
from leasehold.events.schedule_views import ClassView, QueuedView, QuotaView, TaintView
from leasehold.events.scheduling import Constraint, Need
from leasehold.events.views import DeviceView
from leasehold.services import asking, schedule_asking
from leasehold.services.keeping import Keeper


class Scheduling:
    """Asks whoever `ask` and `question` reach. Every method raises as these do."""

    async def ask(self, request: Request) -> Answer:
        """The answer to any request, which is no refusal."""
        raise NotImplementedError

    async def question(self, verb: str, question: Question) -> Reading:
        """The answer to any question, which is `ok`."""
        raise NotImplementedError

    # --- trying without doing ---------------------------------------------------------------------------------------

    async def consider(self, request: Request) -> Reading:
        """How any request would be decided now; nothing is done. `answer` may be a refusal; `broken` are the living
        leases that would end by it, or be given notice.
        """
        question = Consider(verb=codec.verb_of(request), request=msgspec.Raw(codec.encode(request)))
        return await self.question("consider", question)

    # --- the queue --------------------------------------------------------------------------------------------------

    async def queue(self, *, tenant: str = "", device_class: str = "") -> list[QueuedView]:
        """Who waits, first who comes first: all, of one tenant, or for one class."""
        rows: list[QueuedView] = []
        question = ListQueue(tenant=tenant, device_class=device_class)
        while True:
            reading = await self.question("list_queue", question)
            rows += reading.queue
            if not reading.more or not reading.queue:
                return rows
            question = msgspec.structs.replace(question, after=rows[-1].queued)

    async def withdraw(self, queued: int, reason: str = "", *, request_id: str | None = None) -> Answer:
        """Take a waiting request back."""
        return await self.ask(schedule_asking.withdraw_request(queued, reason, request_id=request_id))

    # --- keeping and handing on -------------------------------------------------------------------------------------

    def keeper(self) -> Keeper:
        """Keeps many leases, to be entered with `async with`: they are renewed together."""
        return Keeper(self)

    async def renew_many(self, leases: Iterable[tuple[int, int]], *, request_id: str | None = None) -> Answer:
        """Keep many leases, each (id, token) for as long as it was granted: `leases` were, `not_renewed` were not."""
        return await self.ask(schedule_asking.renew_many_request(leases, request_id=request_id))

    async def transfer(
        self, lease: int, token: int, holder: str, *, principal: str = "", request_id: str | None = None
    ) -> Answer:
        """Give a lease to another holder, of ours or of another principal. Its `token` is a new one: the old one opens
        nothing any more.
        """
        request = schedule_asking.transfer_request(lease, token, holder, principal=principal, request_id=request_id)
        return await self.ask(request)

    async def reserve(
        self,
        lease: int,
        token: int,
        *devices: str,
        ttl_ms: int = 600_000,
        select: str = "",
        device_class: str = "",
        count: int = 1,
        needs: Iterable[Need] = (),
        same: str | Iterable[str] = (),
        distinct: str | Iterable[str] = (),
        constraints: Iterable[Constraint] = (),
        host: str = "",
        tolerates: Iterable[str] = (),
        driver: str = "",
        request_id: str | None = None,
    ) -> Answer:
        """The first step of moving a domain with its devices: others, elsewhere, are held and prepared for it. They are
        in a lease of their own, whose token opens nothing before `switch`; who does not move releases that one.
        """
        request = schedule_asking.reserve_request(
            lease,
            token,
            devices,
            ttl_ms=ttl_ms,
            needs=asking.needs_of(select, device_class=device_class, count=count, needs=needs),
            constraints=asking.constraints_of(same, distinct, constraints),
            host=host,
            tolerates=tuple(tolerates),
            driver=driver,
            request_id=request_id,
        )
        return await self.ask(request)

    async def switch(self, lease: int, token: int, *, request_id: str | None = None) -> Answer:
        """The second step: the domain has moved. The old lease ends; the reserved one counts, with a new `token`."""
        return await self.ask(schedule_asking.switch_request(lease, token, request_id=request_id))

    # --- classes and quotas -----------------------------------------------------------------------------------------

    async def classes(self, name: str = "") -> list[ClassView]:
        """Device classes, with how many of their devices are free, or one of them."""
        rows: list[ClassView] = []
        question = ListClasses(name=name)
        while True:
            reading = await self.question("list_classes", question)
            rows += reading.classes
            if not reading.more or not reading.classes:
                return rows
            question = msgspec.structs.replace(question, after=rows[-1].name)

    async def free(self, device_class: str) -> list[DeviceView]:
        """The devices of a class that can be had now, in the order in which they would be given."""
        return (await self.question("list_classes", ListClasses(name=device_class, free=True))).devices

    async def set_class(self, name: str, select: str, *, request_id: str | None = None) -> Answer:
        """Give a selector a name; one of that name is replaced."""
        return await self.ask(schedule_asking.set_class_request(name, select, request_id=request_id))

    async def remove_class(self, name: str, *, request_id: str | None = None) -> Answer:
        """Take a class away."""
        return await self.ask(schedule_asking.remove_class_request(name, request_id=request_id))

    async def quotas(self, *, tenant: str = "") -> list[QuotaView]:
        """Quotas, and how much of each is used."""
        rows: list[QuotaView] = []
        question = ListQuotas(tenant=tenant)
        while True:
            reading = await self.question("list_quotas", question)
            rows += reading.quotas
            if not reading.more or not reading.quotas:
                return rows
            question = msgspec.structs.replace(question, after=f"{rows[-1].tenant}/{rows[-1].device_class}")

    async def set_quota(
        self, tenant: str, devices_max: int, *, device_class: str = "", request_id: str | None = None
    ) -> Answer:
        """Say how many devices, of a class or of all, a tenant may have at a time; -1 takes the quota away."""
        request = schedule_asking.set_quota_request(
            tenant, devices_max, device_class=device_class, request_id=request_id
        )
        return await self.ask(request)

    # --- what operators say of devices and hosts --------------------------------------------------------------------

    async def taints(self, *, host: str = "") -> list[TaintView]:
        """What is cordoned or tainted."""
        rows: list[TaintView] = []
        question = ListTaints(host=host)
        while True:
            reading = await self.question("list_taints", question)
            rows += reading.taints
            if not reading.more or not reading.taints:
                return rows
            last = rows[-1]
            question = msgspec.structs.replace(question, after=f"{last.target} {last.kind} {last.name}")

    async def cordon(
        self, reason: str, *, host: str = "", device: str = "", request_id: str | None = None
    ) -> Answer:
        """Let nothing more of a device, or of a host, be granted; leases stay."""
        return await self.ask(schedule_asking.cordon_request(reason, host=host, device=device, request_id=request_id))

    async def uncordon(self, *, host: str = "", device: str = "", request_id: str | None = None) -> Answer:
        """Let it be granted again."""
        return await self.ask(schedule_asking.uncordon_request(host=host, device=device, request_id=request_id))

    async def taint(
        self,
        name: str,
        reason: str,
        *,
        host: str = "",
        device: str = "",
        value: str = "",
        effect: str = "no_grant",
        notice_ms: int = 0,
        request_id: str | None = None,
    ) -> Answer:
        """Keep away from a device, or a host, who does not tolerate this; with `effect` `evict` leases that do not, end
        behind the notice.
        """
        request = schedule_asking.taint_request(
            name,
            reason,
            host=host,
            device=device,
            value=value,
            effect=effect,
            notice_ms=notice_ms,
            request_id=request_id,
        )
        return await self.ask(request)

    async def untaint(
        self, name: str, *, host: str = "", device: str = "", request_id: str | None = None
    ) -> Answer:
        """Take a taint away."""
        request = schedule_asking.untaint_request(name, host=host, device=device, request_id=request_id)
        return await self.ask(request)

    async def drain(
        self, reason: str, *, host: str = "", device: str = "", notice_ms: int = 0, request_id: str | None = None
    ) -> Answer:
        """End all leases of a device, or of a host, behind the notice, but for those that tolerate `drain`; grant no
        more of it. `consider` the same request first: it tells which leases that are.
        """
        request = schedule_asking.drain_request(
            reason, host=host, device=device, notice_ms=notice_ms, request_id=request_id
        )
        return await self.ask(request)

    async def set_policy(
        self, device: str, *, host: str = "", share_max: int = 1, clean: bool = False, request_id: str | None = None
    ) -> Answer:
        """Say how a device may be handed out: to how many at a time, and whether it must be cleaned up behind each."""
        request = schedule_asking.set_policy_request(
            device, host=host, share_max=share_max, clean=clean, request_id=request_id
        )
        return await self.ask(request)

    async def confirm_clean(
        self, device: str, reason: str, *, host: str = "", request_id: str | None = None
    ) -> Answer:
        """Say by name that a device was cleaned up behind its last lease."""
        request = schedule_asking.confirm_clean_request(device, reason, host=host, request_id=request_id)
        return await self.ask(request)

    async def heal(self, device: str, reason: str, *, host: str = "", request_id: str | None = None) -> Answer:
        """Say by name that a device which failed too often works again."""
        return await self.ask(schedule_asking.heal_request(device, reason, host=host, request_id=request_id))

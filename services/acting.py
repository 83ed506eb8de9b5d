"""What may be asked for: the half of the client that changes something."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from leasehold.events import inputs
from leasehold.events.answers import Answer
from leasehold.events.capabilities import NewDevice
from leasehold.events.inputs import GONE_MS
from leasehold.events.scheduling import Constraint, Need, Option
from leasehold.services import asking
from leasehold.services.holding import Lease, until_prepared

ORDER_PAUSE_S: Final = 0.2
"""How often it is asked how an order to a host stands."""

Ordering = inputs.CreateDeviceRequest | inputs.DestroyDeviceRequest | inputs.OperateDeviceRequest
"""What a host is to do within a time."""


class Acting:
    """Asks whoever `ask` reaches. Every method raises as that does."""

    _patience_s: float

    async def ask(self, request: inputs.Request) -> Answer:
        """The answer to any request, which is no refusal."""
        raise NotImplementedError

    # --- leases -----------------------------------------------------------------------------------------------------

    def lease(
        self,
        *devices: str,
        holder: str,
        ttl_ms: int = 60_000,
        host: str = "",
        force: bool = False,
        domain: str = "",
        gone_ms: int = GONE_MS,
        keep: bool = False,
        driver: str = "",
        unmanaged: bool = False,
        select: str = "",
        device_class: str = "",
        count: int = 1,
        every: bool = False,
        first_of: Iterable[str | Option] = (),
        needs: Iterable[Need] = (),
        same: str | Iterable[str] = (),
        distinct: str | Iterable[str] = (),
        constraints: Iterable[Constraint] = (),
        mode: str = "",
        tolerates: Iterable[str] = (),
        wait_s: float = 0,
        priority: int = 0,
        on_wait: Callable[[Answer], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        wait_prepared: bool = False,
        request_id: str | None = None,
    ) -> Lease:
        """A lease of `devices` (names, keys, addresses or paths) or of what is needed, to be entered by `async with`.

        What is needed: `count` devices (or `every` one) that match the selector `select` and are of the class
        `device_class`; or those of the first of `first_of` that can be had; and all of `needs` besides. `same`,
        `distinct`: attributes that are to be alike, or not alike, for all of them (`host`, `numa_node`, `pcie_root`).

        With `wait_s` it waits so long for its turn; `on_wait` is called with how it stands whenever that changes
        (`ahead`, `kept`, and as `refusal` why not yet). Who stops waiting takes the request back. `on_lost` is called
        once, with the reason, when the lease can be counted on no more.

        `domain`: the uuid of the domain that it is for, which need not exist yet. While that is there, the lease does
        not expire; `gone_ms` after it was seen gone, the lease ends. `keep`: the domain is only named.

        On managed hosts the devices are handed over behind the grant: to the stub `driver` (empty: the host's own
        choice), or (`unmanaged`) left on the stub that they are on. `wait_prepared`: it is entered when that is done;
        LeaseLostError if it fails, UnavailableError (and a released lease) if it takes too long.
        """
        request = asking.lease_request(
            devices,
            holder=holder,
            ttl_ms=ttl_ms,
            host=host,
            force=force,
            domain=domain,
            gone_ms=gone_ms,
            keep=keep,
            driver=driver,
            unmanaged=unmanaged,
            needs=asking.needs_of(
                select, device_class=device_class, count=count, every=every, first_of=first_of, needs=needs
            ),
            constraints=asking.constraints_of(same, distinct, constraints),
            mode=mode,
            tolerates=tuple(tolerates),
            wait_ms=round(wait_s * 1_000),
            priority=priority,
            request_id=request_id,
        )
        return Lease(self, request, wait_prepared=wait_prepared, on_wait=on_wait, on_lost=on_lost)

    async def renew(self, lease: int, token: int, *, ttl_ms: int = 0, request_id: str | None = None) -> Answer:
        """Keep a lease for `ttl_ms` from now; 0: for as long as before."""
        return await self.ask(asking.renew_request(lease, token, ttl_ms=ttl_ms, request_id=request_id))

    async def release(self, lease: int, token: int, *, request_id: str | None = None) -> Answer:
        """Give a lease back."""
        return await self.ask(asking.release_request(lease, token, request_id=request_id))

    async def revoke(self, lease: int, reason: str, *, force: bool = False, request_id: str | None = None) -> Answer:
        """Take a lease away, whoever holds it; with `force` its devices are taken even from a running domain."""
        return await self.ask(asking.revoke_request(lease, reason, force=force, request_id=request_id))

    # --- the devices of a domain ------------------------------------------------------------------------------------

    async def prepare_domain(
        self,
        domain: str,
        *,
        holder: str,
        ttl_ms: int = 60_000,
        host: str = "",
        bus: str = "",
        force: bool = False,
        gone_ms: int = GONE_MS,
        keep: bool = False,
        driver: str = "",
        unmanaged: bool = False,
        wait_prepared: bool = True,
        request_id: str | None = None,
    ) -> Answer:
        """Lease for a domain (by name, uuid, key or id) all devices that its configuration claims, of one `bus` (`pci`,
        `usb`) or of both: all or none. Those that leases hold for it already are left out.

        Before the domain is seen, the lease expires behind `ttl_ms` as any other. With `wait_prepared` the answer comes
        when managed hosts have handed over; its `state` is `living` then, or the lease has `ended`, and `message` says
        why. UnavailableError if that takes too long: the lease is granted all the same.
        """
        request = asking.prepare_request(
            domain,
            holder=holder,
            ttl_ms=ttl_ms,
            host=host,
            bus=bus,
            force=force,
            gone_ms=gone_ms,
            keep=keep,
            driver=driver,
            unmanaged=unmanaged,
            request_id=request_id,
        )
        answer = await self.ask(request)
        return await until_prepared(self, request, answer) if wait_prepared else answer

    async def reattach_domain(
        self, domain: str, *, host: str = "", bus: str = "", request_id: str | None = None
    ) -> Answer:
        """Release all of our leases that are for a domain (its uuid; while it is known also its name, key or id), or
        those of one `bus`; `leases` names them. Their devices are given back behind that.
        """
        return await self.ask(asking.reattach_request(domain, host=host, bus=bus, request_id=request_id))

    # --- what operators say -----------------------------------------------------------------------------------------

    async def confirm_free(self, device: str, reason: str, *, host: str = "", request_id: str | None = None) -> Answer:
        """Say by name that nobody uses a device whose lease has ended."""
        return await self.ask(asking.confirm_free_request(device, reason, host=host, request_id=request_id))

    async def retire_agent(self, host: str, agent: str, reason: str, *, request_id: str | None = None) -> Answer:
        """Say by name that this agent of a host will not come back: what only it told of is forgotten."""
        return await self.ask(asking.retire_agent_request(host, agent, reason, request_id=request_id))

    async def declare_dead(self, host: str, reason: str, *, request_id: str | None = None) -> Answer:
        """Say by name that a host is off: what its ended leases held is free, and nothing of it is granted before it
        has reported anew.
        """
        return await self.ask(asking.declare_dead_request(host, reason, request_id=request_id))

    # --- what hosts are to do ---------------------------------------------------------------------------------------

    async def create_device(
        self, device: NewDevice, *, host: str = "", request_id: str | None = None, wait: bool = True
    ) -> Answer:
        """Have a host make a device, and wait until it is over: `state` is then `done` (`devices` names what was made),
        `failed` or `timed_out` (`message` says why). Without `wait` it may still be `waiting`.
        """
        return await self.order(asking.create_device_request(device, host=host, request_id=request_id), wait=wait)

    async def destroy_device(
        self, device: str, *, host: str = "", request_id: str | None = None, wait: bool = True
    ) -> Answer:
        """Have its host take away a device that was made; as `create_device`."""
        return await self.order(asking.destroy_device_request(device, host=host, request_id=request_id), wait=wait)

    async def detach(
        self, device: str, *, driver: str = "", host: str = "", request_id: str | None = None, wait: bool = True
    ) -> Answer:
        """Have its host take a device that nobody has leased from its driver, and bind it to the stub `driver` (empty:
        the host's own choice); as `create_device`.
        """
        return await self._operate(device, "detach", host, request_id, driver=driver, wait=wait)

    async def reattach(
        self, device: str, *, host: str = "", request_id: str | None = None, wait: bool = True
    ) -> Answer:
        """Have its host give a device that nobody has leased to its own driver again; as `create_device`."""
        return await self._operate(device, "reattach", host, request_id, wait=wait)

    async def reset(self, device: str, *, host: str = "", request_id: str | None = None, wait: bool = True) -> Answer:
        """Have its host reset a device that nobody has leased; as `create_device`."""
        return await self._operate(device, "reset", host, request_id, wait=wait)

    async def _operate(
        self, device: str, operation: str, host: str, request_id: str | None, *, wait: bool, driver: str = ""
    ) -> Answer:
        request = asking.operate_device_request(device, operation, host=host, driver=driver, request_id=request_id)
        return await self.order(request, wait=wait)

    async def order(self, request: Ordering, *, wait: bool = True) -> Answer:
        """Have a host do something. Asked again it answers how it stands, so that is how it is waited for.

        It ends by itself: what is not done in time is `timed_out`, unless no allocator decides.
        """
        answer = await self.ask(request)
        deadline_s = time.monotonic() + request.timeout_ms / 1_000 + self._patience_s
        while wait and answer.state == "waiting" and time.monotonic() < deadline_s:
            await asyncio.sleep(ORDER_PAUSE_S)
            answer = await self.ask(request)
        return answer

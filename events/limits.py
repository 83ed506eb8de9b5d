"""Every bound of the system as a named number with its unit. A queue, wait or message without a bound is a bug."""

from typing import Final

# --- the record -------------------------------------------------------------------------------------------------
EVENTS_PER_RECORD_MAX: Final = 256
"""A position is `sequence * 256 + index`, so a record can hold no more."""
STEPS_PER_RECORD_MAX: Final = 256
RECORD_BYTES_MAX: Final = 896 * 1024
"""Below the server's message bound (1 MiB) by more than the headers that go with an append."""
SEQUENCE_MAX: Final = 2**39 - 1
"""Keeps every position below 2**47, and every token below 2**53, which JSON readers with doubles see exactly."""
ERA_MAX: Final = 63
"""So often can a ledger be restored."""

# --- observations -----------------------------------------------------------------------------------------------
OBSERVATIONS_PER_MESSAGE_MAX: Final = 254
"""Each observation makes at most one event, their acceptance one more, and one what is shared by them: one record."""
SHARED_PAIRS_TOLD_MAX: Final = 16
"""Pairs of devices that one event names; it says how many there are."""
OBSERVED_BYTES_MAX: Final = 256 * 1024
"""Input and resulting events stand in one record, so a message may take less than half of it."""
OBSERVED_KEPT_PER_SOURCE: Final = 512
"""Messages of one source that the inbox holds; past it the oldest goes, which shows as a gap."""
OBSERVED_PER_HOST_PER_S: Final = 100
OBSERVED_PER_HOST_AT_ONCE: Final = 1_024
"""All that the inbox keeps of two agents; the whole picture of a full host takes 65 messages."""
OBSERVED_BYTES_PER_HOST_PER_S: Final = 4 * 1024 * 1024
OBSERVED_BYTES_PER_HOST_AT_ONCE: Final = 64 * 1024 * 1024
DESCRIPTION_BYTES_MAX: Final = 8 * 1024
ATTRIBUTES_PER_DEVICE_MAX: Final = 64
ATTRIBUTE_BYTES_MAX: Final = 1024
REASONS_PER_DEVICE_MAX: Final = 32
"""How many protections or users one description may name."""

# --- requests ---------------------------------------------------------------------------------------------------
REQUEST_BYTES_MAX: Final = 64 * 1024
DEVICES_PER_LEASE_MAX: Final = 64
"""A release writes one event for the lease and up to one for each device, in one record."""
LEASE_TTL_MS_MIN: Final = 1_000
LEASE_TTL_MS_MAX: Final = 30 * 24 * 3_600_000
REASON_CHARS_MAX: Final = 512
REQUEST_AGE_NS_MAX: Final = 24 * 3_600 * 10**9
"""A request issued longer ago is refused: its first answer may no longer be remembered."""
REQUEST_AHEAD_NS_MAX: Final = 3_600 * 10**9
"""A request issued further in the future is refused: it would outlive the memory of its answer."""
REQUEST_KEPT_NS: Final = REQUEST_AGE_NS_MAX + REQUEST_AHEAD_NS_MAX
"""How long an answer is remembered after its lease has ended: as long as its request could come again."""
REQUESTS_KEPT_PER_PRINCIPAL_MAX: Final = 50_000
"""Answers of ended matters remembered for one principal. Past it the oldest goes, and whatever this principal issued
before that one is refused as too old: asking again stays safe."""
RENEWALS_KEPT_PER_LEASE: Final = 8
"""Renewals of a lease whose answers are remembered; a repeat of an older one is refused as too old."""
PRINCIPALS_MAX: Final = 10_000
HOSTS_MAX: Final = 10_000
AGENTS_PER_HOST_MAX: Final = 8
DEVICES_PER_HOST_MAX: Final = 16_384
DOMAINS_PER_HOST_MAX: Final = 4_096
USES_PER_DOMAIN_MAX: Final = 256
"""Devices that one domain is known to claim or to have, each of the two counted."""
DEVICES_MEANT_MAX: Final = 16
"""How many of the devices that a hypervisor's word may mean one event names."""
DEVICES_MEANT_PER_MESSAGE_MAX: Final = 1_024
"""The same for all words of one message: what follows from a message is to fit into a record."""
USERS_SHOWN_MAX: Final = 32
"""How many uses of one device by domains are shown: any number of domains may claim it."""
USERS_TOLD_MAX: Final = 4
"""How many of the domains that have a device are named in a sentence, which may stand in the log."""
DOMAIN_NAME_CHARS_MAX: Final = 255
DOMAIN_KIND_CHARS_MAX: Final = 32
GONE_MS_MAX: Final = 30 * 24 * 3_600_000
ORDER_TIMEOUT_MS_MIN: Final = 1_000
ORDER_TIMEOUT_MS_MAX: Final = 3_600_000
ORDERS_OPEN_PER_HOST_MAX: Final = 64
ORDERS_KEPT_PER_HOST_MAX: Final = 256
"""Orders of one host that are remembered, open and over; of the latter the oldest go."""
ACTIONS_TOLD_MAX: Final = 16
"""How many of a device's events one sighting names."""
DEVNODES_PER_DEVICE_MAX: Final = 17
REFUSAL_WINDOW_NS: Final = 10 * 10**9
"""Equal refusals within this time after the first are counted, not told again."""
REFUSALS_TRACKED_MAX: Final = 10_000
BLOCKERS_PER_REFUSAL_MAX: Final = 16
CANDIDATES_PER_REFUSAL_MAX: Final = 8

# --- time -------------------------------------------------------------------------------------------------------
GRACE_MS: Final = 30_000
"""After a start, a takeover or an outage no lease expires for this long: holders get time to renew."""
CLOCK_ERROR_NS_MAX: Final = 10**9
"""A machine whose clock differs from the server's by more does not decide."""
CLOCK_SLEW_DIVISOR: Final = 1_000
"""A server's clock that is ahead of ours is approached by one part in this of the elapsed time."""
CLOCK_TOLERANCE_NS: Final = 100_000_000
"""Clocks of allocators that differ by less agree: it is what a message may take."""
CLOCK_NOTE_NS: Final = 3_600 * 10**9
"""How often the clock is written down, even if it keeps time."""
NEW_CLOCK_GRACE_MS_MAX: Final = 30 * 60_000
"""A decider whose clock is new lets no lease expire for the longest time to live, but not for longer than this."""
TAKEOVER_MS: Final = 3_000
"""An expiry that the decider leaves undone for longer is taken over by whoever sees it."""
OUTAGE_MS: Final = 5_000
"""An allocator that could not reach the log for longer starts a grace time before anything expires."""
CONTACT_MS: Final = 1_000
"""How often an idle allocator makes sure that the log answers, and sets its clock by the server's."""

# --- scheduling -------------------------------------------------------------------------------------------------
SELECTOR_BYTES_MAX: Final = 4 * 1024
SELECTOR_DEPTH_MAX: Final = 32
"""The evaluator recurses, and has no bound of its own."""
SELECTOR_NODES_MAX: Final = 512
SELECTOR_LOOPS_MAX: Final = 2
"""Comprehensions (`exists`, `all`, …) within each other."""
SELECTOR_LIST_MAX: Final = 32
"""Entries of a list (NICs, disks, …) that a selector sees of a device."""
SELECTOR_COST_MAX: Final = 20_000
"""Steps of one evaluation at the most, which is known before: each costs some tens of nanoseconds."""
SELECTOR_PATTERN_CHARS_MAX: Final = 128
SELECTORS_KEPT_MAX: Final = 1_024
"""Selectors that are kept compiled."""
SELECTOR_RESULTS_KEPT_MAX: Final = 65_536
"""Results of selectors that are kept, by what they depend on."""
NEEDS_PER_REQUEST_MAX: Final = 16
OPTIONS_PER_NEED_MAX: Final = 8
CONSTRAINTS_PER_REQUEST_MAX: Final = 8
TOLERATIONS_MAX: Final = 16
SEARCH_STEPS_MAX: Final = 4_096
"""Candidates that a search tries. A step costs some microseconds."""
CLASSES_MAX: Final = 256
QUOTAS_MAX: Final = 16_384
QUOTAS_PER_TENANT_MAX: Final = 64
CHARGED_AT_ONCE_MAX: Final = 8_192
"""Devices that a tenant may have when a quota is set: one event names those that count."""
PRIORITY_MAX: Final = 100
PRIORITY_STEP_NS: Final = 60 * 10**9
"""So much longer does a request seem to have waited for each step of its priority. So nobody waits for ever: who comes
later than priority can make good for, comes behind."""
WAIT_MS_MIN: Final = 1_000
WAIT_MS_MAX: Final = 30 * 24 * 3_600_000
QUEUED_MAX: Final = 16_384
QUEUED_BYTES_MAX: Final = 16 * 1024
"""Of one request that waits: each is kept whole, in memory and in every snapshot."""
QUEUED_PER_PRINCIPAL_MAX: Final = 2_048
BLOCKERS_PER_WAITING_MAX: Final = 4
"""Of what stands in the way of who waits, so much is kept and written: it is told anew as it changes."""
WAITS_ENDED_PER_TICK_MAX: Final = 32
"""Each says why it was in vain, at some length, and all stand in one record."""
QUEUED_TRIED_PER_TICK_MAX: Final = 16
"""How many waiting requests one decision looks at; the next one goes on behind them."""
LOOK_STEPS_MAX: Final = 1_024
"""When what one decision has tried for those who wait took so many steps of searching, the next one goes on."""
KEEPERS_MAX: Final = 256
"""For who has so many before him that may want the same, nothing is kept yet: it would be his only after them."""
LOOKS_PER_RECORD_MAX: Final = 4
"""So many such decisions stand in one record, beside what is asked: nobody's answer waits long for them."""
STIRRED_MAX: Final = 4_096
"""Notes of what has become better for those who wait; past it there is one for all of them."""
BUCKETS_PER_REQUEST_MAX: Final = 64
RENEWALS_PER_REQUEST_MAX: Final = 1_000
TAINTS_MAX: Final = 16
"""On one host, or on one device."""
SHARERS_MAX: Final = 64
FAILURES_MAX: Final = 3
"""So often may a device fail its holders within `FAILURE_WINDOW_NS` before it is in quarantine."""
FAILURE_WINDOW_NS: Final = 24 * 3_600 * 10**9
NOTICE_MS_MAX: Final = 30 * 24 * 3_600_000
CLASS_DEVICES_LOOKED_MAX: Final = 10_000
"""So many devices are looked at to say how those of a class stand."""
EXCLUDED_CHARS_MAX: Final = 256
"""Of one reason there, and of what helps: they may quote operators, and a grant is to fit into a record."""
EXCLUDED_TOLD_MAX: Final = 8
"""Rules that the reasons of one need name."""

# --- names ------------------------------------------------------------------------------------------------------
NAME_CHARS_MAX: Final = 63
HOLDER_CHARS_MAX: Final = 128
REQUEST_ID_CHARS_MAX: Final = 64
KEY_CHARS_MAX: Final = 256
DEVICE_TEXT_CHARS_MAX: Final = 1024
"""A device may be named by its sysfs path."""
USB_PORT_DEPTH_MAX: Final = 7
"""USB 2.0, 4.1.1: seven tiers with the root, so at most six ports in a path; one more is tolerated."""

# --- services ---------------------------------------------------------------------------------------------------
REQUESTS_WAITING_MAX: Final = 4_096
OBSERVED_WAITING_MAX: Final = 1_024
REQUESTS_HEARD_MAX: Final = 4_096
"""What a standby keeps of the requests that the ledger does not have yet."""
REQUEST_HEARD_MS: Final = 5_000
"""How long it keeps them: longer than a takeover takes."""
HINT_REFRESH_MS: Final = 500
"""How often the decider says that it decides."""
HINT_LOOK_MS: Final = 250
"""How often a standby looks whether it still does."""
HINT_STILL_MS: Final = 1_500
"""A hint that was not refreshed for this long is taken by whoever sees it, and counted on by nobody who wrote it."""
REQUESTS_WAITING_PER_PRINCIPAL_MAX: Final = 2_048
"""Half of all: one principal cannot take every place, and where more wait each has a share."""
REQUESTS_WAITING_BYTES_MAX: Final = 16 * 1024 * 1024
LIMITED_ANSWERS_PER_PRINCIPAL_PER_S: Final = 500
"""So many of a principal's surplus requests are told that they are; what comes on top of that is only counted."""
APPEND_TIMEOUT_MS: Final = 900
"""A requester hears "unavailable" within a second, so an append must be given up before."""
REQUEST_TIMEOUT_MS: Final = 1_000
SNAPSHOT_RECORDS: Final = 5_000
SNAPSHOT_INTERVAL_MS: Final = 15_000
HISTORY_ROWS_MAX: Final = 1_000
LIST_ROWS_MAX: Final = 1_000
"""Rows of one page; readers ask for the next with the last key that they saw."""
HEAD_NOTE_MS: Final = 500
"""How often the head that was folded is written down, so that a log which lost its end is noticed."""
HEARTBEAT_MS: Final = 2_000
HOST_SILENT_MS: Final = 15_000
"""A host whose agent is not heard for this long is stale: nothing of it is granted."""
RESCAN_MS: Final = 10_000
"""Some changes make no kernel event (a claim through usbfs), so the watcher looks again this often."""
FLAP_LOSSES_MAX: Final = 3
"""How often a device may go, or lose its driver or link, within `FLAP_WINDOW_MS` and be told each time."""
FLAP_WINDOW_MS: Final = 10_000
FLAP_HOLD_MS: Final = 3_000
"""How long what is new of a device that is lost more often may wait, but for its going, which never does."""
ROOM_RESERVE_BYTES: Final = 256 * 1024 * 1024
"""While less is free on the log's disk (or a tenth of a small one), only releases are taken."""
ROOM_NOTICE_MS: Final = 1_000
"""How often the room on the log's disk is looked at, and told."""
ROOM_SILENT_MS: Final = 10_000
"""What was told of room longer ago counts no more."""
SERVERS_MAX: Final = 16
"""Servers of one bus."""

# --- following the feed -----------------------------------------------------------------------------------------
FEED_WAITING_MAX: Final = 4_096
"""Events that wait for one reader; what comes while so many do is read from the stream later."""
FEED_LOOK_MS: Final = 2_000
"""A reader that hears nothing for so long asks whether there is something: the last message may have been lost."""

# --- domains, as hypervisors tell of them -----------------------------------------------------------------------
POLL_MS_MIN: Final = 1_000
POLL_MS_MAX: Final = 10_000
"""How often a hypervisor is asked: often while things change, seldom at rest, and never two at once in step."""
POLL_REQUESTS_MAX: Final = 4
"""Requests to one hypervisor at a time."""
POLL_TIMEOUT_MS: Final = 10_000
BLIND_MS: Final = 15_000
"""A hypervisor that has not answered for so long is told as not answering: nothing of its host is granted."""
XL_BYTES_MAX: Final = 64 * 1024 * 1024
"""What one of Xen's tools may print: `xl list -l` takes some kB for each domain."""
SXP_BYTES_MAX: Final = 16 * 1024 * 1024
SXP_DEPTH_MAX: Final = 256
XEND_REPLY_BYTES_MAX: Final = 64 * 1024 * 1024
"""All of `DOMAINS_PER_HOST_MAX` domains over XML-RPC, where one takes 15 kB; as SXP it takes 2 kB."""
XEND_POST_BYTES_MAX: Final = 10_000
"""xend refuses a longer body (413) and resets."""

# --- handing devices over and taking them back --------------------------------------------------------------------
PREPARE_TIMEOUT_MS: Final = 60_000
"""What is not prepared so long after it was begun has failed."""
GIVE_BACK_TIMEOUT_MS: Final = 60_000
"""What is not given back so long after nobody has it any more goes into quarantine; it is tried again all the same."""
GIVE_BACK_AGAIN_MS: Final = 30_000
"""How often that is."""
STILL_HELD_MS: Final = 300_000
"""What a domain still has so long after its lease ended goes into quarantine, too, so that somebody looks at it."""
CUT_OFF_MS: Final = 15_000
"""A binder that has not heard the log for so long prepares nothing, and vouches for no token; what it began, and what
has ended, it brings to its end."""
DRIFT_MS: Final = 5_000
"""For so long witnesses may differ about a device before it is told: their words arrive at different times."""
LEASES_REATTACHED_MAX: Final = 64
"""So many leases of a domain end by one request."""
VIRTUAL_FUNCTIONS_MAX: Final = 256
DOOR_REQUEST_BYTES_MAX: Final = 64 * 1024
DOOR_TIMEOUT_MS: Final = 10_000
"""A hook gets its answer by then, whatever happens."""
DOOR_CALLERS_MAX: Final = 64
"""Hooks and helpers that are heard at a time."""

"""Every bound and every timer of the protocol, by name.

docs/protocol.md (timers and limits) explains who pays when one of these moves.  Times are whole
milliseconds of the boot-time clock, sizes are bytes; the unit is the last word of the name.
This file knows no other file of the project, and reads no clock and no configuration.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
FOREVER_MS = 2**62  # later than anything that will happen

# --- wire ---------------------------------------------------------------------------------------

PROTOCOL_VERSION_MIN = 1  # oldest version this program speaks
PROTOCOL_VERSION_MAX = 1  # newest one; two neighbouring versions always work together
MESSAGE_BYTES_MAX = 80 * KIB  # one encoded message, whatever its kind
FRAME_BYTES_MAX = 128 * KIB  # ZeroMQ's own limit on control sockets: a longer frame cuts the peer
BULK_FRAME_BYTES_MAX = 320 * KIB  # the same on the bulk socket: a chunk and its envelope
DOOR_FRAME_BYTES_MAX = 4 * KIB  # the same on the join socket, where strangers speak
BATCH_MESSAGES_MAX = 128  # messages of one loop turn in one multipart
BATCH_BYTES_MAX = 256 * KIB  # their sum; the rest goes in the next turn
INLINE_BYTES_MAX = 64 * KIB  # work and results up to here travel inside Grant and Outcome
TEXT_BYTES_MAX = 256  # a reason in words (Reject, Refused)
NAME_BYTES_MAX = 64  # user, event and topic names, label keys
CAPABILITIES_BYTES_MAX = 16 * KIB  # body of Capabilities
NEEDS_BYTES_MAX = 1 * KIB  # encoded needs of one class
EXIT_FACTS_BYTES_MAX = 1 * KIB  # exit facts of an Outcome
QUERY_ARGUMENTS_BYTES_MAX = 4 * KIB  # arguments of a Query
REPLY_PAGE_BYTES_MAX = 64 * KIB  # one page of a Reply
TOPIC_PAYLOAD_BYTES_MAX = 16 * KIB  # payload of an Event or Topic
DEMAND_BYTES_MAX = 64 * KIB  # a whole Demand; lowest priorities are left out first
SUBMIT_BYTES_MAX = 64 * KIB  # inline work of one Submit together

DEMAND_CLASSES_MAX = 256  # classes in one Demand
IN_USE_NODES_MAX = 256  # nodes in in_use of one class
AVOID_NODES_MAX = 64  # nodes an owner asks not to be given
ALLOCATION_ROWS_MAX = 2800  # rows of one Allocation
RENEW_TOKENS_MAX = 3500  # tokens of one Renew
OUTCOME_ACK_TOKENS_MAX = 1024  # tokens of one OutcomeAck
SUBMIT_TASKS_MAX = 256  # tasks of one Submit
HEARD_NODES_MAX = 1024  # short ids in a claimant's Heartbeat
PRIORITY_MIN = -128  # a class's priority is one signed byte
PRIORITY_MAX = 127
LABELS_MAX = 64  # labels of one node
PROGRAMS_MAX = 256  # programs one node lists

# --- objects ------------------------------------------------------------------------------------

CHUNK_BYTES = 256 * KIB  # one chunk of an object; the last one may be shorter
WINDOW_CHUNKS = 8  # chunks asked for in one Want: the puller's credit
OBJECT_BYTES_MAX = 4 * GIB  # default of the `object_limit` key: one object
OBJECT_BYTES_LIMIT = 1024 * GIB  # what `object_limit` may be raised to

# --- presence -----------------------------------------------------------------------------------

HEARTBEAT_SMALL_MS = 250  # H up to HEARTBEAT_SMALL_NODES members: failover in about two seconds
HEARTBEAT_MEDIUM_MS = 1000  # H up to HEARTBEAT_MEDIUM_NODES members
HEARTBEAT_PER_NODE_MS = 10  # H per member beyond: packets per second stay near 100 per node
HEARTBEAT_SMALL_NODES = 20
HEARTBEAT_MEDIUM_NODES = 100
HEARTBEAT_MS_MIN = 100  # the `heartbeat` key may not go below: timers shrink to loop lag
HEARTBEAT_MS_MAX = 60_000  # nor above: failover would take many minutes
T_SUSPECT_BEATS = 3  # silent for so many H: no new grants there
T_DEAD_BEATS = 5  # silent for so many H: leaves the membership
LOCAL_HEALTH_MAX = 8  # a node that lags itself multiplies both by 1..8 before it accuses others
PEERS_MAX = 1024  # members known at once; further ones are counted and ignored
BEAT_GAP_MS = 50  # news (claim, drain) leaves as an early Heartbeat, but not more often than this
ASK_CAPABILITIES_MS = 500  # a peer is asked again for capabilities that it has not told
CLONE_DEADS = 2  # signs of a second life beside the one that counts, for so many T_dead: clones
CLONE_GREETINGS_MS = 60_000  # greetings carry no time, and may be late for so long
CLONE_SIGNS = 3  # and so many of them at least: a late one proves nothing
DOUBT_DEADS = 3  # told of a newer life of its own, a node waits so long for signs of it
DOUBT_MS_MIN = 4_000  # and at least so long, for greetings come once a second
INC_JUMP_MAX = 2**24  # who tells me of a counter further ahead is not believed: mine has an end
HINTS_MAX = 256  # addresses that mDNS may suggest and that nobody has answered from yet

# --- leases -------------------------------------------------------------------------------------

LEASE_MS = 20_000  # L, default of the `lease` key
LEASE_MS_MIN = 5_000  # shorter ones lapse on a loaded Pi
LEASE_BEATS_MIN = 4  # a lease has so many heartbeats at least: stamps must not be old when used
LEASE_MS_MAX = 24 * 3_600_000  # longer ones hold a lost task for more than a day
KILL_GUARD_MS = 1_000  # K: time a worker keeps for the kill, so it ends before the owner's bound
MARGIN_MS = 1_000  # M: slack between the latest possible end and the owner's conclusion
CLOCK_RATE_PERCENT = 10  # rho: how far two clocks may drift apart while they run
RENEW_MS = 1_000  # R: Renew per owner with live attempts; also how often a Recall is repeated
GRANT_RESEND_MS = 2_000  # a Grant that no Renew lists yet is sent again
GRANT_RESENDS_MAX = 2  # so often, within half a lease; after that it is recalled
OUTCOME_RESEND_MS = 2_000  # first repetition of an Outcome without OutcomeAck
OUTCOME_RESEND_MS_MAX = 30_000  # each repetition waits twice as long, up to here
COLLECT_AGAIN_MS = 60_000  # a result without room here is lost if not offered again by then
RENEW_LISTS_KEPT = 8  # Renew lists a worker remembers to judge a late Renewed

# --- worker -------------------------------------------------------------------------------------

TOMBSTONES_MAX = 65_536  # tokens a worker remembers never to start again; beyond, the floor rises
FORGET_STEP = 64  # tombstones looked at in one turn: forgetting never takes long
TOMBSTONE_LEASES = 2  # a tombstone lives so many leases after it was last touched
SLOTS_MAX = 1024  # slots of one node
WAITING_PER_SLOT_MAX = 16  # accepted but not started attempts, per slot
WAITING_BYTES_MAX = 4 * MIB  # and what their inline work may weigh together
SPOOL_BYTES_MAX = 1 * GIB  # durable outcomes nobody acknowledged; the oldest go first, counted
SPOOL_MS_MAX = 7 * 24 * 3_600_000  # and how long they are kept

# --- demand, allocation, election ---------------------------------------------------------------

DEMAND_GAP_MS = 100  # least time between two Demands
EARLY_GAP_MS = 10  # the same for a Demand or table about a class that begins to want
EARLY_PAIRS_PER_MS = 100  # so many pairs of a node and a class put such a table off by one ms
OWN_WORKER_MS = 500  # a class that no table answers for so long uses the owner's own worker
UNDECIDED_MS = 2_000  # a young owner waits so long for other nodes before it says unplaceable
SURPLUS_MS = 50  # attempts that wait at most so long behind others are not worth a Recall
DEMAND_RESTATE_BEATS = 5  # an unchanged Demand is said again after so many H
DEMAND_UNANSWERED_BEATS = 2  # and after so many H while nobody answers
ALLOCATION_GAP_MS = 100  # least time between two Allocations
ALLOCATION_RESTATE_BEATS = 4  # an unchanged table is said again after so many H
LISTEN_BEATS = 2  # a new coordinator hears all owners before its first table
ELECT_BEATS = 3  # no acceptable claimant for so many H: the best candidate claims
ELECT_RANK_BEATS = 2  # each better candidate heard adds so many H
DISTRUST_AFTER_DEADS = 2  # Demand unanswered for so many T_dead: distrust the claimant
DISTRUST_FOR_DEADS = 8  # for so many T_dead
DISTRUST_DOUBLINGS = 2  # doubled so often for who leaves it unanswered again, and serves few others

AVOID_MS = 10_000  # a node is left out after a bound passed there
AVOID_FACTOR = 4  # each further time it is left out so many times longer
AVOID_MS_MAX = 160_000  # up to here; a done Outcome resets it
# Facts.type_name of an attempt whose result found no room: its class leaves that node alone.
DISK_PROBLEM = "DiskProblem"
BACK_OFF_MS = 500  # (class, node) after Refused full or draining
BACK_OFF_FACTOR = 2
BACK_OFF_MS_MAX = 8_000
BACK_OFF_NEEDS_BEATS = 30  # after Refused needs: until the next Capabilities can have come
PREFETCH_MEAN_MS_MAX = 1_000  # classes of longer tasks get no prefetch: it would gain nothing
PREFETCH_WORK_MS = 100  # prefetch so much work per slot, at most PREFETCH_PER_SLOT_MAX tasks
BUNDLE_TASKS_MAX = 256  # so many small tasks of one class may travel as one attempt
BUNDLE_BYTES_MAX = 48 * KIB  # and so much work altogether
BUNDLE_WORK_US = 4_000  # and so much running time, by what the class took on that node so far
BUNDLE_LATE_MS = 50  # a bundle that runs for so long is divided
AHEAD_RUN_US_MAX = 100_000  # what takes longer gains nothing by being handed ahead
AHEAD_LATE_MS = 250  # what was handed ahead and has not begun by then is taken back
BUNDLES_AHEAD_MAX = 8  # so many of them wait per slot
PREFETCH_PER_SLOT_MAX = 16
GANG_HOLD_MS = 10_000  # all members held by then, or all recalled
RESERVATION_MS = 10_000  # a gang's offer that nobody used is withdrawn
GANG_ASIDE_MS = 5_000  # and the gang is put aside, twice as long each time
GANG_ASIDE_MS_MAX = 120_000
GANG_NODES_MAX = 256  # members of one gang
WARM_CODES_MAX = 64  # functions an owner keeps at hand between tasks
WARM_CLASS_MS = 10_000  # a class stays in Demand after it ran dry
AGEING_MS = 30_000  # one priority step per so much oldest wait

# --- owner and sessions -------------------------------------------------------------------------

OWNER_TASKS_MAX = 1_000_000  # tasks an owner holds; beyond: Busy
RECENT_TASKS_MAX = 4_096  # attached tasks told and seen, of which an owner still tells the story
SPARE_BYTES_MAX = 64 * MIB  # work of cancelled, expired, unknown and seen tasks, kept for `retry`
RETAINED_TASKS_MAX = 100_000  # ended durable tasks whose outcome can still be fetched
RETENTION_MS = 7 * 24 * 3_600_000  # and for how long after the end
OWNER_BYTES_MAX = 4 * GIB  # work and results an owner holds; beyond: Busy
SESSION_TASKS_MAX = 262_144  # tasks of one session that have not ended; then submit waits
SESSIONS_MAX = 1024  # client sessions of one daemon
SESSION_LEASE_MS = 30_000  # a client that is silent for so long has left
SESSION_LEASE_MS_MAX = 600_000  # what Open may ask for
ENDED_RESEND_MS = 2_000  # an outcome that the client has not seen is told again
ENDED_RESEND_MS_MAX = 30_000  # doubled up to here, as long as that client says Seen to nothing
UNDECIDED_SUBMITS_MAX = 1024  # submits that may wait for the answer "unplaceable"
SESSION_ALIVE_MS = 10_000  # how often a client says that it lives
JOURNAL_COMMIT_MS = 5  # a group commit waits no longer than this
JOURNAL_COMMIT_CHANGES = 256  # nor for more changes than this
JOURNAL_CHECKPOINT_CHANGES = 1024  # after so many changes the log goes into the journal's file
JOURNAL_CHECKPOINT_BYTES = 4 * MIB  # or after so many bytes of rows
JOURNAL_FREE_PAGES = 1024  # pages of 4 KiB that its file keeps free, and gives back at a time
SALVAGE_GAPS_MAX = 2000  # ranges of keys that are tried around pages that cannot be read
DAMAGED_ROWS_MAX = 1024  # damaged rows the journal keeps to be looked at, the newest
BALLAST_BYTES = 8 * MIB  # room kept back in the state directory, for what was promised
BALLAST_SHARE = 16  # at most this part of the disk: one sixteenth
RETENTION_STEP = 256  # ended tasks forgotten at a time
CRASH_RETRIES = 2  # a task whose process died is tried again so often, then fails
INFRASTRUCTURE_RETRIES = 20  # lost nodes and lapsed leases are free so often
PURE_ATTEMPTS_MAX = 2  # live attempts of a pure task whose node has gone silent
PAST_TOKENS_MAX = 8  # ended attempts of a task whose late *done* may still count
KILLER_ENDINGS_MAX = 2  # endings that took the node down; after that the task runs alone
QUERY_MS = 2_000  # a Query without Reply after this is shown as unreachable
RELAYS_MAX = 4096  # queries of clients that wait for another node's Reply
RETRY_AFTER_MS_MAX = 60_000  # what Busy may ask a sender to wait
PATH_BYTES_MAX = 107  # a unix socket's path on Linux, without the closing NUL

# --- topics -------------------------------------------------------------------------------------

TOPICS_KEPT_MAX = 16_384  # last values that a node keeps, own ones, and as many heard ones
TOPIC_PREFIXES_MAX = 64  # beginnings of names that a node asks its peers for; beyond: everything
TOPIC_PAGE_BYTES = 48 * KIB  # last values in one answer to a peer
TOPIC_PAGE_VALUES_MAX = 512  # and how many of them
TOPIC_ASK_MS = 10_000  # a peer is asked again what changed: what PUB lost is repaired so soon
TOPIC_HOLD_MS = 1_000  # a subscriber waits at most so long until all peers publish to it
TOPIC_ASK_TIMEOUT_MS = 5_000  # a peer that did not answer is asked anew
SUBSCRIPTIONS_MAX = 1024  # patterns that the clients of one daemon subscribe to
SUBSCRIPTIONS_OF_CLIENT_MAX = 64  # and those of one client
SUBSCRIPTION_LEASE_MS = 30_000  # one that is not renewed for so long has ended
TOPIC_LINE_VALUES_MAX = 1024  # values that wait for one client; the oldest are dropped beyond
TOPIC_LINE_BYTES_MAX = 1 * MIB  # the same in bytes
TOPIC_LINES_BYTES_MAX = 64 * MIB  # the sum over all clients of a daemon
UPDATES_WINDOW = 64  # Updates that a client may have before it says Taken
UPDATES_WINDOW_BYTES = 1 * MIB  # the same in bytes
UPDATES_VALUES_MAX = 64  # values of one Updates
UPDATES_BYTES_MAX = 48 * KIB  # the same in bytes
PUBLISH_WINDOW = 512  # values that a client may have published before the daemon says Taken
PUBLISH_WINDOW_BYTES = 1 * MIB  # the same in bytes
PUBLISH_WAITING_BYTES_MAX = 64 * MIB  # what waits to be published, of all clients
PUBLISH_STEP = 256  # values published in one turn of the loop; the others wait for the next
HEAR_STEP = 256  # values of peers read in one turn
SUBSCRIBER_VALUES_MAX = 4096  # values a program has not read; the oldest are dropped beyond
SUBSCRIBER_BYTES_MAX = 4 * MIB  # the same in bytes


def heartbeat_ms(members: int) -> int:
    """Return H for a cluster of `members` nodes, this one included.

    Source  docs/protocol.md, "Timers and limits": H heartbeat.
    """
    if members <= HEARTBEAT_SMALL_NODES:
        return HEARTBEAT_SMALL_MS
    if members <= HEARTBEAT_MEDIUM_NODES:
        return HEARTBEAT_MEDIUM_MS
    return members * HEARTBEAT_PER_NODE_MS


def bound_ms(lease_ms: int) -> int:
    """Return how long after a send an attempt under `lease_ms` may still be running.

    Precision  rounded up: the owner may conclude late, never early.
    Source     docs/protocol.md, "Timers and limits": bound = L(1 + rho) + K + M.
    """
    stretched = -(-lease_ms * (100 + CLOCK_RATE_PERCENT) // 100)
    return stretched + KILL_GUARD_MS + MARGIN_MS


def renew_ms(lease_ms: int) -> int:
    """Return R under `lease_ms`: the default, but at most a quarter of the lease."""
    return min(RENEW_MS, lease_ms // 4)

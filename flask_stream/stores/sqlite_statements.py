"""Every statement that the file of `sqlite:///…` is asked.

Each is a transaction by itself, and those that are asked often answer in one row: see `sqlite`.
What the tables and their triggers are is in `sqlite_file`.
"""

from __future__ import annotations


def _timed(statement: str) -> str:
    # By SQLite's clock, which is that of `time.time`, and from when the file was free.
    return statement.replace(":now", "(julianday('now') - 2440587.5) * 86400.0")


# A principal's live runs are counted no further than matters.
_FULL = """
:most > 0 AND :most <= (SELECT count(*) FROM (
    SELECT 1 FROM runs INDEXED BY live_of
    WHERE status = 'running' AND principal = :principal LIMIT :most
))
"""
_BUSY = """
SELECT id FROM runs INDEXED BY live_of WHERE :alone AND status = 'running'
AND principal = :principal AND conversation = :conversation LIMIT 1
"""
CREATE = _timed(f"""
INSERT INTO runs (id, chain, conversation, parent, principal, input, created, status, attempt,
                  owner, lease, title)
SELECT :id, :chain, :conversation, :parent, :principal, :input, :created, :status, :attempt,
       :owner, :now + :lease, :title
WHERE NOT EXISTS ({_BUSY}) AND NOT ({_FULL})
ON CONFLICT (id) DO NOTHING
""")
# Which live run of the conversation forbids another one, and whether the principal has too many.
DENIED = f"SELECT ({_BUSY}), {_FULL}"

# The fields of a `Run`, and its owner.
_RUNS = """
SELECT id, chain, conversation, parent, principal, input, created, status, seq, attempt, owner
FROM logs
"""
GET = f"{_RUNS} WHERE id = ?"


def insert(rows: int) -> str:
    """Store so many batches, each if its owner holds the run and the log ends where it begins.

    Six values each: run, owner, after, last, status, payload.
    """
    return _INSERT.replace("(?)", ", ".join(["(?, ?, ?, ?, ?, ?)"] * rows))


# CROSS JOIN here and below: first the few that are given, then each by its id.
_INSERT = """
INSERT INTO batches (run, last, status, payload)
WITH given (run, owner, after, last, status, payload) AS (VALUES (?))
SELECT logs.number, given.last, given.status, given.payload
FROM given CROSS JOIN logs ON logs.id = given.run
WHERE logs.owner = given.owner AND logs.status = 'running' AND logs.seq = given.after
"""

# Whole batches, up to the first that reaches the limit: the seq of the last event, and all
# payloads in one. A window, because only there is the order of a concatenation promised.
READ = """
SELECT max(last) OVER whole, group_concat(payload, char(10)) OVER whole
FROM batches WHERE run = (SELECT number FROM runs WHERE id = :run)
AND last > :after AND last <= coalesce((
    SELECT min(last) FROM batches
    WHERE run = (SELECT number FROM runs WHERE id = :run) AND last >= :after + :limit
), 9e18)
WINDOW whole AS (ORDER BY last ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
LIMIT 1
"""

CANCEL = "UPDATE runs SET cancel = 1 WHERE id = ? AND status = 'running'"

RENEW = _timed("""
UPDATE runs SET lease = :now + :lease WHERE number IN (
    SELECT runs.number FROM json_each(:leases) AS held CROSS JOIN runs ON runs.id = held.key
    WHERE runs.owner = held.value AND runs.status = 'running'
)
""")
RENEWED = """
SELECT json_group_object(runs.id, runs.cancel)
FROM json_each(:leases) AS held CROSS JOIN runs ON runs.id = held.key
WHERE runs.owner = held.value AND runs.status = 'running'
"""

OVERDUE = "SELECT 1 FROM runs WHERE status = 'running' AND lease < ? LIMIT 1"
ADOPT = """
UPDATE runs SET owner = ?, lease = ?, attempt = attempt + 1 WHERE number IN (
    SELECT number FROM runs WHERE status = 'running' AND lease < ? ORDER BY lease LIMIT ?
)
"""
# Those of one call of `ADOPT`: no other has both the same owner and the same lease.
ADOPTED = f"{_RUNS} WHERE status = 'running' AND owner = ? AND lease = ?"

OLD = "SELECT 1 FROM runs WHERE status <> 'running' AND created < ? LIMIT 1"
PURGE = """
DELETE FROM runs WHERE number IN (
    SELECT number FROM runs WHERE status <> 'running' AND created < ? ORDER BY created LIMIT ?
)
RETURNING chain, principal, conversation
"""
EXPIRED = "SELECT principal FROM expired WHERE id = ?"

# The fields of a `Conversation`.
_CONVERSATIONS = "SELECT id, principal, title, created, updated FROM conversations"
CONVERSATIONS = f"""
{_CONVERSATIONS} WHERE principal = ? AND (updated, id) < (?, ?)
ORDER BY updated DESC, id DESC LIMIT ?
"""
CONVERSATION = f"{_CONVERSATIONS} WHERE principal = ? AND id = ?"
RUNS = f"{_RUNS} WHERE principal = ? AND conversation = ? ORDER BY created, id"
RENAME = "UPDATE conversations SET title = ? WHERE principal = ? AND id = ?"
FORGET = "DELETE FROM conversations WHERE principal = ? AND id = ?"

# What is there and has passed is as good as not there.
COUNT = _timed("""
INSERT INTO passing (key, value, until) VALUES (:key, :amount, :now + :ttl)
ON CONFLICT (key) DO UPDATE SET
    value = excluded.value + iif(until > :now, value, 0),
    until = iif(until > :now, until, excluded.until)
RETURNING value
""")
COUNTED = _timed("SELECT value FROM passing WHERE key = ? AND until > :now")
CLAIM = _timed("""
INSERT INTO passing (key, value, until) VALUES (:key, :value, :now + :ttl)
ON CONFLICT (key) DO UPDATE SET
    value = iif(until > :now, value, excluded.value),
    until = iif(until > :now, until, excluded.until)
RETURNING value
""")
DISCLAIM = "DELETE FROM passing WHERE key = ? AND value = ?"

# Nothing but the version is read when that is the one that was seen last.
LOOK = """
SELECT data_version, CASE WHEN data_version <> :version THEN (
    SELECT json_group_array(json_array(logs.id, seq, cancel, status = 'running'))
    FROM json_each(:runs) AS asked CROSS JOIN logs ON logs.id = asked.value
) END FROM pragma_data_version
"""

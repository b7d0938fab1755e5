"""The SQL statements of the store in SQLite.

Each is a transaction of its own. Statements that run often return one row; `sqlite` says why. The
tables and triggers are in `sqlite_file`.
"""

from __future__ import annotations


def _timed(statement: str) -> str:
    # SQLite reads the same clock as `time.time`, but only when it has got the lock on the file.
    return statement.replace(":now", "(julianday('now') - 2440587.5) * 86400.0")


# Counting stops at the limit.
_FULL = """
:max_live_runs > 0 AND :max_live_runs <= (SELECT count(*) FROM (
    SELECT 1 FROM runs INDEXED BY live_of
    WHERE status = 'running' AND principal = :principal LIMIT :max_live_runs
))
"""
_BUSY = """
SELECT id FROM runs INDEXED BY live_of WHERE :only_live_run AND status = 'running'
AND principal = :principal AND conversation = :conversation LIMIT 1
"""
CREATE = _timed(f"""
INSERT INTO runs (id, chain, conversation, parent, principal, input, created, status, attempt,
                  lease_token, lease, title)
SELECT :id, :chain, :conversation, :parent, :principal, :input, :created, :status, :attempt,
       :lease_token, :now + :lease, :title
WHERE NOT EXISTS ({_BUSY}) AND NOT ({_FULL})
ON CONFLICT (id) DO NOTHING
""")
# Why `CREATE` stored nothing: a live run of the conversation or NULL, and whether the principal
# has too many live runs.
REFUSAL = f"SELECT ({_BUSY}), {_FULL}"

# The fields of a `Run`, and its lease token.
_RUNS = """
SELECT id, chain, conversation, parent, principal, input, created, status, seq, attempt, started,
       first_chunk, ended, answer, lease_token
FROM logs
"""
GET = f"{_RUNS} WHERE id = ?"
# The rows are sorted by `distance` later.
BRANCH = """
WITH RECURSIVE line (run, next, distance) AS (
    SELECT number, parent, 1 FROM runs WHERE id = :run
    UNION ALL
    SELECT runs.number, runs.parent, distance + 1
    FROM line CROSS JOIN runs ON runs.id = line.next WHERE distance < :limit
)
SELECT distance, id, chain, conversation, parent, principal, input, created, status, seq, attempt,
       started, first_chunk, ended, answer
FROM line CROSS JOIN logs ON logs.number = line.run
"""


def insert(rows: int) -> str:
    """Return the statement that stores `rows` batches.

    Each batch has ten values, in the order of `given`. It is stored if its lease token holds the
    run and if it follows the last event of the run's log.
    """
    return _INSERT.replace("(?)", ", ".join([f"(?{', ?' * 9})"] * rows))


# CROSS JOIN makes SQLite read the given values first and then look up each run by its id.
_INSERT = """
INSERT INTO batches (run, last, status, started, first_chunk, ended, answer, payload)
WITH given (run, lease_token, after, status, started, first_chunk, answer, last, ended, payload)
AS (VALUES (?))
SELECT logs.number, given.last, given.status, given.started, given.first_chunk, given.ended,
       given.answer, given.payload
FROM given CROSS JOIN logs ON logs.id = given.run
WHERE logs.lease_token = given.lease_token AND logs.status = 'running' AND logs.seq = given.after
"""

# Reads whole batches, up to the first one that reaches the limit. Returns the seq of the last event
# and the joined payloads. SQLite guarantees the order of a concatenation only in a window.
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
    WHERE runs.lease_token = held.value AND runs.status = 'running'
)
""")
RENEWED = """
SELECT json_group_object(runs.id, runs.cancel)
FROM json_each(:leases) AS held CROSS JOIN runs ON runs.id = held.key
WHERE runs.lease_token = held.value AND runs.status = 'running'
"""

OVERDUE = "SELECT 1 FROM runs WHERE status = 'running' AND lease < ? LIMIT 1"
TAKE_OVER = """
UPDATE runs SET lease_token = ?, lease = ?, attempt = attempt + 1 WHERE number IN (
    SELECT number FROM runs WHERE status = 'running' AND lease < ? ORDER BY lease LIMIT ?
)
"""
# The runs of one call of `TAKE_OVER`: no other call has the same lease token and lease.
TAKEN_OVER = f"{_RUNS} WHERE status = 'running' AND lease_token = ? AND lease = ?"

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
NEWEST = f"""
{_RUNS} WHERE principal = ? AND conversation = ? ORDER BY created DESC, id DESC LIMIT 1
"""
RENAME_CONVERSATION = "UPDATE conversations SET title = ? WHERE principal = ? AND id = ?"
DELETE_CONVERSATION = "DELETE FROM conversations WHERE principal = ? AND id = ?"

# A row that has expired counts as missing.
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
RELEASE_CLAIM = "DELETE FROM passing WHERE key = ? AND value = ?"

# Reads only the version if it has not changed.
POLL = """
SELECT data_version, CASE WHEN data_version <> :version THEN (
    SELECT json_group_array(json_array(logs.id, seq, cancel, status = 'running'))
    FROM json_each(:runs) AS asked CROSS JOIN logs ON logs.id = asked.value
) END FROM pragma_data_version
"""

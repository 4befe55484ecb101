package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/store/internal/sqlstore"
)

const (
	takeOver = `ON CONFLICT (subscription, claim_key) DO UPDATE SET
		owner = excluded.owner, done = 0, until_at = excluded.until_at, digest = excluded.digest, keep_until = NULL,
		source = excluded.source, epoch = excluded.epoch,
		crashes = CASE WHEN {claims}.done = 1 THEN 0 WHEN {claims}.owner = excluded.owner OR {claims}.started = 0 THEN {claims}.crashes ELSE {claims}.crashes + 1 END,
		alone = CASE WHEN {claims}.done = 1 THEN 0 WHEN {claims}.owner = excluded.owner OR {claims}.started < 2 THEN {claims}.alone ELSE {claims}.alone + 1 END,
		started = CASE WHEN {claims}.done = 1 OR CAST($6 AS bigint) > 0 THEN excluded.started WHEN {claims}.owner = excluded.owner THEN {claims}.started
			WHEN {claims}.crashes = 0 AND {claims}.started = 0 THEN 1 ELSE 0 END
		WHERE ({claims}.done = 0 AND ({claims}.owner = excluded.owner OR {claims}.until_at <= {now}
			OR ({claims}.source = excluded.source AND {claims}.epoch < excluded.epoch AND excluded.source <> '')))
		OR ({claims}.done = 1 AND {claims}.keep_until <= {now})`

	takeDone = `ON CONFLICT (subscription, claim_key) DO UPDATE SET
		owner = excluded.owner, done = 1, until_at = 0, digest = excluded.digest, crashes = 0, keep_until = excluded.keep_until
		WHERE {claims}.done = 0 OR {claims}.keep_until <= {now}`

	pendingColumns = `o.sequence, coalesce(o.slot, -1) AS slot, o.id, o.aggregatetype, o.aggregateid, o.type, coalesce(o.headers, '') AS headers, o.payload,
			o.created_at, o.attempts, coalesce(o.failure, '') AS failure`
	pendingAllowed = `NOT EXISTS (SELECT 1 FROM {outbox_held} h WHERE h.aggregatetype = o.aggregatetype AND h.aggregateid = o.aggregateid AND h.until_at > {now})
			AND o.aggregatetype NOT IN (SELECT json_array_elements_text(CAST($4 AS text)::json))`

	// The first rows of each slot by the index on (slot, sequence), whatever lies in
	// the other slots. Bounds of pairs and ORDER BY both columns leave the planner no
	// other index that has the order: by the statistics of a table that was empty a
	// moment ago it would follow the primary key past all other slots.
	pending = `SELECT * FROM (
			SELECT o.* FROM json_array_elements_text(CAST($1 AS text)::json) AS wanted(slot) CROSS JOIN LATERAL (
				SELECT ` + pendingColumns + ` FROM {outbox} o
				WHERE (o.slot, o.sequence) > (wanted.slot::smallint, 0) AND (o.slot, o.sequence) < ((wanted.slot::integer + 1)::smallint, 0) AND ` + pendingAllowed + `
				ORDER BY o.slot, o.sequence LIMIT $2) o
			UNION ALL (SELECT ` + pendingColumns + ` FROM {outbox} o WHERE o.slot IS NULL AND ` + pendingAllowed + ` ORDER BY o.slot, o.sequence LIMIT $3)
		) first ORDER BY sequence LIMIT $3`

	// The leases are locked until the statement ends, so that nobody takes them
	// over between the check and the deletion.
	sentHeld = `WITH held AS (
			SELECT w.slot FROM {leases} l
			JOIN json_to_recordset(CAST($3 AS text)::json) AS w(slot integer, name text, epoch bigint) ON w.name = l.name AND w.epoch = l.epoch
			WHERE l.group_name = $1 AND l.holder = $2 AND l.until_at > {now} FOR SHARE OF l
		), gone AS (
			DELETE FROM {outbox} o USING held
			WHERE o.slot = held.slot AND o.sequence IN (SELECT json_array_elements_text(CAST($4 AS text)::json)::bigint)`
	sentAtOnce  = sentHeld + ` RETURNING 1) SELECT count(*) FROM gone`
	sentAndKept = sentHeld + ` RETURNING o.*), kept AS (
			INSERT INTO {outbox_sent} (sequence, slot, id, aggregatetype, aggregateid, type, headers, payload, created_at, attempts, sent_at)
			SELECT sequence, slot, id, aggregatetype, aggregateid, type, headers, payload, created_at, attempts, {now} FROM gone RETURNING 1
		) SELECT count(*) FROM kept`
)

// endIdle ends who keeps connection $1 waiting in a transaction in which nothing has
// happened for $2 seconds. A role may end its own connections,
// https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SIGNAL.
const endIdle = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	WHERE pid = ANY(pg_blocking_pids(CAST($1 AS integer))) AND usename = current_user
	AND state LIKE 'idle in transaction%' AND state_change < clock_timestamp() - make_interval(secs => $2)`

func dialect(o Options) *sqlstore.Dialect {
	d := &sqlstore.Dialect{
		Name: "postgres",
		Now:  "floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
		Int:  "CAST(%s AS bigint)",
		Text: "CAST(%s AS text)",
		Quote: func(table string) string {
			if o.Schema == "" {
				return quote(o.Prefix + table)
			}
			return quote(o.Schema) + "." + quote(o.Prefix+table)
		},
		Upsert:     func(columns string) string { return "ON CONFLICT (" + columns + ") DO UPDATE SET" },
		New:        func(column string) string { return "excluded." + column },
		Returning:  true,
		Take:       takeOver,
		TakeDone:   takeDone,
		ForUpdate:  " FOR UPDATE",
		ForShare:   " FOR SHARE",
		SkipLocked: " FOR UPDATE SKIP LOCKED",
		Serialize: func(ctx context.Context, run sqlstore.Statements, key int64) error {
			_, err := run.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", key)
			return err
		},
		Retry: func(err error) bool {
			state := sqlState(err)
			return state == "40001" || state == "40P01" // serialization failure, deadlock
		},
		IdleLimit: " RETURNING set_config('idle_in_transaction_session_timeout', $6, true)",
		Session:   "SELECT pg_backend_pid()::bigint",
		EndIdle: func(ctx context.Context, run sqlstore.Statements, session int64) error {
			_, err := run.Exec(ctx, endIdle, session, sqlstore.IdleGrace.Seconds())
			return err
		},
		Answered: func(err error) bool {
			if errors.Is(err, pgx.ErrTxCommitRollback) || errors.Is(err, pgx.ErrTxClosed) {
				return true
			}
			// Of a server that ends (57) or has lost the client (08) nothing is known: it may have committed before.
			state := sqlState(err)
			return state != "" && !strings.HasPrefix(state, "57") && !strings.HasPrefix(state, "08")
		},
		NoTable: func(err error) bool { return sqlState(err) == "42P01" || sqlState(err) == "3F000" },
		Places:  "(SELECT value->>0 AS channel, CAST(value->>1 AS smallint) AS slot, CAST(value->>2 AS bigint) AS position, value->>3 AS finished FROM json_array_elements(CAST($1 AS text)::json))",
		Inspect: inspect,
		Grants: func(tables []string, user string) string {
			var text strings.Builder
			if o.Schema != "" {
				fmt.Fprintf(&text, "GRANT USAGE ON SCHEMA %s TO %s;\n", quote(o.Schema), quote(user))
			}
			fmt.Fprintf(&text, "GRANT SELECT, INSERT, UPDATE, DELETE ON\n\t%s\n\tTO %s;\n", strings.Join(tables, ",\n\t"), quote(user))
			return text.String()
		},
		Lateral:     true,
		SentAtOnce:  sentAtOnce,
		SentAndKept: sentAndKept,
		Pending:     pending,
		// A plan that was kept from when the outbox was empty reads all of it for each
		// batch, and compiling a plan takes longer than running it.
		Plan: "SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true)",
	}
	if !o.NoNotify {
		notify := "SELECT pg_notify('" + channel(o) + "', '')"
		d.Notify = func(ctx context.Context, run sqlstore.Statements) error {
			_, err := run.Exec(ctx, notify)
			return err
		}
		// One round trip: a second one would double the cost of an event.
		d.AndNotify = func(insert string) string { return "WITH added AS (" + insert + ") " + notify }
	}
	return d
}

// sqlState is the code of a server's error, of pgx or of another driver; "" for
// what is no answer of the server.
func sqlState(err error) string {
	if answer, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err); ok {
		return answer.SQLState()
	}
	return ""
}

// inspect finds settings under which a commit can be lost
// (https://www.postgresql.org/docs/current/runtime-config-wal.html).
func inspect(ctx context.Context, run sqlstore.Statements) (findings []driver.Finding, err error) {
	var fsync, commit, pages string
	if _, err := run.One(ctx, "SELECT current_setting('fsync'), current_setting('synchronous_commit'), current_setting('full_page_writes')", nil, &fsync, &commit, &pages); err != nil {
		return nil, err
	}
	find := func(setting, value, why string) {
		findings = append(findings, driver.Finding{
			Severity: driver.Weak, Check: "postgres-" + strings.ReplaceAll(setting, "_", "-"), Subject: "postgres", What: setting + " is " + value, Why: why, Fix: "set it to on",
		})
	}
	if fsync == "off" {
		find("fsync", fsync, "a crash of the machine can destroy the database")
	}
	if commit == "off" {
		find("synchronous_commit", commit, "a crash of the server loses the last commits, events and effects alike")
	}
	if pages == "off" {
		find("full_page_writes", pages, "a crash of the machine can destroy pages of the database")
	}
	return findings, nil
}

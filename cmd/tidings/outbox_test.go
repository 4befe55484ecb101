package main

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestOutboxStatus(t *testing.T) {
	databases(t, func(t *testing.T, app application) {
		tool(t, app.environment, "outbox", "status", "--every", "10ms").want(t, exitOK, "backlog 0", "held aggregates 0", "change +0.0/s")
		app.add(t, row("a", 1), row("a", 2), row("b", 1))
		var status outboxStatus
		tool(t, app.environment, "outbox", "status", "--every", "10ms", "--json").want(t, exitOK).decode(t, &status)
		if status.Backlog != 3 || status.OldestSeconds < 0 || status.Change == nil {
			t.Errorf("%+v", status)
		}
		tool(t, app.environment, "outbox", "status", "--every", "10ms", "--fail-after", "1ns").want(t, exitFindings, "backlog 3")
		tool(t, app.environment, "outbox", "status", "--every", "10ms", "--fail-after", "1h").want(t, exitOK)
	})
}

func TestOutboxStatusWatches(t *testing.T) {
	app := newApplication(t, onSQLite(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs safeBuffer
	code := make(chan int)
	go func() {
		code <- run(ctx, streams{strings.NewReader(""), &out, &errs}, func(name string) string { return app.environment[name] },
			[]string{"outbox", "status", "--watch", "--every", "20ms"})
	}()
	eventually(t, "no line without a backlog", func() bool { return strings.Contains(out.String(), "backlog 0") })
	app.add(t, row("a", 1))
	eventually(t, "no line with the new backlog", func() bool { return strings.Contains(out.String(), "backlog 1") })
	cancel()
	select {
	case got := <-code:
		if got != exitOK {
			t.Errorf("exit status %d: %s", got, errs.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
}

func TestOutboxWithoutTables(t *testing.T) {
	tool(t, onPostgres(t), "outbox", "status").want(t, exitFailure, "the schema is not what this library needs")
}

func TestOutboxSchema(t *testing.T) {
	for _, kind := range []string{"postgres", "mysql", "sqlite"} {
		o := tool(t, environment{"EVENT_NAMESPACE": "shop"}, "outbox", "schema", "--database", kind).want(t, exitOK, "CREATE TABLE shop_tidings_outbox", "INSERT INTO shop_tidings_schema")
		if strings.Contains(o.out, "CREATE TABLE tidings_") {
			t.Errorf("%s: a table without the namespace", kind)
		}
		tool(t, nil, "outbox", "schema", "--database", kind, "--since", "1000").want(t, exitOK)
	}
	var value struct{ SQL string }
	tool(t, nil, "outbox", "schema", "--database", "postgres", "--json").want(t, exitOK).decode(t, &value)
	if !strings.Contains(value.SQL, "CREATE TABLE tidings_outbox (\n\tsequence") {
		t.Errorf("%.300s", value.SQL)
	}
}

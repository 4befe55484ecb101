package main

import (
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// TestGrantsOnPostgres: with what --print says, and no right to make anything, an
// application runs on tables that provision has made.
func TestGrantsOnPostgres(t *testing.T) {
	e := onPostgres(t).with(environment{"EVENT_DRIVER": "postgres"})
	tool(t, e, append([]string{"provision"}, shop...)...).want(t, exitOK, "made")
	user := unique(t)
	o := tool(t, e, "provision", "--print", "--principal", user).want(t, exitOK, "# postgres grants", "GRANT SELECT, INSERT, UPDATE, DELETE ON", `"tidings_log"`)
	admin, err := pgxpool.New(t.Context(), e["DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	u, err := url.Parse(e["DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	schema := u.Query().Get("search_path")
	for statement := range strings.SplitSeq("CREATE ROLE "+user+" LOGIN; GRANT USAGE ON SCHEMA "+schema+" TO "+user+";"+strings.ReplaceAll(o.out, "# postgres grants", ""), ";") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := admin.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	defer func() {
		_, _ = admin.Exec(t.Context(), "DROP OWNED BY "+user)
		_, _ = admin.Exec(t.Context(), "DROP ROLE "+user)
	}()
	u.User = url.User(user)
	granted := e.with(environment{"DATABASE_URL": u.String(), "EVENT_MIGRATE": "never"})
	handleOne(t, granted, "mail.confirm")
	tool(t, granted, "subscription", "ls").want(t, exitOK, "mail.confirm")
	tool(t, granted, "forget", "order-1", "--yes").want(t, exitOK, "log")
}

func TestProvisionRefuses(t *testing.T) {
	kafka := environment{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": "127.0.0.1:1"}
	tool(t, kafka, "provision").want(t, exitUsage, "it is not said what the application declares")
	tool(t, kafka, append([]string{"provision", "--print", "--dry-run"}, shop...)...).want(t, exitUsage, "one of them")
	tool(t, kafka, append([]string{"provision"}, shop...)...).want(t, exitFailure, "did not answer")
	tool(t, environment{"EVENT_DRIVER": "sqs", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, append([]string{"provision", "--print"}, shop...)...).want(t, exitOK, "# IAM policy", `"sqs:ReceiveMessage"`)
}

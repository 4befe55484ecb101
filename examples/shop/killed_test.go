package main

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx", to count with
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/internal/testtime"
)

// databases are the drivers on which nothing is lost with the process.
var databases = map[string]func(t *testing.T) map[string]string{
	"sqlite": func(t *testing.T) map[string]string {
		return map[string]string{"EVENT_DRIVER": "sqlite", "SQLITE_PATH": file(t)}
	},
	"postgres": func(t *testing.T) map[string]string {
		return map[string]string{"EVENT_DRIVER": "postgres", "DATABASE_URL": schema(t)}
	},
	"kafka and postgres": func(t *testing.T) map[string]string {
		return map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": drivertest.Server(t, "KAFKA_BROKERS"), "DATABASE_URL": schema(t)}
	},
	"kafka and sqlite": func(t *testing.T) map[string]string {
		return map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": drivertest.Server(t, "KAFKA_BROKERS"), "SQLITE_PATH": file(t)}
	},
}

// file is the path of a database. It is in memory where that can be had: a killed
// process loses nothing of what it has written, and the time of a busy disk would
// be that of the test.
func file(t *testing.T) string {
	t.Helper()
	if folder, err := os.MkdirTemp("/dev/shm", "tidings-shop-"); err == nil { //nolint:usetesting // elsewhere than TempDir, on purpose
		t.Cleanup(func() { _ = os.RemoveAll(folder) })
		return filepath.Join(folder, "shop.db")
	}
	return filepath.Join(t.TempDir(), "shop.db")
}

// schema is the address of a schema of the test's own in a real PostgreSQL.
func schema(t *testing.T) string {
	t.Helper()
	address := os.Getenv("DATABASE_URL")
	if address == "" {
		address = drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	}
	name := fmt.Sprintf("shop_%x", time.Now().UnixNano())
	run := func(statement string) {
		db, err := sql.Open("pgx", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		if _, err := db.ExecContext(context.WithoutCancel(t.Context()), statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
	run("CREATE SCHEMA " + name)
	t.Cleanup(func() { run("DROP SCHEMA " + name + " CASCADE") })
	separator := "?"
	if strings.Contains(address, "?") {
		separator = "&"
	}
	return address + separator + "search_path=" + name
}

// onDatabases runs a test on each of them that is there.
func onDatabases(t *testing.T, test func(t *testing.T, environment map[string]string)) {
	for name, environment := range databases {
		t.Run(name, func(t *testing.T) { test(t, environment(t)) })
	}
}

// Killed ten times at random, the demo ends with every user having exactly one
// profile, and every event handled once.
func TestDemoOnSQLiteKilledTenTimes(t *testing.T)         { killedTenTimes(t, "sqlite") }
func TestDemoOnPostgreSQLKilledTenTimes(t *testing.T)     { killedTenTimes(t, "postgres") }
func TestDemoOnKafkaAndSQLiteKilledTenTimes(t *testing.T) { killedTenTimes(t, "kafka and sqlite") }
func TestDemoOnKafkaAndPostgreSQLKilledTenTimes(t *testing.T) {
	killedTenTimes(t, "kafka and postgres")
}

func killedTenTimes(t *testing.T, name string) {
	t.Parallel() // most of it is waiting for the leases of those who were killed
	environment, random := databases[name](t), seeded(t)
	recovered, tries := 0, 0
	for kills := 0; kills < 10; tries++ {
		if tries == 40 {
			t.Fatalf("%d kills in %d runs", kills, tries)
		}
		// A story has about thirty lines. Before the first one the tables are made and
		// what was left is looked up.
		line, moment := random.IntN(26), time.Duration(random.IntN(20))*time.Millisecond
		if line == 0 {
			moment *= 10
		}
		said, killed := demo(t, environment, line, moment)
		if killed {
			kills++
		}
		if strings.Contains(said, "An earlier process was ended") {
			recovered++
		}
	}
	said, _ := demo(t, environment, never, 0)
	t.Logf("%d of %d went on where another had ended; the last one said:\n%s", recovered, tries, said)
	counted(t, environment, said)
}

// Killed soon and again, before it has come back, it comes back all the same.
func TestDemoOnDatabasesKilledInQuickSuccession(t *testing.T) {
	onDatabases(t, func(t *testing.T, environment map[string]string) {
		t.Parallel()
		random := seeded(t)
		for line := range 12 {
			demo(t, environment, line, time.Duration(random.IntN(5))*time.Millisecond)
		}
		said, _ := demo(t, environment, never, 0)
		counted(t, environment, said)
	})
}

// seeded says the seed. It is SHOP_SEED where a run is to be repeated, as far as
// moments can be.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if given := os.Getenv("SHOP_SEED"); given != "" {
		var err error
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SHOP_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// never is the line after which the demo is not killed.
const never = -1

// demo runs the program in a process of its own, kills it with SIGKILL a moment
// after so many lines, and returns what it has said and whether that ended it.
func demo(t *testing.T, environment map[string]string, lines int, moment time.Duration) (text string, killed bool) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testtime.Patience(5*time.Minute))
	defer cancel()
	command := exec.CommandContext(ctx, program, "--lease", testtime.Scaled(time.Second).String())
	command.Env = append(os.Environ(), "SHOP_AS_PROGRAM=1", "EVENT_ENV=test")
	for name, value := range environment {
		command.Env = append(command.Env, name+"="+value)
	}
	var said, complaints bytes.Buffer
	command.Stderr = &complaints
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { _ = command.Process.Kill() } // it may have ended
	reader := bufio.NewScanner(output)
	for n := 0; ; n++ {
		if n == lines {
			defer time.AfterFunc(moment, kill).Stop()
		}
		if !reader.Scan() {
			break
		}
		said.WriteString(reader.Text() + "\n")
	}
	err = command.Wait()
	killed = err != nil && err.Error() == "signal: killed"
	if err != nil && (lines == never || !killed) {
		t.Fatalf("%v\n%s\n%s", err, complaints.String(), said.String())
	}
	return said.String(), killed
}

// counted looks at the rows with other eyes than the program's.
func counted(t *testing.T, environment map[string]string, said string) {
	t.Helper()
	db, err := sql.Open("pgx", environment["DATABASE_URL"])
	if path := environment["SQLITE_PATH"]; path != "" {
		db, err = sql.Open("sqlite", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	count := func(query string) (n int) {
		t.Helper()
		if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		return n
	}
	users := count(`SELECT count(*) FROM identity_users`)
	subscriptions := count(`SELECT count(*) FROM billing_subscriptions`)
	if users == 0 || users%3 != 0 || subscriptions != users/3 {
		t.Errorf("%d users and %d subscriptions: a story has three and one\n%s", users, subscriptions, said)
	}
	for query, want := range map[string]int{
		`SELECT count(*) FROM billing_profiles`: users,
		`SELECT count(*) FROM identity_users u WHERE (SELECT count(*) FROM billing_profiles p WHERE p.user_id = u.user_id) <> 1`:             0,
		`SELECT count(DISTINCT event_id) FROM notifications_mails`:                                                                           2*users/3 + subscriptions,
		`SELECT count(*) FROM notifications_mails`:                                                                                           2*users/3 + subscriptions,
		`SELECT count(*) FROM notifications_mails m JOIN identity_users u ON u.user_id = m.user_id WHERE u.email LIKE '%nowhere.invalid'`:    0,
		`SELECT count(*) FROM billing_profiles p WHERE NOT EXISTS (SELECT 1 FROM identity_users u WHERE u.user_id = p.user_id)`:              0,
		`SELECT count(*) FROM billing_profiles p WHERE NOT EXISTS (SELECT 1 FROM identity_users u WHERE u.event_id = p.event_id)`:            0,
		`SELECT count(*) FROM billing_subscriptions s WHERE (SELECT count(*) FROM notifications_mails m WHERE m.event_id = s.event_id) <> 1`: 0,
		`SELECT count(*) FROM notifications_mails m WHERE m.kind = 'welcome' AND m.event_id NOT IN (SELECT event_id FROM identity_users)`:    0,
	} {
		if got := count(query); got != want {
			t.Errorf("%s is %d, want %d\n%s", query, got, want, said)
		}
	}
	if want := fmt.Sprintf("%d users and %[1]d profiles: every user has exactly one", users); !strings.Contains(said, want) {
		t.Errorf("the demo does not say %q:\n%s", want, said)
	}
}

package setup_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/kafka"
	"github.com/tidings-go/tidings/driver/redis/streams"
	"github.com/tidings-go/tidings/driver/sqldb"
	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/setup"
)

// The tests of this file run an application in processes of its own, of which one
// event ends each; such a process is this test binary with the variable below. It
// appends to a ledger, a file, what it has done.
const (
	variableLedger = "TIDINGS_TEST_CRASH_LEDGER"
	variableInbox  = "TIDINGS_TEST_CRASH_INBOX"
	variablePolicy = "TIDINGS_TEST_CRASH_POLICY"
	variableMended = "TIDINGS_TEST_CRASH_MENDED" // the release that no longer ends its process
)

func TestMain(m *testing.M) {
	if path := os.Getenv(variableLedger); path != "" {
		if err := crashingApplication(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type changed struct {
	Text string `json:"text"`
}

var orderChanged = tidings.Define[changed]("shop.order.changed", 1, tidings.Repeatable)

const (
	crashAggregates    = 16
	crashSubscriptions = 3
	crashed            = 137
)

// ledgerFile is what processes have done, a line each: a word, a subscription, an
// aggregate and a text.
type ledgerFile struct{ path string }

func (l ledgerFile) write(words ...string) {
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, strings.Join(words, " "))
		_ = f.Close() // the line is in the file, or the test waits for it in vain
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func (l ledgerFile) lines() map[string]int {
	all := make(map[string]int)
	f, err := os.Open(l.path)
	if err != nil {
		return all
	}
	defer func() { _ = f.Close() }() // it was only read
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		all[scanner.Text()]++
	}
	return all
}

// Observe implements [tidings.Observer].
func (l ledgerFile) Observe(_ context.Context, o tidings.Observation) {
	switch {
	case o.Kind == tidings.DeadLettered, o.Kind == tidings.Parked && o.Reason != "behind":
		l.write("given-up", o.Subscription, o.AggregateID, o.Reason)
	case o.Kind == tidings.Suspected:
		l.write("suspected", o.Subscription, o.AggregateID)
	}
}

// crashingApplication works until every event is handled or given up; in a mended
// release, until nothing is left that was given up.
func crashingApplication(path string) error {
	ledger := ledgerFile{path}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	options := &setup.Options{
		Bus:   tidings.Options{Logger: slog.New(slog.DiscardHandler), Observers: []tidings.Observer{ledger}, RedeliveryHorizon: time.Hour},
		SQLDB: func(o *sqldb.Options) { o.LeaseTime = 2 * time.Second },
		Kafka: func(o *kafka.Options) {
			o.SessionTimeout, o.RebalanceTimeout, o.Partitions = 6*time.Second, 10*time.Second, 4
		},
		RedisStreams: func(o *streams.Options) { o.LeaseTime, o.Shards = 2*time.Second, 4 },
	}
	bus, db, err := setup.NewSQL(ctx, setup.Read(os.Getenv), options)
	if err != nil {
		return err
	}
	mended := os.Getenv(variableMended) != ""
	for n := range crashSubscriptions {
		name := fmt.Sprint("s", n)
		handle := func(_ context.Context, e tidings.Event[changed]) error {
			if name == "s1" && e.Payload().Text == "guilty" && !mended {
				time.Sleep(300 * time.Millisecond) //nolint:forbidigo // until others are in hand
				os.Exit(crashed)
			}
			time.Sleep(400 * time.Millisecond) //nolint:forbidigo // how long the handler takes
			ledger.write("handled", "audit."+name, e.AggregateID(), e.Payload().Text)
			return nil
		}
		reaction := orderChanged.On(handle)
		if os.Getenv(variableInbox) != "" {
			reaction = inbox.On(db.Store, orderChanged, func(ctx context.Context, _ *sql.Tx, e tidings.Event[changed]) error { return handle(ctx, e) })
		}
		subscribe := &tidings.SubscribeOptions{
			StartAt: tidings.StartBeginning, Concurrency: crashAggregates, ClaimLease: crashClaimLease(), Timeout: 20 * time.Second,
			OnExhausted: tidings.DeadLetter, ParkBackoff: tidings.Backoff{Initial: time.Second, Max: time.Second},
		}
		if os.Getenv(variablePolicy) == "park" {
			subscribe.OnExhausted = tidings.Park
		}
		bus.Module("audit").Subscribe(name, subscribe, reaction)
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- bus.Run(running) }()
	if err := bus.Ready(ctx); err != nil {
		return err
	}
	if len(ledger.lines()) == 0 {
		ledger.write("begun")
		events := make([]tidings.DomainEvent, 0, crashAggregates+1)
		for n := range crashAggregates {
			text := "innocent"
			if n == 7 {
				text = "guilty"
			}
			events = append(events, orderChanged.New(fmt.Sprint("order-", n), changed{text}))
		}
		if err := bus.Module("shop").Publish(ctx, append(events, orderChanged.New("order-7", changed{"behind"}))...); err != nil {
			return err
		}
	}
	for ctx.Err() == nil && !crashOver(ctx, ledger, db, mended) {
		time.Sleep(50 * time.Millisecond) //nolint:forbidigo // it looks again
	}
	stop()
	if err := <-done; err != nil {
		return err
	}
	return db.Close()
}

// crashClaimLease is far longer than a test waits, but on SQS: no epoch tells there that
// the owner of a claim is dead.
func crashClaimLease() time.Duration {
	if os.Getenv("EVENT_DRIVER") == "sqs" {
		return 25 * time.Second
	}
	return time.Minute
}

// crashOver reports whether a process has nothing left to wait for.
func crashOver(ctx context.Context, ledger ledgerFile, db *setup.SQL, mended bool) bool {
	lines := ledger.lines()
	for n := range crashSubscriptions {
		for a := range crashAggregates {
			of := fmt.Sprintf("audit.s%d order-%d ", n, a)
			guilty := n == 1 && a == 7
			text := "innocent"
			if a == 7 {
				text = "guilty"
			}
			givenUp := guilty && !mended && lines["given-up "+of+"crashed"] > 0
			if lines["handled "+of+text] == 0 && !givenUp {
				return false
			}
			parks := os.Getenv(variablePolicy) == "park"
			if a == 7 && lines["handled "+of+"behind"] == 0 && (!givenUp || !parks) {
				return false
			}
		}
	}
	if !mended {
		return true
	}
	lanes, err := db.Store.Lanes().List(ctx, "", driver.ParkedLane{}, 10)
	if err != nil || len(lanes) > 0 {
		return false
	}
	for _, state := range []driver.DeadLetterState{driver.DeadLetterOpen, driver.DeadLetterRetry} {
		letters, err := db.Store.DeadLetters().ListDeadLetters(ctx, driver.DeadLetterFilter{State: state}, "", 10)
		if err != nil || len(letters) > 0 {
			return false
		}
	}
	return true
}

// crashWorlds are where the application runs: what setup reads in each.
func crashWorlds() map[string]func(t *testing.T) map[string]string {
	beside := func(databaseURL func(t *testing.T) string, broker func(t *testing.T) map[string]string) func(t *testing.T) map[string]string {
		return func(t *testing.T) map[string]string {
			values := map[string]string{"EVENT_CLAIMS": "database", "EVENT_DEAD_LETTERS": "database", "DATABASE_URL": databaseURL(t)}
			maps.Copy(values, broker(t))
			return values
		}
	}
	onKafka := func(t *testing.T) map[string]string {
		return map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": drivertest.Server(t, "KAFKA_BROKERS")}
	}
	return map[string]func(t *testing.T) map[string]string{
		"sqlite": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "sqlite", "SQLITE_PATH": filepath.Join(t.TempDir(), "app.db")}
		},
		"postgres": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "postgres", "DATABASE_URL": schemaURL(t)}
		},
		"kafka and postgres": beside(schemaURL, onKafka),
		"kafka and mariadb":  beside(mariaURL, onKafka),
		"redis-streams and postgres": beside(schemaURL, func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "redis-streams", "REDIS_URL": drivertest.Server(t, "REDIS_URL")}
		}),
		"sqs and postgres": beside(schemaURL, func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "sqs", "AWS_ENDPOINT_URL": drivertest.Server(t, "TIDINGS_ELASTICMQ_URL"), "SQS_FIFO": "true", "SQS_VISIBILITY_TIMEOUT": "6s"}
		}),
	}
}

// crashesInShort are those that run without TIDINGS_TEST_LONG=1: each policy with and
// without an inbox, on four drivers.
var crashesInShort = []string{"sqlite/park/with ", "postgres/park/with an inbox", "kafka and postgres/dead letter/with ", "redis-streams and postgres/dead letter/with an inbox"}

// One event of one subscription ends its process while sixteen of each of three
// subscriptions are in hand. It alone is given up, whatever the policy; and the
// release that is mended handles it.
func TestOnlyTheEventThatEndsTheProcessIsGivenUp(t *testing.T) {
	t.Parallel()
	for name, environment := range crashWorlds() {
		for _, policy := range []string{"dead letter", "park"} {
			for _, with := range []string{"", "an inbox"} {
				of := fmt.Sprint(name, "/", policy, "/with ", with)
				if os.Getenv("TIDINGS_TEST_LONG") == "" && !slices.Contains(crashesInShort, of) {
					continue
				}
				t.Run(of, func(t *testing.T) {
					t.Parallel()
					values := environment(t)
					maps.Copy(values, map[string]string{variablePolicy: policy, variableInbox: with, "EVENT_NAMESPACE": fmt.Sprint("c", crashNumber.Add(1), "-", time.Now().UnixMilli())})
					crashAndMend(t, values)
				})
			}
		}
	}
}

// mariaURL makes a database of its own on MariaDB.
func mariaURL(t *testing.T) string {
	config, err := mysql.ParseDSN(drivertest.Server(t, "TIDINGS_MYSQL_DSN"))
	if err != nil {
		t.Fatal(err)
	}
	server, err := sql.Open("mysql", config.FormatDSN())
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("setup_%d", time.Now().UnixNano())
	if _, err := server.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = server.ExecContext(context.Background(), "DROP DATABASE "+name)
		_ = server.Close()
	})
	user := url.User(config.User)
	if config.Passwd != "" {
		user = url.UserPassword(config.User, config.Passwd)
	}
	return (&url.URL{Scheme: "mysql", User: user, Host: config.Addr, Path: "/" + name}).String()
}

var crashNumber atomic.Int64

func crashAndMend(t *testing.T, values map[string]string) {
	ledger := ledgerFile{filepath.Join(t.TempDir(), "ledger")}
	values[variableLedger] = ledger.path
	live := func() int {
		command := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // this binary
		command.Env = os.Environ()
		for name, value := range values {
			command.Env = append(command.Env, name+"="+value)
		}
		command.Stderr = os.Stderr
		_ = command.Run() // its exit code says more
		return command.ProcessState.ExitCode()
	}
	crashes, slowest := 0, time.Duration(0)
	for code := crashed; code == crashed && crashes < 12; {
		began := time.Now()
		if code = live(); code == crashed {
			crashes++
			slowest = max(slowest, time.Since(began))
		} else if code != 0 {
			t.Fatalf("a process ended with %d", code)
		}
	}
	lines := ledger.lines()
	for line := range lines {
		if strings.HasPrefix(line, "given-up ") && line != "given-up audit.s1 order-7 crashed" {
			t.Errorf("a bystander: %s", line)
		}
	}
	if lines["given-up audit.s1 order-7 crashed"] == 0 || crashes < 3 || crashes > 6 {
		t.Errorf("%d processes ended; in the ledger: %v", crashes, lines)
	}
	if slowest > 45*time.Second {
		t.Errorf("a process took %v until the event ended it again: it has waited for a claim", slowest)
	}
	values[variableMended] = "yes"
	if values[variablePolicy] == "dead letter" {
		retryCrashed(t, values)
	}
	if code := live(); code != 0 {
		t.Errorf("the mended release ended with %d", code)
	}
	if lines = ledger.lines(); lines["handled audit.s1 order-7 guilty"] == 0 || lines["handled audit.s1 order-7 behind"] == 0 {
		t.Errorf("the mended release has not handled everything: %v", lines)
	}
	t.Logf("%d processes ended, the slowest after %v", crashes, slowest.Round(100*time.Millisecond))
}

// retryCrashed marks what was given up, as an operator does.
func retryCrashed(t *testing.T, values map[string]string) {
	t.Helper()
	bus, db, err := setup.NewSQL(t.Context(), setup.Read(func(name string) string { return values[name] }), nil)
	if err != nil {
		t.Fatal(err)
	}
	letters, err := db.Store.DeadLetters().ListDeadLetters(t.Context(), driver.DeadLetterFilter{}, "", 20)
	if err != nil || len(letters) != 1 {
		t.Errorf("%d dead letters, want one: %v", len(letters), err)
	}
	for _, l := range letters {
		if _, err := db.Store.DeadLetters().MarkDeadLetters(t.Context(), l.Subscription, []driver.DeadLetterMark{{Key: l.Key}}, driver.DeadLetterRetry, "mended"); err != nil {
			t.Error(err)
		}
	}
	if err := bus.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

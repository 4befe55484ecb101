//go:build unix

package guarantees

import (
	"cmp"
	"context"
	"database/sql"
	"flag"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/drivertest/faults"
	"github.com/tidings-go/tidings/internal/line"
	"github.com/tidings-go/tidings/internal/testtime"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/setup"
)

var everySilence = flag.Bool("silences", false, "every silence of every server, and not only some")

// TestSilence lets each server fall silent, without a word, while instances start,
// work and stop: nothing is lost, doubled or out of order, what stands still goes on
// within the lease and ten seconds, Health tells the truth, and SIGTERM is obeyed.
func TestSilence(t *testing.T) {
	t.Parallel()
	ledger, table := newLedger(t), &silenceRows{}
	t.Run("servers", func(t *testing.T) {
		for n, silent := range silents() {
			if *only != "" && silent.Name != *only {
				continue
			}
			silent.Program = program
			if !*everySilence { // other tests run beside it
				silent.Slack = testtime.Scaled(10 * time.Second)
			}
			for _, silence := range silences(n, &silent) {
				t.Run(silent.Name+", "+silent.Server+" silent/"+silence.String(), func(t *testing.T) {
					t.Parallel()
					v := faults.RunSilence(t, ledger, &silent, silence)
					t.Log(&v)
					table.add(v)
				})
			}
		}
	})
	table.write(t)
}

// silences are those of one world: all of them, or one in each part of its life.
func silences(n int, silent *faults.Silent) (some []faults.Silence) {
	directions := []line.Direction{line.ToServer, line.FromServer, line.Both}
	for m, during := range []string{faults.Starting, faults.Working, faults.Stopping} {
		k := n + m // another combination for each
		some = append(some, faults.Silence{During: during, All: k%2 == 0, Dead: k/2%2 == 0, Direction: directions[k%3]})
	}
	if *everySilence {
		some = faults.Silences()
	} else if silent.Name != onPostgresWorld.Name && silent.Name != onStreams.Name { // the long form has all of the others
		return []faults.Silence{{During: faults.Working, All: true, Dead: n%2 == 0, Direction: directions[n%3]}}
	}
	switch {
	case silent.AtMostOnce:
	case silent.Server == "broker":
		some = append(some, faults.Silence{During: faults.Killed, Role: faults.Instance, Point: faults.AfterCommitBeforeSettle})
	default:
		some = append(some, faults.Silence{During: faults.Killed, Role: faults.Instance, Point: faults.AfterEffectBeforeCommit},
			faults.Silence{During: faults.Killed, Role: faults.Publisher, Point: faults.BeforeCommit})
	}
	return some
}

// silents are the worlds with the servers that fall silent.
func silents() []faults.Silent {
	all := []faults.Silent{
		{World: onPostgresWorld, Server: "database", Database: true},
		{World: setupWorld, Server: "database", Database: true},
		{World: outboxWorld, Server: "database", Database: true},
		{World: outboxWorld, Server: "broker"},
		{World: streamsWorld, Server: "database", Database: true},
		{World: queueWorld, Server: "database", Database: true},
		{World: mariaWorld, Server: "database", Database: true},
		{World: onKafka, Server: "broker"},
		{World: onStreams, Server: "broker"},
		{World: onSQS, Server: "broker"},
		{World: onRedis, Server: "broker"},
	}
	for n := range all {
		w := &all[n]
		w.Session = sessionTimeout
		prepare := w.Prepare
		w.Prepare = func(t testing.TB) faults.Place {
			place := prepare(t)
			place.Lease = sessionTimeout
			return place
		}
	}
	return all
}

// silentWorlds are those that no other test has.
func silentWorlds() []faults.World {
	return []faults.World{setupWorld, streamsWorld, queueWorld, mariaWorld}
}

// setupWorld is the database as the bus, over a pool that setup opens.
var setupWorld = faults.World{
	Name: "postgres, by setup", Session: leaseTime, Database: true,
	Enter: func(ctx context.Context, place faults.Place, trap *faults.Trap) (*faults.Parts, error) {
		return databaseParts(ctx, "postgres", place, trap, bySetup)
	},
	Prepare: newSchemaForSetup,
	Effects: effectsOf(bySetup),
}

// relayed is an application whose events go through its outbox, opened by setup, to
// a broker.
func relayed(name string, session time.Duration, open func(faults.Place) (driver.Driver, error), prepare func(t testing.TB) faults.Place, broker func(t testing.TB, place *faults.Place)) faults.World {
	return faults.World{
		Name: name, Session: session, Separate: true,
		Enter: func(ctx context.Context, place faults.Place, trap *faults.Trap) (*faults.Parts, error) {
			a, err := bySetup(ctx, place)
			if err != nil {
				return nil, err
			}
			d, err := open(place)
			if err != nil {
				return nil, err
			}
			return &faults.Parts{
				Driver: d, Options: tidings.Options{Lanes: a.store.Lanes()}, Subscribe: subscribe(), React: a.react(trap), Commit: a.commit, Committed: a.committed, Close: a.close,
				Queue: trap.Queue(a.store), Relay: outbox.Options{LeaseTime: cmp.Or(place.Lease, leaseTime), Batch: 50, PollInterval: 100 * time.Millisecond},
			}, nil
		},
		Prepare: func(t testing.TB) faults.Place {
			place := prepare(t)
			broker(t, &place)
			return place
		},
		Effects: effectsOf(bySetup),
	}
}

var (
	streamsWorld = relayed("postgres, redis-streams, postgres", leaseTime, newStreams, newSchemaForSetup, redisBroker)
	mariaWorld   = relayed("mariadb, kafka, mariadb", sessionTimeout, newKafka, newMariaDatabase, kafkaBroker)
	queueWorld   = func() faults.World {
		w := relayed("postgres, sqs, postgres", sessionTimeout, newQueues, newSchemaForSetup, queueBroker)
		w.Unnoticed = true
		return w
	}()
)

func redisBroker(t testing.TB, place *faults.Place) {
	place.Broker = drivertest.Server(t, "REDIS_URL")
	removeAfter(t, *place, removeKeys)
}

func kafkaBroker(t testing.TB, place *faults.Place) {
	place.Broker = drivertest.Server(t, "KAFKA_BROKERS")
	removeAfter(t, *place, removeKafka)
}

func queueBroker(t testing.TB, place *faults.Place) {
	place.Broker = drivertest.Server(t, "TIDINGS_ELASTICMQ_URL")
	removeAfter(t, *place, removeQueues)
}

// bySetup opens the application's database as setup does.
func bySetup(_ context.Context, place faults.Place) (*application[*sql.Tx], error) {
	opened, err := setup.OpenSQL(setup.Config{DatabaseURL: through(place.Database, place.DatabaseLine)})
	if err != nil {
		return nil, err
	}
	db, ok := opened.Store.(applicationStore[*sql.Tx])
	if !ok {
		return nil, fmt.Errorf("a %T is no store of an application", opened.Store)
	}
	a := onSQL(opened.DB, db)
	if strings.HasPrefix(place.Database, "mysql:") {
		in := a.in
		a.in = func(tx *sql.Tx) executor {
			do := in(tx)
			return func(ctx context.Context, statement string, arguments ...any) error {
				for n := range arguments {
					statement = strings.Replace(statement, fmt.Sprintf("$%d", n+1), "?", 1)
				}
				return do(ctx, statement, arguments...)
			}
		}
	}
	return a, nil
}

// newSchemaForSetup makes the application's database in a schema of its own.
func newSchemaForSetup(t testing.TB) faults.Place {
	t.Helper()
	url := drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	place := newSchema(t, url)
	mark := "?"
	if strings.Contains(url, "?") {
		mark = "&"
	}
	place.Database += mark + "search_path=" + place.Namespace
	migrateBySetup(t, place)
	return place
}

func newMariaDatabase(t testing.TB) faults.Place {
	t.Helper()
	config, err := mysql.ParseDSN(drivertest.Server(t, "TIDINGS_MYSQL_DSN"))
	if err != nil {
		t.Fatal(err)
	}
	server, err := sql.Open("mysql", config.FormatDSN())
	if err != nil {
		t.Fatal(err)
	}
	place := faults.Place{Namespace: newNamespace()}
	user := config.User
	if config.Passwd != "" {
		user += ":" + config.Passwd
	}
	place.Database = "mysql://" + user + "@" + config.Addr + "/" + place.Namespace
	if _, err := server.ExecContext(t.Context(), "CREATE DATABASE "+place.Namespace); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := server.ExecContext(ctx, "DROP DATABASE "+place.Namespace); err != nil {
			t.Log(err)
		}
		_ = server.Close()
	})
	migrateBySetup(t, place)
	return place
}

func migrateBySetup(t testing.TB, place faults.Place) {
	t.Helper()
	a, err := bySetup(t.Context(), place)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if err := a.migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// silenceRows are the table of silences in the making.
type silenceRows struct {
	mu  sync.Mutex
	all []faults.SilenceVerdict
}

func (r *silenceRows) add(v faults.SilenceVerdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, v)
}

func (r *silenceRows) write(t *testing.T) {
	t.Helper()
	if *page == "" {
		return
	}
	text := fmt.Sprintf("`%s`, %s, %s %s/%s with %d processors; %s. Leases, a Kafka session and an SQS visibility timeout of %v, handlers of at most %v, a drain timeout of %v.\n\n%s",
		*command, time.Now().Format("2006-01-02"), runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), *versions,
		sessionTimeout, faults.HandlerTime, faults.DrainTime, faults.SilenceTable(r.all))
	if err := faults.WriteSection(*page, "silence", text); err != nil {
		t.Error(err)
	}
}

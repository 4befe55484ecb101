//go:build unix

package guarantees

import (
	"cmp"
	"context"
	"database/sql"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/drivertest/faults"
	"github.com/tidings-go/tidings/driver/kafka"
	"github.com/tidings-go/tidings/driver/sqldb"
	"github.com/tidings-go/tidings/outbox"
)

func TestMain(m *testing.M) {
	faults.Main(slices.Concat(worlds(), []faults.World{outboxWorld}, silentWorlds())...)
	flag.Parse()
	os.Exit(run(m))
}

var atOnce = flag.Int("at-once", 8, "trials that run beside each other")

func run(m *testing.M) int {
	if raceDetector {
		folder, err := os.MkdirTemp("", "guarantees")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(folder) }()
		program = filepath.Join(folder, "guarantees.test")
		if output, err := exec.Command("go", "test", "-c", "-o", program, ".").CombinedOutput(); err != nil { //nolint:noctx,gosec // this package
			fmt.Fprintf(os.Stderr, "the processes of the test cannot be built: %v\n%s", err, output)
			return 1
		}
	}
	if err := flag.Set("test.parallel", strconv.Itoa(*atOnce)); err != nil { // the tests wait for other processes and do little else
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// program is what the processes run; empty: this binary.
var program string

func withProgram(worlds ...faults.World) []faults.World {
	for n := range worlds {
		worlds[n].Program = program
	}
	return worlds
}

// The settings of every process, short enough for a test and printed with the
// results.
const (
	leaseTime      = time.Second
	sessionTimeout = 3 * time.Second // of Kafka, and the visibility timeout of SQS
)

// subscribe are the options of every subscription. MaxCrashes is high: the kills
// are ours, and no event is to blame.
func subscribe() tidings.SubscribeOptions {
	return tidings.SubscribeOptions{MaxCrashes: 1000, Backoff: tidings.Backoff{Initial: 50 * time.Millisecond, Max: time.Second}}
}

// The database is the bus: publishers commit with their events in one transaction,
// consumers number and read, handlers write in the transaction of the inbox.
var onPostgresWorld = faults.World{
	Name: "postgres", Session: leaseTime, Database: true,
	Enter: func(ctx context.Context, place faults.Place, trap *faults.Trap) (*faults.Parts, error) {
		return databaseParts(ctx, "postgres", place, trap, onPostgres)
	},
	Prepare: func(t testing.TB) faults.Place { return newSchema(t, drivertest.Server(t, "TIDINGS_POSTGRES_URL")) },
	Effects: effectsOf(onPostgres),
}

// onPostgresClock is a server whose clock can be moved, and is there for that.
var onPostgresClock = func() faults.World {
	w := onPostgresWorld
	w.Name, w.ClockOnly = "postgres, its clock moved", true
	return w
}()

const notHere = "-" // another world has the row

var onSQLiteWorld = faults.World{
	Name: "sqlite", Session: leaseTime, Database: true, Serial: true,
	NoServer: "there is no server: the database is a file",
	Not:      map[string]string{"lines": "there is no connection: the database is a file"},
	Enter: func(ctx context.Context, place faults.Place, trap *faults.Trap) (*faults.Parts, error) {
		return databaseParts(ctx, "sqlite", place, trap, onFile)
	},
	Prepare: func(t testing.TB) faults.Place { return newFile(t, t.TempDir()) },
	Disk:    smallDisk,
	Effects: effectsOf(onFile),
}

// smallDisk is a file system of three megabytes; making one takes root.
func smallDisk(t testing.TB) (place faults.Place, fill, clear func()) {
	t.Helper()
	folder := t.TempDir()
	if output, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder).CombinedOutput(); err != nil { //nolint:noctx,gosec // a folder of the test's
		t.Skipf("no small disk can be mounted: %v: %s", err, output)
	}
	t.Cleanup(func() {
		if err := exec.Command("umount", folder).Run(); err != nil { //nolint:noctx,gosec // a folder of the test's
			t.Error(err)
		}
	})
	stuffing := filepath.Join(folder, "stuffing")
	fill = func() {
		file, err := os.Create(stuffing)
		if err != nil {
			t.Error(err)
			return
		}
		for err == nil { // until there is no space left
			_, err = file.Write(make([]byte, 4096))
		}
		_ = file.Close()
	}
	clear = func() {
		if err := os.Remove(stuffing); err != nil {
			t.Error(err)
		}
	}
	return newFile(t, folder), fill, clear
}

func databaseParts[TX any](ctx context.Context, name string, place faults.Place, trap *faults.Trap, open func(context.Context, faults.Place) (*application[TX], error)) (*faults.Parts, error) {
	a, err := open(ctx, place)
	if err != nil {
		return nil, err
	}
	log, ok := a.store.(interface{ Log() outbox.Log })
	if !ok {
		return nil, fmt.Errorf("a %T has no log", a.store)
	}
	d, err := sqldb.New(sqldb.Options{Name: name, Log: trap.Log(log.Log(), a.store.Status), LeaseTime: cmp.Or(place.Lease, leaseTime), PollInterval: 100 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	return &faults.Parts{Driver: d, Options: tidings.Options{Lanes: a.store.Lanes()},
		Subscribe: subscribe(), React: a.react(trap), Commit: a.commit, Committed: a.committed, Close: a.close}, nil
}

func effectsOf[TX any](open func(context.Context, faults.Place) (*application[TX], error)) func(context.Context, faults.Place) (map[string]int, error) {
	return func(ctx context.Context, place faults.Place) (map[string]int, error) {
		a, err := open(ctx, place)
		if err != nil {
			return nil, err
		}
		defer a.close()
		// While consumers end, a file may not be opened for a moment: its last
		// connection takes the log away.
		for tries := 1; ; tries++ {
			effects, err := a.effects(ctx)
			if err == nil || tries == 5 || !strings.Contains(err.Error(), "unable to open database file") {
				return effects, err
			}
			select {
			case <-ctx.Done():
				return nil, err
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// outboxWorld: publishers commit into PostgreSQL, relays send to Kafka, handlers
// write into PostgreSQL in the transaction of the inbox.
var outboxWorld = faults.World{
	Name: "postgres, kafka, postgres", Session: sessionTimeout,
	Enter: func(ctx context.Context, place faults.Place, trap *faults.Trap) (*faults.Parts, error) {
		a, err := onPostgres(ctx, place)
		if err != nil {
			return nil, err
		}
		d, err := newKafka(place)
		if err != nil {
			return nil, err
		}
		return &faults.Parts{
			Driver: d, Subscribe: subscribe(), React: a.react(trap), Commit: a.commit, Committed: a.committed, Close: a.close,
			Queue: trap.Queue(a.store), Relay: outbox.Options{LeaseTime: cmp.Or(place.Lease, leaseTime), Batch: 50},
		}, nil
	},
	Prepare: func(t testing.TB) faults.Place {
		addresses := drivertest.Server(t, "KAFKA_BROKERS")
		place := newSchema(t, drivertest.Server(t, "TIDINGS_POSTGRES_URL"))
		place.Broker = addresses
		t.Cleanup(func() { removeKafka(t, place) })
		return place
	},
	Effects: effectsOf(onPostgres),
}

func newKafka(place faults.Place) (driver.Driver, error) {
	options := kafka.Options{
		Brokers: strings.Split(place.Broker, ","), Namespace: place.Namespace, Partitions: 4, Provision: kafka.ProvisionAlways,
		SessionTimeout: cmp.Or(place.Lease, sessionTimeout), RebalanceTimeout: 5 * time.Second,
		ClientOptions: []kgo.Opt{kgo.HeartbeatInterval(200 * time.Millisecond)},
	}
	if options.ReplicationFactor = 1; len(options.Brokers) == 3 {
		options.ReplicationFactor = 3
	}
	if place.BrokerLine != "" { // whatever the broker says where it is
		options.ClientOptions = append(options.ClientOptions, kgo.Dialer(func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, place.BrokerLine)
		}))
	}
	return kafka.New(options)
}

// removeKafka deletes the topics and groups of a place.
func removeKafka(t testing.TB, place faults.Place) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(place.Broker, ",")...))
	if err != nil {
		t.Log(err)
		return
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	topics, err := admin.ListTopics(ctx)
	if err != nil {
		t.Log(err)
		return
	}
	for _, name := range topics.Names() {
		if strings.HasPrefix(name, place.Namespace+".") {
			if _, err := admin.DeleteTopics(ctx, name); err != nil {
				t.Log(err)
			}
		}
	}
	groups, err := admin.ListGroups(ctx)
	if err != nil {
		t.Log(err)
		return
	}
	for _, name := range groups.Groups() {
		if strings.HasPrefix(name, place.Namespace+".") {
			if _, err := admin.DeleteGroups(ctx, name); err != nil {
				t.Log(err)
			}
		}
	}
}

// newLedger opens a ledger of the test's own.
func newLedger(t testing.TB) *faults.Ledger {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ledger.db")
	db, err := sql.Open("sqlite", fmt.Sprintf("file:%s?_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)&_pragma=busy_timeout(10000)&_txlock=immediate", path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	ledger, err := faults.OpenLedger(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	return ledger
}

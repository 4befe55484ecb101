//go:build unix

package guarantees

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver/drivertest/faults"
)

var (
	rounds   = flag.Int("rounds", 2, "kills at each named point")
	page     = flag.String("page", "", "the page whose sections are written; empty: none is")
	versions = flag.String("versions", "", "the versions of the brokers, for the page")
	command  = flag.String("command", "", "the command that was given, for the page")
)

// stack is a world with the points at which its processes are killed.
type stack struct {
	world  faults.World
	points []at
}

type at struct {
	role  string
	point faults.Point
}

var (
	commits   = []at{{faults.Publisher, faults.BeforeCommit}, {faults.Publisher, faults.AfterCommit}}
	relays    = []at{{faults.Relay, faults.AfterSendBeforeMark}, {faults.Relay, faults.AfterMark}}
	numberers = []at{{faults.Consumer, faults.BeforeNumbering}, {faults.Consumer, faults.AfterNumbering}}
	settles   = []at{{faults.Consumer, faults.AfterEffectBeforeCommit}, {faults.Consumer, faults.AfterCommitBeforeSettle}}
)

func points(lists ...[]at) (all []at) {
	for _, list := range lists {
		all = append(all, list...)
	}
	return all
}

// TestKilledAtNamedPoints kills each process of each stack with SIGKILL at each
// named point: nothing is lost, out of order or done twice.
func TestKilledAtNamedPoints(t *testing.T) {
	t.Parallel()
	ledger, table := newLedger(t), &rows{}
	t.Run("stacks", func(t *testing.T) {
		for _, s := range []stack{
			{onPostgresWorld, points(commits, numberers, settles)},
			{onSQLiteWorld, points(commits, numberers, settles)},
			{outboxWorld, points(commits, relays, settles)},
		} {
			t.Run(s.world.Name, func(t *testing.T) {
				t.Parallel()
				s.world.Program = program
				for _, a := range s.points {
					t.Run(a.role+" "+string(a.point), func(t *testing.T) {
						v := killAt(t, ledger, s.world, a, *rounds)
						table.add(v)
						held(t, v)
					})
				}
			})
		}
	})
	table.write(t, "killed at named points", fmt.Sprintf("Leases of %v (slots of the driver and of the relay), a Kafka session of %v, a batch of the relay of 50, 12 aggregates, at most 400 events/s, and 100 where consumers are killed.", leaseTime, sessionTimeout))
}

// killAt kills one process of a world, again and again, while the others work.
func killAt(t *testing.T, ledger *faults.Ledger, world faults.World, a at, rounds int) faults.Verdict {
	trial := faults.NewTrial(t, ledger, world, a.role+" killed "+string(a.point))
	load := faults.Load{Aggregates: 12, Batch: 6, Pause: 15 * time.Millisecond}
	if a.role == faults.Consumer {
		load.Pause = 60 * time.Millisecond // it takes seconds until another one has what the dead one had
	}
	roles := map[string]faults.Order{
		faults.Publisher: {Role: faults.Publisher, Lane: "a", Load: load},
		faults.Consumer:  {Role: faults.Consumer},
	}
	parts := []string{faults.Publisher, faults.Consumer}
	if world.Name == outboxWorld.Name {
		roles[faults.Relay] = faults.Order{Role: faults.Relay}
		parts = append(parts, faults.Relay)
	}
	for _, role := range parts {
		if role != a.role || role != faults.Publisher { // beside a consumer or relay that is killed another one works
			trial.Start(roles[role])
		}
	}
	for range rounds {
		order := roles[a.role]
		order.Point, order.Count = a.point, 1+rand.IntN(8)
		trial.Start(order).Died(60 * time.Second)
		trial.Hit()
	}
	if a.role == faults.Publisher {
		last := trial.Start(roles[a.role])
		trial.Until("the last publisher goes on", time.Minute, func() bool { return trial.Told(last, "stored") >= 60 })
	}
	trial.StopAll(faults.Publisher)
	trial.Drain(60 * time.Second)
	return trial.Judge()
}

// held fails for what must not be.
func held(t *testing.T, v faults.Verdict) {
	t.Helper()
	if v.Lost > 0 || v.Disordered > 0 || v.DoubleEffects > 0 || v.Phantoms > 0 || v.Dead > 0 {
		t.Errorf("%s, %s: %v", v.Driver, v.Fault, v)
	}
	if v.Duplicates > v.Bound {
		t.Errorf("%s, %s: %d duplicates, at most %d were in hand", v.Driver, v.Fault, v.Duplicates, v.Bound)
	}
	if v.Published == 0 || v.Hits == 0 {
		t.Errorf("%s, %s: it shows nothing: %v", v.Driver, v.Fault, v)
	}
}

// rows are a table in the making.
type rows struct {
	mu   sync.Mutex
	rows []faults.Verdict
}

func (r *rows) add(v faults.Verdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, v)
}

// write puts the table into its section of the page, if there is one to write.
func (r *rows) write(t *testing.T, section, settings string) {
	t.Helper()
	if *page == "" {
		return
	}
	var text strings.Builder
	fmt.Fprintf(&text, "`%s`, %s, %s %s/%s with %d processors; %s. %s\n\n%s\n", *command, time.Now().Format("2006-01-02"), runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), *versions, settings, faults.Header)
	// The drivers ran beside each other; each has its rows together.
	slices.SortStableFunc(r.rows, func(a, b faults.Verdict) int { return strings.Compare(a.Driver, b.Driver) })
	for _, v := range r.rows {
		text.WriteString(v.Row() + "\n")
	}
	if err := faults.WriteSection(*page, section, text.String()); err != nil {
		t.Error(err)
	}
}

package deployments

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testtime"
)

// Suite is what is tried, and how long it may take.
type Suite struct {
	Worlds []World
	// Short leaves most changes out: those are tried that found the most.
	Short bool
	// Patience is how long to wait for the next bit of what is sure to come. Defaults to
	// 90 seconds, multiplied by TIDINGS_TEST_SCALE.
	Patience time.Duration
	// Rounds is how many rounds the load makes in each part of a schedule, an event
	// for each of six aggregates and each contract. Defaults to 6.
	Rounds int
	// AtOnce is how many trials run at the same time; they mostly wait. Defaults to
	// what go test allows.
	AtOnce int
	// Pause is the time between rounds. Defaults to 50 ms.
	Pause time.Duration
}

func (s *Suite) patience() time.Duration {
	if s.Patience > 0 {
		return s.Patience
	}
	return testtime.Patience(90 * time.Second)
}

func (s *Suite) rounds() int {
	if s.Rounds > 0 {
		return s.Rounds
	}
	return 6
}

// short are the changes of the short form with their schedules: what they found first
// was lost there.
var short = map[string]string{"channel added, rolled back": "stop and start", "type added on a shared channel": "rolling"}

// Changes are what differs between two releases, in the order of the table.
func Changes() []string {
	var names []string
	for _, c := range changes() {
		names = append(names, c.name)
	}
	return names
}

// Run tries every change under every schedule in every world, each as a parallel
// subtest, and fails for what is lost, out of order, doubled or dead. Each verdict is
// given to add, which may be called from several goroutines; it may be nil.
func Run(t *testing.T, suite Suite, add func(Verdict)) {
	t.Helper()
	var turns chan struct{}
	if suite.AtOnce > 0 {
		turns = make(chan struct{}, suite.AtOnce)
	}
	for _, world := range suite.Worlds {
		t.Run(world.Name, func(t *testing.T) {
			t.Parallel()
			for _, c := range changes() {
				for _, schedule := range Schedules() {
					if suite.Short && short[c.name] != schedule {
						continue
					}
					t.Run(c.name+"/"+schedule, func(t *testing.T) {
						t.Parallel()
						if turns != nil {
							turns <- struct{}{}
							defer func() { <-turns }()
						}
						v := try(t, &suite, world, c, schedule)
						if !v.Holds() {
							t.Errorf("%v", v)
						} else {
							t.Logf("%v", v)
						}
						if add != nil {
							add(v)
						}
					})
				}
			}
		})
	}
}

// try is one trial.
func try(t *testing.T, suite *Suite, world World, c change, schedule string) (v Verdict) {
	t.Helper()
	begun := time.Now()
	defer func() {
		v.World, v.Change, v.Schedule, v.Took = world.Name, c.name, schedule, time.Since(begun)
	}()
	if why := world.Not[c.name]; why != "" {
		v.Not = why
		return v
	}
	trial := &trial{TB: t, suite: suite, world: &world, site: world.Prepare(t), change: &c, ledger: newLedger(), log: &diary{}}
	defer func() {
		if t.Failed() {
			t.Logf("what the instances said:\n%s", trial.log.text())
		}
	}()
	publisher, err := trial.site.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer publisher.Close()
	options := publisher.Options
	options.Logger = slog.New(trial.log.of("publisher"))
	bus := tidings.New(publisher.Driver, &options)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- bus.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the publisher ended: %v", err)
		}
	}()
	trial.load = &load{ledger: trial.ledger, bus: bus, facts: c.published, pause: suite.pause()}
	if err := bus.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer trial.stopAll()
	defer trial.load.stop() // before the instances, which would be missed
	trial.deploy(schedule)
	trial.settle()
	trial.close()
	return trial.judge()
}

func (s *Suite) pause() time.Duration {
	if s.Pause > 0 {
		return s.Pause
	}
	return 50 * time.Millisecond
}

// diary keeps what the instances log from warnings on, for a trial that fails.
type diary struct {
	mu    sync.Mutex
	lines bytes.Buffer
}

// diaryBytes bounds what a trial keeps: the first of it tells the most.
const diaryBytes = 16 << 10

// of is the handler of one instance.
func (d *diary) of(instance string) slog.Handler {
	return slog.NewTextHandler(d, &slog.HandlerOptions{Level: slog.LevelWarn}).WithAttrs([]slog.Attr{slog.String("instance", instance)})
}

// Write implements [io.Writer].
func (d *diary) Write(line []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lines.Len() < diaryBytes {
		d.lines.Write(line)
	}
	return len(line), nil
}

func (d *diary) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lines.String()
}
